//! What a call does to what, so that what is said of it can be compared; and what fails at every call.

use std::ffi::OsStr;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use super::files::is_filler;
use super::{Call, Device, World};

/// What a call is about.
#[derive(Clone, Copy, Debug)]
pub enum Object<'a> {
    /// The device.
    Whole,
    /// A part of the disk: offset and length in bytes.
    Sectors(u64, u64),
    /// A partition.
    Partition(u32),
    /// A name in a directory, by the directory's number.
    Name(u64, &'a OsStr),
    /// A directory itself.
    Directory(u64),
    /// A LUKS2 volume.
    Volume(usize),
}

/// One call.
#[derive(Clone, Copy, Debug)]
pub struct Op<'a> {
    /// Of which device.
    pub device: Device,
    /// Of which kind.
    pub call: Call,
    /// What it does, in the words of an error.
    pub verb: &'static str,
    /// To what.
    pub object: Object<'a>,
}

impl Op<'_> {
    /// What it does to a name that only takes room for others.
    pub(super) fn of_filler(&self) -> Option<&'static str> {
        match self.object {
            Object::Name(_, name) if is_filler(name) => Some(self.verb),
            _ => None,
        }
    }
}

/// A call, told.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Met {
    /// Of which device.
    pub device: Device,
    /// Of which kind.
    pub call: Call,
    /// What it does.
    pub verb: &'static str,
    /// To what: a path, `sectors 1 to 2 of the disk`, the device.
    pub object: String,
}

impl fmt::Display for Met {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.verb, self.object)
    }
}

/// All calls of a run.
pub type Listing = Arc<Mutex<Vec<Met>>>;

/// Where something is broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Everywhere on the device.
    Everywhere,
    /// These bytes of the disk.
    Bytes(Range<u64>),
    /// This object, as an error calls it.
    Object(String),
}

/// What fails at every call, as long as it is broken.
#[derive(Clone, Debug)]
pub struct Broken {
    /// On which device.
    pub device: Device,
    /// Calls of these kinds.
    pub calls: &'static [Call],
    /// Where on it.
    pub place: Place,
    /// With this number of the system.
    pub error: i32,
    /// It breaks before this call of the run.
    pub from: usize,
}

impl Broken {
    /// Whether it is in the way of this call.
    pub fn meets(&self, world: &World, number: usize, op: Op<'_>) -> bool {
        number >= self.from
            && self.device == op.device
            && self.calls.contains(&op.call)
            && match &self.place {
                Place::Everywhere => true,
                Place::Bytes(bytes) => matches!(op.object, Object::Sectors(offset, length)
                    if offset < bytes.end && offset + length > bytes.start),
                Place::Object(object) => world.describe(op).object == *object,
            }
    }
}

impl World {
    /// Tells a call.
    pub fn describe(&self, op: Op<'_>) -> Met {
        let files = if op.device == Device::Esp { &self.esp } else { &self.state };
        let root = super::files::root_path(op.device);
        let object = match op.object {
            Object::Whole => match op.device {
                Device::Disk => "the disk".to_owned(),
                Device::Tpm => "TPM2_".to_owned(),
                Device::Firmware => "the EFI variable".to_owned(),
                device => panic!("{device:?} is never meant as a whole"),
            },
            Object::Sectors(offset, length) => {
                let sector = self.disk.sector_bytes();
                let last = (offset + length).saturating_sub(1) / sector;
                format!("sectors {} to {last} of the disk", offset / sector)
            }
            Object::Partition(number) => format!("partition {number} of the disk"),
            Object::Name(directory, name) => {
                let directory = files.path_of(directory).unwrap_or_default();
                format!("{root}{directory}/{}", name.to_string_lossy())
            }
            Object::Directory(number) => {
                format!("{root}{}", files.path_of(number).unwrap_or_default())
            }
            Object::Volume(index) => format!("`{}`", super::slots::NAMES[index]),
        };
        Met { device: op.device, call: op.call, verb: op.verb, object }
    }
}
