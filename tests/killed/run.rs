//! The release binary, killed and failed at each of its system calls in turn.
//!
//! `restage-killed` runs every operation under strace once to see which of its system calls have an
//! effect. Then, for each of them, on a fresh copy of the machine: the program is killed as it makes
//! the call; what must be so at any instant is so; what an ordinary start runs is run until it says that
//! nothing is left; the machine is compared, byte for byte, with one that nothing has interrupted; and
//! one more start makes no change at all. The same with the call failing, with EIO, and with ENOSPC
//! where it takes space: then the exit status is one that is documented, and the message says what could
//! not be done. It ends with 1 where something is not as it must be, and says how to see that
//! again.
//!
//! `kill -9` loses no cache: what the kernel has been given stays. So this says nothing about flushes and
//! their order, which is what the model is for (`restage-campaign`). It shows that the program itself, as
//! it is shipped, leaves nothing at any system call from which it cannot go on. Of the calls to the TPM
//! it is the connection before each command that is hit, and not what happens between a command and its
//! answer; of systemd-cryptenroll it is nothing, so the passphrases stay as they are here.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test: a panic is its verdict"
)]

mod flat;
mod lab;
mod loops;
mod machine;
mod snapshot;
mod strace;
#[path = "../support/mod.rs"]
mod support;
mod sweep;
mod tree;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use lab::{Lab, Work};
use machine::Kind;
use restage_campaign::figures::{Least, Tried};
use sweep::Sweep;

/// Kills the release binary, and lets it fail, at each of its system calls in turn.
#[derive(Parser)]
struct Arguments {
    /// Only these sweeps.
    sweeps: Vec<String>,
    /// Where the machines are made; on a tmpfs a sync costs nothing, and nothing here rests on one.
    #[arg(long, default_value = "/dev/shm")]
    place: PathBuf,
    /// Kill it after each call as well, and let every call fail, on loop devices too.
    #[arg(long)]
    long: bool,
    /// Work with so many threads; as many as there are processors unless told otherwise.
    #[arg(long)]
    threads: Option<usize>,
    /// Leave the figures in this file, for `restage-figures`.
    #[arg(long)]
    figures: Option<PathBuf>,
    #[command(flatten)]
    least: Least,
    /// Stop after so many violations.
    #[arg(long, default_value_t = 10)]
    violations: usize,
    /// Go one way again: SWEEP/HIT/CALL.NUMBER, as a violation names it.
    #[arg(long)]
    replay: Option<String>,
    /// Only tell the name of this TPM's owner hierarchy.
    #[arg(long, hide = true)]
    owner_name: Option<String>,
}

/// All sweeps: what is done, and to which machine.
const SWEEPS: [(&str, Kind, Work); 14] = [
    ("reset-stage", Kind::Image, Work::Stage),
    ("reset-cancel", Kind::Image, Work::Cancel),
    ("reset", Kind::Image, Work::Apply),
    ("reset-loop-512", Kind::Loop(512), Work::Apply),
    ("reset-loop-4096", Kind::Loop(4096), Work::Apply),
    ("restore-stage", Kind::Flat, Work::Stage),
    ("restore-cancel", Kind::Flat, Work::Cancel),
    ("restore", Kind::Flat, Work::Apply),
    ("confirm", Kind::Flat, Work::Confirm),
    ("roll-back", Kind::Flat, Work::RollBack),
    ("tree-stage", Kind::Tree, Work::Stage),
    ("tree-restore", Kind::Tree, Work::Apply),
    ("tree-confirm", Kind::Tree, Work::Confirm),
    ("tree-roll-back", Kind::Tree, Work::RollBack),
];

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(tcti) = &arguments.owner_name {
        machine::tell_owner_name(tcti);
        return ExitCode::SUCCESS;
    }
    let place = tempfile::tempdir_in(&arguments.place)
        .unwrap_or_else(|e| panic!("{}: {e} (see --place)", arguments.place.display()));
    strace::check(place.path());
    let wanted = |name: &str| match &arguments.replay {
        Some(path) => path.split('/').next() == Some(name),
        None => arguments.sweeps.is_empty() || arguments.sweeps.iter().any(|one| one == name),
    };
    let all = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = arguments.threads.unwrap_or(all);
    let (mut total, mut failed, mut lab) = (0, false, None::<Lab>);
    let (mut seen, mut operations) = (false, Vec::new());
    for (name, kind, work) in SWEEPS.into_iter().filter(|(name, _, _)| wanted(name)) {
        seen = true;
        let begin = Instant::now();
        if lab.as_ref().is_none_or(|lab| lab.kind != kind) {
            lab = Some(Lab::new(kind, place.path()));
        }
        let sweep = Sweep::new(name, lab.as_ref().unwrap(), work, place.path());
        if let Some(path) = &arguments.replay {
            let Some(trial) = sweep.find(path) else { break };
            return match sweep.go(&trial) {
                Ok(()) => {
                    println!("everything is as it must be");
                    ExitCode::SUCCESS
                }
                Err(what) => {
                    println!("VIOLATION {path}: {what}");
                    ExitCode::FAILURE
                }
            };
        }
        let trials = sweep.trials(arguments.long);
        let violations = sweep.run(&trials, threads, arguments.violations);
        total += trials.len();
        operations.push(sweep.operation(&trials));
        println!("{}; {} s", sweep.figures(&trials), begin.elapsed().as_secs());
        for (path, what) in &violations {
            failed = true;
            println!("VIOLATION {path}: {what}");
        }
        if let Some((path, _)) = violations.first() {
            println!("see it again: cargo run -p restage-killed -- --replay {path}");
        }
    }
    if !seen || arguments.replay.is_some() {
        println!("there is no such thing; the sweeps are {:?}", SWEEPS.map(|(name, _, _)| name));
        return ExitCode::FAILURE;
    }
    let unit = "interrupted runs of the release binary".to_owned();
    let tried = Tried { layer: "At each system call".to_owned(), unit, operations };
    println!("{total} {}", tried.unit);
    failed |= tried.falls_short(total, arguments.least);
    // What has failed is no figure.
    if let Some(path) = arguments.figures.as_ref().filter(|_| !failed) {
        tried.store(path);
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
