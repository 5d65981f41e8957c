//! The figures of a part of the campaign, as its run leaves them for `restage-figures` to tell in the
//! README. Each part has this file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;

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

    /// Leaves them in a file.
    pub fn store(&self, path: &Path) {
        let text = serde_json::to_string_pretty(self).expect("figures");
        let stored = File::create(path).and_then(|mut file| file.write_all(text.as_bytes()));
        stored.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}
