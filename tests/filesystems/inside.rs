//! What is done inside the kernel.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::str::FromStr;

use log::{LevelFilter, Log, Metadata, Record};

use crate::cases::{self, Case};
use crate::explore::{self, Explorer, Reach, Verdict};
use crate::layout::Layout;
use crate::medium::{DISK, Medium};
use crate::rig::Rig;
use crate::{Arguments, guest};

/// What a kernel is started for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    /// Every operation is run once, and recorded.
    Record,
    /// This part of the states is followed.
    Explore {
        /// Which part.
        worker: u64,
        /// Of how many.
        of: u64,
    },
    /// One state is followed again.
    Replay,
}

impl FromStr for Task {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split('.').collect::<Vec<_>>()[..] {
            ["record"] => Ok(Self::Record),
            ["replay"] => Ok(Self::Replay),
            ["explore", worker, of] => {
                let number = |text: &str| text.parse().map_err(|_| format!("`{text}`?"));
                Ok(Self::Explore { worker: number(worker)?, of: number(of)? })
            }
            _ => Err(format!("`{text}` is nothing to do")),
        }
    }
}

impl std::fmt::Display for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Record => f.write_str("record"),
            Self::Replay => f.write_str("replay"),
            Self::Explore { worker, of } => write!(f, "explore.{worker}.{of}"),
        }
    }
}

struct Aloud;

impl Log for Aloud {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &Record<'_>) {
        println!("    {}", record.args());
    }
    fn flush(&self) {}
}

/// Does it, tells the host, and ends the kernel.
pub fn run(task: &Task, arguments: &Arguments) -> ! {
    if arguments.say && log::set_logger(&Aloud).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
    let mut verdict = match work(task, arguments) {
        Ok(verdict) => verdict,
        Err(what) => {
            println!("FAILED: {what}");
            Verdict { failed: Some(what), ..Verdict::default() }
        }
    };
    verdict.nonce.clone_from(&arguments.nonce);
    tell(&verdict, &arguments.directory.join(format!("{task}.verdict"))).unwrap();
    guest::end()
}

fn tell(verdict: &Verdict, path: &Path) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(&serde_json::to_vec(verdict)?)?;
    file.sync_all()
}

fn work(task: &Task, arguments: &Arguments) -> Result<Verdict, String> {
    guest::begin(&arguments.modules)?;
    let layout = Layout::new();
    let medium = Medium::new(layout.image.clone());
    medium.attach().map_err(|error| format!("{DISK}: {error}"))?;
    guest::put("/sys/block/nbd0/queue/nomerges", "2")?;
    let mut rig = Rig::new(medium, layout.tables).map_err(|e| format!("{DISK}: {e}"))?;
    // The kernel appends words of its own.
    let wanted = arguments.cases.iter().filter(|name| !name.contains('='));
    let mut wanted: BTreeSet<&str> = wanted.map(String::as_str).collect();
    let is_all = wanted.is_empty();
    let mut verdict = Verdict::default();
    let mut followed = Vec::new();
    for make in if arguments.controls { cases::CONTROLS } else { cases::OPERATIONS } {
        let mut all = make(&mut rig)?;
        if let Some(state) = arguments.replay.as_deref() {
            if let Some(ended) = explore::replay(&all, &mut rig, state, arguments)? {
                let (path, state) = (state.display().to_string(), state.to_owned());
                let violation = |what| explore::Violation { path, what, state };
                verdict.violations.extend(ended.err().map(violation));
                return Ok(verdict);
            }
            continue;
        }
        all.retain(|case| wanted.remove(case.name()) || is_all);
        match task {
            Task::Record => record_all(&all, &mut rig, &arguments.directory)?,
            Task::Replay => return Err("no state is named".to_owned()),
            Task::Explore { worker, of } => {
                let reach = Reach {
                    worker: (*worker, *of),
                    first: arguments.first,
                    second: arguments.second,
                    one_in: arguments.one_in,
                    fsck: arguments.fsck,
                    errors: arguments.errors,
                    violations: arguments.violations,
                    keeps: !arguments.controls,
                };
                let mut explorer = Explorer::new(&mut rig, &arguments.directory, reach);
                for case in &all {
                    explorer.explore(case.as_ref())?;
                    explorer.fail(case.as_ref())?;
                }
                followed.append(&mut explorer.followed);
                verdict.figures.append(&mut explorer.verdict.figures);
                verdict.violations.append(&mut explorer.verdict.violations);
            }
        }
    }
    if let Some(name) = wanted.first() {
        return Err(format!("there is no case `{name}`"));
    }
    if arguments.replay.is_some() {
        return Err("the state is of none of the cases".to_owned());
    }
    let path = arguments.directory.join(format!("{task}.followed"));
    let saved = File::create(&path).map(BufWriter::new).and_then(|mut file| {
        followed.iter().try_for_each(|key: &u64| file.write_all(&key.to_le_bytes()))?;
        file.flush()
    });
    saved.map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(verdict)
}

fn record_all(all: &[Box<dyn Case>], rig: &mut Rig, directory: &Path) -> Result<(), String> {
    for case in all {
        let recording = explore::record(case.as_ref(), rig)
            .map_err(|error| format!("{}, uninterrupted: {error}", case.name()))?;
        let path = explore::recording(directory, case.name());
        let saved = File::create(&path).map(BufWriter::new).and_then(|mut file| {
            recording.save(&mut file)?;
            file.flush()
        });
        saved.map_err(|error| format!("{}: {error}", path.display()))?;
        println!("{}: {} writes and flushes", case.name(), recording.entries.len());
    }
    Ok(())
}
