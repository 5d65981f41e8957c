//! The facts of a machine: what the edge found, and all that planning looks at.
//! Side: both. Pure.

use uuid::Uuid;
use zeroize::Zeroizing;

use crate::format::gpt::{Copy, Entry};
use crate::plan::TpmIdentity;
use crate::profile::Partition;
use crate::request::{BoundPartition, LuksIdentity};

/// A machine, as found.
#[derive(Clone)]
pub struct Facts {
    /// The disk.
    pub disk: DiskFacts,
    /// The machine and its OS.
    pub host: HostFacts,
    /// The TPM.
    pub tpm: TpmFacts,
    /// The start of the seed partition, as far as an archive may reach; none when the profile has no
    /// seeds or the partition is not on the disk.
    pub seed_start: Option<Zeroizing<Vec<u8>>>,
    /// The paths of the profile's `esp.remove` that exist.
    pub esp_paths: Vec<String>,
    /// Of these, the ones that systemd had loaded in this boot.
    pub loaded_credentials: Vec<String>,
    /// LUKS2 volumes outside the partitions to wipe with key slots sealed to a TPM.
    pub other_tpm_volumes: Vec<String>,
}

/// A disk and its partitions.
#[derive(Clone, Debug)]
pub struct DiskFacts {
    /// What people call it: the path.
    pub name: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Logical sector size in bytes.
    pub sector_bytes: u64,
    /// GUID of the disk.
    pub guid: Uuid,
    /// The LBAs that partitions may use, first and last.
    pub usable: (u64, u64),
    /// The one copy of the table that is not valid.
    pub bad_copy: Option<Copy>,
    /// Both copies are valid and differ.
    pub copies_differ: bool,
    /// The partitions, from the primary copy where it is valid.
    pub partitions: Vec<PartitionFacts>,
}

/// One partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionFacts {
    /// Its entry.
    pub entry: Entry,
    /// What is in it.
    pub content: Content,
    /// Who uses it: a mount, a device mapper volume, swap.
    pub in_use: bool,
}

/// What is in a partition, as far as a reset is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// A LUKS2 volume, by at least one of its headers.
    Luks(LuksIdentity),
    /// The places of its headers hold only zeros.
    Blank,
    /// Something else.
    Other,
}

/// The machine and its OS. What is absent is not compared.
#[derive(Clone, Debug, Default)]
pub struct HostFacts {
    /// SMBIOS system UUID.
    pub smbios: Option<String>,
    /// `ID` of the OS.
    pub os_id: Option<String>,
    /// `IMAGE_ID` of the OS.
    pub image_id: Option<String>,
    /// Seconds since 1970.
    pub now: u64,
}

/// The TPM, as found.
#[derive(Clone, Debug)]
pub enum TpmFacts {
    /// There is none.
    Absent,
    /// There is one, and it does not answer as it should.
    Broken(String),
    /// Its state is in this directory on the ESP.
    OnEsp(String),
    /// It answers.
    Present {
        /// What the proof of a clear compares with.
        identity: TpmIdentity,
        /// Why `TPM2_Clear` would be refused.
        clear_refused: Option<String>,
        /// Why the firmware would refuse; none when it would not.
        ppi_refused: Option<String>,
    },
}

impl DiskFacts {
    /// The partitions that match, by type and label.
    pub fn matching(&self, wanted: &Partition) -> impl Iterator<Item = &PartitionFacts> {
        self.partitions.iter().filter(move |partition| {
            partition.entry.type_guid == wanted.type_guid && partition.entry.label == wanted.label
        })
    }
}

impl PartitionFacts {
    /// The partition as a request or a plan names it.
    #[must_use]
    pub fn bound(&self) -> BoundPartition {
        BoundPartition {
            number: self.entry.number,
            label: self.entry.label.clone(),
            guid: self.entry.guid,
            type_guid: self.entry.type_guid,
            first_lba: self.entry.first_lba,
            last_lba: self.entry.last_lba,
            luks: match &self.content {
                Content::Luks(identity) => Some(identity.clone()),
                Content::Blank | Content::Other => None,
            },
        }
    }
}
