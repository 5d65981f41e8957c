//! Secrets are where they are needed, and nowhere else: not in arguments, in no child's environment but
//! the one that takes it, in no memory image, and not in the memory of a process that is about to end.

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::rig::{Rig, expect};
use crate::support::state::{OLD, ROOT_KEY, SWAP_KEY, state_text};

const SEED: &str = "a-secret-of-the-seed-0f8e2d";
const NEW: &str = "a-new-recovery-passphrase-77c1";
const POOL: &str = "local key of before";

/// Where and how a program was started, as strace shows it.
fn started(traced: &str) -> Vec<(String, String)> {
    let calls = traced.lines().filter(|line| line.contains("execve(") && !line.contains("ENOENT"));
    calls
        .map(|line| {
            // execve("/path", ["argument", ...], ["NAME=value", ...]) = 0
            let (before, environment) = line.split_once("], [").expect(line);
            (before.to_owned(), environment.to_owned())
        })
        .collect()
}

/// A restore that brings other passphrases, and a reset with a seed.
#[test]
fn only_the_child_that_takes_a_passphrase_is_given_it() {
    let rig = Rig::new();
    rig.system.write("state.txt", &state_text("other", NEW));
    let backup = rig.system.file("other.tar.gz");
    expect(rig.back_up(&backup, false), 0, "it holds keys");
    rig.system.write("state.txt", &state_text("after", OLD));
    let data = rig.system.file("data.json");
    let text =
        format!(r#"{{"allow_tpm_reset_failure":true,"seeds":{{"incus":{{"token":"{SEED}"}}}}}}"#);
    fs::write(&data, text).unwrap();
    let data = format!("@{}", data.display());
    let (log, mut programs, mut given) = (rig.system.file("strace"), 0, 0);
    for command in [
        rig.of_restore(&["restore", backup.to_str().unwrap(), "--force"]),
        rig.of_restore(&["initrd", "restore"]),
        rig.of_restore(&["confirm"]),
        rig.of_reset(&["factory-reset", "--force", "-d", &data]),
        rig.of_reset(&["initrd", "reset"]),
    ] {
        let mut traced = Command::new("strace");
        traced.args(["-f", "-qq", "-v", "-s", "4096", "-e", "trace=execve", "-o"]).arg(&log);
        traced.arg("--").arg(command.get_program()).args(command.get_args());
        let output = traced.stdin(Stdio::null()).output().unwrap();
        assert!(matches!(output.status.code(), Some(0 | 5)), "{output:?}");
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        let started = started(&fs::read_to_string(&log).unwrap());
        programs += started.len();
        for secret in [SEED, NEW, OLD, ROOT_KEY, SWAP_KEY, POOL] {
            assert!(!said.contains(secret), "told: {secret}");
            for (arguments, environment) in &started {
                assert!(!arguments.contains(secret), "{arguments}");
                if environment.contains(secret) {
                    given += 1;
                    let is_taker = arguments.contains("systemd-cryptenroll\", [");
                    assert!(is_taker && secret == NEW, "{arguments} is given {secret}");
                }
            }
        }
    }
    // Itself five times, and systemd-cryptenroll: two that enroll, two that remove.
    assert!(programs >= 9, "only {programs} were seen");
    assert_eq!(given, 2, "the new passphrase for each volume");
}

/// A process that waits before this call of its own, for its memory to be looked at.
struct Waiting {
    tracer: Child,
    process: String,
}

impl Waiting {
    fn before(call: &str, command: &Command, log: &Path) -> Self {
        Self::as_user("root", call, command, log)
    }

    fn as_user(user: &str, call: &str, command: &Command, log: &Path) -> Self {
        let inject = format!("inject={call}:delay_enter=60000000:when=1");
        let mut traced = Command::new("strace");
        traced.args([
            "-qq",
            "-f",
            "--seccomp-bpf",
            "-u",
            user,
            "-e",
            &format!("trace=execve,{call}"),
            "-e",
            &inject,
            "-o",
        ]);
        traced.arg(log).arg("--").arg(command.get_program()).args(command.get_args());
        traced.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut tracer = traced.spawn().unwrap();
        let begin = Instant::now();
        loop {
            // The call is shown when it is entered.
            let seen = fs::read_to_string(log).unwrap_or_default();
            if let Some(line) = seen.lines().find(|line| line.contains(&format!("{call}("))) {
                let process = line.split_whitespace().next().unwrap().to_owned();
                return Self { tracer, process };
            }
            assert!(tracer.try_wait().unwrap().is_none(), "ended before {call}: {seen}");
            assert!(begin.elapsed() < Duration::from_secs(50), "no {call}: {seen}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn about(&self, file: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{file}", self.process)).unwrap()
    }

    /// Everything in memory that the process may write.
    fn memory(&self) -> Vec<u8> {
        let mut memory = fs::File::open(format!("/proc/{}/mem", self.process)).unwrap();
        let mut all = Vec::new();
        for line in self.about("maps").lines().filter(|line| line.contains(" rw")) {
            let (start, end) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
            let [start, end] = [start, end].map(|at| u64::from_str_radix(at, 16).unwrap());
            let mut part = vec![0; usize::try_from(end - start).unwrap()];
            memory.seek(SeekFrom::Start(start)).unwrap();
            // Some of the kernel's own pages cannot be read.
            if memory.read_exact(&mut part).is_ok() {
                all.extend(part);
            }
        }
        all
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // It may have ended.
        let _ = Command::new("kill").args(["-KILL", &self.process]).status();
        let _ = self.tracer.kill();
        let _ = self.tracer.wait();
    }
}

fn holds(memory: &[u8], secret: &str) -> bool {
    let secret = secret.as_bytes();
    // The first byte alone is searched for: almost all of it is zeros.
    let begins = memory.iter().enumerate().filter(|(_, byte)| **byte == secret[0]);
    begins.map(|(at, _)| &memory[at..]).any(|rest| rest.starts_with(secret))
}

#[test]
fn no_memory_image_is_kept_and_nobody_else_may_look() {
    let rig = Rig::new();
    let log = rig.system.file("strace");
    let waiting = Waiting::before("flock", &rig.stage_reset(), &log);
    let limits = waiting.about("limits");
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().collect::<Vec<_>>()[4..6], ["0", "0"], "{core}");
    let status = waiting.about("status");
    let umask = status.lines().find(|line| line.starts_with("Umask:")).unwrap();
    assert_eq!(umask.split_whitespace().nth(1), Some("0077"));
    drop(waiting);
    // What /proc has of a process is its user's, and root's when nobody may look into it.
    let mut version = Command::new(rig.stage_reset().get_program());
    version.arg("--version");
    fs::remove_file(&log).unwrap();
    let waiting = Waiting::as_user("nobody", "exit_group", &version, &log);
    let user = waiting.about("status");
    let user = user.lines().find(|line| line.starts_with("Uid:")).unwrap().to_owned();
    assert_ne!(user.split_whitespace().nth(2), Some("0"), "{user}");
    let owner = |process: &str| fs::metadata(format!("/proc/{process}/maps")).unwrap().uid();
    assert_eq!(owner(&waiting.process), 0);
    let mut other = Command::new("setpriv");
    let other = other.args(["--reuid=nobody", "--clear-groups", "sleep", "100"]);
    let mut other = other.spawn().unwrap();
    let begin = Instant::now();
    while owner(&other.id().to_string()) == 0 {
        assert!(begin.elapsed() < Duration::from_secs(20), "of any process it is root's");
        std::thread::sleep(Duration::from_millis(10));
    }
    other.kill().unwrap();
    other.wait().unwrap();
}

/// One that is about to end has given everything back.
#[test]
fn what_is_given_back_is_erased() {
    let rig = Rig::new();
    let log = rig.system.file("strace");
    let data = rig.system.file("data.json");
    let text =
        format!(r#"{{"allow_tpm_reset_failure":true,"seeds":{{"incus":{{"token":"{SEED}"}}}}}}"#);
    fs::write(&data, &text).unwrap();
    let data = format!("@{}", data.display());
    // In the arguments a secret is found: this sees what is there.
    let given = rig.of_reset(&["factory-reset", "--force", "--dry-run", "-d", &text]);
    assert!(holds(&Waiting::before("exit_group", &given, &log).memory(), SEED));
    // And while it is in use.
    let staging = rig.of_reset(&["factory-reset", "--force", "-d", &data]);
    fs::remove_file(&log).unwrap();
    assert!(holds(&Waiting::before("flock", &staging, &log).memory(), SEED));
    let pool = rig.system.read("zpool.local.key");
    for command in [
        staging,
        rig.of_reset(&["initrd", "reset"]),
        rig.back_up(&rig.system.file("out.tar.gz"), false),
        rig.stage_restore(),
        rig.of_restore(&["initrd", "restore"]),
        rig.of_restore(&["confirm"]),
    ] {
        fs::remove_file(&log).unwrap();
        let waiting = Waiting::before("exit_group", &command, &log);
        let memory = waiting.memory();
        assert!(memory.len() > 100_000, "{command:?}");
        for secret in [SEED, OLD, ROOT_KEY, SWAP_KEY, &pool] {
            assert!(!holds(&memory, secret), "{secret} is left in memory: {command:?}");
        }
    }
}
