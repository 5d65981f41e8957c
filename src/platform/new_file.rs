//! A file whose name a person gave.
//! Side: OS. Writes beside it, and moves.

use std::fs::File;
use std::io;
use std::path::Path;

use super::directory::{self, Directory, Kernel};

/// A new file: written beside its place and moved there when it is whole.
pub struct NewFile {
    directory: Kernel,
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
        let directory = Kernel::open_following(parent.unwrap_or(Path::new(".")))?;
        let temporary = format!(".{name}.restage-{}", std::process::id());
        let file = directory.new_plain_file(temporary.as_ref())?;
        Ok(Self { directory, name: name.to_owned(), temporary, file })
    }

    /// Where to write.
    pub fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Makes it appear, durable when this returns; an existing file is replaced only if `replace`.
    pub fn commit(self, replace: bool) -> io::Result<()> {
        let moved = self.file.sync_all().and_then(|()| {
            let (from, to) = (self.temporary.as_ref(), self.name.as_ref());
            if replace { self.directory.replace(from, to) } else { self.directory.rename(from, to) }
        });
        match moved {
            Ok(()) => self.directory.sync(),
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
