//! Two at once, and a lock that does not outlive who had it.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags};

use crate::rig::{Rig, ended, expect, tree};

/// Runs both at the same time.
fn at_once(one: Command, other: Command) -> [(i32, String); 2] {
    std::thread::scope(|scope| {
        let [one, other] = [one, other].map(|command| scope.spawn(|| ended(command)));
        [one.join().unwrap(), other.join().unwrap()]
    })
}

fn staged(rig: &Rig) -> usize {
    rig.pending().iter().filter(|name| name.ends_with(".REQ")).count()
}

#[test]
fn of_two_that_stage_one_wins() {
    let rig = Rig::new();
    type Stage = fn(&Rig) -> Command;
    let pairs: [(Stage, Stage); 3] = [
        (Rig::stage_reset, Rig::stage_reset),
        (Rig::stage_restore, Rig::stage_restore),
        (Rig::stage_reset, Rig::stage_restore),
    ];
    for round in 0..20 {
        for (one, other) in pairs {
            let ended_so = at_once(one(&rig), other(&rig));
            let done = ended_so.iter().filter(|(code, _)| *code == 0).count();
            let refused = ended_so.iter().filter(|(code, said)| {
                *code == 3 && said.contains("is staged already; withdraw it")
            });
            assert_eq!((done, refused.count(), staged(&rig)), (1, 1, 1), "{round}: {ended_so:?}");
            expect(rig.cancel(), 0, "cancelled");
            assert!(rig.pending().is_empty(), "{round}: {:?}", rig.pending());
        }
    }
}

#[test]
fn with_replace_the_last_one_is_staged_alone() {
    let rig = Rig::new();
    for round in 0..20 {
        let replaced = |mut command: Command| {
            command.arg("--replace");
            command
        };
        let ended_so = at_once(replaced(rig.stage_reset()), replaced(rig.stage_reset()));
        assert!(ended_so.iter().all(|(code, _)| *code == 0), "{round}: {ended_so:?}");
        assert_eq!(staged(&rig), 1, "{round}");
        let ended_so = at_once(replaced(rig.stage_reset()), rig.cancel());
        assert!(ended_so.iter().all(|(code, _)| *code == 0), "{round}: {ended_so:?}");
        assert!(staged(&rig) <= 1, "{round}");
    }
}

/// A reset that has looked for restores, and found none, when one is staged.
#[test]
fn a_restore_that_was_faster_is_seen_under_the_lock() {
    let rig = Rig::new();
    let reset = rig.stage_reset();
    let mut slow = Command::new("strace");
    slow.args(["-qq", "-o", "/dev/null", "-e", "trace=flock"]);
    slow.args(["-e", "inject=flock:delay_enter=2000000:when=1", "--"]);
    slow.arg(reset.get_program()).args(reset.get_args()).stdin(std::process::Stdio::null());
    let begin = Instant::now();
    let slow = std::thread::scope(|scope| {
        let slow = scope.spawn(|| ended(slow));
        std::thread::sleep(Duration::from_millis(700));
        expect(rig.stage_restore(), 0, "staged restore");
        assert!(begin.elapsed() < Duration::from_millis(1900), "too slow to be the faster one");
        slow.join().unwrap()
    });
    assert_eq!(slow.0, 3, "{}", slow.1);
    assert!(slow.1.contains("a restore ("), "{}", slow.1);
    assert_eq!(staged(&rig), 1);
}

#[test]
fn of_two_backups_to_one_name_one_wins() {
    let rig = Rig::new();
    for round in 0..20 {
        let place = tempfile::tempdir().unwrap();
        let out = place.path().join("out.tar.gz");
        let ended_so = at_once(rig.back_up(&out, false), rig.back_up(&out, false));
        let mut codes = ended_so.clone().map(|(code, _)| code);
        codes.sort_unstable();
        assert!(matches!(codes, [0, 1 | 3]), "{round}: {ended_so:?}");
        assert_eq!(tree(place.path()).len(), 1, "{round}");
        expect(rig.of_restore(&["inspect", out.to_str().unwrap()]), 0, "it would restore here");
    }
}

#[test]
fn the_lock_names_who_has_it_and_dies_with_him() {
    let rig = Rig::new();
    fs::create_dir(rig.on_esp()).unwrap();
    rustix::fs::chmod(rig.on_esp(), Mode::RWXU).unwrap();
    let mut holder = Command::new("flock")
        .arg("--no-fork")
        .arg(rig.on_esp())
        .args(["sleep", "100"])
        .spawn()
        .unwrap();
    let is_held = || {
        let opened = rustix::fs::open(rig.on_esp(), OFlags::RDONLY, Mode::empty()).unwrap();
        rustix::fs::flock(&opened, FlockOperation::NonBlockingLockExclusive).is_err()
    };
    while !is_held() {
        std::thread::sleep(Duration::from_millis(5));
    }
    let (code, said) = ended(rig.stage_reset());
    assert_eq!(code, 1, "{said}");
    let who = format!("another restage is at work here: process {} (sleep)", holder.id());
    assert!(said.contains(&who), "`{who}` is not in: {said}");
    assert!(rig.pending().is_empty());
    // With SIGKILL.
    holder.kill().unwrap();
    holder.wait().unwrap();
    expect(rig.stage_reset(), 0, "staged factory reset");
}
