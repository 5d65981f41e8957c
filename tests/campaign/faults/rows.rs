//! The table: a fault, an operation, what boot does next, and what is said.
//!
//! What is expected stands here as it has to be by the specification; the program is compared with it.

use std::sync::Arc;

use restage::error::Next::{self, ContinueBoot, HoldForOperator, RetryNextBoot};

use super::every::{Phase, calls_of, phases};
use super::{Seen, Wanted};
use crate::cases;
use crate::explore::{BROKEN, Case};
use crate::model::call::{Broken, Place};
use crate::model::{Boundary, Call, Device, Fault, NOW, World};
use crate::steps;
use crate::told::State::{self, Done, Failed, Refused, Unfinished, Window};

/// What is not as usual.
#[derive(Clone, Copy, Debug)]
enum What {
    /// Every change of this file system gives EROFS; before the operation, or after its commit.
    ReadOnly(Device, When),
    /// No sync of it succeeds.
    Unsynced(Device, When),
    /// No cluster of it is free.
    Full(Device, When),
    /// Tables of the disk.
    Tables(Damage, When),
    /// What the clock says at the staging, and in the operation.
    Clock(u64, u64, When),
}

/// Since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    Start,
    Committed,
    /// All steps are recorded as done, and there is no report.
    Recorded,
    /// The state that stays is in place, and what remains only tidies up.
    Decided,
}

/// What became of the partition table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Damage {
    Primary,
    Backup,
    Both,
    /// Both are valid, and say different things.
    Differ,
    /// Both are as they were before: a firmware has brought back what it knew.
    Returned,
}

/// The protective MBR, a header and its entries, where a sector has 512 bytes.
const LEAD_SECTORS: u64 = 34;
/// So long after the staging a request is surely old.
const LATER: u64 = NOW + 3600 * 24 * 365 * 50;

struct Row {
    name: &'static str,
    case: &'static str,
    what: What,
    /// Of each boot with the fault: how it ends, what the boot does next, the exit status.
    boots: &'static [(State, Next, u8)],
    /// How the first of them is explained.
    why: &'static str,
}

const RETRY: (State, Next, u8) = (Unfinished, RetryNextBoot, 4);
const HOLD: (State, Next, u8) = (Unfinished, HoldForOperator, 4);
const REFUSED: (State, Next, u8) = (Refused, ContinueBoot, 3);
const FAILED: (State, Next, u8) = (Failed, ContinueBoot, 1);
/// The profile asks for a reboot after a reset.
const DONE: (State, Next, u8) = (Done, RetryNextBoot, 5);
const OPEN: (State, Next, u8) = (Window, ContinueBoot, 0);
const LATER_BOOT: (State, Next, u8) = (State::Later, ContinueBoot, 0);

const ROWS: &[Row] = &[
    Row {
        name: "read-only ESP, staging",
        case: "stage",
        what: What::ReadOnly(Device::Esp, When::Start),
        boots: &[FAILED],
        why: "cannot stage the request on the ESP: cannot make the directory /esp/restage: \
              Read-only file system (os error 30)",
    },
    Row {
        // The refusal cannot be written down either; the boot goes on into the untouched system.
        name: "read-only ESP, before the commit",
        case: "reset",
        what: What::ReadOnly(Device::Esp, When::Start),
        boots: &[FAILED],
        why: "cannot remove 01234567.TAR: cannot remove /esp/restage/01234567.TAR: Read-only file \
              system (os error 30)",
    },
    Row {
        // A failure that cannot be counted holds at once.
        name: "read-only ESP, after the commit",
        case: "reset",
        what: What::ReadOnly(Device::Esp, When::Committed),
        boots: &[HOLD, HOLD],
        why: "cannot record progress: cannot open or make /esp/restage/01234567.R00: Read-only file \
              system (os error 30)",
    },
    Row {
        name: "full ESP, staging",
        case: "stage",
        what: What::Full(Device::Esp, When::Start),
        boots: &[FAILED],
        why: "cannot stage the request on the ESP: cannot make the directory /esp/restage: No space \
              left on device (os error 28)",
    },
    Row {
        name: "full ESP, before the commit",
        case: "reset",
        what: What::Full(Device::Esp, When::Start),
        boots: &[REFUSED],
        why: "cannot commit the operation: cannot make /esp/restage/01234567.TAR: No space left on \
              device (os error 28)",
    },
    Row {
        // The reserve is there for it.
        name: "full ESP, after the commit",
        case: "reset",
        what: What::Full(Device::Esp, When::Committed),
        boots: &[DONE],
        why: "",
    },
    Row {
        name: "corrupt primary table, staging",
        case: "stage",
        what: What::Tables(Damage::Primary, When::Start),
        boots: &[(Done, ContinueBoot, 0)],
        why: "",
    },
    Row {
        name: "corrupt backup table, staging",
        case: "stage",
        what: What::Tables(Damage::Backup, When::Start),
        boots: &[(Done, ContinueBoot, 0)],
        why: "",
    },
    Row {
        name: "corrupt primary table, before the commit",
        case: "reset",
        what: What::Tables(Damage::Primary, When::Start),
        boots: &[DONE],
        why: "",
    },
    Row {
        name: "corrupt backup table, before the commit",
        case: "reset",
        what: What::Tables(Damage::Backup, When::Start),
        boots: &[DONE],
        why: "",
    },
    Row {
        name: "corrupt primary table, after the commit",
        case: "reset",
        what: What::Tables(Damage::Primary, When::Committed),
        boots: &[DONE],
        why: "",
    },
    Row {
        name: "corrupt backup table, after the commit",
        case: "reset",
        what: What::Tables(Damage::Backup, When::Committed),
        boots: &[DONE],
        why: "",
    },
    Row {
        name: "both tables corrupt, staging",
        case: "stage",
        what: What::Tables(Damage::Both, When::Start),
        boots: &[FAILED],
        why: "the disk has no valid partition table: primary: ",
    },
    Row {
        name: "both tables corrupt, before the commit",
        case: "reset",
        what: What::Tables(Damage::Both, When::Start),
        boots: &[REFUSED],
        why: "the disk has no valid partition table: primary: ",
    },
    Row {
        name: "both tables corrupt, after the commit",
        case: "reset",
        what: What::Tables(Damage::Both, When::Committed),
        boots: &[RETRY, RETRY, HOLD, HOLD],
        why: "the disk has no valid partition table: primary: ",
    },
    Row {
        name: "both tables valid and different, staging",
        case: "stage",
        what: What::Tables(Damage::Differ, When::Start),
        boots: &[REFUSED],
        why: "the disk: both copies of the partition table are valid and differ; ",
    },
    Row {
        name: "both tables valid and different, before the commit",
        case: "reset",
        what: What::Tables(Damage::Differ, When::Start),
        boots: &[REFUSED],
        why: "the disk: both copies of the partition table are valid and differ; ",
    },
    Row {
        // The last step runs again, whatever is recorded.
        name: "both tables come back, after the last record",
        case: "reset",
        what: What::Tables(Damage::Returned, When::Recorded),
        boots: &[DONE],
        why: "",
    },
    Row {
        // A clock that runs behind is no reason.
        name: "a clock in 1970, reset",
        case: "reset",
        what: What::Clock(LATER, 0, When::Start),
        boots: &[DONE],
        why: "",
    },
    Row {
        name: "a clock in 1970 all the time, reset",
        case: "reset",
        what: What::Clock(0, 0, When::Start),
        boots: &[DONE],
        why: "",
    },
    Row {
        name: "a clock far ahead, reset",
        case: "reset",
        what: What::Clock(NOW, LATER, When::Start),
        boots: &[REFUSED],
        why: "field `staged.at`: the request is 438000 hours old, more than the 168 ",
    },
    Row {
        // The limit ends at the commit.
        name: "a clock far ahead, after the commit",
        case: "reset",
        what: What::Clock(NOW, LATER, When::Committed),
        boots: &[DONE],
        why: "",
    },
    Row {
        name: "a clock in 1970, restore",
        case: "restore",
        what: What::Clock(LATER, 0, When::Start),
        boots: &[OPEN],
        why: "",
    },
    Row {
        name: "a clock far ahead, restore",
        case: "restore",
        what: What::Clock(NOW, LATER, When::Start),
        boots: &[REFUSED],
        why: "field `staged.at`: the request is 1576800000 s old, and 604800 s is the limit",
    },
    Row {
        name: "read-only state, staging a restore",
        case: "restore-stage",
        what: What::ReadOnly(Device::State, When::Start),
        boots: &[FAILED],
        why: "cannot stage the backup: cannot make the directory /state/var/lib/restage: Read-only \
              file system (os error 30)",
    },
    Row {
        name: "full state, staging a restore",
        case: "restore-stage",
        what: What::Full(Device::State, When::Start),
        boots: &[FAILED],
        why: "cannot stage the backup: cannot make the directory /state/var/lib/restage: No space \
              left on device (os error 28)",
    },
    Row {
        name: "full state, before a restore's commit",
        case: "restore",
        what: What::Full(Device::State, When::Start),
        boots: &[FAILED],
        why: "cannot leave the report: cannot make /state/var/lib/restage/01234567.RPT: No space \
              left on device (os error 28)",
    },
    Row {
        name: "read-only ESP, cancelling",
        case: "cancel",
        what: What::ReadOnly(Device::Esp, When::Start),
        boots: &[FAILED],
        why: "cannot leave the report: cannot remove /esp/restage/01234567.RSV: Read-only file \
              system (os error 30)",
    },
    Row {
        name: "full ESP, cancelling",
        case: "cancel",
        what: What::Full(Device::Esp, When::Start),
        boots: &[(Done, ContinueBoot, 0)],
        why: "",
    },
    Row {
        name: "read-only ESP, staging a restore",
        case: "restore-stage",
        what: What::ReadOnly(Device::Esp, When::Start),
        boots: &[FAILED],
        why: "cannot stage the restore: cannot make the directory /esp/restage: Read-only file \
              system (os error 30)",
    },
    Row {
        name: "full ESP, staging a restore",
        case: "restore-stage",
        what: What::Full(Device::Esp, When::Start),
        boots: &[FAILED],
        why: "cannot stage the restore: cannot make the directory /esp/restage: No space left on \
              device (os error 28)",
    },
    Row {
        name: "read-only ESP, cancelling a restore",
        case: "restore-cancel",
        what: What::ReadOnly(Device::Esp, When::Start),
        boots: &[FAILED],
        why: "cannot remove a restore's flag from the ESP: cannot remove \
              /esp/restage/01234567.FLG: Read-only file system (os error 30)",
    },
    Row {
        name: "read-only state, cancelling a restore",
        case: "restore-cancel",
        what: What::ReadOnly(Device::State, When::Start),
        boots: &[FAILED],
        why: "cannot leave the report: cannot remove /state/var/lib/restage/01234567.RSV: \
              Read-only file system (os error 30)",
    },
    Row {
        name: "full state, cancelling a restore",
        case: "restore-cancel",
        what: What::Full(Device::State, When::Start),
        boots: &[(Done, ContinueBoot, 0)],
        why: "",
    },
    Row {
        // The flag has done its part.
        name: "read-only ESP, a restore",
        case: "restore",
        what: What::ReadOnly(Device::Esp, When::Start),
        boots: &[OPEN],
        why: "",
    },
    Row {
        name: "read-only state, after a restore's commit",
        case: "restore",
        what: What::ReadOnly(Device::State, When::Committed),
        boots: &[HOLD, HOLD],
        why: "the roll-back cannot begin (it could not be applied: cannot record progress: \
              cannot open or make /state/var/lib/restage/01234567.R00: Read-only file system (os \
              error 30)): cannot record progress: cannot make \
              /state/var/lib/restage/01234567.B00: Read-only file system (os error 30)",
    },
    Row {
        name: "full state, after a restore's commit",
        case: "restore",
        what: What::Full(Device::State, When::Committed),
        boots: &[OPEN],
        why: "",
    },
    Row {
        name: "read-only state, confirming",
        case: "confirm",
        what: What::ReadOnly(Device::State, When::Start),
        boots: &[FAILED],
        why: "cannot record progress: cannot open or make /state/var/lib/restage/01234567.C00: \
              Read-only file system (os error 30)",
    },
    Row {
        name: "full state, confirming",
        case: "confirm",
        what: What::Full(Device::State, When::Start),
        boots: &[(Done, ContinueBoot, 0)],
        why: "",
    },
    Row {
        // It is confirmed, and its flag is taken away by the next boot.
        name: "read-only ESP, confirming",
        case: "confirm",
        what: What::ReadOnly(Device::Esp, When::Start),
        boots: &[FAILED],
        why: "cannot remove a restore's flag from the ESP: cannot remove \
              /esp/restage/01234567.FLG: Read-only file system (os error 30)",
    },
    Row {
        name: "read-only state, a roll-back",
        case: "roll-back",
        what: What::ReadOnly(Device::State, When::Start),
        boots: &[HOLD, HOLD],
        why: "the roll-back cannot begin (it could not be applied: cannot record progress: \
              cannot open or make /state/var/lib/restage/01234567.R03: Read-only file system (os \
              error 30)): cannot record progress: cannot make \
              /state/var/lib/restage/01234567.B00: Read-only file system (os error 30)",
    },
    Row {
        name: "full state, a roll-back",
        case: "roll-back",
        what: What::Full(Device::State, When::Start),
        boots: &[(State::RolledBack, ContinueBoot, 0)],
        why: "",
    },
    Row {
        // Nothing could be counted.
        name: "state that cannot be synced, before a roll-back",
        case: "roll-back",
        what: What::Unsynced(Device::State, When::Start),
        boots: &[HOLD, HOLD],
        why: "cannot make durable what lies there: cannot sync the file system of \
              /state/var/lib/restage: Input/output error (os error 5)",
    },
    Row {
        // The old state is in place, and stays: nothing is there to wait for.
        name: "state that cannot be synced, after a roll-back's exchange",
        case: "roll-back",
        what: What::Unsynced(Device::State, When::Decided),
        boots: &[LATER_BOOT, LATER_BOOT],
        why: "cannot make durable what lies there: cannot sync the file system of \
              /state/var/lib/restage: Input/output error (os error 5)",
    },
];

/// Runs them all.
pub fn run(wanted: Wanted<'_>) -> Seen {
    let mut seen = Seen::default();
    for row in ROWS.iter().filter(|row| wanted.has(row.name)) {
        seen.note(row.name, row.judge(wanted));
    }
    seen
}

fn case_named(name: &str) -> Box<dyn Case> {
    cases::all().into_iter().find(|case| case.name() == name).unwrap()
}

/// The machine right after the commit, at its next boot.
fn committed(case: &dyn Case) -> World {
    let (calls, _) = calls_of(case);
    let phases = phases(case, &calls);
    let after = phases.iter().position(|phase| *phase == Phase::After).unwrap();
    let world = case.start().share();
    let trace = world.borrow_mut().trace();
    world.borrow_mut().fault = Some((after, Fault::Error));
    let _ = case.tell(&world);
    // What was changed until then: the call that failed is among them, and did nothing.
    let found = trace.lock().unwrap();
    found.iter().rev().find(|b| b.world.calls <= after).unwrap().world.settled()
}

/// The machine at the first change of the step that comes after the decision, at its next boot.
fn decided(case: &dyn Case) -> World {
    let world = case.start().share();
    let trace = world.borrow_mut().trace();
    steps::begin();
    let _ = case.tell(&world);
    let found = trace.lock().unwrap();
    let is_decided = |b: &&Boundary| steps::name(b.step) == "remove the other state";
    found.iter().find(is_decided).unwrap().world.settled()
}

/// The machine right before the report, at its next boot.
fn recorded(case: &dyn Case) -> World {
    let world = case.start().share();
    let trace = world.borrow_mut().trace();
    let _ = case.tell(&world);
    let found = trace.lock().unwrap();
    let has_report = |b: &&Boundary| b.world.esp.all().keys().any(|path| path.ends_with(".RPT"));
    found.iter().take_while(|b| !has_report(b)).last().unwrap().world.settled()
}

/// Both tables as they were, the protective MBR among them.
fn returned(world: &mut World, before: &World) {
    let lead = LEAD_SECTORS * world.disk.sector_bytes();
    for at in [0, world.disk.size_bytes() - lead] {
        world.disk.put(at, &before.disk.part(at, lead));
    }
}

/// Makes another table of a copy, or none.
fn damage(world: &mut World, damage: Damage) {
    let (size, sector) = (world.disk.size_bytes(), world.disk.sector_bytes());
    match damage {
        Damage::Primary => world.disk.put(sector, &[0xa5; 512]),
        Damage::Backup => world.disk.put(size - sector, &[0xa5; 512]),
        Damage::Both => {
            world.disk.put(sector, &[0xa5; 512]);
            world.disk.put(size - sector, &[0xa5; 512]);
        }
        Damage::Differ => {
            let other = cases::reset::disk::with_another(&world.disk, 1, |partition| {
                "another".clone_into(&mut partition.name);
            });
            world.disk.put(0, &other.part(0, LEAD_SECTORS * 512));
        }
        Damage::Returned => {}
    }
}

impl Row {
    fn judge(&self, wanted: Wanted<'_>) -> Result<(), String> {
        let case = case_named(self.case);
        let case = case.as_ref();
        let when = match self.what {
            What::ReadOnly(_, when)
            | What::Unsynced(_, when)
            | What::Full(_, when)
            | What::Tables(_, when)
            | What::Clock(_, _, when) => when,
        };
        let mut start = match self.what {
            What::Clock(staged, _, When::Start) => self.staged_at(staged),
            _ => case.start(),
        };
        match when {
            When::Start => {}
            When::Committed => start = committed(case),
            When::Recorded => start = recorded(case),
            When::Decided => start = decided(case),
        }
        let whole = start.clone();
        match self.what {
            What::Full(device, _) => {
                let files = if device == Device::Esp { &mut start.esp } else { &mut start.state };
                files.clusters = Some(files.used_clusters());
            }
            What::Tables(Damage::Returned, _) => returned(&mut start, &case.start()),
            What::Tables(what, _) => damage(&mut start, what),
            What::ReadOnly(..) | What::Unsynced(..) | What::Clock(..) => {}
        }
        let mut image = start;
        for (boot, expected) in self.boots.iter().enumerate() {
            let world = image.share();
            self.set_up(&mut world.borrow_mut());
            let told = case.tell(&world);
            if wanted.is_narrow() {
                println!(
                    "{:?}, then {:?}, exit {}: {}",
                    told.state, told.next, told.exit, told.why
                );
            }
            if (told.state, told.next, told.exit) != *expected {
                return Err(format!("boot {boot} is {told:?}, and not {expected:?}"));
            }
            if boot == 0
                && (!told.why.starts_with(self.why) || self.why.is_empty() != told.why.is_empty())
            {
                return Err(format!("it says `{}`, and not `{}`", told.why, self.why));
            }
            image = world.borrow().settled();
            if matches!(told.state, Refused | Failed)
                && !image.disk.differences(&whole.disk).is_empty()
                && !matches!(self.what, What::Tables(..))
            {
                return Err("it is refused, and the disk is another one".to_owned());
            }
        }
        // It is mended, and the power is switched off and on.
        image.esp.clusters = None;
        image.state.clusters = None;
        if let What::Tables(what, _) = self.what {
            mend(&mut image, &whole, what);
        }
        let end = case.recover(&image.share())?;
        case.check_end(&end, &BROKEN).map(drop)
    }

    /// The machine with something staged when the clock said this.
    fn staged_at(&self, clock: u64) -> World {
        let staging = case_named(if self.case == "reset" { "stage" } else { "restore-stage" });
        let world = staging.start().share();
        world.borrow_mut().clock = clock;
        assert_eq!(staging.tell(&world).state, Done);
        let world = world.borrow();
        world.settled()
    }

    fn set_up(&self, world: &mut World) {
        let mut fails = |device, calls, error| {
            let place = Place::Everywhere;
            world.broken = Some(Arc::new(Broken { device, calls, place, error, from: 0 }));
        };
        match self.what {
            What::ReadOnly(device, _) => fails(device, &[Call::Change, Call::Write], 30),
            What::Unsynced(device, _) => fails(device, &[Call::Sync], 5),
            What::Clock(_, clock, _) => world.clock = clock,
            What::Full(..) | What::Tables(..) => {}
        }
    }
}

/// A person repairs the table: what was damaged is as it was.
fn mend(image: &mut World, whole: &World, what: Damage) {
    let (size, sector) = (image.disk.size_bytes(), image.disk.sector_bytes());
    let is_bad = |image: &World, at: u64| image.disk.part(at, 512) == [0xa5; 512];
    for at in [sector, size - sector] {
        if is_bad(image, at) {
            image.disk.put(at, &whole.disk.part(at, 512));
        }
    }
    if what == Damage::Differ {
        image.disk.put(0, &whole.disk.part(0, LEAD_SECTORS * 512));
    }
}
