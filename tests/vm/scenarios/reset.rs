//! Whole resets, from staging in the running OS to the new system.

use super::end;
use crate::base::SECRET;
use crate::bench::{Bench, Boot};
use crate::disk::{Access, Disk};
use crate::esp::{self, Esp, RESTAGE};
use crate::failure::{Doing, Outcome};
use crate::guest::Report;
use crate::hunt::{self, Hunt};
use crate::scenarios::restored::add_keys;
use crate::seeds;
use crate::{command, tpm};
use std::path::Path;

/// Three boots: staged with a seed in the running OS; applied in the initrd,
/// and the disk read before anything is made anew; the new system. Then the seed and the keys
/// of the old system are looked for.
pub fn default(bench: &mut Bench<'_>) -> Outcome {
    whole(bench, &|bench| {
        bench.start("restage factory-reset --force --reboot -d @/run/seeds.json")?;
        bench.wait_reset(90)
    })
}

/// The same, whoever stages it and reboots. The options are in `/run/seeds.json`.
pub fn whole(bench: &mut Bench<'_>, stage: &dyn Fn(&mut Bench<'_>) -> Outcome) -> Outcome {
    let old = bench.base()?.facts.clone();
    let mut wanted = bench.base()?.seeds.clone();
    let pool = bench.machine.add_disk("pool", 64)?;
    fill(&pool)?;
    tpm::plant(&bench.machine.tpm)?;
    let tpm_before = end::in_tpm(bench)?;

    bench.power_on()?;
    let facts = bench.booted(Boot::Usual)?;
    end::same_system(bench, &old, &facts)?;
    // Staged and withdrawn first.
    let withdrawn = secret_seed(bench)?;
    let staged = bench.exits("restage factory-reset --force -d @/run/seeds.json", 0)?;
    bench.tells("staging", &staged.out, &["staged factory reset"])?;
    let cancelled = bench.exits("restage cancel", 0)?;
    bench.tells("withdrawing", &cancelled.out, &["cancelled"])?;
    let cancelled = cancelled.out.trim().rsplit(' ').next().unwrap_or_default().to_uppercase();
    let secret = secret_seed(bench)?;
    let seed = format!("{{\"token\":\"{secret}\"}}");
    wanted.insert("hunted.json".to_owned(), seed.into_bytes());
    let mut hunt = Hunt::default();
    hunt.add("the seed", secret.as_bytes())?;
    hunt.add("the withdrawn seed", withdrawn.as_bytes())?;
    add_keys(&mut hunt, &old)?;
    stage(bench)?;
    bench.line(&["restage: committed"], 60)?;
    bench.line(&["step 1/"], 60)?;
    bench.off_at_reboot(120)?;

    let files = bench.restage_files()?;
    let stem = files
        .keys()
        .filter_map(|name| name.strip_suffix(".RPT"))
        .find(|stem| !cancelled.starts_with(stem))
        .doing("looking for a report on the ESP")?
        .to_owned();
    let report = end::reset_done(bench, &stem, &wanted)?;
    let report = Report(&report);
    bench.tells("the steps", &report.steps().join(" "), &["tpm", "seed", "wipe", "gpt"])?;
    let first = report.steps().first().copied().unwrap_or_default().to_owned();
    bench.check("the TPM comes first", first.starts_with("tpm"))?;
    bench.equal("boots that worked on it", report.runs(), 1)?;
    let tpm_after = end::in_tpm(bench)?;
    end::tpm_cleared(bench, &tpm_before, &tpm_after)?;
    // Before the new system has written anything: the seed in its archive, and nowhere else.
    let disk = bench.machine.open_disk(Access::Read)?;
    let (part, (_, end)) = (disk.part(seeds::PARTITION)?, seeds::read(&disk)?);
    disk.close()?;
    let archive = part.start..part.start + end as u64;
    hunt::outside(bench, &hunt, std::slice::from_ref(&archive))?;

    bench.power_on()?;
    let new = bench.booted(Boot::First)?;
    end::new_system(bench, &old, &new)?;
    hunt::inside(bench, &[&secret, &withdrawn, &old.passphrase])?;
    bench.equal("hostname from the kept seeds", &new.hostname, &old.hostname)?;
    bench.equal("timezone from the kept seeds", &new.timezone, &old.timezone)?;
    let status = bench.status()?;
    bench.equal("outcome", status.report(&stem)?.outcome(), "done")?;
    let told = bench.exits("restage status", 0)?;
    bench.tells("restage status", &told.out, &["factory reset", "done"])?;
    let log = bench.exits("restage status --log", 0)?;
    bench.tells("the log", &log.out, &["committed", "step 1/", "wipe"])?;
    bench.power_off()?;
    let disk = Disk::open(&pool, Access::Read)?;
    bench.check("the pool on the other disk is as before", is_filled(&disk)?)?;
    disk.close()
}

/// A seed with a secret in it, in the guest's `/run/seeds.json`; the secret. The machine makes it: it is
/// in no command of ours.
pub fn secret_seed(bench: &mut Bench<'_>) -> Outcome<String> {
    bench.run(
        "umask 077; printf '{\"seeds\":{\"hunted\":{\"token\":\"hunted-%s\"}}}' \
         $(head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \\n') >/run/seeds.json",
    )?;
    Ok(bench.run("jq -r .seeds.hunted.token /run/seeds.json")?.trim().to_owned())
}

/// Three boots: the contract's own example, staged by the base's OS; beside it
/// another disk with an ESP of its own, on which another request lies. At the end
/// the ESP as it was before is put back, and nothing happens to the new system.
pub fn example(bench: &mut Bench<'_>) -> Outcome {
    let old = bench.base()?.facts.clone();
    let staged = bench.base()?.request("example")?;
    let wanted = end::seeds_after(bench, &staged)?;
    let other = second_esp(bench)?;
    let other_before = content(&other)?;
    bench.machine.others_first = true;
    tpm::plant(&bench.machine.tpm)?;
    let tpm_before = end::in_tpm(bench)?;
    bench.put_request(&staged)?;

    let disk = bench.machine.open_disk(Access::Read)?;
    bench.check("the secret is in the old seeds", seeds::holds(&disk, SECRET.as_bytes())?)?;
    let esp = disk.part("esp")?;
    let esp_before = disk.bytes_of(&esp)?;
    disk.close()?;

    bench.power_on()?;
    bench.line(&["restage: committed"], 90)?;
    bench.off_at_reboot(150)?;
    end::reset_done(bench, &staged.id, &wanted)?;
    bench.check("only the given seed is wanted", wanted.keys().eq(["incus.json"]))?;
    let disk = bench.machine.open_disk(Access::Read)?;
    bench.check("no byte of the old seeds", !seeds::holds(&disk, SECRET.as_bytes())?)?;
    let boot = disk.bytes_of(&esp)?;
    let given = br#"{"apply_defaults":true}"#;
    bench.check("no given seed is left on the ESP", seeds::find(&boot, given).is_none())?;
    disk.close()?;
    let tpm_after = end::in_tpm(bench)?;
    end::tpm_cleared(bench, &tpm_before, &tpm_after)?;

    bench.power_on()?;
    let new = bench.booted(Boot::First)?;
    end::new_system(bench, &old, &new)?;
    bench.differ("hostname, whose seed is gone", &old.hostname, &new.hostname)?;
    bench.power_off()?;
    bench.check("the other disk is as before", content(&other)? == other_before)?;

    // The dead come back.
    let disk = bench.machine.open_disk(Access::Write)?;
    disk.write(esp.start, &esp_before)?;
    disk.close()?;
    bench.power_on()?;
    let again = bench.booted(Boot::Usual)?;
    end::same_system(bench, &new, &again)?;
    let status = bench.status()?;
    bench.equal("staged", status.staged().len(), 0)?;
    let report = status.report(&staged.id)?;
    bench.equal("outcome of the stale request", report.outcome(), "refused")?;
    bench.note(format!("the stale request: {}", report.reason()));
    bench.check("the refusal has a reason", !report.reason().is_empty())
}

/// A disk with an ESP on which the default request lies, and a partition that
/// nobody may write to.
fn second_esp(bench: &mut Bench<'_>) -> Outcome<std::path::PathBuf> {
    let raw = bench.machine.dir.join("second.raw");
    std::fs::File::create(&raw)?.set_len(160 << 20).doing("making a disk")?;
    let table = bench.machine.dir.join("second.sfdisk");
    std::fs::write(
        &table,
        "label: gpt\n\
         size=100MiB, type=c12a7328-f81f-11d2-ba4b-00a0c93ec93b, name=esp\n\
         type=0fc63daf-8483-4772-8e79-3d69d8477de4, name=pool\n",
    )?;
    let sfdisk = crate::lab::tool("sfdisk", "")?;
    let line =
        format!("exec '{}' --quiet '{}' < '{}'", sfdisk.display(), raw.display(), table.display());
    command::run("sh", &["-c", &line]).doing("partitioning a disk")?;
    let path = bench.machine.add_disk("second", 160)?;
    let (from, to) = (raw.display().to_string(), path.display().to_string());
    command::run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &from, &to])?;
    let disk = Disk::open(&path, Access::Write)?;
    let made = esp::format(disk.region(&disk.part("esp")?))?;
    made.put(RESTAGE, &bench.base()?.request("default")?.files)?;
    made.close()?;
    let pool = disk.part("pool")?;
    disk.write(pool.start, &pattern(pool.length)?)?;
    bench.check("the second ESP holds a request", Esp::open(&disk)?.has(RESTAGE))?;
    disk.close()?;
    Ok(path)
}

/// Bytes of which no long run is alike.
fn pattern(length: u64) -> Outcome<Vec<u8>> {
    let mut state = 0x2545_F491_4F6C_DD1D_u64;
    let count = usize::try_from(length / 8).doing("a length")?;
    Ok((0..count)
        .flat_map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        })
        .collect())
}

/// The whole disk is somebody's pool.
fn fill(path: &Path) -> Outcome {
    let disk = Disk::open(path, Access::Write)?;
    disk.write(0, &pattern(disk.size())?)?;
    disk.close()
}

fn is_filled(disk: &Disk) -> Outcome<bool> {
    Ok(disk.read(0, disk.size())? == pattern(disk.size())?)
}

fn content(path: &Path) -> Outcome<Vec<u8>> {
    let disk = Disk::open(path, Access::Read)?;
    let bytes = disk.read(0, disk.size())?;
    disk.close()?;
    Ok(bytes)
}
