//! Runs `restage`: a request's body is its standard input, a backup its standard output.

use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use http_body_util::channel::Channel;
use http_body_util::{BodyExt, Limited};
use hyper::StatusCode;
use hyper::body::{Body, Bytes};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, Command};
use zeroize::Zeroizing;

use super::answer::{Refusal, of_child};

/// What is kept of what a program prints or says.
const MAX_SAID_BYTES: u64 = 1 << 20;
/// What is read of a backup at once.
const CHUNK_BYTES: usize = 64 << 10;
/// The options of a reset, with its seeds; `restage` has a limit of its own, and says so.
const MAX_OPTIONS_BYTES: usize = 16 << 20;
/// So long may a client send nothing in the midst of a body.
const STALLED: Duration = Duration::from_secs(60);

/// The program.
#[derive(Clone, Debug)]
pub struct Restage {
    /// Its path, or its name.
    pub program: PathBuf,
}

impl Restage {
    fn start(&self, arguments: &[String], input: Stdio) -> Result<Child, Refusal> {
        let mut command = Command::new(&self.program);
        command.args(arguments).stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Nobody is left to be told: what it was staging it has not staged.
        command.kill_on_drop(true);
        let failed = |error| format!("cannot run {}: {error}", self.program.display());
        command.spawn().map_err(|error| Refusal::failure(failed(error)))
    }

    /// Runs it without input; what it printed.
    pub async fn ask(&self, arguments: &[String]) -> Result<Value, Refusal> {
        let child = self.start(arguments, Stdio::null())?;
        let output = child.wait_with_output().await.map_err(lost)?;
        of_child(output.status.code(), &output.stdout, &output.stderr)
    }

    /// Runs it with a body as its input, which it never sees the end of when the client does not come to
    /// the end either.
    pub async fn feed<B>(&self, arguments: &[String], body: B) -> Result<Value, Refusal>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: std::fmt::Display,
    {
        let mut child = self.start(arguments, Stdio::piped())?;
        let input = child.stdin.take();
        let printed = bounded(child.stdout.take());
        let told = bounded(child.stderr.take());
        let pour = async {
            match pour(body, input).await {
                Ok(()) => Ok(()),
                Err((why, input)) => {
                    // Before its input ends: what came so far could pass for all of it.
                    let killed = child.kill().await;
                    drop(input);
                    killed.map_err(lost)?;
                    Err(Refusal::new(StatusCode::BAD_REQUEST, why))
                }
            }
        };
        let (poured, printed, told) = tokio::join!(pour, printed, told);
        poured?;
        let status = child.wait().await.map_err(lost)?;
        of_child(status.code(), &printed?, &told?)
    }

    /// Runs it with a small body as its input.
    pub async fn feed_options<B>(&self, arguments: &[String], body: B) -> Result<Value, Refusal>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        self.feed(arguments, Limited::new(body, MAX_OPTIONS_BYTES)).await
    }

    /// Runs it for what it writes. An error that comes before the first byte is an answer; a later one
    /// breaks the body off.
    pub async fn stream(&self, arguments: &[String]) -> Result<Channel<Bytes, io::Error>, Refusal> {
        let mut child = self.start(arguments, Stdio::null())?;
        let told = bounded(child.stderr.take());
        let told = tokio::task::spawn_local(told);
        let mut output =
            child.stdout.take().ok_or_else(|| Refusal::failure("no standard output"))?;
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

/// Hands a body on. A reader that has seen enough is no error; what the client still sends is read and
/// dropped, so that it comes to read the answer. An error gives the input back, which is still open.
async fn pour<B>(
    mut body: B,
    mut input: Option<ChildStdin>,
) -> Result<(), (String, Option<ChildStdin>)>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    loop {
        let Ok(frame) = tokio::time::timeout(STALLED, body.frame()).await else {
            let why = format!("nothing came for {} s", STALLED.as_secs());
            return Err((why, input));
        };
        let frame = match frame {
            None => return Ok(()),
            Some(Ok(frame)) => frame,
            Some(Err(error)) => return Err((format!("the body broke off: {error}"), input)),
        };
        let Ok(bytes) = frame.into_data() else { continue };
        if let Some(pipe) = &mut input
            && pipe.write_all(&bytes).await.is_err()
        {
            input = None;
        }
    }
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
