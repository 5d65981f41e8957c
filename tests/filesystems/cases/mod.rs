//! The operations, and what has to be so.

pub mod reset;

use crate::image::Image;
use crate::medium::Beside;
use crate::rig::Rig;

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
    /// Whether everything is as if the operation had never begun.
    fn is_untouched(&self, rig: &Rig) -> bool;
    /// What must be so in the end; when the operation had returned, what it has promised.
    fn check_end(&self, rig: &mut Rig, has_returned: bool) -> Result<(), String>;
}
