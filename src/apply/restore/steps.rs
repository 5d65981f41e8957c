//! The steps after the commit: of applying, of confirming, of rolling back. Each is safe to repeat.
//! Side: both.

use zeroize::Zeroizing;

use super::extract::{copy, digest, parse_state};
use super::{Committed, Machine};
use crate::error::{Doing, Error, Result};
use crate::format::luks::{Header, Slot};
use crate::plan::restore::{RecordedSlot, VolumePlan};
use crate::platform::state_fs::{Place, read_small};
use crate::platform::volume::{Volume, opening_slot};
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
    /// Progress files have two digits, and each phase has its numbers.
    pub fn first_number(self) -> usize {
        match self {
            Self::Apply => 0,
            Self::Confirm => 30,
            Self::RollBack => 60,
        }
    }
}

/// One idempotent step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
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
pub fn of(committed: &Committed, phase: Phase) -> Vec<Step> {
    let volumes = || committed.plan.volumes.iter().cloned();
    match phase {
        Phase::Apply => std::iter::once(Step::Supersede)
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
    pub fn name(&self) -> String {
        match self {
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
    pub fn describe(&self) -> String {
        match self {
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
}

/// Carries out a step.
pub fn perform(
    machine: &mut Machine,
    profile: &State,
    committed: &Committed,
    phase: Phase,
    step: &Step,
) -> Result<()> {
    let id = &committed.request.id;
    match step {
        Step::Supersede => {
            for name in &committed.plan.superseded {
                keep(machine, Place::State, name, id)?;
            }
            Ok(())
        }
        Step::Enroll(volume) => enroll(machine, profile, volume),
        Step::Exchange => exchange(machine, committed.old_state, committed.new_state),
        Step::ExchangeBack => exchange(machine, committed.new_state, committed.old_state),
        Step::KeepOldKeys => {
            for name in precious(machine, profile, Place::Sibling)? {
                if !is_same(machine, Place::Sibling, &name, Place::State)? {
                    keep(machine, Place::Sibling, &name, id)?;
                }
            }
            Ok(())
        }
        Step::KeepNewKeys => keep_new_keys(machine, profile, committed),
        Step::RemoveOld(volume) => remove_slots(machine, volume, &volume.old),
        Step::RemoveNew(volume) => remove_new(machine, profile, committed, volume),
        Step::RemoveOther => {
            let unwanted = match phase {
                Phase::Confirm => committed.old_state,
                Phase::Apply | Phase::RollBack => committed.new_state,
            };
            let what = || "cannot remove the state that is not in place".to_owned();
            match machine.state.identity(Place::Sibling).doing(what)? {
                None => Ok(()),
                Some(found) if found == unwanted => {
                    machine.state.remove(Place::Sibling).doing(what)
                }
                // Half removed, or somebody else's: the first has the same identity.
                Some(_) => Err(Error::new(what()).because("another directory is in its place")),
            }
        }
    }
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

fn precious(machine: &Machine, profile: &State, place: Place<'_>) -> Result<Vec<String>> {
    let files = machine.state.files(place).doing(|| "cannot list the keys".to_owned())?;
    Ok(files.into_iter().map(|f| f.name).filter(|name| profile.is_precious(name)).collect())
}

fn is_same(machine: &Machine, one: Place<'_>, name: &str, other: Place<'_>) -> Result<bool> {
    let what = || format!("cannot compare `{name}`");
    let state = machine.state.as_ref();
    Ok(digest(state, one, name).doing(what)? == digest(state, other, name).doing(what)?)
}

/// Copies a key aside, unless it is there: under its name, or when another one of that name is there
/// under its name and digest.
fn keep(machine: &mut Machine, from: Place<'_>, name: &str, id: &str) -> Result<()> {
    let what = || format!("cannot keep the key `{name}`");
    let aside = Place::Superseded(id);
    let state = machine.state.as_mut();
    let Some(wanted) = digest(state, from, name).doing(what)? else { return Ok(()) };
    let other = format!("{name}.{}", wanted.get(..16).unwrap_or(&wanted));
    for kept in [name, &other] {
        match digest(state, aside, kept).doing(what)? {
            Some(found) if found == wanted => return Ok(()),
            Some(_) => {}
            None => {
                let content = state.open(from, name).doing(what)?;
                let mut content =
                    content.ok_or_else(|| Error::new(what()).because("it is gone"))?;
                return state.write(aside, kept, &mut content).doing(what);
            }
        }
    }
    Err(Error::new(what()).because("another file has its place"))
}

/// Before the roll-back: keys that were made in the restored state go into the old one, and where that
/// has another of the same name, aside.
fn keep_new_keys(machine: &mut Machine, profile: &State, committed: &Committed) -> Result<()> {
    let what = || "cannot keep the keys of the restored state".to_owned();
    if machine.state.identity(Place::State).doing(what)? != Some(committed.new_state) {
        return Ok(());
    }
    for name in precious(machine, profile, Place::State)? {
        let state = machine.state.as_mut();
        if digest(state, Place::Sibling, &name).doing(what)?.is_none() {
            copy(state, Place::State, &name, Place::Sibling).doing(what)?;
        } else if !is_same(machine, Place::State, &name, Place::Sibling)? {
            keep(machine, Place::State, &name, &committed.request.id)?;
        }
    }
    Ok(())
}

fn volume<'a>(machine: &'a mut Machine, plan: &VolumePlan) -> Result<&'a mut dyn Volume> {
    let found = machine.volumes.iter_mut().find(|volume| volume.name() == plan.name);
    let found = found.ok_or_else(|| Error::new(format!("there is no volume `{}`", plan.name)))?;
    Ok(found.as_mut())
}

/// The volume's header, when it is still the same volume.
fn header(volume: &dyn Volume, plan: &VolumePlan) -> Result<Header> {
    let what = || format!("cannot read the LUKS2 header of `{}`", plan.name);
    let header = volume.header().doing(what)?;
    if header.uuid == plan.uuid && header.identity == plan.identity {
        Ok(header)
    } else {
        Err(Error::new(what()).because("it is another volume now"))
    }
}

fn is_recorded(slot: &Slot, recorded: &[RecordedSlot]) -> bool {
    recorded.iter().any(|r| r.index == slot.index && r.digest == slot.digest)
}

/// The passphrases of the new state, wherever that is.
fn new_passphrases(
    machine: &Machine,
    profile: &State,
    place: Place<'_>,
) -> Result<Vec<Zeroizing<String>>> {
    let what = || "cannot read the new recovery passphrases".to_owned();
    let bytes =
        read_small(machine.state.as_ref(), place, &profile.file, super::extract::MAX_STATE_BYTES);
    let bytes = bytes.doing(what)?.ok_or_else(|| Error::new(what()).because("no state file"))?;
    let state = parse_state(&bytes).doing(what)?;
    Ok(state.recovery_keys().map(|key| Zeroizing::new(key.to_owned())).collect())
}

/// Adds what is missing: a slot that an interrupted run has added is found by its passphrase.
fn enroll(machine: &mut Machine, profile: &State, plan: &VolumePlan) -> Result<()> {
    let what = || format!("cannot enroll a recovery passphrase in `{}`", plan.name);
    let passphrases = new_passphrases(machine, profile, Place::Sibling)?;
    let key = profile.volumes.iter().find(|volume| volume.name == plan.name);
    let key = key.ok_or_else(|| Error::new(what()).because("the profile has no such volume"))?;
    let key_file = machine.state.path(Place::State, &key.key);
    let volume = volume(machine, plan)?;
    for passphrase in &passphrases {
        let opens = |volume: &dyn Volume| -> Result<bool> {
            let header = header(volume, plan)?;
            let added = header.slots.iter().filter(|slot| !is_recorded(slot, &plan.before));
            Ok(opening_slot(volume, added, passphrase.as_bytes()).doing(what)?.is_some())
        };
        if opens(volume)? {
            continue;
        }
        volume.enroll(&key_file, passphrase).doing(what)?;
        if !opens(volume)? {
            return Err(Error::new(what()).because("no new key slot opens with it"));
        }
    }
    Ok(())
}

/// Removes key slots, each only while it is the recorded one, and never the last that a person can
/// use.
fn remove_slots(machine: &mut Machine, plan: &VolumePlan, slots: &[RecordedSlot]) -> Result<()> {
    let what = || format!("cannot remove a key slot of `{}`", plan.name);
    let volume = volume(machine, plan)?;
    for slot in slots {
        let now = header(volume, plan)?;
        if !now.slots.iter().any(|found| is_recorded(found, std::slice::from_ref(slot))) {
            continue;
        }
        let others = |found: &&Slot| {
            found.index != slot.index && found.kind != crate::format::luks::SlotKind::Tpm2
        };
        if now.slots.iter().filter(others).count() == 0 {
            return Err(Error::new(what()).because("it is the last one"));
        }
        volume.remove_slot(slot.index).doing(what)?;
        if header(volume, plan)?.slots.iter().any(|f| is_recorded(f, std::slice::from_ref(slot))) {
            return Err(Error::new(what()).because("it is still there"));
        }
    }
    Ok(())
}

/// The slots that this restore has added: not there before, and open with a passphrase of the backup.
/// The state of the backup is in the sibling by now.
fn remove_new(
    machine: &mut Machine,
    profile: &State,
    committed: &Committed,
    plan: &VolumePlan,
) -> Result<()> {
    let what = || format!("cannot find the new key slots of `{}`", plan.name);
    if machine.state.identity(Place::Sibling).doing(what)? != Some(committed.new_state) {
        return Err(Error::new(what()).because("the restored state is not where it should be"));
    }
    let passphrases = new_passphrases(machine, profile, Place::Sibling)?;
    let found = {
        let volume = volume(machine, plan)?;
        let header = header(volume, plan)?;
        let mut found = Vec::new();
        for slot in header.slots.iter().filter(|slot| !is_recorded(slot, &plan.before)) {
            for passphrase in &passphrases {
                if opening_slot(volume, [slot], passphrase.as_bytes()).doing(what)?.is_some() {
                    found.push(RecordedSlot { index: slot.index, digest: slot.digest.clone() });
                    break;
                }
            }
        }
        found
    };
    remove_slots(machine, plan, &found)
}
