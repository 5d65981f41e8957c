//! WHAT WAS ASKED: the contract between the running OS and the initrd.
//! Types only; `stage` is the OS side, `find` the initrd side.

pub mod find;
pub(crate) mod json;
pub mod restore;
pub mod stage;
pub mod stage_restore;
pub mod systemd;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::error::Refused;
use crate::format::seed::{self, Seeds};
use crate::profile::Profile;

/// The object that `factory-reset -d` takes: the user-facing contract, field for field.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResetOptions {
    /// Go on when the TPM cannot be cleared.
    #[serde(default)]
    pub allow_tpm_reset_failure: bool,
    /// Remove the seeds that are on the seed partition.
    #[serde(default)]
    pub wipe_existing_seeds: bool,
    /// Seeds to write.
    #[serde(default, deserialize_with = "json::each_once")]
    pub seeds: BTreeMap<String, Box<RawValue>>,
}

impl ResetOptions {
    /// Reads the JSON text of `-d`.
    pub fn parse(text: &str) -> Result<Self, Refused> {
        if text.len() > 16 * 1024 * 1024 {
            return Err(Refused::because("the options are larger than 16 MiB"));
        }
        // serde would take an array for an object, field by field.
        if !text.trim_start().starts_with('{') {
            return Err(Refused::because("the options: not a JSON object"));
        }
        serde_json::from_str(text)
            .map_err(|error| Refused::because(format!("the options: {error}")))
    }
}

/// Checks seeds against the profile: names, values, the seed partition's existence.
pub fn check_seeds(seeds: &Seeds, profile: &Profile) -> Result<(), Refused> {
    let refuse = |reason: String| Err(Refused::because(reason));
    let Some(rules) = &profile.seed else {
        return if seeds.is_empty() {
            Ok(())
        } else {
            refuse(format!("field `seeds`: {} has no seed partition", profile.name))
        };
    };
    for (name, value) in seeds {
        if !seed::is_valid_name(name) {
            return refuse(format!("field `seeds`: `{name}` is no seed name ([a-z0-9][a-z0-9-]*)"));
        }
        if rules.refused_names.contains(name) {
            return refuse(format!(
                "field `seeds.{name}`: {} does not allow this seed",
                profile.name
            ));
        }
        if !value.get().starts_with('{') {
            return refuse(format!("field `seeds.{name}`: not a JSON object"));
        }
        // It is written as it stands here: what reads it must be able to.
        if let Err(error) = json::check(value.get()) {
            return refuse(format!("field `seeds.{name}`: {error}"));
        }
    }
    Ok(())
}

/// A staged factory reset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Random 128 bits as 32 lower-case hexadecimal digits; follows the operation everywhere.
    pub id: String,
    /// What is asked for.
    pub operation: Operation,
    /// Who asked, and when.
    pub staged: Staged,
    /// What it is for. It matches nothing else.
    pub machine: Binding,
    /// Go on when the TPM cannot be cleared.
    pub allow_tpm_reset_failure: bool,
    /// Remove the seeds that are on the seed partition.
    pub wipe_existing_seeds: bool,
    /// The seeds to write, in a file of their own because they may be secret.
    pub seeds: Option<SeedFile>,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    /// Back to as just installed.
    FactoryReset,
    /// The state of a backup.
    Restore,
}

impl std::fmt::Display for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::FactoryReset => "factory reset",
            Self::Restore => "restore",
        })
    }
}

/// Who asked, and when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Staged {
    /// The command.
    pub command: String,
    /// The user.
    pub user: String,
    /// Version of the restage that staged it.
    pub restage: String,
    /// Seconds since 1970, by the clock of that moment.
    pub at: u64,
}

/// What a request is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Binding {
    /// GUID of the disk.
    #[cfg_attr(test, schemars(with = "String"))]
    pub disk: Uuid,
    /// SMBIOS system UUID; absent when the machine has none, or the disk was given by hand.
    pub smbios: Option<String>,
    /// `ID` of the OS.
    pub os_id: Option<String>,
    /// `IMAGE_ID` of the OS.
    pub image_id: Option<String>,
    /// The partitions that it will destroy.
    pub partitions: Vec<BoundPartition>,
}

/// A partition as it was when the request was staged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct BoundPartition {
    /// Number, from 1.
    pub number: u32,
    /// Partition name.
    pub label: String,
    /// Unique partition GUID.
    #[cfg_attr(test, schemars(with = "String"))]
    pub guid: Uuid,
    /// Partition type GUID.
    #[serde(rename = "type")]
    #[cfg_attr(test, schemars(with = "String"))]
    pub type_guid: Uuid,
    /// First LBA.
    pub first_lba: u64,
    /// Last LBA, inclusive.
    pub last_lba: u64,
    /// LUKS2 volume in it; none when it holds something else.
    pub luks: Option<LuksIdentity>,
}

/// Which LUKS2 volume, and how far its headers and key slots reach.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct LuksIdentity {
    /// Volume UUID.
    pub uuid: String,
    /// SHA-256 of what names the volume key; see `format::luks`.
    pub identity: String,
    /// Size of one header.
    pub header_bytes: u64,
    /// Where the encrypted data begin.
    pub data_offset_bytes: u64,
}

/// The staged seeds: `<ID8>.SED` beside the request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct SeedFile {
    /// SHA-256 of the file.
    pub sha256: String,
    /// Its length in bytes.
    pub bytes: u64,
    /// The names in it.
    pub names: Vec<String>,
}

/// Whether this is a request id.
#[must_use]
pub fn is_valid_id(id: &str) -> bool {
    id.len() == 32 && id.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// Whether a file with this stem is one of the operation that it says it is of, and that one is what is
/// looked for there; otherwise what is wrong, with the field below `of`.
pub(crate) fn check_name(
    stem: &str,
    of: &str,
    (id, operation): (&str, Operation),
    wanted: Operation,
) -> Result<(), String> {
    if !is_valid_id(id) || self::stem(id) != stem {
        return Err(format!("field `{of}id` does not fit the file's name"));
    }
    if operation != wanted {
        return Err(format!("field `{of}operation` is {operation}, and not {wanted}"));
    }
    Ok(())
}

/// The stem of the files of request `id`: eight upper-case digits, so that each name is a single FAT
/// directory entry (8.3).
#[must_use]
pub fn stem(id: &str) -> String {
    id.chars().take(8).collect::<String>().to_ascii_uppercase()
}

/// The file of request `id` with this extension.
#[must_use]
pub fn file_name(id: &str, extension: &str) -> String {
    format!("{}.{extension}", stem(id))
}
