//! A change that makes the program wrong.

use std::path::Path;

use crate::unseen::UNSEEN;
use crate::{calls, orders};

pub const ESP: &str = "src/platform/esp.rs";
pub const DIRECTORY: &str = "src/platform/directory/mod.rs";
pub const ROOM: &str = "src/platform/directory/room.rs";
pub const STATE_FS: &str = "src/platform/state_fs/real.rs";
pub const EFFECTS: &str = "src/apply/effects.rs";
pub const KERNEL: &str = "src/platform/directory/kernel.rs";
pub const DISK: &str = "src/platform/disk.rs";

/// What is wrong then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// A call is missing that makes something durable, or reads what has to be read first.
    Calls,
    /// The order, in one of the ways in which such programs are known to be wrong.
    Orders,
}

/// One change.
pub struct Mutation {
    /// Which it is called by.
    pub name: String,
    /// Of which kind it is.
    pub kind: Kind,
    /// In which file.
    pub file: &'static str,
    /// What stands there.
    pub from: String,
    /// What shall stand there.
    pub to: String,
    /// Which one of several equal places, from 0.
    pub place: usize,
}

impl Mutation {
    /// Whether nothing can see it.
    pub fn is_listed(&self) -> bool {
        let is_it = |(file, line, place, _): &(&str, &str, usize, &str)| {
            let is_there = self.from.trim_matches('\n') == *line && self.place == *place;
            self.file == *file && (is_there || self.name == *line)
        };
        UNSEEN.iter().any(is_it)
    }
}

/// All of them; a place that is not there any more is an error of this list.
pub fn all(root: &Path) -> Vec<Mutation> {
    let read = |file: &str| std::fs::read_to_string(root.join(file)).unwrap();
    calls::assert_known(&sources(root, "src"), &read);
    orders::all(&read).chain(calls::all(&read)).collect()
}

/// The files of the program below a directory.
fn sources(root: &Path, below: &str) -> Vec<String> {
    let entries = std::fs::read_dir(root.join(below)).unwrap().map(Result::unwrap);
    let found = entries.flat_map(|entry| {
        let path = format!("{below}/{}", entry.file_name().to_str().unwrap());
        let is_directory = entry.file_type().unwrap().is_dir();
        if is_directory { sources(root, &path) } else { vec![path] }
    });
    found.collect()
}
