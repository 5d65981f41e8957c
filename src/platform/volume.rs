//! A LUKS2 volume whose passphrases change: read here, changed by systemd-cryptenroll.
//! Side: both. Touches the volume's header, through that program only.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use zeroize::Zeroizing;

use super::disk::OpenDisk;
use super::named_disk::NamedDisk;
use super::{Disk, child, host};
use crate::error::Calling;
use crate::format::luks::{Fault, Header, Slot};

/// A key derivation takes seconds, and under emulation some more.
const CRYPTENROLL_LIMIT: Duration = Duration::from_secs(300);

/// What is left to others while a key slot is tried.
const MEMORY_LEFT_KIB: u64 = 32 * 1024;

/// A volume of the profile.
pub trait Volume {
    /// What the profile calls it.
    fn name(&self) -> &str;
    /// Its header, as it is now on the medium; else why there is none.
    fn header(&self) -> io::Result<Result<Header, Fault>>;
    /// The key material of a slot.
    fn material(&self, slot: &Slot) -> io::Result<Zeroizing<Vec<u8>>>;
    /// Adds a passphrase, unlocked with the key in a file. A power cut leaves one slot more, or not.
    fn enroll(&mut self, key_file: &Path, passphrase: &str) -> io::Result<()>;
    /// Removes a slot. Never the last one.
    fn remove_slot(&mut self, index: u32) -> io::Result<()>;
}

/// A block device, or a plain file that holds a volume.
pub struct LuksVolume {
    name: String,
    path: PathBuf,
}

impl LuksVolume {
    /// The volume at `path`; nothing is opened yet.
    #[must_use]
    pub fn new(name: &str, path: &Path) -> Self {
        Self { name: name.to_owned(), path: path.to_owned() }
    }

    fn open(&self) -> io::Result<NamedDisk<OpenDisk>> {
        let opened = OpenDisk::open(&self.path);
        opened.calling(|| format!("cannot open {}", self.path.display())).map(NamedDisk::new)
    }

    fn cryptenroll(&self, arguments: &[&str], passphrase: Option<&str>) -> io::Result<()> {
        let mut command = Command::new("systemd-cryptenroll");
        command.args(arguments).arg(&self.path);
        // The program takes it from there and erases it; arguments would be seen by all.
        command.envs(passphrase.map(|passphrase| ("NEWPASSWORD", passphrase)));
        child::run(&mut command, CRYPTENROLL_LIMIT)
    }
}

impl Volume for LuksVolume {
    fn name(&self) -> &str {
        &self.name
    }

    fn header(&self) -> io::Result<Result<Header, Fault>> {
        let mut device = self.open()?;
        device.forget_cache()?;
        crate::apply::probe::luks_on_device(&device).map_err(io::Error::other)
    }

    fn material(&self, slot: &Slot) -> io::Result<Zeroizing<Vec<u8>>> {
        let (offset, size) = slot.area().map_err(io::Error::other)?;
        let mut bytes = Zeroizing::new(vec![0; usize::try_from(size).map_err(io::Error::other)?]);
        let mut device = self.open()?;
        device.forget_cache()?;
        device.read(offset, &mut bytes)?;
        Ok(bytes)
    }

    fn enroll(&mut self, key_file: &Path, passphrase: &str) -> io::Result<()> {
        let key_file = key_file.to_str().ok_or_else(|| io::Error::other("a strange path"))?;
        let unlock = format!("--unlock-key-file={key_file}");
        self.cryptenroll(&[&unlock, "--password"], Some(passphrase))
    }

    fn remove_slot(&mut self, index: u32) -> io::Result<()> {
        self.cryptenroll(&[&format!("--wipe-slot={index}")], None)
    }
}

/// Whether one of these slots opens with the passphrase. A slot that cannot be tried counts as one
/// that does not.
pub fn opening_slot<'a>(
    volume: &dyn Volume,
    slots: impl IntoIterator<Item = &'a Slot>,
    passphrase: &[u8],
) -> io::Result<Option<&'a Slot>> {
    for slot in slots {
        // An allocation that fails ends the process.
        let (wanted, there) = (u64::from(slot.memory_kib()), host::available_memory_kib());
        if there.is_some_and(|there| wanted.saturating_add(MEMORY_LEFT_KIB) > there) {
            let (name, index) = (volume.name(), slot.index);
            log::warn!("volume {name}, key slot {index}: it takes {wanted} KiB of memory to try");
            continue;
        }
        let material = volume.material(slot)?;
        match slot.opens(passphrase, &material) {
            Ok(true) => return Ok(Some(slot)),
            Ok(false) => {}
            Err(why) => log::warn!("volume {}, key slot {}: {why}", volume.name(), slot.index),
        }
    }
    Ok(None)
}
