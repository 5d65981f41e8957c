//! WHAT HAPPENED: the contract between the initrd and the running OS.
//! Side: the initrd writes it, the OS reads it. Pure.

use serde::{Deserialize, Serialize};

use crate::request::{Operation, Staged};

/// The result of an operation. Its presence says that the operation is over: whatever else of it is
/// still there, or comes back, means nothing any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// The request's id; what its file was called when the request could not be read.
    pub id: String,
    /// What was asked for; none when the request could not be read.
    pub operation: Option<Operation>,
    /// How it ended.
    pub outcome: Outcome,
    /// Why, unless it was done.
    pub reason: Option<String>,
    /// Who asked, and when.
    pub staged: Option<Staged>,
    /// Seconds since 1970 when it ended, by the clock of that moment.
    pub finished_at: u64,
    /// How many boots worked on it.
    pub runs: u32,
    /// The last failures on the way, oldest first.
    pub failures: Vec<String>,
    /// The steps, in order.
    pub steps: Vec<StepReport>,
    /// Version of the restage that ended it.
    pub restage: String,
}

/// How an operation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Every step is done, or was passed over as the request allows.
    Done,
    /// Nothing was destroyed; the request was set aside.
    Refused,
    /// Withdrawn in the running OS.
    Cancelled,
    /// A restored state did not come up; the old one is back.
    RolledBack,
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Done => "done",
            Self::Refused => "refused",
            Self::Cancelled => "cancelled",
            Self::RolledBack => "rolled back",
        })
    }
}

/// One step of a finished operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct StepReport {
    /// Its name.
    pub step: String,
    /// What it did, as the dry run says it.
    pub what: String,
    /// Why it was passed over, when it was.
    pub passed_over: Option<String>,
}
