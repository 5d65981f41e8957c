//! A reset that was cut after its commit, and a machine that is not as it was: the
//! ESP is full, or a clone of the disk is attached beside it.

use super::end;
use super::replay::planted;
use super::replay_small::{self, boot};
use crate::bench::Bench;
use crate::command::run;
use crate::disk::{Access, Disk};
use crate::esp::{Esp, RESTAGE};
use crate::failure::{Doing, Outcome};
use crate::fat;
use crate::machine::Machine;
use crate::point::{Point, Tpm};
use crate::recording::{Kind, Recording};
use crate::request::stem;
use crate::small::{self, REBOOTS, STATUS};
use std::path::{Path, PathBuf};

/// Where each phase after the commit begins: not one free cluster is left on the ESP
/// then, and the reset is finished and reported all the same.
pub fn full_esp(bench: &mut Bench<'_>) -> Outcome {
    let recording = Recording::prepare(bench.lab, bench.base()?, Kind::Reset)?;
    let files = replay_small::files(bench)?;
    let direct = small::make(bench.base()?, small::RESET, files.path())?;
    let wanted = end::seeds_after(bench, &bench.base()?.request("example")?)?;
    let before = planted(&recording)?;
    let begins = recording.phases.iter().skip(1).map(|phase| phase.entries.start);
    for entries in begins.take_while(|at| *at < recording.writes.entries.len()) {
        let point = fitting(&recording, entries)?;
        recording.rewind(bench, &point)?;
        let disk = bench.machine.open_disk(Access::Write)?;
        let taken = fat::fill(&disk)?;
        disk.close()?;
        bench.check(&format!("at {point} the ESP had room"), taken > 0)?;
        if end::report(bench, &recording.id).is_ok() {
            continue; // it is over, and needs no room
        }
        bench.machine.direct = Some(direct.clone());
        let console = boot(bench, STATUS)?;
        bench.check(&format!("at {point} it went on"), console.contains("restage: resuming"))?;
        bench.check(&format!("at {point} it ended"), console.contains(REBOOTS))?;
        let disk = bench.machine.open_disk(Access::Write)?;
        bench.equal("clusters that come back", fat::empty(&disk)?, taken)?;
        disk.close()?;
        end::reset_done(bench, &recording.id, &wanted)?;
        let after = end::in_tpm(bench)?;
        end::tpm_cleared(bench, &before, &after)?;
    }
    Ok(())
}

/// Before the commit: the request is refused, and set aside on both disks. After it
/// the whole boot holds and writes nothing to either disk; without the clone it goes
/// on, and ends as it should.
pub fn clone(bench: &mut Bench<'_>) -> Outcome {
    let recording = Recording::prepare(bench.lab, bench.base()?, Kind::Reset)?;
    let files = replay_small::files(bench)?;
    let direct = small::make(bench.base()?, small::RESET, files.path())?;

    recording.rewind(bench, &Point::in_order(0))?;
    let twin = twin(&bench.machine)?;
    bench.machine.others = vec![twin.clone()];
    bench.machine.direct = Some(direct);
    let console = boot(bench, STATUS)?;
    bench.check("it is refused", console.contains(&format!("{STATUS}3")))?;
    bench.tells("the console", &console, &["clones of each other"])?;
    end::nothing_erased(bench)?;
    for path in [&bench.machine.disk.clone(), &twin] {
        let disk = Disk::open(path, Access::Read)?;
        let files = Esp::open(&disk)?.files_in(RESTAGE)?;
        disk.close()?;
        for (extension, there) in [("REQ", false), ("JNL", false), ("BAD", true), ("RPT", true)] {
            let name = format!("{}.{extension}", stem(&recording.id));
            bench.equal(&format!("{name} is there"), files.contains_key(&name), there)?;
        }
    }

    let wiping = recording.phase("wipe root")?.entries.start + 7;
    let point = fitting(&recording, wiping)?;
    recording.rewind(bench, &point)?;
    let cut = bench.machine.dir.join("cut.qcow2");
    std::fs::rename(&bench.machine.disk, &cut).doing("putting the cut disk aside")?;
    let disk = overlay(&bench.machine.dir, "disk", &cut)?;
    let twin = overlay(&bench.machine.dir, "twin", &cut)?;
    bench.machine.others = vec![twin.clone()];
    bench.power_on()?;
    bench.line(&["restage: HOLD"], 120)?;
    bench.never(&["Mounting sysroot.mount", "Repartition Root Disk", "Switching Root"], 20)?;
    let console = bench.console()?;
    bench.tells("the console", &console, &["clones of each other"])?;
    bench.pull_plug();
    for path in [&disk, &twin] {
        held(bench, path, &cut)?;
    }
    bench.machine.others.clear();
    bench.power_on()?;
    bench.line(&["restage: resuming"], 90)?;
    bench.off_at_reboot(150)?;
    let wanted = end::seeds_after(bench, &bench.base()?.request("example")?)?;
    end::reset_done(bench, &recording.id, &wanted).map(drop)
}

/// In order up to here, with a state of the TPM that fits.
fn fitting(recording: &Recording, entries: usize) -> Outcome<Point> {
    let point = Point::in_order(entries);
    let possible = point.possible(&recording.writes, recording.clear);
    let tpm: Tpm = *possible.last().doing("a state of the TPM")?;
    Ok(Point { tpm, ..point })
}

/// A copy of the machine's disk, as another disk.
fn twin(machine: &Machine) -> Outcome<PathBuf> {
    let path = machine.dir.join("twin.qcow2");
    std::fs::copy(&machine.disk, &path).doing("copying a disk")?;
    Ok(path)
}

fn overlay(dir: &Path, name: &str, of: &Path) -> Outcome<PathBuf> {
    let path = dir.join(format!("{name}.qcow2"));
    let (of, text) = (of.display().to_string(), path.display().to_string());
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", &of, &text])?;
    Ok(path)
}

/// A disk is as it was but for its ESP, which the boot loader writes to; and there
/// restage's own files are as they were.
fn held(bench: &mut Bench<'_>, path: &Path, cut: &Path) -> Outcome {
    let (disk, before) = (Disk::open(path, Access::Read)?, Disk::open(cut, Access::Read)?);
    let esp = before.part("esp")?;
    let end = esp.start + esp.length;
    let head = disk.same_as(&before, 0, esp.start)?;
    let tail = disk.same_as(&before, end, before.size() - end)?;
    bench.check("nothing outside the ESP was written", head && tail)?;
    let files = [Esp::open(&disk)?.files_in(RESTAGE)?, Esp::open(&before)?.files_in(RESTAGE)?];
    let [is, was] = files;
    bench.check("restage's files are as they were", is == was)?;
    disk.close()?;
    before.close()
}
