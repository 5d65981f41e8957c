//! A TPM: a clear is durable when it is answered.

use restage::platform::tpm::{Tpm, TpmError, TpmProperties};

use crate::medium::Medium;

/// The TPM of the machine.
pub struct Chip(pub Medium);

impl Tpm for Chip {
    fn properties(&mut self) -> Result<TpmProperties, TpmError> {
        Ok(TpmProperties {
            owner_auth_set: false,
            endorsement_auth_set: false,
            lockout_auth_set: false,
            disable_clear: false,
            in_lockout: false,
            lockout_counter: 0,
        })
    }
    fn owner_primary_name(&mut self) -> Result<String, TpmError> {
        Ok(format!("000b{:08x}", self.0.beside().tpm_seed))
    }
    fn clear(&mut self) -> Result<(), TpmError> {
        self.0.change(|beside| beside.tpm_seed += 1);
        Ok(())
    }
    fn reset_count(&mut self) -> Result<u32, TpmError> {
        Ok(0)
    }
}
