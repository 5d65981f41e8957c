//! Recovery passphrases of the volumes: the new ones in before the old ones out, and none out before
//! another one is known to work.
//! Side: both. Changes key slots, by way of systemd-cryptenroll only.

use zeroize::Zeroizing;

use super::extract::{MAX_STATE_BYTES, parse_state};
use super::steps::Ended;
use super::{Committed, Machine};
use crate::apply::journal::Journal;
use crate::error::{Doing, Error, Result};
use crate::format::luks::{Header, Slot, SlotKind};
use crate::plan::restore::{RecordedSlot, VolumePlan};
use crate::platform::state_fs::{Place, read_small};
use crate::platform::volume::{Volume, opening_slot};
use crate::profile::State;

fn volume<'a>(machine: &'a mut Machine, plan: &VolumePlan) -> Result<&'a mut dyn Volume> {
    let found = machine.volumes.iter_mut().find(|volume| volume.name() == plan.name);
    let found = found.ok_or_else(|| Error::new(format!("there is no volume `{}`", plan.name)))?;
    Ok(found.as_mut())
}

/// The volume's header; else why it is not the volume any more that the plan was made for.
fn look(volume: &dyn Volume, plan: &VolumePlan) -> Result<Result<Header, String>> {
    let what = || format!("cannot read the LUKS2 header of `{}`", plan.name);
    Ok(match volume.header().doing(what)? {
        Ok(header) if header.uuid == plan.uuid && header.identity == plan.identity => Ok(header),
        Ok(header) => Err(format!("`{}` is another volume now ({})", plan.name, header.uuid)),
        Err(fault) => Err(format!("`{}` is no LUKS2 volume any more: {fault}", plan.name)),
    })
}

/// The same where nothing else will do.
fn same(volume: &dyn Volume, plan: &VolumePlan) -> Result<Header> {
    look(volume, plan)?.map_err(Error::new)
}

fn is_recorded(slot: &Slot, recorded: &[RecordedSlot]) -> bool {
    recorded.iter().any(|r| r.index == slot.index && r.digest == slot.digest)
}

fn record(slot: &Slot) -> RecordedSlot {
    RecordedSlot { index: slot.index, digest: slot.digest.clone() }
}

/// A profile without one has no volumes either.
fn state_file(profile: &State) -> &str {
    profile.settings.as_ref().map_or("", |settings| &settings.file)
}

/// The recovery passphrases that a state lists.
fn listed(machine: &Machine, profile: &State, place: Place<'_>) -> Result<Vec<Zeroizing<String>>> {
    let what = || "cannot read the recovery passphrases".to_owned();
    let file = state_file(profile);
    let bytes = read_small(machine.state.as_ref(), place, file, MAX_STATE_BYTES);
    let bytes = bytes.doing(what)?.ok_or_else(|| Error::new(what()).because("no state file"))?;
    let state = parse_state(&bytes).doing(what)?;
    Ok(state.recovery_keys().map(|key| Zeroizing::new(key.to_owned())).collect())
}

/// The first of these slots that opens with one of the passphrases.
fn opened<'a>(
    volume: &dyn Volume,
    slots: &[&'a Slot],
    passphrases: &[Zeroizing<String>],
) -> Result<Option<&'a Slot>> {
    let what = || format!("cannot try the key slots of `{}`", volume.name());
    for passphrase in passphrases {
        let found = opening_slot(volume, slots.iter().copied(), passphrase.as_bytes());
        if let Some(slot) = found.doing(what)? {
            return Ok(Some(slot));
        }
    }
    Ok(None)
}

/// Adds what is missing: a slot that an interrupted run has added is found by its passphrase. Then
/// records which slots they are: once the restored state is booted, its passphrases may change.
pub fn enroll(
    machine: &mut Machine,
    profile: &State,
    journal: &mut Journal<Committed>,
    plan: &VolumePlan,
) -> Result<()> {
    let what = || format!("cannot enroll a recovery passphrase in `{}`", plan.name);
    let passphrases = listed(machine, profile, Place::Sibling)?;
    let key = profile.volumes.iter().find(|volume| volume.name == plan.name);
    let key = key.ok_or_else(|| Error::new(what()).because("the profile has no such volume"))?;
    let key_file = machine.state.path(Place::State, &key.key);
    let mut added = Vec::new();
    for passphrase in &passphrases {
        let one = std::slice::from_ref(passphrase);
        let of_this = |volume: &dyn Volume| -> Result<Option<RecordedSlot>> {
            let header = same(volume, plan)?;
            let new: Vec<&Slot> =
                header.slots.iter().filter(|slot| !is_recorded(slot, &plan.before)).collect();
            Ok(opened(volume, &new, one)?.map(record))
        };
        let volume = volume(machine, plan)?;
        let mut slot = of_this(volume)?;
        if slot.is_none() {
            volume.enroll(&key_file, passphrase).doing(what)?;
            slot = of_this(volume)?;
        }
        added
            .push(slot.ok_or_else(|| Error::new(what()).because("no new key slot opens with it"))?);
    }
    let number = journal.committed.number_of(plan);
    journal.record_added_slots(machine.store.as_mut(), number, &added)
}

/// Removes the slots that this restore has added: those recorded, and as long as nothing is recorded
/// no system has run with them, and the passphrases of the restored state find them.
pub fn remove_new(
    machine: &mut Machine,
    profile: &State,
    journal: &mut Journal<Committed>,
    plan: &VolumePlan,
) -> Result<Ended> {
    let number = journal.committed.number_of(plan);
    let slots = match journal.progress.added_slots.get(&number) {
        Some(Some(slots)) => slots.clone(),
        // A system has run with them, and may have changed what they would be found by.
        Some(None) if journal.progress.hand_overs > 0 => {
            let Some(slots) = journal.read_added_slots(machine.store.as_ref(), number)? else {
                let why = "the record of the added key slots is damaged: they stay";
                return Ok(Ended::PassedOver(why.to_owned()));
            };
            slots
        }
        Some(None) | None => {
            let what = || "cannot find the restored state".to_owned();
            let sibling = machine.state.identity(Place::Sibling).doing(what)?;
            if sibling != Some(journal.committed.new_state) {
                // It was never put there, and enrolling comes after that.
                return Ok(Ended::Done);
            }
            let passphrases = listed(machine, profile, Place::Sibling)?;
            let slots = match find_new(volume(machine, plan)?, plan, &passphrases)? {
                Ok(slots) => slots,
                Err(why) => return Ok(Ended::PassedOver(why)),
            };
            // A removal that is cut off leaves a slot that no passphrase opens.
            journal.record_added_slots(machine.store.as_mut(), number, &slots)?;
            slots
        }
    };
    remove(machine, profile, plan, &slots)
}

fn find_new(
    volume: &dyn Volume,
    plan: &VolumePlan,
    passphrases: &[Zeroizing<String>],
) -> Result<Result<Vec<RecordedSlot>, String>> {
    let header = match look(volume, plan)? {
        Ok(header) => header,
        Err(why) => return Ok(Err(why)),
    };
    let mut found = Vec::new();
    for slot in header.slots.iter().filter(|slot| !is_recorded(slot, &plan.before)) {
        if opened(volume, &[slot], passphrases)?.is_some() {
            found.push(record(slot));
        }
    }
    Ok(Ok(found))
}

/// Removes key slots, each only while it is the recorded one, and none unless a passphrase that the
/// state in place lists opens one that stays.
pub fn remove(
    machine: &mut Machine,
    profile: &State,
    plan: &VolumePlan,
    slots: &[RecordedSlot],
) -> Result<Ended> {
    let what = || format!("cannot remove a key slot of `{}`", plan.name);
    let passphrases = listed(machine, profile, Place::State)?;
    let volume = volume(machine, plan)?;
    let header = match look(volume, plan)? {
        Ok(header) => header,
        // Nothing of this restore is in it.
        Err(why) => return Ok(Ended::PassedOver(why)),
    };
    let (go, stay): (Vec<&Slot>, Vec<&Slot>) =
        header.slots.iter().partition(|slot| is_recorded(slot, slots));
    let stay: Vec<&Slot> = stay.into_iter().filter(|slot| slot.kind != SlotKind::Tpm2).collect();
    if go.is_empty() {
        return Ok(Ended::Done);
    }
    let Some(works) = opened(volume, &stay, &passphrases)? else {
        let numbers: Vec<_> = go.iter().map(|slot| slot.index.to_string()).collect();
        return Ok(Ended::PassedOver(format!(
            "no passphrase of `{}` opens another key slot of `{}`: key slot {} stays",
            state_file(profile),
            plan.name,
            numbers.join(", ")
        )));
    };
    let works = record(works);
    for slot in go {
        let now = same(volume, plan)?;
        if !now.slots.iter().any(|found| is_recorded(found, std::slice::from_ref(&works))) {
            return Err(Error::new(what()).because("its key slots are being changed"));
        }
        let slot = record(slot);
        let is_there = |header: &Header| {
            header.slots.iter().any(|found| is_recorded(found, std::slice::from_ref(&slot)))
        };
        if is_there(&now) {
            volume.remove_slot(slot.index).doing(what)?;
            if is_there(&same(volume, plan)?) {
                return Err(Error::new(what()).because("it is still there"));
            }
        }
    }
    Ok(Ended::Done)
}
