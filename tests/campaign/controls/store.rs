//! Stores that make files as one does on other file systems.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::rc::Rc;

use restage::format::archive::{Attributes, Kind};
use restage::platform::directory::{self, Dir, Directory, Node, OpenFile};
use restage::platform::esp::EspDirectory;
use restage::platform::{Esp, Store};

use super::Wrong;

/// The marker that is renamed over holds the names of all marks so far.
const MARKER: &str = "PRG";

/// A store, and the root of its file system.
pub struct WrongStore {
    pub inner: EspDirectory,
    pub root: Dir,
    /// Whether marks are kept in one file; else every file is made by a rename.
    pub is_one_marker: bool,
}

impl WrongStore {
    /// As one does: a temporary file, synced, renamed, the directory synced.
    fn replace(&mut self, name: &str, content: &mut dyn Read) -> io::Result<u64> {
        let own = match directory::open_at(self.root.as_ref(), "restage")? {
            Some(own) => own,
            None => directory::make(self.root.as_ref(), "restage")?,
        };
        let own = own.as_ref();
        let temporary = format!("{}.TMP", name.split('.').next().unwrap_or(name));
        directory::remove(own, &temporary)?;
        let mut file = own.new_file(temporary.as_ref())?;
        let bytes = io::copy(content, &mut file)?;
        file.sync()?;
        // The model has no rename over something: what is there goes in the same breath.
        own.remove_file(name.as_ref())?;
        own.rename(temporary.as_ref(), name.as_ref())?;
        own.sync()?;
        Ok(bytes)
    }

    fn marks(&self, marker: &str) -> io::Result<BTreeSet<String>> {
        let text = self.inner.read(marker, 4096)?.unwrap_or_default();
        let text = String::from_utf8(text).map_err(io::Error::other)?;
        Ok(text.lines().map(str::to_owned).collect())
    }
}

fn marker(stem: &str) -> String {
    format!("{stem}.{MARKER}")
}

impl Store for WrongStore {
    fn names(&self) -> io::Result<Vec<String>> {
        let mut names = self.inner.names()?;
        for name in names.clone() {
            if name.ends_with(MARKER) {
                names.extend(self.marks(&name)?);
            }
        }
        Ok(names)
    }
    fn read(&self, name: &str, max_bytes: usize) -> io::Result<Option<Vec<u8>>> {
        self.inner.read(name, max_bytes)
    }
    fn unlinked(&self, among: Vec<String>) -> Vec<String> {
        self.inner.unlinked(among)
    }
    fn make_room(&mut self, stem: &str) -> io::Result<()> {
        self.inner.make_room(stem)
    }
    fn create(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.create_from(name, &mut &*bytes).map(drop)
    }
    fn open(&self, name: &str) -> io::Result<Option<Box<dyn Read>>> {
        self.inner.open(name)
    }
    fn create_from(&mut self, name: &str, content: &mut dyn Read) -> io::Result<u64> {
        if self.is_one_marker {
            return self.inner.create_from(name, content);
        }
        self.replace(name, content)
    }
    fn mark(&mut self, name: &str) -> io::Result<()> {
        let (stem, _) = name.split_once('.').ok_or(io::ErrorKind::InvalidInput)?;
        if !self.is_one_marker {
            return self.inner.mark(name);
        }
        let mut marks = self.marks(&marker(stem))?;
        marks.insert(name.to_owned());
        let text = marks.into_iter().collect::<Vec<_>>().join("\n");
        self.replace(&marker(stem), &mut text.as_bytes()).map(drop)
    }
    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.inner.remove(name)
    }
    fn shred(&mut self, name: &str) -> io::Result<()> {
        self.inner.shred(name)
    }
    fn settle(&mut self) -> io::Result<()> {
        self.inner.settle()
    }
}

impl Esp for WrongStore {
    fn matching(&self, pattern: &str) -> io::Result<Vec<String>> {
        self.inner.matching(pattern)
    }
    fn remove_path(&mut self, path: &str) -> io::Result<()> {
        self.inner.remove_path(path)
    }
}

/// A directory that is not synced after something was made in it, or not read first.
pub struct Careless {
    inner: Dir,
    wrong: Wrong,
    /// Something was made since the last sync.
    is_made: Rc<Cell<bool>>,
}

impl Careless {
    /// This one, with this mistake.
    pub fn with(wrong: Wrong, inner: Dir) -> Dir {
        Box::new(Self { inner, wrong, is_made: Rc::default() })
    }
}

impl Directory for Careless {
    fn again(&self) -> io::Result<Dir> {
        let (inner, is_made) = (self.inner.again()?, self.is_made.clone());
        Ok(Box::new(Self { inner, wrong: self.wrong, is_made }))
    }
    fn node(&self) -> io::Result<Node> {
        self.inner.node()
    }
    fn names(&self) -> io::Result<Vec<OsString>> {
        self.inner.names()
    }
    fn look(&self, name: &OsStr) -> io::Result<Option<Node>> {
        self.inner.look(name)
    }
    fn directory(&self, name: &OsStr) -> io::Result<Option<Dir>> {
        let opened = self.inner.directory(name)?;
        Ok(opened.map(|inner| Self::with(self.wrong, inner)))
    }
    fn file(&self, name: &OsStr) -> io::Result<Option<Box<dyn OpenFile>>> {
        self.inner.file(name)
    }
    fn file_to_overwrite(&self, name: &OsStr) -> io::Result<Option<Box<dyn OpenFile>>> {
        self.inner.file_to_overwrite(name)
    }
    fn new_file(&self, name: &OsStr) -> io::Result<Box<dyn OpenFile>> {
        self.is_made.set(true);
        self.inner.new_file(name)
    }
    fn any_file(&self, name: &OsStr) -> io::Result<Box<dyn OpenFile>> {
        self.is_made.set(true);
        self.inner.any_file(name)
    }
    fn new_directory(&self, name: &OsStr) -> io::Result<()> {
        self.inner.new_directory(name)
    }
    fn new_link(&self, name: &OsStr, target: &str) -> io::Result<()> {
        self.inner.new_link(name, target)
    }
    fn link_target(&self, name: &OsStr) -> io::Result<Vec<u8>> {
        self.inner.link_target(name)
    }
    fn attributes(&self, name: &OsStr) -> io::Result<Attributes> {
        self.inner.attributes(name)
    }
    fn set_attributes(&self, name: &OsStr, kind: &Kind, attributes: &Attributes) -> io::Result<()> {
        self.inner.set_attributes(name, kind, attributes)
    }
    fn become_like(&self, other: &Node) -> io::Result<()> {
        self.inner.become_like(other)
    }
    fn rename(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        self.inner.rename(from, to)
    }
    fn exchange(&self, one: &OsStr, other: &OsStr) -> io::Result<()> {
        self.inner.exchange(one, other)
    }
    fn remove_file(&self, name: &OsStr) -> io::Result<bool> {
        self.inner.remove_file(name)
    }
    fn remove_directory(&self, name: &OsStr) -> io::Result<bool> {
        self.inner.remove_directory(name)
    }
    fn sync(&self) -> io::Result<()> {
        let is_made = self.is_made.take();
        if is_made && self.wrong == Wrong::NoDirectorySync { Ok(()) } else { self.inner.sync() }
    }
    fn sync_file_system(&self) -> io::Result<()> {
        self.inner.sync_file_system()
    }
    fn free_bytes(&self) -> io::Result<u64> {
        self.inner.free_bytes()
    }
    fn is_linked(&self, name: &OsStr) -> io::Result<bool> {
        self.inner.is_linked(name)
    }
    fn read_ahead(&self, path: &str) -> io::Result<()> {
        if self.wrong == Wrong::NotReadFirst { Ok(()) } else { self.inner.read_ahead(path) }
    }
    fn grows_in_pieces(&self) -> io::Result<bool> {
        self.inner.grows_in_pieces()
    }
    fn lock(&self) -> io::Result<bool> {
        self.inner.lock()
    }
    fn is_mount_point(&self, name: &OsStr) -> io::Result<bool> {
        self.inner.is_mount_point(name)
    }
}
