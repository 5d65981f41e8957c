//! The operations, and what has to be so.

pub mod control;
pub mod reset;
pub mod restore;
mod shape;

use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::path::Path;

use crate::image::Image;
use crate::medium::Beside;
use crate::rig::Rig;

/// Makes some of the cases, and the machines that they begin with.
pub type Make = fn(&mut Rig) -> Result<Vec<Box<dyn Case>>, String>;

/// In this order: the last one keeps a partition in use.
pub const OPERATIONS: &[Make] = &[reset::all, restore::all];
/// What has to be seen to fail.
pub const CONTROLS: &[Make] = &[control::all];

/// What a boot has come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Booted {
    /// Something was done; another boot may find more.
    Again,
    /// There was nothing to do, and so many writes all the same.
    Nothing {
        /// How many.
        writes: u64,
    },
    /// It could not be looked whether there is something to do, so that the boot goes on; a check of
    /// the file systems has to make it good.
    Unreadable(String),
}

/// What has ended the operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// It had returned, and what it has promised must be so.
    pub has_returned: bool,
    /// The disk had failed once.
    pub has_failed: bool,
}

/// An operation on a machine, and what has to be so whenever it is interrupted.
pub trait Case {
    /// Its name.
    fn name(&self) -> &'static str;
    /// The machine before it.
    fn start(&self) -> (&Image, Beside);
    /// The operation, once.
    fn run(&self, rig: &mut Rig) -> Result<(), String>;
    /// What an image runs before us.
    fn check_file_systems(&self, rig: &mut Rig) -> Result<(), String>;
    /// One boot, from the initrd to what the OS does of it; whatever must be so at any instant is.
    fn boot(&self, rig: &mut Rig) -> Result<Booted, String>;
    /// Whether it is right that nothing is done before the file systems have been checked.
    fn may_wait_for_check(&self, rig: &Rig, ended: Ended) -> bool;
    /// The OS asks for it once more, where restage's directory on the ESP cannot be read.
    fn stage_anew(&self, rig: &mut Rig) -> Result<(), String>;
    /// Where a block of 4096 bytes is written as a whole or not at all: ext4 cannot be mounted with half
    /// a superblock or half a commit block. Elsewhere writes are torn at 512 bytes.
    fn written_whole(&self) -> Range<usize> {
        0..0
    }
    /// What must be so in the end.
    fn check_end(&self, rig: &mut Rig, ended: Ended) -> Result<(), String>;
}

/// Makes a file with what lies above it.
fn write(path: &Path, bytes: &[u8]) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    File::create(path).unwrap().write_all(bytes).unwrap();
}
