//! A machine that may be given any backup.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use restage::format::archive::Layout;
use restage::format::envelope::{self, RESTORE_REQUEST};
use restage::format::sha256_hex;
use restage::request::restore::RestoreRequest;

use crate::support::state::{OLD, System};

/// Files, and bytes of all of them.
pub const FLAT_LIMITS: (u64, u64) = (1000, 1 << 26);
/// The same in a tree.
pub const TREE_LIMITS: (u64, u64) = (100, 1 << 20);
/// A state without a state file: everything in it is the backup's.
const TREE: &str = r#"{
    "device": "/dev/mapper/root", "filesystem": "ext4",
    "directory": "var/lib/incus-os", "own_directory": "var/lib/restage",
    "layout": "tree", "allow_unencrypted": false, "settings": null,
    "local_data_key": null, "precious": [], "volumes": [],
    "health_check": null, "healthy_for_s": 0, "unconfirmed_boots": 3,
    "max_files": 100, "max_bytes": 1048576
}"#;

/// Files with their content, by name.
pub type Files = Vec<(String, Vec<u8>)>;

/// One machine.
pub struct Rig {
    system: System,
    profile: Option<PathBuf>,
}

impl Rig {
    pub fn new(layout: Layout) -> Self {
        let system = System::new("here", OLD);
        // As where a restore has been staged once.
        fs::create_dir_all(system.own()).unwrap();
        fs::create_dir_all(system.esp().join("restage")).unwrap();
        let profile = (layout == Layout::Tree).then(|| {
            let text = include_str!("../../src/profile/incusos.json");
            let mut profile: serde_json::Value = serde_json::from_str(text).unwrap();
            profile["name"] = "appliance".into();
            profile["state"] = serde_json::from_str(TREE).unwrap();
            let path = system.file("profile.json");
            fs::write(&path, profile.to_string()).unwrap();
            path
        });
        Self { system, profile }
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.system.file(name)
    }

    pub fn volume(&self, name: &str) -> PathBuf {
        self.system.volume(name)
    }

    pub fn restage(&self, arguments: &[&str]) -> Output {
        let esp = self.system.esp();
        let mut all = [arguments, &["--esp", esp.to_str().unwrap()]].concat();
        match &self.profile {
            Some(profile) => {
                all.extend(["--profile", profile.to_str().unwrap()]);
                self.system.restage(&all)
            }
            None => self.system.full(arguments),
        }
    }

    /// A key is made.
    pub fn change(&self) {
        self.system.write("zpool.other.key", "another");
    }

    /// Everything on the machine.
    pub fn everything(&self) -> Files {
        [self.system.everything(), below(&self.system.esp())].concat()
    }

    /// What no restore that is refused may change.
    pub fn kept(&self) -> Files {
        let volumes = ["root", "swap"]
            .map(|name| (name.to_owned(), fs::read(self.system.volume(name)).unwrap()));
        [self.system.files(), volumes.to_vec()].concat()
    }

    /// Stages a backup of this very machine: what is then in restage's directory, and on the ESP.
    pub fn stage_a_good_one(&self) -> [Files; 2] {
        let file = self.file("good.tar.gz");
        let file = file.to_str().unwrap();
        for arguments in [&["backup", file][..], &["restore", file, "--force"]] {
            let done = self.restage(arguments);
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        }
        self.places().map(|place| below(&place))
    }

    fn places(&self) -> [PathBuf; 2] {
        [self.system.own(), self.system.esp().join("restage")]
    }

    /// Makes everything as it was staged, but with this for the archive, which the request knows of.
    pub fn put_in_place(&self, staged: &[Files; 2], archive: &[u8]) {
        let request = |bytes: &[u8]| {
            let mut request: RestoreRequest = envelope::parse(bytes, RESTORE_REQUEST).unwrap();
            request.archive.sha256 = sha256_hex(archive);
            request.archive.bytes = archive.len() as u64;
            envelope::encode(&request, RESTORE_REQUEST).unwrap()
        };
        self.put(staged, archive, &request);
    }

    /// Makes everything as it was staged, but with this for the request.
    pub fn put_request(&self, staged: &[Files; 2], request: &[u8]) {
        let archive = ending_with(&staged[0], "ARC").to_vec();
        self.put(staged, &archive, &|_| request.to_vec());
    }

    /// A restore that goes on where it is: past its commit, and not past the first key slot, for what
    /// enrolls is not found. (That takes longer than all the rest.)
    pub fn boot_without_programs(&self) -> Output {
        let mut command = self.system.full_command(&["initrd", "restore"]);
        command.env("PATH", "/nowhere").output().unwrap()
    }

    /// The file with this end in restage's directory beside the state.
    pub fn own_file(&self, end: &str) -> PathBuf {
        let files = below(&self.system.own());
        let name = files.iter().find(|(name, _)| name.ends_with(end)).map(|(name, _)| name);
        self.system.own().join(name.unwrap_or_else(|| panic!("no {end}")))
    }

    /// The same without a word to the request.
    pub fn swap_archive(&self, staged: &[Files; 2], archive: &[u8]) {
        self.put(staged, archive, &<[u8]>::to_vec);
    }

    fn put(&self, staged: &[Files; 2], archive: &[u8], request: &dyn Fn(&[u8]) -> Vec<u8>) {
        for (place, files) in self.places().iter().zip(staged) {
            if place.exists() {
                fs::remove_dir_all(place).unwrap();
            }
            fs::create_dir_all(place).unwrap();
            for (name, bytes) in files {
                let bytes = match name.rsplit_once('.') {
                    Some((_, "ARC")) => archive.to_vec(),
                    Some((_, "REQ")) => request(bytes),
                    _ => bytes.clone(),
                };
                fs::write(place.join(name), bytes).unwrap();
            }
        }
    }

    /// What there is beside the state, or on the ESP, that should not be there.
    pub fn left(&self) -> Vec<String> {
        let beside = fs::read_dir(self.system.state().parent().unwrap()).unwrap();
        let beside = beside.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let beside = beside.filter(|name| name != "incus-os" && name != "restage");
        let esp = below(&self.places()[1]).into_iter().map(|(name, _)| name);
        // The flag is the OS's to remove: it authorises nothing.
        beside.chain(esp.filter(|name| name.rsplit('.').next() != Some("FLG"))).collect()
    }
}

/// The content of the file with this end.
pub fn ending_with<'a>(files: &'a Files, end: &str) -> &'a [u8] {
    let file = files.iter().find(|(name, _)| name.ends_with(end));
    file.map_or_else(|| panic!("no {end}"), |(_, bytes)| bytes.as_slice())
}

/// The files of a directory, which may not be there.
fn below(directory: &Path) -> Files {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if entry.file_type().unwrap().is_dir() {
            files.push((format!("{name}/"), Vec::new()));
            files.extend(below(&entry.path()));
        } else {
            files.push((name, fs::read(entry.path()).unwrap()));
        }
    }
    files.sort();
    files
}
