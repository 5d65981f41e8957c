//! The negative controls: protocols that are known to be wrong, put behind the same traits, and the
//! same checks. Each has to be seen, or the campaign could not see such a mistake in restage either.

pub mod archive;
pub mod order;
pub mod store;
pub mod table;

use std::process::ExitCode;

use crate::cases;
use crate::explore::{self, Reach};

/// What is done wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// A file appears by the rename of a temporary one.
    Rename,
    /// Progress is one marker, and another one is renamed over it.
    RenameOver,
    /// The gpt crate writes the partition table.
    GptCrate,
    /// The directory is not synced after a marker was made in it.
    NoDirectorySync,
    /// A step is recorded, and then performed.
    RecordFirst,
    /// The directories of the ESP are not read before they are looked at.
    NotReadFirst,
}

/// Each mistake, the case in which it has to be seen, and what must be said of it.
const CONTROLS: [(Wrong, &str, &str); 7] = [
    (Wrong::Rename, "stage", "the outcome is Some(Refused)"),
    (Wrong::RenameOver, "reset", "cannot read"),
    (Wrong::GptCrate, "reset", "no valid partition table"),
    // It gives what stays other numbers, too.
    (Wrong::GptCrate, "reset", "the partition table is another one"),
    (Wrong::NoDirectorySync, "restore-stage", "no flag says so"),
    (Wrong::RecordFirst, "reset", "is recorded and not done"),
    (Wrong::NotReadFirst, "reset", "looked at that was not read first"),
];

/// Enough to see each of them.
const REACH: Reach = Reach { second: 4, third: 1000, faults: 1000, violations: 200 };
/// Most of what that one does is seen by its first mistake.
const ALL: Reach = Reach { violations: usize::MAX, ..REACH };

/// Runs all of them. A success is that each was seen.
pub fn run(threads: usize) -> ExitCode {
    let mut unseen = 0;
    for (wrong, name, said) in CONTROLS {
        let case = match name {
            "restore-stage" => cases::restore::staged_with(wrong),
            name => cases::reset::with(wrong, name),
        };
        let reach = if wrong == Wrong::GptCrate { ALL } else { REACH };
        let figures = explore::explore(case.as_ref(), reach, threads);
        let seen = figures.violations.iter().find(|violation| violation.what.contains(said));
        let again = seen.map(|violation| explore::replay(case.as_ref(), &violation.path, false));
        if let (Some(violation), Some(Err(what))) = (seen, &again)
            && *what == violation.what
        {
            println!(
                "seen: {wrong:?} in `{name}`: {} violations in {} interrupted runs, {}: {}",
                figures.violations.len(),
                figures.runs(),
                violation.path,
                violation.what
            );
        } else {
            unseen += 1;
            if let Some(again) = again {
                println!("the way that a violation names leads to {again:?}");
            }
            let first = figures.violations.first().map_or("nothing", |first| &first.what);
            let runs = figures.runs();
            println!(
                "NOT SEEN: {wrong:?} in `{name}`, in {runs} interrupted runs; it says {first}"
            );
        }
    }
    // The same checks, and nothing wrong: what they say above is said of the mistake.
    for name in ["stage", "reset", "restore-stage"] {
        let case = cases::all().into_iter().find(|case| case.name() == name).unwrap();
        let figures = explore::explore(case.as_ref(), REACH, threads);
        if let Some(violation) = figures.violations.first() {
            unseen += 1;
            println!("NOTHING IS WRONG in `{name}`, and it says {}", violation.what);
        }
    }
    match archive::compare() {
        Ok(said) => println!("seen: {said}"),
        Err(why) => {
            unseen += 1;
            println!("NOT SEEN: {why}");
        }
    }
    if unseen == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
