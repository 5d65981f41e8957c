//! Runs scenarios, a few at a time, and says how they ended. The verdict cannot
//! be faked by a crash or a hang: only a function that returned, with its checks
//! counted, has passed.

use crate::base::{self, Base};
use crate::bench::Bench;
use crate::cli::Choice;
use crate::evidence;
use crate::failure::{Failure, Outcome};
use crate::lab::{Image, Lab};
use crate::scenarios::{self, ALL, ORDINARY, Scenario};
use crate::trial;
use std::any::Any;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// No scenario takes as long; what does is a harness that hangs.
const SCENARIO_LIMIT: Duration = Duration::from_secs(45 * 60);

/// Each image with what begins there.
type Places = BTreeMap<Image, (Lab, Base)>;

struct Verdict {
    name: &'static str,
    took: Duration,
    checks: u32,
    notes: Vec<String>,
    /// What went wrong; none when it passed.
    failure: Option<String>,
}

pub fn run(choice: &Choice) -> Outcome {
    let chosen = select(choice)?;
    let images: BTreeSet<_> = chosen.iter().map(|one| one.image).collect();
    let places = places(&images, choice)?;
    say(&format!("{} scenarios, {} at a time", chosen.len(), choice.jobs));
    let failed = all(Arc::new(places), chosen, choice);
    if failed == 0 { Ok(()) } else { Err(Failure::new("a scenario failed")) }
}

/// Each image with its base, all at once: a first boot has one processor.
fn places(images: &BTreeSet<Image>, choice: &Choice) -> Outcome<Places> {
    let mut labs = Vec::new();
    for image in images {
        let mut lab = Lab::open(*image)?;
        lab.replays = choice.replays.clone();
        trial::choose(&mut lab, &say)?;
        labs.push((*image, lab));
    }
    let ready = |(image, lab): (Image, Lab)| {
        let begun = Instant::now();
        let base = base::prepare(&lab, &|text| say(&format!("{image:?}: {text}")))?;
        say(&format!("{image:?}, {:?}: ready after {} s", lab.accel, begun.elapsed().as_secs()));
        Ok((image, (lab, base)))
    };
    std::thread::scope(|scope| {
        let begun: Vec<_> = labs.into_iter().map(|one| scope.spawn(move || ready(one))).collect();
        let ended = begun
            .into_iter()
            .map(|one| one.join().unwrap_or_else(|panic| Err(Failure::new(words(panic.as_ref())))));
        ended.collect()
    })
}

fn say(text: &str) {
    println!("vm: {text}");
}

/// The scenarios meant; a name that means none is an error, and so is no
/// scenario at all.
fn select(choice: &Choice) -> Outcome<VecDeque<&'static Scenario>> {
    if let Some(shard) = &choice.shard
        && shard != ORDINARY
        && !scenarios::shards().contains(&shard.as_str())
    {
        return Err(Failure::new(format!("there is no shard `{shard}`")));
    }
    let meant = |name: &str, one: &Scenario| one.name.starts_with(name);
    for name in &choice.names {
        if !ALL.iter().any(|one| meant(name, one)) {
            return Err(Failure::new(format!("no scenario is called `{name}`")));
        }
    }
    let of_shard = |one: &Scenario| match &choice.shard {
        Some(shard) => one.shard == shard,
        None => !choice.names.is_empty() || one.shard == ORDINARY,
    };
    let named = |one: &Scenario| {
        choice.names.is_empty() || choice.names.iter().any(|name| meant(name, one))
    };
    let chosen: VecDeque<_> = ALL.iter().filter(|one| of_shard(one) && named(one)).collect();
    if chosen.is_empty() {
        return Err(Failure::new("no scenario matches: nothing was tested"));
    }
    Ok(chosen)
}

/// Runs them all; returns how many failed.
fn all(places: Arc<Places>, chosen: VecDeque<&'static Scenario>, choice: &Choice) -> usize {
    let total = chosen.len();
    let queue = Arc::new(Mutex::new(chosen));
    let (sender, verdicts) = channel();
    for _ in 0..choice.jobs.max(1) {
        let (places, queue) = (Arc::clone(&places), Arc::clone(&queue));
        let (sender, keep) = (sender.clone(), choice.keep);
        std::thread::spawn(move || worker(&places, &queue, &sender, keep));
    }
    drop(sender);
    let (mut passed, mut failed) = (0, 0);
    while passed + failed < total {
        match verdicts.recv_timeout(SCENARIO_LIMIT) {
            Ok(verdict) => {
                tell(&verdict);
                if verdict.failure.is_none() { passed += 1 } else { failed += 1 }
            }
            // Too late, or no worker is left: what has not passed has failed.
            Err(cause) => {
                println!("FAIL  the harness itself: {cause}");
                failed = total - passed;
            }
        }
    }
    println!("{passed} passed, {failed} failed");
    failed
}

fn worker(
    places: &Places,
    queue: &Mutex<VecDeque<&'static Scenario>>,
    verdicts: &Sender<Verdict>,
    keep: bool,
) {
    loop {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let Some(scenario) = next else { return };
        let Some((lab, base)) = places.get(&scenario.image) else { return };
        // A closed channel means that the run is over and nobody listens.
        let _ = verdicts.send(one(lab, base, scenario, keep));
    }
}

fn one(lab: &Lab, base: &Base, scenario: &'static Scenario, keep: bool) -> Verdict {
    let begun = Instant::now();
    let mut verdict = Verdict {
        name: scenario.name,
        took: Duration::ZERO,
        checks: 0,
        notes: Vec::new(),
        failure: None,
    };
    match Bench::on(lab, base, scenario.name) {
        Err(cause) => verdict.failure = Some(format!("making the machine: {cause}")),
        Ok(mut bench) => {
            let ended = catch_unwind(AssertUnwindSafe(|| (scenario.run)(&mut bench)));
            verdict.checks = bench.checks();
            verdict.failure = match ended {
                Err(panic) => Some(format!("panicked: {}", words(panic.as_ref()))),
                Ok(Err(cause)) => Some(cause.to_string()),
                Ok(Ok(())) if bench.checks() < scenario.checks => Some(format!(
                    "checked {} things, and the table says {}",
                    bench.checks(),
                    scenario.checks
                )),
                Ok(Ok(())) => None,
            };
            verdict.notes = std::mem::take(&mut bench.notes);
            if let Some(failure) = &mut verdict.failure {
                let dir = evidence::keep(&mut bench, scenario.name, failure);
                *failure = format!("{failure}\n      see {}", shown(&dir));
            }
            bench.pull_plug();
            if !keep {
                // Not being able to tidy up is no verdict.
                let _ = std::fs::remove_dir_all(&bench.machine.dir);
            }
        }
    }
    verdict.took = begun.elapsed();
    verdict
}

fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
}

fn shown(dir: &std::path::Path) -> String {
    let root = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    dir.strip_prefix(root).unwrap_or(dir).display().to_string()
}

fn tell(verdict: &Verdict) {
    let took = verdict.took.as_secs();
    match &verdict.failure {
        None => println!("ok    {} ({took} s, {} checks)", verdict.name, verdict.checks),
        Some(failure) => println!("FAIL  {} ({took} s): {failure}", verdict.name),
    }
    for note in &verdict.notes {
        println!("      {note}");
    }
}
