//! The machines that every run begins with, what is done to them, how it goes on after an interruption,
//! and what must come of it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use restage::apply::{journal::Committed, table};
use restage::format::envelope::{self, JOURNAL};
use restage::format::gpt::Copy;
use restage::platform::disk::OpenDisk;
use restage::report::Outcome;
use tempfile::TempDir;

use crate::machine::{Kind, Machine, copy, said};
use crate::snapshot::{self, Snapshot, difference};
use crate::support::disk::Disk;
use crate::tree;

/// Boots until an operation must be over.
const MAX_BOOTS: usize = 8;
/// A pool that was made while the restored state was in place.
const WINDOW_KEY: &str = "zpool.window.key";
/// Without a TPM the request has to allow that.
const SEEDS: &str = r#"{"seeds":{"incus":{"apply_defaults":true}}}"#;
const SEEDS_NO_TPM: &str =
    r#"{"allow_tpm_reset_failure":true,"seeds":{"incus":{"apply_defaults":true}}}"#;

/// What is done, and interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// `factory-reset` or `restore`.
    Stage,
    /// `cancel`.
    Cancel,
    /// `initrd reset` or `initrd restore`, with a request staged.
    Apply,
    /// `confirm`, in the window.
    Confirm,
    /// `initrd restore`, when nobody has confirmed.
    RollBack,
}

/// What comes after an interruption.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// A boot.
    Boot,
    /// The same command once more, and then a boot.
    Again,
}

/// One kind of machine, and what its ends are.
pub struct Lab {
    pub kind: Kind,
    place: PathBuf,
    clean: TempDir,
    staged: TempDir,
    ends: Ends,
}

/// What an uninterrupted machine comes to.
#[derive(Default)]
struct Ends {
    /// Nothing was done.
    clean: Snapshot,
    done: Snapshot,
    rolled_back: Snapshot,
    /// The disk when nothing was done.
    disk: Snapshot,
    /// The state as it was, and as it is restored.
    states: Vec<Snapshot>,
}

impl Lab {
    /// Makes the machines below `place`, and goes once through everything without an interruption.
    pub fn new(kind: Kind, place: &std::path::Path) -> Self {
        let (clean, staged) = (TempDir::new_in(place).unwrap(), TempDir::new_in(place).unwrap());
        match kind {
            Kind::Image => copy(Disk::new().image().parent().unwrap(), clean.path()),
            Kind::Loop(bytes) => {
                copy(Disk::with_sectors(bytes).image().parent().unwrap(), clean.path());
            }
            Kind::Flat => crate::flat::make(clean.path()),
            Kind::Tree => tree::make(clean.path()),
        }
        let place = place.to_owned();
        let mut lab = Self { kind, place, clean, staged, ends: Ends::default() };
        let machine = lab.copy(&lab.clean);
        lab.ends.clean = snapshot::take(&machine);
        must_succeed(&machine, &lab.words(Work::Stage, &machine));
        copy(machine.path(), lab.staged.path());
        lab.ends.done = lab.end_of(Work::Apply);
        if machine.is_disk() {
            lab.ends.disk = snapshot::take_disk(&machine);
        } else {
            let window = lab.start(Work::Confirm);
            lab.ends.states = vec![snapshot::take_state(&machine), snapshot::take_state(&window)];
            assert!(lab.ends.states[0] != lab.ends.states[1], "the restore changes nothing");
            lab.ends.rolled_back = lab.end_of(Work::RollBack);
        }
        assert!(difference(&lab.ends.done, &lab.ends.clean).is_some(), "nothing was done");
        lab
    }

    fn copy(&self, master: &TempDir) -> Machine {
        Machine::copy(self.kind, master.path(), &self.place)
    }

    fn end_of(&self, work: Work) -> Snapshot {
        let machine = self.start(work);
        self.go_on(&machine, work).unwrap();
        let wanted = if work == Work::RollBack { Outcome::RolledBack } else { Outcome::Done };
        assert_eq!(snapshot::outcomes(&machine), [wanted]);
        snapshot::take(&machine)
    }

    fn boot(&self) -> [&'static str; 2] {
        ["initrd", if matches!(self.kind, Kind::Flat | Kind::Tree) { "restore" } else { "reset" }]
    }

    /// A machine right before this.
    pub fn start(&self, work: Work) -> Machine {
        let machine = self.copy(if work == Work::Stage { &self.clean } else { &self.staged });
        let boots = match work {
            Work::Stage | Work::Cancel | Work::Apply => 0,
            Work::Confirm => 1,
            Work::RollBack => 3,
        };
        for _ in 0..boots {
            must_succeed(&machine, &self.boot().map(str::to_owned));
        }
        if work == Work::RollBack && self.kind == Kind::Flat {
            let key = machine.path().join(snapshot::state(self.kind)).join(WINDOW_KEY);
            fs::write(&key, "a pool made in the window").unwrap();
            fs::set_permissions(key, fs::Permissions::from_mode(0o600)).unwrap();
        }
        machine
    }

    /// What the program is called with to do it.
    pub fn words(&self, work: Work, machine: &Machine) -> Vec<String> {
        let backup = machine.path().join("backup.tar.gz").display().to_string();
        let words: &[&str] = match (work, self.kind) {
            (Work::Stage, Kind::Image) => &["factory-reset", "--force", "-d", SEEDS],
            (Work::Stage, Kind::Loop(_)) => &["factory-reset", "--force", "-d", SEEDS_NO_TPM],
            (Work::Stage, Kind::Flat) => {
                &["restore", &backup, "--force", "--skip", "encryption-recovery-keys"]
            }
            (Work::Stage, Kind::Tree) => &["restore", &backup, "--force"],
            (Work::Cancel, _) => &["cancel"],
            (Work::Apply | Work::RollBack, _) => &self.boot(),
            (Work::Confirm, _) => &["confirm"],
        };
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    /// The ways on after an interruption.
    pub fn ways(work: Work) -> &'static [Way] {
        match work {
            Work::Stage | Work::Cancel | Work::Confirm => &[Way::Boot, Way::Again],
            Work::Apply | Work::RollBack => &[Way::Boot],
        }
    }

    /// Goes on until nothing is left to do.
    pub fn follow(&self, machine: &Machine, work: Work, way: Way) -> Result<(), String> {
        if way == Way::Boot {
            return self.go_on(machine, work);
        }
        // What was cut while it was staged is refused by the boot, and then there is room.
        for _ in 0..3 {
            let words = self.words(work, machine);
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let output = machine.run(&words);
            if !matches!(output.status.code(), Some(0 | 3)) {
                return Err(format!("once more: {}: {}", output.status, said(&output)));
            }
            self.go_on(machine, work)?;
            if work != Work::Stage || snapshot::outcomes(machine).contains(&Outcome::Done) {
                return Ok(());
            }
        }
        Err("staged three times, and never carried out".to_owned())
    }

    fn go_on(&self, machine: &Machine, work: Work) -> Result<(), String> {
        for _ in 0..MAX_BOOTS {
            let output = machine.run(&self.boot());
            let text = said(&output);
            if !matches!(output.status.code(), Some(0 | 3 | 4 | 5)) {
                return Err(format!("a boot: {}: {text}", output.status));
            }
            let is_over = ["nothing is staged", "no restore is staged"];
            let is_over = is_over.iter().any(|says| text.contains(says));
            let waits = text.contains("without confirmation") && work != Work::RollBack;
            // The OS asks at every start, and then takes a flag away that means nothing any more.
            if waits || (is_over && !machine.is_disk()) {
                let output = machine.run(&["confirm"]);
                if !matches!(output.status.code(), Some(0 | 4)) {
                    return Err(format!("confirm: {}: {}", output.status, said(&output)));
                }
            }
            if is_over {
                return Ok(());
            }
        }
        Err(format!("not over after {MAX_BOOTS} boots"))
    }

    /// What runs at every start, and has nothing to do now.
    pub fn idle(&self) -> Vec<Vec<&'static str>> {
        match self.kind {
            Kind::Image | Kind::Loop(_) => vec![self.boot().to_vec()],
            Kind::Flat | Kind::Tree => vec![self.boot().to_vec(), vec!["confirm"]],
        }
    }

    /// What must be so at any instant.
    pub fn check_cut(&self, machine: &Machine) -> Result<(), String> {
        if !machine.is_disk() {
            let mut state = snapshot::take_state(machine);
            state.remove(&format!("/{WINDOW_KEY}"));
            return if self.ends.states.contains(&state) {
                Ok(())
            } else {
                Err(format!("neither the old nor the new state: {:?}", state.keys()))
            };
        }
        let text = |error: restage::error::Error| error.chain();
        let disk = OpenDisk::open(&machine.disk()).map_err(|error| error.to_string())?;
        let tables = table::read(&disk).map_err(text)?;
        if [Copy::Primary, Copy::Backup].iter().all(|copy| tables.get(*copy).is_none()) {
            return Err("no copy of the partition table is valid".to_owned());
        }
        let is_committed = snapshot::own_files(machine).iter().any(|(kind, bytes)| {
            kind == "RPT" || (kind == "JNL" && envelope::parse::<Committed>(bytes, JOURNAL).is_ok())
        });
        if !is_committed && self.ends.disk != snapshot::take_disk(machine) {
            return Err("the disk is changed, and there is no journal".to_owned());
        }
        if !is_committed && machine.is_cleared() == Some(true) {
            return Err("the TPM is cleared, and there is no journal".to_owned());
        }
        Ok(())
    }

    /// What must be so in the end.
    pub fn check_end(
        &self,
        machine: &Machine,
        work: Work,
        way: Way,
        is_error: bool,
    ) -> Result<(), String> {
        let outcomes = snapshot::outcomes(machine);
        let files = snapshot::own_files(machine);
        if files.iter().filter(|(kind, _)| kind == "RPT").count() != outcomes.len() {
            return Err("a report stays that says nothing".to_owned());
        }
        let outcome = match outcomes.as_slice() {
            [] => None,
            [one] => Some(*one),
            // Refused, and then staged again.
            _ if way == Way::Again && outcomes.contains(&Outcome::Done) => Some(Outcome::Done),
            several => return Err(format!("{} reports", several.len())),
        };
        let (done, refused, back) = (Outcome::Done, Outcome::Refused, Outcome::RolledBack);
        let mut allowed = match (work, way) {
            (Work::Stage, Way::Boot) => vec![None, Some(refused), Some(done)],
            (Work::Stage, Way::Again) | (Work::Apply | Work::Confirm, _) => vec![Some(done)],
            (Work::Cancel, Way::Boot) => {
                vec![None, Some(refused), Some(done), Some(Outcome::Cancelled)]
            }
            // Cut while it wrote the report, only that one knew that it was to be cancelled.
            (Work::Cancel, Way::Again) => vec![None, Some(refused), Some(Outcome::Cancelled)],
            (Work::RollBack, _) => vec![Some(back)],
        };
        // What could not be read or written may have been the reason for a refusal; and a boot of a
        // restored state that cannot be counted is none.
        if is_error && work == Work::Apply {
            allowed.extend([Some(refused), Some(back)]);
        }
        if !allowed.contains(&outcome) {
            return Err(format!("the outcome is {outcome:?}, and not one of {allowed:?}"));
        }
        let mut wanted = match outcome {
            Some(Outcome::Done) => &self.ends.done,
            Some(Outcome::RolledBack) => &self.ends.rolled_back,
            None | Some(Outcome::Refused | Outcome::Cancelled) => &self.ends.clean,
        };
        let mut is = snapshot::take(machine);
        if outcome == Some(back) && work == Work::Apply {
            // As it was, and what the restore has kept aside stays.
            is.retain(|name, _| !name.contains("/superseded"));
            wanted = &self.ends.clean;
        }
        match difference(&is, wanted) {
            None => Ok(()),
            Some(how) => Err(format!("{outcome:?}, and not as it should be: {how}")),
        }
    }
}

fn must_succeed(machine: &Machine, words: &[String]) {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let output = machine.run(&words);
    assert_eq!(output.status.code(), Some(0), "{words:?}: {}", said(&output));
}
