//! Recorded runs, cut at many points: each disk is booted by the small machine, and
//! looked at from outside. Of a restore also what its state is.

use super::end;
use super::replay::{Share, for_points, planted};
use super::restored::{CHANGED, VOLUMES};
use crate::bench::{Bench, DEAD_ENDS};
use crate::disk::Access;
use crate::failure::{Doing, Failure, Outcome};
use crate::point::Point;
use crate::recording::{Kind, Recording};
use crate::small::{self, REBOOTS, STATUS, TOLD};
use crate::tpm::Contents;
use std::collections::BTreeMap;
use std::process::{Command, Stdio};

/// How many points the long runs try.
const RESETS: usize = 300;
const RESTORES: usize = 100;
/// Headers and key slots of a volume.
const LUKS_BYTES: u64 = 16 << 20;

pub fn resets(bench: &mut Bench<'_>, index: usize) -> Outcome {
    let recording = Recording::prepare(bench.lab, bench.base()?, Kind::Reset)?;
    let files = files(bench)?;
    let direct = small::make(bench.base()?, small::RESET, files.path())?;
    let before = planted(&recording)?;
    let share = Share { index, of: 6, points: RESETS, salt: 3 };
    for_points(bench, &recording, share, |bench, point| {
        recording.rewind(bench, point)?;
        bench.machine.direct = Some(direct.clone());
        reset_ends(bench, &recording, &before)
    })
}

/// One boot of the small machine: the reset is finished, or it was over.
fn reset_ends(bench: &mut Bench<'_>, recording: &Recording, before: &Contents) -> Outcome {
    let staged = bench.base()?.request("example")?;
    let wanted = end::seeds_after(bench, &staged)?;
    let has_report = end::report(bench, &recording.id).is_ok();
    let console = boot(bench, STATUS)?;
    // The reader here does not ask whether a file's only cluster is free; Linux does.
    let over = has_report && !console.contains(".RPT is written again");
    let ended = if over { format!("{STATUS}0") } else { REBOOTS.to_owned() };
    bench.check(&format!("the console says `{ended}`"), console.contains(&ended))?;
    end::reset_done(bench, &recording.id, &wanted)?;
    let after = end::in_tpm(bench)?;
    end::tpm_cleared(bench, before, &after)
}

pub fn restores(bench: &mut Bench<'_>, index: usize) -> Outcome {
    let recording = Recording::prepare(bench.lab, bench.base()?, Kind::Restore)?;
    let files = files(bench)?;
    let direct = small::make(bench.base()?, small::RESTORE, files.path())?;
    // What the state is when nobody interrupts: staged, and not yet begun.
    let reboot = recording.phase("reboot")?.entries.end;
    let run = |bench: &mut Bench<'_>, point: &Point| {
        recording.rewind(bench, point)?;
        bench.machine.direct = Some(direct.clone());
        boot(bench, TOLD)
    };
    let old = state(&run(bench, &Point::in_order(recording.phase("staging")?.entries.start))?)?;
    let console = run(bench, &Point::in_order(reboot))?;
    bench.check("the restore was carried out", console.contains(IN_PLACE))?;
    let new = state(&console)?;
    bench.differ("the state", &old, &new)?;
    let share = Share { index, of: 4, points: RESTORES, salt: 4 };
    for_points(bench, &recording, share, |bench, point| {
        let console = run(bench, point)?;
        let in_place = console.contains(IN_PLACE);
        let is = state(&console)?;
        bench.equal("the state", &is, if in_place { &new } else { &old })?;
        let passphrases =
            [(CHANGED.to_owned(), true), (bench.base()?.facts.passphrase.clone(), in_place)];
        for (name, label) in VOLUMES {
            for (passphrase, opens) in &passphrases {
                let does = opens_volume(bench, label, passphrase)?;
                bench.equal(&format!("{passphrase} opens {name}"), does, *opens)?;
            }
        }
        Ok(())
    })
}

const IN_PLACE: &str = "restage: the restored state is in place";

/// Where the small machine's files are as long as the scenario lasts.
pub fn files(bench: &Bench<'_>) -> Outcome<tempfile::TempDir> {
    tempfile::tempdir_in(bench.lab.cache.join("run")).doing("making a directory")
}

/// One power-on of the small machine, up to these last words or a reboot; what it said.
pub fn boot(bench: &mut Bench<'_>, last: &str) -> Outcome<String> {
    bench.power_on()?;
    bench.line(&[small::BEGINS], 60)?;
    // A hold has no end.
    bench.line(&[&[REBOOTS, last][..], &DEAD_ENDS[..]].concat(), 60)?;
    let console = bench.console()?;
    if let Some(end) = DEAD_ENDS.iter().find(|end| console.contains(**end)) {
        return Err(Failure::new(format!("the console says `{end}`")));
    }
    let limit = bench.lab.patience(60);
    bench.vm()?.wait_off(limit)?;
    bench.last_console()
}

/// The state's files and their digests, as the small machine told them.
fn state(console: &str) -> Outcome<BTreeMap<String, String>> {
    if !console.contains(TOLD) {
        return Err(Failure::new("the small machine did not come to its end"));
    }
    let lines = console.lines().filter_map(|line| line.trim().strip_prefix("small: state "));
    Ok(lines
        .filter_map(|line| line.split_once(' '))
        .map(|(name, digest)| (name.to_owned(), digest.to_owned()))
        .collect())
}

/// Whether a passphrase opens a volume, tried on a copy of its headers and key slots.
fn opens_volume(bench: &mut Bench<'_>, label: &str, passphrase: &str) -> Outcome<bool> {
    use std::io::Write;
    let disk = bench.machine.open_disk(Access::Read)?;
    let headers = disk.read(disk.part(label)?.start, LUKS_BYTES)?;
    disk.close()?;
    let file = bench.machine.dir.join("headers");
    std::fs::write(&file, headers).doing("copying a volume's headers")?;
    let mut child = Command::new(crate::lab::tool("cryptsetup", "")?)
        .args(["open", "--test-passphrase", "--disable-external-tokens", "--key-file", "-"])
        .arg(&file)
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .doing("starting cryptsetup")?;
    child.stdin.take().doing("cryptsetup's input")?.write_all(passphrase.as_bytes())?;
    match child.wait()?.code() {
        Some(0) => Ok(true),
        // No permission: no key slot opens with it.
        Some(2) => Ok(false),
        code => Err(Failure::new(format!("cryptsetup open {label}: exit {code:?}"))),
    }
}
