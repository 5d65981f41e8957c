//! A file whose name a person gave.
//! Side: OS. Writes a file without a name, or beside it, and moves it there.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::path::Path;

use super::directory::{Directory, Kernel};

/// A new file: it gets its name when it is whole.
///
/// Until then it has none, where the file system can do that, so that nothing stays behind of a process
/// that is killed, and nobody else in that directory can meddle with it. On FAT, and when a file is
/// replaced, it has another name for a while, which nobody can foresee.
pub struct NewFile {
    directory: Kernel,
    name: OsString,
    temporary: Option<OsString>,
    file: File,
}

impl NewFile {
    /// Begins a file at `path`, mode 0600. Nothing is seen there until [`NewFile::commit`].
    pub fn begin(path: &Path) -> io::Result<Self> {
        let name = path.file_name().ok_or_else(|| io::Error::other("not the name of a file"))?;
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
        let directory = Kernel::open_following(parent.unwrap_or(Path::new(".")))?;
        let (temporary, file) = if let Some(file) = directory.nameless_file()? {
            (None, file)
        } else {
            let temporary = beside()?;
            let file = directory.new_plain_file(&temporary)?;
            (Some(temporary), file)
        };
        Ok(Self { directory, name: name.to_owned(), temporary, file })
    }

    /// Where to write.
    pub fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Makes it appear, durable when this returns; an existing file is replaced only if `replace`.
    pub fn commit(mut self, replace: bool) -> io::Result<()> {
        match self.file.sync_all().and_then(|()| self.appear(replace)) {
            Ok(()) => self.directory.sync(),
            Err(error) => {
                self.abandon();
                Err(error)
            }
        }
    }

    fn appear(&mut self, replace: bool) -> io::Result<()> {
        if self.temporary.is_none() {
            match self.directory.give_name(&self.file, &self.name) {
                Err(error) if replace && error.kind() == io::ErrorKind::AlreadyExists => {
                    let temporary = beside()?;
                    self.directory.give_name(&self.file, &temporary)?;
                    self.temporary = Some(temporary);
                }
                Ok(()) => {}
                Err(error) => return Err(error),
            }
            // Not every file system writes what has no name, whatever was synced of it (btrfs).
            self.file.sync_all()?;
        }
        match &self.temporary {
            Some(temporary) if replace => self.directory.replace(temporary, &self.name),
            Some(temporary) => self.directory.rename(temporary, &self.name),
            None => Ok(()),
        }
    }

    /// Leaves nothing behind: what was written is overwritten, and goes.
    pub fn abandon(mut self) {
        // There is nothing better to do about a file that cannot be overwritten or removed.
        let _ = self.overwrite();
        if let Some(temporary) = &self.temporary {
            let _ = self.directory.remove_file(temporary);
            let _ = self.directory.sync();
        }
    }

    fn overwrite(&mut self) -> io::Result<()> {
        let length = self.file.metadata()?.len();
        self.file.seek(SeekFrom::Start(0))?;
        io::copy(&mut io::Read::take(io::repeat(0), length), &mut self.file)?;
        self.file.sync_all()
    }
}

/// A name that nobody can take before us.
fn beside() -> io::Result<OsString> {
    let mut bytes = [0; 16];
    // Up to 256 bytes are never cut short (getrandom(2)).
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(format!(".restage-{}", crate::format::hex(&bytes)).into())
}
