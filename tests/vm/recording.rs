//! Recorded runs: a whole reset, a whole restore, with every write to the disk in
//! the order in which it ended. Made once for a base and kept beside it; any number
//! of power cuts is tried on them.

use crate::base::Base;
use crate::bench::{Bench, Boot};
use crate::disk::Access;
use crate::failure::{Doing, Failure, Outcome};
use crate::guest::Facts;
use crate::lab::Lab;
use crate::point::{Clear, Point};
use crate::scenarios::restored;
use crate::swtpm;
use crate::writes::{self, Writes};
use rustix::fs::{FlockOperation, flock};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Changes when what is recorded below changes.
const RECIPE: &str = "2";
/// What others write to the console may fall into a line of restage's: then a recording is made again, so
/// often.
const MOST_AGAIN: usize = 2;
/// What restage says at the beginning of each phase.
const RESET_PHASES: [&str; 8] = [
    "committed",
    "step 1/6 tpm:",
    "step 2/6 seed:",
    "step 3/6 wipe swap:",
    "step 4/6 wipe root",
    "step 5/6 wipe local-data:",
    "step 6/6 gpt:",
    "done",
];
const RESTORE_PHASES: [&str; 6] =
    ["checking", "step 2/", "step 3/", "step 4/", "step 5/", "the restored state is"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Reset,
    Restore,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Reset => "reset",
            Self::Restore => "restore",
        }
    }
}

/// A part of the run, by what the console said at its beginning.
#[derive(Debug, Clone)]
pub struct Phase {
    pub name: String,
    pub entries: Range<usize>,
}

#[derive(Debug)]
pub struct Recording {
    dir: PathBuf,
    /// The id of the operation.
    pub id: String,
    pub writes: Writes,
    pub phases: Vec<Phase>,
    pub clear: Option<Clear>,
    /// The system before, of a restore: what was changed after the backup.
    pub before: Facts,
}

impl Recording {
    /// Takes it from the cache, or makes it. Whoever comes second waits.
    pub fn prepare(lab: &Lab, base: &Base, kind: Kind) -> Outcome<Self> {
        let above = base.dir.join(format!("recorded-{RECIPE}"));
        fs::create_dir_all(&above).doing("making the recordings' directory")?;
        let lock = File::create(above.join(format!("{}.lock", kind.name())))?;
        flock(&lock, FlockOperation::LockExclusive).doing("locking a recording")?;
        let dir = above.join(kind.name());
        if !dir.exists() {
            let new = above.join(format!("{}.new", kind.name()));
            let what = || format!("recording a {}", kind.name());
            let mut again = 0..MOST_AGAIN;
            while !make(lab, base, kind, &new).doing(what())? {
                let told = format!("{}, whose lines are whole on the console", what());
                again.next().doing(told)?;
            }
            fs::rename(&new, &dir).doing("keeping a recording")?;
        }
        Self::load(dir).doing(format!("the recorded {}", kind.name()))
    }

    fn load(dir: PathBuf) -> Outcome<Self> {
        let text = fs::read_to_string(dir.join("about.json")).doing("reading about it")?;
        let about: Value = serde_json::from_str(&text)?;
        let writes = Writes::open(&dir.join("log"))?;
        let id = about["id"].as_str().doing("its id")?.to_owned();
        let mut phases: Vec<Phase> = Vec::new();
        for mark in about["marks"].as_array().doing("its marks")? {
            let name = mark["name"].as_str().doing("a mark's name")?.to_owned();
            let at = mark["at"].as_u64().and_then(|at| usize::try_from(at).ok());
            let at = at.doing("a mark's place")?;
            if let Some(last) = phases.last_mut() {
                last.entries.end = at;
            }
            phases.push(Phase { name, entries: at..writes.entries.len() });
        }
        let span = |name: &str| about[name].as_u64().doing(format!("its {name}"));
        let (start, end) = (span("esp_start")?, span("esp_end")?);
        let clear = clear(&writes, &crate::request::stem(&id), start..end)?;
        let before = fs::read_to_string(dir.join("before")).unwrap_or_default();
        Ok(Self { dir, id, writes, phases, clear, before: Facts::from_lines(&before) })
    }

    /// The entries of the phase whose name begins so.
    pub fn phase(&self, name: &str) -> Outcome<&Phase> {
        let mut phases = self.phases.iter();
        phases.find(|phase| phase.name.starts_with(name)).doing(format!("the phase `{name}`"))
    }

    /// Gives a machine the disk, the TPM and the firmware's variables of a point.
    pub fn rewind(&self, bench: &mut Bench<'_>, point: &Point) -> Outcome {
        let name = bench.name.clone();
        crate::scenarios::fresh_machine(bench, &name)?;
        let machine = &bench.machine;
        let (start, disk) =
            (self.start().display().to_string(), machine.disk.display().to_string());
        fs::remove_file(&machine.disk)?;
        crate::command::run(
            "qemu-img",
            &["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", &start, &disk],
        )?;
        let tpm = match point.tpm {
            crate::point::Tpm::Before => "tpm-before",
            crate::point::Tpm::After => "tpm-after",
        };
        swtpm::copy_state(&self.dir.join(tpm), &machine.tpm)?;
        let disk = machine.open_disk(Access::Write)?;
        for (index, entry) in self.writes.entries.iter().enumerate().take(point.entries + 1) {
            let kept = point.kept(index, entry);
            match entry.what {
                _ if kept == 0 => {}
                writes::What::Write { .. } => {
                    disk.write(entry.offset, &self.writes.data(entry, 0, kept)?)?;
                }
                writes::What::Discard => disk.zero(entry.offset, kept)?,
                writes::What::Flush => {}
            }
        }
        disk.close()
    }

    /// The disk before the run.
    pub fn start(&self) -> PathBuf {
        self.dir.join("start.qcow2")
    }

    pub fn tpm_before(&self) -> PathBuf {
        self.dir.join("tpm-before")
    }
}

/// Between which entries the TPM was cleared: after its attempt was durable on the
/// ESP, and before its record was. There the names are in directory entries as they are.
fn clear(writes: &Writes, stem: &str, esp: Range<u64>) -> Outcome<Option<Clear>> {
    let named = |extension: &str| {
        writes.first_with(format!("{stem}{extension}").as_bytes(), esp.start, esp.end)
    };
    let (Some(attempt), Some(latest)) = (named("A00")?, named("S00")?) else { return Ok(None) };
    let after = writes.entries.iter().enumerate().skip(attempt + 1);
    let flushed = after.take(latest - attempt).find(|(_, entry)| entry.closes_epoch());
    let (flush, _) = flushed.doing("a flush between the attempt at the TPM and its record")?;
    Ok(Some(Clear { earliest: flush + 1, latest }))
}

/// False when the console has not told each phase.
fn make(lab: &Lab, base: &Base, kind: Kind, dir: &Path) -> Outcome<bool> {
    let name = format!("record-{}", kind.name());
    let mut bench = Bench::on(lab, base, &name)?;
    let mut tape = Tape { dir: dir.to_owned(), marks: Vec::new() };
    let made = match kind {
        Kind::Reset => reset(&mut bench, &mut tape),
        Kind::Restore => restore(&mut bench, &mut tape),
    };
    bench.pull_plug();
    let is_over = made.is_err();
    let missing = match made {
        Ok(None) => {
            fs::remove_dir_all(&bench.machine.dir).doing("removing the recording's machine")?;
            return Ok(true);
        }
        Ok(Some(words)) => Failure::new(format!("the console has not told `{words}`")),
        Err(cause) => cause,
    };
    let kept = crate::evidence::keep(&mut bench, &name, &missing.to_string());
    let told = format!("{missing}\n      see {}", kept.display());
    if is_over {
        return Err(Failure::new(told));
    }
    println!("vm: {name}: {told}");
    Ok(false)
}

/// What the console should have said and has not.
type Missing = Outcome<Option<&'static str>>;

/// What is being recorded.
struct Tape {
    dir: PathBuf,
    marks: Vec<(String, usize)>,
}

impl Tape {
    /// Keeps the machine as it is before the run, and logs from the next power-on.
    fn start(&self, bench: &mut Bench<'_>) -> Outcome {
        if self.dir.exists() {
            fs::remove_dir_all(&self.dir).doing("clearing a recording's directory")?;
        }
        fs::create_dir_all(&self.dir).doing("making a recording's directory")?;
        fs::copy(&bench.machine.disk, self.dir.join("start.qcow2"))?;
        swtpm::copy_state(&bench.machine.tpm, &self.dir.join("tpm-before"))?;
        bench.machine.record = Some(self.dir.join("log"));
        bench.power_on()
    }

    /// A phase begins now.
    fn mark(&mut self, name: &str) -> Outcome {
        self.marks.push((name.to_owned(), writes::count(&self.dir.join("log"))?));
        Ok(())
    }

    /// A phase begins with each of these words on the console. The first that are not there although later
    /// ones are; the last are waited for.
    fn mark_each(&mut self, bench: &mut Bench<'_>, words: &[&'static str]) -> Missing {
        let lines: Vec<_> = words.iter().map(|words| format!("restage: {words}")).collect();
        let lines: Vec<_> = lines.iter().map(String::as_str).collect();
        for (index, line) in lines.iter().enumerate() {
            bench.line(&lines[index..], 200)?;
            if !bench.console()?.contains(line) {
                return Ok(Some(words[index]));
            }
            // Of `step 4/6 wipe root` the name.
            let (_, name) = words[index].split_once("/6 ").unwrap_or(("", words[index]));
            self.mark(name.trim_end_matches(':'))?;
        }
        Ok(None)
    }

    /// The machine is off; what is known of the run is kept beside its log.
    fn end(&self, bench: &mut Bench<'_>, id: &str) -> Outcome {
        swtpm::copy_state(&bench.machine.tpm, &self.dir.join("tpm-after"))?;
        let disk = bench.machine.open_disk(Access::Read)?;
        let esp = bench.base()?.open_disk()?.part("esp")?;
        disk.close()?;
        let marks: Vec<Value> =
            self.marks.iter().map(|(name, at)| json!({ "name": name, "at": at })).collect();
        let about = json!({ "id": id, "marks": marks, "esp_start": esp.start,
            "esp_end": esp.start + esp.length });
        fs::write(self.dir.join("about.json"), about.to_string()).doing("telling about it")
    }
}

/// The contract's own example, from power-on to the reboot after it.
fn reset(bench: &mut Bench<'_>, tape: &mut Tape) -> Missing {
    let staged = bench.base()?.request("example")?;
    bench.put_request(&staged)?;
    crate::tpm::plant(&bench.machine.tpm)?;
    tape.start(bench)?;
    tape.mark("power-on")?;
    let missing = tape.mark_each(bench, &RESET_PHASES)?;
    bench.off_at_reboot(150)?;
    tape.end(bench, &staged.id)?;
    Ok(missing)
}

/// From a changed system: staged in it, applied in the next boot, up to the system
/// with the restored state.
fn restore(bench: &mut Bench<'_>, tape: &mut Tape) -> Missing {
    let old = bench.base()?.facts.clone();
    bench.power_on()?;
    bench.booted(Boot::Usual)?;
    bench.run("systemctl mask restage-confirm.service")?;
    bench.exits(&format!("restage backup {}", restored::BACKUP), 0)?;
    restored::change(bench, &old.passphrase)?;
    bench.power_off()?;

    tape.start(bench)?;
    bench.booted(Boot::Usual)?;
    fs::copy(bench.machine.dir.join("facts"), tape.dir.join("before"))?;
    tape.mark("staging")?;
    bench.exits(&format!("restage restore {} --force", restored::BACKUP), 0)?;
    let id = restored::staged(bench)?;
    tape.mark("reboot")?;
    bench.start("systemctl reboot")?;
    bench.wait_reset(60)?;
    let missing = tape.mark_each(bench, &RESTORE_PHASES)?;
    bench.booted(Boot::Usual)?;
    bench.pull_plug();
    tape.end(bench, &id)?;
    Ok(missing)
}
