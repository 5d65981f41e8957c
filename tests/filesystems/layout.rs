//! The disk before an operation, in IncusOS's order and in small sizes.

use std::io::Cursor;
use std::ops::Range;

use restage_campaign::model::slots::start_of_volume;
use uuid::Uuid;

use crate::image::{CHUNK, Image};

/// What was on the disk before.
pub const SECRET: u8 = 0x5e;
const LINUX: &str = "0fc63daf-8483-4772-8e79-3d69d8477de4";
/// Label and type.
const PARTITIONS: [(&str, &str); 6] = [
    ("esp", "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"),
    ("seed-data", LINUX),
    ("usr", "8484680c-9521-48c6-9c11-b0720656f69e"),
    ("swap", "0657fd6d-a4ab-43c4-84e5-0933c84b4f4f"),
    ("root-x86-64", "4f68bce3-e8cd-4db1-96e7-fbcaf984b709"),
    ("local-data", LINUX),
];
/// And size in KiB. The root is large enough for a file system with a journal.
const SIZES: [u64; 6] = [4096, 32, 8, 48, 24 * 1024, 12];
/// Their numbers, from 1 on, as indices from 0 on.
pub const ESP: usize = 0;
/// The seeds.
pub const SEED: usize = 1;
/// Swap and root.
pub const VOLUMES: [usize; 2] = [3, 4];
/// What a reset destroys.
pub const WIPED: [usize; 3] = [3, 4, 5];
const KIB: u64 = 1024;
/// Room for both tables.
const TABLES: u64 = 64 * KIB;

/// A disk, and where things lie on it, in bytes.
#[derive(Clone)]
pub struct Layout {
    /// The disk.
    pub image: Image,
    /// Its partitions.
    pub places: Vec<Range<usize>>,
    /// Both tables, with what lies beside the partitions.
    pub tables: [Range<usize>; 2],
}

impl Layout {
    /// A disk without file systems.
    pub fn new() -> Self {
        let sizes = SIZES.map(|kib| kib * KIB);
        let length = usize::try_from(TABLES + sizes.iter().sum::<u64>()).unwrap();
        let mut bytes = vec![0; length];
        let mut table = gpt::GptConfig::new()
            .writable(true)
            .create_from_device(Cursor::new(&mut bytes), Some(Uuid::from_u128(7)))
            .unwrap();
        let alignment = Some(CHUNK as u64 / 512);
        for ((label, kind), size) in PARTITIONS.into_iter().zip(sizes) {
            let kind = Uuid::parse_str(kind).unwrap().into();
            table.add_partition(label, size, kind, 0, alignment).unwrap();
        }
        // The crate gives partitions random GUIDs; a run has to be the same every time.
        let mut partitions = table.partitions().clone();
        for (number, partition) in &mut partitions {
            partition.part_guid = Uuid::from_u128(u128::from(*number) + 100);
        }
        table.update_partitions(partitions.clone()).unwrap();
        table.write().unwrap();
        let at = |lba: u64| usize::try_from(lba * 512).unwrap();
        let used = partitions.values().filter(|partition| partition.is_used());
        let places: Vec<_> = used.map(|p| at(p.first_lba)..at(p.last_lba + 1)).collect();
        let mut image = Image::new(length);
        image.write(0, &bytes);
        for place in &places[SEED + 1..] {
            image.write(place.start, &vec![SECRET; place.len().min(48 * 1024)]);
        }
        // An empty archive, and what was there before it.
        image.write(places[SEED].start + 1024, &vec![SECRET; places[SEED].len() - 1024]);
        for (volume, index) in [(1, VOLUMES[0]), (0, VOLUMES[1])] {
            image.write(places[index].start, &start_of_volume(volume));
        }
        let tables = [0..places[0].start, places[places.len() - 1].end..length];
        Self { image, places, tables }
    }

    /// Where a reset may write.
    pub fn of_a_reset(&self) -> Vec<Range<usize>> {
        let indices = [ESP, SEED].into_iter().chain(WIPED);
        indices.map(|index| self.places[index].clone()).chain(self.tables.clone()).collect()
    }

    /// Where a restore may write.
    pub fn of_a_restore(&self) -> Vec<Range<usize>> {
        [ESP, VOLUMES[1]].map(|index| self.places[index].clone()).to_vec()
    }
}
