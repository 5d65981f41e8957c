//! LUKS2 headers (LUKS2 On-Disk Format Specification 1.1.3): found, checked, identified.
//! Side: both. Pure: the caller reads the bytes.

mod slot;

use serde_json::Value;

use super::sha256_hex;
pub use slot::{MAX_SLOTS, Slot, SlotKind, UnknownSlot};

/// The first 4096 bytes of each header are binary, the rest is its JSON area.
const BINARY_BYTES: usize = 4096;
const MAGIC_PRIMARY: &[u8; 6] = b"LUKS\xba\xbe";
const MAGIC_SECONDARY: &[u8; 6] = b"SKUL\xba\xbe";
/// The header sizes that the specification allows; the second header begins where the first ends.
pub const HEADER_SIZES: [u64; 9] =
    [0x4000, 0x8000, 0x1_0000, 0x2_0000, 0x4_0000, 0x8_0000, 0x10_0000, 0x20_0000, 0x40_0000];
/// Offset and length of the header's own checksum.
const CHECKSUM: std::ops::Range<usize> = 448..512;

/// One valid header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Volume UUID, as text.
    pub uuid: String,
    /// SHA-256 over the UUID and the JSON objects `digests` (but for their lists of key slots) and
    /// `segments`: it names the volume key and where the data lie. Enrolling or removing a key changes the header and not this.
    pub identity: String,
    /// Size of one header, binary and JSON area.
    pub header_bytes: u64,
    /// Where the encrypted data begin; headers and key slots lie before it.
    pub data_offset_bytes: u64,
    /// How many key slots are sealed to a TPM (tokens of type `systemd-tpm2`).
    pub tpm2_tokens: usize,
    /// The key slots, by number.
    pub slots: Vec<Slot>,
}

/// Whether the bytes begin like a header, valid or not: `size` is what its size field says.
#[must_use]
pub fn announced_bytes(start: &[u8]) -> Option<u64> {
    let magic = start.get(..6)?;
    if magic != MAGIC_PRIMARY && magic != MAGIC_SECONDARY {
        return None;
    }
    let version = u16::from_be_bytes(start.get(6..8)?.try_into().ok()?);
    let size = u64::from_be_bytes(start.get(8..16)?.try_into().ok()?);
    (version == 2 && HEADER_SIZES.contains(&size)).then_some(size)
}

/// Whether a LUKS1 header begins here.
#[must_use]
pub fn is_luks1(start: &[u8]) -> bool {
    start.get(..8) == Some(b"LUKS\xba\xbe\x00\x01")
}

/// Checks one whole header, primary or secondary, that lies at `offset` in its partition. None when
/// its size, place, checksum or JSON is wrong.
#[must_use]
pub fn parse(header: &[u8], offset: u64) -> Option<Header> {
    let header_bytes = announced_bytes(header)?;
    if header.len() as u64 != header_bytes {
        return None;
    }
    let said_offset = u64::from_be_bytes(header.get(256..264)?.try_into().ok()?);
    let algorithm = text(header.get(72..104)?)?;
    if said_offset != offset || algorithm != "sha256" {
        return None;
    }
    let mut sealed = header.to_vec();
    let stored = sealed.get(CHECKSUM)?.to_vec();
    sealed.get_mut(CHECKSUM)?.fill(0);
    let digest = <sha2::Sha256 as sha2::Digest>::digest(&sealed);
    if stored.get(..32)? != digest.as_slice() {
        return None;
    }
    let uuid = text(header.get(168..208)?)?.to_owned();
    let mut json: Value = serde_json::from_str(text(header.get(BINARY_BYTES..)?)?).ok()?;
    let slots = slot::slots(&json)?;
    // Each digest lists the key slots that it vouches for: enrolling a key is no new volume.
    for digest in json.get_mut("digests")?.as_object_mut()?.values_mut() {
        digest.as_object_mut()?.remove("keyslots");
    }
    let digests = json.get("digests")?;
    let segments = json.get("segments")?;
    // `Value` keeps its keys sorted, so the text is the same for the same content.
    let identity = sha256_hex(format!("{uuid}\n{digests}\n{segments}").as_bytes());
    let data_offset_bytes = segments
        .as_object()?
        .values()
        .filter_map(|segment| segment.get("offset")?.as_str()?.parse::<u64>().ok())
        .min()?;
    let tpm2_tokens = json.get("tokens").and_then(Value::as_object).map_or(0, |tokens| {
        let sealed = |t: &&Value| t.get("type").and_then(Value::as_str) == Some("systemd-tpm2");
        tokens.values().filter(sealed).count()
    });
    Some(Header { uuid, identity, header_bytes, data_offset_bytes, tpm2_tokens, slots })
}

/// A NUL-terminated field.
fn text(field: &[u8]) -> Option<&str> {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    std::str::from_utf8(field.get(..end)?).ok()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A valid header as cryptsetup lays it out, for tests here and elsewhere.
    pub(crate) fn header(uuid: &str, size: u64, secondary: bool, data_offset: u64) -> Vec<u8> {
        with_slots(uuid, size, secondary, data_offset, r#"["0"]"#)
    }

    fn with_slots(
        uuid: &str,
        size: u64,
        secondary: bool,
        data_offset: u64,
        slots: &str,
    ) -> Vec<u8> {
        let mut bytes = vec![0; size as usize];
        bytes[..6].copy_from_slice(if secondary { MAGIC_SECONDARY } else { MAGIC_PRIMARY });
        bytes[6..8].copy_from_slice(&2u16.to_be_bytes());
        bytes[8..16].copy_from_slice(&size.to_be_bytes());
        bytes[72..78].copy_from_slice(b"sha256");
        bytes[168..168 + uuid.len()].copy_from_slice(uuid.as_bytes());
        let offset = if secondary { size } else { 0 };
        bytes[256..264].copy_from_slice(&offset.to_be_bytes());
        let json = format!(
            r#"{{"keyslots":{{}},"tokens":{{"0":{{"type":"systemd-tpm2","keyslots":["0"]}}}},
            "segments":{{"0":{{"type":"crypt","offset":"{data_offset}","size":"dynamic"}}}},
            "digests":{{"0":{{"type":"pbkdf2","keyslots":{slots},"digest":"{uuid}"}}}},"config":{{}}}}"#
        );
        bytes[BINARY_BYTES..BINARY_BYTES + json.len()].copy_from_slice(json.as_bytes());
        let digest = <sha2::Sha256 as sha2::Digest>::digest(&bytes);
        bytes[448..480].copy_from_slice(&digest);
        bytes
    }

    #[test]
    fn both_headers_of_every_size_name_the_same_volume() {
        for size in HEADER_SIZES {
            let first = parse(&header("u-u", size, false, 16 << 20), 0).unwrap();
            let second = parse(&header("u-u", size, true, 16 << 20), size).unwrap();
            assert_eq!(first, second);
            assert_eq!((first.data_offset_bytes, first.tpm2_tokens), (16 << 20, 1));
            assert_ne!(
                first.identity,
                parse(&header("v-v", size, false, 16 << 20), 0).unwrap().identity
            );
        }
    }

    #[test]
    fn another_key_is_no_other_volume() {
        let identity =
            |slots| parse(&with_slots("u-u", 0x4000, false, 16 << 20, slots), 0).unwrap().identity;
        assert_eq!(identity(r#"["0"]"#), identity(r#"["0","1","2"]"#));
    }

    #[test]
    fn a_flipped_bit_anywhere_is_noticed() {
        let good = header("u-u", 0x4000, false, 16 << 20);
        for bit in (0..good.len() * 8).step_by(7) {
            // The checksum field is 64 bytes long and SHA-256 fills half of it.
            if (480 * 8..512 * 8).contains(&bit) {
                continue;
            }
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(parse(&bad, 0), None, "bit {bit}");
        }
    }

    #[test]
    fn a_header_in_the_wrong_place_or_cut_short_is_none() {
        let good = header("u-u", 0x4000, true, 16 << 20);
        assert_eq!(parse(&good, 0x8000), None);
        assert_eq!(parse(&good[..0x2000], 0x4000), None);
        assert_eq!(parse(&[], 0), None);
    }
}
