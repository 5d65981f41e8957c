//! MAKE IT SO: resume, perform, record.
//! Side: initrd, but for `probe`, `table` and the reading half of `journal`.

pub mod effects;
pub mod journal;
pub mod probe;
pub mod reset;
pub mod restore;
pub mod systemd;
pub mod table;
pub mod tpm;

use crate::error::{Doing, Error, Result};
use crate::plan::{Step, TpmWay};
use crate::platform::Machine;
use crate::request::file_name;
use journal::Journal;
use tpm::Attempt;

/// What a step came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StepState {
    /// Its effect is durable and verified.
    Done,
    /// It could not be done, for this reason, and the request allows that.
    PassedOver(String),
    /// It was refused for good before anything was destroyed.
    Refused(String),
    /// The firmware has to act before it can go on.
    RebootFirst,
}

/// What all steps came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Every step is over.
    Done,
    /// Refused before anything was destroyed.
    Refused(String),
    /// A reboot, and then on.
    RebootFirst,
}

/// The driver: for each step in order, effect, then record. A step that is recorded stays done; one
/// that is not is performed again, from its beginning.
pub fn run(machine: &mut Machine, journal: &mut Journal) -> Result<Ending> {
    let steps = journal.committed.plan.steps.clone();
    let sector_bytes = journal.committed.plan.sector_bytes;
    for (index, step) in steps.iter().enumerate() {
        let place = format!("step {}/{}", index + 1, steps.len());
        let over = journal.progress.is_over(index);
        if over && !step.runs_again() {
            log::info!("{place} {}: already done", step.name());
            continue;
        }
        log::info!("{place} {}", crate::plan::render::describe(step, sector_bytes));
        let attempted = journal.progress.attempted.contains(&index);
        let attempt = if attempted { Attempt::Again } else { Attempt::First };
        if can_refuse(step) && attempt == Attempt::First {
            journal.record_attempt(machine.esp.as_mut(), index)?;
        }
        let state = perform(machine, journal.id(), step, attempt);
        match state.map_err(|error| error.at(&format!("{place} {}", step.name())))? {
            StepState::Done => {
                if !over {
                    journal.record_done(machine.esp.as_mut(), index)?;
                }
            }
            StepState::PassedOver(reason) => {
                log::warn!("{place} {}: passed over: {reason}", step.name());
                journal.record_passed_over(machine.esp.as_mut(), index, &reason)?;
            }
            StepState::Refused(reason) => return Ok(Ending::Refused(reason)),
            StepState::RebootFirst => return Ok(Ending::RebootFirst),
        }
    }
    Ok(Ending::Done)
}

/// Whether the first attempt of a step has to be on record before it is made.
fn can_refuse(step: &Step) -> bool {
    matches!(step, Step::Tpm { way: TpmWay::Clear { .. } | TpmWay::Ppi { .. } })
}

/// The effect of one step. Safe to repeat.
fn perform(machine: &mut Machine, id: &str, step: &Step, attempt: Attempt) -> Result<StepState> {
    let disk = machine.disk.as_mut();
    match step {
        Step::Heal { copy } => effects::heal(disk, *copy)?,
        Step::Tpm { way } => return tpm::perform(machine, way, attempt),
        Step::Seed { partition, archive_sha256, archive_bytes, .. } => {
            let name = file_name(id, "TAR");
            let what = || format!("cannot read the rendered seeds {name}");
            let max_bytes = usize::try_from(*archive_bytes).doing(what)?;
            let archive = machine.esp.read(&name, max_bytes).doing(what)?;
            let archive = archive.ok_or_else(|| Error::new(what()).because("not there").hold())?;
            let archive = zeroize::Zeroizing::new(archive);
            effects::seed(disk, partition, &archive, archive_sha256)?;
        }
        Step::Esp { paths } => effects::esp(machine.esp.as_mut(), paths)?,
        Step::Wipe { partition, erase } => effects::wipe(disk, partition, *erase)?,
        Step::Gpt { partitions } => effects::gpt(disk, partitions)?,
    }
    Ok(StepState::Done)
}
