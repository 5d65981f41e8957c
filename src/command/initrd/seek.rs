//! Which ESP is this boot's, what lies on it, and what happens when that has no clear answer.
//! Side: initrd. Mounts ESPs, one at a time; writes to one only to set a request aside.

use std::time::Duration;

use uuid::Uuid;

use super::super::{Side, open_esp};
use crate::apply::reset::{self, Applied};
use crate::error::{Doing, Error, Result};
use crate::platform::locate::{self, Located, Mounted};
use crate::platform::{boot, host};
use crate::profile::Profile;
use crate::request::find::{self, Found};

/// Other ESPs are looked at for a committed journal when the boot loader names none.
const SCAN_WAIT: Duration = Duration::from_secs(10);
/// An ESP that is there and cannot be read yet is tried again for so long.
const LOOK_WAIT: Duration = Duration::from_secs(10);

/// The disks that have this ESP, as soon as all of them have a node for it; at the limit, those that
/// there are.
pub fn disks_with(guid: Uuid, limit: Duration) -> Result<Vec<Located>> {
    let mut seen = Vec::new();
    let look = || {
        seen = locate::find(guid).unwrap_or_default();
        are_ready(&seen).then_some(())
    };
    if boot::wait_for("the disk that this was booted from", limit, look).is_none()
        && seen.is_empty()
    {
        boot::want_restore();
        return Err(Error::new("cannot look for a request")
            .because(format!("the ESP {guid} did not appear within {} s", limit.as_secs())));
    }
    Ok(seen)
}

fn are_ready(located: &[Located]) -> bool {
    !located.is_empty() && located.iter().all(|one| one.partition.is_some())
}

/// Mounts an ESP read-only and looks at the names in restage's directory.
pub fn look(located: &Located, profile: &Profile) -> Result<(Mounted, Found)> {
    let mut last = None;
    let try_once = || {
        let seen = look_once(located, profile);
        seen.map_err(|error| last = Some(error)).ok()
    };
    boot::wait_for("the ESP", LOOK_WAIT, try_once).ok_or_else(|| {
        // Nobody knows whether there is a flag: the state file system tells.
        boot::want_restore();
        last.unwrap_or_else(|| Error::new("cannot look at the ESP"))
    })
}

fn look_once(located: &Located, profile: &Profile) -> Result<(Mounted, Found)> {
    let what = || format!("cannot look at the ESP of {}", located.disk.display());
    let partition = located.partition.as_deref();
    let partition = partition.ok_or_else(|| Error::new(what()).because("it has no device node"))?;
    let mounted = locate::mount(partition).doing(what)?;
    match open_esp(&mounted.path, profile, Side::Reader).and_then(|esp| find::look(&esp)) {
        Ok(found) => {
            if !found.flags.is_empty() {
                boot::want_restore();
            }
            Ok((mounted, found))
        }
        Err(error) => {
            mounted.unmount();
            Err(error)
        }
    }
}

/// Why none of several disks with the same ESP is worked on.
pub fn clones(located: &[Located]) -> Error {
    let disks: Vec<_> = located.iter().map(|l| l.disk.display().to_string()).collect();
    Error::new("which disk is meant is not known")
        .because(format!("{} are clones of each other; detach the others", disks.join(", ")))
}

/// Clones of the boot disk, or a profile that cannot be read: a committed journal on any of them
/// holds, and requests are refused.
pub fn none_of(located: &[Located], profile: &Profile, why: &Error) -> Result<Applied> {
    let mut unseen = None;
    let mut requests = Vec::new();
    for one in located {
        match look(one, profile) {
            Ok((mounted, found)) => {
                mounted.unmount();
                if !found.committed.is_empty() {
                    let error = format!("the committed reset on {}", one.disk.display());
                    let error = Error::new(format!("{error} cannot go on")).because(why.chain());
                    return Ok(Applied::Unfinished(error.hold()));
                }
                requests.push((one, !found.staged.is_empty()));
            }
            Err(error) => unseen = Some(error),
        }
    }
    let mut refusals = Vec::new();
    for (one, _) in requests.iter().filter(|(_, staged)| *staged) {
        let (mounted, _) = look(one, profile)?;
        let refused = refuse_all(&mounted, profile, why);
        mounted.unmount();
        refusals.extend(refused?);
    }
    match unseen {
        Some(error) => Err(error),
        None if refusals.is_empty() => Ok(Applied::Nothing),
        None => Ok(Applied::Refused(refusals)),
    }
}

/// Sets every staged request aside. The reasons; an error when one of them stays where it is.
pub fn refuse_all(mounted: &Mounted, profile: &Profile, why: &Error) -> Result<Vec<String>> {
    mounted.make_writable().doing(|| "cannot write to the ESP".to_owned())?;
    let mut esp = open_esp(&mounted.path, profile, Side::Reader)?;
    let now = find::look(&esp)?;
    let mut refusals = Vec::new();
    // Also what was staged meanwhile, in systemd's way.
    for stem in &now.staged {
        let request = crate::request::stage::read(&esp, stem).ok();
        reset::set_aside(&mut esp, stem, request, &why.chain(), host::now())?;
        refusals.push(format!("{stem}: {}", why.chain()));
    }
    if refusals.is_empty() {
        // What failed was none of the requests' business.
        log::error!("{}", why.chain());
    }
    Ok(refusals)
}

/// The boot loader named no ESP, and the profile neither. No request is accepted; a committed
/// journal, on whatever ESP it is found, holds.
pub fn without_variable(profile: &Profile) -> Applied {
    let any = || locate::find_any().unwrap_or_default();
    let look_for = || are_ready(&any()).then_some(());
    if boot::wait_for("a disk with an ESP", SCAN_WAIT, look_for).is_some() {
        // There may be more disks than the quickest.
        boot::settle();
    }
    for located in &any() {
        let Ok((mounted, found)) = look_once(located, profile) else {
            boot::want_restore();
            continue;
        };
        mounted.unmount();
        if !found.committed.is_empty() {
            let error = Error::new("a committed reset cannot go on").because(format!(
                "LoaderDevicePartUUID is not set, so {} may not be the disk that was booted from",
                located.disk.display()
            ));
            return Applied::Unfinished(error.hold());
        }
        if !found.staged.is_empty() {
            log::error!(
                "a request lies on {}, and LoaderDevicePartUUID is not set: it is not applied",
                located.disk.display()
            );
        }
    }
    Applied::Nothing
}
