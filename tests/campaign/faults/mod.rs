//! Faults that are not power cuts: for each, what boot does next, and an error with a name of its own.

mod again;
mod every;
mod lasting;
mod names;
mod rows;
mod table;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use crate::cases;
use crate::explore::Case;

/// What one part has seen.
#[derive(Default)]
pub struct Seen {
    /// Faults that were met.
    pub met: usize,
    /// What is not as it must be: the row, and why.
    pub violations: Vec<(String, String)>,
}

impl Seen {
    fn note(&mut self, row: &str, verdict: Result<(), String>) {
        self.met += 1;
        if let Err(why) = verdict {
            self.violations.push((row.to_owned(), why));
        }
    }
}

/// Which rows are wanted.
#[derive(Clone, Copy)]
pub struct Wanted<'a>(Option<&'a str>);

impl Wanted<'_> {
    /// Whether this one is.
    pub fn has(self, row: &str) -> bool {
        self.0.is_none_or(|only| row.contains(only))
    }

    /// Whether only some are: then more is told.
    pub fn is_narrow(self) -> bool {
        self.0.is_some()
    }
}

/// Works on each of the cases that have one of these names, or on all, as many at once as there are
/// processors. What was seen is in their order.
fn each_case(names: Option<&[&str]>, work: impl Fn(&dyn Case, &mut Seen) + Sync) -> Seen {
    let is_wanted = |name: &str| names.is_none_or(|names| names.contains(&name));
    let cases: Vec<_> = cases::all().into_iter().filter(|case| is_wanted(case.name())).collect();
    let (next, all) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(case) = cases.get(number) else { return };
                    let mut seen = Seen::default();
                    work(case.as_ref(), &mut seen);
                    all.lock().unwrap().insert(number, seen);
                }
            });
        }
    });
    let mut seen = Seen::default();
    for one in all.into_inner().unwrap().into_values() {
        seen.met += one.met;
        seen.violations.extend(one.violations);
    }
    seen
}

type Part = fn(Wanted<'_>) -> Seen;

/// Runs all rows, or those that contain `only` in their name; no other part after so many violations.
pub fn run(only: Option<&str>, violations: usize) -> ExitCode {
    let mut failed = 0;
    let wanted = Wanted(only);
    let parts: [(&str, Part); 4] = [
        ("rows of the table", rows::run),
        ("calls", every::run),
        ("lasting", lasting::run),
        ("started again", again::run),
    ];
    let mut met = 0;
    for (name, part) in parts {
        let begin = Instant::now();
        let seen = part(wanted);
        println!("{name:18} {:6} faults met; {:3} s", seen.met, begin.elapsed().as_secs());
        for (row, why) in &seen.violations {
            println!("VIOLATION {row}: {why}");
        }
        if let Some((row, _)) = seen.violations.first() {
            println!("see it again: restage-campaign --faults-only --row '{row}'");
        }
        failed += seen.violations.len();
        met += seen.met;
        if failed >= violations {
            return ExitCode::FAILURE;
        }
    }
    if met == 0 {
        println!("there is no such row");
        return ExitCode::FAILURE;
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
