//! The journal: the whole plan, committed before the first destructive step, and durable progress.
//! Side: initrd; the OS reads it. Touches restage's directory on the ESP.
//!
//! Files of one operation, all with the stem of its id (see `docs/formats.md`):
//!
//! | file | what |
//! |---|---|
//! | `REQ` `SED` | the request and its seeds, from the running OS |
//! | `TAR` | the rendered seed archive |
//! | `RSV` | space kept for report and log |
//! | `JNL` | the plan; **its appearance is the commit** |
//! | `A00` `S00` `P00` | step 0 was attempted; is done; was passed over, and why |
//! | `R00` | a boot worked on it |
//! | `F00` | a failure, and why |
//! | `RPT` | the report; **its appearance is the end** |
//! | `LOG` `BAD` | the log; the request that was set aside |

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::error::{Doing, Result};
use crate::format::envelope::{self, JOURNAL, MAX_BYTES, NOTE, REPORT};
use crate::plan::Plan;
use crate::platform::Esp;
use crate::report::Report;
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
    /// Failures, oldest first.
    pub failures: Vec<String>,
    /// The number of the next one: a file may have been lost.
    next_failure: usize,
    /// Boots that worked on it.
    pub runs: usize,
}

impl Progress {
    /// Whether the step is behind us.
    #[must_use]
    pub fn is_over(&self, index: usize) -> bool {
        self.done.contains(&index) || self.passed_over.contains_key(&index)
    }
}

/// A committed operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Journal {
    /// What was committed.
    pub committed: Committed,
    /// How far it has come.
    pub progress: Progress,
}

impl Journal {
    /// **The commit.** The rendered archive and the reserved space are durable before it, so that
    /// nothing after it can fail for want of space. A cut anywhere leaves no journal, or this one.
    pub fn commit(esp: &mut dyn Esp, committed: Committed, archive: Option<&[u8]>) -> Result<Self> {
        let what = || "cannot commit the reset to the ESP".to_owned();
        let file = |extension| file_name(&committed.request.id, extension);
        // Of an attempt that was cut before its commit.
        esp.shred(&file("TAR")).doing(what)?;
        esp.remove(&file("RSV")).doing(what)?;
        if let Some(archive) = archive {
            esp.create(&file("TAR"), archive).doing(what)?;
        }
        esp.create(&file("RSV"), &vec![0; RESERVED_BYTES]).doing(what)?;
        let bytes = envelope::encode(&committed, JOURNAL).doing(what)?;
        if bytes.len() > MAX_BYTES {
            return Err(crate::error::Error::new(what()).because("the journal is too long"));
        }
        esp.create(&file("JNL"), &bytes).doing(what)?;
        Ok(Self { committed, progress: Progress::default() })
    }

    /// Reads the journal with this stem and its progress. Changes nothing.
    pub fn load(esp: &dyn Esp, stem: &str) -> Result<Self> {
        let name = format!("{stem}.JNL");
        let what = || format!("cannot read the journal {name}");
        let bytes = esp
            .read(&name, MAX_BYTES)
            .and_then(|bytes| bytes.ok_or_else(|| std::io::ErrorKind::NotFound.into()))
            .doing(what)?;
        let committed: Committed = envelope::parse(&bytes, JOURNAL).doing(what)?;
        if crate::request::stem(&committed.request.id) != stem {
            return Err(crate::error::Error::new(what())
                .because("field `request.id` does not fit the file's name"));
        }
        let progress = load_progress(esp, stem).doing(what)?;
        Ok(Self { committed, progress })
    }

    /// The id of the operation.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.committed.request.id
    }

    fn file(&self, letter: char, number: usize) -> String {
        file_name(self.id(), &format!("{letter}{number:02}"))
    }

    /// Counts this boot.
    pub fn record_run(&mut self, esp: &mut dyn Esp) -> Result<()> {
        if self.progress.runs <= MAX_COUNT {
            let name = self.file('R', self.progress.runs);
            self.with_room(esp, |esp| esp.mark(&name))?;
        }
        self.progress.runs += 1;
        Ok(())
    }

    /// The step is about to be begun for the first time.
    pub fn record_attempt(&mut self, esp: &mut dyn Esp, step: usize) -> Result<()> {
        self.with_room(esp, |esp| esp.mark(&self.file('A', step)))?;
        self.progress.attempted.insert(step);
        Ok(())
    }

    /// The step's effect is durable and verified.
    pub fn record_done(&mut self, esp: &mut dyn Esp, step: usize) -> Result<()> {
        self.with_room(esp, |esp| esp.mark(&self.file('S', step)))?;
        self.progress.done.insert(step);
        Ok(())
    }

    /// The step could not be done, and the request allows that.
    pub fn record_passed_over(
        &mut self,
        esp: &mut dyn Esp,
        step: usize,
        reason: &str,
    ) -> Result<()> {
        if !self.progress.passed_over.contains_key(&step) {
            self.note(esp, 'P', step, reason)?;
            self.progress.passed_over.insert(step, reason.to_owned());
        }
        Ok(())
    }

    /// A step failed.
    pub fn record_failure(&mut self, esp: &mut dyn Esp, reason: &str) -> Result<()> {
        let number = self.progress.next_failure;
        self.progress.next_failure += 1;
        if number <= MAX_COUNT {
            self.note(esp, 'F', number, reason)?;
        }
        self.progress.failures.push(reason.to_owned());
        Ok(())
    }

    fn note(&self, esp: &mut dyn Esp, letter: char, number: usize, reason: &str) -> Result<()> {
        let reason = reason.chars().take(2000).collect();
        let bytes = envelope::encode(&Note { reason }, NOTE).doing(cannot_record)?;
        self.with_room(esp, |esp| esp.create(&self.file(letter, number), &bytes))
    }

    /// Progress needs little space, and the reserve is there for it when others have taken the rest.
    fn with_room(
        &self,
        esp: &mut dyn Esp,
        effect: impl Fn(&mut dyn Esp) -> std::io::Result<()>,
    ) -> Result<()> {
        match effect(esp) {
            Err(error) if error.kind() == std::io::ErrorKind::StorageFull => {
                esp.remove(&file_name(self.id(), "RSV")).doing(cannot_record)?;
                effect(esp).doing(cannot_record)
            }
            result => result.doing(cannot_record),
        }
    }
}

fn cannot_record() -> String {
    "cannot record progress on the ESP".to_owned()
}

fn load_progress(esp: &dyn Esp, stem: &str) -> Result<Progress> {
    let mut progress = Progress::default();
    let mut failures = BTreeMap::new();
    for name in esp.names().doing(|| "cannot list restage's directory".to_owned())? {
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
            // The file's existence counts even when its text is lost.
            "P" => drop(progress.passed_over.insert(number, read_note(esp, &name))),
            "F" => drop(failures.insert(number, read_note(esp, &name))),
            _ => {}
        }
    }
    progress.next_failure = failures.last_key_value().map_or(0, |(last, _)| last + 1);
    progress.failures = failures.into_values().collect();
    Ok(progress)
}

fn read_note(esp: &dyn Esp, name: &str) -> String {
    let note = esp.read(name, MAX_BYTES).ok().flatten();
    note.and_then(|bytes| envelope::parse::<Note>(&bytes, NOTE).ok())
        .map_or_else(|| "(the reason was lost)".to_owned(), |note| note.reason)
}

/// **The end of an operation.** The report's appearance ends it; what else there is of it is removed
/// after that, secrets overwritten first, and again at the next boot if the power goes meanwhile.
pub fn finish(esp: &mut dyn Esp, report: &Report, log: &str) -> Result<()> {
    let what = || "cannot leave the report on the ESP".to_owned();
    let stem = stem(&report.id);
    let file = |extension| format!("{stem}.{extension}");
    esp.remove(&file("RSV")).doing(what)?;
    let names = esp.names().doing(what)?;
    if !log.is_empty() && !names.contains(&file("LOG")) {
        let start = log.len().saturating_sub(MAX_LOG_BYTES);
        let start = (start..=log.len()).find(|at| log.is_char_boundary(*at)).unwrap_or_default();
        esp.create(&file("LOG"), log.get(start..).unwrap_or_default().as_bytes()).doing(what)?;
    }
    if !names.contains(&file("RPT")) {
        let bytes = envelope::encode(report, REPORT).doing(what)?;
        esp.create(&file("RPT"), &bytes).doing(what)?;
    }
    // The operation is over; what cannot be tidied up now is tidied up at the next boot.
    if let Err(error) = clear_away(esp, &stem).and_then(|()| prune(esp, &report.id)) {
        log::warn!("{}", error.chain());
    }
    Ok(())
}

/// Removes what is left of a finished operation, or of one that never became a request.
pub fn clear_away(esp: &mut dyn Esp, stem: &str) -> Result<()> {
    let what = || format!("cannot remove what is left of {stem} on the ESP");
    // The request first: it is the one that could be taken for a wish.
    esp.remove(&format!("{stem}.REQ")).doing(what)?;
    for name in esp.names().doing(what)? {
        let Some(extension) = name.strip_prefix(stem).and_then(|rest| rest.strip_prefix('.'))
        else {
            continue;
        };
        match extension {
            "RPT" | "LOG" | "BAD" => {}
            "SED" | "TAR" | "TMP" => esp.shred(&name).doing(what)?,
            _ => esp.remove(&name).doing(what)?,
        }
    }
    Ok(())
}

/// Keeps the newest reports only, and the one just written whatever the clock says.
fn prune(esp: &mut dyn Esp, newest: &str) -> Result<()> {
    let reports = reports(esp)?;
    for old in reports.iter().filter(|report| report.id != newest).skip(MAX_REPORTS - 1) {
        let stem = stem(&old.id);
        let what = || format!("cannot remove the old report {stem}.RPT");
        // The report goes last: as long as it is there, nothing of its operation can come back.
        clear_away(esp, &stem)?;
        for extension in ["BAD", "LOG", "RPT"] {
            esp.remove(&format!("{stem}.{extension}")).doing(what)?;
        }
    }
    Ok(())
}

/// The readable reports, newest first.
pub fn reports(esp: &dyn Esp) -> Result<Vec<Report>> {
    let what = || "cannot read the reports on the ESP".to_owned();
    let mut reports = Vec::new();
    for name in esp.names().doing(what)? {
        if name.split_once('.').is_some_and(|(_, extension)| extension == "RPT")
            && let Ok(Some(bytes)) = esp.read(&name, MAX_BYTES)
            && let Ok(report) = envelope::parse::<Report>(&bytes, REPORT)
        {
            reports.push(report);
        }
    }
    reports.sort_by_key(|report| std::cmp::Reverse(report.finished_at));
    Ok(reports)
}
