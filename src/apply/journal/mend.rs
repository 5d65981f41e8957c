//! What a power cut on FAT leaves of files that were not synced yet, and how it is made good.
//! Side: both. Touches a directory of restage's own.

use super::end::{read_report, remove_file};
use super::{Commit, Journal};
use crate::error::{Doing, Result, chain};
use crate::format::envelope::{self, EnvelopeError, MAX_BYTES, REPORT};
use crate::platform::Store;
use crate::report::{Outcome, Report};
use crate::request::find::{self, Found};

/// Removes what a cut has left in free clusters: to be done before anything is made. Not a report that
/// [`mend`] makes again, nor a journal that has progress: that one was durable. Returns those that it
/// leaves.
pub fn remove_unlinked(store: &mut dyn Store) -> Result<Vec<String>> {
    let what = || "cannot remove what was cut off while it was made".to_owned();
    let mut left = Vec::new();
    let mut stays = store.names().doing(what)?;
    let mut unlinked = find::unlinked(store, &stays);
    // What goes itself says nothing of others; a journal is looked at before its report.
    stays.retain(|name| !unlinked.contains(name));
    unlinked.sort();
    for name in unlinked {
        let (stem, extension) = name.split_once('.').unwrap_or_default();
        let has = |extension: &str| stays.contains(&format!("{stem}.{extension}"));
        match extension {
            "JNL" if has_progress(&stays, stem) => {
                stays.push(name.clone());
                left.push(name);
            }
            "RPT" if has("JNL") || has("REQ") => left.push(name),
            _ => {
                log::warn!("{name} was cut off while it was made or removed: it goes");
                remove_file(store, &name).doing(what)?;
            }
        }
    }
    Ok(left)
}

/// Makes durable what lies there, unless all of it has ended: before anything rests on it.
pub fn settle(store: &mut dyn Store) -> Result<()> {
    let what = || "cannot make durable what lies there".to_owned();
    if find::sort(&store.names().doing(what)?).is_empty() {
        return Ok(());
    }
    store.settle().doing(what)
}

/// The same on the ESP, where a failure is only told: it may be of a file that matters to nobody, and a
/// boot must not hold for that. On a disk that fails, the next record fails as well, and is counted.
pub fn settle_esp(store: &mut dyn Store) {
    if let Err(error) = settle(store) {
        log::warn!("{}", error.chain());
    }
}

/// Makes good what a power cut on FAT leaves of a file that was not synced yet: it is there, and empty,
/// damaged or unreadable. Returns what lies there then.
///
/// A journal that is nothing and has no progress was never committed: before the first step there is
/// always a file of progress. A report that is nothing beside a whole journal is written again from
/// there; beside a request alone it is replaced, for that operation is over.
pub fn mend<C: Commit>(store: &mut dyn Store, now: u64) -> Result<Found> {
    let what = || "cannot make good what a power cut has left".to_owned();
    let unlinked = remove_unlinked(store)?;
    let found = find::look(store)?;
    let mut is_changed = false;
    for stem in &found.committed {
        if !has_progress(&store.names().doing(what)?, stem) && is_nothing::<C>(store, stem) {
            log::warn!("{stem}.JNL is no journal, and nothing was done yet: it is removed");
            store.remove(&format!("{stem}.JNL")).doing(what)?;
            is_changed = true;
        }
    }
    for stem in &found.leftovers {
        let names = store.names().doing(what)?;
        let has = |extension: &str| names.contains(&format!("{stem}.{extension}"));
        let name = format!("{stem}.RPT");
        if !has("RPT") || (!unlinked.contains(&name) && read_report(store, &name).is_some()) {
            continue;
        }
        if has("JNL") {
            // Whatever came of it, the journal has to say.
            Journal::<C>::load(store, stem)?;
            log::warn!("{name} is written again");
            store.remove(&name).doing(what)?;
            is_changed = true;
        } else if has("REQ") {
            log::warn!("nothing but {name} says what came of the request: it is replaced");
            let reason = "it ended before it was committed, and its report was lost in a power cut";
            let report = Report {
                id: stem.to_lowercase(),
                operation: None,
                outcome: Outcome::Refused,
                reason: Some(reason.to_owned()),
                staged: None,
                finished_at: now,
                runs: 0,
                failures: Vec::new(),
                steps: Vec::new(),
                restage: env!("CARGO_PKG_VERSION").to_owned(),
            };
            store.remove(&name).doing(what)?;
            let bytes = envelope::encode(&report, REPORT).doing(what)?;
            store.create(&name, &bytes).doing(what)?;
        }
    }
    if is_changed { find::look(store) } else { Ok(found) }
}

/// Whether a boot has worked on it.
fn has_progress(names: &[String], stem: &str) -> bool {
    names.iter().any(|name| {
        let extension = name.strip_prefix(stem).and_then(|rest| rest.strip_prefix('.'));
        extension.is_some_and(|extension| {
            extension.strip_prefix(|c: char| c.is_ascii_uppercase()).is_some_and(|number| {
                !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
            })
        })
    })
}

/// Whether a journal is no whole file: a newer one, or one of another kind, is something.
fn is_nothing<C: Commit>(store: &dyn Store, stem: &str) -> bool {
    match store.read(&format!("{stem}.JNL"), MAX_BYTES) {
        Ok(Some(bytes)) => matches!(
            envelope::parse::<C>(&bytes, C::KIND),
            Err(EnvelopeError::Malformed(_) | EnvelopeError::Checksum)
        ),
        Ok(None) => false,
        Err(error) => {
            log::warn!("{}", chain(&error));
            true
        }
    }
}
