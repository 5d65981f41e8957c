//! Key slots that cryptsetup made, opened by restage: the same answers as `cryptsetup open
//! --test-passphrase` gives.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::disallowed_methods,
    reason = "a test: a panic is its verdict"
)]

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use restage::format::luks::{self, Header, Slot, SlotKind};

/// Runs cryptsetup with `input` on standard input.
fn cryptsetup(arguments: &[&str], input: &[u8]) {
    let mut child = Command::new("cryptsetup")
        .args(arguments)
        .stdin(Stdio::piped())
        .spawn()
        .expect("cryptsetup is needed (scripts/setup installs it)");
    child.stdin.take().unwrap().write_all(input).unwrap();
    assert!(child.wait().unwrap().success(), "cryptsetup {arguments:?}");
}

fn header(volume: &Path) -> Header {
    let bytes = std::fs::read(volume).unwrap();
    let size = luks::announced_bytes(&bytes).unwrap() as usize;
    luks::parse(&bytes[..size], 0).unwrap()
}

fn opens(volume: &Path, slot: &Slot, passphrase: &[u8]) -> bool {
    let bytes = std::fs::read(volume).unwrap();
    let (offset, size) = slot.area().unwrap();
    slot.opens(passphrase, &bytes[offset as usize..][..size as usize]).unwrap()
}

#[test]
fn each_kind_of_slot_opens_with_its_passphrase_and_no_other() {
    let directory = tempfile::tempdir().unwrap();
    let volume = directory.path().join("volume");
    std::fs::File::create(&volume).unwrap().set_len(20 << 20).unwrap();
    let path = volume.to_str().unwrap();
    let first = b"first passphrase".as_slice();
    let fast: &[&str] = &["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"];
    let small = ["--pbkdf-force-iterations", "4", "--pbkdf-memory", "1024", "--pbkdf-parallel"];
    let format = ["luksFormat", "--batch-mode", "--type", "luks2", path, "--key-file", "-"];
    cryptsetup(&[&format, fast].concat(), first);
    let key_file = directory.path().join("first");
    std::fs::write(&key_file, first).unwrap();
    let add = |more: &[&str], passphrase: &[u8]| {
        let new = directory.path().join("new");
        std::fs::write(&new, passphrase).unwrap();
        let known = ["luksAddKey", "--batch-mode", "--key-file", key_file.to_str().unwrap()];
        cryptsetup(&[&known, more, &[path, new.to_str().unwrap()]].concat(), b"");
    };
    let passphrases: [&[u8]; 5] =
        [first, b"sha512", b"argon2id, two lanes", b"argon2i", "\u{e4}\0\n binary".as_bytes()];
    add(&[fast, &["--hash", "sha512"]].concat(), passphrases[1]);
    add(&[&["--pbkdf", "argon2id"], &small[..], &["2"]].concat(), passphrases[2]);
    add(&[&["--pbkdf", "argon2i"], &small[..], &["1"]].concat(), passphrases[3]);
    add(
        &[fast, &["--keyslot-cipher", "aes-xts-plain64", "--keyslot-key-size", "256"]].concat(),
        passphrases[4],
    );

    let header = header(&volume);
    assert_eq!(header.slots.len(), passphrases.len());
    for (index, slot) in header.slots.iter().enumerate() {
        assert_eq!((slot.index as usize, &slot.kind), (index, &SlotKind::Password));
        for (other, passphrase) in passphrases.iter().enumerate() {
            assert_eq!(opens(&volume, slot, passphrase), index == other, "slot {index}, {other}");
        }
    }
}

#[test]
fn a_removed_and_a_new_slot_are_told_apart() {
    let directory = tempfile::tempdir().unwrap();
    let volume = directory.path().join("volume");
    std::fs::File::create(&volume).unwrap().set_len(20 << 20).unwrap();
    let path = volume.to_str().unwrap();
    let fast = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"];
    let format = ["luksFormat", "--batch-mode", "--type", "luks2", path, "--key-file", "-"];
    cryptsetup(&[&format[..], &fast].concat(), b"same");
    let key = directory.path().join("same");
    std::fs::write(&key, b"same").unwrap();
    let key = key.to_str().unwrap();
    cryptsetup(
        &[&["luksAddKey", "--batch-mode", "--key-file", key, path, key], &fast[..]].concat(),
        b"",
    );
    let before = header(&volume);
    assert_ne!(before.slots[0].digest, before.slots[1].digest);
    cryptsetup(&["luksKillSlot", "--batch-mode", path, "0"], b"");
    let after = header(&volume);
    assert_eq!(after.slots, before.slots[1..]);
    assert_eq!(after.identity, before.identity);
    cryptsetup(
        &[&["luksAddKey", "--batch-mode", "--key-file", key, path, key], &fast[..]].concat(),
        b"",
    );
    let again = header(&volume);
    assert_ne!(again.slots[0].digest, before.slots[0].digest);
    assert!(opens(&volume, &again.slots[0], b"same"));
}
