//! WHAT WILL HAPPEN: pure. Facts of the machine and a request become an ordered list of steps.

pub mod check;
pub mod erase;
pub mod facts;
pub mod render;
pub mod reset;
pub mod restore;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::format::gpt::Copy;
use crate::profile::{AfterReset, Erase};
use crate::request::BoundPartition;

/// Everything that is going to happen, in order. It is computed once, stored in the journal, and
/// that plan and no other is carried out, however often the power goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// GUID of the disk.
    #[cfg_attr(test, schemars(with = "String"))]
    pub disk: Uuid,
    /// Size of the disk in bytes.
    pub disk_bytes: u64,
    /// Its logical sector size in bytes.
    pub sector_bytes: u64,
    /// The steps.
    pub steps: Vec<Step>,
    /// What follows.
    pub after: AfterReset,
    /// Why a reboot follows whatever the profile says: something that systemd had already built on
    /// is destroyed.
    pub reboot_because: Option<String>,
}

/// One idempotent step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(tag = "step", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Step {
    /// A bad copy of the partition table is written anew from the good one.
    Heal {
        /// The bad copy.
        copy: Copy,
    },
    /// The TPM forgets every key.
    Tpm {
        /// By which way.
        way: TpmWay,
    },
    /// The seed partition gets its new content.
    Seed {
        /// Which partition.
        partition: BoundPartition,
        /// SHA-256 of the rendered archive, kept as `<ID8>.TAR`.
        archive_sha256: String,
        /// Its length in bytes.
        archive_bytes: u64,
        /// The entries of the present archive that stay.
        kept: Vec<String>,
        /// The entries that go.
        removed: Vec<String>,
        /// The entries that are new.
        written: Vec<String>,
    },
    /// Files on the ESP are removed.
    Esp {
        /// Paths relative to the ESP.
        paths: Vec<String>,
    },
    /// A partition is destroyed.
    Wipe {
        /// Which partition.
        partition: BoundPartition,
        /// How thoroughly.
        erase: Erase,
    },
    /// The entries of the destroyed partitions leave both tables.
    Gpt {
        /// Which partitions.
        partitions: Vec<BoundPartition>,
    },
}

/// How the TPM is made to forget.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(tag = "way", rename_all = "kebab-case", deny_unknown_fields)]
pub enum TpmWay {
    /// `TPM2_Clear` under the lockout hierarchy.
    Clear {
        /// What the proof compares with.
        before: TpmIdentity,
        /// A refusal is recorded and passed over.
        allow_failure: bool,
    },
    /// The firmware is asked (TCG PPI operation 5), and a reboot follows.
    Ppi {
        /// What the proof compares with.
        before: TpmIdentity,
        /// Why not by `TPM2_Clear`, when that was tried first.
        instead: Option<String>,
        /// A refusal is recorded and passed over.
        allow_failure: bool,
    },
    /// The state of a software TPM is deleted.
    DeleteState {
        /// The directory on the ESP.
        directory: String,
    },
    /// Nothing can be done, and the request allows that.
    PassOver {
        /// Why.
        reason: String,
    },
}

/// What identifies the TPM's owner hierarchy, to prove later that it is another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum TpmIdentity {
    /// Name of a fixed primary under the owner hierarchy: another seed gives another name.
    PrimaryName(String),
    /// The hierarchy has a password, so no primary can be made; a clear removes the password.
    OwnerAuthSet,
}

impl Step {
    /// The step's name in logs and reports.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Heal { copy } => format!("heal {copy} partition table"),
            Self::Tpm { .. } => "tpm".to_owned(),
            Self::Seed { .. } => "seed".to_owned(),
            Self::Esp { .. } => "esp".to_owned(),
            Self::Wipe { partition, .. } => format!("wipe {}", partition.label),
            Self::Gpt { .. } => "gpt".to_owned(),
        }
    }

    /// Whether the step runs again on a resume even though it is recorded: firmware may have brought
    /// back what it removed. All others stay done.
    #[must_use]
    pub fn runs_again(&self) -> bool {
        match self {
            Self::Gpt { .. } => true,
            Self::Heal { .. }
            | Self::Tpm { .. }
            | Self::Seed { .. }
            | Self::Esp { .. }
            | Self::Wipe { .. } => false,
        }
    }
}

impl Plan {
    /// The partitions that the plan destroys.
    pub fn wiped(&self) -> impl Iterator<Item = &BoundPartition> {
        self.steps.iter().filter_map(|step| match step {
            Step::Wipe { partition, .. } => Some(partition),
            _ => None,
        })
    }
}
