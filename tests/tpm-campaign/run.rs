//! A factory reset on a software TPM in every state, cut and disturbed at each of its commands.
//!
//! Between restage and swtpm stands a proxy that understands where a command begins and ends. A cut
//! kills restage and the TPM, as the power does; other faults change what restage hears. Each case is
//! followed to its end, and held against a rule that is written down apart from restage's own. It
//! ends with 1 where something is not as it must be, and says how to see that again.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test: a panic is its verdict"
)]

mod agent;
mod bench;
mod case;
mod chip;
mod disk;
mod expect;
mod fault;
mod follow;
mod layers;
mod proxy;
mod state;
mod swtpm;
mod wire;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bench::{Bench, Masters};
use case::Case;
use clap::{Parser, Subcommand};
use follow::{Told, follow};
use restage_campaign::figures::{Least, Operation, Tried};

/// Interrupts a factory reset at each command of a software TPM.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    inner: Option<Inner>,
    /// All combinations, and each command of each of them.
    #[arg(long)]
    long: bool,
    /// Only the layer of this name.
    #[arg(long)]
    layer: Option<String>,
    /// The shipped program, for all that is only cut.
    #[arg(long)]
    binary: Option<PathBuf>,
    /// Leave the figures in this file, for `restage-figures`.
    #[arg(long)]
    figures: Option<PathBuf>,
    #[command(flatten)]
    least: Least,
    /// Stop after so many violations.
    #[arg(long, default_value_t = 20)]
    violations: usize,
    /// So many machines at once; as many as there are processors unless told otherwise.
    #[arg(long)]
    threads: Option<usize>,
    /// One case again, as a violation names it.
    #[arg(long)]
    replay: Option<Case>,
}

#[derive(Subcommand)]
enum Inner {
    /// One boot: what this program starts itself, and kills.
    #[command(hide = true)]
    Boot(agent::Boot),
}

/// What a layer has shown.
#[derive(Default)]
struct Figures {
    cases: usize,
    boots: usize,
    cuts: usize,
    faults: usize,
    ends: BTreeMap<String, usize>,
    violations: Vec<(Case, String)>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(Inner::Boot(boot)) = &arguments.inner {
        agent::boot(boot);
        return ExitCode::SUCCESS;
    }
    let masters = Masters::new(arguments.binary.clone());
    if let Some(case) = &arguments.replay {
        return match follow(&Bench::new(&masters), case) {
            Ok(told) => {
                println!("everything is as it must be: {}", in_words(&told));
                ExitCode::SUCCESS
            }
            Err(what) => {
                println!("VIOLATION {case}: {what}");
                ExitCode::FAILURE
            }
        };
    }
    let all = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = arguments.threads.unwrap_or(all);
    let (mut total, mut failed, mut operations) = (0, false, Vec::new());
    println!("layer          cases  boots   cuts faults   time");
    let measured = match layers::measure(&Bench::new(&masters)) {
        Ok(measured) => measured,
        Err((case, what)) => {
            tell(&case, &what);
            return ExitCode::FAILURE;
        }
    };
    for (name, cases) in layers::all(&measured, arguments.long) {
        if arguments.layer.as_ref().is_some_and(|only| only != name) {
            continue;
        }
        let begin = Instant::now();
        let figures = run(&masters, &cases, threads, arguments.violations);
        total += figures.cases;
        println!(
            "{name:14} {:5} {:6} {:6} {:6} {:4} s",
            figures.cases,
            figures.boots,
            figures.cuts,
            figures.faults,
            begin.elapsed().as_secs()
        );
        for (case, what) in &figures.violations {
            failed = true;
            tell(case, what);
        }
        let steps = [("cases".to_owned(), figures.cases)].into();
        operations.push(Operation { name: name.to_owned(), steps, outcomes: figures.ends });
    }
    println!("{total} cases");
    let layer = "At each command of a software TPM".to_owned();
    let tried = Tried { layer, unit: "resets".to_owned(), operations };
    failed |= tried.falls_short(total, arguments.least);
    // What has failed is no figure.
    if let Some(path) = arguments.figures.as_ref().filter(|_| !failed) {
        tried.store(path);
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn tell(case: &Case, what: &str) {
    println!("VIOLATION {case}: {what}");
    println!("see it again: restage-tpm-campaign --replay '{case}'");
}

/// All cases of a layer, on so many machines at once.
fn run(masters: &Arc<Masters>, cases: &[Case], threads: usize, violations: usize) -> Figures {
    let next = AtomicUsize::new(0);
    let figures = Mutex::new(Figures::default());
    let lock = || figures.lock().unwrap_or_else(PoisonError::into_inner);
    std::thread::scope(|scope| {
        for _ in 0..threads.min(cases.len()) {
            scope.spawn(|| {
                let bench = Bench::new(masters);
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let followed = follow(&bench, case);
                    let mut figures = lock();
                    figures.cases += 1;
                    match followed {
                        Ok(told) => {
                            figures.boots += told.boots;
                            figures.cuts += told.cuts;
                            figures.faults += told.faults;
                            let end = told.end.map_or("nothing", |end| end.word());
                            *figures.ends.entry(end.to_owned()).or_default() += 1;
                        }
                        Err(what) => figures.violations.push((case.clone(), what)),
                    }
                    if figures.violations.len() >= violations {
                        return;
                    }
                }
            });
        }
    });
    figures.into_inner().unwrap_or_else(PoisonError::into_inner)
}

fn in_words(told: &Told) -> String {
    let boots = told.given.iter().map(|given| {
        let names: Vec<_> = given.iter().map(|code| wire::name(*code)).collect();
        format!("\n    the TPM is given {}: {}", names.len(), names.join(", "))
    });
    format!("{:?} after {} boots{}", told.end, told.boots, boots.collect::<String>())
}
