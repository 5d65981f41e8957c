//! The FAT of an ESP as a table of numbers: how it becomes full without writing as
//! much as it holds, and has room again.

use crate::disk::Disk;
use crate::failure::{Doing, Failure, Outcome};

/// A cluster that is damaged, in FAT32: nobody allocates it.
const BAD: u32 = 0x0FFF_FFF7;
/// The highest four bits of an entry belong to nobody.
const MASK: u32 = 0x0FFF_FFFF;

/// Takes every free cluster away. Returns how many there were.
pub fn fill(disk: &Disk) -> Outcome<usize> {
    exchange(disk, 0, BAD)
}

/// Gives back what `fill` took. Returns how many that are.
pub fn empty(disk: &Disk) -> Outcome<usize> {
    exchange(disk, BAD, 0)
}

/// Puts one value in the place of another, in each copy of the table.
fn exchange(disk: &Disk, old: u32, new: u32) -> Outcome<usize> {
    let esp = disk.part("esp")?;
    let boot = disk.read(esp.start, 512)?;
    let number = |at: usize, length: usize| -> Outcome<u64> {
        let bytes = boot.get(at..at + length).doing("reading the ESP's first sector")?;
        Ok(bytes.iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte)))
    };
    let (sector, per_cluster) = (number(11, 2)?, number(13, 1)?);
    let (reserved, copies) = (number(14, 2)?, number(16, 1)?);
    let (sectors, table) = (number(32, 4)?, number(36, 4)?);
    if number(22, 2)? != 0 || sector == 0 || per_cluster == 0 {
        return Err(Failure::new("the ESP is not FAT32"));
    }
    let clusters = (sectors - reserved - copies * table) / per_cluster;
    let mut changed = 0;
    for copy in 0..copies {
        let at = esp.start + (reserved + copy * table) * sector;
        let mut bytes = disk.read(at, (clusters + 2) * 4)?;
        changed = 0;
        for entry in bytes.chunks_exact_mut(4).skip(2) {
            let value = entry.iter().rev().fold(0, |all, byte| all << 8 | u32::from(*byte));
            if value & MASK == old {
                entry.copy_from_slice(&new.to_le_bytes());
                changed += 1;
            }
        }
        disk.write(at, &bytes)?;
    }
    Ok(changed)
}
