//! A factory reset as a whole: staged and carried out on a machine whose ESP and disk are changed
//! meanwhile, with power cuts and faults.

use std::sync::OnceLock;

use restage::apply::journal::reports;
use restage::apply::probe::{self, Scope};
use restage::apply::reset::Applied;
use restage::error::{Error, Next};
use restage::format::envelope::{self, REQUEST};
use restage::plan::facts::{DiskFacts, Facts, PartitionFacts};
use restage::platform::directory::{self, Dir};
use restage::report::Outcome;
use restage::request::{Request, find};
use restage_campaign::cases::reset::USUAL;
use restage_campaign::cases::reset::lab::{Lab, STEM};
use restage_campaign::model::disk::ModelDisk;
use restage_campaign::model::files::{self, Found};
use restage_campaign::model::{Device, Fault, World};

use super::change::{self, Changed};
use super::seed::incusos;
use crate::bytes::{Bytes, told};
use crate::{memory, seal};

/// So much is done to a machine before it is left alone.
const MAX_EVENTS: usize = 6;
const MAX_BOOTS: usize = 8;

fn lab() -> &'static Lab {
    static LAB: OnceLock<Lab> = OnceLock::new();
    memory::once(&LAB, || Lab::new(USUAL))
}

/// Nothing staged, a reset staged, and the machine after each change of one.
fn starts() -> &'static Vec<World> {
    static STARTS: OnceLock<Vec<World>> = OnceLock::new();
    memory::once(&STARTS, || {
        let world = lab().staged.share();
        let trace = world.borrow_mut().trace();
        lab().apply(&world).unwrap();
        let trace = trace.lock().unwrap();
        let within = trace.iter().map(|boundary| boundary.world.settled());
        [lab().clean.clone(), lab().staged.clone()].into_iter().chain(within).collect()
    })
}

/// The facts of that machine.
pub fn facts() -> Facts {
    let mut machine = lab().machine(&lab().clean.share()).unwrap();
    probe::facts(&mut machine, incusos(), Scope::Boot).unwrap()
}

/// A file of that reset, as it first was.
pub fn file(extension: &str) -> Vec<u8> {
    let path = format!("restage/{STEM}.{extension}");
    let end = lab().recover(&lab().staged.share()).unwrap();
    let there = |world: &World| match world.esp.all().remove(&path) {
        // It may be there before there is something in it.
        Some(Found::File(bytes)) => bytes.ends_with(b"\n").then_some(bytes),
        _ => None,
    };
    starts().iter().chain([&end]).find_map(there).expect("it is there at some time")
}

/// Its request.
pub fn request() -> Request {
    static ONE: OnceLock<Request> = OnceLock::new();
    memory::once(&ONE, || envelope::parse(&file("REQ"), REQUEST).unwrap()).clone()
}

/// A machine and what is known of it.
struct Run {
    world: World,
    /// Somebody else has written files of restage's, or on the disk: what is recorded need not be so.
    is_forged: bool,
}

pub fn machine(bytes: &[u8]) {
    let mut bytes = Bytes(bytes);
    let start = bytes.below(starts().len());
    let mut run = Run { world: starts()[start].clone(), is_forged: false };
    for _ in 0..MAX_EVENTS {
        if bytes.0.is_empty() {
            break;
        }
        match bytes.byte() % 9 {
            0..=2 => run.change_file(&mut bytes),
            3 => run.change_disk(&mut bytes),
            4 => drop(run.boot(None)),
            5 => run.stage(),
            6 => run.cancel(),
            7 => run.cut(&mut bytes),
            _ => {
                let fault = Fault::ALL[bytes.below(Fault::ALL.len())];
                drop(run.boot(Some((bytes.below(400), fault))));
            }
        }
    }
    for _ in 0..MAX_BOOTS {
        match run.boot(None) {
            Ok(Applied::Nothing) => return run.at_rest(),
            // A person has to look.
            Ok(Applied::Unfinished(error)) if error.next() == Next::HoldForOperator => return,
            Err(_) => return,
            Ok(_) => {}
        }
    }
    panic!("not over after {MAX_BOOTS} boots");
}

impl Run {
    fn change_file(&mut self, bytes: &mut Bytes<'_>) {
        let world = self.world.share();
        let root = files::root(&world, Device::Esp);
        let Ok(Some(own)) = directory::open_at(root.as_ref(), "restage") else { return };
        match change::file(own.as_ref(), bytes) {
            Changed::Nothing => {}
            Changed::File(_) => self.is_forged = true,
        }
        self.world = world.borrow().settled();
    }

    fn change_disk(&mut self, bytes: &mut Bytes<'_>) {
        let disk = &mut self.world.disk;
        let end = disk.size_bytes();
        let start = |number: usize| facts_once().disk.partitions[number].entry.first_lba * 512;
        let places = [
            512,
            1024,
            end - 512,
            end - 33 * 512,
            start(1),
            start(3),
            start(4),
            start(5),
            start(2),
        ];
        let place = places[bytes.below(places.len())];
        let at = place + bytes.below(0x2000) as u64 % (end - place);
        let content = bytes.run();
        let length = content.len().min(usize::try_from(end - at).unwrap());
        disk.put(at, &content[..length]);
        // What is recorded as done may be undone by that.
        self.is_forged = true;
        if bytes.byte() & 1 != 0 {
            for (header, array) in [(512, 1024), (end - 512, end - 33 * 512)] {
                let mut bytes = disk.part(header, 512);
                seal::gpt(&mut bytes, &disk.part(array, 128 * 128));
                disk.put(header, &bytes);
            }
            for volume in [start(3), start(4)] {
                let mut bytes = disk.part(volume, 0x4000);
                seal::luks(&mut bytes);
                disk.put(volume, &bytes);
            }
        }
    }

    fn stage(&mut self) {
        let world = self.world.share();
        match lab().stage(&world) {
            Ok(Ok(())) => {}
            Ok(Err(refused)) => told(&refused.reason),
            Err(error) => told(&error.chain()),
        }
        let after = world.borrow().settled();
        assert!(self.is_untouched(&after), "staging has touched more than its directory");
        self.world = after;
    }

    fn cancel(&mut self) {
        let world = self.world.share();
        if let Err(error) = lab().cancel(&world) {
            told(&error.chain());
        }
        let after = world.borrow().settled();
        assert!(self.is_untouched(&after), "cancelling has touched more than its directory");
        self.world = after;
    }

    /// The power goes at some change of a boot.
    fn cut(&mut self, bytes: &mut Bytes<'_>) {
        let world = self.world.share();
        let trace = world.borrow_mut().trace();
        let _ = lab().apply(&world);
        let trace = trace.lock().unwrap();
        let Some(boundary) = trace.get(bytes.below(0x1_0000) % trace.len().max(1)) else { return };
        let mut images = boundary.world.images();
        let image = images.swap_remove(bytes.below(0x1_0000) % images.len());
        self.keeps_others(&image);
        self.world = image;
    }

    fn boot(&mut self, fault: Option<(usize, Fault)>) -> Result<Applied, Error> {
        let world = self.world.share();
        world.borrow_mut().fault = fault;
        let applied = lab().apply(&world);
        let after = world.borrow().settled();
        self.keeps_others(&after);
        let is_untouched = self.is_untouched(&after);
        match &applied {
            Ok(Applied::Nothing) => assert!(is_untouched, "nothing to do, and something is done"),
            Ok(Applied::Refused(reasons)) => {
                for reason in reasons {
                    told(reason);
                }
                assert!(is_untouched, "refused, and something is changed: {reasons:?}");
                if fault.is_none() {
                    assert!(look(&after).staged.is_empty(), "refused, and still staged");
                }
            }
            Ok(Applied::Done { .. }) => self.assert_done(&after),
            Ok(Applied::RebootFirst) => panic!("the firmware is asked"),
            Ok(Applied::Unfinished(error)) => {
                told(&error.chain());
                assert_ne!(error.next(), Next::ContinueBoot, "{}", error.chain());
            }
            Err(error) => {
                told(&error.chain());
                assert!(is_untouched, "failed before the commit, and something is changed");
            }
        }
        let has = |extension: &str| names(&after).iter().any(|name| name.ends_with(extension));
        assert!(is_untouched || has(".JNL") || has(".RPT"), "done, and nothing says what");
        self.world = after;
        applied
    }

    /// The disk, the TPM and the rest of the ESP are as before.
    fn is_untouched(&self, after: &World) -> bool {
        let others = |world: &World| {
            let mut all = world.esp.all();
            all.retain(|path, _| !path.starts_with("restage"));
            all
        };
        after.disk.differences(&self.world.disk).is_empty()
            && after.tpm_seed == self.world.tpm_seed
            && others(after) == others(&self.world)
    }

    /// No partition loses a byte that the profile does not list.
    fn keeps_others(&self, after: &World) {
        let Some(before) = disk(&self.world) else {
            assert!(after.disk.differences(&self.world.disk).is_empty(), "no table, and a change");
            return;
        };
        for partition in before.partitions.iter().filter(|partition| !is_ours(partition)) {
            let entry = &partition.entry;
            let (start, end) = (entry.first_lba * 512, (entry.last_lba + 1) * 512);
            let lost = after.disk.differences(&self.world.disk).into_iter();
            let lost: Vec<u64> = lost.filter(|at| (start..end).contains(at)).collect();
            assert!(lost.is_empty(), "`{}` is written at {lost:?}", entry.label);
        }
    }

    fn assert_done(&self, after: &World) {
        let world = after.share();
        let machine = lab().machine(&world).unwrap();
        let reports = reports(machine.esp.as_ref()).unwrap();
        assert!(reports.iter().any(|report| report.outcome == Outcome::Done), "no report");
        let now = disk(after).expect("there is a table");
        if self.is_forged {
            return;
        }
        let is_wiped = |p: &PartitionFacts| incusos().wipe.iter().any(|w| is_of(p, w));
        assert!(!now.partitions.iter().any(is_wiped), "done, and a partition is there");
        let before = disk(&self.world).expect("there was a table");
        for gone in before.partitions.iter().filter(|partition| is_wiped(partition)) {
            let start =
                after.disk.part(gone.entry.first_lba * 512, 0x8000.min(after.disk.size_bytes()));
            let length = (gone.entry.last_lba - gone.entry.first_lba + 1) * 512;
            let start = &start[..start.len().min(usize::try_from(length).unwrap())];
            assert!(start.iter().all(|byte| *byte == 0), "`{}` can be read", gone.entry.label);
        }
    }

    /// There is nothing to do: another boot changes nothing.
    fn at_rest(&self) {
        let world = self.world.share();
        let trace = world.borrow_mut().trace();
        assert!(matches!(lab().apply(&world), Ok(Applied::Nothing)));
        assert_eq!(trace.lock().unwrap().len(), 0, "a boot with nothing to do changes something");
    }
}

fn facts_once() -> &'static Facts {
    super::files::facts()
}

fn is_of(found: &PartitionFacts, wanted: &restage::profile::Partition) -> bool {
    found.entry.type_guid == wanted.type_guid && found.entry.label == wanted.label
}

fn is_ours(partition: &PartitionFacts) -> bool {
    let profile = incusos();
    let seed = profile.seed.iter().map(|seed| &seed.partition);
    profile.wipe.iter().chain(seed).any(|ours| is_of(partition, ours))
}

fn disk(world: &World) -> Option<DiskFacts> {
    probe::disk(&ModelDisk::new(&world.share()), Scope::Boot).ok()
}

fn own(world: &World) -> Option<Dir> {
    let root = files::root(&world.share(), Device::Esp);
    directory::open_at(root.as_ref(), "restage").ok().flatten()
}

fn names(world: &World) -> Vec<String> {
    let names = own(world).map(|own| own.names().unwrap()).unwrap_or_default();
    names.into_iter().map(|name| name.to_string_lossy().into_owned()).collect()
}

fn look(world: &World) -> find::Found {
    find::sort(&names(world))
}

pub fn seeds() -> Vec<Vec<u8>> {
    let count = starts().len();
    let at = |number: usize| u16::try_from(number).unwrap().to_le_bytes().to_vec();
    let start = |number: usize| if count > 256 { at(number) } else { at(number)[..1].to_vec() };
    let mut all = vec![[start(0), vec![5, 4]].concat(), [start(1), vec![6, 5, 4]].concat()];
    for number in (1..count).step_by(7) {
        // The first file, one of its leaves, and a cut.
        all.push([start(number), vec![0, 0, 3, 9, 1, 4]].concat());
        all.push([start(number), vec![7, 9, 0, 3, 0, 4]].concat());
        all.push([start(number), vec![8, 1, 40, 0, 4]].concat());
        all.push([start(number), vec![3, 5, 0, 0, 2, 0, 0, 0, 4]].concat());
    }
    all
}
