//! The steps after the commit: of applying, of confirming, of rolling back. Each is safe to repeat.
//! Side: both.

use super::{Committed, Machine, keys, slots};
use crate::apply::journal::{Journal, NUMBERS_OF_A_PHASE};
use crate::error::{Doing, Error, Result};
use crate::plan::restore::VolumePlan;
use crate::platform::state_fs::Place;
use crate::profile::State;

/// Which list of steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// From the commit to the hand-over.
    Apply,
    /// The restored state stays.
    Confirm,
    /// The old state comes back.
    RollBack,
}

impl Phase {
    /// Progress files have two digits, and each phase has its numbers of steps and of failures.
    #[must_use]
    pub fn first_number(self) -> usize {
        match self {
            Self::Apply => 0,
            Self::Confirm => NUMBERS_OF_A_PHASE,
            Self::RollBack => 2 * NUMBERS_OF_A_PHASE,
        }
    }
}

/// How a step ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Its effect is durable and verified.
    Done,
    /// It has nothing to work on any more, or would do harm; says why.
    PassedOver(String),
}

/// One idempotent step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// What was extracted is put beside the state.
    Promote,
    /// Keys that the backup replaces are copied aside.
    Supersede,
    /// The backup's passphrases become passphrases of a volume.
    Enroll(VolumePlan),
    /// The new state takes the place of the old one.
    Exchange,
    /// Keys that only the old state has are copied aside.
    KeepOldKeys,
    /// The old passphrases of a volume are removed.
    RemoveOld(VolumePlan),
    /// Keys that were made in the restored state are kept.
    KeepNewKeys,
    /// The old state takes its place again.
    ExchangeBack,
    /// The backup's passphrases of a volume are removed.
    RemoveNew(VolumePlan),
    /// The state that is not in place is destroyed.
    RemoveOther,
}

/// The steps of a phase, in their order.
#[must_use]
pub fn of(committed: &Committed, phase: Phase) -> Vec<Step> {
    let volumes = || committed.plan.volumes.iter().cloned();
    match phase {
        Phase::Apply => [Step::Promote, Step::Supersede]
            .into_iter()
            .chain(volumes().map(Step::Enroll))
            .chain([Step::Exchange])
            .collect(),
        Phase::Confirm => std::iter::once(Step::KeepOldKeys)
            .chain(volumes().map(Step::RemoveOld))
            .chain([Step::RemoveOther])
            .collect(),
        // The state first: with it in place either set of passphrases will do.
        Phase::RollBack => [Step::KeepNewKeys, Step::ExchangeBack]
            .into_iter()
            .chain(volumes().map(Step::RemoveNew))
            .chain([Step::RemoveOther])
            .collect(),
    }
}

impl Step {
    /// The step's name in logs and reports.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Promote => "promote".to_owned(),
            Self::Supersede => "supersede".to_owned(),
            Self::Enroll(volume) => format!("enroll {}", volume.name),
            Self::Exchange => "exchange".to_owned(),
            Self::KeepOldKeys => "keep old keys".to_owned(),
            Self::RemoveOld(volume) => format!("remove old passphrases of {}", volume.name),
            Self::KeepNewKeys => "keep new keys".to_owned(),
            Self::ExchangeBack => "exchange back".to_owned(),
            Self::RemoveNew(volume) => format!("remove new passphrases of {}", volume.name),
            Self::RemoveOther => "remove the other state".to_owned(),
        }
    }

    /// What it did, for a person.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::Promote => "the extracted backup put beside the state".to_owned(),
            Self::Supersede => "replaced keys copied aside".to_owned(),
            Self::Enroll(volume) => format!("the backup's passphrases open {}", volume.name),
            Self::Exchange => "the restored state took the place of the old one".to_owned(),
            Self::KeepOldKeys => "keys that only the old state had copied aside".to_owned(),
            Self::RemoveOld(volume) => format!("the old passphrases of {} removed", volume.name),
            Self::KeepNewKeys => "keys made in the restored state kept".to_owned(),
            Self::ExchangeBack => "the old state is back in its place".to_owned(),
            Self::RemoveNew(volume) => {
                format!("the backup's passphrases of {} removed", volume.name)
            }
            Self::RemoveOther => "the other state destroyed".to_owned(),
        }
    }

    /// Whether the operation may end without it when it fails again and again: what is left of it
    /// does no harm, and the report tells.
    #[must_use]
    pub fn may_be_left(&self) -> bool {
        match self {
            // What could not be kept is not destroyed either: the last step sees to that.
            Self::KeepOldKeys | Self::KeepNewKeys | Self::RemoveOld(_) | Self::RemoveNew(_) => true,
            Self::Promote
            | Self::Supersede
            | Self::Enroll(_)
            | Self::Exchange
            | Self::ExchangeBack
            | Self::RemoveOther => false,
        }
    }
}

/// Carries out a step.
pub fn perform(
    machine: &mut Machine,
    profile: &State,
    journal: &mut Journal<Committed>,
    phase: Phase,
    (number, step): (usize, &Step),
) -> Result<Ended> {
    let id = journal.committed.request.id.clone();
    let (old, new) = (journal.committed.old_state, journal.committed.new_state);
    match step {
        Step::Promote => promote(machine, new)?,
        Step::Supersede => {
            for name in &journal.committed.plan.superseded {
                keys::keep(machine, Place::State, name, &id)?;
            }
        }
        Step::Enroll(volume) => slots::enroll(machine, profile, journal, volume)?,
        Step::Exchange => exchange(machine, old, new)?,
        Step::ExchangeBack => exchange(machine, new, old)?,
        Step::KeepOldKeys => keys::keep_all_of_sibling(machine, profile, &id)?,
        Step::KeepNewKeys => keys::keep_new(machine, profile, &journal.committed)?,
        Step::RemoveOld(volume) => return slots::remove(machine, profile, volume, &volume.old),
        Step::RemoveNew(volume) => return slots::remove_new(machine, profile, journal, volume),
        Step::RemoveOther => {
            let unwanted = if phase == Phase::Confirm { old } else { new };
            // A state that was never booted has no keys but the backup's.
            let has_keys = phase == Phase::Confirm || journal.progress.hand_overs > 0;
            remove_other(machine, unwanted, |machine| {
                // Half destroyed, a key is another one, and not worth keeping.
                if has_keys && !journal.progress.attempted.contains(&number) {
                    keys::keep_all_of_sibling(machine, profile, &id)?;
                    journal.record_attempt(machine.store.as_mut(), number)?;
                }
                Ok(())
            })?;
        }
    }
    Ok(Ended::Done)
}

/// What was extracted, and is committed by now, gets the name of the sibling.
fn promote(machine: &mut Machine, new: u64) -> Result<()> {
    let what = || "cannot put the extracted backup beside the state".to_owned();
    let sibling = machine.state.identity(Place::Sibling).doing(what)?;
    if sibling.is_none() && machine.state.identity(Place::New).doing(what)? == Some(new) {
        machine.state.promote().doing(what)?;
    } else if sibling != Some(new) {
        return Err(Error::new(what()).because("it is not the one of this restore"));
    }
    Ok(())
}

/// Exchanges the two directories, unless that is done.
fn exchange(machine: &mut Machine, from: u64, to: u64) -> Result<()> {
    let what = || "cannot exchange the old and the new state".to_owned();
    let state = machine.state.identity(Place::State).doing(what)?;
    if state == Some(to) {
        return Ok(());
    }
    let sibling = machine.state.identity(Place::Sibling).doing(what)?;
    if state != Some(from) || sibling != Some(to) {
        return Err(Error::new(what())
            .because("they are not the directories of this restore")
            .hold());
    }
    machine.state.exchange().doing(what)?;
    if machine.state.identity(Place::State).doing(what)? == Some(to) {
        Ok(())
    } else {
        Err(Error::new(what()).because("the exchange had no effect"))
    }
}

/// Destroys the state that is not in place, after its keys are kept.
fn remove_other(
    machine: &mut Machine,
    unwanted: u64,
    keep_keys: impl FnOnce(&mut Machine) -> Result<()>,
) -> Result<()> {
    let what = || "cannot remove the state that is not in place".to_owned();
    machine.state.remove(Place::New).doing(what)?;
    match machine.state.identity(Place::Sibling).doing(what)? {
        None => Ok(()),
        // Half removed, it has the same identity.
        Some(found) if found == unwanted => {
            keep_keys(machine)?;
            machine.state.remove(Place::Sibling).doing(what)
        }
        Some(_) => Err(Error::new(what()).because("another directory is in its place")),
    }
}
