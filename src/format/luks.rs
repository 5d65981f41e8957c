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

/// Why bytes are no header that can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// They do not begin like one.
    Absent,
    /// Another version than 2.
    Version(u16),
    /// A size that the specification does not have.
    Size(u64),
    /// Not all of it is there.
    CutShort,
    /// It says that it belongs at this offset.
    Place(u64),
    /// A checksum of another kind.
    Algorithm(String),
    /// The checksum does not match.
    Checksum,
    /// The JSON area is not JSON, for this reason.
    Json(String),
    /// This field of the JSON area is missing or is nothing that it may be.
    Field(&'static str),
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Absent => f.write_str("nothing begins like one"),
            Self::Version(version) => write!(f, "it has version {version}, not 2"),
            Self::Size(bytes) => write!(f, "its size field says {bytes} bytes"),
            Self::CutShort => f.write_str("it is cut short"),
            Self::Place(offset) => write!(f, "it says that it belongs at byte {offset}"),
            Self::Algorithm(name) => write!(f, "its checksum is of the kind `{name}`, not sha256"),
            Self::Checksum => f.write_str("its checksum does not match: damaged"),
            Self::Json(why) => write!(f, "its JSON area cannot be read: {why}"),
            Self::Field(name) => write!(f, "field `{name}` of its JSON area is missing or wrong"),
        }
    }
}

impl std::error::Error for Fault {}

/// How long the header is whose first bytes, 16 or more, these are. Whether it is valid is not known by that.
pub fn announced_bytes(start: &[u8]) -> Result<u64, Fault> {
    let magic = start.get(..6).ok_or(Fault::Absent)?;
    if magic != MAGIC_PRIMARY && magic != MAGIC_SECONDARY {
        return Err(Fault::Absent);
    }
    let version = u16::from_be_bytes(array(start, 6)?);
    if version != 2 {
        return Err(Fault::Version(version));
    }
    let size = u64::from_be_bytes(array(start, 8)?);
    if HEADER_SIZES.contains(&size) { Ok(size) } else { Err(Fault::Size(size)) }
}

/// Whether a LUKS1 header begins here.
#[must_use]
pub fn is_luks1(start: &[u8]) -> bool {
    start.get(..8) == Some(b"LUKS\xba\xbe\x00\x01")
}

/// Checks one whole header, primary or secondary, that lies at `offset` in its partition.
pub fn parse(header: &[u8], offset: u64) -> Result<Header, Fault> {
    let header_bytes = announced_bytes(header)?;
    if header.len() as u64 != header_bytes {
        return Err(Fault::CutShort);
    }
    let said_offset = u64::from_be_bytes(array(header, 256)?);
    if said_offset != offset {
        return Err(Fault::Place(said_offset));
    }
    // Before the checksum is known to be right, nothing of it is quoted but what is printable.
    let algorithm = header.get(72..104).and_then(text).unwrap_or_default();
    if algorithm != "sha256" {
        return Err(Fault::Algorithm(algorithm.escape_default().to_string()));
    }
    let mut sealed = header.to_vec();
    let stored = sealed.get(CHECKSUM).ok_or(Fault::CutShort)?.to_vec();
    sealed.get_mut(CHECKSUM).ok_or(Fault::CutShort)?.fill(0);
    let digest = <sha2::Sha256 as sha2::Digest>::digest(&sealed);
    if stored.get(..32) != Some(digest.as_slice()) {
        return Err(Fault::Checksum);
    }
    let uuid = header.get(168..208).and_then(text).ok_or(Fault::Field("uuid"))?.to_owned();
    let area = header.get(BINARY_BYTES..).and_then(text);
    let area = area.ok_or_else(|| Fault::Json("it is not UTF-8".to_owned()))?;
    let mut json: Value =
        serde_json::from_str(area).map_err(|error| Fault::Json(error.to_string()))?;
    let slots = slot::slots(&json)?;
    // Each digest lists the key slots that it vouches for: enrolling a key is no new volume.
    let digests = json.get_mut("digests").and_then(Value::as_object_mut);
    for digest in digests.ok_or(Fault::Field("digests"))?.values_mut() {
        digest.as_object_mut().ok_or(Fault::Field("digests"))?.remove("keyslots");
    }
    let digests = json.get("digests").ok_or(Fault::Field("digests"))?;
    let segments = json.get("segments").ok_or(Fault::Field("segments"))?;
    // `Value` keeps its keys sorted, so the text is the same for the same content.
    let identity = sha256_hex(format!("{uuid}\n{digests}\n{segments}").as_bytes());
    let offset_of = |segment: &Value| segment.get("offset")?.as_str()?.parse::<u64>().ok();
    let offsets = segments.as_object().into_iter().flat_map(|all| all.values());
    let data_offset_bytes =
        offsets.filter_map(offset_of).min().ok_or(Fault::Field("segments.offset"))?;
    let tpm2_tokens = json.get("tokens").and_then(Value::as_object).map_or(0, |tokens| {
        let sealed = |t: &&Value| t.get("type").and_then(Value::as_str) == Some("systemd-tpm2");
        tokens.values().filter(sealed).count()
    });
    Ok(Header { uuid, identity, header_bytes, data_offset_bytes, tpm2_tokens, slots })
}

/// The bytes of a number at this place.
fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], Fault> {
    bytes.get(at..).and_then(|rest| rest.first_chunk().copied()).ok_or(Fault::CutShort)
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
            assert!(parse(&bad, 0).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_header_in_the_wrong_place_or_cut_short_is_none() {
        let good = header("u-u", 0x4000, true, 16 << 20);
        assert_eq!(parse(&good, 0x8000), Err(Fault::Place(0x4000)));
        assert_eq!(parse(&good[..0x2000], 0x4000), Err(Fault::CutShort));
        assert_eq!(parse(&good[..12], 0x4000), Err(Fault::CutShort));
        assert_eq!(parse(&[], 0), Err(Fault::Absent));
    }
}
