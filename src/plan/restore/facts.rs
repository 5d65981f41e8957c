//! What a restore is planned on: the backup, and the system that it would be restored to.
//! Side: both. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::format::archive::Kind;
use crate::format::luks::SlotKind;
use crate::format::state::StateFile;
use crate::plan::facts::HostFacts;

/// A file of a backup, or of the state directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileFacts {
    /// Length in bytes.
    pub bytes: u64,
    /// SHA-256 of its content.
    pub sha256: String,
}

/// What an archive holds, read to its end.
#[derive(Clone, Debug)]
pub struct Backup {
    /// SHA-256 of the archive.
    pub sha256: String,
    /// Its length in bytes.
    pub bytes: u64,
    /// The files in it.
    pub files: BTreeMap<String, FileFacts>,
    /// Its directories and links.
    pub others: BTreeMap<String, Kind>,
    /// Its state file; else what is wrong with it. None when the OS has none.
    pub state: Option<Result<StateFile, String>>,
}

/// The system that it would be restored to.
#[derive(Clone, Debug)]
pub struct RestoreFacts {
    /// The machine and its OS.
    pub host: HostFacts,
    /// The files in the state directory.
    pub files: BTreeMap<String, FileFacts>,
    /// Its state file; else what is wrong with it. None when the OS has none.
    pub state: Option<Result<StateFile, String>>,
    /// Free space on the state file system, in bytes.
    pub free_bytes: u64,
    /// Whether the state file system is encrypted; not asked where a directory was given by hand.
    pub is_encrypted: Option<bool>,
    /// Why two directories cannot be exchanged where the state directory lies.
    pub no_exchange: Option<String>,
    /// Whether the old or new state of another restore lies beside the state.
    pub other_state: bool,
    /// Whether a hibernated system waits to be resumed.
    pub is_hibernated: bool,
    /// The volumes of the profile, in its order; none when their passphrases stay.
    pub volumes: Vec<VolumeFacts>,
    /// Passphrases, of this system and of the backup, that open every volume; looked for when the
    /// passphrases stay.
    pub open_passphrases: Vec<Zeroizing<String>>,
}

/// A LUKS2 volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeFacts {
    /// What the profile calls it.
    pub name: String,
    /// Its header; else why it cannot be read.
    pub header: Result<VolumeHeader, String>,
    /// The slot that this machine's own key opens; else why it opens none.
    pub own_key: Result<RecordedSlot, String>,
}

/// What is known of a volume by its header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeHeader {
    /// Volume UUID.
    pub uuid: String,
    /// What names the volume key; see `format::luks`.
    pub identity: String,
    /// The key slots.
    pub slots: Vec<RecordedSlot>,
    /// Which of them are passphrases.
    pub passphrases: Vec<RecordedSlot>,
}

/// A key slot as it was: never touched when it is another one by then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct RecordedSlot {
    /// Its number.
    pub index: u32,
    /// SHA-256 of its object in the header.
    pub digest: String,
}

impl VolumeHeader {
    /// What a plan needs to know of a header.
    #[must_use]
    pub fn of(header: &crate::format::luks::Header) -> Self {
        let record = |slot: &crate::format::luks::Slot| RecordedSlot {
            index: slot.index,
            digest: slot.digest.clone(),
        };
        let is_passphrase = |slot: &&crate::format::luks::Slot| slot.kind == SlotKind::Password;
        Self {
            uuid: header.uuid.clone(),
            identity: header.identity.clone(),
            slots: header.slots.iter().map(record).collect(),
            passphrases: header.slots.iter().filter(is_passphrase).map(record).collect(),
        }
    }
}
