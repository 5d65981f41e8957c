//! The process ends, and not the power: it is killed after a change, or a call fails; it is started again
//! beside all that it has not made durable, and only then does the power go.

use std::collections::HashSet;

use super::{Seen, Wanted};
use crate::explore::{Case, Cut};
use crate::model::{Call, Fault, World};
use crate::steps;
use crate::told::State;

/// So many changes of a second start are followed by a cut, and one in so many of the others; its end
/// always is.
const FIRST: usize = 24;
const ONE_IN: usize = 8;

/// Runs them all.
pub fn run(wanted: Wanted<'_>) -> Seen {
    super::each_case(None, |case, seen| {
        let mut one = One { case, wanted, followed: HashSet::new() };
        one.killed(seen);
        one.failed(seen);
    })
}

struct One<'a> {
    case: &'a dyn Case,
    wanted: Wanted<'a>,
    /// Machines, by their digest.
    followed: HashSet<u64>,
}

impl One<'_> {
    fn killed(&mut self, seen: &mut Seen) {
        let world = self.case.start().share();
        let trace = world.borrow_mut().trace();
        steps::begin();
        self.case.run(&world);
        for (change, boundary) in trace.lock().unwrap().iter().enumerate() {
            let row = format!("{}: killed after change {change}, started again", self.case.name());
            if self.wanted.has(&row) {
                let cut = Cut::Power { change, image: 0 };
                seen.note(&row, self.again(&boundary.world, change, cut));
            }
        }
    }

    fn failed(&mut self, seen: &mut Seen) {
        for call in 0.. {
            let mut is_there = false;
            for fault in [Fault::Error, Fault::ErrorAfter] {
                let row = format!("{}: {fault:?} at call {call}, started again", self.case.name());
                let world = self.case.start().share();
                world.borrow_mut().fault = Some((call, fault));
                steps::begin();
                self.case.run(&world);
                let mut world = world.borrow().clone();
                is_there |= world.calls > call;
                // What a sync failed to make durable no later one does, and nobody sees that in this mount.
                let is_lost = fault == Fault::Error
                    && world.met.first().is_some_and(|met| met.call == Call::Sync);
                if world.has_faulted && !is_lost && self.wanted.has(&row) {
                    world.fault = None;
                    let cut = Cut::Fault { call, fault, in_order: true };
                    seen.note(&row, self.again(&world, call, cut));
                }
            }
            if !is_there {
                return;
            }
        }
    }

    /// Starts it again in a machine that goes on, and cuts the power.
    fn again(&mut self, from: &World, number: usize, cut: Cut) -> Result<(), String> {
        let world = from.share();
        world.borrow_mut().esp.forget_what_was_read();
        let trace = world.borrow_mut().trace();
        steps::begin();
        let told = self.case.tell(&world);
        if self.wanted.is_narrow() {
            println!("started again: {:?}, then {:?}: {}", told.state, told.next, told.why);
        }
        // What it has promised when it is done.
        let returned = [Cut::Returned { image: 0 }];
        // With one id for both, what ends the first of two stagings ends the second as well; and of what is
        // withdrawn no more is promised than that it is not done.
        let is_withdrawn = self.case.name().ends_with("cancel");
        let is_strict = !is_withdrawn && self.case.name() != "stage";
        let has_promised = told.state == State::Done;
        let path = if is_strict && has_promised { &returned[..] } else { &[cut, Cut::Again] };
        for image in world.borrow().images() {
            self.case.check_image(&image)?;
            let end = self.case.recover(&image.share())?;
            let outcome = self.case.check_end(&end, path)?;
            if is_withdrawn && has_promised && outcome == "done" {
                return Err("it was withdrawn, and it is done".to_owned());
            }
        }
        let mut images = Vec::new();
        for (change, boundary) in trace.lock().unwrap().iter().enumerate() {
            if change < FIRST || (change + number).is_multiple_of(ONE_IN) {
                images.extend(boundary.world.images());
            }
        }
        for image in images {
            if self.followed.insert(image.digest()) {
                self.case.check_image(&image)?;
                let end = self.case.recover(&image.share())?;
                self.case.check_end(&end, &[cut, Cut::Again])?;
            }
        }
        Ok(())
    }
}
