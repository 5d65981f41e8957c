//! From a machine to its facts. Changes nothing.
//! Side: both.

use uuid::Uuid;
use zeroize::Zeroizing;

use super::table;
use crate::error::{Doing, Result};
use crate::format::gpt::{Copy, Entry};
use crate::format::luks;
use crate::plan::TpmIdentity;
use crate::plan::facts::{Content, DiskFacts, Facts, PartitionFacts, TpmFacts};
use crate::platform::tpm::{PPI_CLEAR, Ppi, PpiSupport, Tpm, TpmError, TpmProperties};
use crate::platform::{Disk, Machine, TpmDoor};
use crate::profile::{Profile, TpmMethod};
use crate::request::LuksIdentity;

/// Whether partitions in use matter: the running OS uses its root, the initrd must not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// In the running OS.
    Staging,
    /// In the initrd.
    Boot,
}

/// Looks at everything that planning needs.
pub fn facts(machine: &mut Machine, profile: &Profile, scope: Scope) -> Result<Facts> {
    let disk = disk(machine.disk.as_ref(), scope)?;
    let seed_start = match &profile.seed {
        None => None,
        Some(seed) => match disk.matching(&seed.partition).next() {
            None => None,
            Some(partition) => {
                Some(start_of(machine.disk.as_ref(), &partition.entry, profile.limits.seed_bytes)?)
            }
        },
    };
    let mut esp_paths = Vec::new();
    for pattern in &profile.esp.remove {
        let found = machine.esp.matching(pattern);
        esp_paths.extend(found.doing(|| format!("cannot look for {pattern} on the ESP"))?);
    }
    let loaded_credentials = machine
        .loaded_credentials
        .iter()
        .filter(|name| {
            esp_paths.iter().any(|path| {
                path.rsplit('/').next().and_then(|file| file.strip_suffix(".cred"))
                    == Some(name.as_str())
            })
        })
        .cloned()
        .collect();
    let mut other_tpm_volumes = machine.other_tpm_volumes.clone();
    for partition in &disk.partitions {
        let entry = &partition.entry;
        let wiped =
            profile.wipe.iter().any(|w| w.type_guid == entry.type_guid && w.label == entry.label);
        if !wiped
            && let Ok(header) = luks_header(machine.disk.as_ref(), entry)?
            && header.tpm2_tokens > 0
        {
            other_tpm_volumes.push(format!("partition {} `{}`", entry.number, entry.label));
        }
    }
    Ok(Facts {
        tpm: tpm(machine, profile)?,
        host: machine.host.clone(),
        disk,
        seed_start,
        esp_paths,
        loaded_credentials,
        other_tpm_volumes,
    })
}

/// The disk and what is in its partitions.
pub fn disk(disk: &dyn Disk, scope: Scope) -> Result<DiskFacts> {
    let tables = table::read(disk)?;
    tables.tell_bad(disk);
    let (table, bad_copy) = match (&tables.primary, &tables.backup) {
        (Ok(primary), Ok(_)) => (primary, None),
        (Ok(primary), Err(_)) => (primary, Some(Copy::Backup)),
        (Err(_), Ok(backup)) => (backup, Some(Copy::Primary)),
        (Err(_), Err(_)) => return Err(tables.none_valid(disk)),
    };
    // A cut in the midst of writing one makes it anew from the other: not a matter for after the commit.
    for copy in [&tables.primary, &tables.backup].into_iter().flatten() {
        copy.as_other_copy()
            .doing(|| format!("cannot work with the partition table of {}", disk.name()))?;
    }
    let copies_differ = matches!(
        (&tables.primary, &tables.backup),
        (Ok(primary), Ok(backup)) if !primary.same_content(backup)
    );
    let mut partitions = Vec::new();
    for entry in table.entries() {
        let content = match luks_header(disk, entry)? {
            Ok(header) => Content::Luks(LuksIdentity {
                uuid: header.uuid,
                identity: header.identity,
                header_bytes: header.header_bytes,
                data_offset_bytes: header.data_offset_bytes,
            }),
            Err(_) if start_of(disk, entry, 64 * 1024)?.iter().all(|byte| *byte == 0) => {
                Content::Blank
            }
            Err(_) => Content::Other,
        };
        let in_use = scope == Scope::Boot
            && disk
                .partition_in_use(entry.number)
                .doing(|| format!("cannot tell whether partition {} is in use", entry.number))?;
        partitions.push(PartitionFacts { entry: entry.clone(), content, in_use });
    }
    Ok(DiskFacts {
        name: disk.name().to_owned(),
        size_bytes: disk.size_bytes(),
        sector_bytes: disk.sector_bytes(),
        guid: table.disk_guid(),
        usable: table.usable(),
        bad_copy,
        copies_differ,
        partitions,
    })
}

/// The first `max_bytes` of a partition, or all of it.
fn start_of(disk: &dyn Disk, entry: &Entry, max_bytes: u64) -> Result<Zeroizing<Vec<u8>>> {
    read_part(disk, entry, 0, max_bytes)
}

fn read_part(
    disk: &dyn Disk,
    entry: &Entry,
    offset: u64,
    max_bytes: u64,
) -> Result<Zeroizing<Vec<u8>>> {
    let what = || match entry.number {
        // No table was looked at: the volume is all that there is on it.
        0 => format!("cannot look into {}", disk.name()),
        number => format!("cannot look into partition {number} `{}`", entry.label),
    };
    let sectors = entry.last_lba - entry.first_lba + 1;
    let length = sectors.saturating_mul(disk.sector_bytes()).saturating_sub(offset).min(max_bytes);
    let mut bytes = Zeroizing::new(vec![0; usize::try_from(length).doing(what)?]);
    // Past its end there is nothing to read, and an error there would be none of its own.
    if !bytes.is_empty() {
        disk.read(entry.first_lba * disk.sector_bytes() + offset, &mut bytes).doing(what)?;
    }
    Ok(bytes)
}

/// The LUKS2 header at the start of a whole device; else what is wrong with it.
pub fn luks_on_device(device: &dyn Disk) -> Result<Result<luks::Header, luks::Fault>> {
    let Some(last_lba) = (device.size_bytes() / device.sector_bytes().max(1)).checked_sub(1) else {
        return Ok(Err(luks::Fault::Absent));
    };
    let whole = Entry {
        number: 0,
        type_guid: Uuid::nil(),
        guid: Uuid::nil(),
        first_lba: 0,
        last_lba,
        label: String::new(),
    };
    luks_header(device, &whole)
}

/// The LUKS2 header of a partition, the first or, where that is not valid, the second; where none is,
/// what is wrong with the first that there is anything of.
fn luks_header(disk: &dyn Disk, entry: &Entry) -> Result<Result<luks::Header, luks::Fault>> {
    let mut fault = luks::Fault::Absent;
    for offset in std::iter::once(0).chain(luks::HEADER_SIZES) {
        let start = read_part(disk, entry, offset, 512)?;
        let header = match luks::announced_bytes(&start) {
            Ok(size) => luks::parse(&read_part(disk, entry, offset, size)?, offset),
            Err(fault) => Err(fault),
        };
        match header {
            Ok(header) => return Ok(Ok(header)),
            Err(why) if fault == luks::Fault::Absent => fault = why,
            Err(_) => {}
        }
    }
    Ok(Err(fault))
}

fn tpm(machine: &mut Machine, profile: &Profile) -> Result<TpmFacts> {
    if profile.tpm == TpmMethod::Keep {
        return Ok(TpmFacts::Absent);
    }
    if let Some(directory) = &profile.esp.software_tpm_state {
        let found = machine.esp.matching(directory);
        if !found.doing(|| format!("cannot look for {directory}/ on the ESP"))?.is_empty() {
            return Ok(TpmFacts::OnEsp(directory.clone()));
        }
    }
    let ppi = machine.ppi.as_ref();
    Ok(match &mut machine.tpm {
        TpmDoor::None => TpmFacts::Absent,
        TpmDoor::Broken(why) => TpmFacts::Broken(why.clone()),
        TpmDoor::Open(tpm) => {
            present(tpm.as_mut(), ppi).unwrap_or_else(|error| TpmFacts::Broken(error.to_string()))
        }
    })
}

/// Reads the permanent flags first: after one refused attempt even the right password is refused.
fn present(tpm: &mut dyn Tpm, ppi: Option<&Ppi>) -> Result<TpmFacts, TpmError> {
    let properties = tpm.properties()?;
    // A dictionary-attack lockout is no reason: a clear with an empty lockout password ends it.
    let clear_refused = clear_refusal(&properties);
    let ppi_refused = match ppi {
        None => Some("the firmware offers no physical-presence interface".to_owned()),
        Some(ppi) => ppi_refusal(ppi),
    };
    Ok(TpmFacts::Present { identity: identity(tpm)?, clear_refused, ppi_refused })
}

/// Why `TPM2_Clear` would be refused, with the way out.
#[must_use]
pub fn clear_refusal(properties: &TpmProperties) -> Option<String> {
    properties.foreseen_refusal().map(|refusal| refusal.to_string())
}

fn ppi_refusal(ppi: &Ppi) -> Option<String> {
    match ppi.support(PPI_CLEAR) {
        Ok(PpiSupport::UserRequired | PpiSupport::UserNotRequired) => None,
        Ok(PpiSupport::NotImplemented | PpiSupport::FirmwareOnly | PpiSupport::Blocked) => {
            Some("the firmware does not clear the TPM on request".to_owned())
        }
        Err(error) => Some(format!("the firmware's physical-presence interface: {error}")),
    }
}

/// What identifies the owner hierarchy now.
pub fn identity(tpm: &mut dyn Tpm) -> Result<TpmIdentity, TpmError> {
    Ok(if tpm.properties()?.owner_auth_set {
        TpmIdentity::OwnerAuthSet
    } else {
        TpmIdentity::PrimaryName(tpm.owner_primary_name()?)
    })
}
