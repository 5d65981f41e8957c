//! The machines that all cases begin with, and what must be so.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Mutex;

use restage::apply::journal::{Committed, Journal, reports};
use restage::apply::probe::{self, Scope};
use restage::apply::reset::Applied;
use restage::apply::systemd::{self, Variable};
use restage::error::{Error, Next, Refused, chain};
use restage::format::gpt::Entry;
use restage::plan::facts::HostFacts;
use restage::plan::reset::Ask;
use restage::platform::directory::{self, Dir, Directory};
use restage::platform::esp::EspDirectory;
use restage::platform::named_disk::NamedDisk;
use restage::platform::tpm::Tpm;
use restage::platform::{Disk, Esp, Machine, TpmDoor};
use restage::profile::Profile;
use restage::report::Outcome;
use restage::request::systemd::{ARGUMENT_HAD, Asked};
use restage::request::{Staged, stage};

use super::disk::{PARTITIONS, Places, SECRET, SEED, Tables, VOLUMES, WIPED, disk};
use crate::controls::Wrong;
use crate::controls::order::{Hasty, RecordsFirst};
use crate::controls::store::{Careless, WrongStore};
use crate::controls::table::CrateWrites;
use crate::model::call::{Object, Op};
use crate::model::disk::{ModelDisk, Sectors};
use crate::model::files::{self, Files, Flavor};
use crate::model::tpm::ModelTpm;
use crate::model::volume::{DATA_OFFSET, FIRST_AREA, Slots};
use crate::model::{Call, Device, NOW, Shared, World};

pub const ID: &str = "0123456789abcdef0123456789abcdef";
pub const STEM: &str = "01234567";
/// Where there is a report of the first already.
const OTHER_ID: &str = "1123456789abcdef0123456789abcdef";
/// What the profile has removed from the ESP.
const REMOVED: [&str; 2] = ["sb-disabled", "loader/credentials/nvpcr0.cred"];
/// Of a table, behind its header (UEFI 2.10 §5.3.1).
const ENTRIES_BYTES: u64 = 16_384;
/// Boots until a reset must be over.
const MAX_BOOTS: usize = 6;

/// How restage's directory on the ESP is opened.
type Open = fn(Dir, &str) -> std::io::Result<EspDirectory>;

/// The machines that all cases begin with, and what they are compared with.
pub struct Lab {
    profile: Profile,
    shape: Shape,
    /// Nothing is staged.
    pub clean: World,
    /// A reset is staged.
    pub staged: World,
    /// Where partitions lie: offset and length in bytes.
    places: Places,
    /// The disk after a reset.
    reset_disk: Sectors,
    /// A mistake in how it works, to see whether it is seen.
    pub wrong: Option<Wrong>,
    /// The partition table before and after a reset.
    tables: [Vec<Entry>; 2],
    /// Whether a disk's table is the one after it, by what tells tables apart: most images differ elsewhere.
    known: Mutex<HashMap<u64, bool>>,
}

/// What of a machine differs between the cases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub tables: Tables,
    pub sector_bytes: u64,
    pub tpm: Where,
    /// restage's directory on the ESP has no more room than for the request.
    pub is_narrow: bool,
    /// The request has a seed.
    pub has_seed: bool,
}

/// Where the TPM is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Where {
    /// A chip.
    Chip,
    /// Its state is on the ESP.
    Esp,
    /// There is none, and the request allows that.
    Nowhere,
}

impl Lab {
    pub fn new(shape: Shape) -> Self {
        let mut profile = Profile::incusos().unwrap();
        profile.kernel_argument = true;
        let (disk, places) = disk(shape.tables, shape.sector_bytes);
        let mut clean =
            World::new(disk, Files::new(Flavor::Fat), Files::new(Flavor::Ext4), [Slots::BEFORE; 2]);
        let world = clean.share();
        let root = files::root(&world, Device::Esp);
        let write = |directory: &dyn Directory, name: &str, text: &str| {
            let mut file = directory.new_file(name.as_ref()).unwrap();
            std::io::Write::write_all(&mut file, text.as_bytes()).unwrap();
        };
        write(root.as_ref(), "sb-disabled", "");
        write(root.as_ref(), "EFI", "a boot loader");
        let loader = directory::make(root.as_ref(), "loader").unwrap();
        let credentials = directory::make(loader.as_ref(), "credentials").unwrap();
        write(credentials.as_ref(), "nvpcr0.cred", "sealed by the TPM");
        write(credentials.as_ref(), "other.cred", "of somebody else");
        if shape.tpm == Where::Esp {
            let tpm = directory::make(root.as_ref(), "swtpm").unwrap();
            write(tpm.as_ref(), "tpm2-00.permall", "the seeds of all hierarchies");
            write(tpm.as_ref(), ".lock", "");
        }
        clean = world.borrow().settled();
        let (reset_disk, staged) = (clean.disk.clone(), clean.clone());
        let before = table(&clean).unwrap();
        let mut after = before.clone();
        after.retain(|entry| !WIPED.contains(&entry.number));
        let tables = [before, after];
        let (wrong, known) = (None, Mutex::default());
        let mut lab =
            Self { profile, shape, clean, staged, places, reset_disk, wrong, tables, known };
        let world = lab.clean.share();
        lab.stage(&world).unwrap().unwrap();
        lab.staged = world.borrow().settled();
        if shape.is_narrow {
            lab.staged.esp.narrow();
        }
        let end = lab.recover(&lab.staged.share()).unwrap();
        lab.reset_disk = end.disk.clone();
        lab.assert_reset(&end);
        lab
    }

    /// Boots until there is nothing left to do.
    pub fn recover(&self, world: &Shared) -> Result<World, String> {
        let mut world = world.clone();
        for _ in 0..MAX_BOOTS {
            match self.boot(&world)? {
                Applied::Nothing => {
                    let end = world.borrow().settled();
                    return self.second_run_writes_nothing(end);
                }
                Applied::Done { .. } | Applied::Refused(_) => {}
                Applied::Unfinished(error) if error.next() == Next::RetryNextBoot => {}
                Applied::Unfinished(error) => return Err(format!("it holds: {}", error.chain())),
                Applied::RebootFirst => return Err("the firmware is asked".to_owned()),
            }
            // The trace is that of the first boot: the others come after it.
            let next = world.borrow().settled();
            world = next.share();
        }
        Err(format!("not over after {MAX_BOOTS} boots"))
    }

    fn second_run_writes_nothing(&self, end: World) -> Result<World, String> {
        let world = end.share();
        let trace = world.borrow_mut().trace();
        self.boot(&world)?;
        match trace.lock().unwrap().len() {
            0 => Ok(end),
            changes => Err(format!("a second run makes {changes} changes")),
        }
    }

    /// What `restage initrd reset` does, without its mounts. As there, what is committed holds when it
    /// cannot even be opened.
    pub fn apply(&self, world: &Shared) -> Result<Applied, Error> {
        let is_committed = {
            let all = world.borrow().esp.all();
            let has = |extension: &str| all.contains_key(&format!("restage/{STEM}.{extension}"));
            has("JNL") && !has("RPT")
        };
        let opened = self.machine(world).map_err(Error::new);
        match opened.and_then(|mut machine| self.apply_to(&mut machine, world)) {
            Err(error) if is_committed => Ok(Applied::Unfinished(error.after_commit().hold())),
            applied => applied,
        }
    }

    /// Commits, as a boot does: what was asked for in systemd's way first, and a variable that is refused
    /// goes as well.
    fn apply_to(&self, machine: &mut Machine, world: &Shared) -> Result<Applied, Error> {
        let asked = {
            let world = world.borrow();
            Asked { variable: world.variable, argument: world.argument }
        };
        let mut variable = ModelVariable(world.clone());
        let is_over = world.borrow().esp.all().contains_key(&format!("restage/{STEM}.RPT"));
        let id = if is_over { OTHER_ID } else { ID };
        let applied = systemd::apply(machine, &self.profile, asked, &mut variable, id);
        if asked.variable && matches!(applied, Ok(Applied::Nothing | Applied::Refused(_)) | Err(_))
        {
            // As there, it is left and tried again at the next boot.
            let _ = variable.remove();
        }
        applied
    }

    fn boot(&self, world: &Shared) -> Result<Applied, String> {
        self.apply(world).map_err(|error| error.chain())
    }

    /// What `restage factory-reset` does.
    pub fn stage(&self, world: &Shared) -> Result<Result<(), Refused>, Error> {
        let mut machine = self.opened(world, EspDirectory::on_esp_to_stage).map_err(Error::new)?;
        let json = serde_json::value::RawValue::from_string("{\"a\":1}".to_owned()).unwrap();
        let ask = Ask {
            seeds: self.shape.has_seed.then(|| ("incus".to_owned(), json)).into_iter().collect(),
            allow_tpm_reset_failure: self.shape.tpm == Where::Nowhere,
            ..Ask::default()
        };
        let prepared = match stage::prepare(&mut machine, &self.profile, ask)? {
            Ok(prepared) => prepared,
            Err(refused) => return Ok(Err(refused)),
        };
        let at = machine.host.now;
        let by = Staged { command: "t".into(), user: "t".into(), restage: "0".into(), at };
        stage::stage(&mut machine, &self.profile, &prepared, by, ID).map(Ok)
    }

    /// What `restage cancel` does.
    pub fn cancel(&self, world: &Shared) -> Result<Result<(), Refused>, Error> {
        let mut machine = self.machine(world).map_err(Error::new)?;
        stage::cancel(machine.esp.as_mut(), NOW).map(|_| Ok(()))
    }

    /// As a boot opens it.
    pub fn machine(&self, world: &Shared) -> Result<Machine, String> {
        self.opened(world, EspDirectory::on_esp)
    }

    fn opened(&self, world: &Shared, open: Open) -> Result<Machine, String> {
        let disk = || NamedDisk::new(ModelDisk::new(world));
        let tpm = || ModelTpm(world.clone());
        let hasty = Hasty::new(world, STEM);
        let esp = self.esp(world, &hasty, open)?;
        let (disk, tpm): (Box<dyn Disk>, Box<dyn Tpm>) = match self.wrong {
            Some(Wrong::RecordFirst) => (
                Box::new(RecordsFirst { inner: disk(), hasty: hasty.clone() }),
                Box::new(RecordsFirst { inner: tpm(), hasty }),
            ),
            Some(Wrong::GptCrate) => (Box::new(CrateWrites(disk())), Box::new(tpm())),
            _ => (Box::new(disk()), Box::new(tpm())),
        };
        Ok(Machine {
            disk,
            esp,
            tpm: match self.shape.tpm {
                Where::Chip => TpmDoor::Open(tpm),
                Where::Esp | Where::Nowhere => TpmDoor::None,
            },
            ppi: None,
            host: HostFacts { now: world.borrow().clock, ..HostFacts::default() },
            other_tpm_volumes: Vec::new(),
            loaded_credentials: Vec::new(),
        })
    }

    /// The ESP, as this machine works with it.
    fn esp(&self, world: &Shared, hasty: &Hasty, open: Open) -> Result<Box<dyn Esp>, String> {
        let root = || files::root(world, Device::Esp);
        let said = |error: std::io::Error| chain(&error);
        let below = |root| open(root, "restage").map_err(said);
        Ok(match self.wrong {
            None | Some(Wrong::GptCrate) => Box::new(below(root())?),
            Some(wrong @ (Wrong::NoDirectorySync | Wrong::NotReadFirst)) => {
                Box::new(below(Careless::with(wrong, root()))?)
            }
            Some(Wrong::Rename | Wrong::RenameOver) => {
                let is_one_marker = self.wrong == Some(Wrong::RenameOver);
                Box::new(WrongStore { inner: below(root())?, root: root(), is_one_marker })
            }
            Some(Wrong::RecordFirst) => {
                Box::new(RecordsFirst { inner: below(root())?, hasty: hasty.clone() })
            }
        })
    }

    /// Whether the TPM is as after a reset.
    fn is_cleared(&self, world: &World) -> bool {
        match self.shape.tpm {
            Where::Chip => world.tpm_seed != self.clean.tpm_seed,
            Where::Esp => tpm_on_esp(world).is_empty(),
            Where::Nowhere => true,
        }
    }

    /// Whether it is not as before any more.
    fn is_tpm_touched(&self, world: &World) -> bool {
        match self.shape.tpm {
            Where::Chip => self.is_cleared(world),
            Where::Esp => tpm_on_esp(world) != tpm_on_esp(&self.clean),
            Where::Nowhere => false,
        }
    }

    /// What the model itself must show of a reset, so that the comparison with it means something.
    fn assert_reset(&self, end: &World) {
        assert!(self.is_cleared(end));
        for number in WIPED {
            let (offset, length) = self.places[&number];
            let secret = end.disk.part(offset, length.min(DATA_OFFSET));
            assert!(secret.iter().all(|byte| *byte == 0), "partition {number} is not wiped");
        }
        assert_eq!(self.has_new_table(end), Ok(true));
        assert!(!REMOVED.iter().any(|path| end.esp.all().contains_key(*path)));
        let (offset, length) = self.places[&SEED];
        let seed = end.disk.part(offset, length);
        let is_there = seed.windows(7).any(|bytes| bytes == b"{\"a\":1}");
        assert_eq!(is_there, self.shape.has_seed);
        assert!(!seed.contains(&SECRET) || !self.shape.has_seed);
    }

    /// From the first partition's first byte to behind the last one's last: what is no table.
    fn partitioned(&self) -> Range<u64> {
        let numbers = self.places.keys();
        let first = numbers.clone().map(|number| self.place(*number).start).min();
        first.unwrap()..numbers.map(|number| self.place(*number).end).max().unwrap()
    }

    fn place(&self, number: u32) -> Range<u64> {
        let (offset, length) = self.places[&number];
        offset..offset + length
    }

    /// Which table a disk has, which can be told at any instant: the one before or the one after, with no
    /// entry that moved.
    fn has_new_table(&self, image: &World) -> Result<bool, String> {
        let digest = image.disk.digest_outside(self.partitioned());
        if let Some(known) = self.known.lock().unwrap().get(&digest) {
            return Ok(*known);
        }
        let table = table(image)?;
        let which = self.tables.iter().position(|known| *known == table);
        let which =
            which.ok_or_else(|| format!("the partition table is another one: {table:?}"))?;
        self.known.lock().unwrap().insert(digest, which == 1);
        Ok(which == 1)
    }

    /// What must be so at any instant.
    pub fn check_image(&self, image: &World) -> Result<(), String> {
        image.check_done()?;
        let changed = image.disk.differences(&self.clean.disk);
        // Not the protective MBR, nor what lies between a table and a partition.
        let (size, sector) = (image.disk.size_bytes(), self.shape.sector_bytes);
        let written = [
            sector..2 * sector + ENTRIES_BYTES,
            size - sector - ENTRIES_BYTES..size,
            self.place(SEED),
        ];
        let mut written: Vec<_> =
            written.into_iter().chain(WIPED.map(|number| self.place(number))).collect();
        // That one writes the MBR as well, and is here for something else.
        written.extend((self.wrong == Some(Wrong::GptCrate)).then_some(0..sector));
        for offset in &changed {
            if !written.iter().any(|part| part.contains(offset)) {
                return Err(format!("byte {offset} is outside of what may be written"));
            }
        }
        for number in VOLUMES {
            let start = self.place(number).start;
            let headers = start..start + FIRST_AREA;
            let slots = || image.disk.part(headers.end, DATA_OFFSET - FIRST_AREA);
            if changed.iter().any(|at| headers.contains(at)) && slots().iter().any(|b| *b != 0) {
                return Err(format!("the headers of volume {number} go, and key slots are there"));
            }
        }
        let world = image.share();
        let esp = self.esp(&world, &Hasty::new(&world, STEM), EspDirectory::on_esp)?;
        let names = esp.names().map_err(|error| chain(&error))?;
        let has = |extension: &str| names.contains(&format!("{STEM}.{extension}"));
        let is_touched = !changed.is_empty() || self.is_tpm_touched(image);
        let is_over = has("RPT");
        let journal: Option<Journal<Committed>> =
            has("JNL").then(|| Journal::load(esp.as_ref(), STEM).ok()).flatten();
        if is_touched && !is_over && journal.is_none() {
            return Err("something is destroyed, and there is no journal".to_owned());
        }
        let has_new_table = self.has_new_table(image)?;
        if !is_touched || is_over {
            return Ok(());
        }
        let Some(journal) = journal else { return Ok(()) };
        // What is recorded as done is done.
        for (index, step) in journal.committed.plan.steps.iter().enumerate() {
            if !journal.progress.done.contains(&index) {
                continue;
            }
            let is_done = match step.name().as_str() {
                "tpm" => self.is_cleared(image),
                "gpt" => has_new_table,
                "esp" => !REMOVED.iter().any(|path| image.esp.all().contains_key(*path)),
                name => {
                    let places = match name {
                        "seed" => vec![SEED],
                        _ => WIPED
                            .into_iter()
                            .filter(|n| name.contains(PARTITIONS[*n as usize - 1].0))
                            .collect(),
                    };
                    places.iter().all(|number| {
                        let (offset, length) = self.places[number];
                        image.disk.part(offset, length) == self.reset_disk.part(offset, length)
                    })
                }
            };
            if !is_done {
                return Err(format!("step {} is recorded and not done", step.name()));
            }
        }
        Ok(())
    }

    pub fn check_end(&self, end: &World, allowed: &[Outcome]) -> Result<&'static str, String> {
        self.check_image(end)?;
        let world = end.share();
        let esp = self.esp(&world, &Hasty::new(&world, STEM), EspDirectory::on_esp)?;
        let names = esp.names().map_err(|error| chain(&error))?;
        let reports = reports(esp.as_ref()).map_err(|error| error.chain())?;
        let done = reports.iter().filter(|report| report.outcome != Outcome::Refused).count();
        let outcome = match reports.as_slice() {
            [] => None,
            // What is asked for at every boot may be refused in some, and done in one.
            [first, ..] if end.argument && done <= 1 => {
                let done = reports.iter().find(|report| report.outcome != Outcome::Refused);
                Some(done.unwrap_or(first).outcome)
            }
            [report] => Some(report.outcome),
            several => return Err(format!("{} reports", several.len())),
        };
        let untouched =
            end.disk.differences(&self.clean.disk).is_empty() && !self.is_tpm_touched(end);
        let reset = end.disk.differences(&self.reset_disk).is_empty() && self.is_cleared(end);
        let others = |esp: &Files| {
            let mut all = esp.all();
            all.retain(|path, _| !path.starts_with("restage"));
            all
        };
        let mut wanted = others(&self.clean.esp);
        if reset {
            wanted
                .retain(|path, _| !REMOVED.contains(&path.as_str()) && !path.starts_with("swtpm"));
        }
        if others(&end.esp) != wanted {
            return Err(format!("the ESP holds {:?}", others(&end.esp).keys()));
        }
        let stays = |name: &&String| {
            let extension = name.split_once('.').map(|(_, extension)| extension);
            !matches!(extension, Some("RPT" | "LOG" | "BAD"))
        };
        // Noted as long as the argument is there.
        let left = names.iter().filter(stays).filter(|name| !end.argument || *name != ARGUMENT_HAD);
        let left: Vec<_> = left.collect();
        if !left.is_empty() {
            return Err(format!("left on the ESP: {left:?}"));
        }
        if end.variable {
            return Err("the EFI variable is still there".to_owned());
        }
        match outcome {
            Some(Outcome::Done) if reset => {}
            Some(Outcome::Refused | Outcome::Cancelled) | None if untouched => {}
            outcome => {
                return Err(format!("{outcome:?}, untouched: {untouched}, reset: {reset}"));
            }
        }
        match outcome {
            // Nothing was staged.
            None if allowed.len() > 1 && !reset => Ok("untouched"),
            Some(outcome) if allowed.contains(&outcome) => Ok(crate::explore::word(outcome)),
            outcome => Err(format!("the outcome is {outcome:?}, and not one of {allowed:?}")),
        }
    }
}

/// The EFI variable: the firmware has removed it when it answers.
struct ModelVariable(Shared);

impl Variable for ModelVariable {
    fn remove(&mut self) -> std::io::Result<()> {
        let op = Op {
            device: Device::Firmware,
            call: Call::Change,
            verb: "remove",
            object: Object::Whole,
        };
        self.0.borrow_mut().call(op, |world, _| {
            world.variable = false;
            Ok(())
        })
    }
}

fn tpm_on_esp(world: &World) -> Vec<(String, files::Found)> {
    let all = world.esp.all().into_iter();
    all.filter(|(path, _)| path.starts_with("swtpm")).collect()
}

fn table(image: &World) -> Result<Vec<Entry>, String> {
    let facts = probe::disk(&ModelDisk::new(&image.share()), Scope::Boot);
    let facts = facts.map_err(|error| error.chain())?;
    Ok(facts.partitions.into_iter().map(|partition| partition.entry).collect())
}
