//! Both copies of a disk's partition table, read and written in the order that survives a cut.
//! Side: both read; the initrd writes.

use crate::error::{Doing, Error, Result};
use crate::format::gpt::{BadCopy, Copy, SectorBytes, Table, locate};
use crate::platform::Disk;

/// Both copies, each checked by itself.
pub struct Tables {
    /// At LBA 1.
    pub primary: Result<Table, BadCopy>,
    /// Where the primary says; at the last LBA when there is no valid primary.
    pub backup: Result<Table, BadCopy>,
}

impl Tables {
    /// The copy, where it is valid.
    #[must_use]
    pub fn get(&self, copy: Copy) -> Option<&Table> {
        match copy {
            Copy::Primary => self.primary.as_ref().ok(),
            Copy::Backup => self.backup.as_ref().ok(),
        }
    }

    /// That neither copy is valid, and why. It may be another one at the next boot, for a disk that
    /// cannot be read has no valid copy either.
    #[must_use]
    pub fn none_valid(&self, disk: &dyn Disk) -> Error {
        let why = |copy: &Result<Table, BadCopy>| match copy {
            Ok(_) => "valid".to_owned(),
            Err(why) => why.to_string(),
        };
        let (primary, backup) = (why(&self.primary), why(&self.backup));
        Error::new(format!("{} has no valid partition table", disk.name()))
            .because(format!("primary: {primary}; backup: {backup}"))
    }

    /// Says which copy is not valid, and why: with the other one the work goes on.
    pub fn tell_bad(&self, disk: &dyn Disk) {
        for (name, copy) in [("primary", &self.primary), ("backup", &self.backup)] {
            if let Err(why) = copy {
                log::warn!("the {name} partition table of {} is not valid: {why}", disk.name());
            }
        }
    }
}

/// Reads both copies. Changes nothing. An unreadable disk is an error, a bad copy is a fact.
pub fn read(disk: &dyn Disk) -> Result<Tables> {
    let what = || format!("cannot read the partition table of {}", disk.name());
    let sector = SectorBytes::new(disk.sector_bytes())
        .ok_or_else(|| std::io::Error::other("sectors of neither 512 nor 4096 bytes"))
        .doing(what)?;
    let last_lba = (disk.size_bytes() / sector.get()).saturating_sub(1);
    let primary = read_copy(disk, sector, 1);
    let backup_lba = primary.as_ref().map_or(last_lba, |(_, other)| *other);
    let backup = read_copy(disk, sector, backup_lba);
    Ok(Tables { primary: primary.map(|(table, _)| table), backup: backup.map(|(table, _)| table) })
}

fn read_copy(disk: &dyn Disk, sector: SectorBytes, lba: u64) -> Result<(Table, u64), BadCopy> {
    // A sector that cannot be read makes this copy a bad one; the other may be whole.
    let mut header = vec![0; usize::try_from(sector.get()).map_err(std::io::Error::other)?];
    disk.read(lba * sector.get(), &mut header)?;
    let located = locate(&header, lba, sector, disk.size_bytes())?;
    let mut array = vec![0; located.array_bytes];
    disk.read(located.array_offset, &mut array)?;
    let other = located.other_lba;
    located.complete(array).map(|table| (table, other))
}

/// Writes one copy: durable, and read back from the medium, when this returns. Writes nothing when
/// it is there already.
pub fn write(disk: &mut dyn Disk, table: &Table) -> Result<()> {
    let what = format!("cannot write the partition table of {}", disk.name());
    let extents = table.encode().doing(|| what.clone())?;
    for extent in &extents {
        let mut present = vec![0; extent.bytes.len()];
        disk.read(extent.offset, &mut present).doing(|| what.clone())?;
        if present == extent.bytes {
            continue;
        }
        disk.write(extent.offset, &extent.bytes).doing(|| what.clone())?;
        disk.flush().doing(|| what.clone())?;
        disk.forget_cache().doing(|| what.clone())?;
        disk.read(extent.offset, &mut present).doing(|| what.clone())?;
        if present != extent.bytes {
            return Err(crate::error::Error::new(what)
                .because("what was read back is not what was written"));
        }
    }
    Ok(())
}
