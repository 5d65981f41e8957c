//! Looks at a failure again, and runs libFuzzer on the targets for long.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test: a panic is its verdict"
)]

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::time::Instant;

use clap::{Parser, Subcommand};
use restage_fuzz::{TARGETS, Target, kept};

/// Any bytes to each parser of restage, and to staging and applying as a whole.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    work: Work,
}

#[derive(Subcommand)]
enum Work {
    /// The targets.
    List,
    /// Runs a target on the files.
    Replay { target: String, files: Vec<PathBuf> },
    /// Leaves the seeds of a target in a directory.
    Seeds { target: String, directory: PathBuf },
    /// Runs libFuzzer on each target, as many at once as there are processors.
    Long {
        /// Where the programs are that were built with `--features libfuzzer`.
        #[arg(long)]
        programs: PathBuf,
        /// So many executions of each, instead of what each has to have.
        #[arg(long)]
        executions: Option<u64>,
        /// Where libFuzzer's dice begin. Always the same ones unless told otherwise: what fails is a
        /// change, and who wants to find more gives others.
        #[arg(long, default_value_t = 1)]
        dice: u32,
        /// Seconds that an execution may take.
        #[arg(long, default_value_t = 20)]
        seconds: u32,
        /// So many at once; as many as there are processors unless told otherwise.
        #[arg(long)]
        threads: Option<usize>,
        /// All, unless some are named.
        targets: Vec<String>,
    },
}

fn main() -> ExitCode {
    match Arguments::parse().work {
        Work::List => TARGETS.iter().for_each(|target| println!("{}", target.name)),
        Work::Replay { target, files } => {
            for file in files {
                named(&target).check(&fs::read(&file).unwrap());
                println!("{}: everything is as it must be", file.display());
            }
        }
        Work::Seeds { target, directory } => leave_seeds(named(&target), &directory),
        Work::Long { programs, executions, dice, seconds, threads, targets } => {
            let all = TARGETS
                .iter()
                .filter(|t| targets.is_empty() || targets.iter().any(|n| n == t.name));
            let long = Long { programs, executions, dice, seconds, threads };
            return long.run(all.collect());
        }
    }
    ExitCode::SUCCESS
}

fn named(name: &str) -> &'static Target {
    Target::named(name).unwrap_or_else(|| panic!("there is no target `{name}`"))
}

fn leave_seeds(target: &Target, directory: &Path) {
    fs::create_dir_all(directory).unwrap();
    for seed in kept::all(target) {
        let name = &restage::format::sha256_hex(&seed)[..16];
        fs::write(directory.join(name), seed).unwrap();
    }
}

struct Long {
    programs: PathBuf,
    executions: Option<u64>,
    dice: u32,
    seconds: u32,
    threads: Option<usize>,
}

impl Long {
    fn run(&self, targets: VecDeque<&'static Target>) -> ExitCode {
        let all = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = self.threads.unwrap_or(all);
        let (waiting, failed) = (Mutex::new(targets), Mutex::new(false));
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    loop {
                        let next = waiting.lock().unwrap().pop_front();
                        let Some(target) = next else { return };
                        if !self.one(target) {
                            *failed.lock().unwrap() = true;
                        }
                    }
                });
            }
        });
        if failed.into_inner().unwrap() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }

    /// One target, to its end or its first failure; whether it has had all its executions.
    fn one(&self, target: &Target) -> bool {
        let wanted = self.executions.unwrap_or(target.pace.long());
        let place = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/fuzz");
        let corpus = place.join("corpus").join(target.name);
        leave_seeds(target, &corpus);
        let place = place.canonicalize().unwrap();
        let words = place.join(format!("{}.dict", target.name));
        // An empty one is an error to it.
        fs::write(&words, format!("{}\"\\x00\"\n", dictionary(target))).unwrap();
        let log = place.join(format!("{}.log", target.name));
        let begin = Instant::now();
        let status = Command::new(self.programs.join(target.name))
            .arg(format!("-runs={wanted}"))
            .arg(format!("-seed={}", self.dice))
            .arg(format!("-dict={}", words.display()))
            .arg(format!("-artifact_prefix={}/{}-", place.display(), target.name))
            .arg(format!("-timeout={}", self.seconds))
            .args(["-max_len=6000", "-print_final_stats=1", "-use_value_profile=0"])
            .arg(&corpus)
            .stderr(File::create(&log).unwrap())
            .status()
            .unwrap_or_else(|error| panic!("{}: {error}", target.name));
        let told = String::from_utf8_lossy(&fs::read(&log).unwrap()).into_owned();
        let done =
            told.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
        let done: u64 = done.and_then(|number| number.trim().parse().ok()).unwrap_or(0);
        let seconds = begin.elapsed().as_secs().max(1);
        println!(
            "{:16} {done:9} executions in {seconds:5} s, {:7} a second",
            target.name,
            done / seconds
        );
        if status.success() && done >= wanted {
            return true;
        }
        let artifact = told.lines().find_map(|line| line.split_once("Test unit written to "));
        println!("{} has failed ({status}): {}", target.name, log.display());
        if let Some((_, path)) = artifact {
            println!(
                "see it again: cargo run --package restage-fuzz -- replay {} {path}",
                target.name
            );
        }
        false
    }
}

/// The words of a target as libFuzzer reads them.
fn dictionary(target: &Target) -> String {
    target.words.iter().fold(String::new(), |mut text, word| {
        let word = word.bytes().fold(String::new(), |mut word, byte| {
            let _ = write!(word, "\\x{byte:02x}");
            word
        });
        let _ = writeln!(text, "\"{word}\"");
        text
    })
}
