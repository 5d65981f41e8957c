//! A request's body, taken in whole before anybody acts on it: what breaks off was never there.

use std::fs::{DirBuilder, File};
use std::io::{Seek, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::StatusCode;
use hyper::body::{Body, Bytes};
use rustix::fs::{MemfdFlags, Mode, OFlags};

use super::answer::Refusal;

/// So long may a client send nothing in the midst of a body.
const STALLED: Duration = Duration::from_secs(60);
/// So long may a whole body take: the largest one, at less than 1 Mbit/s.
const WHOLE: Duration = Duration::from_secs(15 * 60);
/// So long is read on for nothing, so that the client comes to read why.
const DRAINED: Duration = Duration::from_secs(20);

/// Where a body lies until it is handed on. It has no name there, so nothing is left of it.
#[derive(Clone, Debug)]
pub enum Place {
    /// In memory: options, whose seeds may be secret.
    Memory,
    /// On the file system of this directory, which is restage's own: encrypted, and made if need be.
    Directory(PathBuf),
}

impl Place {
    fn file(&self) -> std::io::Result<File> {
        Ok(match self {
            Self::Memory => rustix::fs::memfd_create("body", MemfdFlags::CLOEXEC)?.into(),
            Self::Directory(path) => {
                DirBuilder::new().recursive(true).mode(0o700).create(path)?;
                let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
                rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)?.into()
            }
        })
    }
}

/// All of the body, at its beginning; at most `limit` bytes, which come in a quarter of an hour or never.
pub async fn take_in<B>(body: &mut B, place: &Place, limit: u64) -> Result<File, Refusal>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let why = || format!("the body did not come within {} s", WHOLE.as_secs());
    let all = tokio::time::timeout(WHOLE, take_in_slowly(body, place, limit)).await;
    all.unwrap_or_else(|_| Err(Refusal::new(StatusCode::BAD_REQUEST, why())))
}

async fn take_in_slowly<B>(body: &mut B, place: &Place, limit: u64) -> Result<File, Refusal>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let failed = |error: std::io::Error| Refusal::failure(format!("cannot keep the body: {error}"));
    let bad = |why: String| Refusal::new(StatusCode::BAD_REQUEST, why);
    let mut file = place.file().map_err(failed)?;
    let mut bytes = 0_u64;
    loop {
        let Ok(frame) = tokio::time::timeout(STALLED, body.frame()).await else {
            return Err(bad(format!("nothing of the body came for {} s", STALLED.as_secs())));
        };
        let frame = match frame {
            None => break,
            Some(Ok(frame)) => frame,
            Some(Err(error)) => return Err(bad(format!("the body broke off: {error}"))),
        };
        let Ok(data) = frame.into_data() else { continue };
        bytes = bytes.saturating_add(data.len() as u64);
        if bytes > limit {
            return Err(bad(format!("the body has more than {limit} bytes")));
        }
        file.write_all(&data).map_err(failed)?;
    }
    file.rewind().map_err(failed)?;
    Ok(file)
}

/// Reads what is left of a body, and drops it.
pub async fn drain<B: Body + Unpin>(body: &mut B) {
    let all = async { while let Some(Ok(_)) = body.frame().await {} };
    // Who sends for longer reads the answer, or does not.
    let _ = tokio::time::timeout(DRAINED, all).await;
}
