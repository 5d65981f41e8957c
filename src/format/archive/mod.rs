//! The backup: a gzip tar, flat as IncusOS writes and reads it, or a whole tree for other systems.
//! Side: both. Streams from a reader or to a writer; memory does not grow with the archive but for
//! the list of its entries.
//!
//! The `tar` crate accepts in silence what other readers see differently, so the dialect is a white
//! list: what IncusOS, restage and GNU tar write. Everything else is a named error, and nothing is
//! believed before the end of the gzip member has been reached and checked.

mod frames;
mod header;
mod intake;
mod name;
mod pax;
mod read;
mod write;

use std::collections::BTreeMap;
use std::io::{self, BufRead, Read};

use serde::{Deserialize, Serialize};

pub use frames::{receive, send, send_failure};
pub use name::unfit_name;
pub use read::read;
pub use write::{Writer, unfit};

const BLOCK: usize = 512;
/// ustar has room for so many octal digits of a size.
const MAX_FILE_BYTES: u64 = 0o777_7777_7777;
/// Permissions, set-id and sticky bits: what `chmod` takes.
const MODE_BITS: u32 = 0o7777;
const TOO_LARGE: &str = "larger than 8 GiB";
/// Seconds since 1970 that the kernel can be told.
const MAX_TIME: u64 = i64::MAX as u64;
const TIME: &str = "a time that is none";
/// All pax headers of an archive together: their attributes are held in memory.
const MAX_PAX_BYTES: u64 = 16 << 20;
const MODE: &str = "a mode of more than permissions";

/// What a backup may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// Regular files of one directory: their content, and nothing that belongs to it.
    Flat,
    /// Files, directories and symbolic links, with owners, modes, times and extended attributes.
    Tree,
}

impl Layout {
    const ALL: [Self; 2] = [Self::Flat, Self::Tree];

    /// What profiles call it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Flat => "flat",
            Self::Tree => "tree",
        }
    }

    /// The one of this name.
    pub fn named(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|layout| layout.name() == name);
        found.ok_or_else(|| format!("no layout `{name}`"))
    }

    /// What follows the kind of an entry that is refused.
    const fn accepts(self) -> &'static str {
        match self {
            Self::Flat => "only regular files are accepted",
            Self::Tree => "only files, directories and symbolic links are accepted",
        }
    }
}

/// How much an archive may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Entries; each counts as a file.
    pub files: u64,
    /// Bytes of all files together, and of what extends their headers.
    pub bytes: u64,
}

/// What is done with an entry while it passes, and with a reader of exactly its content.
pub type Visit<'a> = dyn FnMut(&Entry, &mut dyn Read) -> io::Result<()> + 'a;

/// Who reads an archive: [`read`], or a process that does it for us.
pub type Parse = fn(&mut dyn BufRead, Layout, Limits, &mut Visit<'_>) -> Result<(), ReadError>;

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
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
        /// Where it points: never out of the tree.
        target: String,
    },
}

/// What belongs to an entry besides its content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attributes {
    /// Permissions, set-id and sticky bits: at most 7777 in octal.
    pub mode: u32,
    /// Number of the owner.
    pub owner: u32,
    /// Number of the group.
    pub group: u32,
    /// Time of the last change, in seconds since 1970.
    pub modified: u64,
    /// Extended attributes, access control lists among them.
    pub xattrs: BTreeMap<String, Vec<u8>>,
}

impl Attributes {
    /// Whether a file can have them.
    fn unfit(&self) -> Result<(), &'static str> {
        // The number that means no change of it.
        if self.owner == u32::MAX || self.group == u32::MAX {
            return Err("an owner or a group that is none");
        }
        if self.modified > MAX_TIME {
            return Err(TIME);
        }
        Ok(())
    }
}

impl Default for Attributes {
    /// Private, and root's.
    fn default() -> Self {
        Self { mode: 0o600, owner: 0, group: 0, modified: 0, xattrs: BTreeMap::new() }
    }
}

/// An entry of an archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// A plain name; in a tree a path from its top, `.` for the top itself.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// What belongs to it. A flat archive keeps the time alone.
    pub attributes: Attributes,
}

impl Entry {
    /// A private file.
    pub fn file(name: impl Into<String>, bytes: u64, modified: u64) -> Self {
        let attributes = Attributes { modified, ..Attributes::default() };
        Self { name: name.into(), kind: Kind::File { bytes }, attributes }
    }

    /// Length of the content in bytes: zero unless it is a file.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        match self.kind {
            Kind::File { bytes } => bytes,
            Kind::Directory | Kind::Symlink { .. } => 0,
        }
    }

    /// The refusal of this entry.
    fn refused(&self, why: &str) -> String {
        format!("`{}`: {why}", shown(self.name.as_bytes()))
    }
}

/// Why an archive was not read to its end.
#[derive(Debug)]
pub enum ReadError {
    /// It is not one that is accepted; says what is wrong and with which entry.
    Bad(String),
    /// Reading it, or what was done with its content, failed.
    Io(io::Error),
    /// Who parses it failed: nothing is known of the archive.
    Parser(io::Error),
}

impl std::fmt::Display for ReadError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Bad(why) => f.write_str(why),
            Self::Io(error) | Self::Parser(error) => error.fmt(f),
        }
    }
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl std::error::Error for ReadError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Bad(_) => None,
            // Its own text is told above.
            Self::Io(error) | Self::Parser(error) => error.source(),
        }
    }
}

/// What went wrong with an archive passes through a visitor as an I/O error, and is told apart again.
fn unwrapped(error: io::Error) -> ReadError {
    match error.downcast::<ReadError>() {
        Ok(error) => error,
        Err(error) => ReadError::Io(error),
    }
}

fn bad<T>(why: impl Into<String>) -> Result<T, ReadError> {
    Err(ReadError::Bad(why.into()))
}

/// A name as it may stand in a message, whatever it holds.
fn shown(name: &[u8]) -> String {
    String::from_utf8_lossy(name).escape_debug().take(200).collect()
}

/// How much fills `bytes` up to whole blocks.
fn padding(bytes: u64) -> usize {
    usize::try_from(bytes.wrapping_neg() % BLOCK as u64).unwrap_or(0)
}

#[cfg(test)]
mod tests;
