//! The figures of a campaign, as its run leaves them for `restage-figures` to tell in the README.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What one layer of the campaign has tried.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tried {
    /// Its name.
    pub layer: String,
    /// What is counted.
    pub unit: String,
    /// Each operation that was interrupted.
    pub operations: Vec<Operation>,
}

/// One operation that was interrupted.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Operation {
    /// Its name.
    pub name: String,
    /// How often it was interrupted, by the step in which that was last.
    pub steps: BTreeMap<String, usize>,
    /// How that ended.
    pub outcomes: BTreeMap<String, usize>,
}

impl Operation {
    /// How often it was interrupted.
    pub fn total(&self) -> usize {
        self.steps.values().sum()
    }
}

impl Tried {
    /// How often all of its operations were interrupted.
    pub fn total(&self) -> usize {
        self.operations.iter().map(Operation::total).sum()
    }
}
