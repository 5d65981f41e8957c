//! The program is compared with the table.

use std::sync::Arc;

use super::every::{Phase, calls_of, phases};
use super::table::{Damage, ROWS, Row, What, When};
use super::{Seen, Wanted};
use crate::cases;
use crate::explore::{BROKEN, Case};
use crate::model::call::{Broken, Place};
use crate::model::{Boundary, Call, Device, Fault, World};
use crate::steps;
use crate::told::State::{Done, Failed, Refused};

/// The protective MBR, a header and its entries, where a sector has 512 bytes.
const LEAD_SECTORS: u64 = 34;

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
    let has_report = |b: &&Boundary| b.world.esp.all().keys().any(|path| path.ends_with("RPT"));
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
        // As it was found; whoever is refused has touched nothing of it.
        let (found, mut image) = (start.disk.clone(), start);
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
            if matches!(told.state, Refused | Failed) && !image.disk.differences(&found).is_empty()
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
