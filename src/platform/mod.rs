//! THE EDGE: the only place with system calls, C and `unsafe`.
//!
//! Everything that a reset does to a machine goes through the traits here, so that tests can record
//! each durable effect, make it fail, or cut the power before it.

// The one folder where `unsafe` may stand, each time with its reason.
#![allow(unsafe_code)]

mod attributes;
pub mod boot;
pub mod boot_entry;
pub mod child;
pub mod confined;
pub mod console;
pub mod directory;
pub mod disk;
pub mod efivar;
pub mod esp;
pub mod host;
pub mod locate;
mod locks;
pub mod named_disk;
pub mod new_file;
pub mod secrecy;
pub mod state_fs;
pub mod tpm;
pub mod volume;

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// A whole disk, or an image of one.
///
/// Writes are volatile until [`Disk::flush`] returns.
pub trait Disk {
    /// What people call it: its path.
    fn name(&self) -> &str;
    /// Size in bytes.
    fn size_bytes(&self) -> u64;
    /// Logical sector size in bytes.
    fn sector_bytes(&self) -> u64;
    /// From here on it may be written, under its exclusive BSD lock, so that udev does not probe it
    /// meanwhile. Only for a disk that is about to be changed: closing it makes the kernel read the
    /// table again, and what the boot has begun on a partition by then comes to nothing. Safe to
    /// repeat.
    fn make_writable(&mut self) -> io::Result<()>;
    /// Fills `buffer` from `offset`.
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
    /// Writes all of `bytes` at `offset`. Safe to repeat.
    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Everything written is durable when this returns.
    fn flush(&mut self) -> io::Result<()>;
    /// The next read comes from the medium, not from a cache in memory.
    fn forget_cache(&mut self) -> io::Result<()>;
    /// Tells the device that nobody needs these bytes; false when it cannot. Best effort: what is
    /// read there afterwards is not defined.
    fn discard(&mut self, offset: u64, bytes: u64) -> io::Result<bool>;
    /// Whether somebody has this partition open for himself: a mount, device mapper, swap.
    fn partition_in_use(&self, number: u32) -> io::Result<bool>;
    /// The kernel forgets this partition (until it reads the table again). Safe to repeat.
    fn drop_partition(&mut self, number: u32) -> io::Result<()>;
}

/// A directory of restage's own, where names are 8.3: on the ESP, or on the state file system.
///
/// FAT replaces nothing atomically, and what a power cut leaves of a new file may be empty, damaged or
/// unreadable: so there are only new names and removals here, what is in a file carries its own
/// checksum, and progress is made of empty files.
pub trait Store {
    /// The names in it; empty when the directory is not there.
    fn names(&self) -> io::Result<Vec<String>>;
    /// The content of one of them; none when it is not there, an error when it is longer than
    /// `max_bytes`.
    fn read(&self, name: &str, max_bytes: usize) -> io::Result<Option<Vec<u8>>>;
    /// Of these files, those that were cut off while they were made or removed, where it can be
    /// known (FAT): their clusters are free. Before anything is made they have to go: it may be given the
    /// clusters that they name, and lose them when they are removed.
    fn unlinked(&self, among: Vec<String>) -> Vec<String>;
    /// Makes room for the names of the operation with this stem, durable when this returns, so that the
    /// directory does not grow while a power cut must leave it readable. Safe to repeat.
    fn make_room(&mut self, stem: &str) -> io::Result<()>;
    /// Makes a file that is not there yet: durable and whole when this returns; after a power cut
    /// whole, damaged or absent. An existing `name` is an error.
    fn create(&mut self, name: &str, bytes: &[u8]) -> io::Result<()>;
    /// Opens one of them for reading; none when it is not there.
    fn open(&self, name: &str) -> io::Result<Option<Box<dyn Read>>>;
    /// [`Store::create`] from a stream. Returns how many bytes it was.
    fn create_from(&mut self, name: &str, content: &mut dyn Read) -> io::Result<u64>;
    /// Makes an empty file, durable when this returns. Safe to repeat.
    fn mark(&mut self, name: &str) -> io::Result<()>;
    /// Removes a file, durable when this returns. Safe to repeat.
    fn remove(&mut self, name: &str) -> io::Result<()>;
    /// Overwrites a file in place, syncs, and then removes it, durable when this returns. Safe to
    /// repeat.
    fn shred(&mut self, name: &str) -> io::Result<()>;
    /// Makes durable what can be seen: a run that was killed, or a machine that was reset while its power
    /// stayed, leaves behind what only a cache has. Where it can be had, of the whole file system.
    fn settle(&mut self) -> io::Result<()>;
}

/// The ESP: restage's directory on it, and the paths of the profile.
pub trait Esp: Store {
    /// The existing paths, relative to the ESP, that a pattern of the profile means, sorted.
    fn matching(&self, pattern: &str) -> io::Result<Vec<String>>;
    /// Removes a path outside restage's directory, with all that is in it, durable when this
    /// returns. Safe to repeat.
    fn remove_path(&mut self, path: &str) -> io::Result<()>;
}

/// The way to the TPM, which may not be there.
pub enum TpmDoor {
    /// The machine has none, or the caller said so.
    None,
    /// There is one, and it could not be opened.
    Broken(String),
    /// Here it is.
    Open(Box<dyn tpm::Tpm>),
}

/// All that a reset works on.
pub struct Machine {
    /// The disk that the ESP is on.
    pub disk: Box<dyn Disk>,
    /// The ESP.
    pub esp: Box<dyn Esp>,
    /// The TPM.
    pub tpm: TpmDoor,
    /// The firmware's physical-presence interface; none offline.
    pub ppi: Option<tpm::Ppi>,
    /// The machine and its OS.
    pub host: crate::plan::facts::HostFacts,
    /// Other LUKS2 volumes with key slots sealed to a TPM, by what people call them.
    pub other_tpm_volumes: Vec<String>,
    /// Names of the credentials that systemd had loaded in this boot.
    pub loaded_credentials: Vec<String>,
}

/// Reads a file of at most `max_bytes`; a longer one is an error, not a cut-off text.
pub fn read_bounded(path: &Path, max_bytes: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(max_bytes.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max_bytes {
        return Err(io::Error::other(format!("more than {max_bytes} bytes long")));
    }
    Ok(bytes)
}
