//! `restage initrd restore`: at boot, and offline by hand.
//! Side: initrd. The state file system is mounted for this process alone.

use std::path::Path;

use super::super::{Exit, state};
use super::conclude_unfinished;
use crate::apply::restore::{self, Machine, Restored, state_of};
use crate::cli;
use crate::error::{Doing, Error, Next, Result};
use crate::platform::console::{self, Sink};
use crate::platform::{boot, host, locate};
use crate::profile::Profile;

/// Where the state file system is mounted.
const ROOT: &str = "/run/restage/root";

/// `restage initrd restore`.
pub fn restore(arguments: &cli::InitrdRestore) -> Result<Exit> {
    if let Some(root) = &arguments.place.root {
        console::start(Sink::Terminal);
        let profile = Profile::load(arguments.place.profile.as_deref())?;
        let (mut machine, _) = state::at(&arguments.place, &profile)?;
        state::lock(&mut machine, root, &profile)?;
        let restored = restore::at_boot(&mut machine, &profile)?;
        return Ok(match say(&restored) {
            Says::GoOn(exit) => exit,
            Says::Stop(error) => {
                log::error!("{}", error.chain());
                Exit::Unfinished
            }
        });
    }
    console::start(Sink::Boot);
    if !host::in_initrd() {
        return Err(Error::new("this is no initrd: name a --root to work offline"));
    }
    let profile = Profile::load(arguments.place.profile.as_deref())?;
    boot::forbid_shell();
    let restored = at_boot(&profile);
    match restored.map(|restored| say(&restored)) {
        Ok(Says::GoOn(exit)) => {
            boot::allow_shell();
            Ok(exit)
        }
        Ok(Says::Stop(error)) => conclude_unfinished(
            &error,
            &[
                "a restore is committed and could not be finished or rolled back".to_owned(),
                "the old state and the restored one both lie on the state file system".to_owned(),
                "switch the machine off and on to try once more".to_owned(),
            ],
        ),
        Err(error) => {
            // Nothing is known to be committed: what cannot be looked at is booted as it is.
            boot::allow_shell();
            Err(error)
        }
    }
}

fn at_boot(profile: &Profile) -> Result<Restored> {
    let state = state_of(profile)?;
    let what = || format!("cannot mount the state file system {}", state.device);
    let device = Path::new(&state.device);
    let mounted = locate::mount_state(device, &state.filesystem, Path::new(ROOT)).doing(what)?;
    let restored = state::running(&mounted.path, profile).and_then(|(mut machine, _flags)| {
        state::lock(&mut machine, &mounted.path, profile)?;
        let restored = restore::at_boot(&mut machine, profile);
        close(machine);
        restored
    });
    mounted.unmount();
    restored
}

/// Nothing may be open on the file system when it is unmounted.
fn close(machine: Machine) {
    drop(machine);
}

enum Says {
    GoOn(Exit),
    Stop(Error),
}

/// Tells how it ended, and what follows.
fn say(restored: &Restored) -> Says {
    match restored {
        Restored::Nothing => {
            log::info!("no restore is staged");
            Says::GoOn(Exit::Done)
        }
        Restored::Refused(_) => Says::GoOn(Exit::Refused),
        Restored::Window { boots, of } => {
            log::info!("the restored state is in place: boot {boots} of {of} without confirmation");
            Says::GoOn(Exit::Done)
        }
        Restored::Confirmed => {
            log::info!("the restore is confirmed");
            Says::GoOn(Exit::Done)
        }
        Restored::RolledBack(reason) => {
            log::error!("the restore is rolled back, the old state is in place: {reason}");
            Says::GoOn(Exit::Done)
        }
        Restored::Later(error) => {
            log::error!("the restore is confirmed; {}", error.chain());
            Says::GoOn(Exit::Done)
        }
        Restored::Unfinished(error) => {
            let copy = Error::new(error.chain());
            Says::Stop(match error.next() {
                Next::HoldForOperator => copy.hold(),
                Next::ContinueBoot | Next::RetryNextBoot => copy.after_commit(),
            })
        }
    }
}
