//! The log of what a machine has written to its disk, in the format of Linux's
//! dm-log-writes: QEMU's driver blklogwrites makes it, in the order in which the
//! writes ended, those included that nobody has flushed.

use crate::failure::{Doing, Failure, Outcome};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

const MAGIC: u64 = 0x006a_7366_7773_6872;
const VERSION: u64 = 1;
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;
const KNOWN: u64 = FLUSH | FUA | DISCARD;
/// The disk's and the log's.
pub const SECTOR: u64 = 512;

/// What one entry did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// Data, which lies at this place of the log.
    Write {
        at: u64,
    },
    Discard,
    /// Nothing but what its flag says.
    Flush,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    pub what: What,
    /// On the disk, in bytes.
    pub offset: u64,
    pub length: u64,
    /// Everything before it is durable.
    pub flush: bool,
    /// It is durable itself.
    pub fua: bool,
}

impl Entry {
    /// Whether what comes after it finds everything up to it durable. A write with
    /// FUA is taken for that too: it closes its own epoch.
    pub fn closes_epoch(&self) -> bool {
        self.flush || self.fua
    }

    pub fn changes(&self) -> bool {
        self.what != What::Flush
    }

    pub fn touches(&self, start: u64, end: u64) -> bool {
        self.changes() && self.offset < end && start < self.offset + self.length
    }
}

#[derive(Debug)]
pub struct Writes {
    file: File,
    pub entries: Vec<Entry>,
}

/// How many entries a log has so far, of a machine that may still be on.
pub fn count(path: &Path) -> Outcome<usize> {
    let file = File::open(path).doing("opening a log of writes")?;
    match superblock(&file) {
        Ok(count) => Ok(count),
        // QEMU makes it with the first entry.
        Err(_) if file.metadata()?.len() == 0 => Ok(0),
        Err(cause) => Err(cause),
    }
}

fn superblock(file: &File) -> Outcome<usize> {
    let [magic, version, entries, sector] = four(file, 0)?;
    // The size of a sector has four bytes.
    if magic != MAGIC || version != VERSION || sector & 0xFFFF_FFFF != SECTOR {
        return Err(Failure::new("no log of writes, or one of another kind"));
    }
    usize::try_from(entries).doing("the number of entries")
}

fn four(file: &File, at: u64) -> Outcome<[u64; 4]> {
    let mut bytes = [0_u8; 32];
    file.read_exact_at(&mut bytes, at).doing(format!("reading a log of writes at {at}"))?;
    let mut numbers = [0; 4];
    for (number, bytes) in numbers.iter_mut().zip(bytes.chunks_exact(8)) {
        *number = bytes.iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte));
    }
    Ok(numbers)
}

impl Writes {
    pub fn open(path: &Path) -> Outcome<Self> {
        let file = File::open(path).doing("opening a log of writes")?;
        let count = superblock(&file)?;
        let mut entries = Vec::with_capacity(count);
        let mut at = SECTOR;
        for index in 0..count {
            let (entry, next) = entry_at(&file, at).doing(format!("entry {index}"))?;
            entries.push(entry);
            at = next;
        }
        // A machine that was killed may have begun one more; what is counted must be there.
        if at > file.metadata()?.len() {
            return Err(Failure::new("a log of writes is shorter than it says"));
        }
        Ok(Self { file, entries })
    }

    /// The data of a write, or a part of it.
    pub fn data(&self, entry: &Entry, from: u64, length: u64) -> Outcome<Vec<u8>> {
        let What::Write { at } = entry.what else {
            return Err(Failure::new("an entry without data"));
        };
        let mut bytes = vec![0; usize::try_from(length).doing("a length")?];
        self.file.read_exact_at(&mut bytes, at + from).doing("reading a logged write")?;
        Ok(bytes)
    }

    /// Where the epoch of an entry begins: after the last one before it that closed one.
    pub fn epoch_of(&self, index: usize) -> usize {
        let before = self.entries.iter().take(index);
        before.rev().position(Entry::closes_epoch).map_or(0, |back| index - back)
    }

    /// The first entry whose data, within this part of the disk, holds these bytes.
    pub fn first_with(&self, wanted: &[u8], start: u64, end: u64) -> Outcome<Option<usize>> {
        for (index, entry) in self.entries.iter().enumerate() {
            if matches!(entry.what, What::Write { .. }) && entry.touches(start, end) {
                let data = self.data(entry, 0, entry.length)?;
                if crate::seeds::find(&data, wanted).is_some() {
                    return Ok(Some(index));
                }
            }
        }
        Ok(None)
    }
}

/// The entry at this place of the log, and the place of the next one.
fn entry_at(file: &File, at: u64) -> Outcome<(Entry, u64)> {
    let [sector, sectors, flags, data] = four(file, at)?;
    if flags & !KNOWN != 0 || data != 0 {
        return Err(Failure::new(format!("unknown flags {flags:#x} or data of {data} bytes")));
    }
    let at = at + SECTOR;
    let length = sectors * SECTOR;
    let (what, next) = match (flags & DISCARD != 0, sectors) {
        (true, _) => (What::Discard, at),
        (false, 0) => (What::Flush, at),
        (false, _) => (What::Write { at }, at + length),
    };
    let (flush, fua) = (flags & FLUSH != 0, flags & FUA != 0);
    Ok((Entry { what, offset: sector * SECTOR, length, flush, fua }, next))
}
