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

mod end;
mod mend;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::error::{Doing, Result, chain};
use crate::format::envelope::{self, ADDED_SLOTS, JOURNAL, MAX_BYTES, NOTE};
use crate::plan::Plan;
use crate::plan::restore::RecordedSlot;
use crate::platform::Store;
use crate::request::{Operation, Request, check_name, file_name, stem};

pub use end::{clear_away, finish, reports};
pub use mend::{mend, remove_unlinked, settle, settle_esp};

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
    /// What is carried out.
    const OPERATION: Operation;
    /// Id and operation of the request.
    fn of(&self) -> (&str, Operation);
}

impl Commit for Committed {
    const KIND: envelope::Kind = JOURNAL;
    const OPERATION: Operation = Operation::FactoryReset;
    fn of(&self) -> (&str, Operation) {
        (&self.request.id, self.request.operation)
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
        let file = |extension| file_name(committed.of().0, extension);
        // Of an attempt that was cut before its commit.
        store.shred(&file("TAR")).doing(what)?;
        store.remove(&file("RSV")).doing(what)?;
        if let Some(archive) = archive {
            store.create(&file("TAR"), archive).doing(what)?;
        }
        store.create(&file("RSV"), &vec![0; RESERVED_BYTES]).doing(what)?;
        store.make_room(&stem(committed.of().0)).doing(what)?;
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
        check_name(stem, "request.", committed.of(), C::OPERATION).doing(what)?;
        let progress = load_progress(store, stem).doing(what)?;
        Ok(Self { committed, progress })
    }

    /// The id of the operation.
    #[must_use]
    pub fn id(&self) -> &str {
        self.committed.of().0
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

#[cfg(test)]
mod tests;
