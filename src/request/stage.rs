//! Staging, cancelling, looking: what the running OS does.
//! Side: OS. Touches restage's directory on the ESP, and nothing else.

use serde::Serialize;
use zeroize::Zeroizing;

use super::{Operation, Request, SeedFile, Staged, check_name, file_name, find, is_valid_id};
use crate::apply::journal::{self, Journal, clear_away};
use crate::apply::probe::{self, Scope};
use crate::error::{Doing, Error, Refused, Result};
use crate::format::envelope::{self, MAX_BYTES, REQUEST};
use crate::format::sha256_hex;
use crate::plan::{Plan, facts::Facts, reset};
use crate::platform::{Machine, Store};
use crate::profile::Profile;
use crate::report::{Outcome, Report};

/// A request that would be accepted, before anything is written.
pub struct Prepared {
    /// What would happen.
    pub plan: Plan,
    /// What it was planned on.
    pub facts: Facts,
    ask: reset::Ask,
}

/// Checks everything that the initrd will check. Changes nothing.
pub fn prepare(
    machine: &mut Machine,
    profile: &Profile,
    ask: reset::Ask,
) -> Result<Result<Prepared, Refused>> {
    let facts = probe::facts(machine, profile, Scope::Staging)?;
    Ok(reset::plan(&ask, profile, &facts).map(|planned| Prepared {
        plan: planned.plan,
        facts,
        ask,
    }))
}

/// What becomes of a request that is staged already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Present {
    /// The new one is refused.
    Keep,
    /// It is cancelled.
    Replace,
}

/// Whether a new request may be staged beside what lies on the ESP. Changes nothing.
pub fn room(store: &dyn Store, present: Present) -> Result<Result<(), Refused>> {
    let found = find::look(store)?;
    if let Some(stem) = found.committed.first() {
        return Ok(Err(Refused::because(format!(
            "an operation ({stem}) is committed and unfinished; reboot to let it finish"
        ))));
    }
    Ok(match found.staged.first() {
        Some(stem) if present == Present::Keep => Err(Refused::because(format!(
            "a request ({stem}) is staged already; withdraw it with `restage cancel`, or use --replace"
        ))),
        _ => Ok(()),
    })
}

/// Stages what was prepared. Durable when this returns: seeds first, then the request, whose
/// appearance is the staging. What was staged before is cancelled first.
pub fn stage(
    machine: &mut Machine,
    profile: &Profile,
    prepared: &Prepared,
    staged: Staged,
    id: &str,
) -> Result<()> {
    stage_marked(machine, profile, prepared, staged, id, None)
}

/// The same; before the request there is a mark with this extension.
pub(crate) fn stage_marked(
    machine: &mut Machine,
    profile: &Profile,
    prepared: &Prepared,
    staged: Staged,
    id: &str,
    mark: Option<&str>,
) -> Result<()> {
    let what = || "cannot stage the request on the ESP".to_owned();
    clear_leftovers(machine.esp.as_mut(), staged.at).doing(what)?;
    machine.esp.make_room(&super::stem(id)).doing(what)?;
    cancel(machine.esp.as_mut(), staged.at)?;
    if let Some(extension) = mark {
        machine.esp.mark(&file_name(id, extension)).doing(what)?;
    }
    let put = put(machine, profile, prepared, staged, id);
    // Nothing else would remove the seeds before the next boot.
    if put.is_err()
        && let Err(error) = clear_away(machine.esp.as_mut(), &super::stem(id))
    {
        log::warn!("{}", error.chain());
    }
    put
}

/// Clears away what is left of operations that have ended, or were never begun. Durable when this
/// returns.
pub fn clear_leftovers(store: &mut dyn Store, now: u64) -> Result<()> {
    let found = find::look(store)?;
    // A report that was cut off is made good before what it stands for is cleared away; one that cannot
    // be read just now may be a good one.
    for stem in &found.leftovers {
        let report = format!("{stem}.RPT");
        store.read(&report, MAX_BYTES).doing(|| format!("cannot read {report}"))?;
    }
    journal::settle_esp(store);
    let found = journal::mend::<journal::Committed>(store, now)?;
    if !found.committed.is_empty() {
        let why = "an earlier reset did not get to its report: a boot ends it";
        return Err(Error::new("cannot clear away what is left").because(why));
    }
    found.leftovers.iter().try_for_each(|stem| clear_away(store, stem))
}

fn put(
    machine: &mut Machine,
    profile: &Profile,
    prepared: &Prepared,
    staged: Staged,
    id: &str,
) -> Result<()> {
    let what = || "cannot stage the request on the ESP".to_owned();
    let ask = &prepared.ask;
    let seeds = if ask.seeds.is_empty() {
        None
    } else {
        let text = Zeroizing::new(serde_json::to_vec(&ask.seeds).doing(what)?);
        machine.esp.create(&file_name(id, "SED"), &text).doing(what)?;
        Some(SeedFile {
            sha256: sha256_hex(&text),
            bytes: text.len() as u64,
            names: ask.seeds.keys().cloned().collect(),
        })
    };
    let request = Request {
        id: id.to_owned(),
        operation: Operation::FactoryReset,
        staged,
        machine: reset::binding(profile, &prepared.facts).doing(what)?,
        allow_tpm_reset_failure: ask.allow_tpm_reset_failure,
        wipe_existing_seeds: ask.wipe_existing_seeds,
        seeds,
    };
    let bytes = envelope::encode(&request, REQUEST).doing(what)?;
    if bytes.len() > MAX_BYTES {
        return Err(Error::new(what()).because("the request is too long"));
    }
    machine.esp.create(&file_name(id, "REQ"), &bytes).doing(what)
}

/// A new id whose files would meet no others.
pub fn new_id(store: &dyn Store) -> Result<String> {
    let what = || "cannot make a request id".to_owned();
    let names = store.names().doing(what)?;
    loop {
        let mut bytes = [0; 16];
        // Up to 256 bytes are never cut short (getrandom(2)).
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).doing(what)?;
        let id = crate::format::hex(&bytes);
        let stem = super::stem(&id);
        if is_valid_id(&id) && !names.iter().any(|name| name.starts_with(&stem)) {
            return Ok(id);
        }
    }
}

/// Withdraws what is staged and not committed; returns the ids. Durable when this returns.
pub fn cancel(store: &mut dyn Store, now: u64) -> Result<Vec<String>> {
    let mut ids = Vec::new();
    journal::settle_esp(store);
    journal::remove_unlinked(store)?;
    for stem in find::look(store)?.staged {
        let request = read(store, &stem);
        // It is withdrawn all the same.
        let request = request.inspect_err(|error| log::warn!("{}", error.chain())).ok();
        let id = request.as_ref().map_or_else(|| stem.to_lowercase(), |r| r.id.clone());
        let report =
            over(&id, request, Outcome::Cancelled, "withdrawn before it was committed", now);
        if let Err(error) = journal::finish(store, &report, "") {
            // As where it is full: what must go goes without a report. If it cannot, that is the reason.
            log::warn!("{}", error.chain());
            clear_away(store, &stem).map_err(|_| error)?;
        }
        ids.push(id);
    }
    Ok(ids)
}

/// The report of a request that was never committed.
#[must_use]
pub fn over(
    id: &str,
    request: Option<Request>,
    outcome: Outcome,
    reason: &str,
    now: u64,
) -> Report {
    Report {
        id: id.to_owned(),
        operation: request.as_ref().map(|r| r.operation),
        outcome,
        reason: Some(reason.to_owned()),
        staged: request.map(|r| r.staged),
        finished_at: now,
        runs: 0,
        failures: Vec::new(),
        steps: Vec::new(),
        restage: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

/// Reads the staged request with this stem; the error names what is wrong with it.
pub fn read(store: &dyn Store, stem: &str) -> Result<Request> {
    let name = format!("{stem}.REQ");
    let what = || format!("cannot use the request {name}");
    let bytes = store
        .read(&name, MAX_BYTES)
        .and_then(|bytes| bytes.ok_or_else(|| std::io::ErrorKind::NotFound.into()))
        .doing(what)?;
    let request: Request = envelope::parse(&bytes, REQUEST).doing(what)?;
    let of = (request.id.as_str(), request.operation);
    check_name(stem, "", of, Operation::FactoryReset).doing(what)?;
    Ok(request)
}

/// What `restage status` tells.
#[derive(Debug, Default, Serialize)]
pub struct Status {
    /// Requests that the next boot will look at.
    pub staged: Vec<StagedStatus>,
    /// Committed operations that are not finished.
    pub running: Vec<RunningStatus>,
    /// What ended, newest first.
    pub reports: Vec<Report>,
}

/// A staged request.
#[derive(Debug, Serialize)]
pub struct StagedStatus {
    /// Its id; the file's stem when it cannot be read.
    pub id: String,
    /// What it says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<Request>,
    /// Why it cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub damaged: Option<String>,
}

/// A committed operation.
#[derive(Debug, Serialize)]
pub struct RunningStatus {
    /// Its id; the file's stem when it cannot be read.
    pub id: String,
    /// Steps that are over.
    pub steps_over: usize,
    /// Steps of the plan.
    pub steps: usize,
    /// Failures so far.
    pub failures: Vec<String>,
    /// Why the journal cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub damaged: Option<String>,
}

/// Reads what there is. Changes nothing.
pub fn status(store: &dyn Store) -> Result<Status> {
    let found = find::look(store)?;
    let staged = found.staged.iter().map(|stem| match read(store, stem) {
        Ok(request) => {
            StagedStatus { id: request.id.clone(), request: Some(request), damaged: None }
        }
        Err(error) => {
            StagedStatus { id: stem.to_lowercase(), request: None, damaged: Some(error.chain()) }
        }
    });
    let running =
        found.committed.iter().map(|stem| match Journal::<journal::Committed>::load(store, stem) {
            Ok(journal) => RunningStatus {
                id: journal.id().to_owned(),
                steps_over: journal.progress.done.len() + journal.progress.passed_over.len(),
                steps: journal.committed.plan.steps.len(),
                failures: journal.progress.newest_failures(),
                damaged: None,
            },
            Err(error) => RunningStatus {
                id: stem.to_lowercase(),
                steps_over: 0,
                steps: 0,
                failures: Vec::new(),
                damaged: Some(error.chain()),
            },
        });
    Ok(Status {
        staged: staged.collect(),
        running: running.collect(),
        reports: journal::reports(store)?,
    })
}
