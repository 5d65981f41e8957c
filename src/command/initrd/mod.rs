//! `restage initrd reset`: at boot, and offline by hand.
//! Side: initrd. What the boot does next is decided here, in one place.

pub mod restore;
mod seek;

use std::path::Path;
use std::time::{Duration, Instant};

use super::systemd::{self, Firmware};
use super::{Exit, Side, TPM_DEVICE, esp_guid, machine, offline, open_esp};
use crate::apply;
use crate::apply::reset::{self, Applied};
use crate::cli;
use crate::error::{Doing, Error, Next, Result};
use crate::platform::boot::{self, Started};
use crate::platform::console::{self, Sink};
use crate::platform::locate::{self, Located, Mounted};
use crate::platform::tpm::Ppi;
use crate::platform::{TpmDoor, host};
use crate::profile::Profile;
use crate::request::find::{self, Found};
use crate::request::stage;
use crate::request::systemd::Asked;

/// The firmware says that there is a TPM 2.0 by this table.
const TPM2_TABLE: &str = "/sys/firmware/acpi/tables/TPM2";
const TPM_WAIT: Duration = Duration::from_secs(15);
/// So often may restage be ended in one boot before it leaves a request alone, or holds a committed
/// reset; and twice as often before it holds without a look.
const MAX_CRASHES: usize = 5;
const TPM_IS_LATE: &str = "the firmware announces it, and /dev/tpmrm0 did not appear";

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
    let this_boot = systemd::Boot::look();
    let applied = this_boot.leave(at_boot(arguments, this_boot.asked))?;
    if let Applied::Nothing = applied {
        log::info!("nothing is staged ({:.2} s)", begin.elapsed().as_secs_f64());
    }
    Ok(conclude(applied))
}

fn by_hand(arguments: &cli::Reset, profile: &Profile) -> Result<Exit> {
    let mut machine = offline(&arguments.place, profile, Side::Reader)?;
    if find::look(machine.esp.as_ref())?.is_empty() {
        log::info!("nothing is staged");
        return Ok(Exit::Done);
    }
    machine.esp = Box::new(super::os::writable(None, &arguments.place, profile, Side::Reader)?);
    let applied = reset::apply(&mut machine, profile)?;
    match &applied {
        Applied::Nothing | Applied::Done { reboot: None } | Applied::Refused(_) => {}
        Applied::Done { reboot: Some(_) } => log::info!("done; a boot would reboot now"),
        Applied::RebootFirst => log::info!("the firmware has to act at the next boot"),
        Applied::Unfinished(error) => log::error!("{}", error.chain()),
    }
    Ok(exit(&applied))
}

/// How a reset by hand ends.
#[must_use]
pub fn exit(applied: &Applied) -> Exit {
    match applied {
        Applied::Nothing | Applied::Done { reboot: None } => Exit::Done,
        Applied::Refused(_) => Exit::Refused,
        Applied::Done { reboot: Some(_) } => Exit::RebootNeeded,
        Applied::RebootFirst | Applied::Unfinished(_) => Exit::Unfinished,
    }
}

/// Finds everything, looks, and opens for writing only when there is something to do.
fn at_boot(arguments: &cli::Reset, asked: Asked) -> Result<Applied> {
    let crashes = boot::count_start(Started::Reset);
    // Not even that is known, for that is what it does not get to.
    if crashes >= 2 * MAX_CRASHES {
        return Ok(Applied::Unfinished(crashed(crashes).hold()));
    }
    // An image with a broken profile must still not go past a committed journal.
    let (profile, broken) = match Profile::load(arguments.place.profile.as_deref()) {
        Ok(profile) => (profile, (crashes >= MAX_CRASHES).then(|| crashed(crashes))),
        Err(error) => (Profile::incusos()?, Some(error)),
    };
    let Some(guid) = esp_guid(&profile) else {
        if asked.is_reset_mode() {
            log::error!("the ESP is not known: LoaderDevicePartUUID is not set");
        }
        return Ok(seek::without_variable(&profile));
    };
    let limit = Duration::from_secs(profile.limits.device_wait_s);
    let located = seek::disks_with(guid, limit)?;
    if let ([one], None) = (located.as_slice(), &broken) {
        let (mounted, found) = seek::look(one, &profile)?;
        if found.is_empty() && !asked.is_work(profile.kernel_argument, found.argument_had) {
            mounted.unmount();
            return Ok(Applied::Nothing);
        }
        // A clone may have been slower than the disk itself.
        boot::settle();
        let all = locate::find(guid).unwrap_or_default();
        if all.len() <= 1 {
            let outcome = work(one, &mounted, (&found, asked), arguments, &profile);
            mounted.unmount();
            return outcome;
        }
        mounted.unmount();
        return seek::none_of(&all, &profile, &seek::clones(&all));
    }
    let why = broken.unwrap_or_else(|| seek::clones(&located));
    if asked.is_reset_mode() {
        log::error!("{}", why.chain());
    }
    seek::none_of(&located, &profile, &why)
}

/// Why nothing is begun any more in this boot.
fn crashed(times: usize) -> Error {
    let why = format!("restage was ended {times} times");
    Error::new("nothing is begun any more in this boot").because(why)
}

/// There is something to do: from here on a committed operation must not be left.
fn work(
    located: &Located,
    mounted: &Mounted,
    (found, asked): (&Found, Asked),
    arguments: &cli::Reset,
    profile: &Profile,
) -> Result<Applied> {
    let is_committed = !found.committed.is_empty();
    // From a moment too early on: whoever opens a shell beside a reset sees this file.
    boot::forbid_shell();
    let opened = || {
        mounted.make_writable().doing(|| "cannot write to the ESP".to_owned())?;
        let mut esp = open_esp(&mounted.path, profile, Side::Reader)?;
        esp.lock().doing(|| "cannot lock the ESP".to_owned())?;
        let tpm_is_late = !wait_for_tpm();
        let tcti = arguments.place.tcti.as_deref();
        let ppi = Some(Ppi::default());
        let mut machine = machine(&located.disk, esp, tcti, ppi, host::facts())?;
        if tpm_is_late && matches!(machine.tpm, TpmDoor::None) {
            machine.tpm = TpmDoor::Broken(TPM_IS_LATE.to_owned());
        }
        machine.loaded_credentials = host::loaded_credentials();
        Ok(machine)
    };
    let applied = opened().and_then(|mut machine| {
        let id = stage::new_id(machine.esp.as_ref())?;
        apply::systemd::apply(&mut machine, profile, asked, &mut Firmware, &id)
    });
    let applied = match applied {
        Ok(applied) => Ok(applied),
        Err(error) if is_committed => Ok(Applied::Unfinished(error.after_commit().hold())),
        // A request that could not even be looked at must not lie in wait for another boot.
        Err(error) => seek::refuse_all(mounted, profile, &error).map(Applied::Refused),
    };
    if !matches!(applied, Ok(Applied::Unfinished(_) | Applied::RebootFirst)) {
        boot::allow_shell();
    }
    applied
}

/// The driver may load after us; without the firmware's table there is nothing to wait for. False
/// when the TPM that is announced did not appear.
fn wait_for_tpm() -> bool {
    let there = || Path::new(TPM_DEVICE).exists().then_some(());
    !Path::new(TPM2_TABLE).exists() || boot::wait_for("the TPM", TPM_WAIT, there).is_some()
}

/// What the boot does next.
fn conclude(applied: Applied) -> Exit {
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
        Applied::Unfinished(error) => conclude_unfinished(
            &error,
            &[
                "a factory reset is committed and unfinished: the old system is not booted any more"
                    .to_owned(),
                "other disks, and partitions that the plan does not list, are untouched".to_owned(),
                "switch the machine off and on to try once more; the journal and the reasons are in \
                 restage's directory on the ESP"
                    .to_owned(),
            ],
        ),
    }
}

/// A committed operation is not finished: the boot tries again or holds, and goes on in no case.
fn conclude_unfinished(error: &Error, for_a_person: &[String]) -> ! {
    match error.next() {
        Next::ContinueBoot | Next::RetryNextBoot => {
            log::error!("{}; rebooting to try again", error.chain());
            boot::reboot()
        }
        Next::HoldForOperator => {
            let lines: Vec<String> =
                std::iter::once(error.chain()).chain(for_a_person.iter().cloned()).collect();
            boot::hold(&lines)
        }
    }
}
