//! Which bytes of a partition are overwritten, and in which order: secret first, metadata after.
//! Side: both. Pure.

use crate::format::luks::HEADER_SIZES;
use crate::profile::Erase;
use crate::request::BoundPartition;

const MIB: u64 = 1024 * 1024;
/// Where `cryptsetup` and systemd-repart put the data of a LUKS2 volume, unless told otherwise.
const USUAL_DATA_OFFSET: u64 = 16 * MIB;
/// A LUKS2 header that claims more than this before its data is not believed: the usual is erased.
const MAX_DATA_OFFSET: u64 = 512 * MIB;
/// RAID, ZFS and GPT keep copies of their metadata in the last MiB.
const END_BYTES: u64 = MIB;
/// The first mirror of a btrfs superblock.
const BTRFS_MIRROR: u64 = 64 * MIB;
const BTRFS_SUPERBLOCK: u64 = 4096;

/// A run of bytes in a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// What it holds.
    pub what: &'static str,
    /// Offset from the start of the partition.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
}

/// The regions to overwrite, in order; each is durable and read back before the next begins.
#[must_use]
pub fn regions(partition: &BoundPartition, sector_bytes: u64, erase: Erase) -> Vec<Region> {
    let sectors = partition.last_lba.saturating_sub(partition.first_lba).saturating_add(1);
    let length = sectors.saturating_mul(sector_bytes);
    let mut regions = Vec::new();
    let mut add = |what, start: u64, end: u64| {
        let (start, end) = (start.min(length), end.min(length));
        if start < end {
            regions.push(Region { what, offset: start, bytes: end - start });
        }
    };
    let mut done = 0;
    let luks = partition.luks.as_ref().filter(|luks| HEADER_SIZES.contains(&luks.header_bytes));
    if let Some(luks) = luks {
        let headers = luks.header_bytes.saturating_mul(2);
        let data = if luks.data_offset_bytes > headers && luks.data_offset_bytes <= MAX_DATA_OFFSET
        {
            luks.data_offset_bytes
        } else {
            USUAL_DATA_OFFSET
        };
        add("key slots", headers, data);
        add("secondary header", luks.header_bytes, headers);
        add("primary header", 0, luks.header_bytes);
        done = data;
    }
    if erase == Erase::Zero {
        add("data", done, length);
    } else {
        let end = length.saturating_sub(END_BYTES).max(USUAL_DATA_OFFSET).max(done);
        if luks.is_none() {
            add("start", 0, USUAL_DATA_OFFSET);
            add("superblock mirror", BTRFS_MIRROR, end.min(BTRFS_MIRROR + BTRFS_SUPERBLOCK));
        }
        add("end", end, length);
    }
    regions
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::LuksIdentity;
    use proptest::prelude::*;
    use uuid::Uuid;

    fn partition(sectors: u64, luks: Option<(u64, u64)>) -> BoundPartition {
        BoundPartition {
            number: 1,
            label: "root".to_owned(),
            guid: Uuid::nil(),
            type_guid: Uuid::nil(),
            first_lba: 2048,
            last_lba: 2048 + sectors - 1,
            luks: luks.map(|(header_bytes, data_offset_bytes)| LuksIdentity {
                uuid: String::new(),
                identity: String::new(),
                header_bytes,
                data_offset_bytes,
            }),
        }
    }

    #[test]
    fn key_slots_go_before_headers() {
        let regions = regions(&partition(1 << 18, Some((0x4000, 16 * MIB))), 512, Erase::Discard);
        let whats: Vec<_> = regions.iter().map(|r| (r.what, r.offset, r.bytes)).collect();
        assert_eq!(
            whats,
            [
                ("key slots", 0x8000, 16 * MIB - 0x8000),
                ("secondary header", 0x4000, 0x4000),
                ("primary header", 0, 0x4000),
                ("end", 127 * MIB, MIB),
            ]
        );
    }

    proptest! {
        #[test]
        fn regions_lie_inside_and_never_overlap(
            sectors in 1u64..1 << 20,
            header in prop_oneof![Just(0x4000u64), Just(0x40_0000), any::<u64>()],
            data in prop_oneof![Just(16 * MIB), Just(0), any::<u64>()],
            luks in any::<bool>(),
            erase in prop_oneof![Just(Erase::Keys), Just(Erase::Discard), Just(Erase::Zero)],
        ) {
            let length = sectors * 512;
            let mut regions = regions(&partition(sectors, luks.then_some((header, data))), 512, erase);
            regions.sort_by_key(|r| r.offset);
            let mut end = 0;
            for region in &regions {
                prop_assert!(region.offset >= end, "{regions:?}");
                end = region.offset + region.bytes;
            }
            prop_assert!(end <= length);
            // The first 16 MiB, where all header copies and default key slots are, never stay.
            let start: u64 = regions.iter().map(|r| r.bytes).sum();
            prop_assert!(start >= length.min(16 * MIB));
            if erase == Erase::Zero {
                prop_assert_eq!(start, length);
            }
        }
    }
}
