//! Backup and restore by the real binary, offline: a state file system in a directory, LUKS2 volumes
//! in files, systemd-cryptenroll for their passphrases. `RESTAGE_BIN` chooses another binary.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::cast_possible_truncation,
    reason = "a test: a panic is its verdict"
)]

mod support;

use std::fs;
use std::io::Write;
use std::process::{Command, Output, Stdio};

use restage::format::archive::{Entry, Layout, Writer};
use restage::format::envelope::{self, RESTORE_REQUEST};
use restage::request::restore::RestoreRequest;
use support::state::{OLD, ROOT_KEY, System, files, state_text};

const NEW: &str = "new-passphrase-4567";

#[track_caller]
fn expect(output: &Output, status: i32, text: &str) {
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(output.status.code(), Some(status), "{said}");
    assert!(said.contains(text), "`{text}` is not in: {said}");
    for secret in [OLD, NEW, ROOT_KEY] {
        assert!(!said.contains(secret), "a secret is told: {said}");
    }
}

/// The process is killed between the making of its report and the writing of it. Nothing has booted
/// since, so it is the OS's commands that find it.
#[test]
fn a_report_that_was_cut_off_is_made_good_by_the_os_as_well() {
    let (system, file) = changed();
    let skip = ["--skip", "encryption-recovery-keys"];
    let cut_off = |extension: &str| {
        let (name, _) =
            files(&system.own()).into_iter().find(|(name, _)| name.ends_with(extension)).unwrap();
        fs::write(system.own().join(name.replace(extension, ".RPT")), "").unwrap();
    };
    stage(&system, &file, &skip);
    cut_off(".REQ");
    expect(&system.restage(&["cancel"]), 0, "nothing is staged");
    expect(&system.restage(&["status"]), 0, "its report was lost");
    stage(&system, &file, &skip);
    cut_off(".REQ");
    stage(&system, &file, &skip);
    let status = system.restage(&["status"]);
    assert_eq!(String::from_utf8_lossy(&status.stdout).matches("its report was lost").count(), 2);
    boot(&system, 0, "boot 1 of 3");
    cut_off(".JNL");
    expect(
        &system.full(&["restore", &file, "--force"]),
        1,
        "`restage confirm`, or a boot, ends it",
    );
    cut_off(".JNL");
    expect(&system.full(&["confirm"]), 0, "confirmed: the restored state stays");
    expect(&system.restage(&["status"]), 0, "done: restore");
}

/// A backup of `system`, as a file.
fn backup(system: &System, name: &str) -> String {
    let path = system.file(name).display().to_string();
    expect(&system.restage(&["backup", &path, "--force"]), 0, "it holds keys");
    path
}

fn stage(system: &System, file: &str, more: &[&str]) {
    expect(&system.full(&[&["restore", file, "--force"], more].concat()), 0, "staged restore");
}

/// A boot: what runs in the initrd.
fn boot(system: &System, status: i32, text: &str) {
    expect(&system.full(&["initrd", "restore"]), status, text);
}

/// A machine whose hostname, passphrase and pool key are others than in the backup.
fn changed() -> (System, String) {
    let system = System::new("before", OLD);
    let file = backup(&system, "backup.tar.gz");
    // What the OS does when a person changes the passphrase.
    for (name, key) in [("root", ROOT_KEY), ("swap", support::state::SWAP_KEY)] {
        let (one, other) = (system.file("k1"), system.file("k2"));
        fs::write(&one, key).unwrap();
        fs::write(&other, NEW).unwrap();
        support::state::run(
            Command::new("cryptsetup")
                .args(["luksAddKey", "--batch-mode", "--pbkdf", "pbkdf2", "--key-file"])
                .arg(&one)
                .args(["--pbkdf-force-iterations", "1000"])
                .arg(system.volume(name))
                .arg(&other),
        );
        support::state::run(
            Command::new("cryptsetup")
                .args(["luksKillSlot", "--batch-mode"])
                .arg(system.volume(name))
                .arg("1"),
        );
        assert!(system.opens(name, NEW) && !system.opens(name, OLD));
    }
    system.write("state.txt", &state_text("after", NEW));
    system.write("zpool.local.key", "another local key");
    system.write("zpool.mine.key", "a pool made after the backup");
    system.write("notes.txt", "not in the backup");
    (system, file)
}

#[test]
fn a_backup_comes_back_and_is_confirmed() {
    let (system, file) = changed();
    stage(&system, &file, &[]);
    assert_eq!(files(&system.esp().join("restage")).len(), 1, "the flag");
    boot(&system, 0, "boot 1 of 3 without confirmation");
    assert!(system.read("state.txt").contains("Hostname: before"));
    assert!(system.read("state.txt").contains("OS.Name: after-os"), "what is installed stays");
    assert_eq!(system.read("zpool.local.key"), "local key of before");
    assert_eq!(system.read("zpool.mine.key"), "a pool made after the backup");
    assert_eq!(system.read("recovery.root.key"), ROOT_KEY);
    assert!(!system.state().join("notes.txt").exists());
    for volume in ["root", "swap"] {
        assert!(system.opens(volume, OLD) && system.opens(volume, NEW), "both in between");
    }
    expect(&system.restage(&["status"]), 0, "not confirmed: restore");
    expect(&system.full(&["restore", &file, "--force"]), 3, "is not confirmed yet");
    expect(&system.restage(&["cancel"]), 3, "is committed");

    expect(&system.full(&["confirm"]), 0, "confirmed: the restored state stays");
    for volume in ["root", "swap"] {
        assert!(system.opens(volume, OLD) && !system.opens(volume, NEW), "{volume}");
        assert!(
            system
                .opens(volume, if volume == "root" { ROOT_KEY } else { support::state::SWAP_KEY })
        );
        assert_eq!(system.slots(volume), 2, "no slot leaks");
    }
    // The key that was replaced is kept, and told, and nothing else is left.
    expect(&system.restage(&["status"]), 0, "done: restore");
    expect(&system.restage(&["superseded"]), 0, "zpool.local.key");
    let status = system.restage(&["status", "--json"]);
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    let id = status["restores"]["superseded"][0]["id"].as_str().unwrap().to_owned();
    let kept = system.own().join("superseded").join(&id);
    assert_eq!(files(&kept), [("zpool.local.key".to_owned(), b"another local key".to_vec())]);
    let left: Vec<_> = files(&system.own()).into_iter().map(|(name, _)| name).collect();
    assert_eq!(left.len(), 3, "log, report, superseded: {left:?}");
    assert!(files(&system.esp().join("restage")).is_empty());
    assert_eq!(fs::read_dir(system.state().parent().unwrap()).unwrap().count(), 2);
    boot(&system, 0, "no restore is staged");
    expect(&system.restage(&["superseded", "--remove", &id]), 3, "--force");
    expect(&system.restage(&["superseded", "--remove", &id, "--force"]), 0, "destroyed: zpool");
    expect(&system.restage(&["superseded"]), 0, "no restore has replaced a key");
}

#[test]
fn three_boots_without_confirmation_roll_back() {
    let (system, file) = changed();
    let before = system.files();
    stage(&system, &file, &[]);
    for boot_number in 1..=3 {
        boot(&system, 0, &format!("boot {boot_number} of 3 without confirmation"));
        assert!(system.read("state.txt").contains("Hostname: before"));
    }
    system.write("zpool.window.key", "a pool made in the window");
    system.write("zpool.mine.key", "changed in the window");
    boot(&system, 0, "the restore is rolled back");
    let mut wanted = before;
    wanted.push(("zpool.window.key".to_owned(), b"a pool made in the window".to_vec()));
    wanted.sort();
    assert_eq!(system.files(), wanted);
    for volume in ["root", "swap"] {
        assert!(!system.opens(volume, OLD) && system.opens(volume, NEW), "{volume}");
        assert_eq!(system.slots(volume), 2, "no slot leaks");
    }
    expect(&system.restage(&["status"]), 0, "it was not confirmed in 3 boots");
    expect(&system.restage(&["superseded"]), 0, "zpool.mine.key");
    boot(&system, 0, "no restore is staged");
    assert_eq!(system.files(), wanted);
    expect(&system.full(&["confirm"]), 0, "no restore waits");
}

#[test]
fn each_skip_item_leaves_its_part_alone() {
    for item in ["encryption-recovery-keys", "local-data-encryption-key", "network-macs", "all"] {
        let (system, file) = changed();
        let all = "encryption-recovery-keys,local-data-encryption-key,network-macs";
        let skip = if item == "all" { all } else { item };
        let skips = |what: &str| skip.contains(what);
        stage(&system, &file, &["--skip", skip]);
        boot(&system, 0, "boot 1 of 3");
        expect(&system.full(&["confirm"]), 0, "confirmed");
        let keys = skips("recovery-keys");
        let (works, gone) = if keys { (NEW, OLD) } else { (OLD, NEW) };
        for volume in ["root", "swap"] {
            assert!(system.opens(volume, works) && !system.opens(volume, gone), "{item}: {volume}");
        }
        let state = system.read("state.txt");
        assert!(
            state.contains(&format!("EncryptionRecoveryKeys[0]: {works}\n")),
            "{item}: {state}"
        );
        assert!(!state.contains(gone), "{item}");
        let local = if skips("local-data") { "another local key" } else { "local key of before" };
        assert_eq!(system.read("zpool.local.key"), local, "{item}");
        let address = if skips("network") { "enp0s3" } else { "10:66:6a:00:00:01" };
        assert!(state.contains(&format!("Hwaddr: {address}\n")), "{item}: {state}");
        assert!(state.contains("Hostname: before"), "{item}");
    }
}

#[test]
fn a_backup_of_another_installation_brings_its_passphrase_and_not_its_machine_keys() {
    let old = System::new("old", OLD);
    let file = backup(&old, "b.tar.gz");
    let new = System::new("new", NEW);
    new.write("recovery.root.key", ROOT_KEY);
    stage(&new, &file, &[]);
    boot(&new, 0, "boot 1 of 3");
    expect(&new.full(&["confirm"]), 0, "confirmed");
    assert_eq!(new.read("recovery.root.key"), ROOT_KEY);
    assert!(new.opens("root", OLD) && new.opens("swap", OLD) && !new.opens("root", NEW));
    assert!(new.read("state.txt").contains("Hostname: old"));
}

#[test]
fn a_backup_is_read_by_gnu_tar_and_one_by_gnu_tar_is_restored() {
    let system = System::new("here", OLD);
    let file = backup(&system, "ours.tar.gz");
    let listed =
        Command::new("tar").args(["--list", "--verbose", "--file", &file]).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert_eq!(listed.lines().count(), 4, "{listed}");
    assert!(listed.lines().all(|line| line.starts_with("-rw------- 0/0")), "{listed}");
    let theirs = system.file("theirs.tar.gz").display().to_string();
    support::state::run(
        Command::new("sh")
            .arg("-c")
            .arg("cd \"$1\" && tar -czf \"$2\" *")
            .arg("sh")
            .arg(system.state())
            .arg(&theirs),
    );
    expect(&system.full(&["inspect", &theirs]), 0, "it would restore here");
    stage(&system, &theirs, &[]);
    boot(&system, 0, "boot 1 of 3");
}

#[test]
fn standard_input_and_output_work() {
    let system = System::new("here", OLD);
    let archive = system.restage(&["backup", "-"]);
    assert!(archive.status.success());
    let before = system.files();
    system.write("state.txt", &state_text("changed", OLD));
    let mut child = system
        .command(&["restore", "-", "--force", "--skip", "encryption-recovery-keys"])
        .args(["--luks", &format!("root={}", system.volume("root").display())])
        .args(["--luks", &format!("swap={}", system.volume("swap").display())])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&archive.stdout).unwrap();
    expect(&child.wait_with_output().unwrap(), 0, "staged restore");
    boot(&system, 0, "boot 1 of 3");
    let (now, then) = (system.read("state.txt"), String::from_utf8(before[2].1.clone()).unwrap());
    assert_eq!(now, then.replace("OS.Name: here-os", "OS.Name: changed-os"));
}

#[test]
fn a_backup_replaces_nothing_unasked() {
    let system = System::new("here", OLD);
    let file = backup(&system, "b.tar.gz");
    let first = fs::read(&file).unwrap();
    expect(&system.restage(&["backup", &file]), 3, "exists; --force replaces it");
    assert_eq!(fs::read(&file).unwrap(), first);
    fs::create_dir(system.state().join("sub")).unwrap();
    expect(&system.restage(&["backup", &file, "--force"]), 1, "`sub`: not a regular file");
    assert_eq!(fs::read(&file).unwrap(), first);
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&file).unwrap().permissions());
    assert_eq!(mode & 0o7777, 0o600);
}

#[test]
fn a_dry_run_and_an_inspection_change_nothing() {
    let (system, file) = changed();
    let before = system.everything();
    expect(
        &system.full(&["restore", &file, "--dry-run"]),
        0,
        "replaced keys, kept aside: zpool.local.key",
    );
    expect(&system.full(&["inspect", &file]), 0, "it would restore here");
    expect(&system.restage(&["inspect", &file]), 3, "it would not restore here: volume `root`");
    let inspected = system.full(&["inspect", &file, "--json"]);
    let inspected: serde_json::Value = serde_json::from_slice(&inspected.stdout).unwrap();
    assert_eq!(inspected["restores_here"], true);
    assert!(system.everything() == before);
}

#[test]
fn a_cancelled_restore_leaves_nothing() {
    let (system, file) = changed();
    let before = system.files();
    stage(&system, &file, &[]);
    expect(&system.full(&["restore", &file, "--force"]), 3, "is staged already");
    stage(&system, &file, &["--replace"]);
    expect(&system.restage(&["cancel"]), 0, "cancelled");
    let left: Vec<_> = files(&system.own()).into_iter().map(|(name, _)| name).collect();
    assert!(left.iter().all(|name| name.ends_with("RPT") || name.ends_with("LOG")), "{left:?}");
    boot(&system, 0, "no restore is staged");
    assert_eq!(system.files(), before);
}

/// The last one is staged alone, and whole.
#[test]
fn what_replaces_a_staged_restore_is_applied() {
    let (system, file) = changed();
    let nothing_else = ["--skip", "encryption-recovery-keys"];
    stage(&system, &file, &nothing_else);
    let first = files(&system.own());
    stage(&system, &file, &[&nothing_else[..], &["--replace"]].concat());
    let second = files(&system.own());
    let archives = |files: &[(String, Vec<u8>)]| -> Vec<String> {
        let names = files.iter().map(|(name, _)| name.clone());
        names.filter(|name| name.ends_with("ARC")).collect()
    };
    assert_eq!((archives(&first).len(), archives(&second).len()), (1, 1));
    assert_ne!(archives(&first), archives(&second));
    boot(&system, 0, "the restored state is in place");
}

/// A gzip tar of these files, with this state file.
fn archive(system: &System, name: &str, files: &[(&str, &str)]) -> String {
    let path = system.file(name);
    let mut writer = Writer::new(fs::File::create(&path).unwrap(), Layout::Flat);
    for (name, text) in files {
        let entry = Entry::file(*name, text.len() as u64, 0);
        writer.append(&entry, &mut text.as_bytes()).unwrap();
    }
    writer.finish().unwrap();
    path.display().to_string()
}

/// A tar of one entry that is not a plain file, or not plainly named, after a good state file.
fn with_entry(state: &str, name: &[u8], kind: tar::EntryType) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, kind, text) in
        [(&b"state.txt"[..], tar::EntryType::Regular, state), (name, kind, "")]
    {
        let mut header = tar::Header::new_ustar();
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(0);
        header.set_entry_type(kind);
        header.set_cksum();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(text.as_bytes());
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.resize(bytes.len() + 1024, 0);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&bytes).unwrap();
    gzip.finish().unwrap()
}

/// Archives that are refused, and what is said of each.
fn bad_archives(system: &System) -> Vec<(Vec<u8>, &'static str)> {
    use tar::EntryType;
    let good = fs::read(backup(system, "good.tar.gz")).unwrap();
    let state = state_text("there", OLD);
    let of = |files: &[(&str, &str)]| fs::read(archive(system, "bad.tar.gz", files)).unwrap();
    let with = |from: &str, to: &str| {
        assert!(state.contains(from), "{from}");
        of(&[("state.txt", &state.replace(from, to))])
    };
    let entry = |name: &[u8], kind| with_entry(&state, name, kind);
    let mut flipped = good.clone();
    let end = flipped.len() - 6;
    flipped[end] ^= 1;
    vec![
        (good[..good.len() / 2].to_vec(), "it is cut short"),
        (b"this is no gzip file at all".to_vec(), "gzip: "),
        (flipped, "gzip: "),
        ([&good[..], &good[..]].concat(), "second gzip member"),
        ([&good[..], b"more"].concat(), "something after the gzip member"),
        (of(&[]), "`state.txt` of the backup: it is not there"),
        (of(&[("zpool.local.key", "x")]), "`state.txt` of the backup: it is not there"),
        (of(&[("state.txt", "hello")]), "the first line is not `#Version: N`"),
        (with("#Version: 8", "#Version: 9"), "version 9 is newer than 8"),
        (with(OLD, "short-1"), "recovery key 0 is too weak: it is shorter than 15"),
        (
            with("System.Security.Config.EncryptionRecoveryKeys[0]", "System.Other"),
            "it has no recovery key",
        ),
        (
            with("Applications.Incus.State.Version", "Applications.Other.State.Version"),
            "lists none of Incus",
        ),
        (entry(b"sub/", EntryType::Directory), "`sub/`: a directory, and only regular files"),
        (entry(b"link", EntryType::Symlink), "`link`: a symbolic link, and only regular files"),
        (entry(b"link", EntryType::Link), "`link`: a hard link, and only regular files"),
        (entry(b"null", EntryType::Char), "`null`: a character device, and only regular files"),
        (entry(b"pipe", EntryType::Fifo), "`pipe`: a FIFO, and only regular files"),
        (entry(b"../x", EntryType::Regular), "`../x`: not a plain name"),
        (entry(b"/x", EntryType::Regular), "`/x`: not a plain name"),
        (entry(b"a/b", EntryType::Regular), "`a/b`: not a plain name"),
        (entry(b"state.txt", EntryType::Regular), "`state.txt` is there twice"),
        (entry(b".state.txt.restage", EntryType::Regular), "a name that restage itself uses"),
    ]
}

#[test]
fn bad_backups_are_refused_at_staging_with_their_reason() {
    let system = System::new("here", OLD);
    let before = system.everything();
    let path = system.file("raw.tar.gz").display().to_string();
    for (bytes, why) in bad_archives(&system) {
        fs::write(&path, bytes).unwrap();
        expect(&system.full(&["restore", &path, "--force"]), 3, why);
        expect(&system.full(&["inspect", &path]), 3, why);
    }
    let good = system.file("good.tar.gz").display().to_string();
    expect(
        &system.full(&["restore", &good, "--force", "--skip", "nonsense"]),
        3,
        "`--skip nonsense`: not known",
    );
    assert!(
        system.everything().iter().filter(|(name, _)| !name.contains("restage")).eq(before.iter())
    );
    assert!(files(&system.own()).is_empty(), "nothing is left in the store");
    assert!(files(&system.esp()).is_empty() || files(&system.esp().join("restage")).is_empty());
}

/// The request is made to fit, so that it is the checks at boot that refuse.
#[test]
fn bad_backups_are_refused_at_boot_by_the_same_rules_and_nothing_is_lost() {
    let system = System::new("here", OLD);
    let good = backup(&system, "a.tar.gz");
    let before = (system.files(), system.slots("root"), system.slots("swap"));
    for (bytes, why) in bad_archives(&system) {
        stage(&system, &good, &["--skip", "encryption-recovery-keys"]);
        let find = |kind: &str| {
            let found = files(&system.own()).into_iter().find(|(name, _)| name.ends_with(kind));
            system.own().join(found.unwrap().0)
        };
        let request = fs::read(find(".REQ")).unwrap();
        let mut request: RestoreRequest = envelope::parse(&request, RESTORE_REQUEST).unwrap();
        request.archive.sha256 = restage::format::sha256_hex(&bytes);
        request.archive.bytes = bytes.len() as u64;
        fs::write(find(".REQ"), envelope::encode(&request, RESTORE_REQUEST).unwrap()).unwrap();
        fs::write(find(".ARC"), bytes).unwrap();
        boot(&system, 3, why);
        assert_eq!((system.files(), system.slots("root"), system.slots("swap")), before, "{why}");
        assert_eq!(fs::read_dir(system.state().parent().unwrap()).unwrap().count(), 2, "{why}");
        expect(&system.restage(&["status"]), 0, why);
    }
    boot(&system, 0, "no restore is staged");
}

#[test]
fn a_staged_archive_that_was_changed_is_refused_at_boot_and_nothing_is_lost() {
    let (system, file) = changed();
    let before = system.files();
    let other = System::new("other", OLD);
    let other = fs::read(backup(&other, "other.tar.gz")).unwrap();
    for (change, why) in [
        (Some(other), "it is not the one that was staged"),
        (Some(b"this is no gzip file at all".to_vec()), "gzip: "),
        (None, "it is not there"),
    ] {
        stage(&system, &file, &[]);
        let staged =
            files(&system.own()).into_iter().find(|(name, _)| name.contains(".ARC")).unwrap().0;
        match change {
            Some(bytes) => fs::write(system.own().join(&staged), bytes).unwrap(),
            None => fs::remove_file(system.own().join(&staged)).unwrap(),
        }
        boot(&system, 3, why);
        assert_eq!(system.files(), before);
        assert_eq!(system.slots("root"), 2);
        assert_eq!(
            fs::read_dir(system.state().parent().unwrap()).unwrap().count(),
            2,
            "no sibling"
        );
        expect(&system.restage(&["status"]), 0, why);
        boot(&system, 0, "no restore is staged");
    }
}

#[test]
fn a_key_that_does_not_open_its_volume_is_refused() {
    let (system, file) = changed();
    system.write("recovery.swap.key", "not the key of this volume");
    expect(
        &system.full(&["restore", &file, "--force"]),
        3,
        "volume `swap`: this machine's `recovery.swap.key` does not open it: no key slot opens with it",
    );
    stage(&system, &file, &["--skip", "encryption-recovery-keys"]);
}
