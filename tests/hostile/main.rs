//! Hostile files against the real binary: each is refused with the reason, at staging and at boot, and
//! afterwards every byte is as it was. `RESTAGE_BIN` chooses another binary, and `RESTAGE_CORPUS` a
//! directory that the corpus is written to.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test: a panic is its verdict"
)]

mod files;
#[path = "../fixtures/mod.rs"]
mod fixtures;
mod rig;
#[path = "../support/mod.rs"]
mod support;

use std::fs;
use std::process::Output;

use fixtures::archives::{self, Hostile};
use restage::format::archive::Layout;
use rig::Rig;

fn said(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    format!("{}{}", String::from_utf8_lossy(out), String::from_utf8_lossy(err))
}

/// What is wrong with an answer to a hostile file, if anything.
fn wrong(hostile: &Hostile, output: &Output) -> Option<String> {
    let said = said(output);
    let is_told = !hostile.message.is_empty() && said.contains(hostile.message);
    // A name or a key in a message must not reach the terminal as it is.
    let is_clean = said.chars().all(|c| c == '\n' || !c.is_control());
    let is_refused = output.status.code() == Some(3);
    (!is_told || !is_clean || !is_refused).then(|| {
        format!(
            "{} ({}): {}, `{}` wanted: {}",
            hostile.name,
            hostile.rule,
            output.status,
            hostile.message,
            said.escape_debug()
        )
    })
}

/// Every hostile file has its turn, and all that went wrong is told.
fn each<T>(corpus: &[T], mut one: impl FnMut(&T) -> Option<String>) {
    let failures: Vec<String> = corpus.iter().filter_map(&mut one).collect();
    assert!(
        failures.is_empty(),
        "{} of {}:\n{}",
        failures.len(),
        corpus.len(),
        failures.join("\n")
    );
}

fn corpus(layout: Layout) -> Vec<Hostile> {
    match layout {
        Layout::Flat => archives::flat(
            &support::state::state_text("other", support::state::OLD),
            rig::FLAT_LIMITS,
        ),
        Layout::Tree => archives::tree(rig::TREE_LIMITS),
    }
}

const LAYOUTS: [Layout; 2] = [Layout::Flat, Layout::Tree];

#[test]
fn there_are_as_many_as_there_have_to_be() {
    let all: Vec<Hostile> = LAYOUTS.into_iter().flat_map(corpus).collect();
    println!("{} hostile archives", all.len());
    assert!(all.len() >= 300, "{}", all.len());
    let Ok(directory) = std::env::var("RESTAGE_CORPUS") else { return };
    for hostile in all {
        let path = std::path::Path::new(&directory).join(format!("{}.tar.gz", hostile.name));
        fs::write(path, hostile.bytes).unwrap();
    }
}

#[test]
fn a_hostile_archive_is_not_staged_and_nothing_changes() {
    for layout in LAYOUTS {
        let rig = Rig::new(layout);
        let before = rig.everything();
        let file = rig.file("hostile.tar.gz");
        each(&corpus(layout), |hostile| {
            fs::write(&file, &hostile.bytes).unwrap();
            let staged = rig.restage(&["restore", file.to_str().unwrap(), "--force"]);
            let is_changed = rig.everything() != before;
            wrong(hostile, &staged)
                .or_else(|| is_changed.then(|| format!("{}: a change", hostile.name)))
        });
    }
}

#[test]
fn a_hostile_archive_is_told_apart_by_inspect() {
    for layout in LAYOUTS {
        let rig = Rig::new(layout);
        let file = rig.file("hostile.tar.gz");
        each(&corpus(layout), |hostile| {
            fs::write(&file, &hostile.bytes).unwrap();
            wrong(hostile, &rig.restage(&["inspect", file.to_str().unwrap()]))
        });
    }
}

/// It is as good as the staged one, and not the staged one.
#[test]
fn another_archive_than_the_staged_one_is_refused_at_boot() {
    let rig = Rig::new(Layout::Flat);
    let staged = rig.stage_a_good_one();
    let other = Rig::new(Layout::Flat);
    other.change();
    let [files, _] = other.stage_a_good_one();
    let good = rig::ending_with(&staged[0], "ARC");
    // The gzip header says which system made it (RFC 1952 §2.3.1), and no reader cares.
    let mut same_length = good.to_vec();
    same_length[9] ^= 1;
    let other = rig::ending_with(&files, "ARC");
    assert!(other.len() != good.len());
    let before = rig.kept();
    for (archive, why) in [(&same_length[..], "its SHA-256 differs"), (other, "bytes, and not ")] {
        rig.swap_archive(&staged, archive);
        let booted = rig.restage(&["initrd", "restore"]);
        let said = said(&booted);
        assert_eq!(booted.status.code(), Some(3), "{said}");
        assert!(said.contains("it is not the one that was staged: "), "{said}");
        assert!(said.contains(why), "{said}");
        assert!(rig.kept() == before && rig.left().is_empty(), "{:?}", rig.left());
    }
}

/// As if somebody had put it in the place of the staged one, with its digest in the request.
#[test]
fn a_hostile_archive_is_refused_at_boot_and_nothing_is_lost() {
    for layout in LAYOUTS {
        let rig = Rig::new(layout);
        let staged = rig.stage_a_good_one();
        let before = rig.kept();
        each(&corpus(layout), |hostile| {
            rig.put_in_place(&staged, &hostile.bytes);
            let booted = rig.restage(&["initrd", "restore"]);
            let is_changed = rig.kept() != before;
            let left = rig.left();
            let told = wrong(hostile, &booted);
            told.or_else(|| is_changed.then(|| format!("{}: a change", hostile.name)))
                .or_else(|| (!left.is_empty()).then(|| format!("{}: left: {left:?}", hostile.name)))
        });
        let second = rig.restage(&["initrd", "restore"]);
        assert_eq!(second.status.code(), Some(0), "{}", said(&second));
    }
}
