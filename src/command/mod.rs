//! The commands, put together from the folders below. `os` is the running OS's side, `initrd` the
//! initrd's.

pub mod backup;
pub mod initrd;
pub mod os;
pub mod restore;
pub mod state;
pub mod systemd;

use std::io::Write;
use std::path::Path;

use serde::Serialize;

use crate::cli::Place;
use crate::error::{Doing, Error, Refused, Result};
use crate::plan::facts::HostFacts;
use crate::platform::directory;
use crate::platform::disk::OpenDisk;
use crate::platform::esp::{EspDirectory, Others};
use crate::platform::locate::{self, Mounted};
use crate::platform::named_disk::NamedDisk;
use crate::platform::tpm::{EsysTpm, Ppi, TpmError};
use crate::platform::{Machine, TpmDoor, efivar, host};
use crate::profile::Profile;

/// The kernel's TPM device with its resource manager.
const TPM_DEVICE: &str = "/dev/tpmrm0";

/// Who works on the ESP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Who has a request to put there, and passes over a directory that is broken.
    Stager,
    /// Who looks at what there is, or carries it out.
    Reader,
}

/// How a command ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done, or nothing to do.
    Done,
    /// Unexpected failure, nothing committed.
    Failed,
    /// Refused, nothing changed.
    Refused,
    /// Failed after the commit; the next run resumes.
    Unfinished,
    /// Done, and a reboot is needed.
    RebootNeeded,
}

impl Exit {
    /// The exit status. 2, a usage error, is clap's.
    #[must_use]
    pub fn status(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Refused => 3,
            Self::Unfinished => 4,
            Self::RebootNeeded => 5,
        }
    }
}

/// The disk and the ESP as the caller gave them.
fn offline(place: &Place, profile: &Profile, side: Side) -> Result<Machine> {
    let (Some(disk), Some(esp)) = (&place.disk, &place.esp) else {
        return Err(Error::new("--esp needs --disk: the ESP is checked against its disk"));
    };
    // What only makes sense on the running machine is left out of the facts, so it is not compared.
    let host = HostFacts { now: host::now(), ..HostFacts::default() };
    let esp = open_esp(esp, profile, side)?;
    machine(disk, esp, place.tcti.as_deref(), None, host)
}

fn open_esp(path: &Path, profile: &Profile, side: Side) -> Result<EspDirectory> {
    let open = match side {
        Side::Stager => EspDirectory::on_esp_to_stage,
        Side::Reader => EspDirectory::on_esp,
    };
    directory::open(path)
        .and_then(|root| open(root, &profile.esp.directory))
        .doing(|| format!("cannot open the ESP at {}", path.display()))
}

/// Whether nobody else may meddle with what is staged there.
fn guarded(place: &EspDirectory, others: Others) -> Result<Result<(), Refused>> {
    let found = place.unguarded(others).doing(|| "cannot tell who may write there".to_owned())?;
    Ok(found.map_or(Ok(()), |why| Err(Refused::because(format!("cannot stage: {why}")))))
}

/// The machine's disk and TPM, with the ESP that was opened already.
fn machine(
    disk: &Path,
    esp: EspDirectory,
    tcti: Option<&str>,
    ppi: Option<Ppi>,
    host: HostFacts,
) -> Result<Machine> {
    let disk = OpenDisk::open(disk).doing(|| format!("cannot open {}", disk.display()))?;
    Ok(Machine {
        disk: Box::new(NamedDisk::new(disk)),
        esp: Box::new(esp),
        tpm: open_tpm(tcti),
        ppi,
        host,
        other_tpm_volumes: Vec::new(),
        loaded_credentials: Vec::new(),
    })
}

fn open_tpm(tcti: Option<&str>) -> TpmDoor {
    let device = format!("device:{TPM_DEVICE}");
    let tcti = match tcti {
        Some("none") => return TpmDoor::None,
        Some(tcti) => tcti,
        None if Path::new(TPM_DEVICE).exists() => &device,
        None => return TpmDoor::None,
    };
    match EsysTpm::open(tcti) {
        Ok(tpm) => TpmDoor::Open(Box::new(tpm)),
        Err(error @ TpmError::Failed { no_device: true, .. }) => {
            log::warn!("{error}");
            TpmDoor::None
        }
        Err(error) => TpmDoor::Broken(error.to_string()),
    }
}

/// The unique GUID of the ESP that this machine was booted from, as the boot loader or the profile
/// says.
fn esp_guid(profile: &Profile) -> Option<uuid::Uuid> {
    efivar::loader_device_partition().or(profile.esp.partition_guid)
}

/// The running machine, opened for looking and staging: the disk is read only.
fn running(place: &Place, profile: &Profile, side: Side) -> Result<(Machine, Option<Mounted>)> {
    let what = || "cannot find the ESP that this machine was booted from".to_owned();
    let guid = esp_guid(profile).ok_or_else(|| {
        Error::new(what()).because(
            "the EFI variable LoaderDevicePartUUID is not set, and the profile's \
             `esp.partition_guid` neither",
        )
    })?;
    let located = locate::find(guid).doing(what)?;
    let located = match located.as_slice() {
        [one] => one,
        [] => return Err(Error::new(what()).because(format!("no disk has partition {guid}"))),
        several => {
            let disks: Vec<_> = several.iter().map(|l| l.disk.display().to_string()).collect();
            return Err(Error::new(what()).because(format!(
                "{} are clones of each other: each has partition {guid}; detach the others",
                disks.join(", ")
            )));
        }
    };
    let partition = located
        .partition
        .as_ref()
        .ok_or_else(|| Error::new(what()).because(format!("{guid} has no device node")))?;
    let mounted = locate::mount(partition)
        .doing(|| format!("cannot mount the ESP {}", partition.display()))?;
    let esp = open_esp(&mounted.path, profile, side)?;
    let tcti = place.tcti.as_deref();
    let mut machine = machine(&located.disk, esp, tcti, Some(Ppi::default()), host::facts())?;
    machine.other_tpm_volumes = locate::tpm_volumes_elsewhere(&located.disk)
        .doing(|| "cannot look at the other disks".to_owned())?;
    Ok((machine, Some(mounted)))
}

/// Prints JSON, for programs.
fn print_json(value: &impl Serialize) -> Result<()> {
    let what = || "cannot print".to_owned();
    let text = serde_json::to_string_pretty(value).doing(what)?;
    // JSON lets these stand, and a terminal obeys them.
    let escaped = |c: char| match c {
        '\n' => c.to_string(),
        c if c.is_control() => format!("\\u{:04x}", u32::from(c)),
        c => c.to_string(),
    };
    let mut text: String = text.chars().map(escaped).collect();
    text.push('\n');
    std::io::stdout().write_all(text.as_bytes()).doing(what)
}
