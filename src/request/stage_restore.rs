//! Staging a restore, and looking at one: what the running OS does.
//! Side: OS. Touches restage's own directory on the state file system, and a flag on the ESP.

use std::collections::BTreeSet;
use std::io::Read;

use serde::Serialize;

use super::find;
use super::restore::{ArchiveFile, RestoreBinding, RestoreRequest, SkipItem};
use super::{Operation, Staged, file_name};
use crate::apply::journal::{self, Decision, Journal, clear_away};
use crate::apply::restore::probe::Trial;
use crate::apply::restore::{
    Committed, Machine, extract, mended, over, probe, read_request, state_of,
};
use crate::error::{Doing, Error, Refused, Result};
use crate::format::archive::ReadError;
use crate::format::envelope::{self, RESTORE_REQUEST};
use crate::plan::restore::{Backup, PlannedRestore, RestoreFacts, plan};
use crate::platform::Store;
use crate::platform::state_fs::Place;
use crate::profile::{Profile, State};
use crate::report::{Outcome, Report};

/// A backup that would be accepted.
pub struct Checked {
    /// What is in it.
    pub backup: Backup,
    /// What it was planned on.
    pub facts: RestoreFacts,
    /// What would happen.
    pub planned: PlannedRestore,
}

/// Reads a backup to its end, and checks everything that the initrd will check. Changes nothing.
pub fn check(
    machine: &mut Machine,
    profile: &Profile,
    skip: &BTreeSet<SkipItem>,
    source: &mut dyn Read,
    trial: Trial,
) -> Result<Result<Checked, Refused>> {
    let state = state_of(profile)?;
    let backup = match extract::read(machine.parse, source, state, &mut |_, _| Ok(())) {
        Ok(backup) => backup,
        Err(ReadError::Bad(why)) => return Ok(Err(Refused::because(format!("the backup: {why}")))),
        Err(ReadError::Io(error) | ReadError::Parser(error)) => {
            return Err(Error::new("cannot read the backup").because(error));
        }
    };
    let checked = check_backup(machine, profile, skip, &backup, trial)?;
    Ok(checked.map(|(planned, facts)| Checked { backup, facts, planned }))
}

/// The same for a backup that has been read.
pub fn check_backup(
    machine: &mut Machine,
    profile: &Profile,
    skip: &BTreeSet<SkipItem>,
    backup: &Backup,
    trial: Trial,
) -> Result<Result<(PlannedRestore, RestoreFacts), Refused>> {
    let state = state_of(profile)?;
    let facts = probe::facts(machine, state, skip, Some(backup), trial)?;
    Ok(plan(skip, state, backup, &facts).map(|planned| (planned, facts)))
}

/// What cannot be, whatever the backup is; looked at before anything is written.
pub fn check_place(machine: &Machine, profile: &State) -> Result<Result<(), Refused>> {
    if machine.is_offline || profile.allow_unencrypted {
        return Ok(Ok(()));
    }
    let what = || "cannot tell whether the state file system is encrypted".to_owned();
    Ok(if machine.state.is_encrypted().doing(what)? {
        Ok(())
    } else {
        Err(Refused::because(format!(
            "the file system of /{} is not encrypted, and a backup holds keys",
            profile.directory
        )))
    })
}

/// Whether a new request may be staged beside what is in the store.
pub fn room(store: &dyn Store) -> Result<Result<(), Refused>> {
    let found = find::look(store)?;
    if let Some(stem) = found.committed.first() {
        return Ok(Err(Refused::because(format!(
            "the restore {stem} is not confirmed yet; `restage confirm` keeps it, and it rolls itself back otherwise"
        ))));
    }
    Ok(match found.staged.first() {
        Some(stem) => Err(Refused::because(format!(
            "a restore ({stem}) is staged already; withdraw it with `restage cancel`, or use --replace"
        ))),
        None => Ok(()),
    })
}

/// Copies the archive into the store. Without the request it means nothing.
pub fn take_in(
    machine: &mut Machine,
    profile: &State,
    id: &str,
    source: &mut dyn Read,
) -> Result<ArchiveFile> {
    let what = || "cannot stage the backup".to_owned();
    machine.state.remove(Place::New).doing(what)?;
    let found = mended(machine)?;
    if !found.committed.is_empty() {
        let why =
            "an earlier restore did not get to its report: `restage confirm`, or a boot, ends it";
        return Err(Error::new(what()).because(why));
    }
    for stem in found.leftovers {
        clear_away(machine.store.as_mut(), &stem)?;
    }
    let limit = profile.max_bytes.saturating_add(extract::OVERHEAD_BYTES);
    let mut source = extract::Hashing::new(source.take(limit));
    machine.store.create_from(&file_name(id, "ARC"), &mut source).doing(what)?;
    let (sha256, bytes) = source.finish();
    if bytes >= limit {
        clear_away(machine.store.as_mut(), &super::stem(id))?;
        return Err(Error::new(what()).because(format!("it is larger than {limit} bytes")));
    }
    Ok(ArchiveFile { sha256, bytes })
}

/// Stages what was checked and taken in. Durable when this returns: the flag first, which authorises
/// nothing, then the request, whose appearance is the staging.
pub fn stage(
    machine: &mut Machine,
    flags: Option<&mut dyn Store>,
    checked: &Checked,
    archive: ArchiveFile,
    skip: &BTreeSet<SkipItem>,
    staged: Staged,
    id: &str,
) -> Result<()> {
    let what = || "cannot stage the restore".to_owned();
    let host = &machine.host;
    let volumes = checked.facts.volumes.iter().filter_map(|volume| {
        let header = volume.header.as_ref().ok()?;
        Some((volume.name.clone(), header.uuid.clone()))
    });
    let request = RestoreRequest {
        id: id.to_owned(),
        operation: Operation::Restore,
        staged,
        archive,
        skip: skip.clone(),
        machine: RestoreBinding {
            smbios: host.smbios.clone(),
            os_id: host.os_id.clone(),
            image_id: host.image_id.clone(),
            volumes: volumes.collect(),
        },
    };
    let mut flags = flags;
    if let Some(flags) = flags.as_deref_mut() {
        // A reset's, whose reports are here.
        journal::settle_esp(flags);
        journal::mend::<journal::Committed>(flags, machine.host.now)?;
        tidy_flags(machine.store.as_ref(), flags)?;
        flags.make_room(&super::stem(id)).doing(what)?;
        flags.mark(&file_name(id, "FLG")).doing(what)?;
    }
    let bytes = envelope::encode(&request, RESTORE_REQUEST).doing(what)?;
    let put = machine.store.create(&file_name(id, "REQ"), &bytes).doing(what);
    if put.is_err() {
        // The flag goes last: where the request may be there, something has to say so.
        let gone = clear_away(machine.store.as_mut(), &super::stem(id)).and_then(|()| {
            flags.map_or(Ok(()), |flags| flags.remove(&file_name(id, "FLG"))).doing(what)
        });
        if let Err(error) = gone {
            log::warn!("{}", error.chain());
        }
    }
    put
}

/// Leaves nothing of a backup that was taken in and not staged.
pub fn abandon(machine: &mut Machine, id: &str) -> Result<()> {
    let what = || "cannot remove what is left of a trial".to_owned();
    machine.state.remove(Place::New).doing(what)?;
    clear_away(machine.store.as_mut(), &super::stem(id))
}

/// Withdraws what is staged and not committed; returns the ids. Durable when this returns. What was taken
/// in for `next`, which is about to be staged instead, stays.
pub fn cancel(machine: &mut Machine, next: Option<&str>) -> Result<Vec<String>> {
    let mut ids = Vec::new();
    let found = mended(machine)?;
    // Of a boot, or a staging, that was cut off.
    let what = || "cannot remove an extracted backup".to_owned();
    machine.state.remove(Place::New).doing(what)?;
    let next = next.map(super::stem);
    for stem in found.leftovers.into_iter().filter(|stem| Some(stem) != next.as_ref()) {
        clear_away(machine.store.as_mut(), &stem)?;
    }
    for stem in found.staged {
        let request = read_request(machine.store.as_ref(), &stem);
        // It is withdrawn all the same.
        let request = request.inspect_err(|error| log::warn!("{}", error.chain())).ok();
        let reason = "withdrawn before it was committed";
        if let Err(error) = over(machine, &stem, request.as_ref(), Outcome::Cancelled, reason) {
            // As where it is full: what must go goes without a report. If it cannot, that is the reason.
            log::warn!("{}", error.chain());
            clear_away(machine.store.as_mut(), &stem).map_err(|_| error)?;
        }
        ids.push(request.map_or_else(|| stem.to_lowercase(), |request| request.id));
    }
    Ok(ids)
}

/// Removes the flags on the ESP that no restore needs any more, and what a cut has left of making one.
pub fn tidy_flags(store: &dyn Store, flags: &mut dyn Store) -> Result<()> {
    let what = || "cannot remove a restore's flag from the ESP".to_owned();
    let (found, on_esp) = (find::look(store)?, find::look(flags)?);
    let names = flags.names().doing(what)?;
    for stem in &on_esp.leftovers {
        // What is left of a reset is the initrd's to clear away.
        if !names.contains(&format!("{stem}.RPT")) {
            clear_away(flags, stem)?;
        }
    }
    for flag in on_esp.flags {
        if !found.staged.contains(&flag) && !found.committed.contains(&flag) {
            flags.remove(&format!("{flag}.FLG")).doing(what)?;
        }
    }
    Ok(())
}

/// What `restage status` tells about restores.
#[derive(Debug, Default, Serialize)]
pub struct RestoreStatus {
    /// Restores that the next boot will look at.
    pub staged: Vec<StagedRestore>,
    /// Restores that are not confirmed, or not finished.
    pub open: Vec<OpenRestore>,
    /// What is left of restores that were never staged, or have ended.
    pub abandoned: Vec<String>,
    /// Keys that restores have replaced, by the id of the restore.
    pub superseded: Vec<SupersededKeys>,
    /// What ended, newest first.
    #[serde(skip)]
    pub reports: Vec<Report>,
}

/// A staged restore.
#[derive(Debug, Serialize)]
pub struct StagedRestore {
    /// Its id; the file's stem when it cannot be read.
    pub id: String,
    /// What it says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<RestoreRequest>,
    /// Why it cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub damaged: Option<String>,
}

/// A committed restore.
#[derive(Debug, Serialize)]
pub struct OpenRestore {
    /// Its id; the file's stem when it cannot be read.
    pub id: String,
    /// Boots handed over to the restored state so far.
    pub boots: usize,
    /// So many may go unconfirmed.
    pub of: u32,
    /// `window`, `confirming`, `rolling-back`, `applying` or `damaged`.
    pub phase: &'static str,
    /// Why it is being rolled back, or cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Failures so far.
    pub failures: Vec<String>,
}

/// Keys that a restore has replaced.
#[derive(Debug, Serialize)]
pub struct SupersededKeys {
    /// Id of the restore.
    pub id: String,
    /// The files.
    pub files: Vec<String>,
}

/// Reads what there is. Changes nothing.
pub fn status(machine: &Machine) -> Result<RestoreStatus> {
    let store = machine.store.as_ref();
    let found = find::look(store)?;
    let staged = found.staged.iter().map(|stem| match read_request(store, stem) {
        Ok(request) => {
            StagedRestore { id: request.id.clone(), request: Some(request), damaged: None }
        }
        Err(error) => {
            StagedRestore { id: stem.to_lowercase(), request: None, damaged: Some(error.chain()) }
        }
    });
    let mut superseded = Vec::new();
    let what = || "cannot list the keys that are kept aside".to_owned();
    for id in machine.state.superseded().doing(what)? {
        let listing = machine.state.list(Place::Superseded(&id)).doing(what)?;
        let odd = listing.odd.iter().map(|(name, _)| name.clone());
        let files = listing.files().map(ToOwned::to_owned).chain(odd).collect();
        superseded.push(SupersededKeys { id, files });
    }
    Ok(RestoreStatus {
        staged: staged.collect(),
        open: found.committed.iter().map(|stem| open(store, stem)).collect(),
        abandoned: found.leftovers.iter().map(|stem| stem.to_lowercase()).collect(),
        superseded,
        reports: journal::reports(store)?,
    })
}

fn open(store: &dyn Store, stem: &str) -> OpenRestore {
    match Journal::<Committed>::load(store, stem) {
        Err(error) => OpenRestore {
            id: stem.to_lowercase(),
            boots: 0,
            of: 0,
            phase: "damaged",
            reason: Some(error.chain()),
            failures: Vec::new(),
        },
        Ok(journal) => {
            let (phase, reason) = match &journal.progress.decision {
                Some(Decision::Confirm) => ("confirming", None),
                Some(Decision::RollBack(reason)) => ("rolling-back", Some(reason.clone())),
                None if journal.progress.hand_overs > 0 => ("window", None),
                None => ("applying", None),
            };
            OpenRestore {
                id: journal.id().to_owned(),
                boots: journal.progress.hand_overs,
                of: journal.committed.plan.unconfirmed_boots,
                phase,
                reason,
                failures: journal.progress.newest_failures(),
            }
        }
    }
}
