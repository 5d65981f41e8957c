//! A restore: staged, applied, confirmed, rolled back, cancelled.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;
use std::rc::Rc;

use restage::apply::journal::reports;
use restage::apply::restore::probe::Trial;
use restage::apply::restore::{Machine, Restored, at_boot, confirm};
use restage::error::{Error, Next};
use restage::format::archive;
use restage::plan::facts::HostFacts;
use restage::platform::Store;
use restage::platform::directory;
use restage::platform::esp::EspDirectory;
use restage::platform::locate::{Mounted, mount_state};
use restage::platform::state_fs::StateDirectory;
use restage::platform::volume::Volume;
use restage::profile::{Profile, State};
use restage::report::Outcome;
use restage::request::{Staged, find, stage_restore};
use restage_campaign::model::slots::OLD;

use super::shape::{Files, STATE, Shape};
use super::{Booted, Case, Ended, write};
use crate::image::Image;
use crate::layout::{Layout, VOLUMES};
use crate::medium::Beside;
use crate::rig::{self, Node, Rig, must_run, said};
use crate::volume::Passphrases;

const ID: &str = "0123456789abcdef0123456789abcdef";
const NOW: u64 = 1_700_000_000;
const LIB: &str = "var/lib";
const OWN_NAME: &str = "restage";
/// The state file system, unlocked.
const DEVICE: &str = "/dev/mapper/root";
const ROOT: &str = "/run/restage/root";
/// Nothing of the state is there, and must not be touched.
const OTHER: &str = "var/lib/other/precious";

/// A machine at rest, and what its state file system holds.
#[derive(Clone)]
struct Rest {
    image: Image,
    beside: Beside,
    files: Files,
}

/// The machines that all cases begin with, and what they are compared with.
pub struct Lab {
    shape: Shape,
    profile: Profile,
    layout: Layout,
    archive: Vec<u8>,
    /// Nothing is staged.
    clean: Rest,
    /// A restore is staged.
    staged: Rest,
    /// The restored state is booted for the first time.
    window: Rest,
    /// Nobody has confirmed in three boots.
    unconfirmed: Rest,
    confirmed: Option<Rest>,
    rolled_back: Option<Rest>,
}

/// What is below a directory.
fn part(files: &Files, directory: &str) -> Files {
    let below = |(path, node): (&String, &Node)| {
        path.strip_prefix(directory).map(|name| (name.to_owned(), node.clone()))
    };
    files.iter().filter_map(below).collect()
}

#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
fn chain(error: Error) -> String {
    error.chain()
}

impl Lab {
    /// Makes them all.
    pub fn new(rig: &mut Rig, shape: Shape) -> Result<Self, String> {
        let layout = Layout::new();
        let archive = shape.archive()?;
        rig.medium.allow(&[]);
        let begin = layout.image.clone();
        rig.load(&begin, Beside::BEFORE);
        rig.switch_on()?;
        make_file_systems()?;
        rig.keep_partitions();
        let mounted = mount_state(Path::new(DEVICE), "ext4", Path::new(ROOT)).map_err(said)?;
        shape.make(&mounted.path);
        write(&mounted.path.join(OTHER), b"precious");
        let files = shape.look(&mounted.path);
        mounted.unmount();
        let clean = Rest { image: rig.medium.image(), beside: Beside::BEFORE, files };
        let (staged, window, unconfirmed) = (clean.clone(), clean.clone(), clean.clone());
        let (profile, confirmed, rolled_back) = (shape.profile(), None, None);
        let mut lab = Self {
            shape,
            profile,
            layout,
            archive,
            clean,
            staged,
            window,
            unconfirmed,
            confirmed,
            rolled_back,
        };
        lab.prepare(rig)?;
        Ok(lab)
    }

    /// Goes once through everything, uninterrupted.
    fn prepare(&mut self, rig: &mut Rig) -> Result<(), String> {
        rig.medium.allow(&self.layout.of_a_restore());
        Self::at(rig, &self.clean)?;
        self.stage(rig)?;
        self.staged = self.rest(rig)?;
        let mut boot = |from: &Rest, boots: usize| {
            Self::at(rig, from)?;
            match self.in_initrd(rig, |machine| at_boot(machine, &self.profile))? {
                Restored::Window { boots: n, of: 3 } if n == boots => self.rest(rig),
                other => Err(format!("{other:?}, and not boot {boots}")),
            }
        };
        let window = boot(&self.staged, 1)?;
        let second = boot(&window, 2)?;
        let unconfirmed = boot(&second, 3)?;
        (self.window, self.unconfirmed) = (window, unconfirmed);
        self.confirmed = Some(self.to_the_end(rig, &self.window, Ends::Confirm)?);
        self.rolled_back = Some(self.to_the_end(rig, &self.unconfirmed, Ends::RollBack)?);
        Ok(())
    }

    fn at(rig: &mut Rig, rest: &Rest) -> Result<(), String> {
        rig.load(&rest.image, rest.beside);
        rig.switch_on()
    }

    fn to_the_end(&self, rig: &mut Rig, from: &Rest, ends: Ends) -> Result<Rest, String> {
        Self::at(rig, from)?;
        for _ in 0..6 {
            if self.boot(rig, ends)? == (Booted::Nothing { writes: 0 }) {
                return self.rest(rig);
            }
            rig.switch_on()?;
        }
        Err("a restore that nothing interrupts does not end".to_owned())
    }

    fn rest(&self, rig: &mut Rig) -> Result<Rest, String> {
        let (image, mut beside) = (rig.medium.image(), rig.medium.beside());
        beside.has_returned = false;
        rig.switch_on()?;
        let mounted = mount_state(Path::new(DEVICE), "ext4", Path::new(ROOT)).map_err(said)?;
        let files = self.shape.look(&mounted.path);
        mounted.unmount();
        Ok(Rest { image, beside, files })
    }

    fn state_profile(&self) -> &State {
        self.profile.state.as_ref().unwrap()
    }

    fn machine(&self, rig: &Rig, root: &Path) -> Result<Machine, String> {
        let volume = |index| Box::new(Passphrases::new(&rig.medium, index)) as Box<dyn Volume>;
        Ok(Machine {
            state: Box::new(StateDirectory::open(root, self.state_profile()).map_err(said)?),
            store: Box::new(EspDirectory::open(&root.join(LIB), OWN_NAME).map_err(said)?),
            // A tree lists no passphrases.
            volumes: if self.shape == Shape::Flat {
                vec![volume(0), volume(1)]
            } else {
                Vec::new()
            },
            parse: archive::read,
            host: HostFacts { now: NOW, ..HostFacts::default() },
            is_hibernated: false,
            // That it lies on dm-crypt is looked at.
            is_offline: false,
            crashes: 0,
        })
    }

    /// The state file system is mounted for as long as `work` takes.
    fn mounted<T>(
        &self,
        rig: &Rig,
        work: impl FnOnce(&Mounted) -> Result<T, String>,
    ) -> Result<T, String> {
        let mounted = mount_state(Path::new(DEVICE), "ext4", Path::new(ROOT));
        let mounted = mounted.map_err(|error| format!("the state is not mounted: {error}"))?;
        // What `work` leaves is looked at by the next one, as it is on the disk then.
        let done = self.check_state(rig, &mounted.path).and_then(|()| work(&mounted));
        mounted.unmount();
        done
    }

    /// What `restage initrd restore` does.
    fn in_initrd(
        &self,
        rig: &Rig,
        work: impl FnOnce(&mut Machine) -> restage::error::Result<Restored>,
    ) -> Result<Restored, String> {
        self.mounted(rig, |mounted| {
            let mut machine = self.machine(rig, &mounted.path)?;
            let found = find::look(machine.store.as_ref()).map_err(chain)?;
            if found.is_empty() {
                return Ok(Restored::Nothing);
            }
            match work(&mut machine) {
                Err(error) if !found.committed.is_empty() => Ok(Restored::Unfinished(error.hold())),
                restored => restored.map_err(chain),
            }
        })
    }

    /// What `restage restore` does.
    fn stage(&self, rig: &Rig) -> Result<(), String> {
        self.in_os(rig, Self::flags_to_stage, |machine, flags| {
            let source = &mut self.archive.as_slice();
            let archive = stage_restore::take_in(machine, self.state_profile(), ID, source)?;
            let mut taken = self.archive.as_slice();
            let skip = BTreeSet::new();
            let checked =
                stage_restore::check(machine, &self.profile, &skip, &mut taken, Trial::Make)?;
            let checked = checked.map_err(|refused| Error::new(refused.reason))?;
            let by = Staged { command: "t".into(), user: "t".into(), restage: "0".into(), at: NOW };
            stage_restore::stage(machine, Some(flags), &checked, archive, &skip, by, ID)
        })
    }

    fn in_os(
        &self,
        rig: &Rig,
        open: fn(&Self, &Path) -> Result<EspDirectory, String>,
        work: impl FnOnce(&mut Machine, &mut EspDirectory) -> restage::error::Result<()>,
    ) -> Result<(), String> {
        Rig::in_os(|esp| {
            self.mounted(rig, |mounted| {
                let mut machine = self.machine(rig, &mounted.path)?;
                let mut flags = open(self, esp)?;
                work(&mut machine, &mut flags).map_err(chain)?;
                rig.medium.change(|beside| beside.has_returned = true);
                Ok(())
            })
        })?
    }

    fn flags(&self, esp: &Path) -> Result<EspDirectory, String> {
        let open = |root| EspDirectory::on_esp(root, &self.profile.esp.directory);
        directory::open(esp).and_then(open).map_err(said)
    }

    fn flags_to_stage(&self, esp: &Path) -> Result<EspDirectory, String> {
        let open = |root| EspDirectory::on_esp_to_stage(root, &self.profile.esp.directory);
        let flags = directory::open(esp).and_then(open).map_err(said)?;
        Rig::make_writable_in_os()?;
        Ok(flags)
    }

    /// What `restage confirm` does in a system that is healthy.
    fn confirm(&self, rig: &Rig) -> Result<(), String> {
        self.in_os(rig, Self::flags, |machine, flags| {
            confirm(machine, &self.profile)?;
            stage_restore::tidy_flags(machine.store.as_ref(), flags)
        })
    }

    fn cancel(&self, rig: &Rig) -> Result<(), String> {
        self.in_os(rig, Self::flags, |machine, flags| {
            stage_restore::cancel(machine, None)?;
            stage_restore::tidy_flags(machine.store.as_ref(), flags)
        })
    }

    /// A boot, and the OS after it: where nothing is to do that tidies the flags, and a boot that finds
    /// nothing then has nothing to write, but for what every mount writes.
    fn boot(&self, rig: &mut Rig, ends: Ends) -> Result<Booted, String> {
        let restored = self.mounted(rig, |mounted| {
            let mut machine = self.machine(rig, &mounted.path)?;
            let found = find::look(machine.store.as_ref()).map_err(chain)?;
            if found.is_empty() {
                return self.tidy(rig, &machine).map(Err);
            }
            match at_boot(&mut machine, &self.profile) {
                Err(error) if !found.committed.is_empty() => {
                    Ok(Ok(Restored::Unfinished(error.hold())))
                }
                restored => restored.map(Ok).map_err(chain),
            }
        })?;
        match restored {
            Err(booted) => Ok(booted),
            Ok(Restored::Window { .. }) if ends == Ends::Confirm => {
                rig.switch_on()?;
                self.confirm(rig).map(|()| Booted::Again)
            }
            Ok(Restored::Unfinished(error)) if error.next() == Next::HoldForOperator => {
                Err(format!("it holds: {}", error.chain()))
            }
            Ok(_) => Ok(Booted::Again),
        }
    }

    fn tidy(&self, rig: &Rig, machine: &Machine) -> Result<Booted, String> {
        Rig::in_os(|esp| {
            let looked =
                self.flags(esp).and_then(|flags| Ok((flags.names().map_err(said)?, flags)));
            let (names, mut flags) = match looked {
                Ok(looked) => looked,
                Err(what) => return Ok(Booted::Unreadable(what)),
            };
            let had_flags = !names.is_empty();
            stage_restore::tidy_flags(machine.store.as_ref(), &mut flags).map_err(chain)?;
            if had_flags {
                return Ok(Booted::Again);
            }
            let before = rig.medium.writes();
            stage_restore::tidy_flags(machine.store.as_ref(), &mut flags).map_err(chain)?;
            find::look(machine.store.as_ref()).map_err(chain)?;
            Ok(Booted::Nothing { writes: rig.medium.writes() - before })
        })?
    }

    /// What must be so at any instant: the state is one of the two, whole, a passphrase that it lists
    /// opens both volumes, and no key is gone.
    fn check_state(&self, rig: &Rig, root: &Path) -> Result<(), String> {
        let all = self.shape.look(root);
        let (old, state) = (part(&self.clean.files, STATE), part(&all, STATE));
        let new = self.confirmed.as_ref().map(|rest| part(&rest.files, STATE));
        let holds = |wanted: &Files| wanted.iter().all(|(name, is)| state.get(name) == Some(is));
        // While the lab is made nobody knows the new one yet.
        let is_new = new.as_ref().is_none_or(holds);
        if !holds(&old) && !is_new {
            return Err(format!("neither the old nor the new state: {:?}", state.keys()));
        }
        if self.shape == Shape::Flat {
            let Some(Node::File(text)) = state.get("state.txt") else {
                return Err("there is no state file".to_owned());
            };
            let slot = if String::from_utf8_lossy(text).contains(OLD) { 1 } else { 2 };
            let slots = rig.medium.beside().slots;
            if !slots.iter().all(|slots| slots.opens(slot)) {
                return Err(format!("the listed passphrase opens not both: {slots:?}"));
            }
        }
        let is_key = |name: &str| name.contains("zpool") && !name.starts_with('?');
        for (name, key) in old.iter().filter(|(name, _)| is_key(name)) {
            if !all.values().any(|found| found == key) {
                return Err(format!("`{name}` is gone"));
            }
        }
        if all.get(OTHER) != self.clean.files.get(OTHER) {
            return Err(format!("{OTHER} is another one"));
        }
        Ok(())
    }

    fn check_end(&self, rig: &Rig, allowed: &[Outcome]) -> Result<(), String> {
        let (all, outcome) = self.mounted(rig, |mounted| {
            let machine = self.machine(rig, &mounted.path)?;
            let reports = reports(machine.store.as_ref()).map_err(chain)?;
            match reports.as_slice() {
                [] => Ok((self.shape.look(&mounted.path), None)),
                [report] => Ok((self.shape.look(&mounted.path), Some(report.outcome))),
                several => Err(format!("{} reports", several.len())),
            }
        })?;
        let like = match outcome {
            None | Some(Outcome::Refused | Outcome::Cancelled) => &self.clean,
            Some(Outcome::RolledBack) => self.rolled_back.as_ref().unwrap(),
            Some(Outcome::Done) => self.confirmed.as_ref().unwrap(),
        };
        let (is, wanted) = (lasting(&all), lasting(&like.files));
        if is != wanted {
            let paths: BTreeSet<&String> = is.keys().chain(wanted.keys()).collect();
            let differ: Vec<_> =
                paths.into_iter().filter(|path| is.get(*path) != wanted.get(*path)).collect();
            return Err(format!("{outcome:?}, and not as it should be: {differ:?}"));
        }
        let slots = rig.medium.beside().slots;
        if slots != like.beside.slots {
            return Err(format!("{outcome:?}: {slots:?}, and not {:?}", like.beside.slots));
        }
        match outcome {
            None if allowed.len() > 1 && allowed.contains(&Outcome::Cancelled) => Ok(()),
            Some(outcome) if allowed.contains(&outcome) => Ok(()),
            outcome => Err(format!("the outcome is {outcome:?}, and not one of {allowed:?}")),
        }
    }
}

/// What is compared: everything but what reports leave, and what only a check of the file system uses.
fn lasting(files: &Files) -> Files {
    let is_told = |path: &str| {
        path.strip_prefix("var/lib/restage/")
            .is_some_and(|name| ["RPT", "LOG", "BAD"].iter().any(|end| name.ends_with(end)))
    };
    let mut files = files.clone();
    files.retain(|path, _| !is_told(path) && path != "var/lib/restage" && path != "lost+found");
    files
}

fn make_file_systems() -> Result<(), String> {
    must_run("mkfs.vfat", &["-F", "32", "-s", "8", "-i", "c0ffee01", "--invariant", rig::ESP])?;
    let key = Path::new("/run/key");
    write(key, &[0x17; 64]);
    let partition = format!("/dev/nbd0p{}", VOLUMES[1] + 1);
    // Which cipher makes no difference to what a cut leaves of whole sectors, and this one takes no time.
    let (cipher, key) = ("cipher_null-ecb", "/run/key");
    let plain = ["open", "--type", "plain", "--cipher", cipher, "--key-size", "512", "--key-file"];
    // What the lab before has opened stays open.
    if !Path::new(DEVICE).exists() {
        must_run("cryptsetup", &[plain.as_slice(), &[key, &partition, "root"]].concat())?;
    }
    let uuid = "5bf4b0b6-2b1a-4c6e-9a53-0e3c8a1d7c11";
    let extended = format!("nodiscard,lazy_itable_init=0,lazy_journal_init=0,hash_seed={uuid}");
    let options = ["-q", "-b", "4096", "-J", "size=4", "-m", "0", "-U", uuid, "-E", &extended];
    must_run("mkfs.ext4", &[options.as_slice(), &[DEVICE]].concat())
}

/// What ends the window.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ends {
    Confirm,
    RollBack,
}

/// What is done to the machine.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Work {
    Stage,
    Cancel,
    Boot,
    Confirm,
    RollBack,
}

struct RestoreCase {
    name: &'static str,
    lab: Rc<Lab>,
    work: Work,
    /// How it may end when nothing but the power fails; the first is how it has to, once it returned.
    outcomes: Vec<Outcome>,
    /// Of the ends, how many have been checked to the last block.
    ends: Cell<usize>,
}

/// One end in so many is checked to the last block.
const CHECK_ONE_IN: usize = 20;

impl RestoreCase {
    fn ends(&self) -> Ends {
        if self.work == Work::RollBack { Ends::RollBack } else { Ends::Confirm }
    }
}

impl Case for RestoreCase {
    fn name(&self) -> &'static str {
        self.name
    }
    fn start(&self) -> (&Image, Beside) {
        let rest = match self.work {
            Work::Stage => &self.lab.clean,
            Work::Cancel | Work::Boot => &self.lab.staged,
            Work::Confirm => &self.lab.window,
            Work::RollBack => &self.lab.unconfirmed,
        };
        (&rest.image, rest.beside)
    }
    fn run(&self, rig: &mut Rig) -> Result<(), String> {
        rig.medium.allow(&self.lab.layout.of_a_restore());
        let boot =
            |rig: &mut Rig| self.lab.in_initrd(rig, |machine| at_boot(machine, &self.lab.profile));
        match self.work {
            Work::Stage => self.lab.stage(rig),
            Work::Cancel => self.lab.cancel(rig),
            Work::Boot | Work::RollBack => boot(rig).map(drop),
            Work::Confirm => self.lab.confirm(rig),
        }
    }
    fn check_file_systems(&self, _rig: &mut Rig) -> Result<(), String> {
        rig::check("fsck.fat", "-a", rig::ESP)?;
        match rig::check("e2fsck", "-p", DEVICE)? {
            0 | 1 => Ok(()),
            status => Err(format!("e2fsck -p cannot make it good: {status}")),
        }
    }
    fn boot(&self, rig: &mut Rig) -> Result<Booted, String> {
        self.lab.boot(rig, self.ends())
    }
    fn may_wait_for_check(&self, _rig: &Rig, ended: Ended) -> bool {
        // The flags, whose directory was about to be made; nothing but staging needs it.
        !ended.has_returned && self.work == Work::Stage
    }
    fn stage_anew(&self, rig: &mut Rig) -> Result<(), String> {
        self.lab.stage(rig)
    }
    fn written_whole(&self) -> Range<usize> {
        self.lab.layout.places[VOLUMES[1]].clone()
    }
    fn check_end(&self, rig: &mut Rig, ended: Ended) -> Result<(), String> {
        let mut allowed = self.outcomes.clone();
        match (ended, self.work) {
            // It is withdrawn, also where that cannot be reported.
            (Ended { has_failed: true, .. }, Work::Cancel) => {}
            (Ended { has_returned: true, .. }, _) => allowed.truncate(1),
            (Ended { has_failed: true, .. }, _) => {
                allowed.extend([Outcome::Refused, Outcome::RolledBack]);
            }
            (Ended { .. }, _) => {}
        }
        self.lab.check_end(rig, &allowed)?;
        self.ends.set(self.ends.get() + 1);
        if ended.has_failed {
            // What the kernel has noted of the failure waits for a check.
            self.check_file_systems(rig)?;
        } else if self.ends.get().is_multiple_of(CHECK_ONE_IN) {
            let status = rig::check("e2fsck", "-fn", DEVICE)?;
            if status != 0 {
                return Err(format!("e2fsck -fn finds something: {status}"));
            }
        }
        Ok(())
    }
}

/// All cases of a restore.
pub fn all(rig: &mut Rig) -> Result<Vec<Box<dyn Case>>, String> {
    let (done, back, cancelled) = (Outcome::Done, Outcome::RolledBack, Outcome::Cancelled);
    let refused = Outcome::Refused;
    let flat = [
        // Nothing is staged, or all of it: without a report, as if it had been cancelled. A request
        // that was cut while it was written is damaged, and refused.
        ("restore-stage", Work::Stage, vec![done, cancelled, refused]),
        ("restore-cancel", Work::Cancel, vec![cancelled, done, refused]),
        ("restore", Work::Boot, vec![done]),
        ("confirm", Work::Confirm, vec![done]),
        ("roll-back", Work::RollBack, vec![back]),
    ];
    let tree =
        [("restore-tree", Work::Boot, vec![done]), ("roll-back-tree", Work::RollBack, vec![back])];
    let mut all = Vec::new();
    for (shape, cases) in [(Shape::Flat, flat.to_vec()), (Shape::Tree, tree.to_vec())] {
        let lab = Rc::new(Lab::new(rig, shape)?);
        all.extend(cases.into_iter().map(|(name, work, outcomes)| {
            let (lab, ends) = (lab.clone(), Cell::new(0));
            Box::new(RestoreCase { name, lab, work, outcomes, ends }) as Box<dyn Case>
        }));
    }
    Ok(all)
}
