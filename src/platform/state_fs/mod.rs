//! The directory of the OS's state, what lies beside it, and the exchange of the two.
//! Side: both. Touches the state file system below the directories of the profile.

mod real;

use std::io::{self, Read};
use std::path::PathBuf;

use zeroize::Zeroizing;

pub use real::{StateDirectory, make_path};

use crate::format::archive::{Entry, Kind};

/// The directory of keys that are kept aside, in restage's own directory.
pub const SUPERSEDED: &str = "superseded";

/// One of the directories that a restore works with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place<'a> {
    /// The OS's state.
    State,
    /// Beside it: what a backup becomes before anything is committed. Worth nothing.
    New,
    /// Beside it: the committed new state, or the old one. There is a journal as long as it is there.
    Sibling,
    /// Keys that the operation with this id has replaced.
    Superseded(&'a str),
}

/// What is in a directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// What a backup can hold, parents before children, by name.
    pub entries: Vec<Entry>,
    /// Everything that no backup could hold: its name as far as it can be shown, and why.
    pub odd: Vec<(String, String)>,
}

impl Listing {
    /// The names of the regular files.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        let is_file = |entry: &&Entry| matches!(entry.kind, Kind::File { .. });
        self.entries.iter().filter(is_file).map(|entry| entry.name.as_str())
    }
}

/// The state, what lies beside it, and the keys that are kept aside. Names are relative to the place;
/// in the flat layout they are plain, and everything is a regular file.
pub trait StateFs {
    /// A number that no other directory has and that a directory keeps for life; none when it is not
    /// there.
    fn identity(&self, place: Place<'_>) -> io::Result<Option<u64>>;
    /// What is in it; nothing when the directory is not there.
    fn list(&self, place: Place<'_>) -> io::Result<Listing>;
    /// Looks at one entry; none when it is not there.
    fn look(&self, place: Place<'_>, name: &str) -> io::Result<Option<Entry>>;
    /// Opens a file for reading; none when it is not there.
    fn open(&self, place: Place<'_>, name: &str) -> io::Result<Option<Box<dyn Read>>>;
    /// Makes an empty directory, with the owner and mode of the state; what was there is destroyed.
    fn make(&mut self, place: Place<'_>) -> io::Result<()>;
    /// Makes an entry that is not there yet, a file with this content. In [`Place::New`] it is durable
    /// after [`StateFs::sync`]; elsewhere it is whole and durable when this returns, whole or absent
    /// after a power cut, and the place itself is made when it is not there. A directory gets its
    /// attributes by [`StateFs::settle`], when its contents are in it.
    fn write(&mut self, place: Place<'_>, entry: &Entry, content: &mut dyn Read) -> io::Result<()>;
    /// Gives a directory its attributes, durable when this returns. Safe to repeat.
    fn settle(&mut self, place: Place<'_>, directory: &Entry) -> io::Result<()>;
    /// Everything written is durable when this returns.
    fn sync(&mut self) -> io::Result<()>;
    /// Destroys a directory: contents overwritten, then removed. Durable when this returns. Safe to
    /// repeat.
    fn remove(&mut self, place: Place<'_>) -> io::Result<()>;
    /// What was extracted becomes the sibling, in one step. Durable when this returns.
    fn promote(&mut self) -> io::Result<()>;
    /// Exchanges the state and its sibling, in one step. Durable when this returns.
    fn exchange(&mut self) -> io::Result<()>;
    /// Looks whether the state is a plain directory that can be exchanged with another one, and that
    /// restage's own lies on the same file system.
    fn check_place(&self) -> io::Result<()>;
    /// Tries an exchange of two empty directories beside the state. Leaves nothing behind.
    fn try_exchange(&mut self) -> io::Result<()>;
    /// Free space, in bytes.
    fn free_bytes(&self) -> io::Result<u64>;
    /// Whether the file system lies on an encrypted volume.
    fn is_encrypted(&self) -> io::Result<bool>;
    /// The ids with superseded keys.
    fn superseded(&self) -> io::Result<Vec<String>>;
    /// Where this file is, for a program that takes a path.
    fn path(&self, place: Place<'_>, name: &str) -> PathBuf;
}

/// The entries of a directory that must hold nothing else: an error names what is there besides.
pub fn only_entries(state: &dyn StateFs, place: Place<'_>) -> io::Result<Vec<Entry>> {
    let listing = state.list(place)?;
    match listing.odd.first() {
        Some((name, why)) => Err(io::Error::other(format!("`{name}`: {why}"))),
        None => Ok(listing.entries),
    }
}

/// Reads a small file that may be secret.
pub fn read_small(
    state: &dyn StateFs,
    place: Place<'_>,
    name: &str,
    max_bytes: u64,
) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
    let Some(file) = state.open(place, name)? else { return Ok(None) };
    let limit = usize::try_from(max_bytes).map_err(io::Error::other)?;
    // One allocation: a grown Vec leaves copies of secrets behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(limit + 1));
    file.take(max_bytes + 1).read_to_end(&mut bytes)?;
    if bytes.len() > limit {
        return Err(io::Error::other(format!("more than {max_bytes} bytes long")));
    }
    Ok(Some(bytes))
}
