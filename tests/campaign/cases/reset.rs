//! A factory reset: staged, carried out, cancelled, refused.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::sync::Arc;

use restage::apply::journal::{Committed, Journal, reports};
use restage::apply::probe::{self, Scope};
use restage::apply::reset::{Applied, apply};
use restage::error::Next;
use restage::plan::facts::HostFacts;
use restage::plan::reset::Ask;
use restage::platform::directory::Dir;
use restage::platform::esp::EspDirectory;
use restage::platform::{Machine, Store, TpmDoor};
use restage::profile::Profile;
use restage::report::Outcome;
use restage::request::{Staged, stage};
use uuid::Uuid;

use crate::explore::{Case, Cut, had_fault, has_returned};
use crate::model::disk::{ModelDisk, Sectors};
use crate::model::files::{self, Files, Flavor};
use crate::model::tpm::ModelTpm;
use crate::model::volume::{DATA_OFFSET, Slots, start_of_volume};
use crate::model::{Device, Shared, World};

const ID: &str = "0123456789abcdef0123456789abcdef";
const STEM: &str = "01234567";
const NOW: u64 = 1000;
/// What was on the disk before, and must not be read afterwards.
const SECRET: u8 = 0x5e;
/// Boots until a reset must be over.
const MAX_BOOTS: usize = 6;

/// A partition: label, type, sectors.
const LINUX: &str = "0fc63daf-8483-4772-8e79-3d69d8477de4";
const PARTITIONS: [(&str, &str, u64); 6] = [
    ("esp", "c12a7328-f81f-11d2-ba4b-00a0c93ec93b", 16),
    ("seed-data", LINUX, 64),
    ("usr", "8484680c-9521-48c6-9c11-b0720656f69e", 16),
    ("swap", "0657fd6d-a4ab-43c4-84e5-0933c84b4f4f", 96),
    ("root-x86-64", "4f68bce3-e8cd-4db1-96e7-fbcaf984b709", 96),
    ("local-data", LINUX, 24),
];
const SEED: u32 = 2;
const WIPED: [u32; 3] = [4, 5, 6];

/// The machines that all cases begin with, and what they are compared with.
struct Lab {
    profile: Profile,
    /// Nothing is staged.
    clean: World,
    /// A reset is staged.
    staged: World,
    /// Where partitions lie: offset and length in bytes.
    places: BTreeMap<u32, (u64, u64)>,
    /// The disk after a reset.
    reset_disk: Sectors,
}

/// How the disk is before.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tables {
    Good,
    BadPrimary,
    BadBackup,
}

impl Lab {
    fn new(tables: Tables) -> Self {
        let profile = Profile::incusos().unwrap();
        let (disk, places) = disk(tables);
        let mut clean =
            World::new(disk, Files::new(Flavor::Fat), Files::new(Flavor::Ext4), [Slots::BEFORE; 2]);
        let root = |world: &Shared| files::root(world, Device::Esp);
        let world = clean.share();
        for (path, bytes) in [("sb-disabled", ""), ("EFI", "a boot loader")] {
            let mut file = root(&world).new_file(path.as_ref()).unwrap();
            std::io::Write::write_all(&mut file, bytes.as_bytes()).unwrap();
        }
        clean = world.borrow().settled();
        let world = clean.share();
        stage(&world, &profile).unwrap();
        let staged = world.borrow().settled();
        let mut lab = Self { profile, reset_disk: clean.disk.clone(), clean, staged, places };
        let end = lab.recover(&lab.staged.share()).unwrap();
        lab.reset_disk = end.disk.clone();
        lab.assert_reset(&end);
        lab
    }

    /// Boots until there is nothing left to do.
    fn recover(&self, world: &Shared) -> Result<World, String> {
        let mut world = world.clone();
        for _ in 0..MAX_BOOTS {
            match boot(&world, &self.profile)? {
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
        boot(&world, &self.profile)?;
        match trace.lock().unwrap().len() {
            0 => Ok(end),
            changes => Err(format!("a second run makes {changes} changes")),
        }
    }

    /// What the model itself must show of a reset, so that the comparison with it means something.
    fn assert_reset(&self, end: &World) {
        assert_ne!(end.tpm_seed, self.clean.tpm_seed);
        for number in WIPED {
            let (offset, length) = self.places[&number];
            let secret = end.disk.part(offset, length.min(DATA_OFFSET));
            assert!(secret.iter().all(|byte| *byte == 0), "partition {number} is not wiped");
        }
        let world = end.share();
        let disk = probe::disk(&ModelDisk::new(&world), Scope::Boot).unwrap();
        assert_eq!(disk.partitions.len(), PARTITIONS.len() - WIPED.len());
        assert_eq!(end.esp.all().get("sb-disabled"), None);
        let (offset, length) = self.places[&SEED];
        let seed = end.disk.part(offset, length);
        assert!(seed.windows(7).any(|bytes| bytes == b"{\"a\":1}"));
        assert!(!seed.contains(&SECRET));
    }

    /// What must be so at any instant.
    fn check_image(&self, image: &World) -> Result<(), String> {
        let changed = image.disk.differences(&self.clean.disk);
        let in_place = |offset: u64, number: u32| {
            let (start, length) = self.places[&number];
            (start..start + length).contains(&offset)
        };
        let (first, last) = (self.places[&1].0, self.places[&6].0 + self.places[&6].1);
        for offset in &changed {
            let is_table = *offset < first || *offset >= last;
            let is_ours = is_table
                || in_place(*offset, SEED)
                || WIPED.iter().any(|number| in_place(*offset, *number));
            if !is_ours {
                return Err(format!("byte {offset} is outside of what may be written"));
            }
        }
        let world = image.share();
        let esp = EspDirectory::below(files::root(&world, Device::Esp), "restage")
            .map_err(|error| format!("cannot open restage's directory: {error}"))?;
        let names = esp.names().map_err(|error| error.to_string())?;
        let has = |extension: &str| names.contains(&format!("{STEM}.{extension}"));
        let is_touched = !changed.is_empty() || image.tpm_seed != self.clean.tpm_seed;
        let is_over = has("RPT");
        let journal: Option<Journal<Committed>> =
            has("JNL").then(|| Journal::load(&esp, STEM).ok()).flatten();
        if is_touched && !is_over && journal.is_none() {
            return Err("something is destroyed, and there is no journal".to_owned());
        }
        let disk = ModelDisk::new(&world);
        let facts = probe::disk(&disk, Scope::Boot).map_err(|error| error.chain())?;
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
                "tpm" => image.tpm_seed != self.clean.tpm_seed,
                "gpt" => facts.partitions.len() == PARTITIONS.len() - WIPED.len(),
                "esp" => !image.esp.all().contains_key("sb-disabled"),
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

    fn check_end(&self, end: &World, allowed: &[Outcome]) -> Result<(), String> {
        let world = end.share();
        let esp = EspDirectory::below(files::root(&world, Device::Esp), "restage")
            .map_err(|error| error.to_string())?;
        let names = esp.names().map_err(|error| error.to_string())?;
        let reports = reports(&esp).map_err(|error| error.chain())?;
        let outcome = match reports.as_slice() {
            [] => None,
            [report] => Some(report.outcome),
            several => return Err(format!("{} reports", several.len())),
        };
        let is_reset = end.tpm_seed != self.clean.tpm_seed;
        let untouched = end.disk.differences(&self.clean.disk).is_empty() && !is_reset;
        let reset = end.disk.differences(&self.reset_disk).is_empty() && is_reset;
        let others = |esp: &Files| {
            let mut all = esp.all();
            all.retain(|path, _| !path.starts_with("restage"));
            all
        };
        let mut wanted = others(&self.clean.esp);
        if reset {
            wanted.remove("sb-disabled");
        }
        if others(&end.esp) != wanted {
            return Err(format!("the ESP holds {:?}", others(&end.esp).keys()));
        }
        let stays = |name: &&String| {
            let extension = name.split_once('.').map(|(_, extension)| extension);
            !matches!(extension, Some("RPT" | "LOG" | "BAD"))
        };
        let left: Vec<_> = names.iter().filter(stays).collect();
        if !left.is_empty() {
            return Err(format!("left on the ESP: {left:?}"));
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
            None if allowed.len() > 1 && !reset => Ok(()),
            Some(outcome) if allowed.contains(&outcome) => Ok(()),
            outcome => Err(format!("the outcome is {outcome:?}, and not one of {allowed:?}")),
        }
    }
}

fn disk(tables: Tables) -> (Sectors, BTreeMap<u32, (u64, u64)>) {
    let sectors: u64 = 34 + 33 + PARTITIONS.iter().map(|(_, _, sectors)| sectors + 8).sum::<u64>();
    let length = (sectors * 512).next_multiple_of(4096);
    let mut bytes = vec![SECRET; usize::try_from(length).unwrap()];
    let mut table = gpt::GptConfig::new()
        .writable(true)
        .logical_block_size(gpt::disk::LogicalBlockSize::Lb512)
        .create_from_device(Cursor::new(&mut bytes), Some(Uuid::from_u128(7)))
        .unwrap();
    for (label, kind, sectors) in PARTITIONS {
        let kind = Uuid::parse_str(kind).unwrap().into();
        table.add_partition(label, sectors * 512, kind, 0, Some(8)).unwrap();
    }
    // The crate gives partitions random GUIDs; a run has to be the same every time.
    let mut partitions = table.partitions().clone();
    for (number, partition) in &mut partitions {
        partition.part_guid = Uuid::from_u128(u128::from(*number) + 100);
    }
    table.update_partitions(partitions.clone()).unwrap();
    table.write().unwrap();
    let place =
        |p: &gpt::partition::Partition| (p.first_lba * 512, (p.last_lba - p.first_lba + 1) * 512);
    let places: BTreeMap<u32, (u64, u64)> =
        partitions.iter().filter(|(_, p)| p.is_used()).map(|(n, p)| (*n, place(p))).collect();
    let mut put = |number: u32, content: &[u8]| {
        let at = usize::try_from(places[&number].0).unwrap();
        bytes[at..at + content.len()].copy_from_slice(content);
    };
    put(SEED, &[0; 1024]);
    put(4, &start_of_volume(1));
    put(5, &start_of_volume(0));
    match tables {
        Tables::Good => {}
        Tables::BadPrimary => bytes[512..1024].fill(0xa5),
        Tables::BadBackup => {
            let at = bytes.len() - 512;
            bytes[at..].fill(0xa5);
        }
    }
    (Sectors::new(&bytes, 512), places)
}

fn esp(root: Dir) -> Result<EspDirectory, String> {
    EspDirectory::below(root, "restage").map_err(|error| error.to_string())
}

fn machine(world: &Shared) -> Result<Machine, String> {
    Ok(Machine {
        disk: Box::new(ModelDisk::new(world)),
        esp: Box::new(esp(files::root(world, Device::Esp))?),
        tpm: TpmDoor::Open(Box::new(ModelTpm(world.clone()))),
        ppi: None,
        host: HostFacts { now: NOW, ..HostFacts::default() },
        other_tpm_volumes: Vec::new(),
        loaded_credentials: Vec::new(),
    })
}

fn boot(world: &Shared, profile: &Profile) -> Result<Applied, String> {
    apply(&mut machine(world)?, profile).map_err(|error| error.chain())
}

fn stage(world: &Shared, profile: &Profile) -> Result<(), String> {
    let mut machine = machine(world)?;
    let json = serde_json::value::RawValue::from_string("{\"a\":1}".to_owned()).unwrap();
    let ask = Ask { seeds: [("incus".to_owned(), json)].into(), ..Ask::default() };
    let prepared = stage::prepare(&mut machine, profile, ask)
        .map_err(|error| error.chain())?
        .map_err(|refused| refused.reason)?;
    let by = Staged { command: "t".into(), user: "t".into(), restage: "0".into(), at: NOW };
    stage::stage(&mut machine, profile, &prepared, by, ID).map_err(|error| error.chain())
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
    lab: Arc<Lab>,
    start: World,
    work: Work,
    /// How it may end when nothing but the power fails; the first is how it has to, once it returned.
    outcomes: Vec<Outcome>,
}

impl Case for ResetCase {
    fn name(&self) -> &'static str {
        self.name
    }
    fn start(&self) -> World {
        self.start.clone()
    }
    fn run(&self, world: &Shared) {
        // The OS mounts its ESP with the kernel's defaults.
        world.borrow_mut().esp.errors_remount_ro = self.work != Work::Boot;
        // Nobody is there to hear what it says.
        match self.work {
            Work::Stage => drop(stage(world, &self.lab.profile)),
            Work::Cancel => {
                if let Ok(mut machine) = machine(world) {
                    drop(stage::cancel(machine.esp.as_mut(), NOW));
                }
            }
            Work::Boot => drop(boot(world, &self.lab.profile)),
        }
    }
    fn check_image(&self, image: &World) -> Result<(), String> {
        self.lab.check_image(image)
    }
    fn recover(&self, world: &Shared) -> Result<World, String> {
        self.lab.recover(world)
    }
    fn check_end(&self, end: &World, path: &[Cut]) -> Result<(), String> {
        if has_returned(path) {
            return self.lab.check_end(end, &self.outcomes[..1]);
        }
        let mut allowed = self.outcomes.clone();
        if had_fault(path) {
            allowed.push(Outcome::Refused);
        }
        self.lab.check_end(end, &allowed)
    }
}

/// All cases of a reset.
pub fn all() -> Vec<Box<dyn Case>> {
    let lab = Arc::new(Lab::new(Tables::Good));
    let case = |name, lab: &Arc<Lab>, start: &World, work, outcomes: &[Outcome]| {
        let (lab, start, outcomes) = (lab.clone(), start.clone(), outcomes.to_vec());
        Box::new(ResetCase { name, lab, start, work, outcomes }) as Box<dyn Case>
    };
    let (done, refused, cancelled) = (Outcome::Done, Outcome::Refused, Outcome::Cancelled);
    // A request that was cut while it was written is damaged, and refused.
    let mut cases = vec![
        case("stage", &lab, &lab.clean, Work::Stage, &[done, refused]),
        case("cancel", &lab, &lab.staged, Work::Cancel, &[cancelled, done, refused]),
        case("reset", &lab, &lab.staged, Work::Boot, &[done]),
    ];
    for (name, tables) in
        [("reset-bad-primary", Tables::BadPrimary), ("reset-bad-backup", Tables::BadBackup)]
    {
        let lab = Arc::new(Lab::new(tables));
        cases.push(case(name, &lab, &lab.staged, Work::Boot, &[done]));
    }
    cases
}
