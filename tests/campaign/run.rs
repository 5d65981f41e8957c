//! Power cuts and faults in a model of the machine, as many as there are.
//!
//! `restage-campaign` interrupts every operation at every change and at every call, follows each
//! interruption to its end, and interrupts the resume as well. It ends with 1 where something is not as
//! it must be, and says how to see that again.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::expect_used,
    reason = "a test: a panic is its verdict"
)]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use restage_campaign::explore::{self, Case, Figures, Reach};
use restage_campaign::figures::{Least, Operation, Tried};
use restage_campaign::{cases, controls, faults, model, steps};

/// Interrupts every operation of restage in a model of the machine.
#[derive(Parser)]
struct Arguments {
    /// Only these cases.
    cases: Vec<String>,
    /// One in so many interruptions is interrupted again in its resume.
    #[arg(long, default_value_t = 1)]
    second: u64,
    /// One in so many of those once more.
    #[arg(long, default_value_t = 30)]
    third: u64,
    /// One in so many calls of a resume meets each fault.
    #[arg(long, default_value_t = 30)]
    faults: u64,
    /// So many random subsets of unflushed sectors at each change. A replay needs the same number.
    #[arg(long, default_value_t = 8)]
    scatter: u64,
    #[command(flatten)]
    least: Least,
    /// After so many violations end the case, and begin no other one; with `--faults-only`, no other part.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
    violations: u64,
    /// Work with so many threads; as many as there are processors unless told otherwise.
    #[arg(long)]
    threads: Option<usize>,
    /// Leave the figures in this file, for `restage-figures`.
    #[arg(long)]
    figures: Option<PathBuf>,
    /// Work with known mistakes, and look whether each is seen.
    #[arg(long)]
    controls: bool,
    /// Meet faults that are no power cuts, and look what boot does next and what is said.
    #[arg(long)]
    faults_only: bool,
    /// With it: only the rows whose name contains this, as a violation names one.
    #[arg(long)]
    row: Option<String>,
    /// Go one way again: CASE:c12.3/c4.0, as a violation names it.
    #[arg(long)]
    replay: Option<String>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    steps::listen();
    model::set_scatter(arguments.scatter);
    let cases = cases::all();
    if let Some(path) = &arguments.replay {
        return match replay(&cases, path) {
            Ok(outcome) => {
                println!("{outcome}: everything is as it must be");
                ExitCode::SUCCESS
            }
            Err(what) => {
                println!("VIOLATION {path}: {what}");
                ExitCode::FAILURE
            }
        };
    }
    let most = usize::try_from(arguments.violations).unwrap();
    let reach = |violations| Reach {
        second: arguments.second,
        third: arguments.third,
        faults: arguments.faults,
        violations,
    };
    let all = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = arguments.threads.unwrap_or(all);
    if arguments.faults_only {
        return faults::run(arguments.row.as_deref(), most);
    }
    if arguments.controls {
        return controls::run(threads);
    }
    let (mut operations, mut failed, mut violations) = (Vec::new(), false, 0);
    for case in cases {
        if violations >= most {
            break;
        }
        if !arguments.cases.is_empty() && !arguments.cases.iter().any(|name| name == case.name()) {
            continue;
        }
        let begin = Instant::now();
        let figures = explore::explore(case.as_ref(), reach(most - violations), threads);
        tell(case.name(), &figures, begin);
        if let Some(first) = figures.violations.first() {
            let (scatter, path) = (arguments.scatter, &first.path);
            println!("see it again: restage-campaign --scatter {scatter} --replay {path}");
        }
        violations += figures.violations.len();
        failed |= violations > 0;
        operations.push(operation(case.name(), &figures));
    }
    let unit = "distinct interrupted runs".to_owned();
    let layer = Tried { layer: "In a model of the machine".to_owned(), unit, operations };
    println!("{} {}", layer.total(), layer.unit);
    failed |= violations < most && layer.falls_short(layer.total(), arguments.least);
    // What has failed is no figure.
    if let Some(path) = arguments.figures.as_ref().filter(|_| !failed) {
        layer.store(path);
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn tell(name: &str, figures: &Figures, begin: Instant) {
    println!(
        "{name:17} {:7} interrupted runs, {:6} with a fault, {:6} twice, {:6} three times; {:3} s",
        figures.runs(),
        figures.faults,
        figures.at_depth(2),
        figures.at_depth(3),
        begin.elapsed().as_secs()
    );
    let list = |counts: BTreeMap<String, usize>| {
        let counts = counts.iter().map(|(name, count)| format!("{name}: {count}"));
        counts.collect::<Vec<_>>().join(", ")
    };
    let operation = operation(name, figures);
    println!("    by step: {}", list(operation.steps));
    println!("    they ended: {}", list(operation.outcomes));
    for violation in &figures.violations {
        println!("VIOLATION {}: {}", violation.path, violation.what);
    }
}

fn operation(name: &str, figures: &Figures) -> Operation {
    let steps = figures.steps().map(|(step, runs)| (steps::name(step), runs)).collect();
    let outcomes = figures.outcomes.iter().map(|(word, runs)| ((*word).to_owned(), *runs));
    Operation { name: name.to_owned(), steps, outcomes: outcomes.collect() }
}

fn replay(cases: &[Box<dyn Case>], path: &str) -> Result<&'static str, String> {
    let name = path.split(':').next().unwrap_or_default();
    let case = cases.iter().find(|case| case.name() == name);
    let case = case.ok_or_else(|| format!("there is no case `{name}`"))?;
    explore::replay(case.as_ref(), path, true)
}
