//! The jail is tried by processes that break out of it; the talk with children of all kinds.

use std::io::Cursor;
use std::mem::forget;
use std::os::unix::process::ExitStatusExt;

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{getpid, test_kill_process};
use rustix::stdio::{stderr, stdin, stdout};

use super::*;

const LIMITS: Limits = Limits { files: 10, bytes: 1 << 20 };
/// A shell starts within it, also where others are at work.
const SHORT: Duration = Duration::from_secs(3);

/// What a program that says this makes of `bytes` of an archive.
fn by(line: &str, silence: Duration, bytes: usize) -> String {
    let mut command = Command::new("sh");
    command.args(["-c", line]);
    let mut source = Cursor::new(vec![7; bytes]);
    let read =
        read_by(&mut command, silence, &mut source, Layout::Flat, LIMITS, &mut |_, _| Ok(()));
    read.err().map(|error| error.to_string()).unwrap_or_default()
}

#[test]
fn a_child_that_does_not_do_its_work_is_an_error() {
    let good = r"printf 'G\0\0\0\0'";
    let long = Duration::from_secs(60);
    assert_eq!(by(&format!("cat >/dev/null; {good}"), long, 3 << 20), "");
    let early = "who parses it has ended before its end";
    assert_eq!(by(&format!("{good}; exec sleep 60"), long, 3 << 20), early);
    assert_eq!(by(&format!("exec <&-; sleep 0.3; {good}"), long, 3 << 20), early);
    assert_eq!(
        by(&format!("cat >/dev/null; {good}; exit 3"), long, 9),
        "who parses it: exit status: 3"
    );
    assert_eq!(
        by("kill -SYS $$", long, 9),
        "who parses it has stopped in its midst: signal: 31 (SIGSYS): it did what it may not do, or ran out of memory"
    );
    assert_eq!(by("exit 0", long, 9), "who parses it has stopped in its midst: exit status: 0");
    assert_eq!(by("exec sleep 60", SHORT, 3 << 20), "who parses it has done nothing for 3 s");
    assert_eq!(
        by(&format!("cat >/dev/null; {good}; exec >&-; exec sleep 60"), SHORT, 9),
        "who parses it does not end"
    );
    assert_eq!(by(r"printf 'B\3\0\0\0why'", long, 3 << 20), "why");
    let failed = |line: &str| {
        let mut command = Command::new("sh");
        command.args(["-c", line]);
        let mut source = Cursor::new(vec![7; 9]);
        read_by(&mut command, long, &mut source, Layout::Flat, LIMITS, &mut |_, _| Ok(()))
    };
    assert!(
        matches!(failed("exit 3"), Err(ReadError::Parser(_))),
        "nothing is known of the archive"
    );
    assert!(matches!(failed(r"printf 'F\3\0\0\0why'"), Err(ReadError::Parser(_))), "likewise");
    assert!(matches!(failed(r"printf 'B\3\0\0\0why'"), Err(ReadError::Bad(_))), "it is known");
    let mut nobody = Command::new("/nowhere/at-all");
    let read =
        read_by(&mut nobody, SHORT, &mut io::empty(), Layout::Flat, LIMITS, &mut |_, _| Ok(()));
    assert_eq!(
        read.unwrap_err().to_string(),
        "cannot start a process that parses it: No such file or directory (os error 2)"
    );
}

#[test]
fn an_error_of_the_source_is_told_as_it_is() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::from_raw_os_error(libc::EIO))
        }
    }
    let mut command = Command::new("sh");
    command.args(["-c", "cat >/dev/null"]);
    let mut source = io::BufReader::new(Broken);
    let read = read_by(
        &mut command,
        Duration::from_secs(60),
        &mut source,
        Layout::Flat,
        LIMITS,
        &mut |_, _| Ok(()),
    );
    let Err(ReadError::Io(error)) = read else { panic!("{read:?}") };
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
}

/// Which attempt this process is to make in its jail.
const ATTEMPT: &str = "RESTAGE_ATTEMPT";
const IN_JAIL: &str = "platform::confined::tests::in_jail";

type Attempt = fn() -> io::Result<()>;

/// What somebody would do who has taken it over. Each must end the process. What is opened is not
/// closed again, which would end it as well.
const ATTEMPTS: [(&str, Attempt); 14] = [
    ("open a file", || File::open("/etc/passwd").map(forget)),
    ("look at a file", || std::fs::metadata("/etc/passwd").map(forget)),
    ("make a directory", || std::fs::create_dir("/tmp/restage-jail")),
    ("run a program", || raw(libc::SYS_execve)),
    ("start a process", || raw(libc::SYS_clone)),
    ("start a process in the newer way", || raw(libc::SYS_clone3)),
    ("use the network", || std::net::UdpSocket::bind("127.0.0.1:0").map(forget)),
    ("use a socket of the system", || std::os::unix::net::UnixDatagram::unbound().map(forget)),
    ("read what is not standard input", || Ok(rustix::io::read(stdout(), &mut [0]).map(forget)?)),
    ("write what is not standard output", || Ok(rustix::io::write(stderr(), b"x").map(forget)?)),
    ("signal a process", || Ok(test_kill_process(getpid())?)),
    ("duplicate a file", || Ok(rustix::io::dup(stdin()).map(forget)?)),
    ("make memory a program", || raw(libc::SYS_mprotect)),
    ("unmount", || Ok(unmount("/proc", UnmountFlags::empty())?)),
];

/// A system call of which every argument is zero: where it is let through, it fails.
fn raw(number: libc::c_long) -> io::Result<()> {
    // SAFETY: none of those used here does anything with a null pointer but fail; a clone without flags
    // is a fork, whose child goes the same way as its parent.
    let result = unsafe { libc::syscall(number, 0, 0, 0, 0, 0, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The control: who does nothing ends well.
const NOTHING: &str = "nothing";

/// Not a test by itself: what the others run as a process of its own.
#[test]
fn in_jail() {
    let Ok(attempt) = std::env::var(ATTEMPT) else { return };
    if attempt == "Landlock" {
        jail::confine().unwrap();
        let error = File::open("/etc/passwd").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}");
        return;
    }
    let attempt = ATTEMPTS.iter().find(|(name, _)| *name == attempt).map(|(_, attempt)| attempt);
    jail::enter(&LIMITS).unwrap();
    // It lives.
    let lives = vec![1; 100_000].len() == 100_000;
    let _ = attempt.map(|attempt| attempt());
    // SAFETY: it does not return; what the test harness would do next ends the process as well.
    unsafe { libc::_exit(if lives { 0 } else { 9 }) }
}

fn in_jail_of_its_own(attempt: &str) -> ExitStatus {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", IN_JAIL, "--test-threads=1"])
        .env(ATTEMPT, attempt)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap()
}

#[test]
fn who_does_anything_else_is_killed() {
    assert!(in_jail_of_its_own(NOTHING).success());
    for (attempt, _) in ATTEMPTS {
        let status = in_jail_of_its_own(attempt);
        assert_eq!(status.signal(), Some(libc::SIGSYS), "{attempt}: {status}");
    }
}

#[test]
fn landlock_alone_keeps_files_closed() {
    assert!(std::fs::metadata("/etc/passwd").is_ok());
    let status = in_jail_of_its_own("Landlock");
    assert!(status.success(), "{status}: does this kernel have Landlock?");
}
