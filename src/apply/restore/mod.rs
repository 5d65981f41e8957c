//! Restore, in the initrd: check, extract beside the old state, commit, exchange; count the boots
//! until somebody confirms, and roll back when nobody does. Confirming runs in the OS, with the same
//! code.
//! Side: both. Touches the state file system below the profile's directories, and the key slots of
//! the profile's volumes.

pub mod extract;
mod keys;
pub mod probe;
mod slots;
pub mod steps;

use serde::{Deserialize, Serialize};

use super::journal::{self, Commit, Decision, Journal};
use crate::error::{Doing, Error, Next, Refused, Result};
use crate::format::archive::Parse;
use crate::format::envelope::{self, Kind, RESTORE_JOURNAL, RESTORE_REQUEST};
use crate::plan::facts::HostFacts;
use crate::plan::restore::{RestoreFacts, RestorePlan, VolumePlan, check_request, check_resumed};
use crate::platform::state_fs::{Place, StateFs};
use crate::platform::volume::Volume;
use crate::platform::{Store, console};
use crate::profile::{Profile, State};
use crate::report::{Outcome, Report, StepReport};
use crate::request::find::{self, Found};
use crate::request::restore::RestoreRequest;
use crate::request::{Operation, check_name};
use probe::Trial;
use steps::{Ended, Phase};

/// So many failures, and it rolls back, or a step that may be left is; twice as many in the roll-back,
/// and the boot holds. So many crashes in one boot count as well. A power cut is not a failure.
const MAX_FAILURES: usize = 3;

/// All that a restore works on.
pub struct Machine {
    /// The state.
    pub state: Box<dyn StateFs>,
    /// restage's own directory on the same file system.
    pub store: Box<dyn Store>,
    /// The volumes of the profile, in its order.
    pub volumes: Vec<Box<dyn Volume>>,
    /// Who reads archives.
    pub parse: Parse,
    /// The machine and its OS.
    pub host: HostFacts,
    /// Whether a hibernated system waits to be resumed.
    pub is_hibernated: bool,
    /// Whether the directories were given by hand.
    pub is_offline: bool,
    /// How often restage was ended in this boot before it had decided anything.
    pub crashes: usize,
}

/// What is written at the commit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Committed {
    /// The request.
    pub request: RestoreRequest,
    /// Name of the profile that it was planned with.
    pub profile: String,
    /// Seconds since 1970.
    pub at: u64,
    /// Identity of the old state's directory.
    pub old_state: u64,
    /// Identity of the new state's directory.
    pub new_state: u64,
    /// The plan.
    pub plan: RestorePlan,
}

impl Committed {
    /// The number of a volume, by which the journal knows it.
    fn number_of(&self, volume: &VolumePlan) -> usize {
        let names = self.plan.volumes.iter().map(|one| &one.name);
        names.into_iter().position(|name| *name == volume.name).unwrap_or_default()
    }
}

impl Commit for Committed {
    const KIND: Kind = RESTORE_JOURNAL;
    const OPERATION: Operation = Operation::Restore;
    fn of(&self) -> (&str, Operation) {
        (&self.request.id, self.request.operation)
    }
}

/// What a run came to.
#[derive(Debug)]
pub enum Restored {
    /// There was nothing to do.
    Nothing,
    /// Every request was refused and set aside; the state is as it was.
    Refused(Vec<String>),
    /// The restored state is in place and waits to be confirmed.
    Window {
        /// Boots handed over to it, this one included.
        boots: usize,
        /// So many may be.
        of: u32,
    },
    /// Confirmed: the old state is gone for good.
    Confirmed,
    /// The old state is back.
    RolledBack(String),
    /// Something remains to be done. The boot goes on: the state in place is the one to boot.
    Later(Error),
    /// Committed and not finished, and the state in place is not to be booted.
    Unfinished(Error),
}

/// What the boot does after [`at_boot`].
#[must_use]
pub fn next(restored: &Restored) -> Next {
    match restored {
        Restored::Nothing
        | Restored::Refused(_)
        | Restored::Window { .. }
        | Restored::Confirmed
        | Restored::RolledBack(_)
        | Restored::Later(_) => Next::ContinueBoot,
        // The state in place is not to be booted, whatever the error knew of that.
        Restored::Unfinished(error) => match error.next() {
            Next::ContinueBoot | Next::RetryNextBoot => Next::RetryNextBoot,
            Next::HoldForOperator => Next::HoldForOperator,
        },
    }
}

/// What a boot does: the whole of it.
pub fn at_boot(machine: &mut Machine, profile: &Profile) -> Result<Restored> {
    let state = state_of(profile)?;
    let found = find::look(machine.store.as_ref())?;
    if found.is_empty() {
        return Ok(Restored::Nothing);
    }
    let is_committed = !found.committed.is_empty();
    if let Err(error) = journal::settle(machine.store.as_mut()) {
        return match found.committed.as_slice() {
            [] => Err(error),
            [stem] if is_decided(machine, stem) => Ok(Restored::Later(error)),
            // What cannot be counted cannot be limited.
            _ => Ok(Restored::Unfinished(error.hold())),
        };
    }
    let now = machine.host.now;
    let found = match journal::mend::<Committed>(machine.store.as_mut(), now) {
        Ok(found) => found,
        Err(error) if is_committed => return Ok(Restored::Unfinished(error.after_commit())),
        Err(error) => return Err(error),
    };
    if let [stem] = found.committed.as_slice() {
        return Ok(go_on(machine, profile, stem));
    }
    if !found.committed.is_empty() {
        let error = Error::new(format!("{} restores are committed", found.committed.len()))
            .because(found.committed.join(", "));
        return Ok(Restored::Unfinished(error.hold()));
    }
    // Of an extraction that was cut before its commit. Before its last trace in the store goes.
    let what = || "cannot remove what is left of an earlier restore".to_owned();
    machine.state.remove(Place::New).doing(what)?;
    for stem in &found.leftovers {
        journal::clear_away(machine.store.as_mut(), stem)?;
    }
    start(machine, profile, state, &found.staged)
}

/// Whether the state in place stays, and what remains only tidies up.
fn is_decided(machine: &Machine, stem: &str) -> bool {
    let Ok(journal) = Journal::<Committed>::load(machine.store.as_ref(), stem) else {
        return false;
    };
    match journal.progress.decision {
        Some(Decision::Confirm) => true,
        Some(Decision::RollBack(_)) => {
            let in_place = machine.state.identity(Place::State);
            in_place.is_ok_and(|in_place| in_place == Some(journal.committed.old_state))
        }
        None => false,
    }
}

/// What lies there, all of it durable with the rest of its file system, the keys and which state is in
/// place, and after a report that was cut off has been made good: what it stands for must not be cleared
/// away before.
pub fn mended(machine: &mut Machine) -> Result<Found> {
    journal::settle(machine.store.as_mut())?;
    journal::mend::<Committed>(machine.store.as_mut(), machine.host.now)
}

/// The part of the profile that a restore needs.
pub fn state_of(profile: &Profile) -> Result<&State> {
    profile.state.as_ref().ok_or_else(|| {
        Error::new(format!(
            "the profile of {} has no field `state`: nothing to back up or restore",
            profile.name
        ))
    })
}

/// Reads a staged request; the error names what is wrong with it.
pub fn read_request(store: &dyn Store, stem: &str) -> Result<RestoreRequest> {
    let name = format!("{stem}.REQ");
    let what = || format!("cannot use the request {name}");
    let bytes = store
        .read(&name, envelope::MAX_BYTES)
        .and_then(|bytes| bytes.ok_or_else(|| std::io::ErrorKind::NotFound.into()))
        .doing(what)?;
    let request: RestoreRequest = envelope::parse(&bytes, RESTORE_REQUEST).doing(what)?;
    check_name(stem, "", (&request.id, request.operation), Operation::Restore).doing(what)?;
    Ok(request)
}

fn start(
    machine: &mut Machine,
    profile: &Profile,
    state: &State,
    staged: &[String],
) -> Result<Restored> {
    let mut refusals = Vec::new();
    for stem in staged {
        let request = match read_request(machine.store.as_ref(), stem) {
            Ok(request) if staged.len() == 1 => request,
            Ok(request) => {
                let reason = "several restores are staged, and which one is meant is not known";
                refusals.push(set_aside(machine, stem, Some(&request), reason)?);
                continue;
            }
            Err(error) => {
                refusals.push(set_aside(machine, stem, None, &error.chain())?);
                continue;
            }
        };
        console::set_id(&request.id);
        if machine.crashes >= MAX_FAILURES {
            let reason = format!("restage was ended {} times while it checked it", machine.crashes);
            refusals.push(set_aside(machine, stem, Some(&request), &reason)?);
            continue;
        }
        match prepare(machine, profile, state, &request) {
            Ok(journal) => {
                log::info!("committed restore {}", request.id);
                return Ok(apply(machine, state, journal));
            }
            Err(refused)
                if find::look(machine.store.as_ref()).is_ok_and(|f| f.committed.is_empty()) =>
            {
                let what = || "cannot remove the extracted backup".to_owned();
                let removed = machine.state.remove(Place::New).doing(what);
                // A file system that has become read-only is not what began it.
                removed.map_err(|error| error.at(&format!("refused ({refused})")))?;
                refusals.push(set_aside(machine, stem, Some(&request), &refused.reason)?);
            }
            Err(refused) => {
                let error = Error::new("the restore is, or may be, committed").because(refused);
                return Ok(Restored::Unfinished(error.after_commit()));
            }
        }
    }
    Ok(if refusals.is_empty() { Restored::Nothing } else { Restored::Refused(refusals) })
}

/// Everything before the commit: one pass through the archive into a directory that nothing reaches,
/// all checks, the new state file.
fn prepare(
    machine: &mut Machine,
    profile: &Profile,
    state: &State,
    request: &RestoreRequest,
) -> Result<Journal<Committed>, Refused> {
    let refused = |error: Error| Refused::because(error.chain());
    log::info!("checking and extracting the backup of restore {}", request.id);
    // Before the extraction takes its share of it.
    let free = machine.state.free_bytes();
    let free = free.doing(|| "cannot tell the free space".to_owned()).map_err(refused)?;
    let extracted = extract::into_new(machine, state, request)?;
    let backup = &extracted.0;
    let facts = probe::facts(machine, state, &request.skip, Some(backup), Trial::Make);
    let facts = RestoreFacts { free_bytes: free, ..facts.map_err(refused)? };
    check_request(request, profile.limits.request_age_s, &facts)?;
    let planned = crate::plan::restore::plan(&request.skip, state, backup, &facts)?;
    extract::complete(machine, state, &extracted, &planned).map_err(refused)?;
    let what = || "cannot look at the state directories".to_owned();
    let identity = |place| -> Result<u64> {
        let found = machine.state.identity(place).doing(what)?;
        found.ok_or_else(|| Error::new(what()).because("one is missing"))
    };
    let committed = Committed {
        request: request.clone(),
        profile: profile.name.clone(),
        at: machine.host.now,
        old_state: identity(Place::State).map_err(refused)?,
        new_state: identity(Place::New).map_err(refused)?,
        plan: planned.plan,
    };
    Journal::commit(machine.store.as_mut(), committed, None).map_err(refused)
}

/// A committed restore goes on, wherever it is.
fn go_on(machine: &mut Machine, profile: &Profile, stem: &str) -> Restored {
    let journal: Journal<Committed> = match Journal::load(machine.store.as_ref(), stem) {
        Ok(journal) => journal,
        Err(error) => return Restored::Unfinished(error.hold()),
    };
    console::set_id(journal.id());
    if let Err(error) = check_journal(&journal, profile) {
        return Restored::Unfinished(error.hold());
    }
    let state = match state_of(profile) {
        Ok(state) => state,
        Err(error) => return Restored::Unfinished(error.hold()),
    };
    if machine.crashes >= MAX_FAILURES {
        return after_crashes(machine, state, journal);
    }
    match &journal.progress.decision {
        Some(Decision::Confirm) => confirm_committed(machine, state, journal),
        Some(Decision::RollBack(_)) => roll_back(machine, state, journal),
        None => apply(machine, state, journal),
    }
}

/// The journal is input: it could have come from another profile, or from a broken disk.
fn check_journal(journal: &Journal<Committed>, profile: &Profile) -> Result<()> {
    let what = || "the committed restore cannot go on, and nothing was touched".to_owned();
    let state = state_of(profile)?;
    let committed = &journal.committed;
    if committed.profile != profile.name {
        return Err(Error::new(what()).because(format!(
            "it was planned for {}, and this is {}",
            committed.profile, profile.name
        )));
    }
    check_resumed(&committed.plan, state).map_err(|why| Error::new(what()).because(why))
}

/// Something of this restore ends restage every time: it is not tried a fourth time in this boot.
fn after_crashes(machine: &mut Machine, state: &State, journal: Journal<Committed>) -> Restored {
    let times = machine.crashes;
    let error = || Error::new(format!("restage was ended {times} times in this boot"));
    match &journal.progress.decision {
        None => decide_roll_back(machine, state, journal, &error().chain()),
        Some(Decision::Confirm) => Restored::Later(error()),
        Some(Decision::RollBack(_)) if times < 2 * MAX_FAILURES => {
            roll_back(machine, state, journal)
        }
        Some(Decision::RollBack(_)) => Restored::Unfinished(error().hold()),
    }
}

/// Carries out what is missing, and hands over to the restored state.
fn apply(machine: &mut Machine, state: &State, mut journal: Journal<Committed>) -> Restored {
    let applied = journal
        .record_run(machine.store.as_mut())
        .and_then(|()| run(machine, state, &mut journal, Phase::Apply));
    if let Err(error) = applied {
        let error = error.after_commit();
        let failures = record_failure(machine, &mut journal, Phase::Apply, &error);
        if failures.is_ok_and(|failures| failures < MAX_FAILURES) {
            return Restored::Unfinished(error);
        }
        let reason = format!("it could not be applied: {}", error.chain());
        return decide_roll_back(machine, state, journal, &reason);
    }
    let of = journal.committed.plan.unconfirmed_boots;
    let boots = journal.progress.hand_overs;
    if boots >= usize::try_from(of).unwrap_or(usize::MAX) {
        let reason = format!("it was not confirmed in {boots} boots");
        return decide_roll_back(machine, state, journal, &reason);
    }
    match journal.record_hand_over(machine.store.as_mut()) {
        Ok(()) => Restored::Window { boots: boots + 1, of },
        // What cannot be counted cannot be limited.
        Err(error) => decide_roll_back(machine, state, journal, &error.chain()),
    }
}

/// Counts a failure; returns how many there are of this phase.
fn record_failure(
    machine: &mut Machine,
    journal: &mut Journal<Committed>,
    phase: Phase,
    error: &Error,
) -> Result<usize> {
    let first = phase.first_number();
    journal.record_failure(machine.store.as_mut(), first, &error.chain())?;
    Ok(journal.progress.failures_from(first))
}

fn decide_roll_back(
    machine: &mut Machine,
    state: &State,
    mut journal: Journal<Committed>,
    reason: &str,
) -> Restored {
    log::error!("rolling back: {reason}");
    let decision = Decision::RollBack(reason.to_owned());
    match journal.record_decision(machine.store.as_mut(), decision) {
        Ok(()) => roll_back(machine, state, journal),
        Err(error) => {
            let place = format!("the roll-back cannot begin ({reason})");
            Restored::Unfinished(error.at(&place).hold())
        }
    }
}

fn roll_back(machine: &mut Machine, state: &State, mut journal: Journal<Committed>) -> Restored {
    let Some(Decision::RollBack(reason)) = journal.progress.decision.clone() else {
        return Restored::Unfinished(Error::new("a roll-back that nobody decided").hold());
    };
    let ended = run(machine, state, &mut journal, Phase::RollBack)
        .and_then(|()| finish(machine, &journal, Outcome::RolledBack, Some(reason.clone())));
    match ended {
        Ok(()) => Restored::RolledBack(reason),
        Err(error) => {
            let failures = record_failure(machine, &mut journal, Phase::RollBack, &error);
            let place = machine.state.identity(Place::State);
            if place.is_ok_and(|place| place == Some(journal.committed.old_state)) {
                // What is missing only tidies up.
                return Restored::Later(error);
            }
            let error = error.after_commit();
            let may_try = failures.is_ok_and(|failures| failures < 2 * MAX_FAILURES);
            Restored::Unfinished(if may_try { error } else { error.hold() })
        }
    }
}

/// Confirms what is in its window: after this has committed there is no roll-back. Nothing in the
/// window is `Nothing`.
pub fn confirm(machine: &mut Machine, profile: &Profile) -> Result<Restored> {
    let state = state_of(profile)?;
    // Of a confirmation that was cut while it wrote its report, which is to be written again.
    let found = mended(machine)?;
    // Of one whose report was written, and nothing after it.
    for stem in &found.leftovers {
        journal::clear_away(machine.store.as_mut(), stem)?;
    }
    let [stem] = found.committed.as_slice() else { return Ok(Restored::Nothing) };
    let mut journal: Journal<Committed> = Journal::load(machine.store.as_ref(), stem)?;
    console::set_id(journal.id());
    check_journal(&journal, profile)?;
    match &journal.progress.decision {
        Some(Decision::Confirm) => {}
        Some(Decision::RollBack(_)) => {
            return Err(Error::new("the restore is being rolled back; reboot to let it finish"));
        }
        None => {
            let of_apply = steps::of(&journal.committed, Phase::Apply).len();
            let is_applied = (0..of_apply).all(|step| journal.progress.is_over(step));
            if !is_applied || journal.progress.hand_overs == 0 {
                return Err(Error::new("the restore is not applied yet; reboot to let it finish"));
            }
            let what = || "cannot look at the state directory".to_owned();
            if machine.state.identity(Place::State).doing(what)?
                != Some(journal.committed.new_state)
            {
                return Err(Error::new("the state in place is not the restored one"));
            }
            journal.record_decision(machine.store.as_mut(), Decision::Confirm)?;
        }
    }
    Ok(confirm_committed(machine, state, journal))
}

fn confirm_committed(
    machine: &mut Machine,
    state: &State,
    mut journal: Journal<Committed>,
) -> Restored {
    let ended = run(machine, state, &mut journal, Phase::Confirm)
        .and_then(|()| finish(machine, &journal, Outcome::Done, None));
    match ended {
        Ok(()) => Restored::Confirmed,
        // The restored state is in place and stays. What is missing only tidies up.
        Err(error) => {
            if let Err(unrecorded) = record_failure(machine, &mut journal, Phase::Confirm, &error) {
                log::error!("{}", unrecorded.chain());
            }
            Restored::Later(error)
        }
    }
}

/// For each step in order: effect, then record.
fn run(
    machine: &mut Machine,
    state: &State,
    journal: &mut Journal<Committed>,
    phase: Phase,
) -> Result<()> {
    let steps = steps::of(&journal.committed, phase);
    for (index, step) in steps.iter().enumerate() {
        let number = phase.first_number() + index;
        if journal.progress.is_over(number) {
            continue;
        }
        let place = format!("step {}/{} {}", index + 1, steps.len(), step.name());
        log::info!("{place}");
        let ended = match steps::perform(machine, state, journal, phase, (number, step)) {
            Ok(ended) => ended,
            Err(error) => {
                let error = error.at(&place);
                let failures = journal.progress.failures_from(phase.first_number());
                if !step.may_be_left() || failures + 1 < MAX_FAILURES {
                    return Err(error);
                }
                Ended::PassedOver(error.chain())
            }
        };
        match ended {
            Ended::Done => journal.record_done(machine.store.as_mut(), number)?,
            Ended::PassedOver(why) => {
                log::warn!("{place}: passed over: {why}");
                journal.record_passed_over(machine.store.as_mut(), number, &why)?;
            }
        }
    }
    Ok(())
}

fn finish(
    machine: &mut Machine,
    journal: &Journal<Committed>,
    outcome: Outcome,
    reason: Option<String>,
) -> Result<()> {
    let steps = [Phase::Apply, Phase::Confirm, Phase::RollBack].into_iter().flat_map(|phase| {
        steps::of(&journal.committed, phase)
            .into_iter()
            .enumerate()
            .map(move |(index, step)| (phase.first_number() + index, step))
            .filter(|(number, _)| journal.progress.is_over(*number))
            .map(|(number, step)| StepReport {
                step: step.name(),
                what: step.describe(),
                passed_over: journal.progress.passed_over.get(&number).cloned(),
            })
    });
    let report = Report {
        id: journal.id().to_owned(),
        operation: Some(journal.committed.request.operation),
        outcome,
        reason,
        staged: Some(journal.committed.request.staged.clone()),
        finished_at: machine.host.now,
        runs: u32::try_from(journal.progress.runs).unwrap_or(u32::MAX),
        failures: journal.progress.newest_failures(),
        steps: steps.collect(),
        restage: env!("CARGO_PKG_VERSION").to_owned(),
    };
    journal::finish(machine.store.as_mut(), &report, &console::recorded())
}

/// Sets a request aside: its archive is destroyed, a report says why.
pub fn set_aside(
    machine: &mut Machine,
    stem: &str,
    request: Option<&RestoreRequest>,
    reason: &str,
) -> Result<String> {
    log::error!("refused: {reason}");
    over(machine, stem, request, Outcome::Refused, reason)?;
    Ok(reason.to_owned())
}

/// Ends a request that was never committed.
pub fn over(
    machine: &mut Machine,
    stem: &str,
    request: Option<&RestoreRequest>,
    outcome: Outcome,
    reason: &str,
) -> Result<()> {
    let report = Report {
        id: request.map_or_else(|| stem.to_lowercase(), |request| request.id.clone()),
        operation: Some(Operation::Restore),
        outcome,
        reason: Some(reason.to_owned()),
        staged: request.map(|request| request.staged.clone()),
        finished_at: machine.host.now,
        runs: 0,
        failures: Vec::new(),
        steps: Vec::new(),
        restage: env!("CARGO_PKG_VERSION").to_owned(),
    };
    journal::finish(machine.store.as_mut(), &report, &console::recorded())
}
