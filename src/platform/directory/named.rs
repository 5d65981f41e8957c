//! A directory whose errors say what was being done to which path.
//! Side: both. Does what the directory inside does, and no more.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::{Dir, Directory, Node, OpenFile};
use crate::error::Calling;
use crate::format::archive::{Attributes, Kind};

/// A directory, and the path by which people know it.
pub struct Named {
    inner: Dir,
    path: PathBuf,
}

impl Named {
    /// `inner` is known as `path`.
    #[must_use]
    pub fn wrap(inner: Dir, path: &Path) -> Dir {
        Box::new(Self { inner, path: path.to_owned() })
    }

    fn cannot(&self, what: &str, name: &OsStr) -> String {
        format!("cannot {what} {}", self.path.join(name).display())
    }

    fn cannot_itself(&self, what: &str) -> String {
        format!("cannot {what} {}", self.path.display())
    }

    fn file(&self, inner: Box<dyn OpenFile>, name: &OsStr) -> Box<dyn OpenFile> {
        Box::new(NamedFile { inner, path: self.path.join(name) })
    }
}

impl Directory for Named {
    fn again(&self) -> io::Result<Dir> {
        let inner = self.inner.again().calling(|| self.cannot_itself("open"))?;
        Ok(Self::wrap(inner, &self.path))
    }
    fn node(&self) -> io::Result<Node> {
        self.inner.node().calling(|| self.cannot_itself("look at"))
    }
    fn names(&self) -> io::Result<Vec<OsString>> {
        self.inner.names().calling(|| self.cannot_itself("list"))
    }
    fn look(&self, name: &OsStr) -> io::Result<Option<Node>> {
        self.inner.look(name).calling(|| self.cannot("look at", name))
    }
    fn directory(&self, name: &OsStr) -> io::Result<Option<Dir>> {
        let opened = self.inner.directory(name).calling(|| self.cannot("open", name))?;
        Ok(opened.map(|inner| Self::wrap(inner, &self.path.join(name))))
    }
    fn file(&self, name: &OsStr) -> io::Result<Option<Box<dyn OpenFile>>> {
        let opened = self.inner.file(name).calling(|| self.cannot("open", name))?;
        Ok(opened.map(|file| self.file(file, name)))
    }
    fn file_to_overwrite(&self, name: &OsStr) -> io::Result<Option<Box<dyn OpenFile>>> {
        let opened = self.inner.file_to_overwrite(name);
        let opened = opened.calling(|| self.cannot("open for overwriting", name))?;
        Ok(opened.map(|file| self.file(file, name)))
    }
    fn new_file(&self, name: &OsStr) -> io::Result<Box<dyn OpenFile>> {
        let made = self.inner.new_file(name).calling(|| self.cannot("make", name))?;
        Ok(self.file(made, name))
    }
    fn any_file(&self, name: &OsStr) -> io::Result<Box<dyn OpenFile>> {
        let made = self.inner.any_file(name).calling(|| self.cannot("open or make", name))?;
        Ok(self.file(made, name))
    }
    fn new_directory(&self, name: &OsStr) -> io::Result<()> {
        self.inner.new_directory(name).calling(|| self.cannot("make the directory", name))
    }
    fn new_link(&self, name: &OsStr, target: &str) -> io::Result<()> {
        self.inner.new_link(name, target).calling(|| self.cannot("make the link", name))
    }
    fn link_target(&self, name: &OsStr) -> io::Result<Vec<u8>> {
        self.inner.link_target(name).calling(|| self.cannot("read the link", name))
    }
    fn attributes(&self, name: &OsStr) -> io::Result<Attributes> {
        self.inner.attributes(name).calling(|| self.cannot("read the attributes of", name))
    }
    fn set_attributes(&self, name: &OsStr, kind: &Kind, attributes: &Attributes) -> io::Result<()> {
        let set = self.inner.set_attributes(name, kind, attributes);
        set.calling(|| self.cannot("set the attributes of", name))
    }
    fn become_like(&self, other: &Node) -> io::Result<()> {
        let set = self.inner.become_like(other);
        set.calling(|| self.cannot_itself("set the owner and mode of"))
    }
    fn rename(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        let renamed = self.inner.rename(from, to);
        renamed.calling(|| format!("{} to {}", self.cannot("rename", from), to.to_string_lossy()))
    }
    fn exchange(&self, one: &OsStr, other: &OsStr) -> io::Result<()> {
        let exchanged = self.inner.exchange(one, other);
        exchanged.calling(|| {
            format!("{} with {}", self.cannot("exchange", one), other.to_string_lossy())
        })
    }
    fn remove_file(&self, name: &OsStr) -> io::Result<bool> {
        self.inner.remove_file(name).calling(|| self.cannot("remove", name))
    }
    fn remove_directory(&self, name: &OsStr) -> io::Result<bool> {
        self.inner.remove_directory(name).calling(|| self.cannot("remove the directory", name))
    }
    fn sync(&self) -> io::Result<()> {
        self.inner.sync().calling(|| self.cannot_itself("sync the directory"))
    }
    fn sync_file_system(&self) -> io::Result<()> {
        self.inner.sync_file_system().calling(|| self.cannot_itself("sync the file system of"))
    }
    fn free_bytes(&self) -> io::Result<u64> {
        self.inner.free_bytes().calling(|| self.cannot_itself("tell the free space of"))
    }
    fn is_linked(&self, name: &OsStr) -> io::Result<bool> {
        self.inner.is_linked(name).calling(|| self.cannot("tell the clusters of", name))
    }
    fn read_ahead(&self, path: &str) -> io::Result<()> {
        self.inner
            .read_ahead(path)
            .calling(|| self.cannot("read the directories of", path.as_ref()))
    }
    fn grows_in_pieces(&self) -> io::Result<bool> {
        self.inner.grows_in_pieces().calling(|| self.cannot_itself("tell the file system of"))
    }
    fn lock(&self) -> io::Result<bool> {
        self.inner.lock().calling(|| self.cannot_itself("lock"))
    }
    fn is_mount_point(&self, name: &OsStr) -> io::Result<bool> {
        let asked = self.inner.is_mount_point(name);
        asked.calling(|| self.cannot("tell the mount points at", name))
    }
}

/// An open file, and its path.
struct NamedFile {
    inner: Box<dyn OpenFile>,
    path: PathBuf,
}

impl NamedFile {
    fn cannot(&self, what: &str) -> String {
        format!("cannot {what} {}", self.path.display())
    }
}

impl Read for NamedFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.inner.read(buffer).calling(|| self.cannot("read"))
    }
}

impl Write for NamedFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.inner.write(bytes).calling(|| self.cannot("write"))
    }
    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush().calling(|| self.cannot("write"))
    }
}

impl OpenFile for NamedFile {
    fn length(&self) -> io::Result<u64> {
        self.inner.length().calling(|| self.cannot("tell the length of"))
    }
    fn sync(&self) -> io::Result<()> {
        self.inner.sync().calling(|| self.cannot("sync"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::chain;
    use crate::platform::directory;

    #[test]
    fn errors_of_real_directories_name_the_path() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().display().to_string();
        let directory = directory::open(root.path()).unwrap();
        directory.new_file("x".as_ref()).unwrap();
        let said = |error: io::Error| chain(&error).replace(&path, "ROOT");
        assert_eq!(
            said(directory.new_file("x".as_ref()).err().unwrap()),
            "cannot make ROOT/x: File exists (os error 17)"
        );
        assert_eq!(
            said(directory.directory("x".as_ref()).err().unwrap()),
            "cannot open ROOT/x: Not a directory (os error 20)"
        );
        let inner = directory::make(directory.as_ref(), "inner").unwrap();
        let mut file = inner.new_file("y".as_ref()).unwrap();
        let read = file.read(&mut [0]).unwrap_err();
        assert_eq!(said(read), "cannot read ROOT/inner/y: Bad file descriptor (os error 9)");
        let missing = directory::open(&root.path().join("missing")).err().unwrap();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        assert_eq!(
            said(missing),
            "cannot open ROOT/missing: No such file or directory (os error 2)"
        );
    }
}
