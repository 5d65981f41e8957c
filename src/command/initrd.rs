//! `restage initrd reset`: at boot, and offline by hand.
//! Side: initrd. What the boot does next is decided here, in one place.

use std::path::Path;
use std::time::{Duration, Instant};

use super::{Exit, esp_guid, machine, offline, open_esp};
use crate::apply::reset::{self, Applied, next};
use crate::cli;
use crate::error::{Doing, Error, Next, Result};
use crate::platform::console::{self, Sink};
use crate::platform::disk::Access;
use crate::platform::locate::{self, Located, Mounted};
use crate::platform::tpm::Ppi;
use crate::platform::{boot, host};
use crate::profile::Profile;
use crate::request::find::{self, Found};

/// The firmware says that there is a TPM 2.0 by this table.
const TPM2_TABLE: &str = "/sys/firmware/acpi/tables/TPM2";
const TPM_DEVICE: &str = "/dev/tpmrm0";
const TPM_WAIT: Duration = Duration::from_secs(15);
/// Other ESPs are looked at for a committed journal when the boot loader names none.
const SCAN_WAIT: Duration = Duration::from_secs(10);

/// `restage initrd reset`.
pub fn reset(arguments: &cli::Reset) -> Result<Exit> {
    if arguments.place.is_offline() {
        console::start(Sink::Terminal);
        let profile = Profile::load(arguments.place.profile.as_deref())?;
        return by_hand(arguments, &profile);
    }
    console::start(Sink::Boot);
    if !host::in_initrd() {
        return Err(Error::new("this is no initrd: name a --disk and an --esp to work offline"));
    }
    let begin = Instant::now();
    let applied = at_boot(arguments)?;
    if let Applied::Nothing = applied {
        log::info!("nothing is staged ({:.2} s)", begin.elapsed().as_secs_f64());
    }
    Ok(conclude(applied))
}

fn by_hand(arguments: &cli::Reset, profile: &Profile) -> Result<Exit> {
    let looked = offline(&arguments.place, profile, Access::Read)?;
    if find::look(looked.esp.as_ref())?.is_empty() {
        log::info!("nothing is staged");
        return Ok(Exit::Done);
    }
    drop(looked);
    let mut machine = offline(&arguments.place, profile, Access::Write)?;
    let applied = reset::apply(&mut machine, profile)?;
    Ok(match applied {
        Applied::Nothing | Applied::Done { reboot: None } => Exit::Done,
        Applied::Refused(_) => Exit::Refused,
        Applied::Done { reboot: Some(_) } => {
            log::info!("done; a boot would reboot now");
            Exit::RebootNeeded
        }
        Applied::RebootFirst => {
            log::info!("the firmware has to act at the next boot");
            Exit::Unfinished
        }
        Applied::Unfinished(error) => {
            log::error!("{}", error.chain());
            Exit::Unfinished
        }
    })
}

/// Finds everything, looks, and opens for writing only when there is something to do.
fn at_boot(arguments: &cli::Reset) -> Result<Applied> {
    // An image with a broken profile must still not go past a committed journal.
    let (profile, broken) = match Profile::load(arguments.place.profile.as_deref()) {
        Ok(profile) => (profile, None),
        Err(error) => (Profile::incusos()?, Some(error)),
    };
    let located = match esp_guid(&profile) {
        Some(guid) => {
            let limit = Duration::from_secs(profile.limits.device_wait_s);
            let look = || {
                let found = locate::find(guid).ok()?;
                (!found.is_empty() && found.iter().all(|l| l.partition.is_some())).then_some(found)
            };
            boot::wait_for("the disk that this was booted from", limit, look).ok_or_else(|| {
                Error::new("cannot look for a request")
                    .because(format!("the ESP {guid} did not appear within {} s", limit.as_secs()))
            })?
        }
        None => return Ok(without_variable(&profile)),
    };
    let one = match located.as_slice() {
        [one] if broken.is_none() => one,
        several => return several_or_broken(several, &profile, broken),
    };
    let (mounted, found) = look(one, &profile)?;
    if found.is_empty() {
        mounted.unmount();
        return Ok(Applied::Nothing);
    }
    let outcome = work(one, &mounted, &found, arguments, &profile);
    mounted.unmount();
    outcome
}

fn look(located: &Located, profile: &Profile) -> Result<(Mounted, Found)> {
    let what = || format!("cannot look at the ESP of {}", located.disk.display());
    let partition = located.partition.as_deref().ok_or_else(|| Error::new(what()))?;
    let mounted = locate::mount(partition).doing(what)?;
    let found = open_esp(&mounted.path, profile).and_then(|esp| find::look(&esp));
    match found {
        Ok(found) => Ok((mounted, found)),
        Err(error) => {
            mounted.unmount();
            Err(error)
        }
    }
}

/// There is something to do: from here on a committed operation must not be left.
fn work(
    located: &Located,
    mounted: &Mounted,
    found: &Found,
    arguments: &cli::Reset,
    profile: &Profile,
) -> Result<Applied> {
    let is_committed = !found.committed.is_empty();
    // From a moment too early on: whoever opens a shell beside a reset sees this file.
    boot::forbid_shell();
    let opened = || {
        mounted.make_writable().doing(|| "cannot write to the ESP".to_owned())?;
        let mut esp = open_esp(&mounted.path, profile)?;
        esp.lock().doing(|| "cannot lock the ESP".to_owned())?;
        wait_for_tpm();
        let tcti = arguments.place.tcti.as_deref();
        let ppi = Some(Ppi::default());
        let mut machine = machine(&located.disk, esp, Access::Write, tcti, ppi, host::facts())?;
        machine.loaded_credentials = host::loaded_credentials();
        Ok(machine)
    };
    let applied = opened().and_then(|mut machine| reset::apply(&mut machine, profile));
    let unfinished = matches!(applied, Ok(Applied::Unfinished(_) | Applied::RebootFirst));
    if !is_committed && !unfinished || matches!(applied, Ok(Applied::Done { .. })) {
        boot::allow_shell();
    }
    match applied {
        Ok(applied) => Ok(applied),
        Err(error) if is_committed => Ok(Applied::Unfinished(error.after_commit().hold())),
        Err(error) => Err(error),
    }
}

/// The driver may load after us; without the firmware's table there is nothing to wait for.
fn wait_for_tpm() {
    let there = || Path::new(TPM_DEVICE).exists().then_some(());
    if Path::new(TPM2_TABLE).exists() && boot::wait_for("the TPM", TPM_WAIT, there).is_none() {
        log::warn!("the firmware announces a TPM, and {TPM_DEVICE} did not appear");
    }
}

/// Clones of the boot disk, or a profile that cannot be read: a request is refused, and a committed
/// journal holds.
fn several_or_broken(
    located: &[Located],
    profile: &Profile,
    broken: Option<Error>,
) -> Result<Applied> {
    let disks: Vec<_> = located.iter().map(|l| l.disk.display().to_string()).collect();
    let why = broken.unwrap_or_else(|| {
        Error::new("which disk is meant is not known")
            .because(format!("{} are clones of each other", disks.join(", ")))
    });
    let mut refusals = Vec::new();
    for one in located {
        let (mounted, found) = look(one, profile)?;
        if !found.committed.is_empty() {
            mounted.unmount();
            return Ok(Applied::Unfinished(why.hold()));
        }
        let refused = refuse_all(&mounted, &found, profile, &why);
        mounted.unmount();
        refused?;
        refusals.extend(found.staged.iter().map(|stem| format!("{stem}: {}", why.chain())));
    }
    Ok(if refusals.is_empty() { Applied::Nothing } else { Applied::Refused(refusals) })
}

fn refuse_all(mounted: &Mounted, found: &Found, profile: &Profile, why: &Error) -> Result<()> {
    if found.staged.is_empty() {
        return Ok(());
    }
    mounted.make_writable().doing(|| "cannot write to the ESP".to_owned())?;
    let mut esp = open_esp(&mounted.path, profile)?;
    for stem in &found.staged {
        let request = crate::request::stage::read(&esp, stem).ok();
        reset::set_aside(&mut esp, stem, request, &why.chain(), host::now())?;
    }
    Ok(())
}

/// The boot loader named no ESP, and the profile neither. No request is accepted; a committed
/// journal, on whatever ESP it is found, holds.
fn without_variable(profile: &Profile) -> Applied {
    let look_for = || {
        let all = locate::find_any().ok()?;
        (!all.is_empty() && all.iter().all(|l| l.partition.is_some())).then_some(all)
    };
    let all = boot::wait_for("a disk with an ESP", SCAN_WAIT, look_for).unwrap_or_default();
    for located in &all {
        let Ok((mounted, found)) = look(located, profile) else { continue };
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

/// What the boot does next.
fn conclude(applied: Applied) -> Exit {
    let next = next(&applied);
    match applied {
        Applied::Nothing => Exit::Done,
        Applied::Refused(_) => Exit::Refused,
        Applied::Done { reboot: None } => {
            boot::settle();
            log::info!("done; the boot goes on to the first boot");
            Exit::Done
        }
        Applied::Done { reboot: Some(reason) } => {
            log::info!("done; rebooting into the first boot ({reason})");
            boot::reboot()
        }
        Applied::RebootFirst => {
            log::info!("rebooting: the firmware has to act; it may ask at the console");
            boot::reboot()
        }
        Applied::Unfinished(error) => match next {
            Next::ContinueBoot | Next::RetryNextBoot => {
                log::error!("{}; rebooting to try again", error.chain());
                boot::reboot()
            }
            Next::HoldForOperator => boot::hold(&[
                error.chain(),
                "a factory reset is committed and unfinished: the old system is not booted any more"
                    .to_owned(),
                "other disks, and partitions that the plan does not list, are untouched".to_owned(),
                "switch the machine off and on to try once more; the journal and the reasons are in \
                 restage/ on the ESP"
                    .to_owned(),
            ]),
        },
    }
}
