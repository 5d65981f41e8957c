//! A small disk in IncusOS's order, and the directory that stands for its ESP. What is in the
//! partitions matters little here: that it is there before, and gone after a reset.

use std::fs;
use std::io::Cursor;
use std::path::Path;

use gpt::disk::LogicalBlockSize;
use gpt::partition::Partition;
use uuid::Uuid;

const MIB: usize = 1024 * 1024;
const SECTOR: usize = 512;
const PARTITION_BYTES: usize = 128 * 1024;
const LINUX_GENERIC: &str = "0fc63daf-8483-4772-8e79-3d69d8477de4";
const PARTITIONS: [(&str, &str); 6] = [
    ("esp", "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"),
    ("seed-data", LINUX_GENERIC),
    ("usr-a", "8484680c-9521-48c6-9c11-b0720656f69e"),
    ("swap", "0657fd6d-a4ab-43c4-84e5-0933c84b4f4f"),
    ("root-x86-64", "4f68bce3-e8cd-4db1-96e7-fbcaf984b709"),
    ("local-data", LINUX_GENERIC),
];
/// The partitions that a reset wipes begin here.
const FIRST_WIPED: usize = 3;
/// What is in them before.
const SECRET: &[u8] = b"what nobody is to read";

fn start_of(index: usize) -> usize {
    MIB + index * PARTITION_BYTES
}

/// The image.
pub fn image() -> Vec<u8> {
    let mut bytes = vec![0; 2 * MIB + PARTITIONS.len() * PARTITION_BYTES];
    let mut table = gpt::GptConfig::new()
        .writable(true)
        .logical_block_size(LogicalBlockSize::Lb512)
        .create_from_device(Cursor::new(&mut bytes), Some(Uuid::from_u128(0x79a)))
        .expect("a table");
    let partitions = PARTITIONS.iter().enumerate().map(|(index, (label, kind))| {
        let first_lba = start_of(index) / SECTOR;
        let partition = Partition {
            part_type_guid: kind.parse::<Uuid>().expect("a GUID").into(),
            part_guid: Uuid::from_u128(0x9a27_0000 + index as u128),
            first_lba: first_lba as u64,
            last_lba: (first_lba + PARTITION_BYTES / SECTOR - 1) as u64,
            flags: 0,
            name: (*label).to_owned(),
        };
        (u32::try_from(index + 1).expect("a small number"), partition)
    });
    table.update_partitions(partitions.collect()).expect("entries");
    table.write().expect("the table");
    for index in FIRST_WIPED..PARTITIONS.len() {
        bytes[start_of(index)..][..SECRET.len()].copy_from_slice(SECRET);
    }
    bytes
}

/// Whether nothing of the wiped partitions can be read or found any more.
pub fn is_reset(bytes: &[u8]) -> bool {
    let table = gpt::GptConfig::new()
        .logical_block_size(LogicalBlockSize::Lb512)
        .open_from_device(Cursor::new(bytes.to_vec()));
    let left = table.is_ok_and(|table| table.partitions().len() == FIRST_WIPED);
    left && !bytes.windows(SECRET.len()).any(|window| window == SECRET)
}

/// The ESP before.
pub fn make_esp(esp: &Path) {
    fs::create_dir_all(esp.join("EFI")).expect("a directory");
    fs::File::create(esp.join("sb-disabled")).expect("a file");
}
