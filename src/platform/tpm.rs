//! The TPM, and the firmware's physical-presence interface, which clears it where the system may not.
//! Side: both. Touches the TPM device, or a software TPM over TCP, and the kernel's `ppi` files.
//!
//! tss-esapi, and with it the C stack, stays behind [`EsysTpm`].

mod answer;
mod esys;
mod ppi;

use std::fmt;

pub use esys::{DEADLINE, EsysTpm, parse_tcti};
pub use ppi::{
    PPI_CLEAR, PPI_ROOT, Ppi, PpiOutcome, PpiResponse, PpiSupport, parse_ppi_operations,
    parse_ppi_request, parse_ppi_response,
};

const TPMA_PERMANENT_OWNER_AUTH_SET: u32 = 1 << 0;
const TPMA_PERMANENT_ENDORSEMENT_AUTH_SET: u32 = 1 << 1;
const TPMA_PERMANENT_LOCKOUT_AUTH_SET: u32 = 1 << 2;
const TPMA_PERMANENT_DISABLE_CLEAR: u32 = 1 << 8;
const TPMA_PERMANENT_IN_LOCKOUT: u32 = 1 << 9;

/// What `TPM2_GetCapability` says about a coming `TPM2_Clear` (TCG TPM 2.0 Part 2, `TPMA_PERMANENT`).
#[allow(clippy::struct_excessive_bools)] // the TPM's flags, as it names them
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TpmProperties {
    /// The owner hierarchy has a password.
    pub owner_auth_set: bool,
    /// The endorsement hierarchy has a password.
    pub endorsement_auth_set: bool,
    /// The lockout hierarchy has a password: without it a clear is refused, and the attempt costs.
    pub lockout_auth_set: bool,
    /// `TPM2_ClearControl` has forbidden the clear.
    pub disable_clear: bool,
    /// Too many wrong passwords for protected objects. A clear with an empty lockout password is
    /// still carried out, and ends it.
    pub in_lockout: bool,
    /// `TPM_PT_LOCKOUT_COUNTER`: the wrong passwords counted so far.
    pub lockout_counter: u32,
}

impl TpmProperties {
    /// What `TPM2_Clear` would be refused for, so that it is not tried: with a lockout password set,
    /// one attempt without it locks the lockout hierarchy even for who knows the password.
    #[must_use]
    pub fn foreseen_refusal(&self) -> Option<Refusal> {
        if self.disable_clear {
            Some(Refusal::ClearDisabled)
        } else if self.lockout_auth_set {
            Some(Refusal::LockoutAuthSet)
        } else {
            None
        }
    }

    fn from_values(permanent: u32, lockout_counter: u32) -> Self {
        let is_set = |flag: u32| permanent & flag != 0;
        Self {
            owner_auth_set: is_set(TPMA_PERMANENT_OWNER_AUTH_SET),
            endorsement_auth_set: is_set(TPMA_PERMANENT_ENDORSEMENT_AUTH_SET),
            lockout_auth_set: is_set(TPMA_PERMANENT_LOCKOUT_AUTH_SET),
            disable_clear: is_set(TPMA_PERMANENT_DISABLE_CLEAR),
            in_lockout: is_set(TPMA_PERMANENT_IN_LOCKOUT),
            lockout_counter,
        }
    }
}

/// One durable effect, and the few questions around it.
pub trait Tpm {
    /// Reads what a clear would meet. Changes nothing.
    fn properties(&mut self) -> Result<TpmProperties, TpmError>;

    /// The Name, in hexadecimal with its hash algorithm, of a fixed primary key under the owner
    /// hierarchy. The key follows from the hierarchy's seed, which only a clear replaces: so another
    /// Name proves a clear. Leaves nothing behind in the TPM. Refused where the owner hierarchy has
    /// a password.
    fn owner_primary_name(&mut self) -> Result<String, TpmError>;

    /// `TPM2_Clear` under the lockout hierarchy with an empty password. On `Ok` it is durable: the
    /// TPM writes its memory before it answers. Safe to repeat.
    fn clear(&mut self) -> Result<(), TpmError>;

    /// `resetCount` of the TPM's clock: zero in the boot that cleared it, and counted up by each boot
    /// after. Leaves nothing behind in the TPM. Refused where the endorsement hierarchy has a
    /// password, which after a clear it has not.
    fn reset_count(&mut self) -> Result<u32, TpmError>;
}

/// What went wrong at the TPM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TpmError {
    /// The TPM has answered, and it said no for good.
    Refused {
        /// The command, as the specification names it.
        command: &'static str,
        /// `TPM_RC` as received.
        code: u32,
        /// What it means here.
        reason: Refusal,
    },
    /// No device, no answer, or an answer that is not a definite refusal. What the command did is
    /// not known.
    Failed {
        /// The command, or what else we were doing.
        command: &'static str,
        /// What we know about the cause.
        detail: String,
        /// There is no TPM at the given place.
        no_device: bool,
    },
}

/// Why the TPM said no, with the way out as its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The lockout hierarchy has a password.
    LockoutAuthSet,
    /// `disableClear` is set.
    ClearDisabled,
    /// The lockout hierarchy is locked after a wrong password.
    Lockout,
    /// Anything else.
    Other,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LockoutAuthSet => {
                "the TPM's lockout hierarchy has a password; remove it in the running system with \
                 `tpm2_changeauth -c lockout -p PASSWORD`, or clear the TPM in the firmware's setup, \
                 or let the reset pass over it with allow_tpm_reset_failure"
            }
            Self::ClearDisabled => {
                "clearing the TPM is disabled (disableClear), which only the firmware can undo; \
                 clear the TPM in the firmware's setup, or let the reset pass over it with \
                 allow_tpm_reset_failure"
            }
            Self::Lockout => {
                "the TPM is locked after wrong passwords; leave the machine on until its lockout \
                 recovery time is over, or clear the TPM in the firmware's setup, or let the reset \
                 pass over it with allow_tpm_reset_failure"
            }
            Self::Other => {
                "clear the TPM in the firmware's setup, or let the reset pass over it with \
                 allow_tpm_reset_failure"
            }
        })
    }
}

impl fmt::Display for TpmError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { command, code, reason } => {
                write!(
                    f,
                    "the TPM refused {command} with {} ({code:#x}): {reason}",
                    answer::rc_name(*code)
                )
            }
            Self::Failed { command, detail, no_device: true } => {
                write!(f, "there is no TPM ({command}): {detail}")
            }
            Self::Failed { command, detail, no_device: false } => {
                write!(f, "{command} failed: {detail}")
            }
        }
    }
}

impl std::error::Error for TpmError {}

impl TpmError {
    fn failed(command: &'static str, detail: impl Into<String>) -> Self {
        Self::Failed { command, detail: detail.into(), no_device: false }
    }

    fn no_device(command: &'static str, detail: impl Into<String>) -> Self {
        Self::Failed { command, detail: detail.into(), no_device: true }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_permanent_flags_are_read_by_their_bits() {
        let all = TpmProperties::from_values(0x307, 7);
        assert!(all.owner_auth_set && all.endorsement_auth_set && all.lockout_auth_set);
        assert!(all.disable_clear && all.in_lockout);
        assert_eq!(all.lockout_counter, 7);
        assert_eq!(all.foreseen_refusal(), Some(Refusal::ClearDisabled));
        assert_eq!(
            TpmProperties::from_values(4, 0).foreseen_refusal(),
            Some(Refusal::LockoutAuthSet)
        );
        assert_eq!(TpmProperties::from_values(0x203, 40).foreseen_refusal(), None);
    }
}
