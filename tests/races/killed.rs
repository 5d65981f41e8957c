//! A backup that is killed at each system call which changes something: no part of it is ever seen
//! under its name, and nothing stands in the way of the next one.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::rig::{Mount, Rig, expect, tree};

const CALLS: [&str; 9] = [
    "openat",
    "write",
    "fsync",
    "linkat",
    "renameat2",
    "renameat",
    "unlinkat",
    "ftruncate",
    "close",
];

fn strace(options: &[&str], command: &Command) -> Command {
    let mut traced = Command::new("strace");
    traced.args(["-f", "-qq", "-e", "signal=none"]).args(options).arg("--");
    traced.arg(command.get_program()).args(command.get_args()).stdin(std::process::Stdio::null());
    traced
}

/// How a backup is written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    New,
    /// Over one that is there.
    Over,
    /// On a file system that has no files without a name, as FAT.
    Named,
}

/// Makes the opening of a file without a name fail as it does on FAT.
fn without_nameless(rig: &Rig, out: &Path, log: &Path) -> String {
    let mut listed =
        strace(&["-e", "trace=openat", "-o", log.to_str().unwrap()], &rig.back_up(out, true));
    assert!(listed.output().unwrap().status.success());
    let text = fs::read_to_string(log).unwrap();
    let number = text
        .lines()
        .filter(|line| line.contains("openat("))
        .position(|line| line.contains("O_TMPFILE"));
    format!("inject=openat:error=EOPNOTSUPP:when={}", number.unwrap() + 1)
}

/// Sweeps one way; how many were killed, and how many of those left something beside.
fn sweep(rig: &Rig, place: &Path, way: Way) -> (usize, usize) {
    let is_there = way == Way::Over;
    let (out, log) = (place.join("out.tar.gz"), rig.system.file("strace"));
    let reset = || {
        for name in tree(place).keys() {
            fs::remove_file(place.join(name)).unwrap();
        }
        if is_there {
            fs::write(&out, "the last one").unwrap();
        }
    };
    let (mut kills, mut left_behind) = (0, 0);
    let named = without_nameless(rig, &out, &log);
    let more: &[&str] = if way == Way::Named { &["-e", &named] } else { &[] };
    // strace injects one thing into one kind of call.
    for call in CALLS.into_iter().filter(|call| way != Way::Named || *call != "openat") {
        reset();
        let command = rig.back_up(&out, is_there);
        let trace_both = format!("trace={call},openat");
        let list = [&["-e", &trace_both, "-o", log.to_str().unwrap()], more].concat();
        let listed = strace(&list, &command).output();
        assert!(listed.unwrap().status.success());
        let count = fs::read_to_string(&log).unwrap().matches(&format!("{call}(")).count();
        for number in 1..=count {
            reset();
            let inject = format!("inject={call}:signal=KILL:when={number}");
            let mut hit = strace(
                &[&["-e", &trace_both, "-e", &inject, "-o", "/dev/null"], more].concat(),
                &command,
            );
            let output = hit.output().unwrap();
            assert_eq!(output.status.code(), None, "{call} {number}: {output:?}");
            kills += 1;
            let when = format!("{call} {number} of {count}");
            let mut left = tree(place);
            match left.remove("out.tar.gz") {
                Some((_, content)) if is_there && content == b"the last one" => {}
                Some((mode, _)) => {
                    assert_eq!(
                        mode & 0o777,
                        if mode == 0o100_700 { 0o700 } else { 0o600 },
                        "{when}"
                    );
                    let inspect = rig.of_restore(&["inspect", out.to_str().unwrap()]);
                    expect(inspect, 0, "it would restore here");
                }
                None => assert!(!is_there, "{when}: the file that was there is gone"),
            }
            left_behind += left.len();
            assert!(left.values().all(|(mode, _)| *mode == 0o100_600), "{when}");
            expect(rig.back_up(&out, true), 0, "it holds keys");
        }
    }
    (kills, left_behind)
}

#[test]
fn a_backup_that_is_killed_is_there_as_a_whole_or_not_at_all() {
    let rig = Rig::new();
    let place = Mount::tmpfs("size=4m");
    let (kills, left) = sweep(&rig, place.path(), Way::New);
    assert!(kills > 30, "only {kills}");
    assert_eq!(left, 0, "it had no name");
    // Where a file is replaced, it has another name for the length of one call.
    let (kills, left) = sweep(&rig, place.path(), Way::Over);
    assert!(kills > 30 && left <= 2, "{kills}, {left} left behind");
    // And on FAT from the beginning: it stays, and is for its owner alone.
    let (kills, left) = sweep(&rig, place.path(), Way::Named);
    assert!(kills > 10 && left > 0, "{kills}, {left} left behind");
}
