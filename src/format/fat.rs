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
}

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
    /// `read` reads from the medium, at bytes from its start.
    pub fn is_linked(
        &self,
        first: u64,
        read: &dyn Fn(u64, &mut [u8]) -> io::Result<()>,
    ) -> io::Result<bool> {
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

    fn entry(
        &self,
        cluster: u64,
        read: &dyn Fn(u64, &mut [u8]) -> io::Result<()>,
    ) -> io::Result<u64> {
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
            32 => put(36, &u32::try_from(table_sectors).unwrap().to_le_bytes()),
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
    fn what_is_no_boot_sector_is_none() {
        assert_eq!(Layout::parse(&[0; 512]), None);
        assert_eq!(Layout::parse(&[0xff; 512]), None);
    }
}
