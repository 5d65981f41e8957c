//! EFI variables of the boot loader interface, read from efivarfs.
//! Side: both. Reads only.

use std::path::Path;

use uuid::Uuid;

use super::read_bounded;

const DIRECTORY: &str = "/sys/firmware/efi/efivars";
/// The vendor GUID of the boot loader interface.
const LOADER: &str = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";
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
    const LOCATION: &str = "HibernateLocation-8cf2644b-4b0b-428f-9387-6d876050dc67";
    Path::new(DIRECTORY).join(LOCATION).exists()
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
