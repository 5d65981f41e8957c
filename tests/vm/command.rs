//! Running host programs: with a time limit, tied to the thread that started
//! them, so that a harness that dies leaves no machine behind.

use crate::failure::{Doing, Failure, Outcome};
use std::ffi::OsStr;
use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A program in the background that is killed with this value, and with the
/// thread that started it.
#[derive(Debug)]
pub struct Background {
    child: Child,
    name: String,
}

impl Background {
    /// Starts `program`; what it prints goes to `log`.
    pub fn start<S: AsRef<OsStr>>(program: &Path, args: &[S], log: &Path) -> Outcome<Self> {
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let out = File::options().create(true).append(true).open(log).doing("opening a log")?;
        // setpriv and not pre_exec: the same signal, without unsafe code here.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .doing(format!("starting {name}"))?;
        Ok(Self { child, name })
    }

    /// Whether it has ended, and how.
    pub fn ended(&mut self) -> Option<String> {
        match self.child.try_wait() {
            Ok(None) => None,
            Ok(Some(status)) => Some(format!("{} ended: {status}", self.name)),
            Err(cause) => Some(format!("{} cannot be waited for: {cause}", self.name)),
        }
    }

    pub fn wait(&mut self, limit: Duration) -> Outcome {
        let end = Instant::now() + limit;
        while self.ended().is_none() {
            if Instant::now() > end {
                return Err(Failure::new(format!(
                    "{} did not end within {} s",
                    self.name,
                    limit.as_secs()
                )));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// SIGKILL, and gone on return.
    pub fn kill(&mut self) {
        // Already ended is as good: there is nothing else these can say.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Runs a program to its end and returns what it printed; anything but success
/// is a failure that quotes its last words.
pub fn run<S: AsRef<OsStr>>(program: &str, args: &[S]) -> Outcome<String> {
    let done = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .doing(format!("starting {program}"))?;
    if !done.status.success() {
        let words = String::from_utf8_lossy(&done.stderr);
        return Err(Failure::new(format!(
            "{program} failed ({}): {}",
            done.status,
            words.trim().lines().last().unwrap_or_default()
        )));
    }
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}
