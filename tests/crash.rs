//! Resumability: the power is cut before every single effect of a reset, and again in the resume; the
//! end is the same as without a cut, and the journal is true at every cut.
//!
//! A simulated machine behind the traits of `platform`: sectors whose writes are volatile until a
//! flush, an ESP that keeps its promises, a TPM with a seed.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::cast_possible_truncation,
    reason = "a test: a panic is its verdict"
)]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use restage::apply::probe::{self, Scope};
use restage::apply::reset::{Applied, apply};
use restage::error::Next;
use restage::plan::facts::HostFacts;
use restage::plan::reset::Ask;
use restage::platform::tpm::{Tpm, TpmError, TpmProperties};
use restage::platform::{Disk, Esp, Machine, Store, TpmDoor};
use restage::profile::Profile;
use restage::report::{Outcome, Report};
use restage::request::{Staged, stage};
use uuid::Uuid;

const MIB: u64 = 1024 * 1024;
const CHUNK: usize = 64 * 1024;
const DISK_BYTES: u64 = 64 * MIB;

/// What survives a power cut, and what does not.
#[derive(Clone)]
struct World {
    /// As reads see it.
    disk: Vec<Arc<Vec<u8>>>,
    /// As it is on the medium.
    medium: Vec<Arc<Vec<u8>>>,
    esp: BTreeMap<String, Vec<u8>>,
    tpm_seed: u32,
    /// Whether the disk was opened for writing, which disturbs the boot when it is closed.
    is_writable: bool,
    effects: usize,
    cut_before: Option<usize>,
    /// This one effect fails; whether it happens all the same.
    fault: Option<(usize, Happens)>,
    /// Whether unflushed writes reach the medium at the cut.
    keeps_unflushed: bool,
}

/// A device that reports an error says nothing about what it has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Happens {
    No,
    Yes,
}

type Shared = Rc<RefCell<World>>;

impl World {
    /// Counts an effect, and has it unless it fails; past the cut nothing happens any more.
    fn effect<T>(&mut self, effect: impl FnOnce(&mut Self) -> T) -> io::Result<T> {
        let this = self.effects;
        self.effects += 1;
        if self.cut_before.is_some_and(|cut| this >= cut) {
            return Err(io::Error::other("the power is gone"));
        }
        match self.fault {
            Some((which, happens)) if which == this => {
                if happens == Happens::Yes {
                    effect(self);
                }
                Err(io::Error::from_raw_os_error(5))
            }
            _ => Ok(effect(self)),
        }
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        let mut at = offset as usize;
        for piece in bytes.chunks(512) {
            let chunk = &mut self.disk[at / CHUNK];
            if chunk[at % CHUNK..][..piece.len()] != *piece {
                Arc::make_mut(chunk)[at % CHUNK..][..piece.len()].copy_from_slice(piece);
            }
            at += piece.len();
        }
    }

    fn reboot(&mut self) {
        if self.keeps_unflushed {
            self.medium.clone_from(&self.disk);
        }
        self.disk.clone_from(&self.medium);
        self.effects = 0;
        self.cut_before = None;
        self.fault = None;
        self.is_writable = false;
    }
}

struct SimDisk(Shared);

impl Disk for SimDisk {
    fn name(&self) -> &'static str {
        "sim"
    }
    fn size_bytes(&self) -> u64 {
        DISK_BYTES
    }
    fn sector_bytes(&self) -> u64 {
        512
    }
    fn make_writable(&mut self) -> io::Result<()> {
        self.0.borrow_mut().is_writable = true;
        Ok(())
    }
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let world = self.0.borrow();
        let mut at = offset as usize;
        let mut rest = buffer;
        while !rest.is_empty() {
            let length = rest.len().min(CHUNK - at % CHUNK);
            rest[..length].copy_from_slice(&world.disk[at / CHUNK][at % CHUNK..][..length]);
            rest = &mut rest[length..];
            at += length;
        }
        Ok(())
    }
    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        assert!(self.0.borrow().is_writable, "written before it was opened for writing");
        self.0.borrow_mut().effect(|world| world.write(offset, bytes))
    }
    fn flush(&mut self) -> io::Result<()> {
        self.0.borrow_mut().effect(|world| world.medium.clone_from(&world.disk))
    }
    fn forget_cache(&mut self) -> io::Result<()> {
        Ok(())
    }
    fn discard(&mut self, _offset: u64, _bytes: u64) -> io::Result<bool> {
        self.0.borrow_mut().effect(|_| false)
    }
    fn partition_in_use(&self, _number: u32) -> io::Result<bool> {
        Ok(false)
    }
    fn drop_partition(&mut self, _number: u32) -> io::Result<()> {
        Ok(())
    }
}

struct SimEsp(Shared);

impl SimEsp {
    fn change(&self, change: impl FnOnce(&mut BTreeMap<String, Vec<u8>>)) -> io::Result<()> {
        self.0.borrow_mut().effect(|world| change(&mut world.esp))
    }
}

impl Store for SimEsp {
    fn names(&self) -> io::Result<Vec<String>> {
        let world = self.0.borrow();
        let own = world.esp.keys().filter_map(|name| name.strip_prefix("restage/"));
        Ok(own.map(str::to_owned).collect())
    }
    fn read(&self, name: &str, _max: usize) -> io::Result<Option<Vec<u8>>> {
        Ok(self.0.borrow().esp.get(&format!("restage/{name}")).cloned())
    }
    fn unlinked(&self, _: Vec<String>) -> Vec<String> {
        Vec::new()
    }
    fn make_room(&mut self, _stem: &str) -> io::Result<()> {
        Ok(())
    }
    fn create(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let name = format!("restage/{name}");
        if self.0.borrow().esp.contains_key(&name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.change(|esp| drop(esp.insert(name, bytes.to_vec())))
    }
    fn open(&self, name: &str) -> io::Result<Option<Box<dyn io::Read>>> {
        let bytes = self.read(name, usize::MAX)?;
        Ok(bytes.map(|bytes| Box::new(io::Cursor::new(bytes)) as Box<dyn io::Read>))
    }
    fn create_from(&mut self, name: &str, content: &mut dyn io::Read) -> io::Result<u64> {
        let mut bytes = Vec::new();
        content.read_to_end(&mut bytes)?;
        self.create(name, &bytes).map(|()| bytes.len() as u64)
    }
    fn mark(&mut self, name: &str) -> io::Result<()> {
        self.change(|esp| {
            esp.entry(format!("restage/{name}")).or_default();
        })
    }
    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.change(|esp| drop(esp.remove(&format!("restage/{name}"))))
    }
    fn shred(&mut self, name: &str) -> io::Result<()> {
        self.remove(name)
    }
}

impl Esp for SimEsp {
    fn matching(&self, pattern: &str) -> io::Result<Vec<String>> {
        let world = self.0.borrow();
        let matching = world.esp.keys().filter(|n| restage::plan::check::matches(pattern, n));
        Ok(matching.cloned().collect())
    }
    fn remove_path(&mut self, path: &str) -> io::Result<()> {
        self.change(|esp| drop(esp.remove(path)))
    }
}

struct SimTpm(Shared);

impl Tpm for SimTpm {
    fn properties(&mut self) -> Result<TpmProperties, TpmError> {
        Ok(TpmProperties {
            owner_auth_set: false,
            endorsement_auth_set: false,
            lockout_auth_set: false,
            disable_clear: false,
            in_lockout: false,
            lockout_counter: 0,
        })
    }
    fn owner_primary_name(&mut self) -> Result<String, TpmError> {
        Ok(format!("000b{:08x}", self.0.borrow().tpm_seed))
    }
    fn clear(&mut self) -> Result<(), TpmError> {
        let cleared = self.0.borrow_mut().effect(|world| world.tpm_seed += 1);
        cleared.map_err(|e| TpmError::Failed {
            command: "TPM2_Clear",
            detail: e.to_string(),
            no_device: false,
        })
    }
    fn reset_count(&mut self) -> Result<u32, TpmError> {
        Ok(0)
    }
}

fn machine(world: &Shared) -> Machine {
    Machine {
        disk: Box::new(SimDisk(world.clone())),
        esp: Box::new(SimEsp(world.clone())),
        tpm: TpmDoor::Open(Box::new(SimTpm(world.clone()))),
        ppi: None,
        host: HostFacts { now: 1000, ..HostFacts::default() },
        other_tpm_volumes: Vec::new(),
        loaded_credentials: Vec::new(),
    }
}

fn guid(text: &str) -> gpt::partition_types::Type {
    Uuid::parse_str(text).unwrap().into()
}

/// A disk in IncusOS's order with a staged reset.
fn staged() -> (Shared, Profile) {
    let mut bytes = vec![0xee; DISK_BYTES as usize];
    let mut table = gpt::GptConfig::new()
        .writable(true)
        .logical_block_size(gpt::disk::LogicalBlockSize::Lb512)
        .create_from_device(io::Cursor::new(&mut bytes), Some(Uuid::from_u128(7)))
        .unwrap();
    let linux = "0fc63daf-8483-4772-8e79-3d69d8477de4";
    for (label, kind, size) in [
        ("esp", "c12a7328-f81f-11d2-ba4b-00a0c93ec93b", MIB),
        ("seed-data", linux, MIB),
        ("usr", "8484680c-9521-48c6-9c11-b0720656f69e", MIB),
        ("swap", "0657fd6d-a4ab-43c4-84e5-0933c84b4f4f", 17 * MIB),
        ("root-x86-64", "4f68bce3-e8cd-4db1-96e7-fbcaf984b709", 18 * MIB),
        ("local-data", linux, 3 * MIB),
    ] {
        table.add_partition(label, size, guid(kind), 0, None).unwrap();
    }
    let partitions = table.partitions().clone();
    table.write().unwrap();
    let seed = (partitions[&2].first_lba * 512) as usize;
    bytes[seed..seed + 1024].fill(0);
    let chunks: Vec<_> = bytes.chunks(CHUNK).map(|c| Arc::new(c.to_vec())).collect();
    let world = Rc::new(RefCell::new(World {
        disk: chunks.clone(),
        medium: chunks,
        esp: BTreeMap::from([("sb-disabled".to_owned(), Vec::new()), ("EFI".to_owned(), vec![1])]),
        tpm_seed: 1,
        is_writable: false,
        effects: 0,
        cut_before: None,
        fault: None,
        keeps_unflushed: false,
    }));
    let mut machine = machine(&world);
    let profile = Profile::incusos().unwrap();
    let json = serde_json::value::RawValue::from_string("{\"a\":1}".to_owned()).unwrap();
    let ask = Ask { seeds: [("incus".to_owned(), json)].into(), ..Ask::default() };
    let prepared = stage::prepare(&mut machine, &profile, ask).unwrap().unwrap();
    let by = Staged { command: "t".into(), user: "t".into(), restage: "0".into(), at: 1000 };
    stage::stage(&mut machine, &profile, &prepared, by, "0123456789abcdef0123456789abcdef")
        .unwrap();
    world.borrow_mut().effects = 0;
    (world, profile)
}

fn boot(world: &Shared, profile: &Profile) -> Result<Applied, restage::error::Error> {
    apply(&mut machine(world), profile)
}

fn end(world: &Shared) -> (Vec<Arc<Vec<u8>>>, Vec<String>, u32) {
    let world = world.borrow();
    (world.medium.clone(), world.esp.keys().cloned().collect(), world.tpm_seed)
}

fn report(world: &Shared) -> Report {
    restage::apply::journal::reports(machine(world).esp.as_ref()).unwrap().remove(0)
}

/// What is recorded as done must be done: looked at on the medium after every cut.
fn assert_journal_is_true(world: &Shared) {
    let status = stage::status(machine(world).esp.as_ref()).unwrap();
    let names = SimEsp(world.clone()).names().unwrap();
    let recorded = |n: usize| names.contains(&format!("01234567.S{n:02}"));
    let disk = probe::disk(&SimDisk(world.clone()), Scope::Boot).unwrap();
    assert!(status.running.iter().all(|r| r.damaged.is_none()));
    // Without a commit nothing is touched.
    if !names.contains(&"01234567.JNL".to_owned()) && !names.contains(&"01234567.RPT".to_owned()) {
        assert_eq!(world.borrow().tpm_seed, 1);
        assert_eq!(disk.partitions.len(), 6);
    }
    // Steps of this plan: tpm, seed, esp, swap, root, local-data, gpt.
    if recorded(0) {
        assert_ne!(world.borrow().tpm_seed, 1);
    }
    for (step, number) in [(3, 4), (4, 5), (5, 6)] {
        if let Some(found) = disk.partitions.iter().find(|p| p.entry.number == number)
            && recorded(step)
        {
            let mut start = vec![1; 4096];
            SimDisk(world.clone()).read(found.entry.first_lba * 512, &mut start).unwrap();
            assert!(start.iter().all(|b| *b == 0), "step {step} is recorded and not done");
        }
    }
    if recorded(6) {
        assert_eq!(disk.partitions.len(), 3);
    }
}

/// Boots until the reset is over; a run that was cut is followed by one that is not.
fn finish(world: &Shared, profile: &Profile) {
    for _ in 0..3 {
        match boot(world, profile).unwrap() {
            Applied::Done { .. } | Applied::Nothing => return,
            Applied::Unfinished(error) => {
                assert_eq!(error.next(), Next::RetryNextBoot, "{error:?}");
            }
            other => panic!("{other:?}"),
        }
    }
    panic!("not finished after three boots");
}

#[test]
fn a_cut_before_every_effect_and_another_in_the_resume_end_alike() {
    let (reference, profile) = staged();
    let start = reference.borrow().clone();
    assert!(matches!(boot(&reference, &profile).unwrap(), Applied::Done { .. }));
    let effects = reference.borrow().effects;
    let wanted = end(&reference);
    assert_eq!(report(&reference).outcome, Outcome::Done);
    assert!(effects > 60, "{effects}");
    let mut states = 0;
    for keeps_unflushed in [false, true] {
        for first in 0..effects {
            let world = Rc::new(RefCell::new(start.clone()));
            world.borrow_mut().cut_before = Some(first);
            world.borrow_mut().keeps_unflushed = keeps_unflushed;
            let _ = boot(&world, &profile); // whatever it says, nobody is there to hear it
            world.borrow_mut().reboot();
            assert_journal_is_true(&world);
            let after_first = world.borrow().clone();
            finish(&world, &profile);
            assert!(end(&world) == wanted, "cut before effect {first}");
            assert_eq!(report(&world).outcome, Outcome::Done);
            let in_resume = world.borrow().effects;
            // A few places of the resume, others for each first cut.
            for second in (first % 23..in_resume).step_by(23) {
                let world = Rc::new(RefCell::new(after_first.clone()));
                world.borrow_mut().cut_before = Some(second);
                let _ = boot(&world, &profile);
                world.borrow_mut().reboot();
                assert_journal_is_true(&world);
                finish(&world, &profile);
                assert!(end(&world) == wanted, "cuts before effects {first} and {second}");
                states += 1;
            }
        }
    }
    println!("{effects} effects, {states} double cuts");
}

#[test]
fn an_effect_that_fails_changes_nothing_before_the_commit_and_is_made_good_after() {
    let (reference, profile) = staged();
    let start = reference.borrow().clone();
    boot(&reference, &profile).unwrap();
    let effects = reference.borrow().effects;
    let wanted = end(&reference).0;
    let (mut untouched, mut finished) = (0, 0);
    for happens in [Happens::No, Happens::Yes] {
        for which in 0..effects {
            let case = || format!("effect {which}, happens: {happens:?}");
            let world = Rc::new(RefCell::new(start.clone()));
            world.borrow_mut().fault = Some((which, happens));
            let first = boot(&world, &profile);
            world.borrow_mut().reboot();
            let has_journal = world.borrow().esp.contains_key("restage/01234567.JNL");
            match first {
                // An error of the run is one before the commit; the caller sets the request aside.
                Err(_) | Ok(Applied::Refused(_)) => {
                    assert!(!has_journal, "{}", case());
                    assert!(world.borrow().medium == start.medium, "{}", case());
                    assert_eq!(world.borrow().tpm_seed, 1, "{}", case());
                    untouched += 1;
                    continue;
                }
                Ok(Applied::Unfinished(error)) => {
                    assert_eq!(error.next(), Next::RetryNextBoot, "{}: {error:?}", case());
                }
                Ok(Applied::Done { .. }) => {}
                Ok(other) => panic!("{}: {other:?}", case()),
            }
            finish(&world, &profile);
            assert!(world.borrow().medium == wanted, "{}", case());
            assert_ne!(world.borrow().tpm_seed, 1, "{}", case());
            assert_eq!(report(&world).outcome, Outcome::Done, "{}", case());
            finished += 1;
        }
    }
    assert!(untouched >= 4 && finished > effects, "{untouched} untouched, {finished} finished");
}

#[test]
fn a_second_run_has_no_effect() {
    let (world, profile) = staged();
    boot(&world, &profile).unwrap();
    world.borrow_mut().effects = 0;
    assert!(matches!(boot(&world, &profile).unwrap(), Applied::Nothing));
    assert_eq!(world.borrow().effects, 0);
}

#[test]
fn an_esp_from_before_does_nothing_to_the_new_system() {
    let (world, profile) = staged();
    let old = world.borrow().esp.clone();
    boot(&world, &profile).unwrap();
    world.borrow_mut().esp = old;
    world.borrow_mut().reboot();
    let (disk, _, seed) = end(&world);
    assert!(matches!(boot(&world, &profile).unwrap(), Applied::Refused(_)));
    assert!(!world.borrow().is_writable, "the boot goes on with this disk");
    assert!(end(&world).0 == disk && end(&world).2 == seed);
    assert_eq!(report(&world).outcome, Outcome::Refused);
}

#[test]
fn three_failures_hold_and_the_next_power_cycle_tries_once_more() {
    let (world, profile) = staged();
    // The power supply "fails" in the wipe: the run sees an error and lives on to record it, so
    // nothing is recorded as a failure unless the ESP still works.
    let stuck = |world: &Shared| {
        let mut machine = machine(world);
        machine.disk = Box::new(ReadOnlyDisk(SimDisk(world.clone())));
        match apply(&mut machine, &profile).unwrap() {
            Applied::Unfinished(error) => error.next(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(stuck(&world), Next::RetryNextBoot);
    assert_eq!(stuck(&world), Next::RetryNextBoot);
    assert_eq!(stuck(&world), Next::HoldForOperator);
    assert_eq!(stuck(&world), Next::HoldForOperator);
    assert!(matches!(boot(&world, &profile).unwrap(), Applied::Done { .. }));
    let report = report(&world);
    assert_eq!((report.runs, report.failures.len()), (5, 4));
    assert!(report.failures[0].contains("cannot write the seeds"), "{:?}", report.failures);
}

/// A disk that has gone read-only, as worn-out flash does.
struct ReadOnlyDisk(SimDisk);

impl Disk for ReadOnlyDisk {
    fn name(&self) -> &'static str {
        "worn"
    }
    fn size_bytes(&self) -> u64 {
        self.0.size_bytes()
    }
    fn sector_bytes(&self) -> u64 {
        self.0.sector_bytes()
    }
    fn make_writable(&mut self) -> io::Result<()> {
        Ok(())
    }
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, buffer)
    }
    fn write(&mut self, _offset: u64, _bytes: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
    fn forget_cache(&mut self) -> io::Result<()> {
        Ok(())
    }
    fn discard(&mut self, _offset: u64, _bytes: u64) -> io::Result<bool> {
        Ok(false)
    }
    fn partition_in_use(&self, _number: u32) -> io::Result<bool> {
        Ok(false)
    }
    fn drop_partition(&mut self, _number: u32) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_journal_for_something_else_holds_and_touches_nothing() {
    let (world, profile) = staged();
    world.borrow_mut().cut_before = Some(30); // in the midst of the steps
    let _ = boot(&world, &profile);
    world.borrow_mut().reboot();
    assert!(world.borrow().esp.contains_key("restage/01234567.JNL"));
    // Root was made anew by somebody: another unique GUID in slot 5 of both tables.
    let mut before = world.borrow_mut();
    for chunk in [0, before.disk.len() - 1] {
        let bytes = Arc::make_mut(&mut before.disk[chunk]);
        let table = if chunk == 0 { 1024 } else { CHUNK - 33 * 512 };
        bytes[table + 4 * 128 + 16] ^= 1;
        let crc = crc(&bytes[table..table + 128 * 128]);
        let header = if chunk == 0 { 512 } else { CHUNK - 512 };
        bytes[header + 88..header + 92].copy_from_slice(&crc.to_le_bytes());
        bytes[header + 16..header + 20].fill(0);
        let crc = crc_of_header(bytes, header);
        bytes[header + 16..header + 20].copy_from_slice(&crc.to_le_bytes());
    }
    before.medium = before.disk.clone();
    let copy = before.clone();
    drop(before);
    match boot(&world, &profile).unwrap() {
        Applied::Unfinished(error) => {
            assert_eq!(error.next(), Next::HoldForOperator);
            assert!(error.chain().contains("is another one now"), "{}", error.chain());
        }
        other => panic!("{other:?}"),
    }
    assert!(world.borrow().disk == copy.disk && world.borrow().esp == copy.esp);
}

fn crc(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
        }
    }
    !crc
}

fn crc_of_header(bytes: &[u8], at: usize) -> u32 {
    crc(&bytes[at..at + 92])
}
