//! What stands against a restore: of the backup, of the system, of the request, of the journal.
//! Side: both, the same rules at staging and at boot. Pure.

use std::collections::BTreeSet;

use super::facts::RestoreFacts;
use super::{RestorePlan, VolumePlan};
use crate::error::Refused;
use crate::format::luks::MAX_SLOTS;
use crate::format::state::{StateFile, weakness};
use crate::profile::State;
use crate::request::restore::{RestoreRequest, SkipItem};

/// Why an item cannot be skipped here: this OS has no such thing.
pub(super) fn check_skip(skip: &BTreeSet<SkipItem>, profile: &State) -> Result<(), Refused> {
    let is_there = |item: &SkipItem| match item {
        SkipItem::EncryptionRecoveryKeys | SkipItem::NetworkMacs => profile.settings.is_some(),
        SkipItem::LocalDataEncryptionKey => profile.local_data_key.is_some(),
    };
    match skip.iter().find(|item| !is_there(item)) {
        Some(item) => Err(Refused::because(format!("`--skip {item}`: this OS has no such thing"))),
        None => Ok(()),
    }
}

/// What the backup's state file must have.
pub(super) fn check_state(state: &StateFile) -> Result<(), Refused> {
    let mut count = 0;
    for (index, key) in state.recovery_keys().enumerate() {
        count += 1;
        if let Some(why) = weakness(key) {
            return Err(Refused::because(format!("recovery key {index} is too weak: {why}")));
        }
    }
    if count == 0 {
        return Err(Refused::because("it has no recovery key"));
    }
    Ok(())
}

/// What the system must be like.
pub(super) fn check_system(profile: &State, facts: &RestoreFacts) -> Result<(), Refused> {
    let refuse = |reason: String| Err(Refused::because(reason));
    if facts.is_encrypted == Some(false) && !profile.allow_unencrypted {
        return refuse(format!(
            "the file system of /{} is not encrypted, and a backup holds keys",
            profile.directory
        ));
    }
    if let Some(why) = &facts.no_exchange {
        return refuse(format!("/{} cannot be exchanged with another: {why}", profile.directory));
    }
    if facts.other_state {
        return refuse(format!(
            "the other state of a restore lies beside /{}, and no journal says why: its name ends with \
             `.restage`; look what is in it, and remove it",
            profile.directory
        ));
    }
    if facts.is_hibernated {
        return refuse("a hibernated system waits to be resumed".to_owned());
    }
    Ok(())
}

pub(super) fn volumes(
    profile: &State,
    facts: &RestoreFacts,
    passphrases: usize,
) -> Result<Vec<VolumePlan>, Refused> {
    let mut plans = Vec::new();
    for (volume, found) in profile.volumes.iter().zip(&facts.volumes) {
        let refuse = |why: &str| {
            Refused::because(format!(
                "volume `{}`: {why}; `--skip encryption-recovery-keys` leaves the passphrases alone",
                volume.name
            ))
        };
        let header = found.header.as_ref().map_err(|why| refuse(why))?;
        let own_key = found.own_key.as_ref().map_err(|why| {
            refuse(&format!("this machine's `{}` does not open it: {why}", volume.key))
        })?;
        if header.slots.len() + passphrases > MAX_SLOTS {
            return Err(refuse(&format!(
                "{} of {MAX_SLOTS} key slots are taken, and {passphrases} more are needed",
                header.slots.len()
            )));
        }
        plans.push(VolumePlan {
            name: volume.name.clone(),
            uuid: header.uuid.clone(),
            identity: header.identity.clone(),
            before: header.slots.clone(),
            old: header.passphrases.iter().filter(|slot| *slot != own_key).cloned().collect(),
        });
    }
    if plans.len() != profile.volumes.len() {
        return Err(Refused::because("the volumes of the profile were not all looked at"));
    }
    Ok(plans)
}

/// Whether a journaled plan is one that could have been made for this profile.
pub fn check_resumed(plan: &RestorePlan, profile: &State) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    for volume in &plan.volumes {
        if !profile.volumes.iter().any(|known| known.name == volume.name)
            || !seen.insert(&volume.name)
        {
            return Err(format!("field `plan.volumes`: `{}` is not expected", volume.name));
        }
        if !volume.old.iter().all(|slot| volume.before.contains(slot)) {
            return Err(format!("field `plan.volumes`: the slots of `{}`", volume.name));
        }
    }
    if let Some(name) = plan.superseded.iter().find(|name| !profile.is_precious(name)) {
        return Err(format!("field `plan.superseded`: `{name}` is no key"));
    }
    // Progress files have two digits.
    if !(1..=99).contains(&plan.unconfirmed_boots) {
        return Err("field `plan.unconfirmed_boots`: too few or too many".to_owned());
    }
    Ok(())
}

/// Whether the request is for this machine and not too old.
pub fn check_request(
    request: &RestoreRequest,
    max_age_s: u64,
    facts: &RestoreFacts,
) -> Result<(), Refused> {
    let host = &facts.host;
    let differs = |field: &str, asked: &Option<String>, here: &Option<String>| match (asked, here) {
        (Some(asked), Some(here)) if asked != here => Err(Refused::because(format!(
            "field `machine.{field}`: the request is for `{asked}`, and this is `{here}`"
        ))),
        _ => Ok(()),
    };
    differs("smbios", &request.machine.smbios, &host.smbios)?;
    differs("os_id", &request.machine.os_id, &host.os_id)?;
    differs("image_id", &request.machine.image_id, &host.image_id)?;
    for (name, uuid) in &request.machine.volumes {
        let now = facts.volumes.iter().find(|volume| volume.name == *name);
        let now = now.and_then(|volume| volume.header.as_ref().ok());
        if now.is_some_and(|now| now.uuid != *uuid) {
            return Err(Refused::because(format!(
                "field `machine.volumes`: `{name}` is another volume than the request was staged for"
            )));
        }
    }
    let age_s = host.now.saturating_sub(request.staged.at);
    if age_s > max_age_s {
        return Err(Refused::because(format!(
            "field `staged.at`: the request is {age_s} s old, and {max_age_s} s is the limit"
        )));
    }
    Ok(())
}
