//! One operation on one machine: all its system calls, each hit in each way, each followed to its end.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use restage_campaign::figures::Operation;

use crate::lab::{Lab, Way, Work};
use crate::machine::{Kind, Machine, said};
use crate::strace::{self, Call, Hit, Of, Struck};

/// Where the program has not said that it is in a step.
const OUTSIDE: &str = "outside of steps";

/// One run that is hit.
#[derive(Clone, Debug)]
pub struct Trial {
    pub hit: Hit,
    pub call: Call,
}

/// All runs of one operation on one machine.
pub struct Sweep<'a> {
    name: &'static str,
    lab: &'a Lab,
    work: Work,
    calls: Vec<Call>,
    place: &'a Path,
}

fn name_of(hit: Hit) -> &'static str {
    match hit {
        Hit::Before => "before",
        Hit::After => "after",
        Hit::Fails(error) => error,
    }
}

impl<'a> Sweep<'a> {
    /// Runs it once without a hit, to see which calls it makes.
    pub fn new(name: &'static str, lab: &'a Lab, work: Work, place: &'a Path) -> Self {
        let list = |of: Of| {
            let machine = lab.start(work);
            let words = lab.words(work, &machine);
            let scratch = tempfile::tempdir_in(place).unwrap();
            let (output, calls) = strace::list(&arguments(&machine, &words), scratch.path(), of);
            let code = output.status.code();
            assert!(matches!(code, Some(0 | 5)), "{words:?}: {code:?}: {}", said(&output));
            calls
        };
        let mut calls = list(Of::Main);
        if lab.kind == Kind::Image {
            calls.extend(list(Of::Tpm));
        }
        Self { name, lab, work, calls, place }
    }

    fn path(&self, trial: &Trial) -> String {
        let call = &trial.call;
        format!("{}/{}/{}.{}", self.name, name_of(trial.hit), call.name, call.number)
    }

    /// Every call, killed and failed. But in the ordinary run a loop device's calls fail only where they
    /// are others than an image file's, and of several writes to a file, one after the other, only the
    /// first fails.
    pub fn trials(&self, is_long: bool) -> Vec<Trial> {
        let is_loop = matches!(self.lab.kind, Kind::Loop(_));
        let (mut trials, mut before) = (Vec::new(), None::<&Call>);
        for call in &self.calls {
            let mut add = |hit| trials.push(Trial { hit, call: call.clone() });
            let goes_on = before.replace(call).is_some_and(|before| call.goes_on(before));
            if is_loop && call.speaks() && !is_long {
                continue;
            }
            add(Hit::Before);
            if is_long {
                add(Hit::After);
            }
            if (goes_on || (is_loop && call.name != "ioctl")) && !is_long {
                continue;
            }
            add(Hit::Fails("EIO"));
            if call.takes_space() && !call.speaks() {
                add(Hit::Fails("ENOSPC"));
            }
        }
        trials
    }

    /// The trial that a violation has named.
    pub fn find(&self, path: &str) -> Option<Trial> {
        self.trials(true).into_iter().find(|trial| self.path(trial) == path)
    }

    /// Goes through all of them. What is not as it must be, with the way to it.
    pub fn run(&self, trials: &[Trial], threads: usize, limit: usize) -> Vec<(String, String)> {
        let (next, found) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    while let Some(trial) = trials.get(next.fetch_add(1, Ordering::Relaxed)) {
                        if found.lock().unwrap().len() >= limit {
                            break;
                        }
                        if let Err(what) = self.go(trial) {
                            found.lock().unwrap().push((self.path(trial), what));
                        }
                    }
                });
            }
        });
        found.into_inner().unwrap()
    }

    /// One of them, on all ways.
    pub fn go(&self, trial: &Trial) -> Result<(), String> {
        let call = &trial.call.text;
        for way in Lab::ways(self.work) {
            self.go_way(trial, *way).map_err(|what| format!("{way:?}: {what}; hit was {call}"))?;
        }
        Ok(())
    }

    fn go_way(&self, trial: &Trial, way: Way) -> Result<(), String> {
        let machine = self.lab.start(self.work);
        let scratch = tempfile::tempdir_in(self.place).map_err(|e| e.to_string())?;
        let words = arguments(&machine, &self.lab.words(self.work, &machine));
        let struck = strace::strike(&words, scratch.path(), &trial.call, trial.hit)?;
        if let Hit::Fails(error) = trial.hit {
            check_told(&struck, error, &trial.call)?;
        }
        let said = |what: String| format!("{what}; it said: {}", struck.said);
        self.lab.check_cut(&machine).map_err(said)?;
        self.lab.follow(&machine, self.work, way).map_err(said)?;
        let is_error = matches!(trial.hit, Hit::Fails(_));
        self.lab.check_end(&machine, self.work, way, is_error).map_err(said)?;
        self.check_idle(&machine, scratch.path())
    }

    /// Another start makes no change.
    fn check_idle(&self, machine: &Machine, scratch: &Path) -> Result<(), String> {
        for words in self.lab.idle() {
            let arguments = machine.arguments(&words);
            let (output, changes) = strace::list(&arguments, scratch, Of::Everybody);
            let changes: Vec<String> = changes.into_iter().map(|call| call.text).collect();
            if output.status.code() != Some(0) || !changes.is_empty() {
                let what = format!("{words:?} once more: {}: {changes:?}", output.status);
                return Err(format!("{what}: {}", said(&output)));
            }
        }
        Ok(())
    }

    /// What was done, for the README.
    pub fn operation(&self, trials: &[Trial]) -> Operation {
        let (mut steps, mut outcomes) = (BTreeMap::new(), BTreeMap::new());
        for trial in trials {
            let step = if trial.call.step.is_empty() { OUTSIDE } else { &trial.call.step };
            *steps.entry(step.to_owned()).or_default() += 1;
            let outcome = match trial.hit {
                Hit::Before | Hit::After => "as if it had not been killed",
                Hit::Fails(_) => "told why, or as if it had not failed",
            };
            *outcomes.entry(outcome.to_owned()).or_default() += 1;
        }
        Operation { name: self.name.to_owned(), steps, outcomes }
    }

    /// What was done, in figures.
    pub fn figures(&self, trials: &[Trial]) -> String {
        let (mut hits, mut names, mut steps) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        for trial in trials {
            *hits.entry(name_of(trial.hit)).or_insert(0) += 1;
        }
        for call in &self.calls {
            *names.entry(call.name.as_str()).or_insert(0) += 1;
            match steps.iter_mut().find(|(step, _)| *step == call.step.as_str()) {
                Some((_, count)) => *count += 1,
                None => steps.push((call.step.as_str(), 1)),
            }
        }
        let list = |all: Vec<(&str, i32)>| {
            let all: Vec<String> = all.iter().map(|(name, n)| format!("{name} {n}")).collect();
            all.join(", ")
        };
        format!(
            "{}: {} calls, {} runs ({})\n    by call: {}\n    by step: {}",
            self.name,
            self.calls.len(),
            trials.len(),
            list(hits.into_iter().collect()),
            list(names.into_iter().collect()),
            list(steps)
        )
    }
}

/// What is done, and where.
fn arguments(machine: &Machine, words: &[String]) -> Vec<String> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    machine.arguments(&words)
}

/// What a run with an error must end with, and say.
fn check_told(struck: &Struck, error: &str, call: &Call) -> Result<(), String> {
    let said = &struck.said;
    let Some(code @ (0 | 1 | 3 | 4 | 5)) = struck.status.code() else {
        return Err(format!("{}: {said}", struck.status));
    };
    if call.speaks() || matches!(code, 0 | 5) {
        return Ok(());
    }
    // The TPM software stack keeps the number of an error to itself.
    let text = match (call.name.as_str(), error) {
        ("connect", _) => "TPM",
        (_, "EIO") => "os error 5",
        _ => "os error 28",
    };
    let names_it = ["cannot ", "the kernel keeps partition"].iter().any(|what| said.contains(what));
    if !said.contains(text) || !names_it {
        return Err(format!("{code}, and it does not say why: {said}"));
    }
    Ok(())
}
