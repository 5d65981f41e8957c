//! Backup and restore of an OS that is not IncusOS: a tree of directories, links, owners and
//! attributes, no state file, no volumes with passphrases. The real binary, offline.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test: a panic is its verdict"
)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use proptest::prelude::*;
use restage::format::archive::Layout;
use rustix::fs::{AtFlags, FileType, Mode, Timespec, Timestamps, XattrFlags};

/// The rest of the profile is IncusOS's.
const STATE: &str = r#"{
    "device": "/dev/mapper/root", "filesystem": "ext4",
    "directory": "srv/appliance", "own_directory": "srv/restage",
    "layout": "tree", "allow_unencrypted": false, "settings": null,
    "local_data_key": null, "precious": ["keys/*.key"], "volumes": [],
    "health_check": null, "healthy_for_s": 0, "unconfirmed_boots": 2,
    "max_files": 100, "max_bytes": 1048576
}"#;
/// An ACL that lets user 1234 read (version 2; owner rwx, user 1234 r, group rx, mask rx, others none).
const ACL: &[u8] = &[
    2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255, 2, 0, 4, 0, 210, 4, 0, 0, 4, 0, 5, 0, 255, 255,
    255, 255, 16, 0, 5, 0, 255, 255, 255, 255, 32, 0, 0, 0, 255, 255, 255, 255,
];

struct Appliance {
    // On the disk: the file system of /tmp may know no extended attributes.
    place: tempfile::TempDir,
}

impl Appliance {
    /// With nothing in its state.
    fn empty(layout: &str) -> Self {
        let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let built_in: serde_json::Value =
            serde_json::from_str(include_str!("../src/profile/incusos.json")).unwrap();
        let mut profile = built_in;
        profile["name"] = "appliance".into();
        profile["state"] = serde_json::from_str(STATE).unwrap();
        profile["state"]["layout"] = layout.into();
        if layout == "flat" {
            profile["state"]["precious"] = serde_json::json!([]);
        }
        fs::write(place.path().join("profile.json"), profile.to_string()).unwrap();
        let new = Self { place };
        fs::create_dir_all(new.state()).unwrap();
        new
    }

    fn new() -> Self {
        let new = Self::empty("tree");
        let state = new.state();
        fs::create_dir_all(state.join("keys")).unwrap();
        fs::create_dir_all(state.join("data/deep/empty")).unwrap();
        new.file("keys/pool.key", "the first key", 0o400);
        new.file("data/run-me", "#!/bin/sh", 0o4755);
        new.file("data/deep/shared", "text", 0o640);
        new.file(&format!("data/{}", "x".repeat(120)), "a long name", 0o600);
        symlink("deep/shared", state.join("data/link")).unwrap();
        symlink("../../keys", state.join("data/deep/up")).unwrap();
        let set = |name: &str, key: &str, value: &[u8]| {
            rustix::fs::lsetxattr(state.join(name), key, value, XattrFlags::empty()).unwrap();
        };
        set("data/deep/shared", "user.colour", b"red\0\n");
        set("data/deep/shared", "system.posix_acl_access", ACL);
        set("data/deep", "system.posix_acl_default", ACL);
        set("data", "user.note", b"a directory");
        if rustix::process::getuid().is_root() {
            std::os::unix::fs::chown(state.join("data/deep/shared"), Some(1000), Some(3_000_000))
                .unwrap();
            std::os::unix::fs::lchown(state.join("data/link"), Some(12), Some(13)).unwrap();
        }
        fs::set_permissions(state.join("data/deep"), fs::Permissions::from_mode(0o2770)).unwrap();
        fs::set_permissions(&state, fs::Permissions::from_mode(0o751)).unwrap();
        for (seconds, name) in
            (1_000_000..).zip(["data/link", "data/deep/shared", "data/deep", "data"])
        {
            new.touch(name, seconds);
        }
        new.touch(".", 999_999);
        new
    }

    fn touch(&self, name: &str, seconds: i64) {
        let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
        let times = Timestamps { last_access: time, last_modification: time };
        let (at, flags) = (rustix::fs::CWD, AtFlags::SYMLINK_NOFOLLOW);
        rustix::fs::utimensat(at, self.state().join(name), &times, flags).unwrap();
    }

    fn file(&self, name: &str, text: &str, mode: u32) {
        let path = self.state().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn root(&self) -> PathBuf {
        self.place.path().join("fs")
    }

    fn state(&self) -> PathBuf {
        self.root().join("srv/appliance")
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let binary = std::env::var("RESTAGE_BIN");
        let binary = binary.unwrap_or_else(|_| env!("CARGO_BIN_EXE_restage").to_owned());
        let mut command = Command::new(binary);
        command.args(arguments).arg("--root").arg(self.root());
        command.arg("--profile").arg(self.place.path().join("profile.json"));
        command.stdin(Stdio::null()).output().unwrap()
    }

    #[track_caller]
    fn expect(&self, arguments: &[&str], status: i32, text: &str) {
        let output = self.run(arguments);
        let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
        said.push_str(&String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(status), "{said}");
        assert!(said.contains(text), "`{text}` is not in: {said}");
    }

    fn backup(&self) -> String {
        let file = self.place.path().join("backup.tar.gz").display().to_string();
        self.expect(&["backup", &file, "--force"], 0, "it holds keys");
        file
    }

    /// Everything that a backup keeps, by name.
    fn all(&self) -> BTreeMap<String, String> {
        let mut all = BTreeMap::new();
        add(&mut all, &self.state(), &self.state());
        all
    }
}

fn add(all: &mut BTreeMap<String, String>, root: &Path, path: &Path) {
    let stat = fs::symlink_metadata(path).unwrap();
    let mut names = vec![0_u8; 65536];
    let length = rustix::fs::llistxattr(path, &mut names).unwrap();
    let names = String::from_utf8(names[..length].to_vec()).unwrap();
    let xattrs: BTreeMap<_, _> = names
        .split_terminator('\0')
        .map(|name| {
            let mut value = vec![0_u8; 65536];
            let length = rustix::fs::lgetxattr(path, name, &mut value).unwrap();
            (name, value[..length].to_vec())
        })
        .collect();
    let content = if stat.is_file() {
        fs::read_to_string(path).unwrap()
    } else if stat.is_symlink() {
        fs::read_link(path).unwrap().display().to_string()
    } else {
        String::new()
    };
    let (mode, owner, group, time) = (stat.mode(), stat.uid(), stat.gid(), stat.mtime());
    let name = path.strip_prefix(root).unwrap().display().to_string();
    all.insert(name, format!("{mode:o} {owner}:{group} {time} {xattrs:?} {content}"));
    if stat.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            add(all, root, &entry.unwrap().path());
        }
    }
}

#[test]
fn a_tree_comes_back_with_all_its_attributes() {
    let appliance = Appliance::new();
    let before = appliance.all();
    assert_eq!(before.len(), 11);
    let file = appliance.backup();
    let state = appliance.state();
    // Everything is changed.
    fs::remove_dir_all(state.join("data")).unwrap();
    appliance.file("data", "now a file", 0o777);
    appliance.file("keys/pool.key", "another key", 0o400);
    appliance.file("keys/mine.key", "made after the backup", 0o440);
    fs::set_permissions(&state, fs::Permissions::from_mode(0o700)).unwrap();
    appliance.expect(&["inspect", &file], 0, "link  data/deep/up -> ../../keys");
    appliance.expect(&["restore", &file, "--force"], 0, "replaced keys, kept aside: keys/pool.key");
    appliance.expect(&["initrd", "restore"], 0, "boot 1 of 2 without confirmation");
    let mut after = appliance.all();
    assert!(after.remove("keys/mine.key").unwrap().ends_with("made after the backup"));
    assert_eq!(after, before);
    appliance.expect(&["confirm"], 0, "the restored state stays");
    appliance.expect(&["superseded"], 0, "keys");
    let kept = appliance.root().join("srv/restage/superseded");
    let kept = fs::read_dir(kept).unwrap().next().unwrap().unwrap().path().join("keys/pool.key");
    assert_eq!(fs::read_to_string(&kept).unwrap(), "another key");
    assert_eq!(fs::metadata(kept).unwrap().mode() & 0o7777, 0o400);
    assert_eq!(fs::read_dir(appliance.state().parent().unwrap()).unwrap().count(), 2);
}

/// Files by name, and what becomes of them.
type Files = BTreeMap<String, Vec<u8>>;

fn any_files() -> impl Strategy<Value = Files> {
    let name = "[a-zA-Z0-9._ é-]{1,40}".prop_filter("a name", |name| {
        restage::format::archive::unfit_name(name, Layout::Flat).is_none()
    });
    prop::collection::btree_map(name, prop::collection::vec(any::<u8>(), 0..3000), 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn backup_and_restore_are_the_identity(files in any_files(), later in any_files(), tree in any::<bool>()) {
        let appliance = Appliance::empty(if tree { "tree" } else { "flat" });
        let put = |files: &Files| {
            fs::remove_dir_all(appliance.state()).unwrap();
            fs::create_dir(appliance.state()).unwrap();
            for (name, bytes) in files {
                fs::write(appliance.state().join(name), bytes).unwrap();
            }
        };
        put(&files);
        let backup = appliance.backup();
        put(&later);
        appliance.expect(&["restore", &backup, "--force"], 0, "staged restore");
        appliance.expect(&["initrd", "restore"], 0, "boot 1 of 2");
        let found: Files = fs::read_dir(appliance.state())
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
            .collect();
        prop_assert_eq!(found, files);
    }
}

#[test]
fn a_tree_rolls_itself_back() {
    let appliance = Appliance::new();
    let file = appliance.backup();
    appliance.file("data/run-me", "changed", 0o755);
    let before = appliance.all();
    appliance.expect(&["restore", &file, "--force"], 0, "staged restore");
    for boot in ["boot 1 of 2", "boot 2 of 2"] {
        appliance.expect(&["initrd", "restore"], 0, boot);
    }
    appliance.file("keys/window.key", "made in the window", 0o400);
    fs::create_dir(appliance.state().join("data/deep/new")).unwrap();
    appliance.expect(&["initrd", "restore"], 0, "the restore is rolled back");
    let mut after = appliance.all();
    assert!(after.remove("keys/window.key").unwrap().ends_with("made in the window"));
    // Its directory has changed by that.
    let without_time = |all: &BTreeMap<String, String>| -> Vec<(String, String)> {
        all.iter()
            .filter(|(name, _)| *name != "keys")
            .map(|(n, a)| (n.clone(), a.clone()))
            .collect()
    };
    assert_eq!(without_time(&after), without_time(&before));
}

#[test]
fn what_no_backup_can_hold_is_named() {
    let appliance = Appliance::new();
    let file = appliance.place.path().join("b.tar.gz").display().to_string();
    let state = appliance.state();
    let socket = std::os::unix::net::UnixListener::bind(state.join("data/socket")).unwrap();
    appliance.expect(&["backup", &file], 0, "it holds keys");
    drop(socket);
    let listed = Command::new("tar").args(["--list", "--file", &file]).output().unwrap();
    assert!(!String::from_utf8_lossy(&listed.stdout).contains("socket"));
    for (name, target, why) in [
        ("data/out", "../../other", "`data/out`: the target of the link lies outside"),
        ("data/root", "/etc/shadow", "`data/root`: the target of the link is absolute"),
        ("data/odd", "deep/../deep", "`data/odd`: the target of the link is not some `..`"),
    ] {
        symlink(target, state.join(name)).unwrap();
        appliance.expect(&["backup", &file, "--force"], 1, why);
        fs::remove_file(state.join(name)).unwrap();
    }
    let (at, pipe) = (rustix::fs::CWD, state.join("data/pipe"));
    rustix::fs::mknodat(at, &pipe, FileType::Fifo, Mode::RUSR, 0).unwrap();
    appliance.expect(
        &["backup", &file, "--force"],
        1,
        "`data/pipe`: neither file, directory nor link",
    );
}

#[test]
fn what_the_profile_does_not_have_cannot_be_skipped() {
    let appliance = Appliance::new();
    let file = appliance.backup();
    for item in ["encryption-recovery-keys", "local-data-encryption-key", "network-macs"] {
        let said = format!("`--skip {item}`: this OS has no such thing");
        appliance.expect(&["restore", &file, "--force", "--skip", item], 3, &said);
    }
    let before = appliance.all();
    // A key that stays needs its place.
    fs::rename(appliance.state().join("keys"), appliance.state().join("k")).unwrap();
    fs::write(appliance.state().join("keys"), "a file").unwrap();
    let other = appliance.backup();
    fs::remove_file(appliance.state().join("keys")).unwrap();
    fs::rename(appliance.state().join("k"), appliance.state().join("keys")).unwrap();
    appliance.touch(".", 999_999);
    appliance.expect(&["restore", &other, "--force"], 3, "in the backup `keys` is in its place");
    assert_eq!(appliance.all(), before);
}
