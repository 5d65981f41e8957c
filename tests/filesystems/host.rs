//! Outside: starts the kernels, waits for what they say, and believes only a whole verdict.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use restage_campaign::figures::{Operation, Tried};
use rustix::process::{Pid, Signal, kill_process_group};
use rustix::thread::{CpuSet, sched_getaffinity};

use crate::Arguments;
use crate::explore::{Figures, Verdict, Violation};
use crate::inside::Task;

/// A kernel that says nothing for so long hangs.
const SILENCE: Duration = Duration::from_secs(120);
/// Memory of each kernel.
const MEMORY: &str = "mem=1024M";

/// Everything, and whether it is as it must be.
pub fn run(arguments: &Arguments) -> Result<bool, String> {
    let arguments = absolute(arguments)?;
    let begin = Instant::now();
    if arguments.replay.is_some() {
        let verdict = start(&Task::Replay, &arguments)?.wait(true)?;
        for violation in &verdict.violations {
            println!("VIOLATION {}: {}", violation.path, violation.what);
        }
        if verdict.violations.is_empty() {
            println!("everything is as it must be");
        }
        return Ok(verdict.violations.is_empty());
    }
    // A worker would take an old one for its own. The states that a violation has left stay.
    for entry in fs::read_dir(&arguments.directory).map_err(|error| error.to_string())? {
        let path = entry.map_err(|error| error.to_string())?.path();
        let is_state = path.extension().is_some_and(|extension| extension == "state");
        if path.is_file() && !is_state {
            fs::remove_file(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        }
    }
    start(&Task::Record, &arguments)?.wait(true)?;
    let all = std::thread::available_parallelism().map_or(1, |count| count.get() as u64);
    let of = arguments.kernels.unwrap_or(all);
    let kernels = (0..of).map(|worker| start(&Task::Explore { worker, of }, &arguments));
    let kernels: Vec<Kernel> = kernels.collect::<Result<_, _>>()?;
    let mut verdicts = Vec::new();
    for kernel in kernels {
        verdicts.push(kernel.wait(true)?);
    }
    let mut distinct = HashSet::new();
    for worker in 0..of {
        let path = arguments.directory.join(format!("{}.followed", Task::Explore { worker, of }));
        let bytes = fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        distinct.extend(bytes.chunks(8).map(<[u8]>::to_vec));
    }
    Ok(report(&arguments, &verdicts, distinct.len(), begin.elapsed()))
}

fn absolute(arguments: &Arguments) -> Result<Arguments, String> {
    let whole = |path: &Path| {
        fs::canonicalize(path).map_err(|error| format!("{}: {error}", path.display()))
    };
    fs::create_dir_all(&arguments.directory).map_err(|error| error.to_string())?;
    let linux = whole(&arguments.linux)
        .map_err(|error| format!("{error}: scripts/setup unpacks User-Mode Linux there"))?;
    let modules = linux.join("usr/lib/uml/modules");
    let mut versions = fs::read_dir(&modules).map_err(|e| format!("{}: {e}", modules.display()))?;
    let version = versions.next().ok_or("User-Mode Linux has no modules")?;
    Ok(Arguments {
        directory: whole(&arguments.directory)?,
        replay: arguments.replay.as_deref().map(whole).transpose()?,
        modules: version.map_err(|error| error.to_string())?.path(),
        linux,
        ..arguments.clone()
    })
}

struct Kernel {
    child: Child,
    task: Task,
    verdict: PathBuf,
    nonce: String,
}

/// `CAP_SETPCAP`, which who has no others has not either.
fn may_drop_capabilities() -> bool {
    const SETPCAP: u32 = 8;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    effective.is_some_and(|bits| bits & (1 << SETPCAP) != 0)
}

/// Which of our processors is this kernel's.
fn processor(task: &Task) -> Result<usize, String> {
    let ours = sched_getaffinity(None).map_err(|error| error.to_string())?;
    let ours: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|cpu| ours.is_set(*cpu)).collect();
    let number = match task {
        Task::Explore { worker, .. } => usize::try_from(*worker).map_err(|e| e.to_string())?,
        Task::Record | Task::Replay => 0,
    };
    ours.get(number % ours.len().max(1)).copied().ok_or_else(|| "no processor".to_owned())
}

/// Starts a kernel, and in it this program.
fn start(task: &Task, arguments: &Arguments) -> Result<Kernel, String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let nonce = format!("{}-{task}", std::process::id());
    let verdict = arguments.directory.join(format!("{task}.verdict"));
    let directory = arguments.directory.display();
    // A kernel is processes that take turns: on different processors each turn is an interrupt. And it
    // ends with us, however we end.
    let mut command = Command::new("taskset");
    command.arg("--cpu-list").arg(processor(task)?.to_string());
    command.args(["setpriv", "--pdeathsig", "KILL"]);
    // Killed in the midst of a call of its programs, that call is the host's: it must not set its clock.
    if may_drop_capabilities() {
        command.args(["--bounding-set=-all", "--inh-caps=-all"]);
    }
    command.args(["--no-new-privs", "--"]);
    command.arg(arguments.linux.join("usr/bin/linux.uml"));
    // For processors with more vector registers than this kernel knows of.
    command.env("LD_PRELOAD", arguments.linux.join("xstate.so"));
    // Newer ones wait for their programs with futexes, where that is possible; others do not know it.
    command.arg("seccomp=auto");
    command.args([MEMORY, "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "rw", "gpt"]);
    command.args(["con=null", "con0=null,fd:1", "quiet", "panic=-1", "dirty_ratio=60"]);
    // For the program: a page that it gives back costs a fault when it comes again.
    command.args(["MALLOC_TRIM_THRESHOLD_=2000000000", "MALLOC_TOP_PAD_=67108864"]);
    command.arg("MALLOC_MMAP_THRESHOLD_=30000000");
    command.arg(format!("uml_dir={directory}/"));
    command.arg(format!("umid={task}"));
    command.arg(format!("init={}", program.display()));
    command.arg("--");
    command.arg(format!("--inside={task}"));
    command.arg(format!("--nonce={nonce}"));
    command.arg(format!("--directory={directory}"));
    command.arg(format!("--modules={}", arguments.modules.display()));
    for (name, value) in [
        ("first", arguments.first),
        ("second", arguments.second),
        ("one-in", arguments.one_in),
        ("fsck", arguments.fsck),
        ("errors", arguments.errors as u64),
        ("violations", arguments.violations as u64),
    ] {
        command.arg(format!("--{name}={value}"));
    }
    command.args(arguments.say.then_some("--say"));
    command.args(arguments.controls.then_some("--controls"));
    if let Some(path) = &arguments.replay {
        let replay_as =
            arguments.replay_as.to_possible_value().map(|value| value.get_name().to_owned());
        command.arg(format!("--replay={}", path.display()));
        command.args(replay_as.map(|value| format!("--replay-as={value}")));
    }
    command.args(&arguments.cases);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    // Its helpers end with it.
    command.process_group(0);
    let child = command.spawn();
    let child = child.map_err(|e| format!("{}: {e}", arguments.linux.display()))?;
    Ok(Kernel { child, task: task.clone(), verdict, nonce })
}

impl Kernel {
    /// Waits for its end. Whatever is not a whole verdict of this very kernel is a failure.
    fn wait(mut self, is_shown: bool) -> Result<Verdict, String> {
        let (sender, lines) = channel();
        let output = self.child.stdout.take().ok_or("no console")?;
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let mut last = Vec::new();
        let why = loop {
            match lines.recv_timeout(SILENCE) {
                Ok(line) => {
                    if is_shown {
                        println!("{line}");
                    }
                    last.push(line);
                }
                Err(RecvTimeoutError::Disconnected) => break None,
                Err(RecvTimeoutError::Timeout) => break Some("it hangs"),
            }
        };
        if why.is_some() {
            self.end();
        }
        let status = self.child.wait().map_err(|error| error.to_string())?;
        let told = fs::read(&self.verdict).map_err(|error| error.to_string());
        let told = told.and_then(|text| {
            serde_json::from_slice::<Verdict>(&text).map_err(|error| error.to_string())
        });
        let failed = |what: String| {
            let said = last[last.len().saturating_sub(30)..].join("\n");
            Err(format!("{}: {what}; the last that it said:\n{said}", self.task))
        };
        match (why, told) {
            (Some(why), _) => failed(why.to_owned()),
            (None, _) if !status.success() => failed(format!("the kernel: {status}")),
            (None, Err(error)) => failed(format!("no verdict: {error}")),
            (None, Ok(verdict)) if verdict.nonce != self.nonce => failed("no verdict".to_owned()),
            (None, Ok(Verdict { failed: Some(what), .. })) => failed(what),
            (None, Ok(verdict)) => Ok(verdict),
        }
    }

    /// Ends it.
    fn end(&mut self) {
        // The kernel's own process may have left the group.
        let _ = self.child.kill();
        let group = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let Some(group) = group {
            // It may be gone already.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

fn report(arguments: &Arguments, verdicts: &[Verdict], distinct: usize, time: Duration) -> bool {
    let mut figures: BTreeMap<&str, Figures> = BTreeMap::new();
    for (name, part) in verdicts.iter().flat_map(|verdict| &verdict.figures) {
        let all = figures.entry(name).or_default();
        all.once += part.once;
        all.twice += part.twice;
        all.failed += part.failed;
        all.checked += part.checked;
        all.unreadable += part.unreadable;
        all.unusable += part.unusable;
    }
    for (name, all) in &figures {
        println!(
            "{name:17} {:6} states of an interruption, {:6} of a second one; {:4} requests failed; {:6} also after fsck; {:3} needed one, {} another directory",
            all.once, all.twice, all.failed, all.checked, all.unreadable, all.unusable
        );
    }
    if arguments.controls {
        return are_controlled(figures.keys(), verdicts);
    }
    let violations: Vec<&Violation> = verdicts.iter().flat_map(|v| &v.violations).collect();
    for violation in &violations {
        println!("VIOLATION {}: {}", violation.path, violation.what);
        println!("see it again: restage-filesystems --say --replay {}", violation.state.display());
    }
    println!("{distinct} distinct states in {} s", time.as_secs());
    let operations = figures.iter().map(|(name, all)| operation(name, all)).collect();
    let unit = format!("states of the disk, {distinct} of them distinct");
    let tried = Tried { layer: "On real file systems".to_owned(), unit, operations };
    let is_whole = !tried.falls_short(distinct, arguments.least) && violations.is_empty();
    // What has failed is no figure.
    if let Some(path) = arguments.figures.as_ref().filter(|_| is_whole) {
        tried.store(path);
    }
    is_whole
}

/// What was done, for the README.
fn operation(name: &str, all: &Figures) -> Operation {
    let steps = [
        ("the operation", all.once),
        ("its recovery", all.twice),
        ("a request of it that failed", all.failed),
    ];
    let outcomes = [
        ("also after a check of the file systems", all.checked),
        ("with another directory", all.unusable),
    ];
    let counts = |counts: &[(&str, usize)]| {
        let there = counts.iter().filter(|(_, count)| *count > 0);
        there.map(|(name, count)| ((*name).to_owned(), *count)).collect()
    };
    Operation { name: name.to_owned(), steps: counts(&steps), outcomes: counts(&outcomes) }
}

/// Whether what is wrong was seen to be wrong, and what is right was not.
fn are_controlled<'a>(names: impl Iterator<Item = &'a &'a str>, verdicts: &[Verdict]) -> bool {
    let (mut count, mut all) = (0, true);
    for name in names {
        let is_its = |v: &&Violation| v.path.split(':').next() == Some(*name);
        let found = verdicts.iter().flat_map(|v| &v.violations).filter(is_its).count();
        let is_as_it_must_be = (found == 0) == name.starts_with("right-");
        println!(
            "{name}: {found} violations, {}",
            if is_as_it_must_be { "as it must be" } else { "and that is WRONG" }
        );
        count += 1;
        all &= is_as_it_must_be;
    }
    count > 0 && all
}
