//! Directories whose sync does nothing: what a forgotten one would do.

use std::ffi::{OsStr, OsString};
use std::io;

use restage::format::archive::{Attributes, Kind};
use restage::platform::directory::{Dir, Directory, Node, OpenFile};

/// Everything is passed on but the sync of directories.
pub struct Unsynced(pub Dir);

fn unsynced(directory: Dir) -> Dir {
    Box::new(Unsynced(directory))
}

impl Directory for Unsynced {
    fn again(&self) -> io::Result<Dir> {
        self.0.again().map(unsynced)
    }
    fn node(&self) -> io::Result<Node> {
        self.0.node()
    }
    fn names(&self) -> io::Result<Vec<OsString>> {
        self.0.names()
    }
    fn look(&self, name: &OsStr) -> io::Result<Option<Node>> {
        self.0.look(name)
    }
    fn directory(&self, name: &OsStr) -> io::Result<Option<Dir>> {
        Ok(self.0.directory(name)?.map(unsynced))
    }
    fn file(&self, name: &OsStr) -> io::Result<Option<Box<dyn OpenFile>>> {
        self.0.file(name)
    }
    fn file_to_overwrite(&self, name: &OsStr) -> io::Result<Option<Box<dyn OpenFile>>> {
        self.0.file_to_overwrite(name)
    }
    fn new_file(&self, name: &OsStr) -> io::Result<Box<dyn OpenFile>> {
        self.0.new_file(name)
    }
    fn any_file(&self, name: &OsStr) -> io::Result<Box<dyn OpenFile>> {
        self.0.any_file(name)
    }
    fn new_directory(&self, name: &OsStr) -> io::Result<()> {
        self.0.new_directory(name)
    }
    fn new_link(&self, name: &OsStr, target: &str) -> io::Result<()> {
        self.0.new_link(name, target)
    }
    fn link_target(&self, name: &OsStr) -> io::Result<Vec<u8>> {
        self.0.link_target(name)
    }
    fn attributes(&self, name: &OsStr) -> io::Result<Attributes> {
        self.0.attributes(name)
    }
    fn set_attributes(&self, name: &OsStr, kind: &Kind, attributes: &Attributes) -> io::Result<()> {
        self.0.set_attributes(name, kind, attributes)
    }
    fn become_like(&self, other: &Node) -> io::Result<()> {
        self.0.become_like(other)
    }
    fn rename(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        self.0.rename(from, to)
    }
    fn exchange(&self, one: &OsStr, other: &OsStr) -> io::Result<()> {
        self.0.exchange(one, other)
    }
    fn remove_file(&self, name: &OsStr) -> io::Result<bool> {
        self.0.remove_file(name)
    }
    fn remove_directory(&self, name: &OsStr) -> io::Result<bool> {
        self.0.remove_directory(name)
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
    fn sync_file_system(&self) -> io::Result<()> {
        self.0.sync_file_system()
    }
    fn free_bytes(&self) -> io::Result<u64> {
        self.0.free_bytes()
    }
    fn is_linked(&self, name: &OsStr) -> io::Result<bool> {
        self.0.is_linked(name)
    }
    fn read_ahead(&self, path: &str) -> io::Result<()> {
        self.0.read_ahead(path)
    }
    fn grows_in_pieces(&self) -> io::Result<bool> {
        self.0.grows_in_pieces()
    }
    fn lock(&self) -> io::Result<bool> {
        self.0.lock()
    }
    fn is_mount_point(&self, name: &OsStr) -> io::Result<bool> {
        self.0.is_mount_point(name)
    }
}
