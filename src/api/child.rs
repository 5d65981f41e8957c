//! Runs `restage`: a request's body is its standard input, a backup its standard output.

use std::io;
use std::path::PathBuf;
use std::process::Stdio;

use http_body_util::channel::Channel;
use hyper::body::Bytes;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use zeroize::Zeroizing;

use super::answer::{Refusal, of_child};

/// What is kept of what a program prints or says.
const MAX_SAID_BYTES: u64 = 1 << 20;
/// What is read of a backup at once.
const CHUNK_BYTES: usize = 64 << 10;

/// The program.
#[derive(Clone, Debug)]
pub struct Restage {
    /// Its path, or its name.
    pub program: PathBuf,
}

impl Restage {
    fn command(&self, arguments: &[String], input: Stdio) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments).stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn start(&self, command: &mut Command) -> Result<Child, Refusal> {
        let failed = |error| format!("cannot run {}: {error}", self.program.display());
        command.spawn().map_err(|error| Refusal::failure(failed(error)))
    }

    /// Runs it to its end; what it printed.
    pub async fn run(&self, arguments: &[String], input: Stdio) -> Result<Value, Refusal> {
        let mut child = self.start(&mut self.command(arguments, input))?;
        let printed = bounded(child.stdout.take());
        let told = bounded(child.stderr.take());
        let (printed, told) = tokio::join!(printed, told);
        let status = child.wait().await.map_err(lost)?;
        of_child(status.code(), &printed?, &told?)
    }

    /// Runs it for what it writes. An error that comes before the first byte is an answer; a later one
    /// breaks the body off.
    pub async fn stream(&self, arguments: &[String]) -> Result<Channel<Bytes, io::Error>, Refusal> {
        // Nobody is left to read it.
        let mut child = self.start(self.command(arguments, Stdio::null()).kill_on_drop(true))?;
        let told = bounded(child.stderr.take());
        let told = tokio::task::spawn_local(told);
        let output = child.stdout.take();
        let mut output = output.ok_or_else(|| Refusal::failure("no standard output"))?;
        let first = chunk(&mut output).await.map_err(lost)?;
        let Some(first) = first else {
            let status = child.wait().await.map_err(lost)?;
            let told = told.await.map_err(|error| lost(error.into()))??;
            return match of_child(status.code(), b"", &told) {
                Ok(_) => Err(Refusal::failure("restage wrote nothing")),
                Err(refusal) => Err(refusal),
            };
        };
        let (mut sender, body) = Channel::new(1);
        tokio::task::spawn_local(async move {
            let mut next = Ok(Some(first));
            loop {
                match next {
                    Ok(Some(bytes)) => {
                        if sender.send_data(bytes).await.is_err() {
                            return;
                        }
                        next = chunk(&mut output).await;
                    }
                    Ok(None) => break,
                    Err(error) => return sender.abort(error),
                }
            }
            match child.wait().await {
                Ok(status) if status.success() => drop(sender),
                Ok(status) => {
                    let told = told.await.map(Result::unwrap_or_default).unwrap_or_default();
                    let why = String::from_utf8_lossy(&told);
                    log::error!("the backup ended with {status}: {}", why.trim());
                    sender.abort(io::Error::other("the backup failed"));
                }
                Err(error) => sender.abort(error),
            }
        });
        Ok(body)
    }
}

#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
fn lost(error: io::Error) -> Refusal {
    Refusal::failure(format!("lost restage: {error}"))
}

/// Up to so many bytes; none at the end.
async fn chunk(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Bytes>> {
    let mut bytes = vec![0; CHUNK_BYTES];
    let read = from.read(&mut bytes).await?;
    bytes.truncate(read);
    Ok((read > 0).then(|| bytes.into()))
}

/// What a program says, its beginning; the rest is read and dropped, so that it does not wait for us.
async fn bounded(from: Option<impl AsyncRead + Unpin>) -> Result<Zeroizing<Vec<u8>>, Refusal> {
    let mut said = Zeroizing::new(Vec::new());
    let Some(mut from) = from else { return Ok(said) };
    (&mut from).take(MAX_SAID_BYTES).read_to_end(&mut said).await.map_err(lost)?;
    tokio::io::copy(&mut from, &mut tokio::io::sink()).await.map_err(lost)?;
    Ok(said)
}
