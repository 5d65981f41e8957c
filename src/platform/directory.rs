//! Small durable operations beneath a directory handle. Links are never followed.
//! Side: both. Every function says what is durable when it returns.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const PRIVATE_FILE: Mode = Mode::RUSR.union(Mode::WUSR);
/// Trees deeper than this are not ours to remove.
const MAX_DEPTH: usize = 64;

/// Opens a directory by path.
pub fn open(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, DIRECTORY, Mode::empty())?)
}

/// Opens a directory in a directory; none when it is not there.
pub fn open_at(parent: impl AsFd, name: impl AsRef<OsStr>) -> io::Result<Option<OwnedFd>> {
    match rustix::fs::openat(parent, name.as_ref(), DIRECTORY, Mode::empty()) {
        Ok(directory) => Ok(Some(directory)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Makes a directory, mode 0700, durable when this returns. Safe to repeat.
pub fn make(parent: impl AsFd, name: &str) -> io::Result<OwnedFd> {
    match rustix::fs::mkdirat(&parent, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    let directory = rustix::fs::openat(&parent, name, DIRECTORY, Mode::empty())?;
    rustix::fs::fsync(&directory)?;
    rustix::fs::fsync(&parent)?;
    Ok(directory)
}

/// The names in a directory, whatever bytes they are made of, sorted.
pub fn raw_names(directory: impl AsFd) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let name = OsString::from_vec(entry?.file_name().to_bytes().to_vec());
        if name != "." && name != ".." {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// The names in a directory, sorted, and whether each is a directory.
pub fn list(directory: impl AsFd) -> io::Result<Vec<(String, bool)>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name != "." && name != ".." {
            names.push((name, entry.file_type() == FileType::Directory));
        }
    }
    names.sort();
    Ok(names)
}

/// Reads a regular file; none when it is not there, an error when it is longer than `max_bytes`.
pub fn read(directory: impl AsFd, name: &str, max_bytes: usize) -> io::Result<Option<Vec<u8>>> {
    let Some(file) = open_file(directory, name)? else { return Ok(None) };
    let metadata = file.metadata()?;
    if metadata.len() > max_bytes as u64 {
        return Err(io::Error::other(format!("more than {max_bytes} bytes long")));
    }
    // One allocation: what is read may be secret, and a grown Vec leaves copies behind.
    let mut bytes =
        Vec::with_capacity(max_bytes.min(usize::try_from(metadata.len()).unwrap_or(0)) + 1);
    file.take(max_bytes as u64).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

/// Opens a regular file for reading; none when it is not there.
pub fn open_file(directory: impl AsFd, name: &str) -> io::Result<Option<File>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = match rustix::fs::openat(directory, name, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if file.metadata()?.is_file() {
        Ok(Some(file))
    } else {
        Err(io::Error::other("not a regular file"))
    }
}

/// Makes a new, private file for writing.
pub fn new_file(directory: impl AsFd, name: &str) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::openat(directory, name, flags, PRIVATE_FILE)?))
}

/// Makes a file that is not there yet, by way of `temporary`: under its own name it appears whole
/// and durable, or not at all. This order is the one that came through every cut on FAT.
pub fn create(directory: impl AsFd, temporary: &str, name: &str, bytes: &[u8]) -> io::Result<()> {
    create_from(directory, temporary, name, &mut &*bytes, &|| Ok(())).map(drop)
}

/// The same from a stream. `complete` gives it what it needs besides its content. Returns how many
/// bytes it was.
pub fn create_from(
    directory: impl AsFd,
    temporary: &str,
    name: &str,
    content: &mut dyn Read,
    complete: &dyn Fn() -> io::Result<()>,
) -> io::Result<u64> {
    let directory = directory.as_fd();
    shred(directory, temporary)?;
    let mut file = new_file(directory, temporary)?;
    let bytes = match io::copy(content, &mut file)
        .and_then(|n| complete().and_then(|()| file.sync_all()).map(|()| n))
    {
        Ok(bytes) => bytes,
        Err(error) => {
            // A full file system: give the space back, then say so.
            let _ = shred(directory, temporary);
            return Err(error);
        }
    };
    rustix::fs::fsync(directory)?;
    rustix::fs::renameat_with(directory, temporary, directory, name, RenameFlags::NOREPLACE)?;
    file.sync_all()?;
    rustix::fs::fsync(directory)?;
    Ok(bytes)
}

/// Makes an empty file, durable when this returns. Safe to repeat.
pub fn mark(directory: impl AsFd, name: &str) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&directory, name, flags, PRIVATE_FILE)?;
    rustix::fs::fsync(&file)?;
    Ok(rustix::fs::fsync(&directory)?)
}

/// Removes a file, durable when this returns. Safe to repeat.
pub fn remove(directory: impl AsFd, name: impl AsRef<OsStr>) -> io::Result<()> {
    match rustix::fs::unlinkat(&directory, name.as_ref(), AtFlags::empty()) {
        Ok(()) => Ok(rustix::fs::fsync(&directory)?),
        Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Overwrites a file in place, syncs, and removes it, durable when this returns. Safe to repeat.
pub fn shred(directory: impl AsFd, name: impl AsRef<OsStr>) -> io::Result<()> {
    let name = name.as_ref();
    let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    match rustix::fs::openat(&directory, name, flags, Mode::empty()) {
        Ok(file) => {
            let mut file = File::from(file);
            let length = file.metadata()?.len();
            io::copy(&mut io::repeat(0).take(length), &mut file)?;
            file.sync_all()?;
        }
        Err(Errno::NOENT) => return Ok(()),
        // A link or a socket holds nothing of its own.
        Err(Errno::LOOP | Errno::NXIO) => {}
        Err(error) => return Err(error.into()),
    }
    remove(directory, name)
}

/// Removes a file or a directory with all that is in it, file contents overwritten first, durable
/// when this returns. Safe to repeat.
pub fn remove_tree(parent: impl AsFd, name: &str) -> io::Result<()> {
    remove_tree_at(&parent, name.as_ref(), MAX_DEPTH)
}

fn remove_tree_at(parent: &impl AsFd, name: &OsStr, depth: usize) -> io::Result<()> {
    let directory = match open_at(parent, name) {
        Ok(Some(directory)) => directory,
        Ok(None) => return Ok(()),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTDIR | libc::ELOOP)) => {
            return shred(parent, name);
        }
        Err(error) => return Err(error),
    };
    if depth == 0 {
        return Err(io::Error::other(format!("`{}` lies too deep", name.to_string_lossy())));
    }
    for inner in raw_names(&directory)? {
        remove_tree_at(&directory, &inner, depth - 1)?;
    }
    match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(rustix::fs::fsync(parent)?),
        Err(error) => Err(error.into()),
    }
}
