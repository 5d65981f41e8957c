//! An archive becomes entries and contents, as it passes.
//! Side: both. Reads from its source only.

use std::io::{self, BufRead, Read};

use flate2::bufread::GzDecoder;

use super::super::stream;
use super::header::Header;
use super::intake::Intake;
use super::{BLOCK, Layout, Limits, MAX_PAX_BYTES, ReadError, Visit, bad, padding, unwrapped};
use crate::error::system_error;

/// GNU tar fills its last record with zeros; nobody needs more than this.
const MAX_PADDING_BLOCKS: usize = 2048;
pub(super) const CUT: &str = "it is cut short";

/// Reads a whole archive, to the last byte of `source`. Each entry is handed to `visit` with a reader
/// of exactly its content; what `visit` leaves is skipped. Only on `Ok` was the archive a good one:
/// nothing that `visit` did may count before.
pub fn read(
    source: &mut dyn BufRead,
    layout: Layout,
    limits: Limits,
    visit: &mut Visit<'_>,
) -> Result<(), ReadError> {
    let mut stream = Stream { gzip: GzDecoder::new(source) };
    let mut intake = Intake::new(layout, limits);
    let mut records: Option<Vec<u8>> = None;
    let mut pax_bytes = 0;
    while let Some(block) = stream.block()? {
        if block == [0; BLOCK] {
            if records.is_some() {
                break;
            }
            stream.end()?;
            return Ok(());
        }
        let header = Header::open(&block, layout)?;
        if let Some(bytes) = header.pax_bytes()? {
            if records.is_some() {
                return header.wrong("a second pax header for one entry");
            }
            intake.bytes(bytes).or_else(|why| header.wrong(&why))?;
            pax_bytes += bytes;
            if pax_bytes > MAX_PAX_BYTES {
                return header.wrong("with it, more than 16 MiB of pax headers in all");
            }
            let mut content = Content { stream: &mut stream, rest: bytes };
            let records = records.insert(Vec::new());
            content.read_to_end(records).map_err(unwrapped)?;
            stream.padding(bytes)?;
            continue;
        }
        let entry = header.entry(records.take().as_deref())?;
        intake.entry(&entry).map_err(ReadError::Bad)?;
        let mut content = Content { stream: &mut stream, rest: entry.bytes() };
        visit(&entry, &mut content).map_err(unwrapped)?;
        stream::copy(&mut content, &mut io::sink()).map_err(unwrapped)?;
        stream.padding(entry.bytes())?;
    }
    if records.is_some() {
        return bad("a pax header that no entry follows");
    }
    bad("it ends without its end marker")
}

/// What the gzip member holds.
struct Stream<R> {
    gzip: GzDecoder<R>,
}

impl<R: BufRead> Stream<R> {
    /// The next block; none at a proper end of the member.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, ReadError> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while let Some(rest) = block.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.gzip.read(rest) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return bad("it ends in the middle of a block"),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(of_gzip(error)),
            }
        }
        Ok(Some(block))
    }

    /// A file's content is filled up to whole blocks.
    fn padding(&mut self, bytes: u64) -> Result<(), ReadError> {
        let rest = padding(bytes);
        let mut padding = [0; BLOCK];
        let padding = padding.get_mut(..rest).unwrap_or_default();
        self.gzip.read_exact(padding).map_err(of_gzip)
    }

    /// After the first block of zeros: another one, more of them, the member's checksum, the end.
    fn end(mut self) -> Result<(), ReadError> {
        let mut zeros = 0;
        while let Some(block) = self.block()? {
            zeros += 1;
            if block != [0; BLOCK] {
                return bad("there is something after the end marker");
            }
            if zeros > MAX_PADDING_BLOCKS {
                return bad("too many zeros after the end marker");
            }
        }
        if zeros == 0 {
            return bad("the end marker is cut short");
        }
        let mut rest = Vec::new();
        self.gzip.into_inner().take(2).read_to_end(&mut rest).map_err(ReadError::Io)?;
        match rest.as_slice() {
            [] => Ok(()),
            [0x1f, 0x8b] => bad("there is a second gzip member"),
            _ => bad("there is something after the gzip member"),
        }
    }
}

/// The content of one file.
struct Content<'a, R> {
    stream: &'a mut Stream<R>,
    rest: u64,
}

impl<R: BufRead> Read for Content<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.rest).unwrap_or(usize::MAX).min(buffer.len());
        let Some(buffer) = buffer.get_mut(..most).filter(|buffer| !buffer.is_empty()) else {
            return Ok(0);
        };
        // Through `visit` the error comes back as an I/O error, and is told apart by its type.
        let count = self.stream.gzip.read(buffer).map_err(|error| match of_gzip(error) {
            ReadError::Io(error) => error,
            other @ (ReadError::Bad(_) | ReadError::Parser(_)) => io::Error::other(other),
        })?;
        if count == 0 {
            return Err(io::Error::other(ReadError::Bad(CUT.to_owned())));
        }
        self.rest -= count as u64;
        Ok(count)
    }
}

/// An error of the decoder: the source's own errors have a number of the system.
fn of_gzip(error: io::Error) -> ReadError {
    match error.kind() {
        _ if system_error(&error).is_some() => ReadError::Io(error),
        io::ErrorKind::UnexpectedEof => ReadError::Bad(CUT.to_owned()),
        _ => ReadError::Bad(format!("gzip: {error}")),
    }
}
