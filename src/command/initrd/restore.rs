//! `restage initrd restore`: at boot, and offline by hand.
//! Side: initrd. The state file system is mounted for this process alone.

use std::path::Path;
use std::time::Duration;

use super::super::{Exit, state};
use super::conclude_unfinished;
use crate::apply::restore::{self, Restored};
use crate::cli;
use crate::error::{Error, Result};
use crate::platform::boot::{self, Started};
use crate::platform::console::{self, Sink};
use crate::platform::{host, locate};
use crate::profile::Profile;

/// Where the state file system is mounted.
const ROOT: &str = "/run/restage/root";
/// Something may still be looking at its device.
const MOUNT_WAIT: Duration = Duration::from_secs(10);

/// `restage initrd restore`.
pub fn restore(arguments: &cli::InitrdRestore) -> Result<Exit> {
    if let Some(root) = &arguments.place.root {
        console::start(Sink::Terminal);
        let profile = Profile::load(arguments.place.profile.as_deref())?;
        let mut machine = state::at(&arguments.place, &profile)?;
        state::lock(&mut machine, root, &profile)?;
        let restored = restore::at_boot(&mut machine, &profile)?;
        say(&restored);
        return Ok(exit(&restored));
    }
    console::start(Sink::Boot);
    if !host::in_initrd() {
        return Err(Error::new("this is no initrd: name a --root to work offline"));
    }
    boot::forbid_shell();
    match at_boot(arguments) {
        Ok(Restored::Unfinished(error)) => conclude_unfinished(
            &error,
            &[
                "a restore is committed and could not be finished or rolled back".to_owned(),
                "the old state and the restored one both lie on the state file system".to_owned(),
                "switch the machine off and on to try once more".to_owned(),
            ],
        ),
        Ok(restored) => {
            say(&restored);
            boot::allow_shell();
            Ok(exit(&restored))
        }
        Err(error) => {
            // Nothing is committed, or nothing can be booted anyway.
            boot::allow_shell();
            Err(error)
        }
    }
}

/// Needs the state file system, and no ESP: a boot of the window must be counted whatever became of
/// the flag.
fn at_boot(arguments: &cli::InitrdRestore) -> Result<Restored> {
    // An image with a broken profile must still not go past a committed journal.
    let (profile, broken) = match Profile::load(arguments.place.profile.as_deref()) {
        Ok(profile) => (profile, None),
        Err(error) => (Profile::incusos()?, Some(error)),
    };
    let Some(state) = &profile.state else { return Ok(Restored::Nothing) };
    let device = Path::new(&state.device);
    let what = || format!("cannot look for a restore on {}", device.display());
    if !device.exists() {
        // What is not unlocked is not booted either.
        return Err(broken.unwrap_or_else(|| Error::new(what()).because("it is not there")));
    }
    let crashes = boot::count_start(Started::Restore);
    let mut last = None;
    let mount = || {
        let mounted = locate::mount_state(device, &state.filesystem, Path::new(ROOT));
        mounted.map_err(|error| last = Some(error)).ok()
    };
    let Some(mounted) = boot::wait_for("the state file system", MOUNT_WAIT, mount) else {
        let why = last.map_or_else(|| "it is busy".to_owned(), |error| error.to_string());
        return Ok(Restored::Unfinished(Error::new(what()).because(why).hold()));
    };
    let restored = on(&mounted.path, &profile, broken, crashes);
    mounted.unmount();
    restored
}

/// On the mounted state file system. Once a journal is seen there, or nobody can tell, no error lets
/// the boot go on.
fn on(root: &Path, profile: &Profile, broken: Option<Error>, crashes: usize) -> Result<Restored> {
    let is_committed = match state::look(root, profile) {
        // A flag means nothing by itself.
        Ok(found) if found.is_empty() => return Ok(Restored::Nothing),
        Ok(found) => !found.committed.is_empty(),
        Err(error) => return Ok(Restored::Unfinished(error.hold())),
    };
    let restored = match broken {
        Some(error) => Err(error),
        None => state::running(root, profile).and_then(|mut machine| {
            machine.crashes = crashes;
            state::lock(&mut machine, root, profile)?;
            // Nothing of it is open any more when the file system is unmounted.
            restore::at_boot(&mut machine, profile)
        }),
    };
    match restored {
        Err(error) if is_committed => Ok(Restored::Unfinished(error.hold())),
        restored => restored,
    }
}

/// Tells how it ended.
fn say(restored: &Restored) {
    match restored {
        Restored::Nothing => log::info!("no restore is staged"),
        // Each reason was told when it was found.
        Restored::Refused(_) => {}
        Restored::Window { boots, of } => {
            log::info!("the restored state is in place: boot {boots} of {of} without confirmation");
        }
        Restored::Confirmed => log::info!("the restore is confirmed"),
        Restored::RolledBack(reason) => {
            log::error!("the restore is rolled back, the old state is in place: {reason}");
        }
        Restored::Later(error) => {
            log::error!("the state in place stays, and not all is tidied up: {}", error.chain());
        }
        Restored::Unfinished(error) => log::error!("{}", error.chain()),
    }
}

/// How a restore by hand ends, and one at boot with which the boot goes on.
#[must_use]
pub fn exit(restored: &Restored) -> Exit {
    match restored {
        Restored::Nothing
        | Restored::Window { .. }
        | Restored::Confirmed
        | Restored::RolledBack(_)
        | Restored::Later(_) => Exit::Done,
        Restored::Refused(_) => Exit::Refused,
        Restored::Unfinished(_) => Exit::Unfinished,
    }
}
