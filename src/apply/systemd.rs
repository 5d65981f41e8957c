//! A reset that was asked for in systemd's way becomes a request of ours, before anything else: from then
//! on it is as safe as any other, and cannot be heard twice.
//! Side: initrd. Touches restage's directory on the ESP, and the EFI variable.

use std::io;

use super::journal::{self, clear_away, settle_esp};
use super::reset::{self, Applied, set_aside};
use crate::error::{Doing, Result};
use crate::plan::reset::Ask;
use crate::platform::{Machine, console};
use crate::profile::Profile;
use crate::report::{Outcome, Report};
use crate::request::systemd::{ARGUMENT_HAD, Asked, VARIABLE};
use crate::request::{Operation, Staged, find, stage, stem};

/// Beside a request that was staged here, and not in the OS.
const OURS: &str = "SYS";

/// The EFI variable of this machine.
pub trait Variable {
    /// It is not set any more, durable when this returns. Safe to repeat.
    fn remove(&mut self) -> io::Result<()>;
}

/// [`reset::apply`], after what was asked for in systemd's way has become a request with this id, unless
/// one is waiting already: then both are one request, and that one's options count. An error is a failure
/// before the commit.
pub fn apply(
    machine: &mut Machine,
    profile: &Profile,
    asked: Asked,
    variable: &mut dyn Variable,
    id: &str,
) -> Result<Applied> {
    let mut refusals = hear(machine, profile, asked, variable, id)?;
    Ok(match reset::apply(machine, profile)? {
        Applied::Nothing if !refusals.is_empty() => Applied::Refused(refusals),
        Applied::Refused(others) => {
            refusals.extend(others);
            Applied::Refused(refusals)
        }
        applied => applied,
    })
}

/// Stages what was asked for, then notes that it was heard: both durable when this returns. A cut between
/// the two leaves one request. Returns why it was refused.
fn hear(
    machine: &mut Machine,
    profile: &Profile,
    asked: Asked,
    variable: &mut dyn Variable,
    id: &str,
) -> Result<Vec<String>> {
    if asked.variable || asked.argument {
        // The request, made by an earlier start, has to be there before that is noted.
        settle_esp(machine.esp.as_mut());
    }
    let found = find::look(machine.esp.as_ref())?;
    let by_argument = asked.by_argument(profile.kernel_argument, found.argument_had);
    let is_asked = asked.variable || by_argument;
    let mut refusals = Vec::new();
    if is_asked && found.committed.is_empty() && !is_waiting(machine, &found.staged)? {
        refusals.extend(stage_default(machine, profile, asked, id));
    }
    let heard = note(machine, asked, by_argument, found.argument_had, variable);
    if let Err(error) = heard {
        if !found.committed.is_empty() {
            // No reason not to finish this one; at its end the variable is removed once more.
            log::error!("{}", error.chain());
            return Ok(refusals);
        }
        // It would be heard again at every boot.
        for stem in find::look(machine.esp.as_ref())?.staged {
            let request = stage::read(machine.esp.as_ref(), &stem).ok();
            set_aside(machine.esp.as_mut(), &stem, request, &error.chain(), machine.host.now)?;
        }
        refusals.push(error.chain());
    }
    Ok(refusals)
}

/// Whether a request is staged, or may be. Only one of ours that was cut off in the midst of being written
/// is not: nobody knows of it, and it is written anew.
fn is_waiting(machine: &mut Machine, staged: &[String]) -> Result<bool> {
    let names = machine.esp.names().doing(|| "cannot look for what is staged".to_owned())?;
    let is_ours = |stem: &String| names.contains(&format!("{stem}.{OURS}"));
    let mut is_waiting = false;
    for stem in staged {
        match stage::read(machine.esp.as_ref(), stem) {
            Err(error) if is_ours(stem) => {
                log::warn!("{}; it is made anew", error.chain());
                clear_away(machine.esp.as_mut(), stem)?;
            }
            Err(error) => {
                log::warn!("{}; it counts as staged", error.chain());
                is_waiting = true;
            }
            Ok(_) => is_waiting = true,
        }
    }
    Ok(is_waiting)
}

/// The variable goes; the argument, which restage cannot take away, is noted, and the note goes as soon as
/// a boot comes without it.
fn note(
    machine: &mut Machine,
    asked: Asked,
    by_argument: bool,
    had: bool,
    variable: &mut dyn Variable,
) -> Result<()> {
    if by_argument {
        let what = || format!("cannot note {ARGUMENT_HAD} on the ESP");
        machine.esp.mark(ARGUMENT_HAD).doing(what)?;
    } else if had && !asked.argument {
        let removed = machine.esp.remove(ARGUMENT_HAD);
        if let Err(error) = removed.doing(|| format!("cannot remove {ARGUMENT_HAD}")) {
            log::warn!("{}", error.chain());
        }
    }
    if asked.variable {
        variable.remove().doing(|| format!("cannot remove the EFI variable {VARIABLE}"))?;
    }
    Ok(())
}

/// Stages the profile's default reset; why not, when it was refused, which then is on record.
fn stage_default(
    machine: &mut Machine,
    profile: &Profile,
    asked: Asked,
    id: &str,
) -> Option<String> {
    let by = if asked.variable { "an EFI variable" } else { "the kernel command line" };
    let staged = Staged {
        command: format!("systemd's factory reset, by {by}"),
        user: "systemd".to_owned(),
        restage: env!("CARGO_PKG_VERSION").to_owned(),
        at: machine.host.now,
    };
    log::info!("{by} asks for a factory reset: it becomes request {id}");
    let reason = match stage::prepare(machine, profile, Ask::default()) {
        Ok(Ok(prepared)) => {
            let by = staged.clone();
            match stage::stage_marked(machine, profile, &prepared, by, id, Some(OURS)) {
                Ok(()) => return None,
                Err(error) => error.chain(),
            }
        }
        Ok(Err(refused)) => refused.reason,
        Err(error) => error.chain(),
    };
    log::error!("refused: {reason}");
    let now = machine.host.now;
    let report = Report {
        operation: Some(Operation::FactoryReset),
        staged: Some(staged),
        ..stage::over(id, None, Outcome::Refused, &reason, now)
    };
    let made = machine.esp.make_room(&stem(id)).doing(|| "cannot leave a report".to_owned());
    let left =
        made.and_then(|()| journal::finish(machine.esp.as_mut(), &report, &console::recorded()));
    if let Err(error) = left {
        log::warn!("{}", error.chain());
    }
    Some(reason)
}
