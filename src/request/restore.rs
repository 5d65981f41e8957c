//! What a restore asks for. Lies on the encrypted state file system, beside the staged archive.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{Operation, Staged};
use crate::error::Refused;

/// A staged restore.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct RestoreRequest {
    /// Random 128 bits as 32 lower-case hexadecimal digits; follows the operation everywhere.
    pub id: String,
    /// What is asked for: `restore`.
    pub operation: Operation,
    /// Who asked, and when.
    pub staged: Staged,
    /// The staged archive: `<ID8>.ARC` beside the request.
    pub archive: ArchiveFile,
    /// What of the backup is not used.
    pub skip: BTreeSet<SkipItem>,
    /// What it is for.
    pub machine: RestoreBinding,
}

/// The staged archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ArchiveFile {
    /// SHA-256 of the file.
    pub sha256: String,
    /// Its length in bytes.
    pub bytes: u64,
}

/// What a restore is for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct RestoreBinding {
    /// SMBIOS system UUID; absent when the machine has none, or the directory was given by hand.
    pub smbios: Option<String>,
    /// `ID` of the OS.
    pub os_id: Option<String>,
    /// `IMAGE_ID` of the OS.
    pub image_id: Option<String>,
    /// The LUKS2 volumes, by what the profile calls them, and their UUIDs.
    pub volumes: Vec<(String, String)>,
}

/// What of a backup can be left out: the user-facing contract, word for word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum SkipItem {
    /// The recovery passphrases of root and swap stay.
    EncryptionRecoveryKeys,
    /// The key of the local pool stays.
    LocalDataEncryptionKey,
    /// Hardware addresses are found anew by the interfaces' names.
    NetworkMacs,
}

impl SkipItem {
    const ALL: [(&str, Self); 3] = [
        ("encryption-recovery-keys", Self::EncryptionRecoveryKeys),
        ("local-data-encryption-key", Self::LocalDataEncryptionKey),
        ("network-macs", Self::NetworkMacs),
    ];

    /// Reads a list of names.
    pub fn parse_all(names: &[String]) -> Result<BTreeSet<Self>, Refused> {
        names
            .iter()
            .map(|name| {
                Self::ALL.iter().find(|(known, _)| known == name).map(|(_, item)| *item).ok_or_else(
                    || {
                        let known: Vec<_> = Self::ALL.iter().map(|(name, _)| *name).collect();
                        Refused::because(format!(
                            "`--skip {name}`: not known; there are {}",
                            known.join(", ")
                        ))
                    },
                )
            })
            .collect()
    }
}

impl std::fmt::Display for SkipItem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = Self::ALL.iter().find(|(_, item)| item == self).map(|(name, _)| *name);
        f.write_str(name.unwrap_or_default())
    }
}
