//! What a machine comes to, to the last byte, so that two can be compared.
//!
//! Left out is, in restage's own directory, what tells of times and runs: the reports, of which only
//! the outcome is compared, the logs, and the copies of refused requests. The directory itself may be
//! there and empty. Of a file's attributes all is compared; its time only in a tree, where a restore
//! sets it, and not a directory's, which a key changes that is kept. The id of an operation, where a name
//! has it, is `ID`. Of the TPM it is compared whether it is cleared.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use restage::apply::journal::reports;
use restage::platform::esp::EspDirectory;
use restage::report::Outcome;

use crate::machine::{Kind, Machine};

/// Each thing by its name.
pub type Snapshot = BTreeMap<String, Vec<u8>>;

/// restage's own directory: its parent below the machine's directory, and its name.
fn own(kind: Kind) -> (&'static str, &'static str) {
    match kind {
        Kind::Image | Kind::Loop(_) => ("esp", "restage"),
        Kind::Flat => ("fs/var/lib", "restage"),
        Kind::Tree => ("fs/srv", "restage"),
    }
}

/// The directory of the OS's state, below the machine's directory.
pub fn state(kind: Kind) -> &'static str {
    if kind == Kind::Tree { "fs/srv/appliance" } else { "fs/var/lib/incus-os" }
}

/// The machine as it is now.
pub fn take(machine: &Machine) -> Snapshot {
    let mut all = Snapshot::new();
    add(&mut all, machine, "esp");
    if machine.is_disk() {
        all.extend(take_disk(machine));
        let tpm = machine.is_cleared().map(|is_cleared| if is_cleared { "new" } else { "old" });
        all.insert("tpm".to_owned(), tpm.unwrap_or("none").into());
        return all;
    }
    add(&mut all, machine, "fs");
    for name in ["root.luks", "swap.luks"] {
        if let Ok(bytes) = fs::read(machine.path().join(name)) {
            all.insert(name.to_owned(), bytes);
        }
    }
    all
}

/// The disk; what is not named is zero.
pub fn take_disk(machine: &Machine) -> Snapshot {
    let blocks = machine.disk_blocks().into_iter();
    blocks.map(|(at, bytes)| (format!("disk at {at:#x}"), bytes)).collect()
}

/// The state that is in place.
pub fn take_state(machine: &Machine) -> Snapshot {
    let (mut all, path) = (Snapshot::new(), state(machine.kind));
    add(&mut all, machine, path);
    all.into_iter().map(|(name, is)| (name[path.len()..].to_owned(), is)).collect()
}

fn add(all: &mut Snapshot, machine: &Machine, name: &str) {
    for entry in fs::read_dir(machine.path().join(name)).unwrap() {
        let entry = entry.unwrap();
        let inner = format!("{name}/{}", entry.file_name().to_string_lossy());
        let is_directory = entry.file_type().unwrap().is_dir();
        let is_own = is_directory && inner.ends_with("/restage");
        let is_told = name.ends_with("/restage")
            && [".RPT", ".LOG", ".BAD"].iter().any(|end| inner.ends_with(end));
        if !is_told && !is_own {
            all.insert(without_id(&inner), describe(&entry.path(), machine.kind));
        }
        if is_directory {
            add(all, machine, &inner);
        }
    }
}

fn without_id(name: &str) -> String {
    let is_id = |part: &str| part.len() == 32 && part.bytes().all(|b| b.is_ascii_hexdigit());
    let parts: Vec<&str> = name.split('/').map(|p| if is_id(p) { "ID" } else { p }).collect();
    parts.join("/")
}

fn describe(path: &Path, kind: Kind) -> Vec<u8> {
    let stat = fs::symlink_metadata(path).unwrap();
    let mut is = format!("{:o} {}:{}\n", stat.mode(), stat.uid(), stat.gid()).into_bytes();
    if kind == Kind::Tree {
        if !stat.is_dir() {
            is.extend(format!("{}\n", stat.mtime()).into_bytes());
        }
        for (key, value) in attributes(path) {
            is.extend([key.as_bytes(), b"=", &value, b"\n"].concat());
        }
    }
    if stat.is_symlink() {
        is.extend(fs::read_link(path).unwrap().as_os_str().as_bytes());
    } else if stat.is_file() {
        is.extend(fs::read(path).unwrap());
    }
    is
}

fn attributes(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names = vec![0_u8; 65536];
    let length = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    let names = String::from_utf8(names[..length].to_vec()).unwrap();
    let value = |name: &str| {
        let mut value = vec![0_u8; 65536];
        let length = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
        value[..length].to_vec()
    };
    names.split_terminator('\0').map(|name| (name.to_owned(), value(name))).collect()
}

/// In what two differ, in words.
pub fn difference(is: &Snapshot, wanted: &Snapshot) -> Option<String> {
    let names: std::collections::BTreeSet<_> = is.keys().chain(wanted.keys()).collect();
    let differs = |name: &&&String| is.get(**name) != wanted.get(**name);
    let told: Vec<String> = names
        .iter()
        .filter(differs)
        .take(5)
        .map(|name| match (is.get(*name), wanted.get(*name)) {
            (Some(_), None) => format!("`{name}` is there"),
            (None, _) => format!("`{name}` is not there"),
            (Some(one), Some(other)) => {
                let at = one.iter().zip(other).take_while(|(a, b)| a == b).count();
                format!("`{name}` differs at byte {at} ({} and {} bytes)", one.len(), other.len())
            }
        })
        .collect();
    (!told.is_empty()).then(|| told.join(", "))
}

/// How the operations on this machine have ended, as the reports say, the newest first.
pub fn outcomes(machine: &Machine) -> Vec<Outcome> {
    let (parent, name) = own(machine.kind);
    let store = EspDirectory::open(&machine.path().join(parent), name).unwrap();
    reports(&store).unwrap().into_iter().map(|report| report.outcome).collect()
}

/// The files in restage's own directory: what each is, by the end of its name, and its content.
pub fn own_files(machine: &Machine) -> Vec<(String, Vec<u8>)> {
    let (parent, name) = own(machine.kind);
    let Ok(entries) = fs::read_dir(machine.path().join(parent).join(name)) else {
        return Vec::new();
    };
    entries
        .map(|entry| entry.unwrap())
        .map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            let kind = name.split_once('.').map_or("", |(_, kind)| kind).to_owned();
            (kind, fs::read(entry.path()).unwrap_or_default())
        })
        .collect()
}
