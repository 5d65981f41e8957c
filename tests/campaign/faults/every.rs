//! Each call of each operation fails once, with each error.

use std::sync::Arc;

use restage::error::Next;

use super::names::{self, Texts};
use super::{Seen, Wanted};
use crate::explore::{Case, Cut};
use crate::model::call::{Listing, Met};
use crate::model::{Device, Fault};
use crate::steps;
use crate::told::{State, Told};

/// The operations. On other machines: what they do that is not done on the usual one.
const OPERATIONS: [&str; 13] = [
    "stage",
    "cancel",
    "reset",
    "reset-variable",
    "reset-argument",
    "reset-asked-twice",
    "reset-bad-primary",
    "reset-bad-backup",
    "restore-stage",
    "restore-cancel",
    "restore",
    "confirm",
    "roll-back",
];

/// What a call meets, and its number.
const FAULTS: [(Fault, &str, i32); 4] = [
    (Fault::Error, "EIO", 5),
    (Fault::NoSpace, "ENOSPC", 28),
    (Fault::ReadOnly, "EROFS", 30),
    (Fault::Vanish, "ENODEV", 19),
];

/// Where in an operation a call is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Before the first look at what there is to do.
    Looking,
    /// Before the commit.
    Before,
    /// While the journal is made.
    Committing,
    /// After the commit.
    After,
}

/// The calls of a run that nothing disturbs, and what comes of it.
pub fn calls_of(case: &dyn Case) -> (Vec<Met>, Told) {
    let world = case.start().share();
    let listing = Listing::default();
    world.borrow_mut().listing = Some(Arc::clone(&listing));
    let told = case.tell(&world);
    let calls = listing.lock().unwrap().clone();
    (calls, told)
}

/// The phase of each call. Where no journal is made, all is after the commit when there is one already.
pub fn phases(case: &dyn Case, calls: &[Met]) -> Vec<Phase> {
    let is_committed = ["confirm", "roll-back"].contains(&case.name());
    let position = |verb: &str, end: &str, from: usize| {
        let found = calls[from..].iter().position(|m| m.verb == verb && m.object.ends_with(end));
        found.map(|found| found + from)
    };
    let looked = position("list", "/restage", 0).unwrap_or(0);
    let made = position("make", ".JNL", 0);
    let synced = made.and_then(|made| position("sync the directory", "/restage", made));
    let phase = |number: usize| match (made, synced) {
        _ if number <= looked => Phase::Looking,
        _ if is_committed => Phase::After,
        (Some(made), _) if number < made => Phase::Before,
        (Some(_), Some(synced)) if number <= synced => Phase::Committing,
        (Some(_), _) => Phase::After,
        (None, _) => Phase::Before,
    };
    (0..calls.len()).map(phase).collect()
}

/// Whether this is what must come of a fault there. What was passed over is not asked here: it has to
/// end as if there had been nothing.
#[allow(clippy::match_same_arms, reason = "one arm for each operation and phase, as in a table")]
fn is_expected(case: &str, phase: Phase, fault: Fault, met: &Met, told: &Told) -> bool {
    use Next::{ContinueBoot, HoldForOperator, RetryNextBoot};
    let is = |state: State, next: Next| told.state == state && told.next == next;
    let not_begun = is(State::Refused, ContinueBoot) || is(State::Failed, ContinueBoot);
    // However it was asked for.
    let case = if case.starts_with("reset") { "reset" } else { case };
    // What cannot be counted cannot be limited: the store of the progress is the broken part.
    let store = if case == "reset" { Device::Esp } else { Device::State };
    let is_gone = met.device == store && fault == Fault::Vanish;
    let is_uncounted = met.device == store
        && (fault == Fault::Vanish || fault == Fault::Error && store == Device::State);
    let unfinished = is(State::Unfinished, RetryNextBoot)
        || is_uncounted && is(State::Unfinished, HoldForOperator);
    match (case, phase) {
        // The running OS: nothing is staged, nothing is withdrawn, and the command says so.
        ("stage" | "cancel" | "restore-stage" | "restore-cancel", _) => not_begun,
        ("reset", Phase::Looking) => not_begun,
        // With the store gone nobody can tell whether the journal has appeared: the next boot looks.
        ("reset" | "restore", Phase::Before) => {
            not_begun || told.why.contains("may be, committed") && is_gone && unfinished
        }
        // On the state file system nobody can tell what is committed before it was looked at.
        ("restore", Phase::Looking) => is(State::Unfinished, HoldForOperator),
        ("reset" | "restore", Phase::Committing) => not_begun || unfinished,
        ("reset", Phase::After) => unfinished,
        // A hand-over that cannot be counted is none.
        ("restore", Phase::After) => unfinished || is(State::RolledBack, ContinueBoot),
        ("confirm", Phase::Looking) => not_begun,
        // Before the decision it is not confirmed; after it, the state in place stays.
        ("confirm", _) => not_begun || is(State::Later, ContinueBoot),
        ("roll-back", Phase::Looking) => is(State::Unfinished, HoldForOperator),
        ("roll-back", _) => {
            unfinished
                || is(State::Unfinished, HoldForOperator) && met.device == Device::State
                || is(State::Later, ContinueBoot)
        }
        _ => false,
    }
}

/// Runs them all.
pub fn run(wanted: Wanted<'_>) -> Seen {
    super::each_case(Some(&OPERATIONS), |case, seen| {
        let (calls, clean) = calls_of(case);
        let phases = phases(case, &calls);
        let mut texts = Texts::default();
        for (number, phase) in phases.iter().enumerate() {
            for (fault, short, error) in FAULTS {
                let row = format!("{}: {short} at call {number}, {}", case.name(), calls[number]);
                if !wanted.has(&row) {
                    continue;
                }
                let one = One { case, clean: &clean, phase: *phase, number, fault, error };
                if let Some(verdict) = one.judge(&mut texts, wanted) {
                    seen.note(&row, verdict);
                }
            }
        }
    })
}

struct One<'a> {
    case: &'a dyn Case,
    clean: &'a Told,
    phase: Phase,
    number: usize,
    fault: Fault,
    error: i32,
}

impl One<'_> {
    /// None when the fault meets no call to which it applies.
    fn judge(&self, texts: &mut Texts, wanted: Wanted<'_>) -> Option<Result<(), String>> {
        let world = self.case.start().share();
        world.borrow_mut().fault = Some((self.number, self.fault));
        let (told, mut lines) = steps::warned(|| self.case.tell(&world));
        let met = world.borrow().met.clone();
        met.first()?;
        lines.push(told.why.clone());
        if wanted.is_narrow() {
            println!("{:?}, then {:?}, exit {}: {}", told.state, told.next, told.exit, told.why);
            println!("  said: {lines:#?}");
        }
        Some(self.check(&told, &lines, &met, texts).and_then(|()| {
            let image = world.borrow().settled();
            self.case.check_image(&image)?;
            let end = self.case.recover(&image.share())?;
            let cut = Cut::Fault { call: self.number, fault: self.fault, in_order: true };
            self.case.check_end(&end, &[cut]).map(drop)
        }))
    }

    fn check(
        &self,
        told: &Told,
        lines: &[String],
        met: &[Met],
        texts: &mut Texts,
    ) -> Result<(), String> {
        let name = self.case.name();
        let first = &met[0];
        let is_passed_over = (told.state, told.next) == (self.clean.state, self.clean.next);
        if !is_passed_over && !is_expected(name, self.phase, self.fault, first, told) {
            let (state, next, phase) = (told.state, told.next, self.phase);
            return Err(format!("{phase:?}, and it is {state:?}, then {next:?}: {}", told.why));
        }
        if told.why.starts_with(&names::cause(self.error)) {
            return Err(format!("it says no more than the system: {}", told.why));
        }
        // Of a device that is gone any call may be told; of a call that failed, that call.
        if !met.iter().any(|met| names::are_named(lines, met, self.error)) {
            return Err(format!("`cannot {first}` and why is not said: {lines:?}"));
        }
        if told.why.is_empty() || is_passed_over || self.fault == Fault::Vanish {
            return Ok(());
        }
        texts.add(&told.why, first, self.error)
    }
}
