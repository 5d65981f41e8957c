//! One case from its first boot to its end, and what must be so at each instant on the way.

use std::collections::HashMap;
use std::time::Duration;

use crate::agent::Ended;
use crate::bench::{Bench, Booted};
use crate::case::Case;
use crate::chip::Seen;
use crate::disk;
use crate::expect::{self, Expected, Situation, names_only};
use crate::fault::{Fault, Kind};
use crate::state::SHORT_RECOVERY_S;
use crate::wire::{CLEAR, CREATE_PRIMARY, FLUSH_CONTEXT};

/// Boots after the last that is disturbed, until it must be over.
const MORE_BOOTS: usize = 4;
/// So many failures, and a boot holds.
const MAX_FAILURES: usize = 3;
const DEADLINE: Duration = Duration::from_secs(40);
/// Where it is waited for; longer than anything that a TPM in software does on a busy machine.
const SHORT_DEADLINE: Duration = Duration::from_secs(3);

/// What a case has shown.
#[derive(Debug, Default)]
pub struct Told {
    pub boots: usize,
    pub cuts: usize,
    pub faults: usize,
    /// Boots that failed after the commit.
    pub failures: usize,
    /// The commands that each boot gave the TPM.
    pub given: Vec<Vec<u32>>,
    pub end: Option<Expected>,
}

/// A run of a case.
struct Run<'a> {
    bench: &'a Bench,
    case: &'a Case,
    /// How the TPM was before.
    before: Seen,
    situation: Situation,
    told: Told,
}

type Extensions = HashMap<String, Vec<u8>>;

/// Goes through the case; the error says what is not as it must be.
pub fn follow(bench: &Bench, case: &Case) -> Result<Told, String> {
    let before = bench.lay_out(case.state, case.allow);
    let mut run =
        Run { bench, case, before, situation: Situation::default(), told: Told::default() };
    for index in 0..case.boots.len() + MORE_BOOTS {
        let fault = case.boots.get(index).copied().flatten();
        run.boot(fault).map_err(|what| format!("boot {index}: {what}"))?;
        if run.told.end.is_some() {
            if index + 1 < case.boots.len() {
                return Err(format!("it is over after boot {index}"));
            }
            run.end()?;
            return Ok(run.told);
        }
    }
    Err(format!("it is not over after {} boots", run.told.boots))
}

impl Run<'_> {
    fn boot(&mut self, fault: Option<Fault>) -> Result<(), String> {
        let tpm = self.bench.power_on();
        let files = self.bench.files();
        self.look(&files)?;
        if self.case.state.burnt_shortly && self.situation.failures >= MAX_FAILURES {
            // It was held; somebody leaves the machine on for long enough.
            std::thread::sleep(Duration::from_secs(u64::from(SHORT_RECOVERY_S) + 1));
            self.situation.recovered = true;
        }
        if self.case.state.in_use {
            let mut chip = self.bench.chip();
            // There already, until a clear; and in a lockout the TPM takes no password.
            let _ = chip.make_index();
            let _ = chip.use_index();
        }
        let deadline = if self.case.has_silence() { SHORT_DEADLINE } else { DEADLINE };
        let booted = self.bench.boot(tpm, fault, deadline, self.case.is_only_cut())?;
        self.told.boots += 1;
        self.told.given.push(booted.given.clone());
        if self.situation.cleared && booted.given.contains(&CLEAR) {
            return Err("a TPM that is cleared is cleared once more".to_owned());
        }
        if let (Some(fault), None) = (fault, booted.fired) {
            return Err(format!(
                "{fault} meets nothing: the TPM was given {} commands; {}",
                booted.given.len(),
                booted.output
            ));
        }
        match booted.ended {
            None => self.told.cuts += 1,
            Some(ended) => self.ended(ended, fault, booted)?,
        }
        Ok(())
    }

    /// What must be so whenever the power comes on.
    fn look(&mut self, files: &Extensions) -> Result<(), String> {
        let has = |name: &str| files.contains_key(name);
        let seen = self.bench.chip().see();
        let cleared = seen.primary != self.before.primary;
        if self.situation.cleared && !cleared {
            return Err("the TPM is again what it was before the clear".to_owned());
        }
        if !cleared && !self.case.state.in_use && seen != self.before {
            return Err(format!("the TPM was {:?}, and is {seen:?}", self.before));
        }
        if cleared && !seen.has_no_password() {
            return Err(format!("cleared, and it has passwords: {seen:?}"));
        }
        if cleared && !self.case.state.in_use && !seen.is_as_from_the_factory() {
            return Err(format!("cleared, and not as from the factory: {seen:?}"));
        }
        let failures = files.keys().filter(|name| name.starts_with('F')).count();
        if !has("RPT") && failures != self.situation.failures {
            let counted = self.situation.failures;
            return Err(format!("{failures} failures are on record, and there were {counted}"));
        }
        if has("S00") && !cleared {
            return Err("it is on record that the TPM is cleared, and it is not".to_owned());
        }
        if has("P00") && !self.case.allow {
            return Err("the TPM is passed over, and nobody has allowed that".to_owned());
        }
        if cleared && !has("RPT") && !(has("JNL") && has("A00")) {
            return Err("the TPM is cleared without a journal and a record of the attempt".into());
        }
        let over = has("RPT") || has("S00") || has("P00");
        if !over && self.bench.disk_bytes() != self.bench.image() {
            return Err("the disk is another one before the TPM's step is over".to_owned());
        }
        let recovered = self.situation.recovered;
        self.situation = Situation {
            committed: has("JNL") && !has("RPT"),
            attempted: has("A00"),
            recorded: has("S00"),
            cleared,
            recovered,
            failures,
        };
        Ok(())
    }

    /// A boot that came to an end by itself.
    fn ended(&mut self, ended: Ended, fault: Option<Fault>, booted: Booted) -> Result<(), String> {
        let met = fault.zip(booted.fired);
        self.told.faults += usize::from(met.is_some());
        if let Some(left) = most_keys(&booted.given).filter(|keys| *keys > 1)
            && met.is_none_or(|(fault, _)| fault.kind.is_harmless())
        {
            return Err(format!("{left} keys at once are left in the TPM"));
        }
        let expected = expect::of_boot(self.case, self.situation, met);
        let files = self.bench.files();
        let mut whys = Vec::new();
        let found = expected.iter().find(|expected| {
            let fits = self.fits(ended, **expected, &booted, &files);
            fits.map_err(|why| whys.push(why)).is_ok()
        });
        let Some(found) = found else {
            let (text, whys) = (&booted.text, whys.join("; "));
            return Err(format!(
                "it ends as {ended:?} ({text}), and was to as {expected:?}: {whys}"
            ));
        };
        if let Some(Fault { kind: Kind::Silent(_), .. }) = fault
            && booted.took > SHORT_DEADLINE * 2 + Duration::from_secs(5)
        {
            return Err(format!("it took {:?} to give up", booted.took));
        }
        if matches!(found, Expected::Unfinished(_)) {
            self.situation.failures += 1;
            self.told.failures += 1;
        } else {
            self.told.end = Some(*found);
        }
        if self.case.state.burnt && self.told.failures > MAX_FAILURES {
            // It holds, and has held at one more power cycle: for as long as the lockout lasts.
            self.told.end = Some(*found);
        }
        if ended != Ended::Hold {
            self.bench.chip().shut_down();
        }
        if let Some(tpm) = booted.tpm {
            tpm.cut();
        }
        Ok(())
    }

    fn fits(
        &self,
        ended: Ended,
        expected: Expected,
        booted: &Booted,
        files: &Extensions,
    ) -> Result<(), String> {
        let is = |wanted: Ended| {
            if ended == wanted { Ok(()) } else { Err(format!("not {wanted:?}: {}", booted.output)) }
        };
        match expected {
            Expected::Done => {
                is(Ended::Done)?;
                match passed_over(files)? {
                    None => Ok(()),
                    Some(reason) => Err(format!("the TPM is passed over: {reason}")),
                }
            }
            Expected::PassedOver(words) => {
                is(Ended::Done)?;
                names_only(&passed_over(files)?.ok_or("the TPM is not passed over")?, words)
            }
            Expected::Refused(words) => {
                is(Ended::Refused)?;
                let report = report(files)?;
                if report["outcome"] != "refused" {
                    return Err(format!("the report says otherwise: {report}"));
                }
                names_only(report["reason"].as_str().unwrap_or_default(), words)
            }
            Expected::Unfinished(words) => {
                let holds = self.situation.failures + 1 >= MAX_FAILURES;
                is(if holds { Ended::Hold } else { Ended::Retry })?;
                names_only(&booted.text, words)
            }
        }
    }

    /// What must be so when it is over.
    fn end(&mut self) -> Result<(), String> {
        let end = self.told.end.ok_or("it is not over")?;
        let tpm = self.bench.power_on();
        let files = self.bench.files();
        self.look(&files).map_err(|what| format!("at the end: {what}"))?;
        let bytes = self.bench.disk_bytes();
        let (cleared, state) = (self.situation.cleared, self.case.state);
        if matches!(end, Expected::Unfinished(_)) {
            let whole = self.situation.committed && !cleared && bytes == self.bench.image();
            return if whole { Ok(()) } else { Err("it holds, and something is lost".to_owned()) };
        }
        let left: Vec<_> =
            files.keys().filter(|name| !matches!(name.as_str(), "RPT" | "LOG" | "BAD")).collect();
        if !left.is_empty() {
            return Err(format!("at the end {left:?} are left"));
        }
        let is_right = match end {
            Expected::Done => cleared && disk::is_reset(&bytes),
            Expected::PassedOver(_) => disk::is_reset(&bytes),
            Expected::Refused(_) => !cleared && bytes == self.bench.image(),
            Expected::Unfinished(_) => false,
        };
        if !is_right {
            return Err(format!("it ended as {end:?}; the TPM is cleared: {cleared}"));
        }
        if state.obstacle().is_some() && cleared != (end == Expected::Done) {
            return Err("a TPM that could not be cleared is cleared".to_owned());
        }
        let told = report(&files)?["failures"].as_array().map_or(0, Vec::len);
        if told != self.told.failures {
            return Err(format!("the report tells of {told} failures"));
        }
        // One password more for the lockout hierarchy is one that it takes, unless it was locked before.
        let is_locked = !cleared && (state.burnt || state.burnt_shortly);
        let password = if cleared { &b""[..] } else { state.lockout_password() };
        if !is_locked && !self.bench.chip().takes_lockout_password(password) {
            return Err("the lockout hierarchy does not take its password any more".to_owned());
        }
        tpm.cut();
        Ok(())
    }
}

/// How many keys there are in the TPM when there are most.
fn most_keys(given: &[u32]) -> Option<usize> {
    let keys = given.iter().scan(0_usize, |keys, code| {
        match *code {
            CREATE_PRIMARY => *keys += 1,
            FLUSH_CONTEXT => *keys = keys.saturating_sub(1),
            _ => {}
        }
        Some(*keys)
    });
    keys.max()
}

fn report(files: &Extensions) -> Result<serde_json::Value, String> {
    let bytes = files.get("RPT").ok_or("there is no report")?;
    let mut file: serde_json::Value =
        serde_json::from_slice(bytes).map_err(|error| format!("the report: {error}"))?;
    Ok(file["body"].take())
}

/// Why the report says that the TPM was passed over.
fn passed_over(files: &Extensions) -> Result<Option<String>, String> {
    let report = report(files)?;
    let step = &report["steps"][0];
    if report["outcome"] != "done" || step["step"] != "tpm" {
        return Err(format!("the report says otherwise: {report}"));
    }
    Ok(step["passed_over"].as_str().map(str::to_owned))
}
