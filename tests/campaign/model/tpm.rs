//! A TPM: a clear is durable when it is answered, and a cut leaves it done or not.

use std::io;

use restage::platform::tpm::{Tpm, TpmError, TpmProperties};

use super::{Call, Device, Shared};

/// The TPM of a run.
pub struct ModelTpm(pub Shared);

fn failed(command: &'static str) -> impl Fn(io::Error) -> TpmError {
    move |error| TpmError::Failed { command, detail: error.to_string(), no_device: false }
}

impl Tpm for ModelTpm {
    fn properties(&mut self) -> Result<TpmProperties, TpmError> {
        let asked = self.0.borrow_mut().call(Device::Tpm, Call::Read, |_, _| {
            Ok(TpmProperties {
                owner_auth_set: false,
                endorsement_auth_set: false,
                lockout_auth_set: false,
                disable_clear: false,
                in_lockout: false,
                lockout_counter: 0,
            })
        });
        asked.map_err(failed("TPM2_GetCapability"))
    }
    fn owner_primary_name(&mut self) -> Result<String, TpmError> {
        let call = |world: &mut super::World, _| Ok(format!("000b{:08x}", world.tpm_seed));
        let asked = self.0.borrow_mut().call(Device::Tpm, Call::Read, call);
        asked.map_err(failed("TPM2_CreatePrimary"))
    }
    fn clear(&mut self) -> Result<(), TpmError> {
        let cleared = self.0.borrow_mut().call(Device::Tpm, Call::Change, |world, _| {
            world.tpm_seed += 1;
            Ok(())
        });
        cleared.map_err(failed("TPM2_Clear"))
    }
    fn reset_count(&mut self) -> Result<u32, TpmError> {
        let asked = self.0.borrow_mut().call(Device::Tpm, Call::Read, |_, _| Ok(0));
        asked.map_err(failed("TPM2_ReadClock"))
    }
}
