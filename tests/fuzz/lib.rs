//! Any bytes to each parser of what comes from a disk, a file, a person or the firmware, and to staging
//! and applying as a whole. Each target asserts more than that nothing panics: what is read is written
//! as it was, what is refused is told in a line, and memory has a limit.
//!
//! The same functions are run by `cargo test` on seeds and changed seeds, and by libFuzzer, guided by
//! coverage: `restage-fuzz --help` says how.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::missing_panics_doc,
    reason = "a test: a panic is its verdict"
)]

mod bytes;
#[path = "../fixtures/mod.rs"]
mod fixtures;
pub mod kept;
mod memory;
pub mod mutate;
mod seal;
mod targets;

pub use targets::TARGETS;

/// One function that takes any bytes.
pub struct Target {
    /// What it is called.
    pub name: &'static str,
    /// Panics when something is not as it has to be.
    pub run: fn(&[u8]),
    /// What to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// What its format is made of.
    pub words: &'static [&'static str],
    /// It may hold so much memory at once.
    pub peak_bytes: usize,
    /// How fast it is.
    pub pace: Pace,
}

/// How fast a target is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// A parser.
    Parser,
    /// A machine that is booted, several times.
    Machine,
}

impl Pace {
    /// Executions of a long run.
    #[must_use]
    pub fn long(self) -> u64 {
        match self {
            Self::Parser => 10_000_000,
            Self::Machine => 50_000,
        }
    }

    /// Executions in `cargo test`.
    #[must_use]
    pub fn short(self) -> u64 {
        match self {
            Self::Parser => 30_000,
            Self::Machine => 1_000,
        }
    }
}

impl Target {
    /// The target of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        TARGETS.iter().find(|target| target.name == name)
    }

    /// Runs it on these bytes. Panics when something is not as it has to be.
    pub fn check(&self, bytes: &[u8]) {
        let ((), peak) = memory::peak(|| (self.run)(bytes));
        assert!(
            peak <= self.peak_bytes,
            "{peak} bytes of memory at once, more than {}",
            self.peak_bytes
        );
    }
}

/// [`Target::check`] by name, for who has nothing but that.
pub fn check(name: &str, bytes: &[u8]) {
    Target::named(name).expect("there is such a target").check(bytes);
}
