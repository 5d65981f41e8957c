//! An archive that one process parses for another: entries and contents in frames.
//! Side: both. Pure. Who receives believes nothing: what comes is checked as if it were an archive.
//!
//! A frame is a kind (one byte), a length (four bytes, little endian), and so many bytes. An entry
//! (JSON) is followed by exactly its content in pieces; the last frame is the verdict.

use std::io::{self, BufRead, Read, Write};

use super::super::stream;
use super::intake::Intake;
use super::write::unfit;
use super::{
    Attributes, Entry, Kind, Layout, Limits, MAX_PAX_BYTES, ReadError, Visit, read, unwrapped,
};

const ENTRY: u8 = b'E';
const CONTENT: u8 = b'C';
/// The archive was a good one.
const GOOD: u8 = b'G';
/// It was not; says why.
const BAD: u8 = b'B';
/// It could not be read; says why.
const FAILED: u8 = b'F';

const HEAD_BYTES: usize = 5;
const MAX_CONTENT_BYTES: usize = 64 << 10;
/// A pax header of 1 MiB, each byte of an attribute a number of up to four characters.
const MAX_ENTRY_BYTES: usize = 8 << 20;
/// A name, a slash, and what may stand before it.
const MAX_USTAR_NAME_BYTES: usize = 256;
const MAX_WHY_BYTES: usize = 64 << 10;

/// Parses `source` and tells what is in it. An error is one of telling.
pub fn send(
    source: &mut dyn BufRead,
    layout: Layout,
    limits: Limits,
    to: &mut dyn Write,
) -> io::Result<()> {
    let mut untold: Option<io::Error> = None;
    let mut piece = vec![0; MAX_CONTENT_BYTES];
    let result = read(source, layout, limits, &mut |entry, content| {
        let mut tell = |kind: u8, bytes: &[u8]| {
            // Who does not listen is no fault of the archive.
            put(to, kind, bytes).inspect_err(|error| untold = Some(error.kind().into()))
        };
        tell(ENTRY, &serde_json::to_vec(entry)?)?;
        loop {
            match content.read(&mut piece)? {
                0 => return Ok(()),
                count => tell(CONTENT, piece.get(..count).unwrap_or_default())?,
            }
        }
    });
    if let Some(error) = untold {
        return Err(error);
    }
    match result {
        Ok(()) => put(to, GOOD, &[])?,
        Err(ReadError::Bad(why)) => put(to, BAD, why.as_bytes())?,
        Err(ReadError::Io(error) | ReadError::Parser(error)) => {
            put(to, FAILED, error.to_string().as_bytes())?;
        }
    }
    to.flush()
}

/// Tells that nothing can be told, and why.
pub fn send_failure(why: &str, to: &mut dyn Write) -> io::Result<()> {
    put(to, FAILED, why.as_bytes())?;
    to.flush()
}

fn put(to: &mut dyn Write, kind: u8, bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    to.write_all(&[kind])?;
    to.write_all(&length.to_le_bytes())?;
    to.write_all(bytes)
}

/// What another process finds in an archive, checked again. Each entry is handed to `visit` as
/// [`read`] does it, under the same terms.
pub fn receive(
    from: &mut dyn Read,
    layout: Layout,
    limits: Limits,
    visit: &mut Visit<'_>,
) -> Result<(), ReadError> {
    let mut intake = Intake::new(layout, limits);
    let mut extended = 0;
    loop {
        let head = head(from)?;
        if head.kind != ENTRY {
            return verdict(from, head);
        }
        let mut entry: Entry = serde_json::from_slice(&head.bytes(from, MAX_ENTRY_BYTES)?)
            .map_err(|_| odd("an entry that is none"))?;
        if layout == Layout::Flat {
            let modified = entry.attributes.modified;
            entry.attributes = Attributes { modified, ..Attributes::default() };
        }
        if let Some(why) = unfit(&entry, layout) {
            return Err(ReadError::Bad(entry.refused(&why)));
        }
        intake.entry(&entry).map_err(ReadError::Bad)?;
        extended += beyond_ustar(&entry);
        if extended > MAX_PAX_BYTES {
            return Err(odd("more than the headers of an archive can hold").into());
        }
        let mut content = Content { from, rest: entry.bytes(), piece: 0 };
        visit(&entry, &mut content).map_err(unwrapped)?;
        stream::copy(&mut content, &mut io::sink()).map_err(unwrapped)?;
    }
}

/// What of an entry a plain header has no room for, in bytes: at the least so much has a pax header.
fn beyond_ustar(entry: &Entry) -> u64 {
    let target = match &entry.kind {
        Kind::Symlink { target } => target.len(),
        Kind::File { .. } | Kind::Directory => 0,
    };
    let attributes = entry.attributes.xattrs.iter().map(|(name, value)| name.len() + value.len());
    let names = [entry.name.len(), target].map(|bytes| bytes.saturating_sub(MAX_USTAR_NAME_BYTES));
    (attributes.sum::<usize>() + names.iter().sum::<usize>()) as u64
}

/// The beginning of a frame.
#[derive(Clone, Copy)]
struct Head {
    kind: u8,
    bytes: usize,
}

impl Head {
    /// All of a short frame.
    fn bytes(self, from: &mut dyn Read, most: usize) -> io::Result<Vec<u8>> {
        if self.bytes > most {
            return Err(odd("a frame that is too long"));
        }
        let mut bytes = vec![0; self.bytes];
        from.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

fn head(from: &mut dyn Read) -> io::Result<Head> {
    let mut head = [0; HEAD_BYTES];
    from.read_exact(&mut head)?;
    let [kind, length @ ..] = head;
    let bytes = usize::try_from(u32::from_le_bytes(length)).map_err(io::Error::other)?;
    Ok(Head { kind, bytes })
}

fn verdict(from: &mut dyn Read, head: Head) -> Result<(), ReadError> {
    let words = head.bytes(from, MAX_WHY_BYTES)?;
    let why = || String::from_utf8_lossy(&words).into_owned();
    match head.kind {
        GOOD if words.is_empty() => Ok(()),
        BAD => Err(ReadError::Bad(why())),
        FAILED => Err(ReadError::Parser(io::Error::other(why()))),
        _ => Err(odd("a frame that is none").into()),
    }
}

/// Nobody but who has been taken over says such things.
fn odd(what: &str) -> io::Error {
    io::Error::other(format!("who parses it sent {what}"))
}

/// The content of one entry, in its pieces.
struct Content<'a> {
    from: &'a mut dyn Read,
    rest: u64,
    piece: usize,
}

impl Content<'_> {
    /// The next piece, or why there is none.
    fn next(&mut self) -> io::Result<()> {
        let head = head(self.from)?;
        if head.kind != CONTENT {
            return Err(match verdict(self.from, head) {
                Ok(()) => odd("less than a whole file"),
                Err(ReadError::Io(error)) => error,
                Err(other @ (ReadError::Bad(_) | ReadError::Parser(_))) => io::Error::other(other),
            });
        }
        if head.bytes == 0 || head.bytes > MAX_CONTENT_BYTES || head.bytes as u64 > self.rest {
            return Err(odd("more than a whole file"));
        }
        self.piece = head.bytes;
        Ok(())
    }
}

impl Read for Content<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() || self.rest == 0 {
            return Ok(0);
        }
        if self.piece == 0 {
            self.next()?;
        }
        let most = self.piece.min(buffer.len());
        let count = self.from.read(buffer.get_mut(..most).unwrap_or_default())?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.piece = self.piece.saturating_sub(count);
        self.rest = self.rest.saturating_sub(count as u64);
        Ok(count)
    }
}
