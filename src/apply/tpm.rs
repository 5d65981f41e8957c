//! The `tpm` step: the one step that can still refuse, so it comes first and keeps a record of its
//! first attempt.
//! Side: initrd. Touches the TPM, or the software TPM's state on the ESP.

use super::StepState;
use super::probe::{clear_refusal, identity};
use crate::error::{Doing, Error, Result};
use crate::plan::{TpmIdentity, TpmWay};
use crate::platform::tpm::{PPI_CLEAR, Ppi, PpiOutcome, Tpm, TpmError};
use crate::platform::{Machine, TpmDoor};

/// Whether the step was begun before, perhaps by a boot that lost power.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// Nothing was tried yet: a refusal now is a refusal, and nothing is destroyed.
    First,
    /// Something may have happened.
    Again,
}

/// Clears the TPM by the planned way and proves it. Safe to repeat.
pub fn perform(machine: &mut Machine, way: &TpmWay, attempt: Attempt) -> Result<StepState> {
    match way {
        TpmWay::PassOver { reason } => Ok(StepState::PassedOver(reason.clone())),
        TpmWay::DeleteState { directory } => {
            let what = || format!("cannot delete {directory}/");
            machine.esp.remove_path(directory).doing(what)?;
            if !machine.esp.matching(directory).doing(what)?.is_empty() {
                return Err(Error::new(what()).because("it is still there"));
            }
            Ok(StepState::Done)
        }
        TpmWay::Clear { before, .. } => {
            let state = open(machine).and_then(|tpm| clear(tpm, before));
            decide(machine, state, before, attempt, way)
        }
        TpmWay::Ppi { before, .. } => {
            let ppi = machine.ppi.as_ref();
            let state = match &mut machine.tpm {
                TpmDoor::Open(tpm) => by_firmware(tpm.as_mut(), ppi, before, attempt),
                TpmDoor::None => Err(gone()),
                TpmDoor::Broken(why) => Err(broken(why)),
            };
            decide(machine, state, before, attempt, way)
        }
    }
}

/// What one attempt came to, when it came to nothing good.
enum Failure {
    /// The TPM or the firmware said no, for good.
    Refused(String),
    /// Anything else.
    Other(Error),
}

impl From<TpmError> for Failure {
    fn from(error: TpmError) -> Self {
        match error {
            TpmError::Refused { .. } => Self::Refused(error.to_string()),
            TpmError::Failed { .. } => {
                Self::Other(Error::new("cannot clear the TPM").because(error))
            }
        }
    }
}

fn open(machine: &mut Machine) -> Result<&mut dyn Tpm, Failure> {
    match &mut machine.tpm {
        TpmDoor::Open(tpm) => Ok(tpm.as_mut()),
        TpmDoor::None => Err(gone()),
        TpmDoor::Broken(why) => Err(broken(why)),
    }
}

fn gone() -> Failure {
    Failure::Other(Error::new("the TPM that was there at the commit is gone"))
}

fn broken(why: &str) -> Failure {
    let error = Error::new("the TPM that was there at the commit does not work");
    Failure::Other(error.because(why.to_owned()))
}

/// `TPM2_Clear`, then proof. Nothing is sent when the hierarchy is another one already.
fn clear(tpm: &mut dyn Tpm, before: &TpmIdentity) -> Result<StepState, Failure> {
    if identity(tpm)? != *before {
        return Ok(StepState::Done);
    }
    // Read, never try, what must fail: one wrong password locks the lockout hierarchy itself.
    if let Some(reason) = clear_refusal(&tpm.properties()?) {
        return Err(Failure::Refused(reason));
    }
    tpm.clear()?;
    let unproved = |why: &str| {
        Err(Failure::Other(Error::new("the TPM says that it is cleared").because(why.to_owned())))
    };
    if identity(tpm)? == *before {
        return unproved("but its owner hierarchy is the same as before");
    }
    match tpm.reset_count() {
        Ok(0) => Ok(StepState::Done),
        Ok(count) => unproved(&format!("but its reset count is {count} and not zero")),
        // The new hierarchy is proof enough; what cannot be asked must not undo it.
        Err(error) => {
            log::warn!("the TPM is cleared, and does not tell its reset count: {error}");
            Ok(StepState::Done)
        }
    }
}

/// Asks the firmware, once, and looks at its answer after the reboot.
fn by_firmware(
    tpm: &mut dyn Tpm,
    ppi: Option<&Ppi>,
    before: &TpmIdentity,
    attempt: Attempt,
) -> Result<StepState, Failure> {
    if identity(tpm)? != *before {
        return Ok(StepState::Done);
    }
    let other = |e: std::io::Error| {
        Failure::Other(Error::new("cannot ask the firmware to clear the TPM").because(e))
    };
    let ppi = ppi.ok_or_else(|| Failure::Other(Error::new("no physical-presence interface")))?;
    let failed = |why: &str| {
        Failure::Other(Error::new("the firmware did not clear the TPM").because(why.to_owned()))
    };
    if attempt == Attempt::Again {
        if ppi.pending().map_err(other)? == Some(PPI_CLEAR) {
            return Err(failed("it was asked, and has not acted yet"));
        }
        let refusal = match ppi.response().map_err(other)? {
            Some(response) if response.operation == PPI_CLEAR => match response.outcome {
                PpiOutcome::Success => None,
                PpiOutcome::UserAbort => Some("nobody confirmed it at the console".to_owned()),
                PpiOutcome::FirmwareFailure => Some("it failed".to_owned()),
                PpiOutcome::Error(code) => Some(format!("error {code:#x}")),
            },
            _ => None,
        };
        if let Some(refusal) = refusal {
            return Err(Failure::Refused(format!("the firmware did not clear the TPM: {refusal}")));
        }
    }
    ppi.request(PPI_CLEAR).map_err(other)?;
    // A firmware that ignores the request must not make the machine reboot for ever.
    match attempt {
        Attempt::First => Ok(StepState::RebootFirst),
        Attempt::Again => Err(failed("it is asked once more")),
    }
}

/// A definite refusal of a first attempt that changed nothing ends the reset with nothing destroyed,
/// or is passed over where the request allows it. Everything else is tried again.
fn decide(
    machine: &mut Machine,
    state: Result<StepState, Failure>,
    before: &TpmIdentity,
    attempt: Attempt,
    way: &TpmWay,
) -> Result<StepState> {
    let (allow_failure, by_firmware) = match way {
        TpmWay::Clear { allow_failure, .. } => (*allow_failure, false),
        TpmWay::Ppi { allow_failure, .. } => (*allow_failure, true),
        TpmWay::DeleteState { .. } | TpmWay::PassOver { .. } => (false, false),
    };
    let (reason, error) = match state {
        Ok(state) => return Ok(state),
        Err(Failure::Refused(reason)) => (reason, None),
        Err(Failure::Other(error)) => (error.chain(), Some(error)),
    };
    if allow_failure {
        return Ok(StepState::PassedOver(reason));
    }
    if let Some(error) = error {
        return Err(error);
    }
    let untouched = match &mut machine.tpm {
        TpmDoor::Open(tpm) => identity(tpm.as_mut()).is_ok_and(|now| now == *before),
        TpmDoor::None | TpmDoor::Broken(_) => false,
    };
    // The firmware's answer always comes to a second attempt; it says itself that nothing happened.
    if untouched && (attempt == Attempt::First || by_firmware) {
        Ok(StepState::Refused(reason))
    } else {
        Err(Error::new("the TPM refused to be cleared").because(reason))
    }
}
