//! Backups are parsed by another process, which can do nothing else.
//! Side: both. The one that works on disks and the TPM never parses a backup: it feeds the bytes of one
//! to a child, and checks what comes back. A seed archive, of a kind that fits a few lines, is not one.

mod jail;

use std::fs::File;
use std::io::{self, BufRead, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::pipe::fcntl_setpipe_size;

use crate::cli::ArchiveReader;
use crate::error::chain;
use crate::format::archive::{Layout, Limits, ReadError, Visit, receive, send, send_failure};

/// restage itself, whatever has become of its path.
const OURSELVES: &str = "/proc/self/exe";
/// The command of it that [`serve`] is.
const COMMAND: &str = "archive-reader";
/// Who has work to do and neither takes nor gives anything for so long is not waited for.
const SILENCE: Duration = Duration::from_secs(60);
/// Fewer turns of the two.
const PIPE_BYTES: usize = 1 << 20;

/// Reads a whole archive in a child that has no rights: [`crate::format::archive::Parse`].
pub fn read(
    source: &mut dyn BufRead,
    layout: Layout,
    limits: Limits,
    visit: &mut Visit<'_>,
) -> Result<(), ReadError> {
    let mut command = Command::new(OURSELVES);
    command.arg(COMMAND).arg(layout.name());
    command.args([limits.files.to_string(), limits.bytes.to_string()]);
    read_by(&mut command, SILENCE, source, layout, limits, visit)
}

fn read_by(
    command: &mut Command,
    silence: Duration,
    source: &mut dyn BufRead,
    layout: Layout,
    limits: Limits,
    visit: &mut Visit<'_>,
) -> Result<(), ReadError> {
    let what = |what: &str, error: &io::Error| {
        io::Error::new(error.kind(), format!("{what} a process that parses it: {error}"))
    };
    // Its words would be the archive's: they have no way to a terminal.
    command.env_clear().stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let failed = ReadError::Parser;
    let child = command.spawn().map_err(|error| failed(what("cannot start", &error)))?;
    let mut reader = Reader { child };
    let pipes = reader.pipes().map_err(|error| failed(what("cannot talk to", &error)));
    let mut talk = pipes.map(|(to, from)| Talk {
        source,
        to: Some(to),
        from,
        silence,
        patience: patience(limits),
        told: false,
        failed: None,
    })?;
    let result = receive(&mut talk, layout, limits, visit);
    let is_all_taken = talk.told;
    match talk.failed {
        None => {}
        Some(Failed::Source(error)) => return Err(error.into()),
        Some(Failed::Child(error)) => return Err(failed(error)),
    }
    match result {
        Ok(()) if !is_all_taken => {
            Err(failed(io::Error::other("who parses it has ended before its end")))
        }
        Ok(()) => match reader.end(silence).map_err(failed)? {
            status if status.success() => Ok(()),
            status => Err(failed(io::Error::other(format!("who parses it: {}", shown(status))))),
        },
        Err(ReadError::Io(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
            let status = shown(reader.end(silence).map_err(failed)?);
            let why = format!("who parses it has stopped in its midst: {status}");
            Err(failed(io::Error::other(why)))
        }
        Err(error) => Err(error),
    }
}

/// How long a child may make us wait altogether, whatever it says meanwhile.
fn patience(limits: Limits) -> Duration {
    // A mebibyte takes milliseconds, and under emulation some more.
    Duration::from_secs(600).saturating_add(Duration::from_secs(limits.bytes >> 20))
}

/// How it ended, in words. The filter ends it when memory runs out as well, for it has no other way to
/// say so.
fn shown(status: ExitStatus) -> String {
    match status.signal() {
        Some(libc::SIGSYS) => {
            format!("{status}: it did what it may not do, or ran out of memory")
        }
        _ => status.to_string(),
    }
}

/// The child; it does not outlive this.
struct Reader {
    child: Child,
}

impl Reader {
    /// What it reads, where nothing makes us wait, and what it writes.
    fn pipes(&mut self) -> io::Result<(File, File)> {
        let missing = || io::Error::other("no pipe");
        let to = OwnedFd::from(self.child.stdin.take().ok_or_else(missing)?);
        let from = OwnedFd::from(self.child.stdout.take().ok_or_else(missing)?);
        fcntl_setfl(&to, fcntl_getfl(&to)? | OFlags::NONBLOCK)?;
        for pipe in [&to, &from] {
            // Where that is more than a user may have, it is as it was.
            let _ = fcntl_setpipe_size(pipe, PIPE_BYTES);
        }
        Ok((to.into(), from.into()))
    }

    /// Waits for its end, which is near: it has closed what it writes to.
    fn end(&mut self, limit: Duration) -> io::Result<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "who parses it does not end"));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // Where this fails it has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reading what the child says feeds it.
struct Talk<'a> {
    source: &'a mut dyn BufRead,
    /// Closed when all is told, or nobody listens.
    to: Option<File>,
    from: File,
    silence: Duration,
    /// What is left of the time that it may make us wait.
    patience: Duration,
    /// All of the source has been taken.
    told: bool,
    /// What went wrong on our side of the talk.
    failed: Option<Failed>,
}

/// What went wrong, and with whom.
enum Failed {
    Source(io::Error),
    Child(io::Error),
}

impl Talk<'_> {
    /// The error that ends the talk, which is the child's fault.
    fn blame(&mut self, error: io::Error) -> io::Error {
        let told = io::Error::from(error.kind());
        self.failed = Some(Failed::Child(error));
        told
    }

    /// Waits until something can be done; whether it can be heard, and whether it listens.
    fn wait(&mut self) -> io::Result<(bool, bool)> {
        let begin = Instant::now();
        let ready = self.poll();
        self.patience = self.patience.saturating_sub(begin.elapsed());
        match ready {
            Ok(_) if self.patience.is_zero() => {
                let why = "who parses it takes far too long";
                Err(self.blame(io::Error::new(io::ErrorKind::TimedOut, why)))
            }
            Ok(ready) => Ok(ready),
            Err(error) => Err(self.blame(error)),
        }
    }

    fn poll(&self) -> io::Result<(bool, bool)> {
        let mut watched = vec![PollFd::new(&self.from, PollFlags::IN)];
        watched.extend(self.to.as_ref().map(|to| PollFd::new(to, PollFlags::OUT)));
        let limit = Timespec::try_from(self.silence).map_err(io::Error::other)?;
        loop {
            match poll(&mut watched, Some(&limit)) {
                Err(rustix::io::Errno::INTR) => {}
                Ok(0) => {
                    let seconds = self.silence.as_secs_f32();
                    return Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        format!("who parses it has done nothing for {seconds} s"),
                    ));
                }
                result => {
                    result?;
                    let is_ready = |index: usize| {
                        watched.get(index).is_some_and(|fd| !fd.revents().is_empty())
                    };
                    return Ok((is_ready(0), is_ready(1)));
                }
            }
        }
    }

    /// Hands on what it takes without making us wait.
    fn feed(&mut self) -> io::Result<()> {
        let Some(to) = &mut self.to else { return Ok(()) };
        let bytes = match self.source.fill_buf() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            Err(error) => {
                let told = io::Error::from(error.kind());
                self.failed = Some(Failed::Source(error));
                return Err(told);
            }
            Ok(bytes) => bytes,
        };
        if bytes.is_empty() {
            self.to = None;
            self.told = true;
            return Ok(());
        }
        match to.write(bytes) {
            Ok(count) => self.source.consume(count),
            Err(error) => match error.kind() {
                io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock => {}
                // It has its verdict; that comes by the other way.
                io::ErrorKind::BrokenPipe => self.to = None,
                _ => {
                    let what = format!("cannot hand it to the process that parses it: {error}");
                    return Err(self.blame(io::Error::new(error.kind(), what)));
                }
            },
        }
        Ok(())
    }
}

impl Read for Talk<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let (speaks, listens) = self.wait()?;
            if speaks {
                return self.from.read(buffer);
            }
            if listens {
                self.feed()?;
            }
        }
    }
}

/// `restage archive-reader`: gives up every right, then parses standard input, and says on standard
/// output what is in it. It can read the one, write the other, and end: an error here is that nobody
/// listens, and there is nobody else to tell.
pub fn serve(arguments: &ArchiveReader) -> io::Result<()> {
    let limits = Limits { files: arguments.files, bytes: arguments.bytes };
    // Everything that needs a right is done before.
    if let Err(error) = jail::enter(&limits) {
        let why = format!("it cannot give up its rights: {}", chain(&error));
        return send_failure(&why, &mut jail::Output);
    }
    let mut source = io::BufReader::with_capacity(PIPE_BYTES, jail::Input);
    let mut to = io::BufWriter::with_capacity(PIPE_BYTES, jail::Output);
    send(&mut source, arguments.layout, limits, &mut to)
}

#[cfg(test)]
mod tests;
