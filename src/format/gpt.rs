//! GUID partition tables (UEFI 2.10 §5.3): both copies, parsed, mended and edited in memory.
//! Side: both. Pure: the caller reads and writes the bytes.
//!
//! The `gpt` crate is the codec of one copy; it is never given the disk. As a writer it renumbers
//! partitions and leaves tables that nothing reads when it is cut short, so what is written, and in
//! which order, is decided here and in `apply`.

use std::io::{self, Read, Seek, SeekFrom, Write};

use gpt::disk::LogicalBlockSize;
use gpt::header::{Header, HeaderError};
use uuid::Uuid;

/// UEFI asks for at least 128 entries of 128 bytes; nobody writes more than this.
const MAX_ENTRIES: u32 = 1024;
const ENTRY_BYTES: u32 = 128;
/// Entries and header of one copy are held in memory together; some boards keep a boot loader of
/// a few hundred KiB between them.
const MAX_GAP_BYTES: u64 = 8 * 1024 * 1024;
/// The header fields defined by UEFI 2.10; the crate's checksum covers just these.
const HEADER_BYTES: u32 = 92;

/// Which of the two copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Copy {
    /// At LBA 1.
    Primary,
    /// At the last LBA, or where the primary says.
    Backup,
}

impl Copy {
    /// The other one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Primary => Self::Backup,
            Self::Backup => Self::Primary,
        }
    }
}

impl std::fmt::Display for Copy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Primary => "primary",
            Self::Backup => "backup",
        })
    }
}

/// One used entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Partition number, from 1: the slot in the table.
    pub number: u32,
    /// Partition type GUID.
    pub type_guid: Uuid,
    /// Unique partition GUID.
    pub guid: Uuid,
    /// First LBA.
    pub first_lba: u64,
    /// Last LBA, inclusive.
    pub last_lba: u64,
    /// Partition name.
    pub label: String,
}

/// One valid copy of the table: signature, both checksums, its own place and its ranges are right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    header: Header,
    array: Vec<u8>,
    sector: SectorBytes,
    /// What the array says; read once, when the copy was checked.
    entries: Vec<Entry>,
}

/// Logical sector size: 512 or 4096 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SectorBytes(LogicalBlockSize);

impl SectorBytes {
    /// None when the size is neither 512 nor 4096.
    #[must_use]
    pub fn new(bytes: u64) -> Option<Self> {
        LogicalBlockSize::try_from(bytes).ok().map(Self)
    }

    /// The size in bytes.
    #[must_use]
    pub fn get(self) -> u64 {
        self.0.as_u64()
    }
}

/// A run of bytes on the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Byte offset from the start of the disk.
    pub offset: u64,
    /// What is, or shall be, there.
    pub bytes: Vec<u8>,
}

/// Why a copy is not valid.
#[derive(Debug)]
pub struct BadCopy(String);

impl std::fmt::Display for BadCopy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BadCopy {}

impl From<HeaderError> for BadCopy {
    fn from(error: HeaderError) -> Self {
        Self(error.to_string())
    }
}

impl From<io::Error> for BadCopy {
    fn from(error: io::Error) -> Self {
        Self(crate::error::chain(&error))
    }
}

/// Where the entry array of a copy lies, as its header sector says. Nothing but the header is
/// checked; the length is bounded.
pub struct Located {
    header: Header,
    sector: SectorBytes,
    /// Byte offset of the entry array.
    pub array_offset: u64,
    /// Length of the entry array in bytes.
    pub array_bytes: usize,
    /// LBA of the other copy's header.
    pub other_lba: u64,
}

/// Checks the header that was read at `lba` on a disk of `size_bytes`.
pub fn locate(
    header_sector: &[u8],
    lba: u64,
    sector: SectorBytes,
    size_bytes: u64,
) -> Result<Located, BadCopy> {
    let bad = |why: String| Err(BadCopy(why));
    // The crate reads a primary header at LBA 1: put this sector there.
    let mut window = Window { base: sector.get(), bytes: header_sector.to_vec(), position: 0 };
    let header = gpt::header::read_header_from_arbitrary_device(&mut window, sector.0)?;
    let sectors = size_bytes / sector.get();
    if header.current_lba != lba {
        return bad(format!("the header at LBA {lba} says that it is at {}", header.current_lba));
    }
    if header.header_size_le != HEADER_BYTES {
        return bad(format!("a header of {} bytes is not supported", header.header_size_le));
    }
    if header.part_size != ENTRY_BYTES || header.num_parts == 0 || header.num_parts > MAX_ENTRIES {
        return bad(format!(
            "{} entries of {} bytes are not supported",
            header.num_parts, header.part_size
        ));
    }
    let array_bytes = u64::from(header.num_parts) * u64::from(ENTRY_BYTES);
    let array_sectors = array_bytes.div_ceil(sector.get());
    let array_end = header.part_start.checked_add(array_sectors);
    if header.part_start < 2 || array_end.is_none_or(|end| end > sectors) {
        return bad(format!("the entries at LBA {} are outside the disk", header.part_start));
    }
    let gap = header.part_start.abs_diff(lba) * sector.get();
    if gap > MAX_GAP_BYTES {
        return bad(format!("entries {gap} bytes away from their header are not supported"));
    }
    if header.first_usable > header.last_usable
        || header.last_usable >= sectors
        || header.backup_lba >= sectors
    {
        return bad("the usable range or the other header is outside the disk".to_owned());
    }
    // Else one would be written over the other, or where something else begins.
    if header.backup_lba == 0 || (lba == 1) == (header.backup_lba == 1) {
        return bad(format!(
            "the header at LBA {lba} says that the other one is at {}",
            header.backup_lba
        ));
    }
    let is_usable = |start: u64, sectors: u64| {
        start <= header.last_usable && start.saturating_add(sectors) > header.first_usable
    };
    let is_over_header = (header.part_start..header.part_start + array_sectors).contains(&lba);
    if is_usable(lba, 1) || is_usable(header.part_start, array_sectors) || is_over_header {
        return bad("the table lies over itself, or where partitions may be".to_owned());
    }
    Ok(Located {
        sector,
        array_offset: header.part_start * sector.get(),
        array_bytes: usize::try_from(array_bytes).map_err(|e| BadCopy(e.to_string()))?,
        other_lba: header.backup_lba,
        header,
    })
}

impl Located {
    /// Checks the entry array and completes the copy.
    pub fn complete(self, array: Vec<u8>) -> Result<Table, BadCopy> {
        let entries = entries_in(&self.header, &array, self.sector)?;
        let table = Table { header: self.header, array, sector: self.sector, entries };
        for entry in &table.entries {
            if entry.first_lba > entry.last_lba
                || entry.first_lba < table.header.first_usable
                || entry.last_lba > table.header.last_usable
            {
                return Err(BadCopy(format!(
                    "partition {} reaches from LBA {} to {}, outside the usable range",
                    entry.number, entry.first_lba, entry.last_lba
                )));
            }
        }
        Ok(table)
    }
}

impl Table {
    /// The disk's GUID.
    #[must_use]
    pub fn disk_guid(&self) -> Uuid {
        self.header.disk_guid
    }

    /// The LBAs that partitions may use, first and last.
    #[must_use]
    pub fn usable(&self) -> (u64, u64) {
        (self.header.first_usable, self.header.last_usable)
    }

    /// Logical sector size.
    #[must_use]
    pub fn sector(&self) -> SectorBytes {
        self.sector
    }

    /// The used entries, by number.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Whether both describe the same partitions of the same disk.
    #[must_use]
    pub fn same_content(&self, other: &Self) -> bool {
        self.array == other.array && self.header.disk_guid == other.header.disk_guid
    }

    /// Zeroes the entry in slot `number`, from 1. All other slots keep their bytes and numbers.
    pub fn remove(&mut self, number: u32) {
        let start = (number as usize).saturating_sub(1).saturating_mul(ENTRY_BYTES as usize);
        if let Some(slot) = self.array.get_mut(start..start + ENTRY_BYTES as usize) {
            slot.fill(0);
        }
        self.entries.retain(|entry| entry.number != number);
    }

    /// This table as the other copy: the same entries, the places exchanged. The primary's entries
    /// start at LBA 2, the backup's end right before its header. An error where that would be inside
    /// the usable range (partitions, or what a boot loader keeps there, are not ours to overwrite), or
    /// over this copy.
    pub fn as_other_copy(&self) -> Result<Self, BadCopy> {
        let mut other = self.clone();
        other.header.current_lba = self.header.backup_lba;
        other.header.backup_lba = self.header.current_lba;
        let array_sectors = (self.array.len() as u64).div_ceil(self.sector.get());
        other.header.part_start = if other.header.current_lba < other.header.backup_lba {
            other.header.current_lba + 1
        } else {
            other.header.current_lba.saturating_sub(array_sectors)
        };
        let (first, last) = self.usable();
        let runs = |table: &Self| {
            [(table.header.current_lba, 1), (table.header.part_start, array_sectors)]
        };
        let is_apart = |(a, length): (u64, u64), (b, other_length): (u64, u64)| {
            a.saturating_add(length) <= b || b.saturating_add(other_length) <= a
        };
        let taken = [(0, 1), (first, (last - first).saturating_add(1))].into_iter();
        let [header, array] = runs(&other);
        let mut taken = taken.chain(runs(self));
        if is_apart(header, array) && taken.all(|run| is_apart(run, header) && is_apart(run, array))
        {
            Ok(other)
        } else {
            Err(BadCopy("there is no room for its other copy".to_owned()))
        }
    }

    /// The bytes of this copy as contiguous runs, in the order in which they are to be written: one
    /// run where entries and header touch, else the entries first and the header that vouches for
    /// them last. What lies between them is not ours (boot loaders live there).
    pub fn encode(&self) -> Result<Vec<Extent>, BadCopy> {
        let sector_bytes = self.sector.get();
        let array_offset = self.header.part_start * sector_bytes;
        let header_offset = self.header.current_lba * sector_bytes;
        let array_span = (self.array.len() as u64).div_ceil(sector_bytes) * sector_bytes;
        let base = array_offset.min(header_offset);
        let end = (array_offset + array_span).max(header_offset + sector_bytes);
        let span = usize::try_from(end - base).map_err(|e| BadCopy(e.to_string()))?;
        let mut window = Window { base, bytes: vec![0; span], position: 0 };
        window.put(array_offset, &self.array)?;
        let mut header = self.header.clone();
        if header.current_lba < header.backup_lba {
            header.write_primary(&mut window, self.sector.0)?;
        } else {
            header.write_backup(&mut window, self.sector.0)?;
        }
        if end - base == array_span + sector_bytes {
            return Ok(vec![Extent { offset: base, bytes: window.bytes }]);
        }
        Ok(vec![window.cut(array_offset, array_span)?, window.cut(header_offset, sector_bytes)?])
    }
}

/// The used entries of an array that its header vouches for.
fn entries_in(header: &Header, array: &[u8], sector: SectorBytes) -> Result<Vec<Entry>, BadCopy> {
    let mut header = header.clone();
    header.part_start = 0;
    let mut window = Window { base: 0, bytes: array.to_vec(), position: 0 };
    let partitions = gpt::partition::file_read_partitions(&mut window, &header, sector.0)?;
    let used = partitions.into_iter().filter(|(_, p)| !p.part_type_guid.guid.is_nil());
    let entry = |(number, p): (u32, gpt::partition::Partition)| Entry {
        number,
        type_guid: p.part_type_guid.guid,
        guid: p.part_guid,
        first_lba: p.first_lba,
        last_lba: p.last_lba,
        label: p.name,
    };
    Ok(used.map(entry).collect())
}

/// A slice of the disk in memory, at its real offsets.
struct Window {
    base: u64,
    bytes: Vec<u8>,
    position: u64,
}

impl Window {
    fn put(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.position = offset;
        self.write_all(bytes)
    }

    fn cut(&mut self, offset: u64, length: u64) -> io::Result<Extent> {
        let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
        self.position = offset;
        self.read_exact(&mut bytes)?;
        Ok(Extent { offset, bytes })
    }

    fn start(&self) -> io::Result<usize> {
        self.position
            .checked_sub(self.base)
            .and_then(|start| usize::try_from(start).ok())
            .filter(|start| *start <= self.bytes.len())
            .ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))
    }
}

impl Read for Window {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let start = self.start()?;
        let available = self.bytes.get(start..).unwrap_or_default();
        let length = available.len().min(buffer.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..length), available.get(..length)) {
            to.copy_from_slice(from);
        }
        self.position += length as u64;
        Ok(length)
    }
}

impl Write for Window {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let start = self.start()?;
        let room = self.bytes.get_mut(start..).unwrap_or_default();
        let length = room.len().min(bytes.len());
        if let (Some(to), Some(from)) = (room.get_mut(..length), bytes.get(..length)) {
            to.copy_from_slice(from);
        }
        self.position += length as u64;
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Window {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::Current(delta) => self.position.checked_add_signed(delta),
            SeekFrom::End(_) => None,
        };
        self.position = target.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECTORS: u64 = 4096;

    fn disk(partitions: u32) -> Vec<u8> {
        let sector = LogicalBlockSize::Lb512;
        let mut disk = vec![0; (SECTORS * 512) as usize];
        let mut table = gpt::GptConfig::new()
            .writable(true)
            .logical_block_size(sector)
            .create_from_device(std::io::Cursor::new(&mut disk), Some(Uuid::from_u128(1)))
            .unwrap();
        for number in 1..=partitions {
            table
                .add_partition(&format!("p{number}"), 1024, gpt::partition_types::BASIC, 0, None)
                .unwrap();
        }
        table.write().unwrap();
        disk
    }

    fn read(disk: &[u8], lba: u64) -> Result<Table, BadCopy> {
        let sector = SectorBytes::new(512).unwrap();
        let at = (lba * 512) as usize;
        let located = locate(&disk[at..at + 512], lba, sector, disk.len() as u64)?;
        let at = located.array_offset as usize;
        let array = disk[at..at + located.array_bytes].to_vec();
        located.complete(array)
    }

    fn write(disk: &mut [u8], table: &Table) {
        for extent in table.encode().unwrap() {
            let at = extent.offset as usize;
            disk[at..at + extent.bytes.len()].copy_from_slice(&extent.bytes);
        }
    }

    #[test]
    fn encoding_what_was_read_changes_no_byte() {
        let original = disk(5);
        let mut copy = original.clone();
        for lba in [1, SECTORS - 1] {
            let table = read(&original, lba).unwrap();
            assert_eq!(table.entries().len(), 5);
            write(&mut copy, &table);
        }
        assert!(original == copy);
    }

    #[test]
    fn removing_the_middle_keeps_all_other_numbers() {
        let mut disk = disk(5);
        let before = read(&disk, 1).unwrap().entries().to_vec();
        for lba in [SECTORS - 1, 1] {
            let mut table = read(&disk, lba).unwrap();
            table.remove(2);
            table.remove(3);
            write(&mut disk, &table);
        }
        for lba in [1, SECTORS - 1] {
            let after = read(&disk, lba).unwrap().entries().to_vec();
            let kept: Vec<_> = before.iter().filter(|e| ![2, 3].contains(&e.number)).collect();
            assert_eq!(after.iter().collect::<Vec<_>>(), kept);
        }
    }

    #[test]
    fn either_copy_heals_the_other_byte_for_byte() {
        let good = disk(3);
        for (bad, from) in [(1, SECTORS - 1), (SECTORS - 1, 1)] {
            let mut broken = good.clone();
            broken[(bad * 512) as usize..][..512].fill(0xa5);
            assert!(read(&broken, bad).is_err());
            let healed = read(&broken, from).unwrap().as_other_copy().unwrap();
            write(&mut broken, &healed);
            assert!(broken == good, "LBA {bad} from {from}");
        }
    }

    #[test]
    fn no_copy_is_made_over_the_other() {
        let table = read(&disk(2), SECTORS - 1).unwrap();
        assert!(table.as_other_copy().is_ok());
        // Its entries would be before the disk, over the first header, or over its entries.
        let mut primary = read(&disk(2), 1).unwrap();
        for lba in [2, 3, 20, 33, 34, 65] {
            primary.header.backup_lba = lba;
            assert!(primary.as_other_copy().is_err(), "{lba}");
        }
    }

    #[test]
    fn what_lies_between_header_and_entries_is_not_written() {
        let mut table = read(&disk(2), 1).unwrap();
        table.header.part_start = 64;
        let extents = table.encode().unwrap();
        assert_eq!(extents.iter().map(|e| e.offset).collect::<Vec<_>>(), [64 * 512, 512]);
        assert_eq!(extents[1].bytes.len(), 512);
    }

    #[test]
    fn hostile_headers_are_errors() {
        let good = disk(2);
        let forged = |change: fn(&mut Header)| {
            let mut disk = good.clone();
            let mut header = read(&disk, 1).unwrap().header;
            change(&mut header);
            let mut window = Window { base: 0, bytes: disk.clone(), position: 0 };
            // The crate may refuse to write such a header at all; that is fine too.
            if header.write_primary(&mut window, LogicalBlockSize::Lb512).is_ok() {
                disk = window.bytes;
            } else {
                disk[512..1024].fill(0);
            }
            read(&disk, 1)
        };
        assert!(forged(|_| ()).is_ok());
        assert!(forged(|h| h.num_parts = 0).is_err());
        assert!(forged(|h| h.num_parts = 4000).is_err());
        assert!(forged(|h| h.part_size = 256).is_err());
        assert!(forged(|h| h.header_size_le = 512).is_err());
        assert!(forged(|h| h.part_start = 1).is_err());
        assert!(forged(|h| h.last_usable = u64::MAX).is_err());
        assert!(forged(|h| h.first_usable = h.last_usable + 1).is_err());
        assert!(forged(|h| h.backup_lba = SECTORS).is_err());
        // It would be its own other copy, or that would be the boot sector.
        assert!(forged(|h| h.backup_lba = 0).is_err());
        assert!(forged(|h| h.backup_lba = 1).is_err());
        // What is written there would be written over a partition, or over the header.
        assert!(forged(|h| h.first_usable = 1).is_err());
        assert!(forged(|h| h.first_usable = 33).is_err());
        // The first partition now begins before the usable range.
        assert!(forged(|h| h.first_usable += 1000).is_err());
    }
}
