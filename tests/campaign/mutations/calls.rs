//! Each call that makes something durable, or that reads what has to be read first, missing.

use std::collections::BTreeMap;

use crate::mutation::{DIRECTORY, EFFECTS, ESP, Kind, Mutation, ROOM, STATE_FS};

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

/// The line with a call of the same type in its place that does nothing.
fn without_call(line: &str) -> Option<String> {
    if let Some((before, call)) = line.split_once(".read_ahead(") {
        let (_, after) = call.split_once(')')?;
        return Some(format!("{before}.node().map(drop){after}"));
    }
    let (call, nothing) = call_in(line)?;
    Some(line.replacen(call, nothing, 1))
}

/// A call that makes durable, and one of the same type that does nothing.
fn call_in(line: &str) -> Option<(&'static str, &'static str)> {
    let of_files = ["file.sync()", "any_file(", "self.cannot(\"sync\")"];
    let is_file = line.contains(".sync()") && of_files.iter().any(|text| line.contains(text));
    Some(if ["disk.flush()", "self.0.flush()"].iter().any(|call| line.contains(call)) {
        (".flush()", ".partition_in_use(1).map(drop)")
    } else if line.contains(".sync_file_system()") {
        (".sync_file_system()", ".node().map(drop)")
    } else if line.contains("state.sync()") {
        (".sync()", ".free_bytes().map(drop)")
    } else if is_file {
        (".sync()", ".length().map(drop)")
    } else if line.contains(".sync()") {
        (".sync()", ".node().map(drop)")
    } else {
        return None;
    })
}
