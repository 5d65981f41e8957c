//! Files are 0600 and directories 0700 from the first instant, whatever the caller's umask.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::rig::{Rig, expect, mode, tree};

/// The same command under another umask.
fn under(umask: &str, command: &Command) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", "umask $1; shift; exec \"$@\"", "sh", umask]);
    shell.arg(command.get_program()).args(command.get_args()).stdin(std::process::Stdio::null());
    shell
}

fn check_private(directory: &Path, when: &str) {
    for (name, (mode, _)) in tree(directory) {
        let wanted = if mode & 0o40_000 != 0 { 0o40_700 } else { 0o100_600 };
        assert_eq!(mode, wanted, "{when}: {name} is {mode:o}");
    }
}

#[test]
fn whatever_the_umask_is() {
    for umask in ["000", "777"] {
        let rig = Rig::new();
        let out = rig.system.file("out.tar.gz");
        expect(under(umask, &rig.back_up(&out, false)), 0, "it holds keys");
        assert_eq!(mode(&out), 0o600, "{umask}");
        expect(under(umask, &rig.back_up(&out, true)), 0, "it holds keys");
        assert_eq!(mode(&out), 0o600, "{umask}");
        expect(under(umask, &rig.stage_reset()), 0, "staged");
        check_private(&rig.on_esp(), umask);
        assert_eq!(mode(&rig.on_esp()), 0o700, "{umask}");
        expect(under(umask, &rig.cancel()), 0, "cancelled");
        expect(under(umask, &rig.stage_restore()), 0, "staged");
        check_private(&rig.system.own(), umask);
        assert_eq!(mode(&rig.system.own()), 0o700, "{umask}");
        expect(under(umask, &rig.of_restore(&["initrd", "restore"])), 0, "boot 1 of 3");
        check_private(&rig.system.state(), umask);
        check_private(&rig.system.own(), umask);
        expect(under(umask, &rig.of_restore(&["confirm"])), 0, "confirmed");
        check_private(&rig.system.own(), umask);
        expect(under(umask, &rig.stage_reset()), 0, "staged");
        expect(under(umask, &rig.of_reset(&["initrd", "reset"])), 5, "done");
        check_private(&rig.on_esp(), umask);
    }
}

/// What strace shows of the making of files and directories, with a umask that takes nothing away: a
/// mode that is narrowed afterwards was wide for an instant.
#[test]
fn from_the_first_instant() {
    let rig = Rig::new();
    let log = rig.system.file("strace");
    let out = rig.system.file("out.tar.gz");
    let mut made = 0;
    for command in [
        rig.back_up(&out, false),
        rig.back_up(&out, true),
        rig.stage_reset(),
        rig.of_reset(&["initrd", "reset"]),
        rig.stage_restore(),
        rig.of_restore(&["initrd", "restore"]),
        rig.of_restore(&["confirm"]),
    ] {
        let mut traced = Command::new("strace");
        let calls = "trace=open,openat,creat,mkdir,mkdirat,mknod,mknodat,umask";
        traced.args(["-f", "-qq", "-e", calls, "-e", "signal=none", "-o"]).arg(&log).arg("--");
        traced.arg(command.get_program()).args(command.get_args());
        let output = under("000", &traced).output().unwrap();
        assert!(matches!(output.status.code(), Some(0 | 5)), "{output:?}");
        let text = fs::read_to_string(&log).unwrap();
        made += text.lines().filter(|line| makes(line).is_some()).count();
        for line in text.lines() {
            assert!(makes(line).is_none_or(|mode| mode & 0o077 == 0), "{line}");
        }
        assert!(text.contains("umask(077)"), "{text}");
    }
    assert!(made > 40, "only {made} were seen");
}

/// The mode with which this call makes something; none when it makes nothing.
fn makes(line: &str) -> Option<u32> {
    let line = line.split_once(' ').map_or(line, |(_, call)| call.trim_start());
    let makes_file = line.contains("O_CREAT") || line.contains("O_TMPFILE");
    let is_making = line.starts_with("mk") || line.starts_with("creat") || makes_file;
    let (before, _) = line.split_once(") = ").filter(|_| is_making)?;
    // The mode is the last argument.
    u32::from_str_radix(before.rsplit_once(", ")?.1, 8).ok()
}

#[test]
fn modes_are_read_as_strace_writes_them() {
    let line = "12 openat(3, \"x\", O_WRONLY|O_CREAT|O_EXCL|O_NOFOLLOW|O_CLOEXEC, 0644) = 4";
    assert_eq!(makes(line), Some(0o644));
    assert_eq!(makes("12 mkdirat(3, \"restage\", 0755) = 0"), Some(0o755));
    assert_eq!(makes("12 openat(3, \"x\", O_RDONLY|O_CLOEXEC) = 4"), None);
}
