//! Somebody who swaps a directory for a link, there and back, as fast as he can, while restage works.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode, RenameFlags};

use crate::rig::{Rig, ended, tree};

/// Swaps `at` with a link to the outside as long as `work` takes; how often.
fn while_swapped(rig: &Rig, at: &Path, work: impl FnOnce()) -> usize {
    let link = rig.system.file("link");
    let _ = fs::remove_file(&link);
    symlink(rig.outside(), &link).unwrap();
    let (stop, swaps) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let swapped = rustix::fs::renameat_with(CWD, at, CWD, &link, RenameFlags::EXCHANGE);
                // It may not be there yet.
                swaps.fetch_add(usize::from(swapped.is_ok()), Ordering::Relaxed);
            }
        });
        work();
        stop.store(true, Ordering::Relaxed);
    });
    // The directory where it belongs, and the link away.
    if at.is_symlink() {
        rustix::fs::renameat_with(CWD, at, CWD, &link, RenameFlags::EXCHANGE).unwrap();
    }
    swaps.into_inner()
}

/// A program that works by path is led outside: the swaps are fast enough to be met.
#[test]
fn the_race_is_one_that_a_naive_program_loses() {
    let rig = Rig::new();
    let at = rig.on_esp();
    fs::create_dir(&at).unwrap();
    let mut lost = 0;
    while_swapped(&rig, &at, || {
        let until = Instant::now() + Duration::from_secs(20);
        while lost == 0 && Instant::now() < until {
            let is_directory = fs::symlink_metadata(&at).is_ok_and(|found| found.is_dir());
            if is_directory && fs::write(at.join("file"), "secret").is_ok() {
                lost = tree(rig.outside()).len() - 1;
            }
        }
    });
    assert!(lost > 0, "nobody was led outside");
}

fn race(rounds: usize, what: &str, at: impl Fn(&Rig) -> std::path::PathBuf, one: impl Fn(&Rig)) {
    let rig = Rig::new();
    let at = at(&rig);
    fs::create_dir_all(&at).unwrap();
    if at.ends_with("restage") {
        rustix::fs::chmod(&at, Mode::RWXU).unwrap();
    }
    let swaps = while_swapped(&rig, &at, || {
        for round in 0..rounds {
            one(&rig);
            rig.check_outside(&format!("{what}, round {round}"));
        }
    });
    assert!(swaps > rounds, "{what}: only {swaps} swaps");
    // Nothing is in the way of who comes after.
    let (code, said) = ended(rig.cancel());
    assert!(matches!(code, 0 | 1), "{said}");
    rig.check_outside(what);
}

#[test]
fn staging_a_reset() {
    race(40, "the ESP's", Rig::on_esp, |rig| {
        ended(rig.stage_reset());
        ended(rig.cancel());
    });
}

#[test]
fn staging_a_restore() {
    race(
        40,
        "restage's own",
        |rig| rig.system.own(),
        |rig| {
            ended(rig.stage_restore());
            ended(rig.cancel());
        },
    );
    race(
        40,
        "its parent",
        |rig| rig.system.own().parent().unwrap().to_owned(),
        |rig| {
            ended(rig.stage_restore());
            ended(rig.cancel());
        },
    );
}

/// The name itself, between a file and a link: the link is replaced or refused, and never written to.
#[test]
fn the_name_of_a_backup() {
    let rig = Rig::new();
    let place = tempfile::tempdir().unwrap();
    let (out, link) = (place.path().join("out.tar.gz"), place.path().join("link"));
    let (stop, mut written) = (AtomicBool::new(false), 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let _ = symlink(rig.outside().join("precious"), &link);
                let _ = fs::rename(&link, &out);
                let _ = fs::remove_file(&out);
                let _ = fs::write(&link, "a file");
                let _ = fs::rename(&link, &out);
            }
        });
        for round in 0..100 {
            let (code, said) = ended(rig.back_up(&out, round % 2 == 0));
            written += usize::from(code == 0);
            assert!(matches!(code, 0 | 1 | 3), "{said}");
            rig.check_outside(&format!("round {round}"));
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(written > 0, "no backup was written at all");
    let _ = fs::remove_file(&link);
    let _ = fs::remove_file(&out);
    assert_eq!(tree(place.path()).len(), 0, "{:?}", tree(place.path()).keys());
}
