//! A program that restage runs: bounded in time, and in what is told of its words.
//! Side: both.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

/// The most of an error message that is told.
const MAX_SAID_BYTES: usize = 2048;

/// Runs a program that has nothing to read and to show, and waits for its success. One that takes
/// longer than `limit` is killed, with all that it has started, and not waited for: a process that
/// hangs in a device cannot be killed. That is an error like any other.
pub fn run(command: &mut Command, limit: Duration) -> io::Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0);
    let mut child = command
        .spawn()
        .map_err(|error| io::Error::new(error.kind(), format!("cannot run {program}: {error}")))?;
    let id = Pid::from_child(&child);
    let stderr = child.stderr.take().map(|stderr| File::from(OwnedFd::from(stderr)));
    let mut said = Vec::new();
    let ended = pidfd_open(id, PidfdFlags::empty())
        .map_err(io::Error::from)
        .and_then(|process| wait(&process, stderr, limit, &mut said));
    if !matches!(ended, Ok(true)) {
        // It must not go on unwatched; where this fails it has just ended by itself.
        let _ = kill_process_group(id, Signal::KILL);
        let _ = child.try_wait();
        ended?;
        let seconds = limit.as_secs_f32();
        return Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("{program} has not ended within {seconds} s, and was killed"),
        ));
    }
    let status = child.wait()?;
    if status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&said).trim().replace('\n', "; ");
    Err(io::Error::other(format!("{program}: {status}: {said}")))
}

/// Waits for its end, and gathers what it says until then; false when that takes too long.
fn wait(
    process: &OwnedFd,
    mut stderr: Option<File>,
    limit: Duration,
    said: &mut Vec<u8>,
) -> io::Result<bool> {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        let mut watched = vec![PollFd::new(process, PollFlags::IN)];
        watched.extend(stderr.as_ref().map(|stderr| PollFd::new(stderr, PollFlags::IN)));
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut watched, Some(&timeout)) {
            Err(rustix::io::Errno::INTR) => continue,
            result => result?,
        };
        let is_ready = |index: usize| watched.get(index).is_some_and(|fd| !fd.revents().is_empty());
        let (has_ended, speaks) = (is_ready(0), is_ready(1));
        if speaks && !hear(&mut stderr, said)? {
            stderr = None;
        } else if has_ended && !speaks {
            return Ok(true);
        }
    }
}

/// Reads what there is; false at its end. The first words are the ones that are told.
fn hear(stderr: &mut Option<File>, said: &mut Vec<u8>) -> io::Result<bool> {
    let Some(stderr) = stderr else { return Ok(false) };
    let mut buffer = [0; 4096];
    let read = stderr.read(&mut buffer)?;
    let room = MAX_SAID_BYTES.saturating_sub(said.len()).min(read);
    said.extend_from_slice(buffer.get(..room).unwrap_or_default());
    Ok(read > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn one_that_hangs_is_killed_with_what_it_has_started() {
        for line in ["exec sleep 60", "sleep 60", "exec 2>&-; sleep 60"] {
            let begin = Instant::now();
            let error = run(&mut sh(line), Duration::from_millis(200)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
            assert!(begin.elapsed() < Duration::from_secs(30), "{:?}", begin.elapsed());
        }
    }

    #[test]
    fn what_it_leaves_running_is_not_waited_for() {
        let begin = Instant::now();
        run(&mut sh("sleep 40 & exit 0"), LONG).unwrap();
        assert!(begin.elapsed() < Duration::from_secs(30), "{:?}", begin.elapsed());
    }

    #[test]
    fn who_says_much_does_not_block() {
        let line = "head -c 300000 /dev/zero | tr '\\0' x >&2; exit 1";
        let error = run(&mut sh(line), LONG).unwrap_err();
        assert!(error.to_string().len() < 2200);
    }
}
