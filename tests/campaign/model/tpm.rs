//! A TPM: a clear is durable when it is answered, and a cut leaves it done or not.

use std::io;

use restage::platform::tpm::{Tpm, TpmError, TpmProperties};

use super::call::{Object, Op};
use super::{Call, Device, Shared, World};

/// The TPM of a run.
pub struct ModelTpm(pub Shared);

fn failed(command: &'static str) -> impl Fn(io::Error) -> TpmError {
    move |error| TpmError::Failed { command, detail: error.to_string(), no_device: false }
}

impl ModelTpm {
    fn call<T>(
        &self,
        call: Call,
        command: &'static str,
        effect: impl FnOnce(&mut World) -> T,
    ) -> Result<T, TpmError> {
        let op = Op { device: Device::Tpm, call, verb: command, object: Object::Whole };
        let answer = self.0.borrow_mut().call(op, |world, _| Ok(effect(world)));
        answer.map_err(failed(command))
    }
}

impl Tpm for ModelTpm {
    fn properties(&mut self) -> Result<TpmProperties, TpmError> {
        self.call(Call::Read, "TPM2_GetCapability", |_| TpmProperties {
            owner_auth_set: false,
            endorsement_auth_set: false,
            lockout_auth_set: false,
            disable_clear: false,
            in_lockout: false,
            lockout_counter: 0,
        })
    }
    fn owner_primary_name(&mut self) -> Result<String, TpmError> {
        let name = |world: &mut World| format!("000b{:08x}", world.tpm_seed);
        self.call(Call::Read, "TPM2_CreatePrimary", name)
    }
    fn clear(&mut self) -> Result<(), TpmError> {
        self.call(Call::Change, "TPM2_Clear", |world| world.tpm_seed += 1)
    }
    fn reset_count(&mut self) -> Result<u32, TpmError> {
        self.call(Call::Read, "TPM2_ReadClock", |_| 0)
    }
}
