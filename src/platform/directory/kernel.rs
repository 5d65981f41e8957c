//! The real directories.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{AtFlags, Dir as Entries, FileType, FlockOperation, Gid, Mode, OFlags, Uid};
use rustix::fs::{RenameFlags, Stat, StatxAttributes, StatxFlags};
use rustix::io::Errno;

use super::{Dir, Directory, Node, NodeKind, OpenFile, clusters};
use crate::format::archive::{Attributes, Kind};
use crate::platform::attributes;

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
const FILE: OFlags = OFlags::NOFOLLOW.union(OFlags::CLOEXEC).union(OFlags::NONBLOCK);
const PRIVATE_FILE: Mode = Mode::RUSR.union(Mode::WUSR);

/// A directory of the running kernel.
pub struct Kernel(OwnedFd);

impl Kernel {
    /// Opens a directory by path, which must not be a link itself.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self(rustix::fs::open(path, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?))
    }

    /// Opens a directory that a person named.
    pub fn open_following(path: &Path) -> io::Result<Self> {
        Ok(Self(rustix::fs::open(path, DIRECTORY, Mode::empty())?))
    }

    /// [`Directory::new_file`], as the standard library's type.
    pub fn new_plain_file(&self, name: &OsStr) -> io::Result<File> {
        let flags = FILE | OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        Ok(File::from(rustix::fs::openat(&self.0, name, flags, PRIVATE_FILE)?))
    }

    /// A file without a name, mode 0600, which is gone when it is closed; none where the file system
    /// has no such files, as FAT.
    pub fn nameless_file(&self) -> io::Result<Option<File>> {
        let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        match rustix::fs::openat(&self.0, ".", flags, PRIVATE_FILE) {
            Ok(file) => Ok(Some(File::from(file))),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Gives a file without a name this one; one that is there already is an error.
    pub fn give_name(&self, file: &File, name: &OsStr) -> io::Result<()> {
        let nameless = format!("/proc/self/fd/{}", file.as_raw_fd());
        let follow = AtFlags::SYMLINK_FOLLOW;
        Ok(rustix::fs::linkat(rustix::fs::CWD, nameless, &self.0, name, follow)?)
    }

    /// [`Directory::rename`] over what is there.
    pub fn replace(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::renameat(&self.0, from, &self.0, to)?)
    }
}

impl OpenFile for File {
    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_all()
    }
}

/// Nothing, when the name is not there.
fn if_there<T>(result: rustix::io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn node(stat: &Stat) -> io::Result<Node> {
    Ok(Node {
        kind: match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => NodeKind::File,
            FileType::Directory => NodeKind::Directory,
            FileType::Symlink => NodeKind::Symlink,
            FileType::Socket => NodeKind::Socket,
            _ => NodeKind::Other,
        },
        bytes: u64::try_from(stat.st_size).map_err(io::Error::other)?,
        number: stat.st_ino,
        device: stat.st_dev,
        links: stat.st_nlink,
        mode: stat.st_mode & 0o7777,
        owner: stat.st_uid,
        group: stat.st_gid,
        modified: u64::try_from(stat.st_mtime).unwrap_or(0),
    })
}

impl Directory for Kernel {
    fn again(&self) -> io::Result<Dir> {
        Ok(Box::new(Self(self.0.try_clone()?)))
    }

    fn node(&self) -> io::Result<Node> {
        node(&rustix::fs::fstat(&self.0)?)
    }

    fn names(&self) -> io::Result<Vec<OsString>> {
        let mut names = Vec::new();
        for entry in Entries::read_from(&self.0)? {
            let name = OsString::from_vec(entry?.file_name().to_bytes().to_vec());
            if name != "." && name != ".." {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    fn look(&self, name: &OsStr) -> io::Result<Option<Node>> {
        let stat = rustix::fs::statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW);
        if_there(stat)?.map(|stat| node(&stat)).transpose()
    }

    fn directory(&self, name: &OsStr) -> io::Result<Option<Dir>> {
        let flags = DIRECTORY | OFlags::NOFOLLOW;
        let opened = if_there(rustix::fs::openat(&self.0, name, flags, Mode::empty()))?;
        Ok(opened.map(|directory| Box::new(Self(directory)) as Dir))
    }

    fn file(&self, name: &OsStr) -> io::Result<Option<Box<dyn OpenFile>>> {
        let flags = FILE | OFlags::RDONLY;
        let opened = if_there(rustix::fs::openat(&self.0, name, flags, Mode::empty()))?;
        let Some(file) = opened.map(File::from) else { return Ok(None) };
        if file.metadata()?.is_file() {
            Ok(Some(Box::new(file)))
        } else {
            Err(io::Error::other("not a regular file"))
        }
    }

    fn file_to_overwrite(&self, name: &OsStr) -> io::Result<Option<Box<dyn OpenFile>>> {
        match rustix::fs::openat(&self.0, name, FILE | OFlags::WRONLY, Mode::empty()) {
            Ok(file) => {
                let file = File::from(file);
                let metadata = file.metadata()?;
                let is_ours = metadata.is_file() && metadata.nlink() == 1;
                Ok(is_ours.then(|| Box::new(file) as Box<dyn OpenFile>))
            }
            Err(Errno::NOENT | Errno::LOOP | Errno::NXIO) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn new_file(&self, name: &OsStr) -> io::Result<Box<dyn OpenFile>> {
        Ok(Box::new(self.new_plain_file(name)?))
    }

    fn any_file(&self, name: &OsStr) -> io::Result<Box<dyn OpenFile>> {
        let flags = FILE | OFlags::WRONLY | OFlags::CREATE;
        let file = rustix::fs::openat(&self.0, name, flags, PRIVATE_FILE)?;
        Ok(Box::new(File::from(file)))
    }

    fn new_directory(&self, name: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::mkdirat(&self.0, name, Mode::RWXU)?)
    }

    fn new_link(&self, name: &OsStr, target: &str) -> io::Result<()> {
        Ok(rustix::fs::symlinkat(target, &self.0, name)?)
    }

    fn link_target(&self, name: &OsStr) -> io::Result<Vec<u8>> {
        Ok(rustix::fs::readlinkat(&self.0, name, Vec::new())?.into_bytes())
    }

    fn attributes(&self, name: &OsStr) -> io::Result<Attributes> {
        let node = self.look(name)?.ok_or(io::ErrorKind::NotFound)?;
        attributes::read(&self.0, name, &node)
    }

    fn set_attributes(&self, name: &OsStr, kind: &Kind, attributes: &Attributes) -> io::Result<()> {
        attributes::apply(&self.0, name, kind, attributes)
    }

    fn become_like(&self, other: &Node) -> io::Result<()> {
        let now = self.node()?;
        if (now.owner, now.group) != (other.owner, other.group) {
            let owner = (Uid::from_raw(other.owner), Gid::from_raw(other.group));
            rustix::fs::fchown(&self.0, Some(owner.0), Some(owner.1))?;
        }
        Ok(rustix::fs::fchmod(&self.0, Mode::from_raw_mode(other.mode))?)
    }

    fn rename(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::renameat_with(&self.0, from, &self.0, to, RenameFlags::NOREPLACE)?)
    }

    fn exchange(&self, one: &OsStr, other: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::renameat_with(&self.0, one, &self.0, other, RenameFlags::EXCHANGE)?)
    }

    fn remove_file(&self, name: &OsStr) -> io::Result<bool> {
        Ok(if_there(rustix::fs::unlinkat(&self.0, name, AtFlags::empty()))?.is_some())
    }

    fn remove_directory(&self, name: &OsStr) -> io::Result<bool> {
        Ok(if_there(rustix::fs::unlinkat(&self.0, name, AtFlags::REMOVEDIR))?.is_some())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::fsync(&self.0)?)
    }

    fn sync_file_system(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(&self.0)?)
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let space = rustix::fs::fstatvfs(&self.0)?;
        Ok(space.f_bavail.saturating_mul(space.f_frsize))
    }

    fn is_linked(&self, name: &OsStr) -> io::Result<bool> {
        let file = rustix::fs::openat(&self.0, name, FILE | OFlags::RDONLY, Mode::empty())?;
        if !self.grows_in_pieces()? {
            return Ok(true);
        }
        clusters::are_linked(&File::from(file))
    }

    fn read_ahead(&self, path: &str) -> io::Result<()> {
        if self.grows_in_pieces()? { clusters::read_ahead(&self.0, path) } else { Ok(()) }
    }

    fn grows_in_pieces(&self) -> io::Result<bool> {
        Ok(rustix::fs::fstatfs(&self.0)?.f_type == libc::MSDOS_SUPER_MAGIC)
    }

    fn lock(&self) -> io::Result<bool> {
        match rustix::fs::flock(&self.0, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(true),
            Err(Errno::WOULDBLOCK) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn is_mount_point(&self, name: &OsStr) -> io::Result<bool> {
        // Bind mounts of the same file system have the same device number.
        let (flags, wanted) = (AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS);
        match rustix::fs::statx(&self.0, name, flags, wanted) {
            Ok(stat) => Ok(stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)),
            Err(Errno::NOSYS | Errno::NOENT) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}
