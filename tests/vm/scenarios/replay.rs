//! Recorded runs, cut at points of chance: the disk as it would be after the power
//! went there, and then full boots, under the firmware, until the OS is up.

use super::end;
use super::restored::{CHANGED, SLOTS, SLOTS_IN_WINDOW, both, nothing_left, slots};
use crate::bench::{Bench, Boot};
use crate::chance::Chance;
use crate::disk::{Access, Disk};
use crate::failure::{Doing, Failure, Outcome};
use crate::point::{Point, Tpm};
use crate::recording::{Kind, Recording};
use crate::tpm::Contents;
use crate::writes::{SECTOR, What, Writes};
use std::collections::BTreeSet;

/// How many points the long runs try.
const RESETS: usize = 36;
const RESTORES: usize = 24;
/// The protective MBR and the primary table; no partition begins before that.
const TABLE: u64 = 2048 * SECTOR;
/// What the first boot after a cut wrote, beside the machine's disk.
const FIRST_BOOT: &str = "first-boot-log";

/// Two or three boots: the primary table is half written, so that neither its old
/// nor its new form is there and the firmware repairs it from the backup.
pub fn gpt(bench: &mut Bench<'_>) -> Outcome {
    let recording = Recording::prepare(bench.lab, bench.base()?, Kind::Reset)?;
    let mut chance = Chance::new(bench.lab.replays.seed);
    let point = match &bench.lab.replays.point {
        Some(point) => point.clone(),
        None => half_written(&recording, &mut chance)?,
    };
    at(bench, &point, |bench| {
        recording.rewind(bench, &point)?;
        bench.machine.record = Some(bench.machine.dir.join("log"));
        reset_ends(bench, &recording)?;
        repaired_by_firmware(bench)
    })
}

/// A torn write of the primary table that leaves neither the old one nor the new one.
fn half_written(recording: &Recording, chance: &mut Chance) -> Outcome<Point> {
    let disk = Disk::open(&recording.start(), Access::Read)?;
    let mut before = disk.read(0, TABLE)?;
    disk.close()?;
    let mut points = Vec::new();
    for (index, entry) in recording.writes.entries.iter().enumerate() {
        if !matches!(entry.what, What::Write { .. }) || !entry.touches(0, TABLE) {
            continue;
        }
        let data = recording.writes.data(entry, 0, entry.length)?;
        let after = over(&before, entry.offset, &data)?;
        for torn in (SECTOR..entry.length).step_by(512) {
            let kept = data.get(..usize::try_from(torn).doing("a length")?).unwrap_or_default();
            let mixed = over(&before, entry.offset, kept)?;
            if mixed != before && mixed != after {
                let tpm = Tpm::After;
                points.push(Point { torn, tpm, ..Point::in_order(index) });
            }
        }
        before = after;
    }
    chance.one_of(&points).cloned().doing("looking for a write of the primary table to tear")
}

/// The table with these bytes written over it.
fn over(table: &[u8], offset: u64, bytes: &[u8]) -> Outcome<Vec<u8>> {
    let mut new = table.to_vec();
    let from = usize::try_from(offset).doing("an offset")?;
    let place = new.get_mut(from..from + bytes.len()).doing("the place of a table")?;
    place.copy_from_slice(bytes);
    Ok(new)
}

/// In the boot after it the firmware wrote the primary table before Linux did: one
/// sector and 32 sectors, where Linux writes whole pages.
fn repaired_by_firmware(bench: &mut Bench<'_>) -> Outcome {
    let writes = Writes::open(&bench.machine.dir.join(FIRST_BOOT))?;
    let table: Vec<_> =
        writes.entries.iter().filter(|entry| entry.touches(SECTOR, TABLE)).copied().collect();
    let first = table.first().doing("a write of the primary table")?;
    bench.note(format!("{} writes of the primary table in the boot after", table.len()));
    bench.check("the firmware repaired the table", !first.offset.is_multiple_of(4096))
}

/// Two boots: in the middle of the wipe of root, some of the last writes lost.
pub fn wipe(bench: &mut Bench<'_>) -> Outcome {
    let recording = Recording::prepare(bench.lab, bench.base()?, Kind::Reset)?;
    let mut chance = Chance::new(bench.lab.replays.seed);
    let part = recording.phase("wipe root")?.entries.clone();
    let point = match &bench.lab.replays.point {
        Some(point) => point.clone(),
        None => Point::choose(&recording.writes, part, recording.clear, &mut chance)?,
    };
    at(bench, &point, |bench| {
        recording.rewind(bench, &point)?;
        reset_ends(bench, &recording)
    })
}

pub fn resets(bench: &mut Bench<'_>, index: usize) -> Outcome {
    let recording = Recording::prepare(bench.lab, bench.base()?, Kind::Reset)?;
    let share = Share { index, of: 3, points: RESETS, salt: 1 };
    for_points(bench, &recording, share, |bench, point| {
        recording.rewind(bench, point)?;
        reset_ends(bench, &recording)
    })
}

pub fn restores(bench: &mut Bench<'_>, index: usize) -> Outcome {
    let recording = Recording::prepare(bench.lab, bench.base()?, Kind::Restore)?;
    let share = Share { index, of: 2, points: RESTORES, salt: 2 };
    for_points(bench, &recording, share, |bench, point| {
        recording.rewind(bench, point)?;
        restore_ends(bench, &recording)
    })
}

/// A share of the points of a long run: each of `of` scenarios has another one.
#[derive(Debug, Clone, Copy)]
pub struct Share {
    pub index: usize,
    pub of: usize,
    /// Points of all of them together.
    pub points: usize,
    /// What else the seed depends on: no two kinds of run try the same.
    pub salt: u64,
}

/// Tries these points, no two alike, the phases of the run taking turns.
pub fn for_points(
    bench: &mut Bench<'_>,
    recording: &Recording,
    share: Share,
    mut one: impl FnMut(&mut Bench<'_>, &Point) -> Outcome,
) -> Outcome {
    let replays = bench.lab.replays.clone();
    if let Some(point) = replays.point {
        return at(bench, &point, |bench| one(bench, &point));
    }
    let all = points(recording, replays.seed << 8 | share.salt, share.points)?;
    let mine = all.into_iter().skip(share.index).step_by(share.of);
    let mine: Vec<_> = mine.take(replays.rounds.unwrap_or(share.points)).collect();
    for (phase, point) in &mine {
        at(bench, point, |bench| one(bench, point))
            .map_err(|cause| Failure::new(format!("in `{phase}`: {cause}")))?;
    }
    bench.check("there were points", !mine.is_empty())?;
    bench.note(format!("{} points, seed {}", mine.len(), replays.seed));
    Ok(())
}

/// So many different points, and the phase of each.
fn points(recording: &Recording, seed: u64, count: usize) -> Outcome<Vec<(String, Point)>> {
    let mut chance = Chance::new(seed);
    let (mut tried, mut points) = (BTreeSet::new(), Vec::new());
    // A phase of a single write has only so many points.
    for phase in recording.phases.iter().cycle().take(count * 20) {
        let part = phase.entries.clone();
        let point = Point::choose(&recording.writes, part, recording.clear, &mut chance);
        let Ok(point) = point else { continue };
        if tried.insert(point.clone()) {
            points.push((phase.name.clone(), point));
        }
        if points.len() == count {
            return Ok(points);
        }
    }
    Err(Failure::new(format!("the recording has only {} different points", points.len())))
}

/// A failure says how to come back to it.
fn at(
    bench: &mut Bench<'_>,
    point: &Point,
    run: impl FnOnce(&mut Bench<'_>) -> Outcome,
) -> Outcome {
    let name = bench.name.clone();
    println!("vm: {name} at {point}");
    let read: Point = point.to_string().parse()?;
    bench.equal("the point, as it is read back", &read, point)?;
    run(bench).map_err(|cause| {
        let again = format!("cargo run -p restage-vm -- {name} --point '{point}'");
        Failure::new(format!("{cause}\n      again: {again}"))
    })
}

/// The reset of this disk is finished by the boots that follow, or it was over: the
/// disk from outside, the TPM, the report, the new system.
fn reset_ends(bench: &mut Bench<'_>, recording: &Recording) -> Outcome {
    let old = bench.base()?.facts.clone();
    let staged = bench.base()?.request("example")?;
    let wanted = end::seeds_after(bench, &staged)?;
    let before = planted(recording)?;
    let over = end::report(bench, &recording.id).is_ok();
    if !over {
        bench.power_on()?;
        bench.line(&["restage: committed", "restage: resuming"], 90)?;
        bench.off_at_reboot(150)?;
        if bench.machine.record.take().is_some() {
            std::fs::rename(bench.machine.dir.join("log"), bench.machine.dir.join(FIRST_BOOT))?;
        }
    }
    // A report says it of the disk that it lies on, at once.
    let disk = bench.machine.open_disk(Access::Read)?;
    end::erased(bench, &disk, &wanted)?;
    disk.close()?;
    if !over {
        end::only_report(bench, &recording.id)?;
    }
    let after = end::in_tpm(bench)?;
    end::tpm_cleared(bench, &before, &after)?;
    bench.power_on()?;
    let new = bench.booted(Boot::First)?;
    end::new_system(bench, &old, &new)?;
    let status = bench.status()?;
    bench.equal("outcome", status.report(&recording.id)?.outcome(), "done")?;
    bench.equal("staged", status.staged().len(), 0)?;
    bench.equal("running", status.running(), 0)?;
    bench.power_off()?;
    end::only_report(bench, &recording.id)
}

/// What the TPM held before.
pub fn planted(recording: &Recording) -> Outcome<Contents> {
    let copy = tempfile::tempdir()?;
    crate::swtpm::copy_state(&recording.tpm_before(), copy.path())?;
    crate::tpm::contents(copy.path())
}

/// One boot: the state is the old one, whole, and nothing is staged, or it is the
/// restored one, whole, which can be confirmed.
fn restore_ends(bench: &mut Bench<'_>, recording: &Recording) -> Outcome {
    let (old, restored) = (recording.before.clone(), bench.base()?.facts.clone());
    bench.power_on()?;
    // Two passphrases are enrolled before root is mounted, which takes its time.
    bench.line(&["restage: the restored state is in place", "Mounting sysroot.mount"], 200)?;
    let now = bench.booted(Boot::Usual)?;
    let in_place = bench.console_ever_said("restage: the restored state is in place")?;
    let wanted = if in_place { &restored } else { &old };
    bench.equal("failed units", now.failed_units.as_str(), "")?;
    bench.equal("hostname", &now.hostname, &wanted.hostname)?;
    bench.equal("timezone", &now.timezone, &wanted.timezone)?;
    bench.equal("passphrase in the state", &now.passphrase, &wanted.passphrase)?;
    bench.equal("key of the pool", &now.key_pool, &wanted.key_pool)?;
    bench.equal("machine key of root", &now.key_root, &old.key_root)?;
    bench.equal("machine key of swap", &now.key_swap, &old.key_swap)?;
    bench.equal("LUKS UUID of root", &now.luks_root, &old.luks_root)?;
    both(bench, CHANGED, true)?;
    if in_place {
        both(bench, &restored.passphrase, true)?;
        slots(bench, SLOTS_IN_WINDOW)?;
        bench.exits("restage confirm", 0)?;
        both(bench, &restored.passphrase, true)?;
        both(bench, CHANGED, false)?;
        let status = bench.status()?;
        bench.equal("outcome", status.report(&recording.id)?.outcome(), "done")?;
    } else {
        both(bench, &restored.passphrase, false)?;
        end::none_staged(bench, "staged")?;
        // What a cut staging has left stands in nobody's way.
        bench.exits(&format!("restage restore {} --force", super::restored::BACKUP), 0)?;
        bench.exits("restage cancel", 0)?;
    }
    slots(bench, SLOTS)?;
    nothing_left(bench)?;
    bench.power_off()
}
