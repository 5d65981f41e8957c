//! EFI variables of the boot loader interface and of systemd, in efivarfs.
//! Side: both. Removes one of systemd's.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::IFlags;
use uuid::Uuid;

use super::read_bounded;
use crate::error::Calling;

const DIRECTORY: &str = "/sys/firmware/efi/efivars";
/// The vendor GUID of the boot loader interface.
const LOADER: &str = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";
/// The vendor GUID of systemd.
const SYSTEMD: &str = "8cf2644b-4b0b-428f-9387-6d876050dc67";
const MAX_BYTES: u64 = 64 * 1024;

/// A text variable of the boot loader interface; none when it is not set.
#[must_use]
pub fn loader_text(name: &str) -> Option<String> {
    // efivarfs wants to be read whole, without seeking.
    let bytes =
        read_bounded(&Path::new(DIRECTORY).join(format!("{name}-{LOADER}")), MAX_BYTES).ok()?;
    decode(&bytes)
}

/// Four bytes of attributes, then UTF-16LE up to a NUL.
#[must_use]
pub fn decode(bytes: &[u8]) -> Option<String> {
    let units = bytes.get(4..)?.chunks_exact(2).map(|unit| match unit {
        [low, high] => u16::from_le_bytes([*low, *high]),
        _ => 0,
    });
    String::from_utf16(&units.take_while(|unit| *unit != 0).collect::<Vec<_>>()).ok()
}

/// The unique GUID of the partition that the boot loader was started from.
#[must_use]
pub fn loader_device_partition() -> Option<Uuid> {
    loader_text("LoaderDevicePartUUID")?.parse().ok()
}

/// Whether systemd has left a hibernated system to resume.
#[must_use]
pub fn is_hibernated() -> bool {
    systemd_path("HibernateLocation").exists()
}

fn systemd_path(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(format!("{name}-{SYSTEMD}"))
}

/// A text variable of systemd; none when it is not set.
pub fn systemd_text(name: &str) -> io::Result<Option<String>> {
    let path = systemd_path(name);
    let what = || format!("cannot read {}", path.display());
    let bytes = match read_bounded(&path, MAX_BYTES) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).calling(what),
    };
    let text = decode(&bytes).ok_or_else(|| io::Error::other("it is no UTF-16 text"));
    text.map(Some).calling(what)
}

/// Removes a variable of systemd, durable when this returns: the firmware has done it. Safe to repeat.
pub fn remove_systemd(name: &str) -> io::Result<()> {
    let path = systemd_path(name);
    let what = || format!("cannot remove {}", path.display());
    // The kernel marks as immutable whatever it does not know (Documentation/filesystems/efivarfs.rst).
    let opened = File::options().read(true).custom_flags(libc::O_NOFOLLOW).open(&path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).calling(what),
    };
    let flags = rustix::fs::ioctl_getflags(&file).map_err(io::Error::from).calling(what)?;
    if flags.contains(IFlags::IMMUTABLE) {
        let without = flags - IFlags::IMMUTABLE;
        rustix::fs::ioctl_setflags(&file, without).map_err(io::Error::from).calling(what)?;
    }
    std::fs::remove_file(&path).calling(what)
}

#[cfg(test)]
mod tests {
    use super::decode;

    #[test]
    fn text_is_decoded() {
        assert_eq!(decode(b"\x06\0\0\0A\0b\0\0\0x\0").as_deref(), Some("Ab"));
        assert_eq!(decode(b"\x06\0\0\0").as_deref(), Some(""));
        assert_eq!(decode(b"\x06\0"), None);
        assert_eq!(decode(b"\x06\0\0\0\x00\xd8"), None);
    }
}
