//! What has to be so at the end of a reset, of a refusal and of a cancellation:
//! shared by all scenarios, so that an interrupted run is held to the same as
//! one that was not.

use crate::bench::Bench;
use crate::disk::{Access, Disk, Part};
use crate::esp::{Esp, Files};
use crate::failure::{Doing, Outcome};
use crate::guest::{Facts, Report};
use crate::request::{self, Staged};
use crate::seeds::{self, Seeds};
use crate::tpm::{self, Contents, PLANTED_INDEX, PLANTED_OBJECT};
use serde_json::Value;

/// What a reset destroys, by label.
const WIPED: [&str; 3] = ["swap", "root-x86-64", "local-data"];
/// The headers and key slots of a LUKS2 volume as systemd-repart makes it.
const LUKS_BYTES: u64 = 16 << 20;
/// Start and end of a partition, where signatures are.
const EDGE_BYTES: u64 = 64 << 10;

/// The disk right after the reset, before anything was made anew there: read
/// from outside, and held against the base's disk.
pub fn erased(bench: &mut Bench<'_>, disk: &Disk, wanted_seeds: &Seeds) -> Outcome {
    let base = bench.base()?.open_disk()?;
    let old = base.parts()?;
    let left = disk.parts()?;
    let kept: Vec<&Part> = old.iter().filter(|part| !WIPED.contains(&part.name.as_str())).collect();
    bench.equal("entries left in the primary table", left.iter().collect::<Vec<_>>(), kept)?;
    bench.equal("entries in the backup table", disk.backup_parts()?, left)?;
    for name in WIPED {
        let part = base.part(name)?;
        if name != "local-data" {
            let had = base.read(part.start, LUKS_BYTES)?;
            bench.check(&format!("{name} had key slots before"), had.starts_with(b"LUKS"))?;
            let has = disk.read(part.start, LUKS_BYTES)?;
            bench.check(
                &format!("no byte of the headers and key slots of {name} is left"),
                has.iter().all(|byte| *byte == 0),
            )?;
        }
        for (what, at) in [("start", part.start), ("end", part.start + part.length - EDGE_BYTES)] {
            let bytes = disk.read(at, EDGE_BYTES)?;
            bench.check(
                &format!("nothing is left at the {what} of {name}"),
                bytes.iter().all(|byte| *byte == 0),
            )?;
        }
    }
    seed_partition(bench, disk, wanted_seeds)?;
    untouched(bench, &base, disk)?;
    base.close()
}

/// The seeds are these, and nothing but zeroes follows them.
pub fn seed_partition(bench: &mut Bench<'_>, disk: &Disk, wanted: &Seeds) -> Outcome {
    let (found, end) = seeds::read(disk)?;
    let named = |seeds: &Seeds| -> Vec<String> { seeds.keys().cloned().collect() };
    bench.equal("names of the seeds", named(&found), named(wanted))?;
    for (name, content) in &found {
        let same = wanted.get(name).is_some_and(|wanted| same_json(wanted, content));
        bench.check(&format!("the seed {name} says what it should"), same)?;
    }
    let all = disk.bytes_of(&disk.part(seeds::PARTITION)?)?;
    // GNU tar pads to 10 KiB, which are zeroes too.
    let rest = all.get(end..).unwrap_or_default();
    bench.check("only zeroes after the seeds", rest.iter().all(|byte| *byte == 0))
}

/// The same bytes, or the same JSON: spacing is the writer's own affair.
fn same_json(a: &[u8], b: &[u8]) -> bool {
    let value = |bytes| serde_json::from_slice::<Value>(bytes).ok();
    a == b || (value(a).is_some() && value(a) == value(b))
}

/// usr and everything else the profile does not list, byte for byte; the ESP's
/// files too.
pub fn untouched(bench: &mut Bench<'_>, base: &Disk, disk: &Disk) -> Outcome {
    for part in base.parts()? {
        let changing = WIPED.contains(&part.name.as_str())
            || part.name == "esp"
            || part.name == seeds::PARTITION;
        if !changing {
            let same = disk.same_as(base, part.start, part.length)?;
            bench
                .check(&format!("partition {} ({}) is as before", part.number, part.name), same)?;
        }
    }
    let (before, after) = (boot_files(base)?, boot_files(disk)?);
    let names = |files: &Files| -> Vec<String> { files.keys().cloned().collect() };
    bench.equal("files on the ESP", names(&after), names(&before))?;
    bench.check("the ESP's files are as before", before == after)
}

/// The ESP's files, but for restage's own and those that the OS's loader writes
/// at each boot.
fn boot_files(disk: &Disk) -> Outcome<Files> {
    let mut files = Esp::open(disk)?.all()?;
    files.retain(|path, _| {
        let path = path.to_lowercase();
        !path.starts_with("restage/")
            && !path.starts_with("swtpm/")
            && !path.ends_with("random-seed")
            && path != "nvvars"
    });
    Ok(files)
}

/// Reads the report of a finished operation from the ESP of a machine that is
/// off.
pub fn report(bench: &mut Bench<'_>, id: &str) -> Outcome<Value> {
    let name = format!("{}.RPT", request::stem(id));
    let files = bench.restage_files()?;
    let file = files.get(&name).doing(format!("looking for {name} on the ESP"))?;
    request::body(file)
}

/// On the ESP only the report and the log of this operation are left.
pub fn only_report(bench: &mut Bench<'_>, id: &str) -> Outcome {
    let stem = request::stem(id);
    let files = bench.restage_files()?;
    let left: Vec<&str> = files
        .keys()
        .filter_map(|name| name.strip_prefix(stem.as_str())?.strip_prefix('.'))
        .collect();
    bench.equal("files of the operation that are left", left, vec!["LOG", "RPT"])
}

/// The machine is off after a reset: disk, ESP, report.
pub fn reset_done(bench: &mut Bench<'_>, id: &str, wanted_seeds: &Seeds) -> Outcome<Value> {
    let disk = bench.machine.open_disk(Access::Read)?;
    erased(bench, &disk, wanted_seeds)?;
    disk.close()?;
    let report = report(bench, id)?;
    bench.equal("outcome", Report(&report).outcome(), "done")?;
    only_report(bench, id)?;
    Ok(report)
}

/// What is in the TPM of the machine, which is off.
pub fn in_tpm(bench: &Bench<'_>) -> Outcome<Contents> {
    tpm::contents(&bench.machine.tpm)
}

/// The TPM holds nothing of before, and its owner's seed is another.
pub fn tpm_cleared(bench: &mut Bench<'_>, before: &Contents, after: &Contents) -> Outcome {
    bench.check("an object was planted", before.persistent.contains(&PLANTED_OBJECT))?;
    bench.check("an index was planted", before.nv.contains(&PLANTED_INDEX))?;
    bench.check("the planted object is gone", !after.persistent.contains(&PLANTED_OBJECT))?;
    bench.check("the planted NV index is gone", !after.nv.contains(&PLANTED_INDEX))?;
    bench.differ("the owner's primary key", &before.owner, &after.owner)
}

/// A system as just installed: everything that is made anew is new, everything
/// that comes from the seeds is there again.
pub fn new_system(bench: &mut Bench<'_>, old: &Facts, new: &Facts) -> Outcome {
    bench.equal("failed units", new.failed_units.as_str(), "")?;
    bench.equal("the system is", new.running.as_str(), "running")?;
    bench.differ("LUKS UUID of root", &old.luks_root, &new.luks_root)?;
    bench.differ("LUKS UUID of swap", &old.luks_swap, &new.luks_swap)?;
    bench.differ("recovery key of root", &old.key_root, &new.key_root)?;
    bench.differ("recovery key of swap", &old.key_swap, &new.key_swap)?;
    bench.differ("key of the pool", &old.key_pool, &new.key_pool)?;
    bench.differ("passphrase", &old.passphrase, &new.passphrase)?;
    bench.equal("version of the state", &new.state, &old.state)?;
    let there = [&new.luks_root, &new.luks_swap, &new.key_root, &new.key_swap, &new.passphrase];
    bench.check("all of them exist", there.iter().all(|text| !text.is_empty()))
}

/// The system that was there, with everything it had.
pub fn same_system(bench: &mut Bench<'_>, old: &Facts, now: &Facts) -> Outcome {
    let of_boot = |facts: &Facts| Facts { boot_id: String::new(), ..facts.clone() };
    bench.equal("the system", of_boot(now), of_boot(old))
}

/// The machine is off after a refusal: every partition that a reset would have
/// destroyed still has its table entry and its key slots.
pub fn nothing_erased(bench: &mut Bench<'_>) -> Outcome {
    let base = bench.base()?.open_disk()?;
    let disk = bench.machine.open_disk(Access::Read)?;
    bench.equal("the partition table", disk.parts()?, base.parts()?)?;
    for name in ["swap", "root-x86-64"] {
        let part = base.part(name)?;
        let same = disk.same_as(&base, part.start, LUKS_BYTES)?;
        bench.check(&format!("headers and key slots of {name} are as before"), same)?;
    }
    let part = base.part(seeds::PARTITION)?;
    let same = disk.same_as(&base, part.start, part.length)?;
    bench.check("the seed partition is as before", same)?;
    disk.close()?;
    base.close()
}

pub fn none_staged(bench: &mut Bench<'_>, what: &str) -> Outcome {
    let status = bench.status()?;
    bench.equal(what, status.staged().len(), 0)
}

/// The only request that this machine's ESP has, as its files say.
pub fn staged_id(bench: &mut Bench<'_>) -> Outcome<String> {
    let status = bench.status()?;
    let ids = status.staged();
    bench.equal("how many requests are staged", ids.len(), 1)?;
    Ok((*ids.first().doing("the staged request")?).to_owned())
}

/// The seeds that a staged request leads to, on this base.
pub fn seeds_after(bench: &Bench<'_>, staged: &Staged) -> Outcome<Seeds> {
    let body = staged.body()?;
    let wipe = body.get("wipe_existing_seeds").and_then(Value::as_bool).unwrap_or_default();
    let mut wanted = if wipe { Seeds::new() } else { bench.base()?.seeds.clone() };
    if let Some(file) = staged.files.get(&format!("{}.SED", staged.stem())) {
        let given: serde_json::Map<String, Value> =
            serde_json::from_slice(file).doing("reading the staged seeds")?;
        for (name, value) in given {
            for ending in ["json", "yaml", "yml"] {
                wanted.remove(&format!("{name}.{ending}"));
            }
            wanted.insert(format!("{name}.json"), value.to_string().into_bytes());
        }
    }
    Ok(wanted)
}
