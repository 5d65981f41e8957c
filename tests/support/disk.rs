//! A disk image in IncusOS's partition order with real LUKS2 volumes, and the directory that stands
//! for its ESP. Made once a test program, copied for each test.

use std::fs;
use std::io::Cursor;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use gpt::partition::Partition;
use tempfile::TempDir;
use uuid::Uuid;

const MIB: u64 = 1024 * 1024;
const DISK_BYTES: u64 = 96 * MIB;
const LINUX_GENERIC: &str = "0fc63daf-8483-4772-8e79-3d69d8477de4";
/// Label, type, size.
const LAYOUT: [(&str, &str, u64); 7] = [
    ("esp", "c12a7328-f81f-11d2-ba4b-00a0c93ec93b", 2 * MIB),
    ("seed-data", LINUX_GENERIC, 2 * MIB),
    ("usr-a", "8484680c-9521-48c6-9c11-b0720656f69e", 4 * MIB),
    ("usr-b", "8484680c-9521-48c6-9c11-b0720656f69e", 4 * MIB),
    ("swap", "0657fd6d-a4ab-43c4-84e5-0933c84b4f4f", 20 * MIB),
    ("root-x86-64", "4f68bce3-e8cd-4db1-96e7-fbcaf984b709", 24 * MIB),
    ("local-data", LINUX_GENERIC, 20 * MIB),
];
pub const SWAP: u32 = 5;
pub const ROOT: u32 = 6;
pub const LOCAL_DATA: u32 = 7;
/// What the pool's partition begins with.
pub const POOL: &[u8] = b"a pool of somebody";

/// A disk and its ESP, gone when dropped.
pub struct Disk {
    directory: TempDir,
}

impl Disk {
    /// A fresh copy.
    pub fn new() -> Self {
        Self::with_sectors(512)
    }

    /// One with sectors of 512 or 4096 bytes.
    pub fn with_sectors(sector_bytes: u64) -> Self {
        static MASTERS: [OnceLock<TempDir>; 2] = [OnceLock::new(), OnceLock::new()];
        let master = MASTERS[usize::from(sector_bytes == 4096)].get_or_init(|| make(sector_bytes));
        let directory = tempfile::tempdir().unwrap();
        run(Command::new("cp")
            .args(["-a", "--sparse=always"])
            .arg(master.path().join("."))
            .arg(directory.path()));
        Self { directory }
    }

    pub fn image(&self) -> PathBuf {
        self.directory.path().join("disk.img")
    }

    pub fn esp(&self) -> PathBuf {
        self.directory.path().join("esp")
    }

    /// The whole image.
    pub fn bytes(&self) -> Vec<u8> {
        fs::read(self.image()).unwrap()
    }

    pub fn overwrite(&self, offset: u64, bytes: &[u8]) {
        let file = fs::OpenOptions::new().write(true).open(self.image()).unwrap();
        file.write_all_at(bytes, offset).unwrap();
    }

    /// The partitions by number, as the `gpt` crate reads them from the primary table.
    pub fn partitions(&self) -> std::collections::BTreeMap<u32, Partition> {
        let bytes = self.bytes();
        let sector = gpt::disk::LogicalBlockSize::Lb512;
        let table = gpt::GptConfig::new()
            .logical_block_size(sector)
            .open_from_device(Cursor::new(bytes))
            .unwrap();
        table.partitions().clone()
    }

    /// Byte range of a partition of the layout, whether its entry is still there or not.
    #[allow(clippy::unused_self, reason = "a disk's partition, for the reader")]
    pub fn range(&self, number: u32) -> std::ops::Range<usize> {
        let start = layout_start(number as usize - 1);
        start as usize..(start + LAYOUT[number as usize - 1].2) as usize
    }

    /// The names in restage's directory on the ESP.
    pub fn names(&self) -> Vec<String> {
        list(&self.esp().join("restage"))
    }

    /// The only file in restage's directory with this extension.
    pub fn file(&self, extension: &str) -> PathBuf {
        let suffix = format!(".{extension}");
        let names = self.names();
        let mut found = names.iter().filter(|name| name.ends_with(&suffix));
        let name = found.next().unwrap_or_else(|| panic!("no {extension} among {names:?}"));
        assert!(found.next().is_none(), "several {extension} among {names:?}");
        self.esp().join("restage").join(name)
    }
}

pub fn list(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let mut names: Vec<_> =
        entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn layout_start(index: usize) -> u64 {
    MIB + LAYOUT.iter().take(index).map(|(_, _, size)| size).sum::<u64>()
}

fn make(sector_bytes: u64) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let mut bytes = vec![0; DISK_BYTES as usize];
    let mut table = gpt::GptConfig::new()
        .writable(true)
        .logical_block_size(sector_bytes.try_into().unwrap())
        .create_from_device(Cursor::new(&mut bytes), Some(Uuid::from_u128(0xd15c)))
        .unwrap();
    let mut partitions = std::collections::BTreeMap::new();
    for (index, (label, kind, size)) in LAYOUT.into_iter().enumerate() {
        let first_lba = layout_start(index) / sector_bytes;
        partitions.insert(
            index as u32 + 1,
            Partition {
                part_type_guid: kind.parse::<Uuid>().unwrap().into(),
                part_guid: Uuid::from_u128(0x9a27_0000 + index as u128),
                first_lba,
                last_lba: first_lba + size / sector_bytes - 1,
                flags: 0,
                name: label.to_owned(),
            },
        );
    }
    table.update_partitions(partitions).unwrap();
    table.write().unwrap();
    let put = |bytes: &mut Vec<u8>, index: usize, content: &[u8]| {
        let at = layout_start(index) as usize;
        bytes[at..at + content.len()].copy_from_slice(content);
    };
    for (index, uuid) in [(4, "11111111"), (5, "22222222")] {
        put(&mut bytes, index, &luks(directory.path(), uuid, LAYOUT[index].2));
    }
    put(&mut bytes, 2, b"usr a");
    put(&mut bytes, 6, POOL);
    put(&mut bytes, 1, &seeds());
    // Something old beyond the archive.
    let old = layout_start(1) as usize + MIB as usize;
    bytes[old..old + 10].copy_from_slice(b"old secret");
    fs::write(directory.path().join("disk.img"), bytes).unwrap();
    let esp = directory.path().join("esp");
    fs::create_dir_all(esp.join("EFI/Linux")).unwrap();
    fs::write(esp.join("EFI/Linux/os.efi"), "kernel").unwrap();
    fs::write(esp.join("sb-disabled"), "").unwrap();
    directory
}

/// A seed archive as a person makes it: GNU tar, three spellings.
fn seeds() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, text) in [
        ("incus.yaml", "apply_defaults: false\n"),
        ("network.json", "{\"dns\":{}}"),
        ("applications.json", "{}"),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        builder.append_data(&mut header, name, text.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

/// A LUKS2 volume made by cryptsetup, with weak and quick key slots.
fn luks(directory: &Path, uuid: &str, size: u64) -> Vec<u8> {
    let path = directory.join(uuid);
    fs::File::create(&path).unwrap().set_len(size).unwrap();
    let key = directory.join("key");
    fs::write(&key, "a key").unwrap();
    run(Command::new("cryptsetup")
        .args(["luksFormat", "--batch-mode", "--type", "luks2", "--pbkdf", "pbkdf2"])
        .args(["--pbkdf-force-iterations", "1000", "--uuid"])
        .arg(format!("{uuid}-0000-4000-8000-000000000000"))
        .arg("--key-file")
        .arg(&key)
        .arg(&path));
    let bytes = fs::read(&path).unwrap();
    fs::remove_file(path).unwrap();
    fs::remove_file(key).unwrap();
    bytes
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|e| panic!("cannot run {command:?}: {e}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
