//! Links, pipes, devices, directories and files that are there already, under every name that is
//! written and that somebody can know before.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode};

use crate::rig::{Rig, ended, expect, mode, tree};

/// What may be planted.
const KINDS: [&str; 6] = ["link", "dangling link", "pipe", "device", "directory", "file"];

fn plant(rig: &Rig, kind: &str, at: &Path) {
    let node = |kind, device| {
        rustix::fs::mknodat(CWD, at, kind, Mode::from_raw_mode(0o666), device).unwrap();
    };
    match kind {
        "link" => symlink(rig.outside(), at).unwrap(),
        "dangling link" => symlink(rig.outside().join("new"), at).unwrap(),
        "pipe" => node(FileType::Fifo, 0),
        "device" => node(FileType::CharacterDevice, rustix::fs::makedev(1, 3)),
        "directory" => fs::create_dir(at).unwrap(),
        _ => fs::write(at, "of a person").unwrap(),
    }
}

#[test]
fn restages_directories_are_directories_or_nothing_is_staged() {
    for kind in KINDS {
        let rig = Rig::new();
        plant(&rig, kind, &rig.on_esp());
        let (code, said) = ended(rig.stage_reset());
        rig.check_outside(kind);
        if kind == "directory" {
            // As root's umask has left it: seeds are no secret there.
            assert_eq!(code, 3, "{said}");
            assert!(said.contains("may be read by other users"), "{said}");
            assert!(rig.pending().is_empty());
            rustix::fs::chmod(rig.on_esp(), Mode::RWXU).unwrap();
            expect(rig.stage_reset(), 0, "staged factory reset");
        } else {
            // As a directory on FAT that is broken: the next one is used.
            let (one, other) = (rig.on_esp().exists(), rig.disk.esp().join("restage.1").exists());
            assert!(code != 0 || other, "{kind}: {one} {said}");
        }
        let (_, said) = ended(rig.cancel());
        rig.check_outside(&format!("{kind}: {said}"));
    }
    for below in ["var/lib/restage", "var/lib", "var"] {
        for kind in KINDS {
            let rig = Rig::new();
            let at = rig.system.root().join(below);
            if !below.ends_with("restage") {
                fs::rename(&at, rig.system.file("moved")).unwrap();
            }
            plant(&rig, kind, &at);
            for command in [rig.stage_restore(), rig.of_restore(&["initrd", "restore"])] {
                let (code, said) = ended(command);
                // A directory alone is one of ours, or one without a state.
                let wanted: &[i32] = if kind == "directory" { &[0, 1, 3] } else { &[1, 3] };
                assert!(wanted.contains(&code), "{below} {kind}: {code} {said}");
                rig.check_outside(below);
            }
            let (_, said) = ended(rig.cancel());
            rig.check_outside(&said);
        }
    }
}

#[test]
fn what_others_may_change_or_own_is_none_to_stage_in() {
    let rig = Rig::new();
    // On the ESP it is the mount that says who reads files; elsewhere they are root's alone.
    let changed = (0o1777, "may be changed by other users");
    let read = (0o755, "may be read by");
    for (own, stage, cases) in [
        (
            rig.on_esp(),
            Rig::stage_reset as fn(&Rig) -> std::process::Command,
            [changed, read].as_slice(),
        ),
        (rig.system.own(), Rig::stage_restore, &[changed]),
    ] {
        fs::create_dir(&own).unwrap();
        for (bits, why) in cases {
            rustix::fs::chmod(&own, Mode::from_raw_mode(*bits)).unwrap();
            expect(stage(&rig), 3, why);
            // It is foretold.
            let mut dry_run = stage(&rig);
            dry_run.arg("--dry-run");
            expect(dry_run, 3, why);
        }
        rustix::fs::chmod(&own, Mode::RWXU).unwrap();
        std::os::unix::fs::chown(&own, Some(1000), None).unwrap();
        expect(stage(&rig), 3, "belongs to user 1000");
        assert!(rig.pending().is_empty(), "{:?}", rig.pending());
        std::os::unix::fs::chown(&own, Some(0), None).unwrap();
        expect(stage(&rig), 0, "staged");
        expect(rig.cancel(), 0, "cancelled");
    }
}

#[test]
fn what_lies_beside_the_state_is_removed_and_not_followed() {
    let names = [".incus-os.new.restage", ".restage-try-a", ".restage-try-b"];
    for name in names {
        for kind in KINDS {
            let rig = Rig::new();
            let at = rig.system.state().with_file_name(name);
            plant(&rig, kind, &at);
            expect(rig.stage_restore(), 0, "staged restore");
            rig.check_outside(name);
            expect(rig.of_restore(&["initrd", "restore"]), 0, "boot 1 of 3");
            expect(rig.of_restore(&["confirm"]), 0, "confirmed");
            rig.check_outside(name);
            assert!(fs::symlink_metadata(&at).is_err(), "{name} {kind} is still there");
        }
    }
}

/// What a backup is written to: only a file is replaced, and only if asked.
#[test]
fn a_backup_is_written_to_nothing_but_a_file() {
    let rig = Rig::new();
    for force in [false, true] {
        for kind in KINDS {
            let place = tempfile::tempdir().unwrap();
            let out = place.path().join("out.tar.gz");
            plant(&rig, kind, &out);
            let before = tree(place.path());
            let (code, said) = ended(rig.back_up(&out, force));
            rig.check_outside(kind);
            if force && kind == "file" {
                assert_eq!((code, mode(&out)), (0, 0o600), "{said}");
                let (_, said) = ended(rig.of_restore(&["inspect", out.to_str().unwrap()]));
                assert!(said.contains("it would restore here"), "{said}");
                assert_eq!(tree(place.path()).len(), 1);
            } else {
                assert_eq!(code, 3, "{kind} {force}: {said}");
                assert_eq!(tree(place.path()), before, "{kind} {force}");
            }
        }
    }
}

/// In a directory like /tmp, where others make names: none that they can foresee is used.
#[test]
fn a_backup_in_a_directory_of_everybody() {
    let rig = Rig::new();
    let place = tempfile::tempdir().unwrap();
    rustix::fs::chmod(place.path(), Mode::from_raw_mode(0o1777)).unwrap();
    let out = place.path().join("out.tar.gz");
    // The names that the process, whatever its number, might take.
    for number in 1..100_000 {
        if number % 97 == 0 {
            let name = format!(".out.tar.gz.restage-{number}");
            symlink(rig.outside().join("new"), place.path().join(name)).unwrap();
        }
    }
    let before = tree(place.path());
    expect(rig.back_up(&out, false), 0, "it holds keys");
    let mut after = tree(place.path());
    assert_eq!(after.remove("out.tar.gz").map(|(mode, _)| mode), Some(0o100_600));
    assert_eq!(after, before);
    rig.check_outside("a planted name was used");
}

/// The old state is destroyed at confirm, and nothing that has another name besides.
#[test]
fn what_has_another_name_elsewhere_is_not_overwritten() {
    let rig = Rig::new();
    let elsewhere: PathBuf = rig.system.root().join("elsewhere");
    for name in ["notes.txt", "zpool.mine.key"] {
        rig.system.write(name, "of somebody else");
    }
    fs::hard_link(rig.system.state().join("notes.txt"), &elsewhere).unwrap();
    expect(rig.stage_restore(), 0, "staged restore");
    expect(rig.of_restore(&["initrd", "restore"]), 0, "boot 1 of 3");
    expect(rig.of_restore(&["confirm"]), 0, "confirmed");
    assert!(!rig.system.state().join("notes.txt").exists());
    assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "of somebody else");
}
