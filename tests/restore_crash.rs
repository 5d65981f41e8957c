//! A restore, its confirmation and its roll-back, with the power cut before every single effect, and
//! again in the resume, and with every effect failing once: the end is the same as without, at every
//! cut one complete state is in place, and a recovery passphrase works. And what the OS may have done
//! in between.
//!
//! Directories and files in memory; the volumes are LUKS2 headers that cryptsetup made, with each set
//! of key slots that a restore goes through.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::cast_possible_truncation,
    reason = "a test: a panic is its verdict"
)]

mod support;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;

use restage::apply::restore::probe::Trial;
use restage::apply::restore::{Machine, Restored, at_boot, confirm};
use restage::format::archive::{self, Entry, Layout, Writer};
use restage::format::luks::{self, Fault, Header, Slot};
use restage::plan::facts::HostFacts;
use restage::platform::Store;
use restage::platform::state_fs::{Listing, Place, StateFs};
use restage::platform::volume::Volume;
use restage::profile::Profile;
use restage::request::{Staged, stage_restore};
use support::state::{ROOT_KEY, SWAP_KEY, run, state_text};
use zeroize::Zeroizing;

const OLD: &str = "old-passphrase-0123";
const NEW: &str = "new-passphrase-4567";
const ID: &str = "0123456789abcdef0123456789abcdef";

type Files = BTreeMap<String, Vec<u8>>;

/// A directory keeps its number wherever it is.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Directory {
    number: u64,
    files: Files,
    /// What is there and is no file.
    odd: Vec<String>,
}

/// Which key slots a volume has: its own key, and these.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Slots {
    Old,
    Both,
    New,
    /// Another volume has its place.
    Other,
}

#[derive(Clone, PartialEq, Eq)]
struct World {
    state: Directory,
    new: Option<Directory>,
    sibling: Option<Directory>,
    superseded: Files,
    store: Files,
    volumes: [Slots; 2],
    /// The slot whose key material is gone already: a removal begins with that.
    wiped: [Option<u32>; 2],
    next_number: u64,
    effects: usize,
    cut_before: Option<usize>,
    /// This effect fails once, without or with having happened.
    fail_at: Option<(usize, bool)>,
    /// No free space.
    is_full: bool,
}

type Shared = Rc<RefCell<World>>;

impl World {
    fn effect<T>(&mut self, effect: impl FnOnce(&mut Self) -> T) -> io::Result<T> {
        if self.cut_before.is_some_and(|cut| self.effects >= cut) {
            return Err(io::Error::other("the power is gone"));
        }
        self.effects += 1;
        match self.fail_at {
            Some((at, happens)) if at + 1 == self.effects => {
                if happens {
                    effect(self);
                }
                Err(io::Error::other("it fails, once"))
            }
            _ => Ok(effect(self)),
        }
    }

    fn reboot(&mut self) {
        self.effects = 0;
        self.cut_before = None;
        self.fail_at = None;
    }

    fn files(&mut self, place: Place<'_>) -> Option<&mut Files> {
        match place {
            Place::State => Some(&mut self.state.files),
            Place::New => self.new.as_mut().map(|directory| &mut directory.files),
            Place::Sibling => self.sibling.as_mut().map(|directory| &mut directory.files),
            Place::Superseded(id) => {
                assert_eq!(id, ID);
                Some(&mut self.superseded)
            }
        }
    }
}

struct SimState(Shared);

impl StateFs for SimState {
    fn identity(&self, place: Place<'_>) -> io::Result<Option<u64>> {
        let world = self.0.borrow();
        Ok(match place {
            Place::State => Some(world.state.number),
            Place::New => world.new.as_ref().map(|directory| directory.number),
            Place::Sibling => world.sibling.as_ref().map(|directory| directory.number),
            Place::Superseded(_) => None,
        })
    }
    fn list(&self, place: Place<'_>) -> io::Result<Listing> {
        let mut world = self.0.borrow_mut();
        let odd = match place {
            Place::State => world.state.odd.clone(),
            Place::Sibling => world.sibling.iter().flat_map(|d| d.odd.clone()).collect(),
            _ => Vec::new(),
        };
        let files = world.files(place).map(|files| files.clone()).unwrap_or_default();
        let entry = |(name, bytes): (String, Vec<u8>)| Entry::file(name, bytes.len() as u64, 0);
        Ok(Listing {
            entries: files.into_iter().map(entry).collect(),
            odd: odd.into_iter().map(|name| (name, "not a regular file".to_owned())).collect(),
        })
    }
    fn open(&self, place: Place<'_>, name: &str) -> io::Result<Option<Box<dyn Read>>> {
        let mut world = self.0.borrow_mut();
        let bytes = world.files(place).and_then(|files| files.get(name).cloned());
        Ok(bytes.map(|bytes| Box::new(io::Cursor::new(bytes)) as Box<dyn Read>))
    }
    fn look(&self, place: Place<'_>, name: &str) -> io::Result<Option<Entry>> {
        Ok(self.list(place)?.entries.into_iter().find(|entry| entry.name == name))
    }
    fn settle(&mut self, place: Place<'_>, _directory: &Entry) -> io::Result<()> {
        panic!("{place:?}: there is none in the flat layout");
    }
    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
    fn make(&mut self, place: Place<'_>) -> io::Result<()> {
        assert_eq!(place, Place::New);
        self.0.borrow_mut().effect(|world| {
            world.next_number += 1;
            let number = world.next_number;
            world.new = Some(Directory { number, files: Files::new(), odd: Vec::new() });
        })
    }
    fn write(&mut self, place: Place<'_>, entry: &Entry, content: &mut dyn Read) -> io::Result<()> {
        let name = &entry.name;
        let mut bytes = Vec::new();
        content.read_to_end(&mut bytes)?;
        let mut world = self.0.borrow_mut();
        if world.files(place).is_some_and(|files| files.contains_key(name)) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        world.effect(|world| {
            world.files(place).unwrap().insert(name.to_owned(), bytes);
        })
    }
    fn remove(&mut self, place: Place<'_>) -> io::Result<()> {
        fn of<'a>(world: &'a mut World, place: Place<'_>) -> &'a mut Option<Directory> {
            match place {
                Place::New => &mut world.new,
                Place::Sibling => &mut world.sibling,
                _ => panic!("{place:?} is never removed"),
            }
        }
        // File by file, as it really is.
        loop {
            let mut world = self.0.borrow_mut();
            let Some(directory) = of(&mut world, place) else { return Ok(()) };
            match directory.files.keys().next().cloned() {
                Some(name) => world.effect(|world| {
                    of(world, place).as_mut().unwrap().files.remove(&name);
                })?,
                None => return world.effect(|world| *of(world, place) = None),
            }
        }
    }
    fn promote(&mut self) -> io::Result<()> {
        self.0.borrow_mut().effect(|world| {
            assert!(world.sibling.is_none());
            world.sibling = world.new.take();
        })
    }
    fn check_place(&self) -> io::Result<()> {
        Ok(())
    }
    fn exchange(&mut self) -> io::Result<()> {
        self.0.borrow_mut().effect(|world| {
            let sibling = world.sibling.take().unwrap();
            let state = std::mem::replace(&mut world.state, sibling);
            world.sibling = Some(state);
        })
    }
    fn try_exchange(&mut self) -> io::Result<()> {
        Ok(())
    }
    fn free_bytes(&self) -> io::Result<u64> {
        Ok(if self.0.borrow().is_full { 0 } else { 1 << 30 })
    }
    fn is_encrypted(&self) -> io::Result<bool> {
        Ok(true)
    }
    fn superseded(&self) -> io::Result<Vec<String>> {
        Ok(Vec::new())
    }
    fn path(&self, _place: Place<'_>, name: &str) -> PathBuf {
        PathBuf::from(name)
    }
}

struct SimStore(Shared);

impl Store for SimStore {
    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.0.borrow().store.keys().cloned().collect())
    }
    fn read(&self, name: &str, _max: usize) -> io::Result<Option<Vec<u8>>> {
        Ok(self.0.borrow().store.get(name).cloned())
    }
    fn unlinked(&self, _: Vec<String>) -> Vec<String> {
        Vec::new()
    }
    fn make_room(&mut self, _stem: &str) -> io::Result<()> {
        Ok(())
    }
    fn create(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        if self.0.borrow().store.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.0
            .borrow_mut()
            .effect(|world| drop(world.store.insert(name.to_owned(), bytes.to_vec())))
    }
    fn open(&self, name: &str) -> io::Result<Option<Box<dyn Read>>> {
        let bytes = self.read(name, usize::MAX)?;
        Ok(bytes.map(|bytes| Box::new(io::Cursor::new(bytes)) as Box<dyn Read>))
    }
    fn create_from(&mut self, name: &str, content: &mut dyn Read) -> io::Result<u64> {
        let mut bytes = Vec::new();
        content.read_to_end(&mut bytes)?;
        self.create(name, &bytes).map(|()| bytes.len() as u64)
    }
    fn mark(&mut self, name: &str) -> io::Result<()> {
        self.0.borrow_mut().effect(|world| {
            world.store.entry(name.to_owned()).or_default();
        })
    }
    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.0.borrow_mut().effect(|world| drop(world.store.remove(name)))
    }
    fn shred(&mut self, name: &str) -> io::Result<()> {
        self.remove(name)
    }
}

/// The headers of one volume, by its key slots: 0 its own key, 1 the old passphrase, 2 the new one.
struct Headers {
    old: Vec<u8>,
    both: Vec<u8>,
    new: Vec<u8>,
    /// Of another volume.
    other: Vec<u8>,
}

impl Headers {
    fn make(directory: &Path, own: &str) -> Self {
        let volume = directory.join("volume");
        fs::File::create(&volume).unwrap().set_len(20 << 20).unwrap();
        let secret = |text: &str| {
            let path = directory.join(text);
            fs::write(&path, text).unwrap();
            path
        };
        let fast = ["--batch-mode", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"];
        let cryptsetup = || Command::new("cryptsetup");
        let format = ["luksFormat", "--type", "luks2"];
        run(cryptsetup().args(format).args(fast).arg(&volume).arg(secret(own)));
        let add = |passphrase: &str| {
            run(cryptsetup()
                .args(["luksAddKey", "--key-file"])
                .arg(secret(own))
                .args(fast)
                .arg(&volume)
                .arg(secret(passphrase)));
            fs::read(&volume).unwrap()[..2 << 20].to_vec()
        };
        let old = add(OLD);
        let both = add(NEW);
        run(cryptsetup().args(["luksKillSlot", "--batch-mode"]).arg(&volume).arg("1"));
        let new = fs::read(&volume).unwrap()[..2 << 20].to_vec();
        run(cryptsetup().args(format).args(fast).arg(&volume).arg(secret(own)));
        let other = fs::read(&volume).unwrap()[..2 << 20].to_vec();
        Self { old, both, new, other }
    }
}

struct SimVolume {
    world: Shared,
    headers: Rc<Headers>,
    index: usize,
}

impl SimVolume {
    fn bytes(&self) -> &[u8] {
        match self.world.borrow().volumes[self.index] {
            Slots::Old => &self.headers.old,
            Slots::Both => &self.headers.both,
            Slots::New => &self.headers.new,
            Slots::Other => &self.headers.other,
        }
    }
}

impl Volume for SimVolume {
    fn name(&self) -> &str {
        ["root", "swap"][self.index]
    }
    fn header(&self) -> io::Result<Result<Header, Fault>> {
        let bytes = self.bytes();
        let size = luks::announced_bytes(bytes).unwrap() as usize;
        Ok(luks::parse(&bytes[..size], 0))
    }
    fn material(&self, slot: &Slot) -> io::Result<Zeroizing<Vec<u8>>> {
        let (offset, size) = slot.area().unwrap();
        if self.world.borrow().wiped[self.index] == Some(slot.index) {
            return Ok(Zeroizing::new(vec![0; size as usize]));
        }
        Ok(Zeroizing::new(self.bytes()[offset as usize..][..size as usize].to_vec()))
    }
    fn enroll(&mut self, _key_file: &Path, passphrase: &str) -> io::Result<()> {
        assert_eq!(passphrase, NEW);
        let index = self.index;
        self.world.borrow_mut().effect(|world| {
            assert_eq!(world.volumes[index], Slots::Old, "a slot leaks");
            world.volumes[index] = Slots::Both;
        })
    }
    fn remove_slot(&mut self, slot: u32) -> io::Result<()> {
        let index = self.index;
        self.world.borrow_mut().effect(|world| world.wiped[index] = Some(slot))?;
        self.world.borrow_mut().effect(|world| {
            world.wiped[index] = None;
            world.volumes[index] = match (world.volumes[index], slot) {
                (Slots::Both, 1) => Slots::New,
                (Slots::Both, 2) => Slots::Old,
                other => panic!("{other:?}: no such slot is to be removed"),
            };
        })
    }
}

struct Lab {
    profile: Profile,
    headers: [Rc<Headers>; 2],
}

impl Lab {
    fn new() -> Self {
        let headers = [ROOT_KEY, SWAP_KEY]
            .map(|own| Rc::new(Headers::make(tempfile::tempdir().unwrap().path(), own)));
        Self { profile: Profile::incusos().unwrap(), headers }
    }

    fn machine(&self, world: &Shared) -> Machine {
        let volume = |index: usize| {
            let headers = self.headers[index].clone();
            Box::new(SimVolume { world: world.clone(), headers, index }) as Box<dyn Volume>
        };
        Machine {
            state: Box::new(SimState(world.clone())),
            store: Box::new(SimStore(world.clone())),
            volumes: vec![volume(0), volume(1)],
            parse: archive::read,
            host: HostFacts { now: 1000, ..HostFacts::default() },
            is_hibernated: false,
            is_offline: true,
            crashes: 0,
        }
    }

    fn boot(&self, world: &Shared) -> restage::error::Result<Restored> {
        at_boot(&mut self.machine(world), &self.profile)
    }

    fn confirm(&self, world: &Shared) -> restage::error::Result<Restored> {
        confirm(&mut self.machine(world), &self.profile)
    }

    /// A system with a staged restore.
    fn staged(&self) -> Shared {
        let file = |name: &str, text: &str| (name.to_owned(), text.as_bytes().to_vec());
        let state = Files::from([
            file("state.txt", &state_text("here", OLD)),
            file("recovery.root.key", ROOT_KEY),
            file("recovery.swap.key", SWAP_KEY),
            file("zpool.local.key", "local, of here"),
            file("zpool.mine.key", "mine"),
        ]);
        let world = Rc::new(RefCell::new(World {
            state: Directory { number: 1, files: state, odd: Vec::new() },
            new: None,
            sibling: None,
            superseded: Files::new(),
            store: Files::new(),
            volumes: [Slots::Old; 2],
            wiped: [None; 2],
            next_number: 1,
            effects: 0,
            cut_before: None,
            fail_at: None,
            is_full: false,
        }));
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
        let mut machine = self.machine(&world);
        let state = self.profile.state.as_ref().unwrap();
        let none = BTreeSet::new();
        let taken =
            stage_restore::take_in(&mut machine, state, ID, &mut archive.as_slice()).unwrap();
        let source = &mut archive.as_slice();
        let checked = stage_restore::check(&mut machine, &self.profile, &none, source, Trial::Make);
        let checked = checked.unwrap().unwrap();
        let by = Staged { command: "t".into(), user: "t".into(), restage: "0".into(), at: 1000 };
        stage_restore::stage(&mut machine, None, &checked, taken, &none, by, ID).unwrap();
        world.borrow_mut().effects = 0;
        world
    }
}

/// What must be so whenever the power goes: the state is one of the two, whole; some passphrase of it
/// works; no key is gone.
fn assert_sound(world: &Shared, old: &Files, new: &Files) {
    let world = world.borrow();
    let (state, mut keys) = (&world.state.files, world.superseded.clone());
    keys.extend(world.sibling.iter().flat_map(|directory| directory.files.clone()));
    keys.extend(state.clone());
    let is_old = old.iter().all(|(name, bytes)| state.get(name) == Some(bytes));
    let is_new = new.iter().all(|(name, bytes)| state.get(name) == Some(bytes));
    assert!(is_old || is_new, "neither the old nor the new state: {:?}", state.keys());
    // The passphrase that the state lists opens both volumes.
    let text = String::from_utf8(state["state.txt"].clone()).unwrap();
    let (without, needs) = if text.contains(OLD) { (Slots::New, 1) } else { (Slots::Old, 2) };
    assert!(world.volumes.iter().all(|slots| *slots != without), "{:?}", world.volumes);
    assert!(world.wiped.iter().all(|slot| *slot != Some(needs)), "{:?}", world.wiped);
    let all: BTreeSet<&Vec<u8>> = world
        .superseded
        .values()
        .chain(world.sibling.iter().flat_map(|directory| directory.files.values()))
        .chain(state.values())
        .collect();
    for key in old.iter().filter(|(name, _)| name.contains("zpool")) {
        assert!(all.contains(key.1), "`{}` is gone", key.0);
    }
}

/// What matters at the end: the state but for its directory's number, kept keys, slots, what is left.
fn end(world: &Shared) -> (Files, Option<Files>, Files, [Slots; 2], Vec<String>) {
    let world = world.borrow();
    let sibling = world.sibling.as_ref().map(|directory| directory.files.clone());
    let left = world.store.keys().filter(|name| !name.contains(".R0")).cloned().collect();
    (world.state.files.clone(), sibling, world.superseded.clone(), world.volumes, left)
}

/// Cuts `work` before each of its effects, once and then again in the resume, which `resume` does.
fn cut_everywhere(
    start: &Shared,
    old: &Files,
    new: &Files,
    work: &dyn Fn(&Shared),
    resume: &dyn Fn(&Shared),
) {
    let copy = |world: &World| Rc::new(RefCell::new(world.clone()));
    let reference = copy(&start.borrow());
    work(&reference);
    let (wanted, effects) = (end(&reference), reference.borrow().effects);
    assert!(effects > 8, "{effects}");
    for happens in [false, true] {
        for at in 0..effects {
            let world = copy(&start.borrow());
            world.borrow_mut().fail_at = Some((at, happens));
            work(&world);
            world.borrow_mut().reboot();
            assert_sound(&world, old, new);
            // A failure may have been passed over, or have led to another boot.
            resume(&world);
            assert_sound(&world, old, new);
        }
    }
    for first in 0..effects {
        let world = copy(&start.borrow());
        world.borrow_mut().cut_before = Some(first);
        work(&world);
        world.borrow_mut().reboot();
        assert_sound(&world, old, new);
        let after = world.borrow().clone();
        resume(&world);
        assert!(end(&world) == wanted, "cut before effect {first}: {:?}", end(&world).4);
        let in_resume = world.borrow().effects;
        for second in (first % 5..in_resume).step_by(5) {
            let world = copy(&after);
            world.borrow_mut().cut_before = Some(second);
            resume(&world);
            world.borrow_mut().reboot();
            assert_sound(&world, old, new);
            resume(&world);
            assert_eq!(end(&world).4, wanted.4, "cuts before effects {first} and {second}");
            assert!(end(&world) == wanted, "cuts before effects {first} and {second}");
        }
    }
}

#[test]
fn a_cut_before_every_effect_of_restore_confirm_and_roll_back_ends_alike() {
    let lab = Lab::new();
    let staged = lab.staged();
    let old = staged.borrow().state.files.clone();
    let window = Rc::new(RefCell::new(staged.borrow().clone()));
    assert!(matches!(lab.boot(&window).unwrap(), Restored::Window { boots: 1, of: 3 }));
    let new = window.borrow().state.files.clone();
    assert_eq!(new["zpool.local.key"], b"local, of there");
    assert_eq!(new["zpool.mine.key"], b"mine");
    assert_eq!(new["recovery.root.key"], ROOT_KEY.as_bytes());
    assert_eq!(window.borrow().volumes, [Slots::Both; 2]);
    window.borrow_mut().reboot();

    // To the window. A boot more may be counted, when the cut came after the count.
    let to_window = |world: &Shared| drop(lab.boot(world));
    let counted_once = |world: &Shared| {
        let counted = world.borrow().store.contains_key("01234567.W00");
        if !counted {
            drop(lab.boot(world));
        }
    };
    cut_everywhere(&staged, &old, &new, &to_window, &counted_once);

    let confirmed = |world: &Shared| drop(lab.confirm(world));
    cut_everywhere(&window, &new, &new, &confirmed, &confirmed);
    // A confirmation that was cut is finished by the next boot as well.
    let decided_then_booted = |world: &Shared| {
        let decided = world.borrow().store.contains_key("01234567.C00");
        drop(if decided { lab.boot(world) } else { lab.confirm(world) });
        drop(lab.confirm(world));
    };
    cut_everywhere(&window, &new, &new, &confirmed, &decided_then_booted);

    for _ in 0..2 {
        assert!(matches!(lab.boot(&window).unwrap(), Restored::Window { .. }));
    }
    let made = b"made in the window".to_vec();
    window.borrow_mut().state.files.insert("zpool.window.key".to_owned(), made.clone());
    window.borrow_mut().reboot();
    let boots = |world: &Shared| drop(lab.boot(world));
    cut_everywhere(&window, &old, &new, &boots, &boots);
    assert!(matches!(lab.boot(&window).unwrap(), Restored::RolledBack(_)));
    let world = window.borrow();
    assert_eq!(world.state.files["zpool.window.key"], made);
    assert_eq!((world.volumes, world.state.number), ([Slots::Old; 2], 1));
    let kept: Vec<_> = world.superseded.values().cloned().collect();
    assert!(
        kept.contains(&b"local, of there".to_vec()),
        "the restored key, which only its pool needs"
    );
}

#[test]
fn after_a_confirmation_nothing_rolls_back_and_a_second_run_has_no_effect() {
    let lab = Lab::new();
    let world = lab.staged();
    lab.boot(&world).unwrap();
    assert!(matches!(lab.confirm(&world).unwrap(), Restored::Confirmed));
    assert_eq!(world.borrow().volumes, [Slots::New; 2]);
    let before = world.borrow().clone();
    for _ in 0..5 {
        assert!(matches!(lab.boot(&world).unwrap(), Restored::Nothing));
        assert!(matches!(lab.confirm(&world).unwrap(), Restored::Nothing));
    }
    assert!(*world.borrow() == before);
}

/// What an OS does to its state.
type Change = fn(&mut World);

/// A system in the window, after its first boot.
fn in_window(lab: &Lab) -> Shared {
    let world = lab.staged();
    assert!(matches!(lab.boot(&world).unwrap(), Restored::Window { boots: 1, of: 3 }));
    world
}

/// Boots until the restore is over; the last answer.
fn until_over(lab: &Lab, world: &Shared) -> Restored {
    for _ in 0..12 {
        let restored = lab.boot(world).unwrap();
        if world.borrow().store.contains_key("01234567.RPT") {
            return restored;
        }
        world.borrow_mut().reboot();
    }
    panic!("it never ends: {:?}", world.borrow().store.keys());
}

#[test]
fn whatever_the_os_does_in_the_window_the_old_state_comes_back() {
    let lab = Lab::new();
    let changes: [(&str, Change); 6] = [
        ("the state file is damaged", |world| {
            world.state.files.insert("state.txt".to_owned(), b"hello".to_vec());
        }),
        ("the state file is gone", |world| drop(world.state.files.remove("state.txt"))),
        ("another passphrase", |world| {
            let text = state_text("there", "made-in-the-window-01");
            world.state.files.insert("state.txt".to_owned(), text.into_bytes());
        }),
        ("a directory", |world| world.state.odd.push("subdirectory".to_owned())),
        ("a volume was made anew", |world| world.volumes[1] = Slots::Other),
        ("the machine's key is gone", |world| {
            drop(world.state.files.remove("recovery.root.key"));
        }),
    ];
    for (what, change) in changes {
        let world = in_window(&lab);
        let old = world.borrow().sibling.clone().unwrap();
        change(&mut world.borrow_mut());
        let ended = until_over(&lab, &world);
        assert!(matches!(ended, Restored::RolledBack(_)), "{what}: {ended:?}");
        let world = world.borrow();
        assert_eq!((&world.state, &world.sibling), (&old, &None), "{what}");
        assert_eq!(world.volumes[0], Slots::Old, "{what}");
        assert!(matches!(world.volumes[1], Slots::Old | Slots::Other), "{what}");
    }
}

#[test]
fn what_looks_like_a_key_and_is_no_file_is_never_destroyed() {
    let lab = Lab::new();
    let world = in_window(&lab);
    world.borrow_mut().state.odd.push("zpool.odd.key".to_owned());
    for _ in 0..2 {
        assert!(matches!(lab.boot(&world).unwrap(), Restored::Window { .. }));
    }
    // The boot goes on, with the old state; the other one stays as long as that lies there.
    for _ in 0..8 {
        let Restored::Later(error) = lab.boot(&world).unwrap() else { panic!() };
        assert!(error.chain().contains("zpool.odd.key"), "{}", error.chain());
        assert_eq!(world.borrow().state.number, 1);
        assert!(world.borrow().sibling.is_some());
    }
    world.borrow_mut().sibling.as_mut().unwrap().odd.clear();
    assert!(matches!(lab.boot(&world).unwrap(), Restored::RolledBack(_)));
}

#[test]
fn no_old_passphrase_goes_before_one_that_the_state_lists_is_known_to_work() {
    let lab = Lab::new();
    let world = in_window(&lab);
    let text = state_text("there", "made-in-the-window-01");
    world.borrow_mut().state.files.insert("state.txt".to_owned(), text.into_bytes());
    assert!(matches!(lab.confirm(&world).unwrap(), Restored::Confirmed));
    let world = world.borrow();
    assert_eq!(world.volumes, [Slots::Both; 2]);
    let report = String::from_utf8_lossy(&world.store["01234567.RPT"]);
    assert!(report.contains("no passphrase of `state.txt` opens another key slot of `root`"));
}

#[test]
fn a_volume_that_is_another_one_does_not_keep_a_confirmation_open() {
    let lab = Lab::new();
    let world = in_window(&lab);
    world.borrow_mut().volumes[1] = Slots::Other;
    assert!(matches!(lab.confirm(&world).unwrap(), Restored::Confirmed));
    assert_eq!(world.borrow().volumes, [Slots::New, Slots::Other]);
}

#[test]
fn a_crash_at_each_start_does_not_repeat_for_ever() {
    let lab = Lab::new();
    let boot_after = |world: &Shared, crashes: usize| {
        let mut machine = lab.machine(world);
        machine.crashes = crashes;
        at_boot(&mut machine, &lab.profile).unwrap()
    };
    // Before the commit: refused.
    let world = lab.staged();
    let Restored::Refused(why) = boot_after(&world, 3) else { panic!() };
    assert!(why[0].contains("ended 3 times"), "{why:?}");
    assert_eq!(world.borrow().state.number, 1);
    // After it: rolled back.
    let world = in_window(&lab);
    assert!(matches!(boot_after(&world, 2), Restored::Window { .. }));
    assert!(matches!(boot_after(&world, 3), Restored::RolledBack(_)));
    assert_eq!((world.borrow().state.number, world.borrow().volumes), (1, [Slots::Old; 2]));
    // While it is rolled back: held, in the end.
    let world = in_window(&lab);
    world.borrow_mut().store.insert("01234567.B00".to_owned(), Vec::new());
    assert!(matches!(boot_after(&world, 6), Restored::Unfinished(_)));
}

#[test]
fn without_space_nothing_is_committed() {
    let lab = Lab::new();
    let world = lab.staged();
    world.borrow_mut().is_full = true;
    let mut machine = lab.machine(&world);
    let (none, archive) = (BTreeSet::new(), world.borrow().store["01234567.ARC"].clone());
    let source = &mut archive.as_slice();
    let checked = stage_restore::check(&mut machine, &lab.profile, &none, source, Trial::Make);
    let why = checked.unwrap().err().unwrap().reason;
    assert!(why.contains("0 bytes are free"), "{why}");
    let Restored::Refused(why) = lab.boot(&world).unwrap() else { panic!() };
    assert!(why[0].contains("0 bytes are free"), "{why:?}");
    let world = world.borrow();
    assert_eq!((world.state.number, &world.new, &world.sibling), (1, &None, &None));
}

thread_local! {
    /// So many times more who parses an archive fails at its end.
    static FAILURES: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

fn sometimes(
    source: &mut dyn io::BufRead,
    layout: Layout,
    limits: archive::Limits,
    visit: &mut archive::Visit<'_>,
) -> Result<(), archive::ReadError> {
    let read = archive::read(source, layout, limits, visit);
    let left = FAILURES.get();
    FAILURES.set(left.saturating_sub(1));
    let killed = || archive::ReadError::Parser(io::Error::other("killed"));
    if left == 0 { read } else { Err(killed()) }
}

/// What became of the process that parses the archive says nothing of the archive.
#[test]
fn a_parser_that_fails_is_asked_once_more() {
    let lab = Lab::new();
    for failures in [0, 1, 2] {
        let world = lab.staged();
        let old = world.borrow().state.clone();
        let mut machine = lab.machine(&world);
        machine.parse = sometimes;
        FAILURES.set(failures);
        match at_boot(&mut machine, &lab.profile).unwrap() {
            Restored::Window { .. } => assert!(failures < 2),
            Restored::Refused(why) => {
                assert_eq!(failures, 2);
                assert!(why[0].contains("killed"), "{why:?}");
                assert!(world.borrow().state == old && world.borrow().new.is_none());
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn the_other_state_without_a_journal_is_left_alone() {
    let lab = Lab::new();
    let world = in_window(&lab);
    let request = lab.staged().borrow().store.clone();
    world.borrow_mut().store = request;
    let before = world.borrow().sibling.clone();
    let Restored::Refused(why) = lab.boot(&world).unwrap() else { panic!() };
    assert!(why[0].contains("no journal says why"), "{why:?}");
    assert_eq!(world.borrow().sibling, before);
}

#[test]
fn a_journal_that_this_profile_could_not_have_made_holds() {
    let lab = Lab::new();
    for (field, value) in [("IncusOS", "OtherOS"), ("\"name\":\"swap\"", "\"name\":\"sweep\"")] {
        let world = in_window(&lab);
        let journal = world.borrow().store["01234567.JNL"].clone();
        let text = String::from_utf8(journal).unwrap();
        let (head, body) = text.trim_end().split_once("\"body\":").unwrap();
        let body = body.strip_suffix('}').unwrap().replace(field, value);
        let digest = restage::format::sha256_hex(body.as_bytes());
        let start = head.find("\"sha256\":\"").unwrap() + 10;
        let head = format!("{}{digest}{}", &head[..start], &head[start + 64..]);
        let text = format!("{head}\"body\":{body}}}\n");
        world.borrow_mut().store.insert("01234567.JNL".to_owned(), text.into_bytes());
        let before = world.borrow().clone();
        let Restored::Unfinished(error) = lab.boot(&world).unwrap() else { panic!() };
        assert!(error.chain().contains("nothing was touched"), "{}", error.chain());
        assert!(*world.borrow() == before);
    }
}
