//! Where the power is cut in a recorded run, and what of its last writes the disk
//! has kept: chosen by a seed, written down in one word, and read back from it.

use crate::chance::Chance;
use crate::failure::{Doing, Failure, Outcome};
use crate::writes::{Entry, What, Writes};
use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

/// What the disk has done about discards, of which it promises nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Discards {
    Zeroed,
    Ignored,
}

/// Which state of the TPM goes with the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tpm {
    Before,
    After,
}

/// `120+1024-117-118~/before`: after 120 entries and the first 1024 bytes of the
/// next; entries 117 and 118 were lost; no discard did anything; the TPM is as
/// before its clear.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Point {
    pub entries: usize,
    pub torn: u64,
    pub lost: BTreeSet<usize>,
    pub discards: Discards,
    pub tpm: Tpm,
}

/// When the TPM is cleared in a recording.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clear {
    /// The attempt is on record: so many entries are before that, its flush included.
    pub earliest: usize,
    /// The entry with the record that it is done.
    pub latest: usize,
}

impl Point {
    pub fn in_order(entries: usize) -> Self {
        let (discards, tpm) = (Discards::Zeroed, Tpm::Before);
        Self { entries, torn: 0, lost: BTreeSet::new(), discards, tpm }
    }

    /// A point whose last epoch is one of the given part of the run.
    pub fn choose(
        writes: &Writes,
        part: Range<usize>,
        clear: Option<Clear>,
        chance: &mut Chance,
    ) -> Outcome<Self> {
        let epochs = epochs(&writes.entries, part.clone());
        let epoch = chance.one_of(&epochs).doing(format!("an epoch with writes in {part:?}"))?;
        let mut point = Self::in_order(epoch.end);
        match chance.below(4) {
            0 => point.entries = within(epoch, chance),
            1 => point.tear(writes, epoch, chance),
            _ => point.lose(writes, epoch, chance),
        }
        if chance.below(4) == 0 {
            point.discards = Discards::Ignored;
        }
        let possible = point.possible(writes, clear);
        point.tpm = *chance.one_of(&possible).doing("a state of the TPM")?;
        Ok(point)
    }

    /// The last write is there in part.
    fn tear(&mut self, writes: &Writes, epoch: &Range<usize>, chance: &mut Chance) {
        self.entries = within(epoch, chance) - 1;
        let next = writes.entries.get(self.entries).copied();
        if let Some(entry) = next.filter(|entry| matches!(entry.what, What::Write { .. })) {
            self.torn = chance.below(entry.length / crate::writes::SECTOR) * crate::writes::SECTOR;
        }
    }

    /// Of the writes of the epoch one is missing, or all but one are, or chance has it.
    fn lose(&mut self, writes: &Writes, epoch: &Range<usize>, chance: &mut Chance) {
        let all: Vec<usize> = epoch
            .clone()
            .filter(|at| writes.entries.get(*at).is_some_and(Entry::changes))
            .collect();
        let chosen = chance.one_of(&all).copied().unwrap_or_default();
        // The flush at its end has not come to an end, or nothing would be missing.
        self.entries = all.last().map_or(epoch.end, |last| last + 1);
        let how = chance.below(3);
        self.lost = all
            .into_iter()
            .filter(|at| match how {
                0 => *at == chosen,
                1 => *at != chosen,
                _ => chance.coin(),
            })
            .collect();
    }

    /// The states that the TPM can be in with this disk.
    pub fn possible(&self, writes: &Writes, clear: Option<Clear>) -> Vec<Tpm> {
        let Some(clear) = clear else { return vec![Tpm::Before] };
        let mut possible = Vec::new();
        let last = (0..self.entries).rev().find(|at| !self.lost.contains(at));
        let reached = last.map_or(0, |last| last + 1) + usize::from(self.torn > 0);
        if reached <= clear.latest {
            possible.push(Tpm::Before);
        }
        // The power may have gone as late as at the end of the epoch.
        let floor = if self.lost.is_empty() { reached } else { self.entries };
        if writes.epoch_of(floor) >= clear.earliest {
            possible.push(Tpm::After);
        }
        possible
    }

    /// What the disk has of an entry: so many bytes of it, from its start.
    pub fn kept(&self, index: usize, entry: &Entry) -> u64 {
        if self.lost.contains(&index)
            || (entry.what == What::Discard && self.discards == Discards::Ignored)
        {
            0
        } else if index < self.entries {
            entry.length
        } else if index == self.entries {
            self.torn
        } else {
            0
        }
    }
}

/// Somewhere after the first entry of an epoch, and at most after its last.
fn within(epoch: &Range<usize>, chance: &mut Chance) -> usize {
    epoch.start + 1 + chance.index(epoch.len()).unwrap_or_default()
}

/// The epochs with a write in this part: each ends after the entry that closes it.
fn epochs(entries: &[Entry], part: Range<usize>) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut start = part.start;
    let end = part.end.min(entries.len());
    for (index, entry) in entries.iter().enumerate().take(end).skip(part.start) {
        if entry.closes_epoch() || index + 1 == end {
            let epoch = start..index + 1;
            if entries.get(epoch.clone()).unwrap_or_default().iter().any(Entry::changes) {
                found.push(epoch);
            }
            start = index + 1;
        }
    }
    found
}

impl fmt::Display for Point {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", self.entries)?;
        if self.torn > 0 {
            write!(out, "+{}", self.torn)?;
        }
        for lost in &self.lost {
            write!(out, "-{lost}")?;
        }
        if self.discards == Discards::Ignored {
            write!(out, "~")?;
        }
        let tpm = match self.tpm {
            Tpm::Before => "before",
            Tpm::After => "after",
        };
        write!(out, "/{tpm}")
    }
}

impl FromStr for Point {
    type Err = Failure;

    fn from_str(text: &str) -> Outcome<Self> {
        let what = || format!("reading the point `{text}`");
        let (disk, tpm) = text.split_once('/').doing(what())?;
        let tpm = match tpm {
            "before" => Tpm::Before,
            "after" => Tpm::After,
            _ => return Err(Failure::new(what())),
        };
        let ignored = disk.strip_suffix('~');
        let discards = if ignored.is_some() { Discards::Ignored } else { Discards::Zeroed };
        let mut numbers = ignored.unwrap_or(disk).split('-');
        let place = numbers.next().doing(what())?;
        let (entries, torn) = place.split_once('+').unwrap_or((place, "0"));
        Ok(Self {
            entries: entries.parse().doing(what())?,
            torn: torn.parse().doing(what())?,
            lost: numbers.map(|number| number.parse().doing(what())).collect::<Outcome<_>>()?,
            discards,
            tpm,
        })
    }
}
