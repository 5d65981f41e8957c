//! Where systemd's way of asking for a factory reset is read on this machine, and how a boot that systemd
//! counts as one of a reset is left.
//! Side: both. Touches the EFI variable.

use std::io;

use crate::apply::reset::Applied;
use crate::apply::systemd;
use crate::error::{Result, chain};
use crate::platform::{boot, efivar, host};
use crate::request::systemd::{Asked, VARIABLE, Variable, argument};

/// The EFI variable of this machine.
pub struct Firmware;

impl systemd::Variable for Firmware {
    fn remove(&mut self) -> io::Result<()> {
        efivar::remove_systemd(VARIABLE)
    }
}

/// What the variable says to this OS in this boot. One that cannot be read says nothing.
#[must_use]
pub fn variable() -> Variable {
    let text = efivar::systemd_text(VARIABLE).unwrap_or_else(|error| {
        log::warn!("{}", chain(&error));
        None
    });
    Variable::read(text.as_deref(), &host::facts(), boot::id())
}

/// What this boot was asked for.
#[must_use]
pub fn asked() -> Asked {
    let variable = variable();
    if let Variable::Foreign(why) = &variable {
        log::warn!("the EFI variable {VARIABLE} is not for this OS, and stays: {why}");
    }
    Asked::new(&variable, argument(&boot::command_line()))
}

/// From the reset, if there was one, to what this boot can still be. Where systemd counts it as one of a
/// factory reset, it finds no root until that is over, and others may have joined in: after a reset there
/// has to be another boot, and without one nothing of it may be begun.
pub fn leave(asked: Asked, applied: Result<Applied>) -> Result<Applied> {
    if !asked.is_reset_mode() {
        return applied;
    }
    match applied {
        Ok(Applied::Done { reboot }) => {
            let why = || "systemd counts this boot as one of its factory reset".to_owned();
            Ok(Applied::Done { reboot: Some(reboot.unwrap_or_else(why)) })
        }
        Ok(Applied::Unfinished(_) | Applied::RebootFirst) => applied,
        Ok(Applied::Nothing | Applied::Refused(_)) | Err(_) => {
            without_reset(asked, applied.as_ref().err().map(crate::error::Error::chain));
            applied
        }
    }
}

fn without_reset(asked: Asked, failed: Option<String>) {
    if asked.variable {
        match efivar::remove_systemd(VARIABLE) {
            Ok(()) => {
                if let Some(failed) = failed {
                    log::error!("{failed}");
                }
                log::info!("rebooting: the factory reset that systemd has begun is refused");
                boot::reboot()
            }
            // It would be the same at every boot.
            Err(error) => log::error!("{}", chain(&error)),
        }
    } else {
        log::warn!(
            "the boot goes on without the factory reset that the kernel command line asks for: it has had \
             one, it was refused, or the profile does not allow it (`kernel_argument`)"
        );
    }
    boot::leave_reset_mode();
}
