//! The seed partition seen from outside: a plain ustar archive at its start.

use crate::disk::Disk;
use crate::failure::{Doing, Outcome};
use std::collections::BTreeMap;
use std::io::Read;

pub const PARTITION: &str = "seed-data";

/// Entries by name, as the archive has them.
pub type Seeds = BTreeMap<String, Vec<u8>>;

/// The entries, and how long the archive is with its two end blocks.
pub fn read(disk: &Disk) -> Outcome<(Seeds, usize)> {
    let bytes = disk.bytes_of(&disk.part(PARTITION)?)?;
    let mut seeds = Seeds::new();
    let mut end = 0_u64;
    let mut archive = tar::Archive::new(bytes.as_slice());
    for entry in archive.entries().doing("reading the seeds")? {
        let mut entry = entry.doing("reading the seeds")?;
        let name = entry.path().doing("reading a seed's name")?.to_string_lossy().into_owned();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).doing("reading a seed")?;
        end = entry.raw_file_position() + (content.len() as u64).next_multiple_of(512);
        seeds.insert(name, content);
    }
    Ok((seeds, usize::try_from(end).doing("a length")? + 1024))
}

/// Replaces what is on the partition by these entries; the rest is zeroed.
pub fn write(disk: &Disk, seeds: &Seeds) -> Outcome {
    let part = disk.part(PARTITION)?;
    let mut archive = tar::Builder::new(Vec::new());
    for (name, content) in seeds {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o600);
        header.set_size(content.len() as u64);
        archive.append_data(&mut header, name, content.as_slice()).doing("packing a seed")?;
    }
    let mut bytes = archive.into_inner().doing("packing the seeds")?;
    bytes.resize(usize::try_from(part.length).doing("a length")?, 0);
    disk.write(part.start, &bytes)
}

/// Whether these bytes are anywhere on the partition.
pub fn holds(disk: &Disk, bytes: &[u8]) -> Outcome<bool> {
    let all = disk.bytes_of(&disk.part(PARTITION)?)?;
    Ok(find(&all, bytes).is_some())
}

/// Where a sequence first occurs. The first byte is searched for alone, since
/// almost all of a partition is zeroes.
pub fn find(all: &[u8], wanted: &[u8]) -> Option<usize> {
    let first = wanted.first()?;
    let mut from = 0;
    while let Some(at) = all.get(from..)?.iter().position(|byte| byte == first) {
        if all.get(from + at..)?.starts_with(wanted) {
            return Some(from + at);
        }
        from += at + 1;
    }
    None
}
