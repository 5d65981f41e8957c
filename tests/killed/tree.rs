//! A machine of another OS: its state is a tree with owners, modes, times, links and attributes.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use rustix::fs::{Timespec, Timestamps, XattrFlags};

use crate::strace;
use crate::support::state::run;

/// The rest of the profile is that of IncusOS.
const STATE: &str = r#"{
    "device": "/dev/mapper/root", "filesystem": "ext4",
    "directory": "srv/appliance", "own_directory": "srv/restage",
    "layout": "tree", "allow_unencrypted": false, "settings": null,
    "local_data_key": null, "precious": ["keys/*.key"], "volumes": [],
    "health_check": null, "healthy_for_s": 0, "unconfirmed_boots": 3,
    "max_files": 100, "max_bytes": 1048576
}"#;

/// Makes it in `directory`: the state of the backup, and then another one.
pub fn make(directory: &Path) {
    let text = include_str!("../../src/profile/incusos.json");
    let mut profile: serde_json::Value = serde_json::from_str(text).unwrap();
    profile["name"] = "appliance".into();
    profile["state"] = serde_json::from_str(STATE).unwrap();
    let profile_path = directory.join("profile.json");
    fs::write(&profile_path, profile.to_string()).unwrap();
    fs::create_dir_all(directory.join("esp")).unwrap();
    let state = directory.join("fs/srv/appliance");
    fs::create_dir_all(state.join("keys")).unwrap();
    fs::create_dir_all(state.join("data/deep")).unwrap();
    file(&state.join("keys/pool.key"), "the first key", 0o400);
    file(&state.join("data/run-me"), "#!/bin/sh", 0o4755);
    file(&state.join("data/deep/shared"), "text", 0o640);
    symlink("deep/shared", state.join("data/link")).unwrap();
    for name in ["data/deep/shared", "data"] {
        let flags = XattrFlags::empty();
        rustix::fs::lsetxattr(state.join(name), "user.colour", b"red", flags).unwrap_or_else(|e| {
            panic!("{}: extended attributes: {e} (try another --place)", state.display())
        });
    }
    if rustix::process::getuid().is_root() {
        let shared = state.join("data/deep/shared");
        std::os::unix::fs::chown(&shared, Some(1000), Some(1000)).unwrap();
        let time = Timespec { tv_sec: 1_000_000, tv_nsec: 0 };
        let times = Timestamps { last_access: time, last_modification: time };
        let (at, flags) = (rustix::fs::CWD, rustix::fs::AtFlags::empty());
        rustix::fs::utimensat(at, &shared, &times, flags).unwrap();
    }
    let mut backup = Command::new(strace::binary());
    backup.arg("backup").arg(directory.join("backup.tar.gz")).arg("--root");
    backup.arg(directory.join("fs")).arg("--profile").arg(profile_path);
    run(&mut backup);
    file(&state.join("data/run-me"), "changed", 0o755);
    file(&state.join("keys/mine.key"), "made after the backup", 0o440);
    fs::remove_file(state.join("keys/pool.key")).unwrap();
    file(&state.join("keys/pool.key"), "another key", 0o400);
    fs::remove_dir_all(state.join("data/deep")).unwrap();
}

fn file(path: &Path, text: &str, mode: u32) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}
