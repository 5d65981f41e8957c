//! Open directories and files of the model, as restage works with them.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use restage::format::archive::{Attributes, Kind};
use restage::platform::directory::{Dir, Directory, Named, Node, NodeKind, OpenFile};

use super::{CLUSTER_BYTES, Change, Files, Flavor, GARBAGE, Item, Part, ROOT, Slot, apply, names};
use crate::model::call::{Object, Op};
use crate::model::{Call, Device, Shared, World};

/// A directory of a run.
pub struct ModelDirectory {
    world: Shared,
    device: Device,
    number: u64,
}

/// The root of one of the file systems, with names for its errors as the real ones have them.
pub fn root(world: &Shared, device: Device) -> Dir {
    let root = ModelDirectory { world: world.clone(), device, number: ROOT };
    Named::wrap(Box::new(root), Path::new(root_path(device)))
}

/// Where it is mounted.
pub fn root_path(device: Device) -> &'static str {
    match device {
        Device::Esp => "/esp",
        _ => "/state",
    }
}

fn files(world: &mut World, device: Device) -> &mut Files {
    match device {
        Device::Esp => &mut world.esp,
        _ => &mut world.state,
    }
}

impl ModelDirectory {
    /// A call for the directory itself, or for a name in it.
    fn call<T>(
        &self,
        call: Call,
        verb: &'static str,
        name: Option<&OsStr>,
        effect: impl FnOnce(&mut Files) -> io::Result<T>,
    ) -> io::Result<T> {
        let object = match name {
            Some(name) => Object::Name(self.number, name),
            None => Object::Directory(self.number),
        };
        let op = Op { device: self.device, call, verb, object };
        self.world.borrow_mut().call(op, |world, _| {
            let files = files(world, self.device);
            if matches!(call, Call::Change | Call::Write) && files.is_read_only {
                return Err(io::Error::from_raw_os_error(30)); // EROFS
            }
            if !files.seen.contains_key(&self.number) {
                return Err(io::ErrorKind::NotFound.into());
            }
            effect(files)
        })
    }

    /// What has this name. If it is a directory, Linux looks at that one too.
    fn slot(&self, files: &mut Files, name: &OsStr) -> Option<Slot> {
        files.look_at(self.number);
        let slot = names(&files.seen, self.number).get(name).copied()?;
        if matches!(files.seen[&slot.number], Item::Directory(_)) {
            files.look_at(slot.number);
        }
        Some(slot)
    }

    fn file_if_there(
        &self,
        name: &OsStr,
        verb: &'static str,
    ) -> io::Result<Option<Box<dyn OpenFile>>> {
        let slot =
            self.call(Call::Read, verb, Some(name), |files| match self.slot(files, name) {
                Some(slot) if matches!(files.seen[&slot.number], Item::Directory(_)) => {
                    Err(io::Error::other("not a regular file"))
                }
                slot => Ok(slot),
            })?;
        Ok(slot.map(|slot| self.open(name, slot.number)))
    }

    fn open(&self, name: &OsStr, number: u64) -> Box<dyn OpenFile> {
        Box::new(ModelFile {
            world: self.world.clone(),
            device: self.device,
            directory: self.number,
            name: name.to_owned(),
            number,
            position: 0,
        })
    }

    fn new_item(&self, name: &OsStr, verb: &'static str, is_directory: bool) -> io::Result<u64> {
        self.call(Call::Write, verb, Some(name), |files| {
            if self.slot(files, name).is_some() {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            // Another name may need another cluster of its directory.
            if files.free_clusters() == 0 {
                return Err(io::Error::from_raw_os_error(28)); // ENOSPC
            }
            let number = files.next;
            files.next += 1;
            let (directory, name) = (self.number, name.to_owned());
            let number_ = Some(number);
            files.change(vec![Change::Name { directory, name, number: number_, is_directory }]);
            files.read.extend(is_directory.then_some(number));
            Ok(number)
        })
    }

    fn node_of(files: &Files, number: u64, bytes: usize) -> Node {
        let (kind, bytes) = match &files.seen[&number] {
            Item::Directory(_) => (NodeKind::Directory, files.bytes_of_directory(number)),
            Item::File(file) if files.flavor == Flavor::Ext4 => {
                (NodeKind::File, file.content.bytes.len() as u64)
            }
            Item::File(_) => (NodeKind::File, bytes as u64),
        };
        let mode = if kind == NodeKind::Directory { 0o700 } else { 0o600 };
        Node { kind, bytes, number, device: 7, links: 1, mode, owner: 0, group: 0, modified: 1000 }
    }

    fn remove(&self, name: &OsStr, is_directory: bool) -> io::Result<bool> {
        let verb = if is_directory { "remove the directory" } else { "remove" };
        self.call(Call::Change, verb, Some(name), |files| {
            let Some(slot) = self.slot(files, name) else { return Ok(false) };
            match (&files.seen[&slot.number], is_directory) {
                (Item::Directory(inner), true) if inner.is_empty() => {}
                (Item::File(_), false) => {}
                _ => return Err(io::Error::other("not empty, or of another kind")),
            }
            let was_broken = files.is_broken(slot);
            files.free(name, slot);
            let (directory, name) = (self.number, name.to_owned());
            let mut changes =
                vec![Change::Name { directory, name, number: None, is_directory: false }];
            if files.flavor == Flavor::Fat && !is_directory {
                changes.push(Change::Freed { number: slot.number });
            }
            files.change(changes);
            // The kernel meets the broken chain when it frees the clusters.
            files.is_read_only |= was_broken && files.errors_remount_ro;
            Ok(true)
        })
    }
}

impl Directory for ModelDirectory {
    fn again(&self) -> io::Result<Dir> {
        let (world, device, number) = (self.world.clone(), self.device, self.number);
        Ok(Box::new(Self { world, device, number }))
    }
    fn node(&self) -> io::Result<Node> {
        self.call(Call::Read, "look at", None, |files| Ok(Self::node_of(files, self.number, 0)))
    }
    fn names(&self) -> io::Result<Vec<OsString>> {
        self.call(Call::Read, "list", None, |files| {
            files.look_at(self.number);
            Ok(names(&files.seen, self.number).keys().cloned().collect())
        })
    }
    fn look(&self, name: &OsStr) -> io::Result<Option<Node>> {
        self.call(Call::Read, "look at", Some(name), |files| {
            let slot = self.slot(files, name);
            Ok(slot.map(|slot| Self::node_of(files, slot.number, slot.bytes)))
        })
    }
    fn directory(&self, name: &OsStr) -> io::Result<Option<Dir>> {
        let (world, device) = (self.world.clone(), self.device);
        self.call(Call::Read, "open", Some(name), |files| match self.slot(files, name) {
            None => Ok(None),
            Some(Slot { number, .. }) => match files.seen[&number] {
                Item::Directory(_) => {
                    Ok(Some(Box::new(Self { world, device, number }) as Box<dyn Directory>))
                }
                Item::File(_) => Err(io::Error::from_raw_os_error(20)), // ENOTDIR
            },
        })
    }
    fn file(&self, name: &OsStr) -> io::Result<Option<Box<dyn OpenFile>>> {
        self.file_if_there(name, "open")
    }
    fn file_to_overwrite(&self, name: &OsStr) -> io::Result<Option<Box<dyn OpenFile>>> {
        self.file_if_there(name, "open for overwriting")
    }
    fn new_file(&self, name: &OsStr) -> io::Result<Box<dyn OpenFile>> {
        let number = self.new_item(name, "make", false)?;
        Ok(self.open(name, number))
    }
    fn any_file(&self, name: &OsStr) -> io::Result<Box<dyn OpenFile>> {
        match self.file_if_there(name, "open or make")? {
            Some(file) => Ok(file),
            None => Ok(self.open(name, self.new_item(name, "open or make", false)?)),
        }
    }
    fn new_directory(&self, name: &OsStr) -> io::Result<()> {
        self.new_item(name, "make the directory", true).map(drop)
    }
    fn new_link(&self, _name: &OsStr, _target: &str) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn link_target(&self, _name: &OsStr) -> io::Result<Vec<u8>> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn attributes(&self, _name: &OsStr) -> io::Result<Attributes> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn set_attributes(&self, _: &OsStr, _: &Kind, _: &Attributes) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn become_like(&self, _other: &Node) -> io::Result<()> {
        self.call(Call::Change, "set the owner and mode of", None, |_| Ok(()))
    }
    fn rename(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        self.call(Call::Change, "rename", Some(from), |files| {
            let Some(slot) = self.slot(files, from) else {
                return Err(io::ErrorKind::NotFound.into());
            };
            if self.slot(files, to).is_some() {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            let is_directory = matches!(files.seen[&slot.number], Item::Directory(_));
            let directory = self.number;
            let name = |name: &OsStr, number| Change::Name {
                directory,
                name: name.to_owned(),
                number,
                is_directory,
            };
            let mut changes = vec![name(to, Some(slot.number))];
            if files.flavor == Flavor::Fat && !is_directory {
                let (name, number) = (to.to_owned(), slot.number);
                changes.push(Change::Length { directory, name, number });
            }
            changes.push(name(from, None));
            files.change(changes);
            Ok(())
        })
    }
    fn exchange(&self, one: &OsStr, other: &OsStr) -> io::Result<()> {
        self.call(Call::Change, "exchange", Some(one), |files| {
            let (Some(first), Some(second)) = (self.slot(files, one), self.slot(files, other))
            else {
                return Err(io::ErrorKind::NotFound.into());
            };
            let directory = self.number;
            let name = |name: &OsStr, number| Change::Name {
                directory,
                name: name.to_owned(),
                number: Some(number),
                is_directory: true,
            };
            files.change(vec![name(one, second.number), name(other, first.number)]);
            Ok(())
        })
    }
    fn remove_file(&self, name: &OsStr) -> io::Result<bool> {
        self.remove(name, false)
    }
    fn remove_directory(&self, name: &OsStr) -> io::Result<bool> {
        self.remove(name, true)
    }
    fn sync(&self) -> io::Result<()> {
        self.call(Call::Sync, "sync the directory", None, |files| {
            files.sync_directory(self.number);
            Ok(())
        })
    }
    fn sync_file_system(&self) -> io::Result<()> {
        self.call(Call::Sync, "sync the file system of", None, |files| {
            // On vfat it sends no flush.
            if files.flavor == Flavor::Ext4 {
                files.settle(|_| true);
            }
            Ok(())
        })
    }
    fn free_bytes(&self) -> io::Result<u64> {
        self.call(Call::Read, "tell the free space of", None, |files| {
            Ok((files.free_clusters() as u64).saturating_mul(CLUSTER_BYTES as u64).min(1 << 30))
        })
    }
    fn is_linked(&self, name: &OsStr) -> io::Result<bool> {
        self.call(Call::Read, "tell the clusters of", Some(name), |files| {
            Ok(self.slot(files, name).is_none_or(|slot| !files.is_broken(slot)))
        })
    }
    fn read_ahead(&self, path: &str) -> io::Result<()> {
        self.call(Call::Read, "read the directories of", Some(path.as_ref()), |files| {
            files.read_ahead(path);
            Ok(())
        })
    }
    fn grows_in_pieces(&self) -> io::Result<bool> {
        self.call(Call::Read, "tell the file system of", None, |files| {
            Ok(files.flavor == Flavor::Fat)
        })
    }
    fn lock(&self) -> io::Result<bool> {
        Ok(true)
    }
    fn is_mount_point(&self, name: &OsStr) -> io::Result<bool> {
        self.call(Call::Read, "tell the mount points at", Some(name), |_| Ok(false))
    }
}

/// An open file of a run.
struct ModelFile {
    world: Shared,
    device: Device,
    directory: u64,
    name: OsString,
    number: u64,
    position: usize,
}

impl ModelFile {
    fn op(&self, call: Call, verb: &'static str) -> Op<'_> {
        Op { device: self.device, call, verb, object: Object::Name(self.directory, &self.name) }
    }

    fn slot(&self, files: &Files) -> Slot {
        let none = Slot { number: self.number, bytes: 0 };
        let Some(Item::Directory(names)) = files.seen.get(&self.directory) else { return none };
        // A name may have changed since; the length is that of the file.
        let by_name = names.get(&self.name).filter(|slot| slot.number == self.number);
        let slot = by_name.or_else(|| names.values().find(|slot| slot.number == self.number));
        slot.copied().unwrap_or(none)
    }
}

impl Read for ModelFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (device, position) = (self.device, self.position);
        let world = self.world.clone();
        let read = world.borrow_mut().call(self.op(Call::Read, "read"), |world, _| {
            let files = files(world, device);
            let Some(Item::File(file)) = files.seen.get(&self.number) else {
                return Err(io::ErrorKind::NotFound.into());
            };
            let slot = self.slot(files);
            if files.flavor == Flavor::Fat && slot.bytes > 0 && !file.is_chained {
                files.is_read_only |= files.errors_remount_ro;
                return Err(io::Error::from_raw_os_error(5));
            }
            let length = match files.flavor {
                Flavor::Fat => slot.bytes,
                Flavor::Ext4 => file.content.bytes.len(),
            };
            let count = length.saturating_sub(position).min(buffer.len());
            for (at, byte) in buffer[..count].iter_mut().enumerate() {
                *byte = file.content.bytes.get(position + at).copied().unwrap_or(GARBAGE);
            }
            Ok(count)
        })?;
        self.position += read;
        Ok(read)
    }
}

impl Write for ModelFile {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let (device, position, number) = (self.device, self.position, self.number);
        let world = self.world.clone();
        let mut world = world.borrow_mut();
        let slot = self.slot(files(&mut world, device));
        let length = match &files(&mut world, device).seen.get(&number) {
            Some(Item::File(file)) => file.content.bytes.len(),
            _ => 0,
        };
        let call = if position + buffer.len() > length { Call::Write } else { Call::Change };
        if call == Call::Write && position > 0 {
            world.more_of_the_same();
        }
        let written = world.call(self.op(call, "write"), |world, is_short| {
            let files = files(world, device);
            if files.is_read_only {
                return Err(io::Error::from_raw_os_error(30));
            }
            if files.flavor == Flavor::Fat && files.is_broken(slot) {
                files.is_read_only |= files.errors_remount_ro;
                return Err(io::Error::from_raw_os_error(5));
            }
            let count = if is_short { buffer.len().div_ceil(2) } else { buffer.len() };
            let room = length.next_multiple_of(CLUSTER_BYTES).saturating_sub(position);
            let free = files.free_clusters().saturating_mul(CLUSTER_BYTES);
            let count = count.min(room.saturating_add(free));
            if count == 0 && !buffer.is_empty() {
                return Err(io::Error::from_raw_os_error(28)); // ENOSPC
            }
            let Some(Item::File(file)) = Arc::make_mut(&mut files.seen).get_mut(&number) else {
                return Err(io::ErrorKind::NotFound.into());
            };
            let content = Arc::make_mut(&mut file.content);
            content.digest = OnceLock::new();
            if content.bytes.len() < position + count {
                content.bytes.resize(position + count, 0);
            }
            content.bytes[position..position + count].copy_from_slice(&buffer[..count]);
            let mut changes = vec![Change::Content { number }];
            if files.flavor == Flavor::Fat {
                let is_new = position == 0 && call == Call::Write;
                if is_new {
                    let (directory, name) = (self.directory, self.name.clone());
                    changes.push(Change::Length { directory, name, number });
                    changes.push(Change::Chained { number });
                }
                files.change(changes);
                // Programs see the length at once.
                let change =
                    Change::Length { directory: self.directory, name: self.name.clone(), number };
                apply(Arc::make_mut(&mut files.seen), None, Flavor::Fat, &change, Part::Whole);
            } else {
                files.change(changes);
            }
            Ok(count)
        })?;
        self.position += written;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl OpenFile for ModelFile {
    fn length(&self) -> io::Result<u64> {
        let device = self.device;
        let op = self.op(Call::Read, "tell the length of");
        self.world.borrow_mut().call(op, |world, _| {
            let files = files(world, device);
            let Some(Item::File(file)) = files.seen.get(&self.number) else {
                return Err(io::ErrorKind::NotFound.into());
            };
            Ok(match files.flavor {
                Flavor::Fat => self.slot(files).bytes as u64,
                Flavor::Ext4 => file.content.bytes.len() as u64,
            })
        })
    }
    fn sync(&self) -> io::Result<()> {
        let device = self.device;
        self.world.borrow_mut().call(self.op(Call::Sync, "sync"), |world, _| {
            files(world, device).sync_file(self.number);
            Ok(())
        })
    }
}
