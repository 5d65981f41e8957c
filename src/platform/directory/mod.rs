//! A directory as the kernel offers it, and the small durable operations that are made of that.
//! Side: both.
//!
//! [`Directory`] promises nothing beyond what the kernel and the file system do: what is changed
//! through it may be lost, or be there in part, until it is synced. The functions here are the
//! protocols; each says what is durable when it returns. Links are never followed.

mod clusters;
mod kernel;
mod named;
pub mod room;

use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::path::Path;

pub use kernel::Kernel;
pub use named::Named;

use crate::error::{Calling, chain};
use crate::format::archive::{Attributes, Kind};
use crate::format::stream;

/// Trees deeper than this are not ours to remove.
const MAX_DEPTH: usize = 64;

/// A handle on a directory.
pub type Dir = Box<dyn Directory>;

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A socket.
    Socket,
    /// A device or a pipe.
    Other,
}

/// What is known of a file or directory without opening it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    /// What it is.
    pub kind: NodeKind,
    /// Length in bytes.
    pub bytes: u64,
    /// Its number: no other on this file system has it, and it is kept for life.
    pub number: u64,
    /// Device number of the file system.
    pub device: u64,
    /// How many names it has.
    pub links: u64,
    /// Permissions, set-id and sticky bits.
    pub mode: u32,
    /// Number of the owner.
    pub owner: u32,
    /// Number of the group.
    pub group: u32,
    /// Time of the last change, in seconds since 1970.
    pub modified: u64,
}

/// An open regular file.
pub trait OpenFile: Read + Write {
    /// Length in bytes.
    fn length(&self) -> io::Result<u64>;
    /// Its content, its length and its other attributes are durable when this returns.
    fn sync(&self) -> io::Result<()>;
}

/// An open directory: what the kernel can do in it. Names are single components.
pub trait Directory {
    /// Another handle on it.
    fn again(&self) -> io::Result<Dir>;
    /// What it is itself.
    fn node(&self) -> io::Result<Node>;
    /// The names in it, whatever bytes they are made of, sorted.
    fn names(&self) -> io::Result<Vec<OsString>>;
    /// Looks at one of them; none when it is not there.
    fn look(&self, name: &OsStr) -> io::Result<Option<Node>>;
    /// Opens a directory in it; none when it is not there.
    fn directory(&self, name: &OsStr) -> io::Result<Option<Dir>>;
    /// Opens a regular file for reading; none when it is not there.
    fn file(&self, name: &OsStr) -> io::Result<Option<Box<dyn OpenFile>>>;
    /// Opens a regular file for writing over it; none when it is not there, or is a link, a pipe, a
    /// socket or a device, which hold nothing of their own, or has another name, under which somebody
    /// else may need what is in it.
    fn file_to_overwrite(&self, name: &OsStr) -> io::Result<Option<Box<dyn OpenFile>>>;
    /// Makes a file, mode 0600; one that is there already is an error.
    fn new_file(&self, name: &OsStr) -> io::Result<Box<dyn OpenFile>>;
    /// Opens a file for writing, and makes it, mode 0600, when it is not there.
    fn any_file(&self, name: &OsStr) -> io::Result<Box<dyn OpenFile>>;
    /// Makes a directory, mode 0700; one that is there already is an error.
    fn new_directory(&self, name: &OsStr) -> io::Result<()>;
    /// Makes a symbolic link; one that is there already is an error.
    fn new_link(&self, name: &OsStr, target: &str) -> io::Result<()>;
    /// Where a symbolic link points.
    fn link_target(&self, name: &OsStr) -> io::Result<Vec<u8>>;
    /// Owner, mode, time and extended attributes.
    fn attributes(&self, name: &OsStr) -> io::Result<Attributes>;
    /// Gives them to what is there.
    fn set_attributes(&self, name: &OsStr, kind: &Kind, attributes: &Attributes) -> io::Result<()>;
    /// This directory gets the owner and mode of another one.
    fn become_like(&self, other: &Node) -> io::Result<()>;
    /// Gives a new name to what has this one; one that is there already is an error.
    fn rename(&self, from: &OsStr, to: &OsStr) -> io::Result<()>;
    /// Exchanges what two names stand for, in one step.
    fn exchange(&self, one: &OsStr, other: &OsStr) -> io::Result<()>;
    /// Removes a name that is no directory's; false when it is not there.
    fn remove_file(&self, name: &OsStr) -> io::Result<bool>;
    /// Removes an empty directory; false when it is not there.
    fn remove_directory(&self, name: &OsStr) -> io::Result<bool>;
    /// The names in it are durable when this returns.
    fn sync(&self) -> io::Result<()>;
    /// Everything on its file system is durable when this returns; on FAT, less than that.
    fn sync_file_system(&self) -> io::Result<()>;
    /// Free space of its file system, in bytes.
    fn free_bytes(&self) -> io::Result<u64>;
    /// Whether none of the clusters that a regular file names is free. Not so on FAT when it was cut off
    /// while it was made or removed: then the next file may be given them.
    fn is_linked(&self, name: &OsStr) -> io::Result<bool>;
    /// For the root of a FAT: has the directories on the way to this path read, and all that are below,
    /// before the kernel looks at them. An error is that they cannot be read.
    fn read_ahead(&self, path: &str) -> io::Result<()>;
    /// Whether it grows in more than one change, which a power cut may tear: on FAT.
    fn grows_in_pieces(&self) -> io::Result<bool>;
    /// Takes its exclusive lock until this handle is dropped; false when somebody else has it.
    fn lock(&self) -> io::Result<bool>;
    /// Whether something is mounted on this name.
    fn is_mount_point(&self, name: &OsStr) -> io::Result<bool>;
}

/// Opens a directory by path.
pub fn open(path: &Path) -> io::Result<Dir> {
    let opened = Kernel::open(path).calling(|| format!("cannot open {}", path.display()))?;
    Ok(Named::wrap(Box::new(opened), path))
}

/// Opens a directory in a directory; none when it is not there.
pub fn open_at(parent: &dyn Directory, name: impl AsRef<OsStr>) -> io::Result<Option<Dir>> {
    parent.directory(name.as_ref())
}

/// Makes a directory, mode 0700, durable when this returns. Safe to repeat.
pub fn make(parent: &dyn Directory, name: &str) -> io::Result<Dir> {
    match parent.new_directory(name.as_ref()) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let directory = open_at(parent, name)?.ok_or(io::ErrorKind::NotFound)?;
    directory.sync()?;
    parent.sync()?;
    Ok(directory)
}

/// Reads a regular file; none when it is not there, an error when it is longer than `max_bytes`.
pub fn read(
    directory: &dyn Directory,
    name: &str,
    max_bytes: usize,
) -> io::Result<Option<Vec<u8>>> {
    let Some(file) = directory.file(name.as_ref())? else { return Ok(None) };
    let length = file.length()?;
    if length > max_bytes as u64 {
        return Err(io::Error::other(format!("more than {max_bytes} bytes long")));
    }
    // One allocation: what is read may be secret, and a grown Vec leaves copies behind.
    let mut bytes = Vec::with_capacity(max_bytes.min(usize::try_from(length).unwrap_or(0)) + 1);
    file.take(max_bytes as u64).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

/// Makes a file that is not there yet, under its own name at once: durable and whole when this
/// returns. A power cut may also leave it empty, damaged or unreadable, so what is in it has to carry
/// its own checksum. Returns how many bytes it was.
///
/// This is for FAT, where a rename is worse: cut off, it leaves two names for the same clusters, and
/// removing one destroys what the other stands for.
pub fn create_vouched(
    directory: &dyn Directory,
    name: &str,
    content: &mut dyn Read,
) -> io::Result<u64> {
    let mut file = directory.new_file(name.as_ref())?;
    let written = stream::copy(content, &mut file)
        .and_then(|bytes| file.sync().map(|()| bytes))
        .and_then(|bytes| directory.sync().map(|()| bytes));
    if written.is_err() {
        // A full file system: give the space back, then say so.
        let _ = shred(directory, name);
    }
    written
}

/// Makes a file that is not there yet, by way of `temporary`: under its own name it appears whole and
/// durable, or not at all. For file systems where a rename is one change. `complete` gives it what it
/// needs besides its content. Returns how many bytes it was.
pub fn create_from(
    directory: &dyn Directory,
    temporary: &str,
    name: &str,
    content: &mut dyn Read,
    complete: &dyn Fn() -> io::Result<()>,
) -> io::Result<u64> {
    shred(directory, temporary)?;
    let mut file = directory.new_file(temporary.as_ref())?;
    let bytes = match stream::copy(content, &mut file)
        .and_then(|n| complete().and_then(|()| file.sync()).map(|()| n))
    {
        Ok(bytes) => bytes,
        Err(error) => {
            // A full file system: give the space back, then say so.
            let _ = shred(directory, temporary);
            return Err(error);
        }
    };
    directory.rename(temporary.as_ref(), name.as_ref())?;
    directory.sync()?;
    Ok(bytes)
}

/// Makes an empty file, durable when this returns. Safe to repeat.
pub fn mark(directory: &dyn Directory, name: &str) -> io::Result<()> {
    directory.any_file(name.as_ref())?.sync()?;
    directory.sync()
}

/// Of these files, those with clusters that are free, as a cut leaves them on FAT: while they were made,
/// or removed. Where that cannot be told, they count as whole: what is asked for is done all the same.
pub fn unlinked(directory: &dyn Directory, among: Vec<String>) -> Vec<String> {
    let untold = |error: io::Error| {
        log::warn!("{}", chain(&error));
        false
    };
    if !directory.grows_in_pieces().unwrap_or_else(untold) {
        return Vec::new();
    }
    let is_unlinked = |name: &String| {
        directory.is_linked(name.as_ref()).map_or_else(untold, |is_linked| !is_linked)
    };
    among.into_iter().filter(is_unlinked).collect()
}

/// Removes a file, durable when this returns. Safe to repeat.
pub fn remove(directory: &dyn Directory, name: impl AsRef<OsStr>) -> io::Result<()> {
    removed(directory, directory.remove_file(name.as_ref()))
}

/// Makes a removal durable: also one that failed, for it may have happened all the same, and that of
/// something that is not there, for who removed it may not have come to that.
fn removed(directory: &dyn Directory, was_there: io::Result<bool>) -> io::Result<()> {
    let synced = directory.sync();
    was_there.and(synced)
}

/// Makes durable the files of a directory, as they are seen, and their names. One that fails keeps no other
/// from it; the first failure is the one to tell.
pub fn settle(directory: &dyn Directory) -> io::Result<()> {
    let file = |name: &OsStr| {
        // Of an empty one there is only the name.
        let is_file = |node: &Node| node.kind == NodeKind::File && node.bytes > 0;
        if !directory.look(name)?.as_ref().is_some_and(is_file) {
            return Ok(());
        }
        directory.file(name)?.map_or(Ok(()), |file| file.sync())
    };
    let mut settled = Ok(());
    for name in directory.names()? {
        settled = settled.and(file(&name));
    }
    settled.and(directory.sync())
}

/// Overwrites a file in place, syncs, and removes it, durable when this returns. Safe to repeat. One
/// that can be neither overwritten nor read, as a power cut leaves it on FAT, is only removed.
pub fn shred(directory: &dyn Directory, name: impl AsRef<OsStr>) -> io::Result<()> {
    let name = name.as_ref();
    match directory.file_to_overwrite(name)?.map(overwrite) {
        Some(Err(error)) => {
            if is_readable(directory, name) {
                return Err(error);
            }
            let why = chain(&error);
            log::warn!("`{}` cannot be read, nor overwritten: {why}", name.to_string_lossy());
        }
        None if directory.look(name)?.is_some() => {
            let name = name.to_string_lossy();
            log::warn!("`{name}` is no file of our own, or has other names: it is not overwritten");
        }
        Some(Ok(())) | None => {}
    }
    remove(directory, name)
}

fn overwrite(mut file: Box<dyn OpenFile>) -> io::Result<()> {
    let length = file.length()?;
    io::copy(&mut io::repeat(0).take(length), &mut file)?;
    file.sync()
}

fn is_readable(directory: &dyn Directory, name: &OsStr) -> bool {
    directory.file(name).is_ok_and(|file| {
        file.is_some_and(|mut file| stream::copy(&mut file, &mut io::sink()).is_ok())
    })
}

/// Removes a file or a directory with all that is in it, file contents overwritten first, durable
/// when this returns. Safe to repeat.
pub fn remove_tree(parent: &dyn Directory, name: impl AsRef<OsStr>) -> io::Result<()> {
    remove_tree_at(parent, name.as_ref(), MAX_DEPTH)
}

fn remove_tree_at(parent: &dyn Directory, name: &OsStr, depth: usize) -> io::Result<()> {
    match parent.look(name)? {
        None => return removed(parent, Ok(false)),
        Some(node) if node.kind != NodeKind::Directory => return shred(parent, name),
        Some(_) => {}
    }
    let Some(directory) = parent.directory(name)? else { return Ok(()) };
    if depth == 0 {
        return Err(io::Error::other(format!("`{}` lies too deep", name.to_string_lossy())));
    }
    for inner in directory.names()? {
        remove_tree_at(directory.as_ref(), &inner, depth - 1)?;
    }
    removed(parent, parent.remove_directory(name))
}
