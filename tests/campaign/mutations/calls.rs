//! Each call that makes something durable, or that reads what has to be read first, missing.

use std::collections::BTreeMap;

use crate::mutation::{DIRECTORY, DISK, EFFECTS, ESP, KERNEL, Kind, Mutation, ROOM, STATE_FS};

/// Files with such calls.
const SYNCING: [&str; 10] = [
    ESP,
    "src/apply/reset.rs",
    DIRECTORY,
    ROOM,
    "src/platform/directory/named.rs",
    "src/platform/named_disk.rs",
    STATE_FS,
    EFFECTS,
    "src/apply/table.rs",
    "src/apply/restore/extract.rs",
];

/// Files with such calls that are not taken out here: the system's own, which [`crate::orders`] breaks; and
/// what a backup and an archive's writer do, which no operation rests on.
const ELSEWHERE: [&str; 5] = [
    KERNEL,
    DISK,
    "src/platform/new_file.rs",
    "src/command/backup.rs",
    "src/format/archive/frames.rs",
];
const OF_THE_SYSTEM: [&str; 4] = ["sync_all", "sync_data", "fsync", "syncfs"];

/// That no file with such a call is forgotten.
pub fn assert_known(sources: &[String], read: &dyn Fn(&str) -> String) {
    let has_one = |text: &str| {
        let code = text.lines().map(str::trim).filter(|line| !line.starts_with("//"));
        let calls = || CALLS.iter().chain(&OF_THE_SYSTEM);
        code.into_iter().any(|line| calls().any(|call| line.contains(call)))
    };
    for file in sources {
        let is_known = SYNCING.iter().chain(&ELSEWHERE).any(|known| known == file);
        assert!(is_known || !has_one(&read(file)), "{file} has calls that make durable");
    }
}

/// All of them.
pub fn all(read: &dyn Fn(&str) -> String) -> Vec<Mutation> {
    SYNCING.into_iter().flat_map(|file| in_file(file, &read(file))).collect()
}

fn in_file(file: &'static str, text: &str) -> Vec<Mutation> {
    let mut places = BTreeMap::<&str, usize>::new();
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let code = line.trim();
        if code.starts_with("//") || code.starts_with("fn ") {
            continue;
        }
        let Some(without) = without_call(line) else { continue };
        let place = places.entry(line).or_default();
        found.push(Mutation {
            name: format!("{file}:{}: no more `{code}`", number + 1),
            kind: Kind::Calls,
            file,
            // Whole: it may be a part of others.
            from: format!("\n{line}\n"),
            to: format!("\n{without}\n"),
            place: *place,
        });
        *place += 1;
    }
    found
}

/// The calls; each has a result without a value.
const CALLS: [&str; 4] = [".read_ahead(", ".sync_file_system()", ".sync()", ".flush()"];
const NOTHING: &str = "std::io::Result::<()>::Ok(())";

/// The line, and in the place of such a call nothing that does anything.
fn without_call(line: &str) -> Option<String> {
    let (at, call) = CALLS.iter().find_map(|call| Some((line.find(call)?, *call)))?;
    let (before, rest) = (&line[..at], &line[at + call.len()..]);
    let after = if call.ends_with('(') { rest.split_once(')')?.1 } else { rest };
    let is_part = |letter: char| letter.is_alphanumeric() || "_.".contains(letter);
    let kept = before.trim_end_matches(is_part);
    // Of files that are written there is a flush as well.
    let is_meant = call != ".flush()" || ["disk", "self.0"].iter().any(|on| before.ends_with(on));
    is_meant.then(|| match (kept == before, before.contains("any_file(")) {
        (false, _) => format!("{kept}{NOTHING}{after}"),
        // What it is called on is more than a name.
        (true, true) => format!("{before}.length().map(drop){after}"),
        (true, false) => format!("{before}.node().map(drop){after}"),
    })
}
