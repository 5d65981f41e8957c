//! The system that a backup would be restored to, read and not changed.
//! Side: both.

use std::collections::{BTreeMap, BTreeSet};

use zeroize::Zeroizing;

use super::Machine;
use super::extract::{self, MAX_STATE_BYTES};
use crate::error::{Doing, Result, chain};
use crate::format::archive::Kind;
use crate::format::luks::{Header, SlotKind};
use crate::format::state::StateFile;
use crate::plan::restore::{
    Backup, FileFacts, RecordedSlot, RestoreFacts, VolumeFacts, VolumeHeader,
};
use crate::platform::state_fs::{Place, only_entries, read_small};
use crate::platform::volume::{Volume, opening_slot};
use crate::profile::State;
use crate::request::restore::SkipItem;

/// A key file is a line of text or a block of bytes.
const MAX_KEY_BYTES: u64 = 64 * 1024;

/// Whether the exchange of two directories is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trial {
    /// No: nothing is changed, not even for a moment.
    Look,
    /// Yes.
    Make,
}

/// Looks at everything that the plan needs.
pub fn facts(
    machine: &mut Machine,
    profile: &State,
    skip: &BTreeSet<SkipItem>,
    backup: Option<&Backup>,
    trial: Trial,
) -> Result<RestoreFacts> {
    let what = || format!("cannot look at the state directory /{}", profile.directory);
    let mut files = BTreeMap::new();
    for entry in only_entries(machine.state.as_ref(), Place::State).doing(what)? {
        let Kind::File { bytes } = entry.kind else { continue };
        let sha256 =
            extract::digest(machine.state.as_ref(), Place::State, &entry.name).doing(what)?;
        files.insert(entry.name, FileFacts { bytes, sha256: sha256.unwrap_or_default() });
    }
    let state = match &profile.settings {
        None => None,
        Some(settings) => {
            let state = machine.state.as_ref();
            let bytes = read_small(state, Place::State, &settings.file, MAX_STATE_BYTES);
            Some(match bytes.doing(what)? {
                Some(bytes) => extract::parse_state(&bytes),
                None => Err("it is not there".to_owned()),
            })
        }
    };
    let skips_keys = skip.contains(&SkipItem::EncryptionRecoveryKeys);
    let volumes = if skips_keys { Vec::new() } else { volumes(machine, profile)? };
    let open_passphrases = match (&state, skips_keys) {
        (Some(Ok(state)), true) => {
            let there = backup.and_then(|backup| backup.state.as_ref()?.as_ref().ok());
            let there = there.into_iter().flat_map(StateFile::recovery_keys);
            let candidates: BTreeSet<&str> = state.recovery_keys().chain(there).collect();
            open_passphrases(machine, &candidates)
        }
        _ => Vec::new(),
    };
    let no_exchange = machine.state.check_place().and_then(|()| match trial {
        Trial::Look => Ok(()),
        Trial::Make => machine.state.try_exchange(),
    });
    Ok(RestoreFacts {
        host: machine.host.clone(),
        files,
        state,
        free_bytes: machine.state.free_bytes().doing(what)?,
        is_encrypted: if machine.is_offline {
            None
        } else {
            Some(machine.state.is_encrypted().doing(what)?)
        },
        no_exchange: no_exchange.err().map(|error| chain(&error)),
        other_state: machine.state.identity(Place::Sibling).doing(what)?.is_some(),
        is_hibernated: machine.is_hibernated,
        volumes,
        open_passphrases,
    })
}

fn volumes(machine: &Machine, profile: &State) -> Result<Vec<VolumeFacts>> {
    let mut facts = Vec::new();
    for (asked, volume) in profile.volumes.iter().zip(&machine.volumes) {
        let volume = volume.as_ref();
        let header = volume.header();
        let header =
            header.map_err(|error| format!("cannot read its LUKS2 header: {}", chain(&error)));
        let header = header
            .and_then(|found| found.map_err(|fault| format!("no valid LUKS2 header: {fault}")));
        let own_key = match &header {
            Err(why) => Err(why.clone()),
            Ok(header) => own_key(machine, volume, header, &asked.key)?,
        };
        facts.push(VolumeFacts {
            name: asked.name.clone(),
            header: header.map(|h| VolumeHeader::of(&h)),
            own_key,
        });
    }
    Ok(facts)
}

/// The slot that a key of the state directory opens; else why it opens none. Recovery keys are tried
/// first: they open quickly.
fn own_key(
    machine: &Machine,
    volume: &dyn Volume,
    header: &Header,
    name: &str,
) -> Result<Result<RecordedSlot, String>> {
    let what = || format!("cannot try the key `{name}` on `{}`", volume.name());
    let key = read_small(machine.state.as_ref(), Place::State, name, MAX_KEY_BYTES).doing(what)?;
    let Some(key) = key else { return Ok(Err("there is no such file".to_owned())) };
    let (first, then): (Vec<_>, Vec<_>) = header
        .slots
        .iter()
        .filter(|slot| slot.kind != SlotKind::Tpm2)
        .partition(|slot| slot.kind == SlotKind::Recovery);
    let found = opening_slot(volume, first.into_iter().chain(then), &key).doing(what)?;
    Ok(match found {
        Some(slot) => Ok(RecordedSlot { index: slot.index, digest: slot.digest.clone() }),
        None => Err("no key slot opens with it".to_owned()),
    })
}

/// The passphrases that open every volume. What cannot be tried does not open.
fn open_passphrases(machine: &Machine, candidates: &BTreeSet<&str>) -> Vec<Zeroizing<String>> {
    let opens = |volume: &dyn Volume, passphrase: &str| {
        let Ok(header) = volume.header()? else { return Ok(false) };
        let slots = header.slots.iter().filter(|slot| slot.kind == SlotKind::Password);
        Ok(opening_slot(volume, slots, passphrase.as_bytes())?.is_some())
    };
    let opens_all = |passphrase: &&&str| {
        machine.volumes.iter().all(|volume| {
            opens(volume.as_ref(), passphrase).unwrap_or_else(|error: std::io::Error| {
                let why = chain(&error);
                let name = volume.name();
                log::warn!("cannot read the header of `{name}` and try a passphrase: {why}");
                false
            })
        })
    };
    candidates.iter().filter(opens_all).map(|p| Zeroizing::new((*p).to_owned())).collect()
}
