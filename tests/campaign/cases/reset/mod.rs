//! A factory reset: staged, carried out, cancelled.

pub mod disk;
pub mod lab;

use std::sync::Arc;

use restage::report::Outcome;

use crate::controls::Wrong;
use crate::explore::{Case, Cut, had_fault, has_returned, was_started_again};
use crate::model::{Shared, World};
use crate::told::Told;
use disk::Tables;
use lab::{Lab, Shape, Where};

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
    fn tell(&self, world: &Shared) -> Told {
        // The OS mounts its ESP with the kernel's defaults.
        world.borrow_mut().esp.errors_remount_ro = self.work != Work::Boot;
        match self.work {
            Work::Stage => self.lab.stage(world).into(),
            Work::Cancel => self.lab.cancel(world).into(),
            Work::Boot => self.lab.apply(world).into(),
        }
    }
    fn check_image(&self, image: &World) -> Result<(), String> {
        self.lab.check_image(image)
    }
    fn recover(&self, world: &Shared) -> Result<World, String> {
        self.lab.recover(world)
    }
    fn check_end(&self, end: &World, path: &[Cut]) -> Result<&'static str, String> {
        if has_returned(path) {
            return self.lab.check_end(end, &self.outcomes[..1]);
        }
        let mut allowed = self.outcomes.clone();
        if had_fault(path) {
            allowed.push(Outcome::Refused);
        }
        // What the first start had staged is withdrawn by the second.
        if was_started_again(path) && self.work == Work::Stage {
            allowed.push(Outcome::Cancelled);
        }
        self.lab.check_end(end, &allowed)
    }
}

/// A case of the usual machine, worked on in a wrong way.
pub fn with(wrong: Wrong, name: &str) -> Box<dyn Case> {
    let mut lab = Lab::new(USUAL);
    lab.wrong = Some(wrong);
    let lab = Arc::new(lab);
    let (name, start, work) = match name {
        "stage" => ("stage", &lab.clean, Work::Stage),
        _ => ("reset", &lab.staged, Work::Boot),
    };
    let mut outcomes = vec![Outcome::Done];
    if work == Work::Stage {
        outcomes.push(Outcome::Refused);
    }
    Box::new(ResetCase { name, lab: lab.clone(), start: start.clone(), work, outcomes })
}

/// Most machines.
pub const USUAL: Shape = Shape {
    tables: Tables::Good,
    sector_bytes: 512,
    tpm: Where::Chip,
    is_narrow: false,
    has_seed: true,
};

/// All cases of a reset.
pub fn all() -> Vec<Box<dyn Case>> {
    let lab = Arc::new(Lab::new(USUAL));
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
    // Asked for in systemd's way: heard once, whatever is cut, and one with what is staged.
    let start = |staged: &World, variable, argument| {
        let mut start = staged.clone();
        (start.variable, start.argument) = (variable, argument);
        start
    };
    // It has no options, so no seed.
    let lab = Arc::new(Lab::new(Shape { has_seed: false, ..USUAL }));
    for (name, start) in [
        ("reset-variable", start(&lab.clean, true, false)),
        ("reset-argument", start(&lab.clean, false, true)),
        ("reset-asked-twice", start(&lab.staged, true, true)),
    ] {
        cases.push(case(name, &lab, &start, Work::Boot, &[done]));
    }
    for (name, shape) in [
        ("reset-bad-primary", Shape { tables: Tables::BadPrimary, ..USUAL }),
        ("reset-bad-backup", Shape { tables: Tables::BadBackup, ..USUAL }),
        ("reset-4096", Shape { sector_bytes: 4096, is_narrow: true, ..USUAL }),
        ("reset-tpm-on-esp", Shape { tpm: Where::Esp, ..USUAL }),
        ("reset-no-tpm", Shape { tpm: Where::Nowhere, ..USUAL }),
    ] {
        let lab = Arc::new(Lab::new(shape));
        cases.push(case(name, &lab, &lab.staged, Work::Boot, &[done]));
    }
    cases
}
