//! A factory reset: staged, carried out, cancelled.

use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;

use restage::apply::journal::reports;
use restage::apply::reset::{Applied, apply};
use restage::apply::table;
use restage::error::Next;
use restage::format::gpt::Copy;
use restage::plan::facts::HostFacts;
use restage::plan::reset::Ask;
use restage::platform::directory;
use restage::platform::disk::OpenDisk;
use restage::platform::esp::EspDirectory;
use restage::platform::locate::Mounted;
use restage::platform::{Machine, Store, TpmDoor};
use restage::profile::Profile;
use restage::report::Outcome;
use restage::request::{Staged, find, stage};

use super::{Booted, Case, Ended, write};
use crate::image::Image;
use crate::layout::{ESP, Layout, SECRET};
use crate::medium::{Beside, DISK};
use crate::rig::{self, Node, Rig, must_run, said, tree};
use crate::tpm::Chip;

const ID: &str = "0123456789abcdef0123456789abcdef";
const STEM: &str = "01234567";
const NOW: u64 = 1_700_000_000;

/// What of a machine differs between the cases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Sectors of a cluster of the ESP.
    pub cluster: u32,
    /// What its free clusters hold.
    pub fill: u8,
    /// restage's directory has no more clusters than the request's name needs: not restage has made it.
    pub is_narrow: bool,
}

/// The machines that the cases begin with, and what they are compared with.
pub struct Lab {
    profile: Profile,
    layout: Layout,
    clean: Image,
    staged: Image,
    /// After a reset that nothing has interrupted.
    reset: Image,
    /// The files on the ESP that are not restage's.
    files: BTreeMap<String, Node>,
}

impl Lab {
    /// Makes them all.
    pub fn new(rig: &mut Rig, shape: Shape) -> Result<Self, String> {
        let mut layout = Layout::new();
        let esp = layout.places[ESP].clone();
        layout.image.write(esp.start, &vec![shape.fill; esp.len()]);
        rig.medium.allow(&[]);
        rig.load(&layout.image, Beside::BEFORE);
        rig.switch_on()?;
        let cluster = shape.cluster.to_string();
        let options = ["-F", "32", "-s", &cluster, "-i", "c0ffee00", "--invariant", rig::ESP];
        must_run("mkfs.vfat", &options)?;
        let files = Rig::in_os(|esp| {
            let boot_loader: Vec<u8> = (0..20_000_u32).flat_map(u32::to_le_bytes).collect();
            write(&esp.join("EFI/BOOT/BOOTX64.EFI"), &boot_loader);
            write(&esp.join("loader/loader.conf"), b"timeout 3\n");
            write(&esp.join("sb-disabled"), b"");
            tree(esp)
        })?;
        let clean = rig.medium.image();
        let profile = Profile::incusos().unwrap();
        let (staged, reset) = (clean.clone(), clean.clone());
        let mut lab = Self { profile, layout, clean, staged, reset, files };
        rig.medium.allow(&lab.layout.of_a_reset());
        rig.load(&lab.clean, Beside::BEFORE);
        rig.switch_on()?;
        lab.stage(rig)?;
        if shape.is_narrow {
            Rig::in_os(|esp| narrow(esp, &lab.profile.esp.directory))?.map_err(said)?;
        }
        lab.staged = rig.medium.image();
        rig.switch_on()?;
        let booted = lab.boot(rig)?;
        if booted != Booted::Again {
            return Err("a reset is staged, and nothing is done".to_owned());
        }
        lab.reset = rig.medium.image();
        Ok(lab)
    }

    fn machine(rig: &Rig, esp: EspDirectory) -> Result<Machine, String> {
        Ok(Machine {
            disk: Box::new(OpenDisk::open(Path::new(DISK)).map_err(said)?),
            esp: Box::new(esp),
            tpm: TpmDoor::Open(Box::new(Chip(rig.medium.clone()))),
            ppi: None,
            host: HostFacts { now: NOW, ..HostFacts::default() },
            other_tpm_volumes: Vec::new(),
            loaded_credentials: Vec::new(),
        })
    }

    fn open_esp(&self, root: &Path) -> Result<EspDirectory, String> {
        let open = |root| EspDirectory::on_esp(root, &self.profile.esp.directory);
        directory::open(root).and_then(open).map_err(said)
    }

    fn open_esp_to_stage(&self, root: &Path) -> Result<EspDirectory, String> {
        let open = |root| EspDirectory::on_esp_to_stage(root, &self.profile.esp.directory);
        let esp = directory::open(root).and_then(open).map_err(said)?;
        Rig::make_writable_in_os()?;
        Ok(esp)
    }

    /// What `restage factory-reset` does.
    fn stage(&self, rig: &Rig) -> Result<(), String> {
        Rig::in_os(|at| {
            let mut machine = Self::machine(rig, self.open_esp_to_stage(at)?)?;
            let json = serde_json::value::RawValue::from_string("{\"a\":1}".to_owned()).unwrap();
            let ask = Ask { seeds: [("incus".to_owned(), json)].into(), ..Ask::default() };
            let prepared = stage::prepare(&mut machine, &self.profile, ask)
                .map_err(|error| error.chain())?
                .map_err(|refused| refused.reason)?;
            let by = Staged { command: "t".into(), user: "t".into(), restage: "0".into(), at: NOW };
            stage::stage(&mut machine, &self.profile, &prepared, by, ID)
                .map_err(|error| error.chain())?;
            rig.medium.change(|beside| beside.has_returned = true);
            Ok(())
        })?
    }

    /// What `restage cancel` does.
    fn cancel(&self, rig: &Rig) -> Result<(), String> {
        Rig::in_os(|at| {
            let mut esp = self.open_esp(at)?;
            stage::cancel(&mut esp, NOW).map_err(|error| error.chain())?;
            rig.medium.change(|beside| beside.has_returned = true);
            Ok(())
        })?
    }

    /// What `restage initrd reset` does.
    fn boot(&self, rig: &mut Rig) -> Result<Booted, String> {
        let before = rig.medium.writes();
        let disk = OpenDisk::open(Path::new(DISK)).map_err(said)?;
        let tables = table::read(&disk).map_err(|error| error.chain())?;
        drop(disk);
        if [Copy::Primary, Copy::Backup].iter().all(|copy| tables.get(*copy).is_none()) {
            return Err("both tables are bad".to_owned());
        }
        let mounted = Rig::esp()?;
        let booted = self.boot_on(rig, &mounted, before);
        mounted.unmount();
        booted
    }

    fn boot_on(&self, rig: &mut Rig, mounted: &Mounted, before: u64) -> Result<Booted, String> {
        let looked = self
            .open_esp(&mounted.path)
            .and_then(|esp| find::look(&esp).map_err(|error| error.chain()));
        let found = match looked {
            Ok(found) => found,
            // The boot goes on, into the system as it is.
            Err(what) => return Ok(Booted::Unreadable(what)),
        };
        if found.is_empty() {
            return Ok(Booted::Nothing { writes: rig.medium.writes() - before });
        }
        rig.must_scan();
        mounted.make_writable().map_err(|e| format!("the ESP stays read-only: {e}"))?;
        let mut esp = self.open_esp(&mounted.path)?;
        esp.lock().map_err(|error| format!("no lock: {error}"))?;
        let mut machine = Self::machine(rig, esp)?;
        let applied = apply(&mut machine, &self.profile).map_err(|error| error.chain())?;
        rig.medium.change(|beside| beside.has_returned = true);
        match applied {
            Applied::Nothing | Applied::Done { .. } | Applied::Refused(_) => Ok(Booted::Again),
            Applied::Unfinished(error) if error.next() == Next::RetryNextBoot => Ok(Booted::Again),
            Applied::Unfinished(error) => Err(format!("it holds: {}", error.chain())),
            Applied::RebootFirst => Err("the firmware is asked".to_owned()),
        }
    }

    fn is_untouched(&self, rig: &Rig) -> bool {
        let is_cleared = rig.medium.beside().tpm_seed != Beside::BEFORE.tpm_seed;
        self.is_like(&rig.medium.image(), &self.clean) && !is_cleared
    }

    /// Whether the disk, but for the ESP, is like another one.
    fn is_like(&self, image: &Image, other: &Image) -> bool {
        image.differences(other).all(|at| self.layout.places[ESP].contains(&at))
    }

    fn check_end(
        &self,
        rig: &Rig,
        allowed: &[Outcome],
        may_be_silent: &dyn Fn(bool) -> bool,
    ) -> Result<(), String> {
        let mounted = Rig::esp()?;
        let ended = self.check_esp(rig, &mounted.path, allowed, may_be_silent);
        mounted.unmount();
        ended
    }

    fn check_esp(
        &self,
        rig: &Rig,
        at: &Path,
        allowed: &[Outcome],
        may_be_silent: &dyn Fn(bool) -> bool,
    ) -> Result<(), String> {
        let esp = self.open_esp(at)?;
        let (image, tpm_seed) = (rig.medium.image(), rig.medium.beside().tpm_seed);
        let reports = reports(&esp).map_err(|error| error.chain())?;
        let outcome = match reports.as_slice() {
            [] => None,
            [report] => Some(report.outcome),
            several => return Err(format!("{} reports", several.len())),
        };
        let is_cleared = tpm_seed != Beside::BEFORE.tpm_seed;
        let untouched = self.is_untouched(rig);
        let reset = self.is_like(&image, &self.reset) && is_cleared;
        match outcome {
            Some(Outcome::Done) if reset => {}
            Some(Outcome::Refused | Outcome::Cancelled) | None if untouched => {}
            outcome => {
                return Err(format!("{outcome:?}, untouched: {untouched}, reset: {reset}"));
            }
        }
        let own = &self.profile.esp.directory;
        let mut files = tree(at);
        // What a file-system check has found without a name; the directory, which may be empty.
        files.retain(|path, _| !path.starts_with(own.as_str()) && !is_found_by_fsck(path));
        let mut wanted = self.files.clone();
        if reset {
            wanted.retain(|path, _| path != "sb-disabled");
        }
        if files != wanted {
            return Err(format!("the ESP holds {:?}", files.keys()));
        }
        let mut names = esp.names().map_err(said)?;
        let unlinked = find::unlinked(&esp, &names);
        if !unlinked.is_empty() {
            return Err(format!("in clusters that are free: {unlinked:?}"));
        }
        // What is in clusters that were never written may look like names.
        names.retain(|name| name.split_once('.').is_some_and(|(stem, _)| stem == STEM));
        let left = names
            .iter()
            .filter(|name| !["RPT", "LOG", "BAD"].iter().any(|end| name.ends_with(end)));
        let left: Vec<_> = left.collect();
        if !left.is_empty() {
            return Err(format!("left on the ESP: {left:?}"));
        }
        match outcome {
            None if may_be_silent(names.iter().any(|name| name.ends_with("RPT"))) => Ok(()),
            Some(outcome) if allowed.contains(&outcome) => Ok(()),
            outcome => Err(format!("the outcome is {outcome:?}, and not one of {allowed:?}")),
        }
    }
}

/// Makes a directory anew, with what is in it.
#[allow(clippy::disallowed_methods, reason = "not by restage, and nothing is cut here")]
fn narrow(esp: &Path, name: &str) -> std::io::Result<()> {
    let (old, new) = (esp.join(name), esp.join("new"));
    std::fs::create_dir(&new)?;
    for entry in std::fs::read_dir(&old)? {
        let entry = entry?;
        std::fs::rename(entry.path(), new.join(entry.file_name()))?;
    }
    std::fs::remove_dir(&old)?;
    std::fs::rename(&new, &old)?;
    assert_eq!(std::fs::metadata(&old)?.len(), 512);
    Ok(())
}

/// Clusters that no file has become files with such names.
fn is_found_by_fsck(path: &str) -> bool {
    path.len() == 12 && path.starts_with("FSCK") && path.get(8..) == Some(".REC")
}

/// What is done to the machine.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Work {
    Stage,
    Cancel,
    Boot,
}

struct ResetCase {
    name: &'static str,
    lab: Rc<Lab>,
    work: Work,
    /// How it may end when nothing but the power fails; the first is how it has to, once it returned.
    outcomes: Vec<Outcome>,
}

impl Case for ResetCase {
    fn name(&self) -> &'static str {
        self.name
    }
    fn start(&self) -> (&Image, Beside) {
        let image = if self.work == Work::Stage { &self.lab.clean } else { &self.lab.staged };
        (image, Beside::BEFORE)
    }
    fn run(&self, rig: &mut Rig) -> Result<(), String> {
        rig.medium.allow(&self.lab.layout.of_a_reset());
        match self.work {
            Work::Stage => self.lab.stage(rig),
            Work::Cancel => self.lab.cancel(rig),
            Work::Boot => self.lab.boot(rig).map(drop),
        }
    }
    fn check_file_systems(&self, _rig: &mut Rig) -> Result<(), String> {
        rig::check("fsck.fat", "-a", rig::ESP).map(drop)
    }
    fn boot(&self, rig: &mut Rig) -> Result<Booted, String> {
        self.lab.boot(rig)
    }
    fn may_wait_for_check(&self, rig: &Rig, ended: Ended) -> bool {
        let has_promised = ended.has_returned && !ended.has_failed;
        !has_promised && self.lab.is_untouched(rig)
    }
    fn stage_anew(&self, rig: &mut Rig) -> Result<(), String> {
        self.lab.stage(rig)
    }
    fn check_end(&self, rig: &mut Rig, ended: Ended) -> Result<(), String> {
        let allowed = match (ended, self.work) {
            // A boot returns also where it has refused.
            (Ended { has_failed: true, .. }, Work::Boot) => &[Outcome::Done, Outcome::Refused][..],
            // Where the kernel has lost the directory the OS has asked for a reset since.
            (Ended { has_failed: true, .. }, Work::Cancel) => &self.outcomes,
            (Ended { has_returned: true, .. }, _) => &self.outcomes[..1],
            (Ended { .. }, _) => &self.outcomes,
        };
        self.lab.check_end(rig, allowed, &|has_report| match self.work {
            // Nothing was staged.
            Work::Stage => allowed.len() > 1,
            // It is withdrawn, also where that cannot be reported.
            Work::Cancel => allowed.len() > 1 || ended.has_failed,
            // What a write that failed leaves in the kernel's own caches of a directory on FAT may
            // become the report's length: it is there, and `restage status` tells that it is damaged.
            Work::Boot => ended.has_failed && has_report,
        })
    }
}

/// All cases of a reset.
pub fn all(rig: &mut Rig) -> Result<Vec<Box<dyn Case>>, String> {
    let (done, refused, cancelled) = (Outcome::Done, Outcome::Refused, Outcome::Cancelled);
    let mut cases = Vec::new();
    for (shape, names) in [
        (Shape { cluster: 8, fill: 0, is_narrow: false }, ["stage", "cancel", "reset"]),
        (
            Shape { cluster: 1, fill: SECRET, is_narrow: true },
            ["stage-512", "cancel-512", "reset-512"],
        ),
    ] {
        let lab = Rc::new(Lab::new(rig, shape)?);
        for (name, work, outcomes) in [
            (names[0], Work::Stage, vec![done, refused]),
            (names[1], Work::Cancel, vec![cancelled, done, refused]),
            (names[2], Work::Boot, vec![done]),
        ] {
            let lab = lab.clone();
            cases.push(Box::new(ResetCase { name, lab, work, outcomes }) as Box<dyn Case>);
        }
    }
    Ok(cases)
}
