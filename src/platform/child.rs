//! A program that restage runs: bounded in time, and in what is told of its words.
//! Side: both.

use std::io::{self, Read};
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// The most of an error message that is told.
const MAX_SAID_BYTES: u64 = 2048;

/// Runs a program that has nothing to read and to show, and waits for its success. One that takes
/// longer than `limit` is killed, which is an error like any other.
pub fn run(command: &mut Command, limit: Duration) -> io::Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .map_err(|error| io::Error::new(error.kind(), format!("cannot run {program}: {error}")))?;
    // Not by its number, which may be another process's once this one is over.
    let process = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).inspect_err(|_| {
        // It must not go on unwatched.
        let _ = child.kill().and_then(|()| child.wait());
    })?;
    let (ended, when_ended) = channel::<()>();
    let watch = std::thread::spawn(move || {
        let is_late = when_ended.recv_timeout(limit) == Err(RecvTimeoutError::Timeout);
        // Where that fails it has just ended by itself.
        is_late && pidfd_send_signal(&process, Signal::KILL).is_ok()
    });
    let mut said = String::new();
    if let Some(stderr) = child.stderr.take() {
        let mut stderr = stderr.take(MAX_SAID_BYTES);
        // What cannot be read is only missing from the message.
        let _ = stderr.read_to_string(&mut said);
        let _ = io::copy(&mut stderr.into_inner(), &mut io::sink());
    }
    let status = child.wait();
    drop(ended);
    let was_killed = watch.join().unwrap_or_default();
    let status = status?;
    if status.success() {
        return Ok(());
    }
    if was_killed {
        let seconds = limit.as_secs_f32();
        return Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("{program} has not ended within {seconds} s, and was killed"),
        ));
    }
    let said = said.trim().replace('\n', "; ");
    Err(io::Error::other(format!("{program}: {status}: {said}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    const LONG: Duration = Duration::from_secs(60);

    fn sh(line: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", line]);
        command
    }

    #[test]
    fn what_it_says_is_told_when_it_fails() {
        run(&mut sh("echo no matter >&2"), LONG).unwrap();
        let error = run(&mut sh("echo one >&2; echo two >&2; exit 3"), LONG).unwrap_err();
        assert_eq!(error.to_string(), "sh: exit status: 3: one; two");
        let error = run(&mut Command::new("/nowhere/at-all"), LONG).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(error.to_string().starts_with("cannot run /nowhere/at-all: "), "{error}");
    }

    #[test]
    fn one_that_hangs_is_killed() {
        let begin = Instant::now();
        let error = run(&mut sh("exec sleep 60"), Duration::from_millis(200)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(begin.elapsed() < Duration::from_secs(30), "{:?}", begin.elapsed());
    }

    #[test]
    fn who_says_much_does_not_block() {
        let line = "head -c 300000 /dev/zero | tr '\\0' x >&2; exit 1";
        let error = run(&mut sh(line), LONG).unwrap_err();
        assert!(error.to_string().len() < 2200);
    }
}
