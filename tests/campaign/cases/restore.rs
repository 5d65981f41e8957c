//! A restore: staged, applied, confirmed, rolled back, cancelled.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use restage::apply::journal::reports;
use restage::apply::restore::probe::Trial;
use restage::apply::restore::{Machine, Restored, at_boot, confirm};
use restage::error::{Error, Next, Refused, chain};
use restage::format::archive::{self, Entry, Layout, Writer};
use restage::plan::facts::HostFacts;

use restage::platform::directory::{self, Directory};
use restage::platform::esp::EspDirectory;
use restage::platform::state_fs::StateDirectory;
use restage::platform::volume::Volume;
use restage::profile::{Profile, State};
use restage::report::Outcome;
use restage::request::restore::SkipItem;
use restage::request::{Staged, find, stage_restore};

use super::recorded::{self, Known};
use crate::controls::Wrong;
use crate::controls::store::Careless;
use crate::explore::{Case, Cut, had_fault, has_returned, was_broken};
use crate::model::disk::Sectors;
use crate::model::files::{self, Files, Flavor, Found};
use crate::model::volume::{ModelVolume, NEW, OLD, OWN, Slots};
use crate::model::{Device, Shared, World};
use crate::told::Told;

const ID: &str = "0123456789abcdef0123456789abcdef";
const STEM: &str = "01234567";
pub const STATE: &str = "var/lib/incus-os/";
pub const OWN_DIRECTORY: &str = "var/lib/restage/";
/// Boots until a restore must be over.
const MAX_BOOTS: usize = 8;

/// All of a file system, by path.
pub type All = BTreeMap<String, Found>;

/// A key that the restored system has made.
const MADE: &str = "zpool.made.key";

/// A state file with what a restore needs.
pub fn state_text(hostname: &str, passphrase: &str) -> String {
    format!(
        "#Version: 8\nApplications.Incus.State.Version: 1\nSystem.Network.Config.DNS.Hostname: \
         {hostname}\nSystem.Security.Config.EncryptionRecoveryKeys[0]: {passphrase}\n"
    )
}

/// The machines that all cases begin with, and what they are compared with.
pub struct Lab {
    pub profile: Profile,
    skip: BTreeSet<SkipItem>,
    pub archive: Vec<u8>,
    /// Nothing is staged.
    pub clean: World,
    /// A restore is staged.
    pub staged: World,
    /// The restored state is booted for the first time.
    pub window: World,
    /// Nobody has confirmed in three boots.
    pub unconfirmed: World,
    confirmed: Option<World>,
    rolled_back: Option<World>,
    /// A mistake in how it works, to see whether it is seen.
    wrong: Option<Wrong>,
}

impl Lab {
    pub fn new(skip: &str) -> Self {
        let profile = Profile::incusos().unwrap();
        let mut archive = Writer::new(Vec::new(), Layout::Flat);
        for (name, text) in [
            ("state.txt", state_text("there", NEW).as_str()),
            ("zpool.local.key", "local, of there"),
            ("recovery.root.key", "of another machine"),
        ] {
            let entry = Entry::file(name, text.len() as u64, 0);
            archive.append(&entry, &mut text.as_bytes()).unwrap();
        }
        let archive = archive.finish().unwrap();
        let clean = World::new(
            Sectors::new(&[0; 4096], 512),
            Files::new(Flavor::Fat),
            Files::new(Flavor::Ext4),
            [Slots::BEFORE; 2],
        );
        let world = clean.share();
        let root = files::root(&world, Device::State);
        let var = directory::make(root.as_ref(), "var").unwrap();
        let lib = directory::make(var.as_ref(), "lib").unwrap();
        let state = directory::make(lib.as_ref(), "incus-os").unwrap();
        for (name, text) in [
            ("state.txt", state_text("here", OLD).as_str()),
            ("recovery.root.key", OWN[0]),
            ("recovery.swap.key", OWN[1]),
            ("zpool.local.key", "local, of here"),
            ("zpool.mine.key", "mine"),
        ] {
            state.new_file(name.as_ref()).unwrap().write_all(text.as_bytes()).unwrap();
        }
        let clean = world.borrow().settled();
        let (staged, window, unconfirmed) = (clean.clone(), clean.clone(), clean.clone());
        let names: Vec<String> =
            skip.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
        let skip = SkipItem::parse_all(&names).unwrap();
        let (confirmed, rolled_back) = (None, None);
        let mut lab = Self {
            profile,
            skip,
            archive,
            clean,
            staged,
            window,
            unconfirmed,
            confirmed,
            rolled_back,
            wrong: None,
        };
        lab.prepare();
        lab
    }

    /// Goes once through everything, uninterrupted.
    fn prepare(&mut self) {
        let world = self.clean.share();
        self.stage(&world).unwrap().unwrap();
        self.staged = world.borrow().settled();
        let boot = |world: &World, boots: usize| {
            let world = world.share();
            let booted = self.boot(&world).unwrap();
            assert!(
                matches!(booted, Restored::Window { boots: n, of: 3 } if n == boots),
                "{booted:?}"
            );
            world.borrow().settled()
        };
        let window = boot(&self.staged, 1);
        let unconfirmed = boot(&boot(&window, 2), 3);
        // The restored system makes a pool.
        let made = unconfirmed.share();
        let state = files::root(&made, Device::State);
        let state = ["var", "lib", "incus-os"]
            .into_iter()
            .fold(state, |directory, name| directory.directory(name.as_ref()).unwrap().unwrap());
        let mut key = state.new_file(MADE.as_ref()).unwrap();
        key.write_all(b"made in the window").unwrap();
        let unconfirmed = made.borrow().settled();
        (self.window, self.unconfirmed) = (window, unconfirmed);
        let confirmed = self.recover(&self.window.share(), Ends::Confirm).unwrap();
        let rolled_back = self.recover(&self.unconfirmed.share(), Ends::RollBack).unwrap();
        let state = |world: &World| world.state.all();
        let at = |world: &World, name: &str| state(world).get(&format!("{STATE}{name}")).cloned();
        let text = |text: &str| Some(Found::File(text.as_bytes().to_vec()));
        // What the model itself must show, so that the comparison with it means something.
        assert_eq!(at(&confirmed, "zpool.mine.key"), text("mine"));
        assert_eq!(at(&confirmed, "recovery.root.key"), text(OWN[0]));
        assert_eq!(at(&rolled_back, "state.txt"), at(&self.clean, "state.txt"));
        assert_eq!(at(&rolled_back, MADE), text("made in the window"));
        if self.skip.is_empty() {
            assert_eq!(at(&confirmed, "zpool.local.key"), text("local, of there"));
            assert_eq!(confirmed.slots[0].there, [true, false, true]);
            assert_eq!(self.window.slots[1].there, [true, true, true]);
        }
        assert_eq!(rolled_back.slots, self.clean.slots);
        (self.confirmed, self.rolled_back) = (Some(confirmed), Some(rolled_back));
    }

    fn state_profile(&self) -> &State {
        self.profile.state.as_ref().unwrap()
    }

    pub fn machine(&self, world: &Shared) -> Result<Machine, String> {
        let said = |error: std::io::Error| chain(&error);
        let root = files::root(world, Device::State);
        let state = StateDirectory::below(root, Path::new("/"), self.state_profile());
        let volume = |index| Box::new(ModelVolume::new(world, index)) as Box<dyn Volume>;
        Ok(Machine {
            state: Box::new(state.map_err(said)?),
            store: Box::new(store(world)?),
            volumes: vec![volume(0), volume(1)],
            parse: archive::read,
            host: HostFacts { now: world.borrow().clock, ..HostFacts::default() },
            is_hibernated: false,
            is_offline: true,
            crashes: 0,
        })
    }

    /// Where the flag goes.
    fn flags(&self, world: &Shared) -> Result<EspDirectory, String> {
        let root = files::root(world, Device::Esp);
        let root = match self.wrong {
            Some(wrong) => Careless::with(wrong, root),
            None => root,
        };
        EspDirectory::on_esp_to_stage(root, "restage").map_err(|error| chain(&error))
    }

    /// What `restage restore` does.
    fn stage(&self, world: &Shared) -> Result<Result<(), Refused>, Error> {
        self.stage_archive(world, &self.archive)
    }

    /// The same with another backup.
    pub fn stage_archive(
        &self,
        world: &Shared,
        archive: &[u8],
    ) -> Result<Result<(), Refused>, Error> {
        let mut machine = self.machine(world).map_err(Error::new)?;
        let staged = self.stage_on(&mut machine, world, archive);
        if !matches!(staged, Ok(Ok(()))) {
            let _ = stage_restore::abandon(&mut machine, ID);
        }
        staged
    }

    fn stage_on(
        &self,
        machine: &mut Machine,
        world: &Shared,
        mut bytes: &[u8],
    ) -> Result<Result<(), Refused>, Error> {
        let mut taken = bytes;
        let state = self.state_profile();
        let archive = stage_restore::take_in(machine, state, ID, &mut bytes)?;
        let (profile, skip) = (&self.profile, &self.skip);
        let checked = stage_restore::check(machine, profile, skip, &mut taken, Trial::Make)?;
        let checked = match checked {
            Ok(checked) => checked,
            Err(refused) => return Ok(Err(refused)),
        };
        let at = machine.host.now;
        let by = Staged { command: "t".into(), user: "t".into(), restage: "0".into(), at };
        let mut flags = self.flags(world).map_err(Error::new)?;
        let flags = Some(&mut flags as &mut dyn restage::platform::Store);
        stage_restore::stage(machine, flags, &checked, archive, skip, by, ID).map(Ok)
    }

    /// What `restage initrd restore` does, without its mounts. As there, what is committed holds, and
    /// what nobody can look at as well.
    pub fn apply(&self, world: &Shared) -> Result<Restored, Error> {
        let looked = self.machine(world).map_err(Error::new).and_then(|machine| {
            let found = find::look(machine.store.as_ref())?;
            Ok((machine, found))
        });
        let (mut machine, found) = match looked {
            Ok(looked) => looked,
            Err(error) => return Ok(Restored::Unfinished(error.hold())),
        };
        if found.is_empty() {
            return Ok(Restored::Nothing);
        }
        match at_boot(&mut machine, &self.profile) {
            Err(error) if !found.committed.is_empty() => Ok(Restored::Unfinished(error.hold())),
            restored => restored,
        }
    }

    fn boot(&self, world: &Shared) -> Result<Restored, String> {
        self.apply(world).map_err(|error| error.chain())
    }

    /// What `restage confirm` does in a system that is healthy.
    pub fn confirm(&self, world: &Shared) -> Result<Restored, Error> {
        let mut machine = self.machine(world).map_err(Error::new)?;
        let confirmed = confirm(&mut machine, &self.profile)?;
        if !matches!(confirmed, Restored::Later(_)) {
            tidy_flags(&machine, world).map_err(Error::new)?;
        }
        Ok(confirmed)
    }

    pub fn cancel(&self, world: &Shared) -> Result<Result<(), Refused>, Error> {
        let mut machine = self.machine(world).map_err(Error::new)?;
        stage_restore::cancel(&mut machine, None)?;
        tidy_flags(&machine, world).map_err(Error::new)?;
        Ok(Ok(()))
    }

    /// Boots until there is nothing left to do.
    fn recover(&self, world: &Shared, ends: Ends) -> Result<World, String> {
        let mut world = world.clone();
        for _ in 0..MAX_BOOTS {
            match self.boot(&world)? {
                Restored::Nothing => return self.second_run_writes_nothing(&world),
                Restored::Window { .. } if ends == Ends::Confirm => {
                    self.confirm(&world).map_err(|error| error.chain())?;
                }
                Restored::Unfinished(error) if error.next() == Next::HoldForOperator => {
                    return Err(format!("it holds: {}", error.chain()));
                }
                Restored::Window { .. }
                | Restored::Refused(_)
                | Restored::Confirmed
                | Restored::RolledBack(_)
                | Restored::Later(_)
                | Restored::Unfinished(_) => {}
            }
            // The trace is that of the first boot: the others come after it.
            let next = world.borrow().settled();
            world = next.share();
        }
        Err(format!("not over after {MAX_BOOTS} boots"))
    }

    fn second_run_writes_nothing(&self, world: &Shared) -> Result<World, String> {
        let machine = self.machine(world)?;
        tidy_flags(&machine, world)?;
        let end = world.borrow().settled();
        let world = end.share();
        let trace = world.borrow_mut().trace();
        self.boot(&world)?;
        match trace.lock().unwrap().len() {
            0 => Ok(end),
            changes => Err(format!("a second run makes {changes} changes")),
        }
    }

    /// What must be so at any instant: the state is one of the two, whole, a passphrase that it lists
    /// opens both volumes, and no key is gone.
    fn check_image(&self, image: &World) -> Result<(), String> {
        self.check_state(image)?;
        // A flag alone means nothing; without it a boot does not look.
        let has = |files: &Files, end: &str| {
            let whole = |found: &Found| !matches!(found, Found::Unreadable);
            files.all().iter().any(|(path, found)| path.ends_with(end) && whole(found))
        };
        let is_open = ["REQ", "JNL"].iter().any(|end| has(&image.state, end));
        if is_open && !has(&image.state, ".RPT") && !has(&image.esp, ".FLG") {
            return Err("a restore is there, and no flag says so".to_owned());
        }
        if !has(&image.state, ".JNL") || has(&image.state, ".RPT") {
            return Ok(());
        }
        let mut old = part(&self.clean.state.all(), STATE);
        old.retain(|name, _| name.contains("zpool"));
        let known = Known { old: &old, made: MADE };
        recorded::check(&self.machine(&image.share())?, image, STEM, &known)
    }

    /// The same without what a boot looks for.
    pub fn check_state(&self, image: &World) -> Result<(), String> {
        image.check_done()?;
        let (all, old) = (image.state.all(), part(&self.clean.state.all(), STATE));
        let state = part(&all, STATE);
        let new = self.confirmed.as_ref().map(|world| part(&world.state.all(), STATE));
        let holds = |wanted: &All| wanted.iter().all(|(name, is)| state.get(name) == Some(is));
        if !holds(&old) && !new.is_some_and(|new| holds(&new)) {
            return Err(format!("neither the old nor the new state: {:?}", state.keys()));
        }
        let Some(Found::File(text)) = state.get("state.txt") else {
            return Err("there is no state file".to_owned());
        };
        let text = String::from_utf8_lossy(text);
        let slot = if text.contains(OLD) { 1 } else { 2 };
        if !image.slots.iter().all(|slots| slots.opens(slot)) {
            return Err(format!("the listed passphrase opens not both: {:?}", image.slots));
        }
        for (name, key) in old.iter().filter(|(name, _)| name.contains("zpool")) {
            if !all.values().any(|found| found == key) {
                return Err(format!("`{name}` is gone"));
            }
        }
        Ok(())
    }

    fn check_end(
        &self,
        end: &World,
        allowed: &[Outcome],
        kept: Kept,
    ) -> Result<&'static str, String> {
        end.check_done()?;
        let world = end.share();
        let reports = reports(&store(&world)?).map_err(|error| error.chain())?;
        let outcome = match reports.as_slice() {
            [] => None,
            [report] => Some(report.outcome),
            several => return Err(format!("{} reports", several.len())),
        };
        let like = match outcome {
            None | Some(Outcome::Refused | Outcome::Cancelled) => Some(&self.clean),
            Some(Outcome::RolledBack) => self.rolled_back.as_ref(),
            Some(Outcome::Done) => self.confirmed.as_ref(),
        };
        let all = |world: &World| {
            let mut all = world.state.all();
            all.retain(|path, _| {
                let own = path.strip_prefix(OWN_DIRECTORY);
                path.trim_end_matches('/') != OWN_DIRECTORY.trim_end_matches('/')
                    && !own.is_some_and(|name| {
                        [".RPT", ".LOG", ".BAD"].iter().any(|end| name.ends_with(end))
                    })
            });
            all
        };
        if let Some(like) = like {
            let (is, wanted) = (all(end), all(like));
            let paths: BTreeSet<&String> = is.keys().chain(wanted.keys()).collect();
            // What never took the place of the old state has replaced no key.
            let is_spared = |path: &String| {
                kept == Kept::Needed
                    && outcome == Some(Outcome::RolledBack)
                    && path.contains("/superseded")
                    && !is.contains_key(path)
            };
            let differing: Vec<_> = paths
                .into_iter()
                // Where that one is kept depends on what has failed; that it is, is looked at by itself.
                .filter(|path| !path.ends_with(MADE))
                .filter(|path| is.get(*path) != wanted.get(*path) && !is_spared(path))
                .collect();
            if !differing.is_empty() {
                return Err(format!("{outcome:?}, and not as it should be: {differing:?}"));
            }
            // What cannot be read of a state may have named a slot: that one stays.
            let stays = |is: &Slots, wanted: &Slots| {
                let pairs = is.there.iter().zip(&wanted.there);
                kept == Kept::Needed && pairs.into_iter().all(|(is, wanted)| is >= wanted)
            };
            let is_other = |(is, wanted): (&Slots, &Slots)| is != wanted && !stays(is, wanted);
            if end.slots.iter().zip(&like.slots).any(is_other) {
                return Err(format!("{outcome:?}: {:?}, and not {:?}", end.slots, like.slots));
            }
        }
        let esp = end.esp.all();
        if esp.keys().any(|path| path.contains(".FLG")) {
            return Err("a flag stays on the ESP".to_owned());
        }
        match outcome {
            None if allowed.len() > 1 && allowed.contains(&Outcome::Cancelled) => Ok("untouched"),
            Some(outcome) if allowed.contains(&outcome) => Ok(crate::explore::word(outcome)),
            outcome => Err(format!("the outcome is {outcome:?}, and not one of {allowed:?}")),
        }
    }
}

/// What is below this directory.
pub fn part(all: &All, prefix: &str) -> All {
    let inner = all.iter().filter_map(|(path, found)| Some((path.strip_prefix(prefix)?, found)));
    inner.map(|(name, found)| (name.to_owned(), found.clone())).collect()
}

fn store(world: &Shared) -> Result<EspDirectory, String> {
    let said = |error: std::io::Error| chain(&error);
    let root = files::root(world, Device::State);
    let below = |parent: &dyn Directory, name| {
        directory::open_at(parent, name).map_err(said)?.ok_or_else(|| format!("no {name}"))
    };
    let lib = below(below(root.as_ref(), "var")?.as_ref(), "lib")?;
    EspDirectory::below(lib, "restage").map_err(said)
}

fn esp(world: &Shared) -> Result<EspDirectory, String> {
    let root = files::root(world, Device::Esp);
    EspDirectory::on_esp(root, "restage").map_err(|error| chain(&error))
}

fn tidy_flags(machine: &Machine, world: &Shared) -> Result<(), String> {
    let mut flags = esp(world)?;
    stage_restore::tidy_flags(machine.store.as_ref(), &mut flags).map_err(|error| error.chain())
}

/// Which superseded keys must be there in the end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kept {
    /// Those of a roll-back out of the window.
    All,
    /// Those that are needed: a restore that was never applied may have replaced none.
    Needed,
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
}

struct RestoreCase {
    name: &'static str,
    lab: Arc<Lab>,
    start: World,
    work: Work,
    ends: Ends,
    /// How it may end when nothing but the power fails; the first is how it has to, once it returned.
    outcomes: Vec<Outcome>,
}

impl RestoreCase {
    /// No key is gone that was there when it began.
    fn check_keys(&self, image: &World) -> Result<(), String> {
        let (start, all) = (self.start.state.all(), image.state.all());
        let is_kept = |key: &Found| all.values().any(|found| found == key);
        match start.iter().find(|(path, key)| path.contains("zpool") && !is_kept(key)) {
            Some((path, _)) => Err(format!("`{path}` is gone")),
            None => Ok(()),
        }
    }
}

impl Case for RestoreCase {
    fn name(&self) -> &'static str {
        self.name
    }
    fn start(&self) -> World {
        self.start.clone()
    }
    fn tell(&self, world: &Shared) -> Told {
        match self.work {
            Work::Stage => self.lab.stage(world).into(),
            Work::Cancel => self.lab.cancel(world).into(),
            Work::Boot => self.lab.apply(world).into(),
            Work::Confirm => self.lab.confirm(world).into(),
        }
    }
    fn check_image(&self, image: &World) -> Result<(), String> {
        self.lab.check_image(image)?;
        self.check_keys(image)
    }
    fn recover(&self, world: &Shared) -> Result<World, String> {
        self.lab.recover(world, self.ends)
    }
    fn check_end(&self, end: &World, path: &[Cut]) -> Result<&'static str, String> {
        self.check_keys(end)?;
        if has_returned(path) {
            return self.lab.check_end(end, &self.outcomes[..1], Kept::All);
        }
        let mut allowed = self.outcomes.clone();
        if had_fault(path) {
            allowed.extend([Outcome::Refused, Outcome::RolledBack]);
        }
        // Boots that were cut off after they had been counted are boots.
        if path.len() >= 3 {
            allowed.push(Outcome::RolledBack);
        }
        let kept = if was_broken(path) { Kept::Needed } else { Kept::All };
        self.lab.check_end(end, &allowed, kept)
    }
}

/// A staging that is done in a wrong way.
pub fn staged_with(wrong: Wrong) -> Box<dyn Case> {
    let mut lab = Lab::new("");
    lab.wrong = Some(wrong);
    let (start, lab) = (lab.clean.clone(), Arc::new(lab));
    let outcomes = vec![Outcome::Done, Outcome::Cancelled, Outcome::Refused];
    let (work, ends) = (Work::Stage, Ends::Confirm);
    Box::new(RestoreCase { name: "restore-stage", lab, start, work, ends, outcomes })
}

/// All cases of a restore.
pub fn all() -> Vec<Box<dyn Case>> {
    let lab = Arc::new(Lab::new(""));
    let skip = "encryption-recovery-keys,local-data-encryption-key,network-macs";
    let skipping = Arc::new(Lab::new(skip));
    let case = |name, lab: &Arc<Lab>, start: &World, work, ends, outcomes: &[Outcome]| {
        let (lab, start, outcomes) = (lab.clone(), start.clone(), outcomes.to_vec());
        Box::new(RestoreCase { name, lab, start, work, ends, outcomes }) as Box<dyn Case>
    };
    let (done, back, cancelled) = (Outcome::Done, Outcome::RolledBack, Outcome::Cancelled);
    let refused = Outcome::Refused;
    let confirm = Ends::Confirm;
    vec![
        // Nothing is staged, or all of it: without a report, as if it had been cancelled. A request that
        // was cut while it was written is damaged, and refused.
        case("restore-stage", &lab, &lab.clean, Work::Stage, confirm, &[done, cancelled, refused]),
        case(
            "restore-cancel",
            &lab,
            &lab.staged,
            Work::Cancel,
            confirm,
            &[cancelled, done, refused],
        ),
        case("restore", &lab, &lab.staged, Work::Boot, confirm, &[done]),
        case("restore-skip", &skipping, &skipping.staged, Work::Boot, confirm, &[done]),
        case("confirm", &lab, &lab.window, Work::Confirm, confirm, &[done]),
        case("roll-back", &lab, &lab.unconfirmed, Work::Boot, Ends::RollBack, &[back]),
    ]
}
