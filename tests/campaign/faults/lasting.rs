//! What stays broken: a sector, a file, the TPM. After three failures the boot holds and names it, or the
//! restore rolls back; a roll-back holds after six. Once it is mended, a power cycle finishes it.

use std::collections::BTreeSet;
use std::sync::Arc;

use restage::error::Next;

use super::every::{Phase, calls_of, phases};
use super::{Seen, Wanted, names};
use crate::cases;
use crate::explore::{BROKEN, Case};
use crate::model::call::{Broken, Met, Place};
use crate::model::{Call, Device};
use crate::steps;
use crate::told::State;

const EIO: i32 = 5;
/// More boots than it takes to hold.
const BOOTS: usize = 8;

/// Reads, changes or syncs of the same object.
const KINDS: [&[Call]; 3] = [&[Call::Read], &[Call::Change, Call::Write], &[Call::Sync]];

/// Runs them all.
pub fn run(wanted: Wanted<'_>) -> Seen {
    let mut seen = Seen::default();
    for name in ["reset", "restore", "confirm", "roll-back"] {
        let case = cases::all().into_iter().find(|case| case.name() == name).unwrap();
        let (calls, _) = calls_of(case.as_ref());
        let phases = phases(case.as_ref(), &calls);
        let first = phases.iter().position(|phase| *phase == Phase::After).unwrap();
        let mut objects = BTreeSet::new();
        for met in &calls[first..] {
            let kind = KINDS.iter().position(|kind| kind.contains(&met.call)).unwrap();
            objects.insert((met.device, kind, met.object.clone()));
        }
        for (device, kind, object) in objects {
            let row = format!("{name}: {:?} of {object} fails for good", KINDS[kind]);
            if wanted.has(&row) {
                let place = place(&object);
                let calls = KINDS[kind];
                let broken = Broken { device, calls, place, error: EIO, from: first };
                seen.note(&row, judge(case.as_ref(), &broken, wanted));
            }
        }
    }
    seen
}

/// Of a part of the disk, its first sector.
fn place(object: &str) -> Place {
    let sector = object.strip_prefix("sectors ").and_then(|rest| rest.split(' ').next());
    match sector.and_then(|sector| sector.parse::<u64>().ok()) {
        Some(sector) => Place::Bytes(sector * 512..sector * 512 + 512),
        None if object == "TPM2_" => Place::Everywhere,
        None => Place::Object(object.to_owned()),
    }
}

fn judge(case: &dyn Case, broken: &Broken, wanted: Wanted<'_>) -> Result<(), String> {
    let mut image = case.start();
    let mut story: Vec<(State, Next)> = Vec::new();
    let mut last: Option<(Met, String)> = None;
    for boot in 0..BOOTS {
        let world = image.share();
        let from = if boot == 0 { broken.from } else { 0 };
        world.borrow_mut().broken = Some(Arc::new(Broken { from, ..broken.clone() }));
        let (told, lines) = steps::warned(|| case.tell(&world));
        if wanted.is_narrow() {
            println!("boot {boot}: {:?}, then {:?}: {}", told.state, told.next, told.why);
            println!("  said: {lines:?}");
        }
        story.push((told.state, told.next));
        last = world.borrow().met.last().map(|met| (met.clone(), told.why.clone())).or(last);
        image = world.borrow().settled();
        case.check_image(&image)?;
        let is_over = match told.state {
            State::Unfinished => false,
            State::Later => !is_end(case.name()),
            _ => true,
        };
        if told.state == State::Unfinished && told.next == Next::HoldForOperator {
            let (met, why) = last.as_ref().ok_or("it holds, and nothing has failed")?;
            if !why.contains(&names::cause(EIO)) || !why.contains(short(&met.object)) {
                return Err(format!("it holds, and does not name {met}: {why}"));
            }
        }
        if is_over {
            break;
        }
    }
    is_right(case.name(), broken, &story)?;
    // It is mended, and the power is switched off and on.
    let end = case.recover(&image.share())?;
    case.check_end(&end, &BROKEN).map(drop)
}

/// The part of an object that the last error must name: of a run of sectors any may be told.
fn short(object: &str) -> &str {
    if object.starts_with("sectors ") { "the disk" } else { object }
}

/// Whether it begins in the window, where a state is in place that works.
fn is_end(case: &str) -> bool {
    ["confirm", "roll-back"].contains(&case)
}

/// A roll-back that is not decided is tried again by five boots, and holds then, or at once where that
/// cannot be counted. After the decision the state in place stays, no boot holds, and what remains is tried
/// again by each. A confirmation that was not begun is none.
fn is_right_at_end(story: &[(State, Next)]) -> bool {
    use Next::{ContinueBoot, HoldForOperator, RetryNextBoot};
    let is_undecided = |one: &&(State, Next)| one.0 == State::Unfinished;
    let (undecided, decided) = story.split_at(story.iter().take_while(is_undecided).count());
    let retries = undecided.iter().take_while(|(_, next)| *next == RetryNextBoot).count();
    let over = [State::Done, State::RolledBack, State::Nothing, State::Failed];
    let later = match decided {
        [later @ .., (last, ContinueBoot)] if over.contains(last) => later,
        all => all,
    };
    retries < 6
        && undecided[retries..].iter().all(|(_, next)| *next == HoldForOperator)
        && later.iter().all(|one| *one == (State::Later, ContinueBoot))
}

/// Two boots try again, the third holds, and every power cycle tries once more. What cannot be counted
/// holds at once. What is passed over is done. A restore that cannot be applied is rolled back.
fn is_right(case: &str, broken: &Broken, story: &[(State, Next)]) -> Result<(), String> {
    use Next::{HoldForOperator, RetryNextBoot};
    let (retry, hold) = ((State::Unfinished, RetryNextBoot), (State::Unfinished, HoldForOperator));
    let progress_on = if case == "reset" { Device::Esp } else { Device::State };
    let is_store = broken.device == progress_on;
    let is_done = |state: State| match case {
        "reset" => state == State::Done,
        _ => matches!(state, State::Window | State::RolledBack | State::Later),
    };
    let right = match story {
        _ if is_end(case) => is_right_at_end(story),
        [(state, _)] => is_done(*state),
        // What a failed sync has left is there at the next boot.
        [rest @ .., (state, _)] if is_done(*state) && broken.calls.contains(&Call::Sync) => {
            rest.len() <= 2 && rest.iter().all(|one| *one == retry || is_store && *one == hold)
        }
        [rest @ .., (state, _)] if case != "reset" && is_done(*state) => {
            rest.len() <= 2 && rest.iter().all(|one| *one == retry)
        }
        [a, b, rest @ ..] if *a == retry && *b == retry => {
            case != "reset" || rest.iter().all(|one| *one == hold)
        }
        [first, rest @ ..] => {
            is_store && [retry, hold].contains(first) && rest.iter().all(|one| *one == hold)
        }
        [] => false,
    };
    if right { Ok(()) } else { Err(format!("the boots were {story:?}")) }
}
