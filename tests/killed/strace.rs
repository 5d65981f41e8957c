//! The release binary under strace: which of its system calls have an effect, and a run in which one
//! of them is hit.
//!
//! strace counts the calls of each name and of each thread by itself, so a call is known by its name
//! and its number among the calls of that name. Without `-f` it sees the main thread only; of the
//! thread that talks to the TPM the calls are told apart by a name that no other thread uses.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitStatus, Output, Stdio};

use rustix::process::{Pid, Signal};

/// All that changes something outside of the process, and all that vouches for it.
const EFFECTS: &str = "write,writev,pwrite64,pwritev,pwritev2,fsync,fdatasync,sync,syncfs,\
    sync_file_range,msync,open,openat,creat,truncate,ftruncate,fallocate,ioctl,copy_file_range,\
    sendfile,splice,rename,renameat,renameat2,unlink,unlinkat,rmdir,mkdir,mkdirat,link,linkat,\
    symlink,symlinkat,mknod,mknodat,chmod,fchmod,fchmodat,chown,fchown,lchown,fchownat,utimensat,\
    setxattr,lsetxattr,fsetxattr,removexattr,lremovexattr,fremovexattr,mount,umount2";

/// The one call of the TPM's thread that the main thread never makes: before each command.
const TPM_CALL: &str = "connect";

/// ioctls that only ask.
const QUESTIONS: [&str; 3] = ["BLKGETSIZE64", "BLKSSZGET", "TCGETS"];

/// A system call with an effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Its name.
    pub name: String,
    /// Its number among the calls of this name, from 1.
    pub number: usize,
    /// The whole of it, as strace shows it.
    pub text: String,
    /// The step of the operation that it belongs to, as the program has said.
    pub step: String,
}

impl Call {
    /// Whether it only speaks to whoever started the program.
    pub fn speaks(&self) -> bool {
        self.name == "write" && ["write(1<", "write(2<"].iter().any(|fd| self.text.starts_with(fd))
    }

    /// Whether it writes on where the one before has written.
    pub fn goes_on(&self, before: &Self) -> bool {
        let file = |call: &Self| call.text.split_once(',').map(|(file, _)| file.to_owned());
        ["write", "pwrite64"].contains(&self.name.as_str()) && file(self) == file(before)
    }

    /// Whether it could meet a full file system.
    pub fn takes_space(&self) -> bool {
        !["fsync", "syncfs", "ioctl", TPM_CALL, "unlinkat", "rmdir"].contains(&self.name.as_str())
    }
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hit {
    /// The program is killed when it makes the call, which has no effect any more.
    Before,
    /// The call is made, and the program comes no further: stopped on its way back, then killed.
    After,
    /// The call fails with this error, and the program goes on.
    Fails(&'static str),
}

/// How the binary under test is called; `RESTAGE_BIN`, for the one that is shipped is the one to test.
pub fn binary() -> String {
    std::env::var("RESTAGE_BIN").expect("RESTAGE_BIN names the binary to test (scripts/build)")
}

fn strace(options: &[&str], log: Option<&Path>, arguments: &[String]) -> Command {
    let mut command = Command::new("strace");
    command.args(["-qq", "-y", "-s", "80"]).args(options);
    if let Some(log) = log {
        command.arg("-o").arg(log);
    }
    command.arg("--").arg(binary()).args(arguments).stdin(Stdio::null());
    command
}

/// Which calls are listed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Of {
    /// The main thread's, with an effect.
    Main,
    /// Those to the TPM.
    Tpm,
    /// All that changes a disk or a file, by whatever thread or child.
    Everybody,
}

/// Runs without a hit, and lists calls in their order.
pub fn list(arguments: &[String], scratch: &Path, of: Of) -> (Output, Vec<Call>) {
    let log = scratch.join("strace");
    let trace = format!("trace={}", if of == Of::Tpm { TPM_CALL } else { EFFECTS });
    let mut options = vec!["-e", &trace, "-e", "signal=none"];
    if of != Of::Main {
        options.push("-f");
    }
    let output = strace(&options, Some(&log), arguments).output();
    let output = output.unwrap_or_else(|e| panic!("strace (Debian: strace): {e}"));
    let text = String::from_utf8_lossy(&fs::read(&log).unwrap()).into_owned();
    let mut calls = parse(&text);
    calls.retain(|call| match of {
        Of::Main | Of::Tpm => has_effect(call),
        Of::Everybody => {
            has_effect(call) && !call.speaks() && !call.text.contains("<socket:[") && !asks(call)
        }
    });
    (output, calls)
}

fn asks(call: &Call) -> bool {
    call.name == "ioctl" && QUESTIONS.iter().any(|question| call.text.contains(question))
}

fn has_effect(call: &Call) -> bool {
    let opens = ["open", "openat"].contains(&call.name.as_str());
    !opens || ["O_CREAT", "O_TRUNC"].iter().any(|flag| call.text.contains(flag))
}

fn parse(text: &str) -> Vec<Call> {
    let mut counts = std::collections::HashMap::new();
    let mut step = "before the first step".to_owned();
    let mut calls = Vec::new();
    for line in text.lines() {
        // With `-f` the number of the thread comes first.
        let line = line.trim_start_matches(|c: char| c.is_ascii_digit()).trim_start();
        let Some((name, _)) = line.split_once('(') else { continue };
        if !name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_') {
            // The end of a call that another thread has interrupted, or of the program.
            continue;
        }
        let number = counts.entry(name.to_owned()).or_insert(0_usize);
        *number += 1;
        if let Some(said) = line.split_once("\"step ").filter(|(fd, _)| fd.starts_with("write(2<"))
        {
            let said = said.1.split_once(' ').map_or("", |(_, name)| name);
            said.split([':', '"']).next().unwrap_or_default().clone_into(&mut step);
        }
        let (number, text) = (*number, line.to_owned());
        calls.push(Call { name: name.to_owned(), number, text, step: step.clone() });
    }
    calls
}

/// What a run with a hit came to.
pub struct Struck {
    /// How it ended.
    pub status: ExitStatus,
    /// All that it said.
    pub said: String,
}

/// Runs, and hits this call. An error when it was not reached.
pub fn strike(
    arguments: &[String],
    scratch: &Path,
    call: &Call,
    hit: Hit,
) -> Result<Struck, String> {
    let trace = format!("trace={}", call.name);
    let with = |what: &str| format!("inject={}:{what}:when={}", call.name, call.number);
    let mut options = vec!["-e", &trace];
    if call.name == TPM_CALL {
        options.push("-f");
    }
    let inject = match hit {
        Hit::Before => with("signal=KILL"),
        Hit::After => with("signal=STOP"),
        Hit::Fails(error) => with(&format!("error={error}")),
    };
    options.extend(["-e", &inject]);
    if hit == Hit::After {
        return stop(strace(&options, None, arguments));
    }
    let log = scratch.join("strace");
    let output = strace(&options, Some(&log), arguments).output().map_err(|e| e.to_string())?;
    let seen = fs::read_to_string(&log).map_err(|e| e.to_string())?;
    let was_hit = match hit {
        // strace ends as the program has ended.
        Hit::Before => output.status.signal() == Some(Signal::KILL.as_raw()),
        Hit::After | Hit::Fails(_) => seen.contains("(INJECTED)"),
    };
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = said + &String::from_utf8_lossy(&output.stderr);
    if was_hit { Ok(Struck { status: output.status, said }) } else { Err(not_reached(call, &said)) }
}

fn not_reached(call: &Call, said: &str) -> String {
    format!("{} number {} was not reached; it said: {said}", call.name, call.number)
}

/// Waits until strace says that the program is stopped, and kills both.
fn stop(mut command: Command) -> Result<Struck, String> {
    let text = |e: std::io::Error| e.to_string();
    command.process_group(0).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(text)?;
    let group = Pid::from_child(&child);
    let (mut said, mut is_stopped) = (String::new(), false);
    let mut lines = BufReader::new(child.stderr.take().ok_or("no standard error")?);
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line).map_err(text)? > 0 {
        let here = String::from_utf8_lossy(&line).into_owned();
        line.clear();
        said += &here;
        if here.contains("--- stopped by SIGSTOP ---") {
            is_stopped = true;
            break;
        }
    }
    // It has ended by itself when it was not stopped.
    let _ = rustix::process::kill_process_group(group, Signal::KILL);
    // Until the last of them is gone.
    lines.read_to_end(&mut line).map_err(text)?;
    let status = child.wait().map_err(text)?;
    if is_stopped { Ok(Struck { status, said }) } else { Err(format!("not reached: {said}")) }
}

/// What this rests on, tried out: a call at which the program is killed has no effect, and one after
/// which it is stopped has.
///
/// # Panics
/// When strace does not work like that here.
pub fn check(scratch: &Path) {
    for (hit, is_made) in [("KILL", false), ("STOP", true)] {
        let name = scratch.join(hit);
        let inject = format!("inject=mkdir:signal={hit}:when=1");
        let mut command = Command::new("strace");
        command.args(["-qq", "-e", "trace=mkdir", "-e", &inject, "--", "mkdir"]).arg(&name);
        let struck = stop(command);
        assert_eq!(struck.is_ok(), is_made, "strace: {:?}", struck.err());
        assert_eq!(name.exists(), is_made, "strace: the call at which {hit} is sent");
    }
}
