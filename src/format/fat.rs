//! The file allocation table of FAT12, FAT16 and FAT32, as far as it takes to follow a chain of
//! clusters. Side: both. Pure.
//!
//! Follows Microsoft's *FAT: General Overview of On-Disk Format* (1.03), and the kernel where that
//! leaves a choice. Numbers are little-endian.

use std::io;

/// Clusters are numbered from here on; the entries before it mean something else.
const FIRST_CLUSTER: u64 = 2;
/// With fewer clusters than this it is FAT12. FAT32 is known by where it has the size of its table, as
/// the kernel knows it.
const FAT12_CLUSTERS: u64 = 4085;
/// A chain that is longer is none of restage's files, and a ring has no end: no boot waits for that.
const LONGEST_CHAIN: u64 = 1 << 16;
const SECTOR_BYTES: u64 = 512;
/// Of a name in a directory.
const ENTRY_BYTES: usize = 32;
/// As many as these in one, or beside each other, are no ESP either.
const MOST_DIRECTORIES: usize = 256;
/// Directories that are longer together are none of an ESP, and a ring has no end: 2 MiB.
const MOST_SECTORS: u64 = 1 << 12;

/// Where things are on the medium.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Bytes of a cluster.
    cluster_bytes: u64,
    /// Where the first table begins, in bytes.
    table: u64,
    /// Where the first cluster begins, in bytes.
    data: u64,
    /// How many clusters there are.
    clusters: u64,
    /// Bits of an entry.
    bits: u64,
    /// Where the root directory is.
    root: Root,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Root {
    /// In a place of its own: where it begins, and its length in bytes.
    Fixed(u64, u64),
    /// In clusters, from this one on.
    Cluster(u64),
}

/// A directory: its short name, and the cluster that it begins with.
type Named = (String, u64);

/// Reads from the medium, at bytes from its start.
pub type Read<'a> = &'a dyn Fn(u64, &mut [u8]) -> io::Result<()>;

fn number<const BYTES: usize>(sector: &[u8; 512], at: usize) -> u64 {
    let bytes = sector.get(at..at + BYTES).unwrap_or_default();
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

impl Layout {
    /// Reads it from the boot sector; none when that is not one of FAT.
    #[must_use]
    pub fn parse(sector: &[u8; 512]) -> Option<Self> {
        let sector_bytes = number::<2>(sector, 11);
        let cluster_sectors = number::<1>(sector, 13);
        let reserved = number::<2>(sector, 14);
        let tables = number::<1>(sector, 16);
        let root_entries = number::<2>(sector, 17);
        let sectors = match number::<2>(sector, 19) {
            0 => number::<4>(sector, 32),
            few => few,
        };
        let table_sectors = match number::<2>(sector, 22) {
            0 => number::<4>(sector, 36),
            few => few,
        };
        let is_size = |bytes: u64| (512..=4096).contains(&bytes) && bytes.is_power_of_two();
        if !is_size(sector_bytes) || !cluster_sectors.is_power_of_two() || reserved == 0 {
            return None;
        }
        let root_sectors = (root_entries * 32).div_ceil(sector_bytes);
        let before = reserved + tables * table_sectors + root_sectors;
        let clusters = sectors.checked_sub(before)? / cluster_sectors;
        let bits = match (clusters, number::<2>(sector, 22)) {
            (0, _) => return None,
            (_, 0) => 32,
            (few, _) if few < FAT12_CLUSTERS => 12,
            _ => 16,
        };
        Some(Self {
            cluster_bytes: cluster_sectors * sector_bytes,
            table: reserved * sector_bytes,
            data: before * sector_bytes,
            clusters,
            bits,
            root: if bits == 32 {
                Root::Cluster(number::<4>(sector, 44))
            } else {
                let bytes = root_sectors * sector_bytes;
                Root::Fixed((before * sector_bytes).checked_sub(bytes)?, bytes)
            },
        })
    }

    /// The cluster in which this byte of the medium lies.
    #[must_use]
    pub fn cluster_at(&self, byte: u64) -> Option<u64> {
        let cluster = byte.checked_sub(self.data)? / self.cluster_bytes + FIRST_CLUSTER;
        self.is_cluster(cluster).then_some(cluster)
    }

    fn is_cluster(&self, number: u64) -> bool {
        (FIRST_CLUSTER..self.clusters + FIRST_CLUSTER).contains(&number)
    }

    /// Whether a chain that begins with this cluster leads to no free cluster, nor to one that is none.
    pub fn is_linked(&self, first: u64, read: Read<'_>) -> io::Result<bool> {
        let mut cluster = first;
        for _ in 0..LONGEST_CHAIN {
            if !self.is_cluster(cluster) {
                return Ok(false);
            }
            cluster = self.entry(cluster, read)?;
            // The last values are those of an end, and of a bad cluster, which is one as well.
            if cluster >= (1 << self.bits.min(28)) - 9 {
                return Ok(true);
            }
        }
        Ok(true)
    }

    /// Reads all of the root directory, of each directory on the way that the components of `path` name, and
    /// of all that is below the last one: each of which the short name may be that of such a component.
    /// False where there was more of it than an ESP has. What makes no sense is passed over: an error is
    /// one of reading.
    pub fn read_directories(&self, path: &str, read: Read<'_>) -> io::Result<bool> {
        let mut left = MOST_SECTORS;
        let mut found = Vec::new();
        match self.root {
            Root::Cluster(first) => self.in_directory(first, &mut left, &mut found, read)?,
            Root::Fixed(at, bytes) => in_sectors(at, bytes, &mut left, &mut found, read)?,
        }
        for component in path.split('/') {
            found.retain(|(short, _)| is_like(short, component));
            found = self.in_all(&found, &mut left, read)?;
        }
        // A ring among them ends with what is left.
        while !found.is_empty() && left > 0 {
            found = self.in_all(&found, &mut left, read)?;
        }
        Ok(left > 0)
    }

    fn in_all(
        &self,
        directories: &[Named],
        left: &mut u64,
        read: Read<'_>,
    ) -> io::Result<Vec<Named>> {
        let mut found = Vec::new();
        for (_, first) in directories {
            self.in_directory(*first, left, &mut found, read)?;
        }
        Ok(found)
    }

    /// The directories in the one that begins with this cluster.
    fn in_directory(
        &self,
        first: u64,
        left: &mut u64,
        found: &mut Vec<Named>,
        read: Read<'_>,
    ) -> io::Result<()> {
        // In the smaller ones the upper half is something else.
        let first = if self.bits == 32 { first } else { first & 0xffff };
        let mut cluster = first;
        while self.is_cluster(cluster) && *left > 0 {
            let at = self.data + (cluster - FIRST_CLUSTER) * self.cluster_bytes;
            in_sectors(at, self.cluster_bytes, left, found, read)?;
            cluster = self.entry(cluster, read)?;
        }
        Ok(())
    }

    fn entry(&self, cluster: u64, read: Read<'_>) -> io::Result<u64> {
        let bit = cluster * self.bits;
        let mut bytes = [0; 4];
        let length = if self.bits == 32 { 4 } else { 2 };
        let part = bytes.get_mut(..length).unwrap_or_default();
        read(self.table + bit / 8, part)?;
        let entry = u64::from(u32::from_le_bytes(bytes));
        Ok(match self.bits {
            12 => entry >> (bit % 8) & 0xfff,
            16 => entry,
            // The upper four bits are no part of it.
            _ => entry & 0x0fff_ffff,
        })
    }
}

/// The directories that are named in a run of sectors.
fn in_sectors(
    at: u64,
    bytes: u64,
    left: &mut u64,
    found: &mut Vec<Named>,
    read: Read<'_>,
) -> io::Result<()> {
    for sector in 0..bytes / SECTOR_BYTES {
        let Some(fewer) = left.checked_sub(1) else { break };
        *left = fewer;
        let mut entries = [0; 512];
        match read(at + sector * SECTOR_BYTES, &mut entries) {
            // The medium is shorter than it says.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
            read => read?,
        }
        found.extend(entries.chunks_exact(ENTRY_BYTES).filter_map(directory));
        if found.len() > MOST_DIRECTORIES {
            *left = 0;
        }
    }
    Ok(())
}

/// The directory that an entry names; none when it names something else, or the one above it.
fn directory(entry: &[u8]) -> Option<Named> {
    let is_free = matches!(entry.first(), Some(0 | 0xe5 | b'.'));
    // A part of a long name has these bits and others.
    let is_directory = entry.get(11)? & 0x18 == 0x10;
    let half = |at: usize| {
        let bytes = entry.get(at..at + 2)?.try_into().ok()?;
        Some(u64::from(u16::from_le_bytes(bytes)))
    };
    let part = |at: std::ops::Range<usize>| {
        Some(String::from_utf8_lossy(entry.get(at)?).trim_end().to_owned())
    };
    let (name, extension) = (part(0..8)?, part(8..11)?);
    let name = if extension.is_empty() { name } else { format!("{name}.{extension}") };
    (is_directory && !is_free).then_some((name, half(20)? << 16 | half(26)?))
}

/// Whether this may be the short name of a name. Those of long names have a `~`, and begin as they do with
/// two characters at least, where those are any that a short name may have.
fn is_like(short: &str, name: &str) -> bool {
    let begin =
        |name: &str| name.chars().take(2).map(|c| c.to_ascii_uppercase()).collect::<String>();
    let is_plain = name.chars().take(2).all(|c| c.is_ascii_alphanumeric());
    short.eq_ignore_ascii_case(name)
        || short.contains('~') && (!is_plain || begin(short) == begin(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The boot sector of a medium of so many clusters of one sector each.
    fn boot_sector(bits: u64, clusters: u64) -> [u8; 512] {
        let mut sector = [0; 512];
        let mut put = |at: usize, bytes: &[u8]| sector[at..at + bytes.len()].copy_from_slice(bytes);
        let table_sectors = (clusters + 2) * bits / 8 / 512 + 1;
        let root_entries: u16 = if bits == 32 { 0 } else { 32 };
        put(11, &512_u16.to_le_bytes());
        put(13, &[1, 4, 0, 2]);
        put(17, &root_entries.to_le_bytes());
        let sectors = 4 + 2 * table_sectors + u64::from(root_entries) / 16 + clusters;
        put(32, &u32::try_from(sectors).unwrap().to_le_bytes());
        match bits {
            32 => {
                put(36, &u32::try_from(table_sectors).unwrap().to_le_bytes());
                put(44, &3_u32.to_le_bytes());
            }
            _ => put(22, &u16::try_from(table_sectors).unwrap().to_le_bytes()),
        }
        sector
    }

    #[test]
    fn chains_are_followed_in_each_size_of_entry() {
        for (bits, clusters) in [(12, 100), (16, 5000), (32, 70000), (32, 8000)] {
            let layout = Layout::parse(&boot_sector(bits, clusters)).unwrap();
            assert_eq!((layout.bits, layout.clusters), (bits, clusters));
            assert_eq!(layout.cluster_at(layout.data), Some(2));
            assert_eq!(layout.cluster_at(layout.data + 512 * 3 + 511), Some(5));
            assert_eq!(layout.cluster_at(layout.data - 1), None);
            assert_eq!(layout.cluster_at(layout.data + clusters * 512), None);
            // 5 → 9 → 10, the end; 11 → nothing; 12 → a free one; 14 → 15 → 14.
            let mut table = vec![0_u8; 512];
            let end = (1 << bits.min(28)) - 1;
            for (cluster, next) in [(5, 9), (9, 10), (10, end), (12, 13), (14, 15), (15, 14)] {
                let bit = usize::try_from(cluster * bits).unwrap();
                let mut old = [0; 8];
                old.copy_from_slice(&table[bit / 8..bit / 8 + 8]);
                let new = u64::from_le_bytes(old) | next << (bit % 8);
                table[bit / 8..bit / 8 + 8].copy_from_slice(&new.to_le_bytes());
            }
            let read = |at: u64, buffer: &mut [u8]| {
                let at = usize::try_from(at - 4 * 512).unwrap();
                buffer.copy_from_slice(&table[at..at + buffer.len()]);
                Ok(())
            };
            let is_linked = |first| layout.is_linked(first, &read).unwrap();
            assert!(is_linked(5) && is_linked(9) && is_linked(10), "FAT{bits}");
            assert!(!is_linked(11) && !is_linked(12) && !is_linked(1), "FAT{bits}");
            assert!(!is_linked(clusters + 2) && is_linked(14), "nothing, and a ring, FAT{bits}");
        }
    }

    #[test]
    fn directories_are_read_to_their_ends() {
        for (bits, clusters) in [(12, 100), (16, 5000), (32, 70000)] {
            let layout = Layout::parse(&boot_sector(bits, clusters)).unwrap();
            let entry = |name: &str, attributes: u8, first: u16| {
                let mut entry = [0; 32];
                entry[..11].copy_from_slice(format!("{name:11}").as_bytes());
                entry[11] = attributes;
                entry[26..28].copy_from_slice(&first.to_le_bytes());
                entry
            };
            let mut medium = std::collections::BTreeMap::<u64, u8>::new();
            let mut put = |at: u64, bytes: &[u8]| {
                medium.extend((at..).zip(bytes.iter().copied()));
            };
            let place = |cluster: u64| layout.data + (cluster - 2) * 512;
            let root = match layout.root {
                Root::Fixed(at, bytes) => {
                    assert_eq!((at + bytes, bytes), (layout.data, 1024));
                    at
                }
                Root::Cluster(first) => place(first),
            };
            // Of one that is removed, of a file, and of a part of a long name nothing is read.
            let names = [
                entry("\u{7f}EMOVED", 0x10, 20),
                entry("A FILE", 0x20, 21),
                entry("A LABEL", 0x08, 22),
                entry("A PART", 0x0f, 23),
                entry("RESTAGE", 0x10, 5),
                entry("LOADER", 0x10, 24),
            ];
            put(root, &names.concat());
            put(root, &[0xe5]);
            // In the second cluster of it, behind the end of its names.
            put(place(6), &entry("BELOW", 0x31, 8));
            put(
                place(8),
                &[entry(".", 0x10, 8), entry("..", 0x10, 5), entry("RING", 0x10, 5)].concat(),
            );
            let end = (1_u64 << bits.min(28)) - 1;
            for (cluster, next) in [(3, end), (5, 6), (6, end), (8, end)] {
                let bit = cluster * bits;
                let bytes = (next << (bit % 8)).to_le_bytes();
                let at = layout.table + bit / 8;
                for (at, byte) in (at..).zip(bytes).take(5) {
                    *medium.entry(at).or_default() |= byte;
                }
            }
            let seen = std::cell::RefCell::new(std::collections::BTreeSet::new());
            let read = |at: u64, buffer: &mut [u8]| {
                seen.borrow_mut().extend(layout.cluster_at(at));
                for (at, byte) in (at..).zip(buffer) {
                    *byte = medium.get(&at).copied().unwrap_or_default();
                }
                Ok(())
            };
            // A ring has no end.
            assert!(!layout.read_directories("restage", &read).unwrap());
            let mut wanted: std::collections::BTreeSet<u64> = [5, 6, 8].into();
            wanted.extend((bits == 32).then_some(3));
            assert_eq!(*seen.borrow(), wanted, "FAT{bits}");
            for bad in wanted {
                let read = |at: u64, buffer: &mut [u8]| match layout.cluster_at(at) {
                    Some(cluster) if cluster == bad => Err(io::ErrorKind::BrokenPipe.into()),
                    _ => read(at, buffer),
                };
                let error = layout.read_directories("restage", &read).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::BrokenPipe, "FAT{bits}, cluster {bad}");
            }
            seen.borrow_mut().clear();
            // Of a path, what is on the way and below it.
            assert!(layout.read_directories("loader/credentials", &read).unwrap());
            let mut wanted: std::collections::BTreeSet<u64> = [24].into();
            wanted.extend((bits == 32).then_some(3));
            assert_eq!(*seen.borrow(), wanted, "FAT{bits}");
        }
    }

    #[test]
    fn a_short_name_is_known() {
        for (short, name) in [
            ("RESTAGE", "restage"),
            ("RESTAGE.1", "restage.1"),
            ("RECOVE~2", "recovery-state"),
            ("CR1A2B~1", "credentials"),
            ("HIDDEN~1", ".hidden"),
        ] {
            assert!(is_like(short, name), "{short} and {name}");
        }
        for (short, name) in [
            ("EFI", "restage"),
            ("RESTAGE", "restage.1"),
            ("RESTAGE.1", "restage"),
            ("RECO~1", "loader"),
        ] {
            assert!(!is_like(short, name), "{short} and {name}");
        }
    }

    #[test]
    fn what_is_no_boot_sector_is_none() {
        assert_eq!(Layout::parse(&[0; 512]), None);
        assert_eq!(Layout::parse(&[0xff; 512]), None);
    }
}
