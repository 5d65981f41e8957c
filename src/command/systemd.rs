//! Where systemd's way of asking for a factory reset is read on this machine, and how a boot that systemd
//! counts as one of a reset is left.
//! Side: both. Touches the EFI variable.

use std::io;

use crate::apply::reset::Applied;
use crate::apply::systemd;
use crate::error::{Result, chain};
use crate::plan::facts::HostFacts;
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
    read(&host::facts())
}

fn read(host: &HostFacts) -> Variable {
    let text = efivar::systemd_text(VARIABLE).unwrap_or_else(|error| {
        log::warn!("{}", chain(&error));
        None
    });
    Variable::read(text.as_deref(), host, boot::id())
}

/// A boot of the initrd: what it was asked for, and whether systemd counts it as one of a factory reset.
#[derive(Clone, Debug)]
pub struct Boot {
    /// What is to be heard.
    pub asked: Asked,
    mode: Option<Mode>,
}

/// Why systemd does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// By the EFI variable, for this OS.
    Variable,
    /// By the kernel command line.
    Argument,
    /// By the EFI variable, for another OS that the initrd's own os-release does not tell from this one.
    OtherOs,
}

impl Mode {
    const ALL: [(Self, &str); 3] =
        [(Self::Variable, "variable"), (Self::Argument, "argument"), (Self::OtherOs, "other")];
}

impl Boot {
    /// Looks. What is heard is gone then, so a restage that is started again goes by what the first one saw.
    #[must_use]
    pub fn look() -> Self {
        let variable = variable();
        let argument = argument(&boot::command_line());
        if let Variable::Foreign(why) = &variable {
            log::warn!("the EFI variable {VARIABLE} is not for this OS, and stays: {why}");
        }
        let asked = Asked::new(&variable, argument);
        let mode = if asked.variable {
            Some(Mode::Variable)
        } else if asked.argument {
            Some(Mode::Argument)
        } else {
            let is_counted = Asked::new(&read(&host::initrd_facts()), argument).variable;
            is_counted.then_some(Mode::OtherOs)
        };
        let word = Mode::ALL.iter().find(|(one, _)| Some(*one) == mode).map(|(_, word)| *word);
        let word = boot::reset_mode(word);
        let known = Mode::ALL.iter().find(|(_, known)| Some(*known) == word.as_deref());
        Self { asked, mode: known.map(|(mode, _)| *mode) }
    }

    /// From the reset, if there was one, to what this boot can still be. Where systemd counts it as one of
    /// a factory reset, it finds no root until that is over, and others may have joined in: after a reset
    /// there has to be another boot, and without one as little as can be goes on.
    pub fn leave(&self, applied: Result<Applied>) -> Result<Applied> {
        let Some(mode) = self.mode else { return applied };
        match applied {
            Ok(Applied::Done { reboot }) => {
                if mode == Mode::Variable {
                    // It may be there still, where it could not be removed at first.
                    remove();
                }
                let why = || "systemd counts this boot as one of its factory reset".to_owned();
                Ok(Applied::Done { reboot: Some(reboot.unwrap_or_else(why)) })
            }
            Ok(Applied::Unfinished(_) | Applied::RebootFirst) => applied,
            Ok(Applied::Nothing | Applied::Refused(_)) | Err(_) => {
                if let Err(error) = &applied {
                    log::error!("{}", error.chain());
                }
                without_reset(mode);
                applied
            }
        }
    }
}

/// Whether it is gone.
fn remove() -> bool {
    let removed = efivar::remove_systemd(VARIABLE);
    removed.inspect_err(|error| log::error!("{}", chain(error))).is_ok()
}

fn without_reset(mode: Mode) {
    match mode {
        Mode::Variable => {
            if remove() {
                log::info!("rebooting: the factory reset that systemd has begun is refused");
                boot::reboot()
            }
            // It would be the same at every boot.
        }
        Mode::Argument => log::warn!(
            "the boot goes on without the factory reset that the kernel command line asks for: it has had \
             one, it was refused, or the profile does not allow it (`kernel_argument`)"
        ),
        Mode::OtherOs => log::warn!(
            "the boot goes on without the factory reset of another OS, for which systemd takes this one: the \
             initrd's os-release should have the `ID` and `IMAGE_ID` of the OS"
        ),
    }
    boot::leave_reset_mode();
}
