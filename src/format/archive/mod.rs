//! The backup: a gzip tar. In the flat layout it holds regular files only, as IncusOS writes and reads
//! it; in the tree layout directories, links, owners and attributes too.
//! Side: both. Streams from a reader or to a writer; memory does not grow with the archive.
//!
//! The `tar` crate accepts in silence what other readers see differently, so the dialect is a white
//! list: what IncusOS, restage and GNU tar write for such files. Everything else is a named error,
//! and nothing is believed before the end of the gzip member has been reached and checked.

mod header;
mod names;
mod pax;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead, Read, Write};

use flate2::{Compression, bufread::GzDecoder, write::GzEncoder};
use serde::{Deserialize, Serialize};

pub use names::{unfit, unfit_name};

use header::Head;

const BLOCK: usize = 512;
/// GNU tar fills its last record with zeros; nobody needs more than this.
const MAX_PADDING_BLOCKS: usize = 2048;
/// ustar has room for so many octal digits of a size.
const MAX_FILE_BYTES: u64 = 0o777_7777_7777;

/// What a backup may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// Regular files with plain names, private ones.
    Flat,
    /// Directories, regular files, links that stay inside, with their owners and attributes.
    Tree,
}

/// What an archive may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Files.
    pub files: u64,
    /// Bytes of all files together.
    pub bytes: u64,
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File {
        /// Length in bytes.
        bytes: u64,
    },
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink {
        /// Where it points; never out of the backup.
        target: String,
    },
}

/// What the tree layout keeps of an entry besides its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Permissions, with the set-user-ID, set-group-ID and sticky bits.
    pub mode: u32,
    /// User ID.
    pub owner: u32,
    /// Group ID.
    pub group: u32,
    /// Time of the last change, in seconds since 1970.
    pub modified: u64,
    /// Extended attributes, ACLs among them (`system.posix_acl_access`, `system.posix_acl_default`).
    pub xattrs: BTreeMap<String, Vec<u8>>,
}

impl Default for Attributes {
    /// Private, and root's.
    fn default() -> Self {
        Self { mode: 0o600, owner: 0, group: 0, modified: 0, xattrs: BTreeMap::new() }
    }
}

/// An entry of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// A plain name; in the tree layout a path below the directory, `.` being the directory itself.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// In the flat layout those of a private file.
    pub attributes: Attributes,
}

impl Entry {
    /// A private file.
    pub fn file(name: impl Into<String>, bytes: u64, modified: u64) -> Self {
        let attributes = Attributes { modified, ..Attributes::default() };
        Self { name: name.into(), kind: Kind::File { bytes }, attributes }
    }

    /// The length of its content in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        match self.kind {
            Kind::File { bytes } => bytes,
            Kind::Directory | Kind::Symlink { .. } => 0,
        }
    }
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

/// Reads a whole archive, to the last byte of `source`. Each entry is handed to `visit` with a reader
/// of exactly its content; what `visit` leaves is skipped. Only on `Ok` was the archive a good one:
/// nothing that `visit` did may count before.
pub fn read(
    source: impl BufRead,
    layout: Layout,
    limits: Limits,
    visit: &mut dyn FnMut(&Entry, &mut dyn Read) -> io::Result<()>,
) -> Result<Vec<Entry>, ReadError> {
    let mut stream = Stream { gzip: GzDecoder::new(source) };
    let mut entries: Vec<Entry> = Vec::new();
    let mut seen = Seen::default();
    let mut total = 0_u64;
    let mut extended = None;
    while let Some(block) = stream.block()? {
        if block == [0; BLOCK] {
            if extended.is_some() {
                return bad("a pax header that no entry follows");
            }
            stream.end()?;
            return Ok(entries);
        }
        let entry = match header::parse(&block, layout, &mut extended)? {
            Head::Entry(entry) => entry,
            Head::Pax { bytes } => {
                total = total.saturating_add(bytes);
                let text = stream.take(bytes)?;
                extended = Some(pax::parse(&text).map_err(ReadError::Bad)?);
                continue;
            }
        };
        seen.check(&entry)?;
        if entries.len() as u64 >= limits.files {
            return bad(format!("more than {} files", limits.files));
        }
        total = total.saturating_add(entry.bytes());
        if total > limits.bytes {
            return bad(format!("`{}`: more than {} bytes in all", entry.name, limits.bytes));
        }
        let mut content = Content { stream: &mut stream, rest: entry.bytes() };
        visit(&entry, &mut content).map_err(unwrapped)?;
        io::copy(&mut content, &mut io::sink()).map_err(unwrapped)?;
        stream.padding(entry.bytes())?;
        entries.push(entry);
    }
    bad("it ends without its end marker")
}

/// The names so far: none comes twice, and nothing lies in what is no directory.
#[derive(Default)]
struct Seen {
    names: BTreeSet<String>,
    directories: BTreeSet<String>,
}

impl Seen {
    fn check(&mut self, entry: &Entry) -> Result<(), ReadError> {
        let name = &entry.name;
        if name == "." && !self.names.is_empty() {
            return bad("`.`: the directory itself comes first, or not at all");
        }
        if !self.names.insert(name.clone()) {
            return bad(format!("`{name}` is there twice"));
        }
        if let Some((parent, _)) = name.rsplit_once('/')
            && !self.directories.contains(parent)
        {
            return bad(format!("`{name}`: `{parent}` is no directory that came before it"));
        }
        if entry.kind == Kind::Directory {
            self.directories.insert(name.clone());
        }
        Ok(())
    }
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

    /// The content of a header, and what fills it up to whole blocks.
    fn take(&mut self, bytes: u64) -> Result<Vec<u8>, ReadError> {
        let mut text = vec![0; usize::try_from(bytes).unwrap_or(0)];
        self.gzip.read_exact(&mut text).map_err(of_gzip)?;
        self.padding(bytes)?;
        Ok(text)
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
    layout: Layout,
}

impl<W: Write> Writer<W> {
    /// An empty archive.
    pub fn new(sink: W, layout: Layout) -> Self {
        Self { gzip: GzEncoder::new(sink, Compression::default()), layout }
    }

    /// Adds an entry, in the flat layout with mode 0600. An error when `content` has fewer or more
    /// bytes than `entry` says.
    pub fn append(&mut self, entry: &Entry, content: &mut dyn Read) -> io::Result<()> {
        if let Some(why) = unfit(entry, self.layout) {
            return Err(io::Error::other(format!("`{}` is {why}", entry.name)));
        }
        let bytes = entry.bytes();
        if bytes > MAX_FILE_BYTES {
            return Err(io::Error::other(format!("`{}` is larger than 8 GiB", entry.name)));
        }
        for block in header::encode(entry, self.layout)? {
            self.gzip.write_all(&block)?;
        }
        let copied = io::copy(&mut content.take(bytes), &mut self.gzip)?;
        if copied != bytes || content.read(&mut [0])? != 0 {
            return Err(io::Error::other(format!("`{}` was changed meanwhile", entry.name)));
        }
        let padding = usize::try_from(bytes.next_multiple_of(BLOCK as u64) - bytes);
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
