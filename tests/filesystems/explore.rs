//! From a recorded operation to all that a power cut may leave of it, each followed to its end; and to
//! what a cut may leave of that recovery.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{BufReader, BufWriter, Read, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use flate2::bufread::GzDecoder;
use serde::{Deserialize, Serialize};

use crate::cases::{Booted, Case, Ended};
use crate::image::Image;
use crate::medium::{Beside, Recording};
use crate::rig::{self, Rig};
use crate::states;
use crate::{Arguments, Replayed};

/// Boots until an operation must be over.
const MAX_BOOTS: usize = 8;
/// The host is told this often that this is alive.
const SAY_EVERY: Duration = Duration::from_secs(5);

/// How far to go, and which part of it.
#[derive(Clone, Copy, Debug)]
pub struct Reach {
    /// This worker, and how many there are.
    pub worker: (u64, u64),
    /// Of what an interruption of the operation leaves, one in so many is followed.
    pub first: u64,
    /// The recovery of one in so many states is interrupted again.
    pub second: u64,
    /// Of what such an interruption leaves, one in so many is followed.
    pub one_in: u64,
    /// One in so many states is followed with a check of the file systems before us as well.
    pub fsck: u64,
    /// One in so many requests of the operation fails; none when it is zero.
    pub errors: usize,
    /// Give up after so many violations.
    pub violations: usize,
    /// Keep the states that they are seen in.
    pub keeps: bool,
}

/// What was seen of one operation.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Figures {
    /// Distinct states that an interruption of the operation has left.
    pub once: usize,
    /// And one of its recovery.
    pub twice: usize,
    /// Requests of it that the disk has failed.
    pub failed: usize,
    /// Of these, also followed with a check of the file systems first.
    pub checked: usize,
    /// Of these, with nothing done and nothing lost, but unusable until there was such a check.
    pub unreadable: usize,
    /// Of those, with a directory that stays unusable: the OS has made another one.
    pub unusable: usize,
}

/// What is not as it must be.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Violation {
    /// The case, then the number of the state, then that of its recovery's.
    pub path: String,
    /// What is not as it must be.
    pub what: String,
    /// The state is kept here.
    pub state: PathBuf,
}

/// What a worker tells at its end.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Verdict {
    /// What the host has asked with, so that no older answer is taken for this one.
    pub nonce: String,
    /// By operation.
    pub figures: BTreeMap<String, Figures>,
    /// What is not as it must be.
    pub violations: Vec<Violation>,
    /// What stopped it.
    pub failed: Option<String>,
}

/// A worker.
pub struct Explorer<'a> {
    rig: &'a mut Rig,
    /// Where files for the host go.
    directory: PathBuf,
    reach: Reach,
    seen: HashSet<u64>,
    /// What this worker has followed.
    pub followed: Vec<u64>,
    /// What it has found.
    pub verdict: Verdict,
    said: Instant,
}

/// A state, away from its recording.
struct Kept {
    path: String,
    image: Image,
    beside: Beside,
    ended: Ended,
    key: u64,
}

/// Runs an operation once, and what it does is recorded.
pub fn record(case: &dyn Case, rig: &mut Rig) -> Result<Recording, String> {
    let (start, beside) = case.start();
    let start = start.clone();
    rig.load(&start, beside);
    rig.switch_on()?;
    rig.medium.record();
    case.run(rig)?;
    Ok(Recording { start, beside, entries: rig.medium.recorded() })
}

/// Where the recording of an operation lies.
pub fn recording(directory: &Path, case: &str) -> PathBuf {
    directory.join(format!("{case}.recording"))
}

impl<'a> Explorer<'a> {
    /// Nothing is followed yet.
    pub fn new(rig: &'a mut Rig, directory: &Path, reach: Reach) -> Self {
        Self {
            rig,
            directory: directory.to_owned(),
            reach,
            seen: HashSet::new(),
            followed: Vec::new(),
            verdict: Verdict::default(),
            said: Instant::now(),
        }
    }

    fn is_enough(&self, case: &dyn Case) -> bool {
        let is_its = |v: &&Violation| v.path.split(':').next() == Some(case.name());
        self.verdict.violations.iter().filter(is_its).count() >= self.reach.violations
    }

    /// Follows this worker's part of what an interruption of the operation leaves.
    pub fn explore(&mut self, case: &dyn Case) -> Result<(), String> {
        let path = recording(&self.directory, case.name());
        let file = File::open(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let recording = Recording::load(&mut BufReader::new(file));
        let recording = recording.map_err(|error| format!("{}: {error}", path.display()))?;
        self.verdict.figures.entry(case.name().to_owned()).or_default();
        let mut turn = 0;
        let _ = states::of(&recording, case.written_whole(), &mut |state| {
            let key = key(case, state.image, state.beside);
            if !key.is_multiple_of(self.reach.first) || !self.seen.insert(key) {
                return ControlFlow::Continue(());
            }
            turn += 1;
            if turn % self.reach.worker.1 != self.reach.worker.0 {
                return ControlFlow::Continue(());
            }
            let kept = Kept {
                path: format!("{}:{}", case.name(), state.number),
                image: state.image.clone(),
                beside: state.beside,
                ended: Ended { has_returned: state.beside.has_returned, has_failed: false },
                key,
            };
            let is_recorded = (turn / self.reach.worker.1 + 1).is_multiple_of(self.reach.second);
            self.figures(case).once += 1;
            if let Some(recovery) = self.follow(case, &kept, is_recorded) {
                self.explore_recovery(case, &kept, &recovery);
            }
            if self.is_enough(case) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        Ok(())
    }

    /// Has this worker's part of the disk's requests fail, one at a time: what is there after such a run is
    /// followed.
    pub fn fail(&mut self, case: &dyn Case) -> Result<(), String> {
        let (worker, of) = self.reach.worker;
        if self.reach.errors == 0 {
            return Ok(());
        }
        let (start, beside) = case.start();
        let start = start.clone();
        for turn in 0.. {
            let number = (turn * usize::try_from(of).unwrap() + usize::try_from(worker).unwrap())
                * self.reach.errors;
            self.rig.load(&start, beside);
            self.rig.switch_on()?;
            self.rig.medium.fail(number);
            let returned = case.run(self.rig);
            let medium = &self.rig.medium;
            let (failed, stray) = (medium.failed(), medium.stray());
            let (image, beside) = (medium.image(), medium.beside());
            Rig::forget_errors();
            let Some(failed) = failed else { return Ok(()) };
            let has_returned = returned.is_ok() && beside.has_returned;
            let ended = Ended { has_returned, has_failed: true };
            let path = format!("{}:e{number}", case.name());
            let key = key(case, &image, beside);
            let kept = Kept { path, image, beside, ended, key };
            self.figures(case).failed += 1;
            let violations = self.verdict.violations.len();
            match stray {
                Some(offset) => {
                    let what = format!("byte {offset} is outside of what may be written");
                    self.violation(&kept, false, what);
                }
                None => drop(self.follow(case, &kept, false)),
            }
            for violation in &mut self.verdict.violations[violations..] {
                violation.what = format!("{failed}, {returned:?}: {}", violation.what);
            }
            if self.is_enough(case) {
                return Ok(());
            }
        }
        Ok(())
    }

    fn explore_recovery(&mut self, case: &dyn Case, first: &Kept, recovery: &Recording) {
        let _ = states::of(recovery, case.written_whole(), &mut |state| {
            let key = key(case, state.image, state.beside);
            if !key.is_multiple_of(self.reach.one_in) || !self.seen.insert(key) {
                return ControlFlow::Continue(());
            }
            let kept = Kept {
                path: format!("{}/{}", first.path, state.number),
                image: state.image.clone(),
                beside: state.beside,
                // What the operation has promised, and not the boot.
                ended: first.ended,
                key,
            };
            self.figures(case).twice += 1;
            self.follow(case, &kept, false);
            if self.is_enough(case) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
    }

    fn figures(&mut self, case: &dyn Case) -> &mut Figures {
        self.verdict.figures.get_mut(case.name()).unwrap()
    }

    /// Follows a state to its end, with and without a check of the file systems. The first boot's
    /// recording, if that is wanted and all is well.
    fn follow(&mut self, case: &dyn Case, kept: &Kept, is_recorded: bool) -> Option<Recording> {
        self.followed.push(kept.key);
        if self.said.elapsed() >= SAY_EVERY {
            self.said = Instant::now();
            println!("{}: {} states", kept.path, self.followed.len());
        }
        let mut recovery = None;
        for is_checked in [true, false] {
            if is_checked {
                // Not with the digits that choose what is followed at all.
                if !(kept.key >> 32).is_multiple_of(self.reach.fsck) {
                    continue;
                }
                self.figures(case).checked += 1;
            }
            match recover(case, self.rig, kept, is_checked, is_recorded && !is_checked) {
                Ok(recovered) => {
                    self.figures(case).unreadable += usize::from(recovered.is_unreadable);
                    self.figures(case).unusable += usize::from(recovered.is_unusable);
                    recovery = recovered.recording;
                }
                Err(what) => self.violation(kept, is_checked, what),
            }
        }
        recovery
    }

    fn violation(&mut self, kept: &Kept, is_checked: bool, what: String) {
        let path = format!("{}{}", kept.path, if is_checked { ":fsck" } else { "" });
        let state = self.directory.join(format!("{}.state", path.replace(['/', ':'], "-")));
        if self.reach.keeps {
            let saved = File::create(&state).and_then(|file| save(kept, is_checked, file));
            saved.unwrap_or_else(|error| panic!("{}: {error}", state.display()));
        }
        println!("VIOLATION {path}: {what}");
        self.verdict.violations.push(Violation { path, what, state });
    }
}

fn key(case: &dyn Case, image: &Image, beside: Beside) -> u64 {
    let mut hasher = DefaultHasher::new();
    (case.name(), image.digest(), beside).hash(&mut hasher);
    hasher.finish()
}

struct Recovered {
    /// The first boot's, if that was wanted.
    recording: Option<Recording>,
    /// A check of the file systems was needed.
    is_unreadable: bool,
    /// And did not help.
    is_unusable: bool,
}

/// Boots until there is nothing to do, and checks.
fn recover(
    case: &dyn Case,
    rig: &mut Rig,
    kept: &Kept,
    is_checked: bool,
    is_recorded: bool,
) -> Result<Recovered, String> {
    let beside = Beside { has_returned: false, ..kept.beside };
    rig.load(&kept.image, beside);
    rig.switch_on()?;
    if is_checked {
        case.check_file_systems(rig)?;
    }
    let (mut recording, mut waits, mut ended) = (None, 0, kept.ended);
    for boot in 0..MAX_BOOTS {
        let is_recorded = is_recorded && boot == 0;
        if is_recorded {
            rig.medium.record();
        } else if boot > 0 {
            rig.switch_on()?;
        }
        let booted = case.boot(rig)?;
        if is_recorded {
            let (start, entries) = (kept.image.clone(), rig.medium.recorded());
            recording = Some(Recording { start, beside, entries });
        }
        if let Some(offset) = rig.medium.stray() {
            return Err(format!("byte {offset} is outside of what may be written"));
        }
        match booted {
            Booted::Again => {}
            Booted::Unreadable(what) => {
                if !case.may_wait_for_check(rig, ended) {
                    return Err(format!("it is not looked at: {what}"));
                }
                waits += 1;
                if is_checked || waits > 1 {
                    // A directory on FAT that was cut while it was made, and that fsck.fat leaves as it
                    // is: every boot goes on into the untouched system, and the OS makes another one.
                    case.stage_anew(rig)?;
                    ended.has_returned = true;
                } else {
                    case.check_file_systems(rig)?;
                }
            }
            Booted::Nothing { writes: 0 } => {
                case.check_end(rig, ended)?;
                let is_unusable = ended.has_returned && !kept.ended.has_returned;
                return Ok(Recovered { recording, is_unreadable: waits > 0, is_unusable });
            }
            Booted::Nothing { writes } => {
                return Err(format!("a second run makes {writes} writes"));
            }
        }
    }
    Err(format!("not over after {MAX_BOOTS} boots"))
}

fn save(kept: &Kept, is_checked: bool, file: File) -> std::io::Result<()> {
    let mut file = BufWriter::new(file);
    writeln!(file, "{}", kept.path)?;
    let ended = u8::from(kept.ended.has_returned) | u8::from(kept.ended.has_failed) << 1;
    file.write_all(&[u8::from(is_checked), ended])?;
    crate::medium::save_beside(kept.beside, &mut file)?;
    kept.image.save(&mut file)?;
    file.flush()
}

/// Follows a kept state again, and says how it ended; nothing when it is of none of these cases.
pub fn replay(
    cases: &[Box<dyn Case>],
    rig: &mut Rig,
    state: &Path,
    arguments: &Arguments,
) -> Result<Option<Result<(), String>>, String> {
    let read = || {
        let file = BufReader::new(File::open(state)?);
        let is_compressed = state.extension().is_some_and(|extension| extension == "gz");
        let mut file: Box<dyn Read> = if is_compressed {
            Box::new(BufReader::new(GzDecoder::new(file)))
        } else {
            Box::new(file)
        };
        let (mut line, mut byte) = (Vec::new(), [0]);
        while file.read(&mut byte)? == 1 && byte != *b"\n" {
            line.extend(byte);
        }
        let mut flags = [0; 2];
        file.read_exact(&mut flags)?;
        let beside = crate::medium::load_beside(&mut file)?;
        let path = String::from_utf8_lossy(&line).into_owned();
        let image = Image::load(&mut file)?;
        let ended = Ended { has_returned: flags[1] & 1 != 0, has_failed: flags[1] & 2 != 0 };
        Ok((Kept { path, image, beside, ended, key: 0 }, flags[0] != 0))
    };
    let read: std::io::Result<_> = read();
    let (kept, is_checked) = read.map_err(|error| format!("{}: {error}", state.display()))?;
    let name = kept.path.split(':').next().unwrap_or("");
    let case = cases.iter().find(|case| case.name() == name);
    let Some(case) = case else { return Ok(None) };
    if arguments.replay_as == Replayed::BootWithGap {
        rig.load(&kept.image, Beside { has_returned: false, ..kept.beside });
        rig.switch_on()?;
        rig::refuses_long_names()?;
    }
    if arguments.replay_as == Replayed::Stage {
        println!("{}, asked for once more", kept.path);
        rig.load(&kept.image, Beside { has_returned: false, ..kept.beside });
        rig.switch_on()?;
        return Ok(Some(case.stage_anew(rig)));
    }
    println!("{}, {} check", kept.path, if is_checked { "after a" } else { "without a" });
    Ok(Some(recover(case.as_ref(), rig, &kept, is_checked, false).map(drop)))
}
