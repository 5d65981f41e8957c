//! The figures of a part of the campaign, as its run leaves them for `restage-figures` to tell in the
//! README. Each part has this file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;

use clap::Args;
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

/// How much there must be, or the run has failed.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct Least {
    /// At least so many together, or it has failed.
    #[arg(long, default_value_t = 0)]
    pub at_least: usize,
    /// At least so many in each case, or it has failed.
    #[arg(long, default_value_t = 0)]
    pub each_case: usize,
    /// At least so many in each step of each case, or it has failed.
    #[arg(long, default_value_t = 0)]
    pub each: usize,
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

    /// Whether there is less of something than there must be; that is said. What counts as all of them is
    /// not always what its parts are together.
    pub fn falls_short(&self, all: usize, least: Least) -> bool {
        let mut counts = vec![("all together".to_owned(), all, least.at_least)];
        for operation in &self.operations {
            let name = &operation.name;
            counts.push((name.clone(), operation.total(), least.each_case));
            let steps = operation.steps.iter();
            counts.extend(steps.map(|(step, runs)| (format!("{name}, {step}"), *runs, least.each)));
        }
        counts.retain(|(_, there, least)| there < least);
        for (name, there, least) in &counts {
            println!("{name}: {there}, fewer than the {least} that there must be");
        }
        !counts.is_empty()
    }

    /// Leaves them in a file.
    pub fn store(&self, path: &Path) {
        let text = serde_json::to_string_pretty(self).expect("figures");
        let stored = File::create(path).and_then(|mut file| file.write_all(text.as_bytes()));
        stored.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}
