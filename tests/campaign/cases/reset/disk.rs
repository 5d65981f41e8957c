//! The disk before a reset, in IncusOS's order and in small sizes.

use std::collections::BTreeMap;
use std::io::Cursor;

use gpt::partition::Partition;
use uuid::Uuid;

use crate::model::disk::Sectors;
use crate::model::volume::start_of_volume;

/// What was on the disk before, and must not be read afterwards.
pub const SECRET: u8 = 0x5e;
const LINUX: &str = "0fc63daf-8483-4772-8e79-3d69d8477de4";
/// Label, type, KiB.
pub const PARTITIONS: [(&str, &str, u64); 7] = [
    ("esp", "c12a7328-f81f-11d2-ba4b-00a0c93ec93b", 8),
    ("seed-data", LINUX, 32),
    ("usr", "8484680c-9521-48c6-9c11-b0720656f69e", 8),
    ("swap", "0657fd6d-a4ab-43c4-84e5-0933c84b4f4f", 48),
    ("root-x86-64", "4f68bce3-e8cd-4db1-96e7-fbcaf984b709", 48),
    ("local-data", LINUX, 12),
    // Behind those that go: its number has to stay.
    ("other-data", LINUX, 4),
];
/// The numbers of the seed partition, and of those that are wiped.
pub const SEED: u32 = 2;
pub const WIPED: [u32; 3] = [4, 5, 6];
/// Those of them that are LUKS2 volumes.
pub const VOLUMES: [u32; 2] = [4, 5];
/// Room for both tables, whatever the size of a sector.
const TABLES_BYTES: u64 = 64 * 1024;

/// Where partitions lie: offset and length in bytes, by number.
pub type Places = BTreeMap<u32, (u64, u64)>;

/// How the tables are before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tables {
    Good,
    BadPrimary,
    BadBackup,
}

/// The disk, and where its partitions lie.
pub fn disk(tables: Tables, sector_bytes: u64) -> (Sectors, Places) {
    let length = TABLES_BYTES + PARTITIONS.iter().map(|(_, _, kib)| kib * 1024).sum::<u64>();
    let mut bytes = vec![SECRET; usize::try_from(length).unwrap()];
    let sector = match sector_bytes {
        512 => gpt::disk::LogicalBlockSize::Lb512,
        _ => gpt::disk::LogicalBlockSize::Lb4096,
    };
    let mut table = gpt::GptConfig::new()
        .writable(true)
        .logical_block_size(sector)
        .create_from_device(Cursor::new(&mut bytes), Some(Uuid::from_u128(7)))
        .unwrap();
    for (label, kind, kib) in PARTITIONS {
        let kind = Uuid::parse_str(kind).unwrap().into();
        table.add_partition(label, kib * 1024, kind, 0, Some(4096 / sector_bytes)).unwrap();
    }
    // The crate gives partitions random GUIDs; a run has to be the same every time.
    let mut partitions = table.partitions().clone();
    for (number, partition) in &mut partitions {
        partition.part_guid = Uuid::from_u128(u128::from(*number) + 100);
    }
    table.update_partitions(partitions.clone()).unwrap();
    table.write().unwrap();
    let place =
        |p: &Partition| (p.first_lba * sector_bytes, (p.last_lba - p.first_lba + 1) * sector_bytes);
    let places: Places =
        partitions.iter().filter(|(_, p)| p.is_used()).map(|(n, p)| (*n, place(p))).collect();
    let mut put = |number: u32, content: &[u8]| {
        let at = usize::try_from(places[&number].0).unwrap();
        bytes[at..at + content.len()].copy_from_slice(content);
    };
    put(SEED, &[0; 1024]);
    put(4, &start_of_volume(1));
    put(5, &start_of_volume(0));
    let sector = usize::try_from(sector_bytes).unwrap();
    match tables {
        Tables::Good => {}
        Tables::BadPrimary => bytes[sector..sector + 512].fill(0xa5),
        Tables::BadBackup => {
            let at = bytes.len() - sector;
            bytes[at..at + 512].fill(0xa5);
        }
    }
    (Sectors::new(&bytes, sector_bytes), places)
}

/// The same disk, where somebody has changed an entry of its table.
pub fn with_another(disk: &Sectors, number: u32, change: impl FnOnce(&mut Partition)) -> Sectors {
    let mut bytes = disk.part(0, disk.size_bytes());
    let mut table = gpt::GptConfig::new()
        .writable(true)
        .logical_block_size(gpt::disk::LogicalBlockSize::Lb512)
        .open_from_device(Cursor::new(&mut bytes))
        .unwrap();
    let mut partitions = table.partitions().clone();
    change(partitions.get_mut(&number).unwrap());
    table.update_partitions(partitions).unwrap();
    table.write().unwrap();
    Sectors::new(&bytes, 512)
}
