//! What a run begins with, and how to see a failure again.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use crate::{Target, mutate};

/// Where inputs are kept that were found to lead somewhere new.
#[must_use]
pub fn corpus(target: &Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name)
}

/// The seeds of a target and its kept inputs, always in the same order.
#[must_use]
pub fn all(target: &Target) -> Vec<Vec<u8>> {
    let mut kept: Vec<PathBuf> = match fs::read_dir(corpus(target)) {
        Ok(entries) => entries.map(|entry| entry.unwrap().path()).collect(),
        // Not every target has some.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => panic!("{}: {error}", corpus(target).display()),
    };
    kept.sort();
    let mut all = (target.seeds)();
    all.extend(kept.iter().map(|path| fs::read(path).unwrap()));
    all
}

/// Runs a target on all that is kept, and on so many changed ones. Returns how many runs it was.
#[must_use]
pub fn run(target: &Target, changed: u64) -> u64 {
    let seeds = all(target);
    for seed in &seeds {
        try_one(target, seed);
    }
    for number in 0..changed {
        try_one(target, &mutate::input(target, &seeds, number));
    }
    seeds.len() as u64 + changed
}

fn try_one(target: &Target, bytes: &[u8]) {
    if catch_unwind(AssertUnwindSafe(|| target.check(bytes))).is_ok() {
        return;
    }
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/fuzz");
    let name = format!("{}-{}", target.name, &restage::format::sha256_hex(bytes)[..16]);
    let path = directory.join(name);
    #[allow(clippy::disallowed_methods, reason = "a file for a person who looks into a failure")]
    fs::create_dir_all(&directory).and_then(|()| fs::write(&path, bytes)).unwrap();
    panic!(
        "see it again: cargo run --package restage-fuzz -- replay {} {}",
        target.name,
        path.canonicalize().unwrap().display()
    );
}
