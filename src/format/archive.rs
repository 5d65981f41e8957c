//! The backup: a flat gzip tar of regular files, as IncusOS writes and reads it.
//! Side: both. Streams from a reader or to a writer; memory does not grow with the archive.
//!
//! The `tar` crate accepts in silence what other readers see differently, so the dialect is a white
//! list: what IncusOS, restage and GNU tar write for plain files. Everything else is a named error,
//! and nothing is believed before the end of the gzip member has been reached and checked.

use std::io::{self, BufRead, Read, Write};

use flate2::{Compression, bufread::GzDecoder, write::GzEncoder};
use tar::{EntryType, Header};

const BLOCK: usize = 512;
/// GNU tar fills its last record with zeros; nobody needs more than this.
const MAX_PADDING_BLOCKS: usize = 2048;
/// ustar has room for so many bytes of a name, and for so many octal digits of a size.
const MAX_NAME_BYTES: usize = 100;
const MAX_FILE_BYTES: u64 = 0o777_7777_7777;

/// What an archive may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Files.
    pub files: u64,
    /// Bytes of all files together.
    pub bytes: u64,
}

/// A file in an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// A plain name.
    pub name: String,
    /// Length in bytes.
    pub bytes: u64,
    /// Time of the last change, in seconds since 1970.
    pub modified: u64,
}

/// Why an archive was not read to its end.
#[derive(Debug)]
pub enum ReadError {
    /// It is not one that is accepted; says what is wrong and with which entry.
    Bad(String),
    /// Reading it, or what was done with its content, failed.
    Io(io::Error),
}

impl std::fmt::Display for ReadError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Bad(why) => f.write_str(why),
            Self::Io(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for ReadError {}

fn bad<T>(why: impl Into<String>) -> Result<T, ReadError> {
    Err(ReadError::Bad(why.into()))
}

/// Reads a whole archive, to the last byte of `source`. Each file is handed to `visit` with a reader
/// of exactly its content; what `visit` leaves is skipped. Only on `Ok` was the archive a good one:
/// nothing that `visit` did may count before.
pub fn read(
    source: impl BufRead,
    limits: Limits,
    visit: &mut dyn FnMut(&Entry, &mut dyn Read) -> io::Result<()>,
) -> Result<Vec<Entry>, ReadError> {
    let mut stream = Stream { gzip: GzDecoder::new(source) };
    let mut entries: Vec<Entry> = Vec::new();
    let mut names = std::collections::BTreeSet::new();
    let mut total = 0_u64;
    while let Some(block) = stream.block()? {
        if block == [0; BLOCK] {
            stream.end()?;
            return Ok(entries);
        }
        let entry = parse(&block)?;
        if !names.insert(entry.name.clone()) {
            return bad(format!("`{}` is there twice", entry.name));
        }
        if entries.len() as u64 >= limits.files {
            return bad(format!("more than {} files", limits.files));
        }
        total = total.saturating_add(entry.bytes);
        if total > limits.bytes {
            return bad(format!("`{}`: more than {} bytes in all", entry.name, limits.bytes));
        }
        let mut content = Content { stream: &mut stream, rest: entry.bytes };
        visit(&entry, &mut content).map_err(unwrapped)?;
        io::copy(&mut content, &mut io::sink()).map_err(unwrapped)?;
        stream.padding(entry.bytes)?;
        entries.push(entry);
    }
    bad("it ends without its end marker")
}

/// One header of the accepted dialect.
fn parse(block: &[u8; BLOCK]) -> Result<Entry, ReadError> {
    let header = Header::from_byte_slice(block);
    let name = header.path_bytes();
    let shown: String = String::from_utf8_lossy(&name).escape_debug().take(200).collect();
    let wrong = |why: &str| bad(format!("`{shown}`: {why}"));
    // The sum of all bytes, those of the sum itself counted as blanks (POSIX.1-1988).
    let sum = |range: std::ops::Range<usize>| -> u32 {
        block.get(range).unwrap_or_default().iter().map(|byte| u32::from(*byte)).sum()
    };
    if header.cksum().ok() != Some(sum(0..148) + 8 * 32 + sum(156..BLOCK)) {
        return bad("a header is damaged, or this is no tar archive");
    }
    if header.as_ustar().is_none() && header.as_gnu().is_none() {
        return wrong("neither a ustar nor a GNU tar header");
    }
    let kind = match header.entry_type() {
        EntryType::Regular => None,
        EntryType::Directory => Some("a directory"),
        EntryType::Link => Some("a hard link"),
        EntryType::Symlink => Some("a symbolic link"),
        EntryType::Char => Some("a character device"),
        EntryType::Block => Some("a block device"),
        EntryType::Fifo => Some("a FIFO"),
        EntryType::GNULongName | EntryType::GNULongLink => Some("a GNU long name"),
        EntryType::GNUSparse => Some("a sparse file"),
        EntryType::XHeader | EntryType::XGlobalHeader => Some("a pax header"),
        EntryType::Continuous => Some("a contiguous file"),
        _ => Some("of an unknown kind"),
    };
    if let Some(kind) = kind {
        return wrong(&format!("{kind}, and only regular files are accepted"));
    }
    let Ok(name) = std::str::from_utf8(&name) else { return wrong("the name is not UTF-8") };
    let name = name.strip_prefix("./").unwrap_or(name);
    if let Some(why) = unfit_name(name) {
        return wrong(why);
    }
    let (Ok(bytes), Ok(modified)) = (header.entry_size(), header.mtime()) else {
        return wrong("a number in the header is damaged");
    };
    if bytes > MAX_FILE_BYTES {
        return wrong("larger than 8 GiB");
    }
    Ok(Entry { name: name.to_owned(), bytes, modified })
}

/// Why a file of this name is in no backup.
#[must_use]
pub fn unfit_name(name: &str) -> Option<&'static str> {
    if name.is_empty() || name == "." || name == ".." {
        return Some("no name of a file");
    }
    if name.contains('/') {
        return Some("not a plain name");
    }
    if name.chars().any(char::is_control) {
        return Some("a control character in the name");
    }
    (name.len() > MAX_NAME_BYTES).then_some("the name is longer than 100 bytes")
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
        let rest = usize::try_from(bytes.next_multiple_of(BLOCK as u64) - bytes).unwrap_or(0);
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
        let mut source = self.gzip.into_inner();
        let rest = source.fill_buf().map_err(ReadError::Io)?;
        match rest {
            [] => Ok(()),
            [0x1f, 0x8b, ..] => bad("there is a second gzip member"),
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
            bad @ ReadError::Bad(_) => io::Error::other(bad),
        })?;
        if count == 0 {
            return Err(io::Error::other(ReadError::Bad(CUT.to_owned())));
        }
        self.rest -= count as u64;
        Ok(count)
    }
}

const CUT: &str = "it is cut short";

/// An error of the decoder: the source's own errors have a number of the system.
fn of_gzip(error: io::Error) -> ReadError {
    match error.kind() {
        _ if error.raw_os_error().is_some() => ReadError::Io(error),
        io::ErrorKind::UnexpectedEof => ReadError::Bad(CUT.to_owned()),
        _ => ReadError::Bad(format!("gzip: {error}")),
    }
}

fn unwrapped(error: io::Error) -> ReadError {
    match error.downcast::<ReadError>() {
        Ok(error) => error,
        Err(error) => ReadError::Io(error),
    }
}

/// Writes an archive.
pub struct Writer<W: Write> {
    gzip: GzEncoder<W>,
}

impl<W: Write> Writer<W> {
    /// An empty archive.
    pub fn new(sink: W) -> Self {
        Self { gzip: GzEncoder::new(sink, Compression::default()) }
    }

    /// Adds a file, mode 0600. An error when `content` has fewer or more bytes than `entry` says.
    pub fn append(&mut self, entry: &Entry, content: &mut dyn Read) -> io::Result<()> {
        if let Some(why) = unfit_name(&entry.name) {
            return Err(io::Error::other(format!("`{}`: {why}", entry.name)));
        }
        if entry.bytes > MAX_FILE_BYTES {
            return Err(io::Error::other(format!("`{}` is larger than 8 GiB", entry.name)));
        }
        let mut header = Header::new_ustar();
        header.set_path(&entry.name)?;
        header.set_mode(0o600);
        header.set_size(entry.bytes);
        header.set_mtime(entry.modified);
        header.set_entry_type(EntryType::Regular);
        header.set_cksum();
        self.gzip.write_all(header.as_bytes())?;
        let copied = io::copy(&mut content.take(entry.bytes), &mut self.gzip)?;
        if copied != entry.bytes || content.read(&mut [0])? != 0 {
            return Err(io::Error::other(format!("`{}` was changed meanwhile", entry.name)));
        }
        let padding = usize::try_from(entry.bytes.next_multiple_of(BLOCK as u64) - entry.bytes);
        self.gzip.write_all([0; BLOCK].get(..padding.unwrap_or(0)).unwrap_or_default())
    }

    /// Writes the end, and gives the sink back: all bytes were handed to it.
    pub fn finish(mut self) -> io::Result<W> {
        self.gzip.write_all(&[0; 2 * BLOCK])?;
        self.gzip.finish()
    }
}

#[cfg(test)]
mod tests;
