//! A file whose name a person gave.
//! Side: OS. Writes beside it, and moves.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, RenameFlags};

use super::directory;

/// A new file: written beside its place and moved there when it is whole.
pub struct NewFile {
    directory: OwnedFd,
    name: String,
    temporary: String,
    file: File,
}

impl NewFile {
    /// Begins a file at `path`, mode 0600. Nothing is seen there until [`NewFile::commit`].
    pub fn begin(path: &Path) -> io::Result<Self> {
        let name = path.file_name().ok_or_else(|| io::Error::other("not the name of a file"))?;
        let name = name.to_str().ok_or_else(|| io::Error::other("the name is not UTF-8"))?;
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
        let directory = rustix::fs::open(
            parent.unwrap_or(Path::new(".")),
            rustix::fs::OFlags::RDONLY
                | rustix::fs::OFlags::DIRECTORY
                | rustix::fs::OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let temporary = format!(".{name}.restage-{}", std::process::id());
        let file = directory::new_file(&directory, &temporary)?;
        Ok(Self { directory, name: name.to_owned(), temporary, file })
    }

    /// Where to write.
    pub fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Makes it appear, durable when this returns; an existing file is replaced only if `replace`.
    pub fn commit(self, replace: bool) -> io::Result<()> {
        let flags = if replace { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
        let moved = self.file.sync_all().and_then(|()| {
            let (directory, name) = (&self.directory, &self.name);
            Ok(rustix::fs::renameat_with(directory, &self.temporary, directory, name, flags)?)
        });
        match moved {
            Ok(()) => Ok(rustix::fs::fsync(&self.directory)?),
            Err(error) => {
                self.abandon();
                Err(error)
            }
        }
    }

    /// Leaves nothing behind.
    pub fn abandon(self) {
        // There is nothing better to do about a file that cannot be removed.
        let _ = directory::shred(&self.directory, &self.temporary);
    }
}
