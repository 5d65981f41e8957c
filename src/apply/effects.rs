//! The steps that change the disk and the ESP, one function each. All are safe to repeat, and write
//! nothing that is already as it should be.
//! Side: initrd. Touches the disk.

use std::time::{Duration, Instant};

use zeroize::Zeroizing;

use super::table;
use crate::error::{Doing, Error, Result, chain};
use crate::format::gpt::{Copy, Table};
use crate::format::sha256_hex;
use crate::plan::erase::regions;
use crate::platform::{Disk, Esp};
use crate::profile::Erase;
use crate::request::BoundPartition;

/// One write, one read.
const CHUNK_BYTES: u64 = 1024 * 1024;
/// So much is written between two flushes: enough to keep a slow disk busy, and little enough that
/// progress is true.
const FLUSH_BYTES: u64 = 4 * CHUNK_BYTES;
/// Progress is shown this often.
const SHOW_EVERY: Duration = Duration::from_secs(2);

/// Writes a bad copy of the table anew from the good one. Does nothing when both are valid.
pub fn heal(disk: &mut dyn Disk, bad: Copy) -> Result<()> {
    let tables = table::read(disk)?;
    tables.tell_bad(disk);
    match (tables.get(bad), tables.get(bad.other())) {
        (Some(_), _) => Ok(()),
        (None, Some(good)) => {
            let other = good.as_other_copy().doing(|| cannot_heal(disk)).map_err(Error::hold)?;
            table::write(disk, &other)
        }
        (None, None) => Err(tables.none_valid(disk)),
    }
}

fn cannot_heal(disk: &dyn Disk) -> String {
    format!("cannot make the bad partition table of {} anew", disk.name())
}

/// The seed partition gets `archive`, and zeros up to its end.
pub fn seed(
    disk: &mut dyn Disk,
    partition: &BoundPartition,
    archive: &[u8],
    sha256: &str,
) -> Result<()> {
    let what = || format!("cannot write the seeds to partition {}", partition.number);
    if sha256_hex(archive) != sha256 {
        return Err(Error::new(what()).because("the rendered archive is damaged").hold());
    }
    let (offset, length) = place(disk, partition);
    let archive_bytes = archive.len() as u64;
    if archive_bytes > length {
        return Err(Error::new(what()).because("it is too small").hold());
    }
    let mut present = Zeroizing::new(vec![0; archive.len()]);
    disk.read(offset, &mut present).doing(what)?;
    if present.as_slice() != archive {
        disk.write(offset, archive).doing(what)?;
    }
    // It flushes, which makes the archive durable as well.
    zero(disk, offset + archive_bytes, length - archive_bytes, &mut |_| ()).doing(what)?;
    disk.forget_cache().doing(what)?;
    disk.read(offset, &mut present).doing(what)?;
    if present.as_slice() == archive {
        Ok(())
    } else {
        Err(Error::new(what()).because("what was read back is not what was written"))
    }
}

/// Removes the listed paths.
pub fn esp(esp: &mut dyn Esp, paths: &[String]) -> Result<()> {
    for path in paths {
        esp.remove_path(path).doing(|| format!("cannot remove {path} from the ESP"))?;
    }
    Ok(())
}

/// Destroys a partition: key slots first, headers after them, each region durable and read back
/// before the next; then, as best effort, all of it is discarded.
pub fn wipe(disk: &mut dyn Disk, partition: &BoundPartition, erase: Erase) -> Result<()> {
    let (offset, length) = place(disk, partition);
    let label = &partition.label;
    let regions = regions(partition, disk.sector_bytes(), erase);
    let total: u64 = regions.iter().map(|region| region.bytes).sum();
    let mut before = 0;
    let mut shown = Instant::now();
    for region in &regions {
        let mut show = |done: u64| {
            if shown.elapsed() >= SHOW_EVERY {
                shown = Instant::now();
                let percent = (before + done) * 100 / total.max(1);
                log::info!("wipe {label}: {percent}% ({})", region.what);
            }
        };
        zero(disk, offset + region.offset, region.bytes, &mut show)
            .doing(|| format!("cannot overwrite the {} of partition {label}", region.what))?;
        before += region.bytes;
    }
    if erase != Erase::Keys {
        match disk.discard(offset, length) {
            Ok(true) => log::info!("wipe {label}: discarded"),
            Ok(false) => log::info!("wipe {label}: the disk does not discard"),
            Err(error) => log::warn!("wipe {label}: {}", chain(&error)),
        }
    }
    Ok(())
}

/// The entries leave both tables, backup half first; a copy that a cut made bad is made anew. Then
/// the kernel forgets the partitions.
pub fn gpt(disk: &mut dyn Disk, partitions: &[BoundPartition]) -> Result<()> {
    let tables = table::read(disk)?;
    tables.tell_bad(disk);
    let without = |table: &Table| -> Result<Table> {
        let mut without = table.clone();
        for entry in table.entries() {
            let Some(recorded) = partitions.iter().find(|p| p.number == entry.number) else {
                continue;
            };
            if entry.guid != recorded.guid {
                return Err(Error::new(format!(
                    "partition {} of {} is another one now",
                    entry.number,
                    disk.name()
                ))
                .hold());
            }
            without.remove(entry.number);
        }
        Ok(without)
    };
    let primary = tables.get(Copy::Primary).map(without).transpose()?;
    let backup = tables.get(Copy::Backup).map(without).transpose()?;
    let backup = match (&primary, backup) {
        (_, Some(backup)) => backup,
        (Some(primary), None) => {
            primary.as_other_copy().doing(|| cannot_heal(disk)).map_err(Error::hold)?
        }
        (None, None) => return Err(tables.none_valid(disk)),
    };
    let primary = match primary {
        Some(primary) => primary,
        None => backup.as_other_copy().doing(|| cannot_heal(disk)).map_err(Error::hold)?,
    };
    if !primary.same_content(&backup) {
        let what = format!("the two partition tables of {} differ in more than this", disk.name());
        return Err(Error::new(what).hold());
    }
    table::write(disk, &backup)?;
    table::write(disk, &primary)?;
    for partition in partitions {
        // The table on the disk is what counts. A boot that went on would still see the partition,
        // so this is a failure, and the reboot that it brings is all that is missing.
        let number = partition.number;
        disk.drop_partition(number).doing(|| format!("the kernel keeps partition {number}"))?;
    }
    Ok(())
}

/// Byte offset and length of a partition.
fn place(disk: &dyn Disk, partition: &BoundPartition) -> (u64, u64) {
    let sectors = partition.last_lba.saturating_sub(partition.first_lba).saturating_add(1);
    (
        partition.first_lba.saturating_mul(disk.sector_bytes()),
        sectors.saturating_mul(disk.sector_bytes()),
    )
}

/// Makes a run of bytes zero: durable, and read back from the medium, when this returns.
fn zero(
    disk: &mut dyn Disk,
    offset: u64,
    length: u64,
    show: &mut dyn FnMut(u64),
) -> std::io::Result<()> {
    let zeros = vec![0; usize::try_from(CHUNK_BYTES.min(length)).map_err(std::io::Error::other)?];
    let mut unflushed = 0;
    for (at, zeros) in chunks(length, &zeros) {
        if !is_zero(disk, offset + at, zeros.len())? {
            disk.write(offset + at, zeros)?;
            unflushed += zeros.len() as u64;
        }
        if unflushed >= FLUSH_BYTES {
            disk.flush()?;
            unflushed = 0;
        }
        show(at);
    }
    disk.flush()?;
    disk.forget_cache()?;
    for (at, zeros) in chunks(length, &zeros) {
        if !is_zero(disk, offset + at, zeros.len())? {
            return Err(std::io::Error::other(format!(
                "{} zeros were written at byte {} and are not read back",
                zeros.len(),
                offset + at
            )));
        }
    }
    Ok(())
}

/// `length` bytes in pieces of at most `zeros`, with their offsets.
fn chunks(length: u64, zeros: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    let step = zeros.len().max(1);
    (0..length).step_by(step).map(move |at| {
        let rest = usize::try_from(length - at).unwrap_or(usize::MAX).min(step);
        (at, zeros.get(..rest).unwrap_or(zeros))
    })
}

fn is_zero(disk: &dyn Disk, offset: u64, length: usize) -> std::io::Result<bool> {
    // Old key material passes through here.
    let mut present = Zeroizing::new(vec![0; length]);
    disk.read(offset, &mut present)?;
    Ok(present.iter().all(|byte| *byte == 0))
}
