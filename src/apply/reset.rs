//! Factory reset in the initrd: find, check, commit, carry out, report; or resume.
//! Side: initrd. Touches the TPM, the disk and restage's directory on the ESP.

use super::journal::{self, Committed, Journal, clear_away};
use super::probe::{self, Scope};
use super::{Ending, run};
use crate::error::{Doing, Error, Next, Refused, Result, chain};
use crate::format::envelope::MAX_BYTES;
use crate::format::seed::Seeds;
use crate::format::sha256_hex;
use crate::plan::{check, render, reset};
use crate::platform::{Machine, Store, console};
use crate::profile::{AfterReset, Profile};
use crate::report::{Outcome, Report, StepReport};
use crate::request::{Request, file_name, find, json, stage};

/// So many failures, and the boot holds. A power cut is not a failure.
const MAX_FAILURES: usize = 3;

/// What a run came to. What the boot does with it is decided by the caller, in one place.
#[derive(Debug)]
pub enum Applied {
    /// There was nothing to do.
    Nothing,
    /// Every request was refused and set aside; nothing is destroyed.
    Refused(Vec<String>),
    /// The reset is done.
    Done {
        /// Why a reboot has to follow; none when the boot may go on.
        reboot: Option<String>,
    },
    /// The firmware acts at the next boot, and then the reset goes on.
    RebootFirst,
    /// Committed and not finished; the error says what the boot does next.
    Unfinished(Error),
}

/// Does what there is to do. An error is a failure before the commit.
pub fn apply(machine: &mut Machine, profile: &Profile) -> Result<Applied> {
    let found = find::look(machine.esp.as_ref())?;
    let is_committed = !found.committed.is_empty();
    journal::settle_esp(machine.esp.as_mut());
    let found = match journal::mend::<Committed>(machine.esp.as_mut(), machine.host.now) {
        Ok(found) => found,
        Err(error) if is_committed => return Ok(Applied::Unfinished(error.after_commit())),
        Err(error) => return Err(error),
    };
    match found.committed.as_slice() {
        [] => {}
        [stem] => return Ok(resume(machine, profile, stem)),
        several => {
            let error = Error::new(format!("{} journals are committed", several.len()))
                .because(several.join(", "));
            return Ok(Applied::Unfinished(error.hold()));
        }
    }
    for stem in &found.leftovers {
        clear_away(machine.esp.as_mut(), stem)?;
    }
    start(machine, profile, &found.staged)
}

/// Looks at the staged requests. At most one is accepted, and only alone.
fn start(machine: &mut Machine, profile: &Profile, staged: &[String]) -> Result<Applied> {
    let now = machine.host.now;
    let mut good = Vec::new();
    let mut refusals = Vec::new();
    for stem in staged {
        match stage::read(machine.esp.as_ref(), stem) {
            Ok(request) => good.push(request),
            Err(error) => {
                let reason = error.chain();
                set_aside(machine.esp.as_mut(), stem, None, &reason, now)?;
                refusals.push(reason);
            }
        }
    }
    if good.len() > 1 {
        for request in good {
            let reason = "several requests are staged, and which one is meant is not known";
            let id = request.id.clone();
            set_aside(
                machine.esp.as_mut(),
                &crate::request::stem(&id),
                Some(request),
                reason,
                now,
            )?;
            refusals.push(format!("{id}: {reason}"));
        }
        return Ok(Applied::Refused(refusals));
    }
    let Some(request) = good.pop() else {
        return Ok(if refusals.is_empty() { Applied::Nothing } else { Applied::Refused(refusals) });
    };
    let prepared = prepare(machine, profile, &request);
    let stem = crate::request::stem(&request.id);
    if let Err(refused) = &prepared
        && !find::look(machine.esp.as_ref()).is_ok_and(|now| now.committed.is_empty())
    {
        // The journal appeared, or may have, and only then something failed: that is a commit.
        let error = Error::new("the reset is, or may be, committed").because(refused.clone());
        return Ok(Applied::Unfinished(error.after_commit()));
    }
    match prepared {
        Ok(journal) => Ok(carry_out(machine, journal)),
        Err(refused) => {
            set_aside(machine.esp.as_mut(), &stem, Some(request), &refused.reason, now)?;
            refusals.push(refused.reason);
            Ok(Applied::Refused(refusals))
        }
    }
}

/// Preflight and commit. Whatever goes wrong before the commit is a refusal: a request must not lie
/// in wait for a boot at which it happens to work.
fn prepare(
    machine: &mut Machine,
    profile: &Profile,
    request: &Request,
) -> Result<Journal, Refused> {
    let refused = |error: Error| Refused::because(error.chain());
    let facts = probe::facts(machine, profile, Scope::Boot).map_err(refused)?;
    check::request(request, profile, &facts)?;
    let ask = reset::Ask {
        allow_tpm_reset_failure: request.allow_tpm_reset_failure,
        wipe_existing_seeds: request.wipe_existing_seeds,
        seeds: read_seeds(machine, profile, request).map_err(refused)?,
    };
    let planned = reset::plan(&ask, profile, &facts)?;
    // Not before: a boot that goes on after a refusal must find the disk undisturbed.
    make_writable(machine).map_err(refused)?;
    console::set_id(&request.id);
    log::info!("committing {} {}", request.operation, request.id);
    let committed = Committed {
        request: request.clone(),
        profile: profile.name.clone(),
        at: facts.host.now,
        plan: planned.plan,
    };
    let archive = planned.archive.as_ref().map(|bytes| bytes.as_slice());
    let journal = Journal::commit(machine.esp.as_mut(), committed, archive).map_err(refused)?;
    log::info!("committed {} {}", request.operation, request.id);
    Ok(journal)
}

/// From here on, what is read of the disk is durable: also where a machine was reset while its power
/// stayed, and the disk still has in its cache what an earlier run wrote.
fn make_writable(machine: &mut Machine) -> Result<()> {
    let disk = machine.disk.as_mut();
    let settled =
        disk.make_writable().and_then(|()| disk.flush()).and_then(|()| disk.forget_cache());
    settled.doing(|| format!("cannot write to {}", machine.disk.name()))
}

fn read_seeds(machine: &Machine, profile: &Profile, request: &Request) -> Result<Seeds> {
    let Some(file) = &request.seeds else { return Ok(Seeds::new()) };
    let name = file_name(&request.id, "SED");
    let what = || format!("cannot use the staged seeds {name}");
    if file.bytes > profile.limits.seed_bytes {
        return Err(Error::new(what()).because(format!("field `seeds.bytes` is {}", file.bytes)));
    }
    let bytes = machine.esp.read(&name, usize::try_from(file.bytes).doing(what)?).doing(what)?;
    let bytes = bytes.ok_or_else(|| Error::new(what()).because("the file is not there"))?;
    let bytes = zeroize::Zeroizing::new(bytes);
    if sha256_hex(&bytes) != file.sha256 {
        return Err(Error::new(what()).because("its SHA-256 is not the one in the request"));
    }
    let mut text = serde_json::Deserializer::from_slice(&bytes);
    let seeds = json::each_once(&mut text).doing(what)?;
    text.end().doing(what)?;
    Ok(seeds)
}

/// A committed operation goes on, on the disk that it was planned for, or nothing is touched.
fn resume(machine: &mut Machine, profile: &Profile, stem: &str) -> Applied {
    let mut journal: Journal = match Journal::load(machine.esp.as_ref(), stem) {
        Ok(journal) => journal,
        Err(error) => return Applied::Unfinished(error.hold()),
    };
    let committed = &journal.committed;
    console::set_id(journal.id());
    log::info!("resuming {} {}", committed.request.operation, committed.request.id);
    let facts = match resume_facts(machine) {
        Ok(facts) => facts,
        // A disk that cannot be read now may be readable at the next boot.
        Err(error) => {
            return Applied::Unfinished(fail(machine, &mut journal, error.after_commit()));
        }
    };
    let what = || "the committed reset cannot go on, and nothing was touched".to_owned();
    if let Err(error) =
        check::journal(&committed.request, &committed.plan, profile, &facts).doing(what)
    {
        return Applied::Unfinished(error.hold());
    }
    match make_writable(machine) {
        Ok(()) => carry_out(machine, journal),
        Err(error) => Applied::Unfinished(fail(machine, &mut journal, error.after_commit())),
    }
}

/// On a resume only the disk and the host are compared; the TPM may be in any state.
fn resume_facts(machine: &mut Machine) -> Result<crate::plan::facts::Facts> {
    Ok(crate::plan::facts::Facts {
        disk: probe::disk(machine.disk.as_ref(), Scope::Boot)?,
        host: machine.host.clone(),
        tpm: crate::plan::facts::TpmFacts::Absent,
        seed_start: None,
        esp_paths: Vec::new(),
        loaded_credentials: Vec::new(),
        other_tpm_volumes: Vec::new(),
    })
}

/// From the commit to the report. After the commit nothing is returned but an end or an
/// unfinished operation.
fn carry_out(machine: &mut Machine, mut journal: Journal) -> Applied {
    let ended = journal
        .record_run(machine.esp.as_mut())
        .and_then(|()| run(machine, &mut journal))
        .and_then(|ending| end(machine, &journal, ending));
    match ended {
        Ok(applied) => applied,
        Err(error) => Applied::Unfinished(fail(machine, &mut journal, error.after_commit())),
    }
}

fn end(machine: &mut Machine, journal: &Journal, ending: Ending) -> Result<Applied> {
    let (outcome, reason) = match ending {
        Ending::RebootFirst => return Ok(Applied::RebootFirst),
        Ending::Done => (Outcome::Done, None),
        Ending::Refused(reason) => (Outcome::Refused, Some(reason)),
    };
    if outcome == Outcome::Done {
        // What they stand for went with the state file system.
        for flag in find::look(machine.esp.as_ref())?.flags {
            let name = format!("{flag}.FLG");
            machine.esp.remove(&name).doing(|| format!("cannot remove {name}"))?;
        }
    }
    let report = report(journal, outcome, reason.clone(), machine.host.now);
    journal::finish(machine.esp.as_mut(), &report, &console::recorded())?;
    let plan = &journal.committed.plan;
    Ok(match reason {
        Some(reason) => Applied::Refused(vec![reason]),
        None => Applied::Done {
            reboot: match (plan.after, &plan.reboot_because) {
                (_, Some(reason)) => Some(reason.clone()),
                (AfterReset::Reboot, None) => Some("the profile says so".to_owned()),
                (AfterReset::Continue, None) => None,
            },
        },
    })
}

/// Records the failure and decides between another boot and holding.
fn fail(machine: &mut Machine, journal: &mut Journal, error: Error) -> Error {
    match journal.record_failure(machine.esp.as_mut(), 0, &error.chain()) {
        // What cannot be counted cannot be limited.
        Err(unrecorded) => {
            log::error!("{}", unrecorded.chain());
            error.hold()
        }
        Ok(()) if journal.progress.failures.len() >= MAX_FAILURES => error.hold(),
        Ok(()) => error,
    }
}

fn report(journal: &Journal, outcome: Outcome, reason: Option<String>, now: u64) -> Report {
    let committed = &journal.committed;
    let steps = committed.plan.steps.iter().enumerate().filter_map(|(index, step)| {
        let passed_over = journal.progress.passed_over.get(&index).cloned();
        journal.progress.is_over(index).then(|| StepReport {
            step: step.name(),
            what: render::describe(step, committed.plan.sector_bytes),
            passed_over,
        })
    });
    Report {
        id: committed.request.id.clone(),
        operation: Some(committed.request.operation),
        outcome,
        reason,
        staged: Some(committed.request.staged.clone()),
        finished_at: now,
        runs: u32::try_from(journal.progress.runs).unwrap_or(u32::MAX),
        failures: journal.progress.newest_failures(),
        steps: steps.collect(),
        restage: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

/// Sets a request aside: a copy for inspection, the report that ends it, and then it goes.
pub fn set_aside(
    store: &mut dyn Store,
    stem: &str,
    request: Option<Request>,
    reason: &str,
    now: u64,
) -> Result<()> {
    log::error!("refused: {reason}");
    // Space first: a refusal may be for want of it.
    for extension in ["TAR", "SED"] {
        let name = format!("{stem}.{extension}");
        store.shred(&name).doing(|| format!("cannot remove {name}"))?;
    }
    let reserve = format!("{stem}.RSV");
    store.remove(&reserve).doing(|| format!("cannot remove {reserve}"))?;
    let name = format!("{stem}.REQ");
    let copy = format!("{stem}.BAD");
    if let Ok(Some(mut bytes)) = store.read(&name, MAX_BYTES) {
        bytes.truncate(journal::MAX_ASIDE_BYTES);
        if let Err(error) = store.remove(&copy).and_then(|()| store.create(&copy, &bytes)) {
            log::warn!("cannot keep a copy of {name}: {}", chain(&error));
        }
    }
    let id = request.as_ref().map_or_else(|| stem.to_lowercase(), |r| r.id.clone());
    let report = stage::over(&id, request, Outcome::Refused, reason, now);
    let mut ended = journal::finish(store, &report, &console::recorded());
    if ended.is_err() && store.remove(&copy).is_ok() {
        // The copy may have taken the room that the report needs.
        ended = journal::finish(store, &report, &console::recorded());
    }
    if ended.is_err() {
        // No report: then at least the request must go.
        store.remove(&name).doing(|| format!("cannot remove {name}"))?;
    }
    ended
}

/// What the boot does after [`apply`].
#[must_use]
pub fn next(applied: &Applied) -> Next {
    match applied {
        Applied::Nothing | Applied::Refused(_) | Applied::Done { reboot: None } => {
            Next::ContinueBoot
        }
        Applied::Done { reboot: Some(_) } | Applied::RebootFirst => Next::RetryNextBoot,
        Applied::Unfinished(error) => error.next(),
    }
}
