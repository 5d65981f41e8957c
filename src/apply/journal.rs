//! The journal: the whole plan, committed before the first destructive step, and durable progress.
//! Side: initrd; the OS reads it. Touches a directory of restage's own.
//!
//! Files of one operation, all with the stem of its id (see `docs/formats.md`):
//!
//! | file | what |
//! |---|---|
//! | `REQ` `SED` | the request and its seeds, from the running OS |
//! | `TAR` | the rendered seed archive |
//! | `RSV` | space kept for report and log |
//! | `JNL` | the plan; **its appearance, whole, is the commit** |
//! | `A00` `S00` `P00` | step 0 was attempted; is done; was passed over, and why |
//! | `R00` | a boot worked on it |
//! | `F00` | a failure, and why; 30 numbers for each phase of an operation |
//! | `K00` | the key slots that a restore has added to volume 0 |
//! | `RPT` | the report; **its appearance, whole, is the end** |
//! | `LOG` `BAD` | the log; the request that was set aside |

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::error::{Doing, Result, chain};
use crate::format::envelope::{self, ADDED_SLOTS, EnvelopeError, JOURNAL, MAX_BYTES, NOTE, REPORT};
use crate::plan::Plan;
use crate::plan::restore::RecordedSlot;
use crate::platform::Store;
use crate::report::{Outcome, Report};
use crate::request::find::{self, Found};
use crate::request::{Request, file_name, stem};

/// Report, log and the directory entries of all progress fit into this.
const RESERVED_BYTES: usize = 512 * 1024;
/// How many reports stay on the ESP. With the two limits below, what stays is less than 1 MiB.
const MAX_REPORTS: usize = 8;
/// The part of a log that is kept: the end of it.
const MAX_LOG_BYTES: usize = 64 * 1024;
/// The part of a request that is set aside: its beginning. A good one has a few KiB.
pub const MAX_ASIDE_BYTES: usize = 48 * 1024;
/// More would not fit two digits.
const MAX_COUNT: usize = 99;
/// Numbers of failures, and of steps, that each phase of an operation has for itself.
pub const NUMBERS_OF_A_PHASE: usize = 30;
/// A machine that is switched on for years beside a broken disk has many failures to tell.
const MAX_TOLD_FAILURES: usize = 8;

/// What is written at the commit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Committed {
    /// The request.
    pub request: Request,
    /// Name of the profile that it was planned with.
    pub profile: String,
    /// Seconds since 1970.
    pub at: u64,
    /// The plan.
    pub plan: Plan,
}

/// What a journal holds, of one kind of operation.
pub trait Commit: Serialize + serde::de::DeserializeOwned {
    /// The kind of file.
    const KIND: envelope::Kind;
    /// The id of the operation.
    fn id(&self) -> &str;
}

impl Commit for Committed {
    const KIND: envelope::Kind = JOURNAL;
    fn id(&self) -> &str {
        &self.request.id
    }
}

/// Why a step failed or was passed over.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Note {
    reason: String,
}

/// How far an operation has come, as the files say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Steps whose effect is durable and verified.
    pub done: BTreeSet<usize>,
    /// Steps that were passed over, and why.
    pub passed_over: BTreeMap<usize, String>,
    /// Steps that were begun and cannot be begun for the first time again.
    pub attempted: BTreeSet<usize>,
    /// Failures, by their number.
    pub failures: BTreeMap<usize, String>,
    /// The key slots that a restore has added, by the number of the volume; none of a volume whose
    /// record cannot be read.
    pub added_slots: BTreeMap<usize, Option<Vec<RecordedSlot>>>,
    /// Boots that worked on it.
    pub runs: usize,
    /// Boots that were handed over to a restored state.
    pub hand_overs: usize,
    /// What became of a restored state.
    pub decision: Option<Decision>,
}

/// What becomes of a restored state. Once decided, it stays so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It stays.
    Confirm,
    /// The old one comes back, for this reason.
    RollBack(String),
}

impl Progress {
    /// Whether the step is behind us.
    #[must_use]
    pub fn is_over(&self, index: usize) -> bool {
        self.done.contains(&index) || self.passed_over.contains_key(&index)
    }

    /// How often the phase with these numbers has failed.
    #[must_use]
    pub fn failures_from(&self, first: usize) -> usize {
        self.failures.range(first..first + NUMBERS_OF_A_PHASE).count()
    }

    /// The newest failures, oldest first.
    #[must_use]
    pub fn newest_failures(&self) -> Vec<String> {
        let skipped = self.failures.len().saturating_sub(MAX_TOLD_FAILURES);
        self.failures.values().skip(skipped).cloned().collect()
    }
}

/// A committed operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Journal<C = Committed> {
    /// What was committed.
    pub committed: C,
    /// How far it has come.
    pub progress: Progress,
}

impl<C: Commit> Journal<C> {
    /// **The commit.** The rendered archive, the reserved space and room for names are durable before
    /// it, so that nothing after it can fail for want of space, nor a cut tear a directory that grows. A
    /// cut anywhere leaves no journal, or this one.
    pub fn commit(store: &mut dyn Store, committed: C, archive: Option<&[u8]>) -> Result<Self> {
        let what = || "cannot commit the operation".to_owned();
        let file = |extension| file_name(committed.id(), extension);
        // Of an attempt that was cut before its commit.
        store.shred(&file("TAR")).doing(what)?;
        store.remove(&file("RSV")).doing(what)?;
        if let Some(archive) = archive {
            store.create(&file("TAR"), archive).doing(what)?;
        }
        store.create(&file("RSV"), &vec![0; RESERVED_BYTES]).doing(what)?;
        store.make_room(&stem(committed.id())).doing(what)?;
        let bytes = envelope::encode(&committed, C::KIND).doing(what)?;
        if bytes.len() > MAX_BYTES {
            return Err(crate::error::Error::new(what()).because("the journal is too long"));
        }
        store.create(&file("JNL"), &bytes).doing(what)?;
        Ok(Self { committed, progress: Progress::default() })
    }

    /// Reads the journal with this stem and its progress. Changes nothing.
    pub fn load(store: &dyn Store, stem: &str) -> Result<Self> {
        let name = format!("{stem}.JNL");
        let what = || format!("cannot read the journal {name}");
        let bytes = store
            .read(&name, MAX_BYTES)
            .and_then(|bytes| bytes.ok_or_else(|| std::io::ErrorKind::NotFound.into()))
            .doing(what)?;
        let committed: C = envelope::parse(&bytes, C::KIND).doing(what)?;
        if crate::request::stem(committed.id()) != stem {
            return Err(crate::error::Error::new(what())
                .because("field `request.id` does not fit the file's name"));
        }
        let progress = load_progress(store, stem).doing(what)?;
        Ok(Self { committed, progress })
    }

    /// The id of the operation.
    #[must_use]
    pub fn id(&self) -> &str {
        self.committed.id()
    }

    fn file(&self, letter: char, number: usize) -> String {
        file_name(self.id(), &format!("{letter}{number:02}"))
    }

    /// Counts this boot.
    pub fn record_run(&mut self, store: &mut dyn Store) -> Result<()> {
        if self.progress.runs <= MAX_COUNT {
            let name = self.file('R', self.progress.runs);
            self.with_room(store, |store| store.mark(&name))?;
        }
        self.progress.runs += 1;
        Ok(())
    }

    /// The step is about to be begun for the first time.
    pub fn record_attempt(&mut self, store: &mut dyn Store, step: usize) -> Result<()> {
        self.with_room(store, |store| store.mark(&self.file('A', step)))?;
        self.progress.attempted.insert(step);
        Ok(())
    }

    /// The step's effect is durable and verified.
    pub fn record_done(&mut self, store: &mut dyn Store, step: usize) -> Result<()> {
        self.with_room(store, |store| store.mark(&self.file('S', step)))?;
        self.progress.done.insert(step);
        Ok(())
    }

    /// The step could not be done, and the request allows that.
    pub fn record_passed_over(
        &mut self,
        store: &mut dyn Store,
        step: usize,
        reason: &str,
    ) -> Result<()> {
        if !self.progress.passed_over.contains_key(&step) {
            self.note(store, 'P', step, reason)?;
            self.progress.passed_over.insert(step, reason.to_owned());
        }
        Ok(())
    }

    /// A step failed, in the phase whose numbers begin with `first`. The last number of a phase is
    /// given once: who has failed so often is not counted any further.
    pub fn record_failure(
        &mut self,
        store: &mut dyn Store,
        first: usize,
        reason: &str,
    ) -> Result<()> {
        let numbers = first..first + NUMBERS_OF_A_PHASE;
        let last = self.progress.failures.range(numbers.clone()).next_back().map(|(last, _)| *last);
        let number = last.map_or(first, |last| last + 1);
        if numbers.contains(&number) {
            self.note(store, 'F', number, reason)?;
            self.progress.failures.insert(number, reason.to_owned());
        }
        Ok(())
    }

    /// Which key slots were added to a volume, before anybody else can change what they are known by.
    pub fn record_added_slots(
        &mut self,
        store: &mut dyn Store,
        volume: usize,
        slots: &[RecordedSlot],
    ) -> Result<()> {
        let bytes = envelope::encode(&slots, ADDED_SLOTS).doing(cannot_record)?;
        let name = self.file('K', volume);
        match self.progress.added_slots.get(&volume) {
            Some(Some(_)) => return Ok(()),
            // It was cut off while it was written.
            Some(None) => store.remove(&name).doing(cannot_record)?,
            None => {}
        }
        self.with_room(store, |store| store.create(&name, &bytes))?;
        self.progress.added_slots.insert(volume, Some(slots.to_vec()));
        Ok(())
    }

    /// The key slots that were added to a volume; none when the record is damaged or not there.
    pub fn read_added_slots(
        &self,
        store: &dyn Store,
        volume: usize,
    ) -> Result<Option<Vec<RecordedSlot>>> {
        let name = self.file('K', volume);
        let bytes = store.read(&name, MAX_BYTES).doing(|| format!("cannot read {name}"))?;
        Ok(bytes.and_then(|bytes| envelope::parse(&bytes, ADDED_SLOTS).ok()))
    }

    /// Counts a boot that is handed over to a restored state.
    pub fn record_hand_over(&mut self, store: &mut dyn Store) -> Result<()> {
        self.with_room(store, |store| store.mark(&self.file('W', self.progress.hand_overs)))?;
        self.progress.hand_overs += 1;
        Ok(())
    }

    /// Decides, durably. What is decided already stays so.
    pub fn record_decision(&mut self, store: &mut dyn Store, decision: Decision) -> Result<()> {
        if self.progress.decision.is_none() {
            match &decision {
                Decision::Confirm => {
                    self.with_room(store, |store| store.mark(&self.file('C', 0)))?;
                }
                Decision::RollBack(reason) => self.note(store, 'B', 0, reason)?,
            }
            self.progress.decision = Some(decision);
        }
        Ok(())
    }

    fn note(&self, store: &mut dyn Store, letter: char, number: usize, reason: &str) -> Result<()> {
        let reason = reason.chars().take(2000).collect();
        let bytes = envelope::encode(&Note { reason }, NOTE).doing(cannot_record)?;
        self.with_room(store, |store| store.create(&self.file(letter, number), &bytes))
    }

    /// Progress needs little space, and the reserve is there for it when others have taken the rest.
    fn with_room(
        &self,
        store: &mut dyn Store,
        effect: impl Fn(&mut dyn Store) -> std::io::Result<()>,
    ) -> Result<()> {
        match effect(store) {
            Err(error) if error.kind() == std::io::ErrorKind::StorageFull => {
                log::warn!("{}: the reserve is used", chain(&error));
                store.remove(&file_name(self.id(), "RSV")).doing(cannot_record)?;
                effect(store).doing(cannot_record)
            }
            result => result.doing(cannot_record),
        }
    }
}

fn cannot_record() -> String {
    "cannot record progress".to_owned()
}

fn load_progress(store: &dyn Store, stem: &str) -> Result<Progress> {
    let mut progress = Progress::default();
    for name in store.names().doing(|| "cannot list restage's directory".to_owned())? {
        let Some(extension) = name.strip_prefix(stem).and_then(|rest| rest.strip_prefix('.'))
        else {
            continue;
        };
        let Some((letter, number)) = extension.split_at_checked(1) else { continue };
        let Ok(number) = number.parse::<usize>() else { continue };
        match letter {
            "S" => drop(progress.done.insert(number)),
            "A" => drop(progress.attempted.insert(number)),
            "R" => progress.runs += 1,
            "W" => progress.hand_overs += 1,
            "C" => progress.decision = Some(Decision::Confirm),
            "B" if progress.decision.is_none() => {
                progress.decision = Some(Decision::RollBack(read_note(store, &name)));
            }
            // The file's existence counts even when its text is lost.
            "P" => drop(progress.passed_over.insert(number, read_note(store, &name))),
            "F" => drop(progress.failures.insert(number, read_note(store, &name))),
            "K" => {
                let bytes = read_or_tell(store, &name);
                let slots = bytes.and_then(|bytes| envelope::parse(&bytes, ADDED_SLOTS).ok());
                progress.added_slots.insert(number, slots);
            }
            _ => {}
        }
    }
    Ok(progress)
}

/// A file without which the work goes on; why it cannot be read is told.
fn read_or_tell(store: &dyn Store, name: &str) -> Option<Vec<u8>> {
    store.read(name, MAX_BYTES).unwrap_or_else(|error| {
        log::warn!("{}", chain(&error));
        None
    })
}

fn read_note(store: &dyn Store, name: &str) -> String {
    let note = read_or_tell(store, name);
    note.and_then(|bytes| envelope::parse::<Note>(&bytes, NOTE).ok())
        .map_or_else(|| "(the reason was lost)".to_owned(), |note| note.reason)
}

/// **The end of an operation.** The report's appearance ends it; what else there is of it is removed
/// after that, secrets overwritten first, and again at the next boot if the power goes meanwhile.
pub fn finish(store: &mut dyn Store, report: &Report, log: &str) -> Result<()> {
    let what = || "cannot leave the report".to_owned();
    let stem = stem(&report.id);
    let file = |extension| format!("{stem}.{extension}");
    store.remove(&file("RSV")).doing(what)?;
    let names = store.names().doing(what)?;
    if !log.is_empty() && !names.contains(&file("RPT")) {
        store.remove(&file("LOG")).doing(what)?;
        let start = log.len().saturating_sub(MAX_LOG_BYTES);
        let start = (start..=log.len()).find(|at| log.is_char_boundary(*at)).unwrap_or_default();
        store.create(&file("LOG"), log.get(start..).unwrap_or_default().as_bytes()).doing(what)?;
    }
    if !names.contains(&file("RPT")) {
        let bytes = envelope::encode(report, REPORT).doing(what)?;
        store.create(&file("RPT"), &bytes).doing(what)?;
    }
    // The operation is over; what cannot be tidied up now is tidied up at the next boot.
    if let Err(error) = clear_away(store, &stem).and_then(|()| prune(store, &report.id)) {
        log::warn!("{}", error.chain());
    }
    Ok(())
}

/// Removes what a cut has left in free clusters: to be done before anything is made. Not a report that
/// [`mend`] makes again, nor a journal that has progress: that one was durable. Returns those that it
/// leaves.
pub fn remove_unlinked(store: &mut dyn Store) -> Result<Vec<String>> {
    let what = || "cannot remove what was cut off while it was made".to_owned();
    let mut left = Vec::new();
    let mut stays = store.names().doing(what)?;
    let mut unlinked = find::unlinked(store, &stays);
    // What goes itself says nothing of others; a journal is looked at before its report.
    stays.retain(|name| !unlinked.contains(name));
    unlinked.sort();
    for name in unlinked {
        let (stem, extension) = name.split_once('.').unwrap_or_default();
        let has = |extension: &str| stays.contains(&format!("{stem}.{extension}"));
        match extension {
            "JNL" if has_progress(&stays, stem) => {
                stays.push(name.clone());
                left.push(name);
            }
            "RPT" if has("JNL") || has("REQ") => left.push(name),
            _ => {
                log::warn!("{name} was cut off while it was made or removed: it goes");
                remove_file(store, &name).doing(what)?;
            }
        }
    }
    Ok(left)
}

/// Removes a file of an operation, secrets overwritten first.
fn remove_file(store: &mut dyn Store, name: &str) -> std::io::Result<()> {
    match name.split_once('.') {
        Some((_, "SED" | "TAR" | "ARC")) => store.shred(name),
        _ => store.remove(name),
    }
}

/// Makes good what a power cut on FAT leaves of a file that was not synced yet: it is there, and empty,
/// damaged or unreadable. Returns what lies there then.
///
/// A journal that is nothing and has no progress was never committed: before the first step there is
/// always a file of progress. A report that is nothing beside a whole journal is written again from
/// there; beside a request alone it is replaced, for that operation is over.
pub fn mend<C: Commit>(store: &mut dyn Store, now: u64) -> Result<Found> {
    let what = || "cannot make good what a power cut has left".to_owned();
    let unlinked = remove_unlinked(store)?;
    let found = find::look(store)?;
    let mut is_changed = false;
    for stem in &found.committed {
        if !has_progress(&store.names().doing(what)?, stem) && is_nothing::<C>(store, stem) {
            log::warn!("{stem}.JNL is no journal, and nothing was done yet: it is removed");
            store.remove(&format!("{stem}.JNL")).doing(what)?;
            is_changed = true;
        }
    }
    for stem in &found.leftovers {
        let names = store.names().doing(what)?;
        let has = |extension: &str| names.contains(&format!("{stem}.{extension}"));
        let name = format!("{stem}.RPT");
        if !has("RPT") || (!unlinked.contains(&name) && read_report(store, &name).is_some()) {
            continue;
        }
        if has("JNL") {
            // Whatever came of it, the journal has to say.
            Journal::<C>::load(store, stem)?;
            log::warn!("{name} is written again");
            store.remove(&name).doing(what)?;
            is_changed = true;
        } else if has("REQ") {
            log::warn!("nothing but {name} says what came of the request: it is replaced");
            let reason = "it ended before it was committed, and its report was lost in a power cut";
            let report = Report {
                id: stem.to_lowercase(),
                operation: None,
                outcome: Outcome::Refused,
                reason: Some(reason.to_owned()),
                staged: None,
                finished_at: now,
                runs: 0,
                failures: Vec::new(),
                steps: Vec::new(),
                restage: env!("CARGO_PKG_VERSION").to_owned(),
            };
            store.remove(&name).doing(what)?;
            let bytes = envelope::encode(&report, REPORT).doing(what)?;
            store.create(&name, &bytes).doing(what)?;
        }
    }
    if is_changed { find::look(store) } else { Ok(found) }
}

/// Whether a boot has worked on it.
fn has_progress(names: &[String], stem: &str) -> bool {
    names.iter().any(|name| {
        let extension = name.strip_prefix(stem).and_then(|rest| rest.strip_prefix('.'));
        extension.is_some_and(|extension| {
            extension.strip_prefix(|c: char| c.is_ascii_uppercase()).is_some_and(|number| {
                !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
            })
        })
    })
}

/// Whether a journal is no whole file: a newer one, or one of another kind, is something.
fn is_nothing<C: Commit>(store: &dyn Store, stem: &str) -> bool {
    match store.read(&format!("{stem}.JNL"), MAX_BYTES) {
        Ok(Some(bytes)) => matches!(
            envelope::parse::<C>(&bytes, C::KIND),
            Err(EnvelopeError::Malformed(_) | EnvelopeError::Checksum)
        ),
        Ok(None) => false,
        Err(error) => {
            log::warn!("{}", chain(&error));
            true
        }
    }
}

/// A report that can be read and is of the operation that the file is called after: what is done about
/// old reports goes by what they say.
fn read_report(store: &dyn Store, name: &str) -> Option<Report> {
    let bytes = read_or_tell(store, name)?;
    let report = envelope::parse::<Report>(&bytes, REPORT).map_err(|error| error.to_string());
    let report = report.and_then(|report| {
        let is_its_own = file_name(&report.id, "RPT") == name;
        is_its_own.then_some(report).ok_or("field `id` does not fit the file's name".to_owned())
    });
    report.inspect_err(|why| log::warn!("{name} is no report: {why}")).ok()
}

/// Removes what is left of a finished operation, or of one that never became a request.
pub fn clear_away(store: &mut dyn Store, stem: &str) -> Result<()> {
    let what = || format!("cannot remove what is left of {stem}");
    // The request first: it is the one that could be taken for a wish.
    store.remove(&format!("{stem}.REQ")).doing(what)?;
    let names = store.names().doing(what)?;
    let is_reported = names.contains(&format!("{stem}.RPT"));
    for name in names {
        let Some(extension) = name.strip_prefix(stem).and_then(|rest| rest.strip_prefix('.'))
        else {
            continue;
        };
        match extension {
            "RPT" | "LOG" | "BAD" if is_reported => {}
            _ => remove_file(store, &name).doing(what)?,
        }
    }
    Ok(())
}

/// Keeps the newest reports only, and the one just written whatever the clock says.
fn prune(store: &mut dyn Store, newest: &str) -> Result<()> {
    let reports = reports(store)?;
    for old in reports.iter().filter(|report| report.id != newest).skip(MAX_REPORTS - 1) {
        let stem = stem(&old.id);
        let what = || format!("cannot remove the old report {stem}.RPT");
        // The report goes last: as long as it is there, nothing of its operation can come back.
        clear_away(store, &stem)?;
        for extension in ["BAD", "LOG", "RPT"] {
            store.remove(&format!("{stem}.{extension}")).doing(what)?;
        }
    }
    Ok(())
}

/// The readable reports, newest first.
pub fn reports(store: &dyn Store) -> Result<Vec<Report>> {
    let what = || "cannot read the reports".to_owned();
    let mut reports = Vec::new();
    for name in store.names().doing(what)? {
        if name.split_once('.').is_some_and(|(_, extension)| extension == "RPT")
            && let Some(report) = read_report(store, &name)
        {
            reports.push(report);
        }
    }
    reports.sort_by_key(|report| std::cmp::Reverse(report.finished_at));
    Ok(reports)
}

#[cfg(test)]
mod tests;
