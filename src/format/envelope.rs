//! The envelope of every file that restage leaves for itself: what it is, which version, a checksum.
//! Side: both. Pure: bytes in, a checked value or a named error out.
//!
//! `{"format":"restage-request","version":1,"sha256":"…","body":{…}}`. The digest is over the text
//! of `body` exactly as it stands in the file. FAT gives no atomic replacement, and a repair may
//! hand back half a file: what does not carry its own checksum is not a request.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;

use super::sha256_hex;

/// The largest file that is looked at. A request with hundreds of partitions stays far below it.
pub const MAX_BYTES: usize = 256 * 1024;

/// Which kind of file: its name in `format`, and the newest version that this program knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// The value of `format`.
    pub name: &'static str,
    /// The only version read and written so far.
    pub version: u32,
}

/// A request of the running OS.
pub const REQUEST: Kind = Kind { name: "restage-request", version: 1 };
/// The journal of a committed operation.
pub const JOURNAL: Kind = Kind { name: "restage-journal", version: 1 };
/// A request to restore a backup.
pub const RESTORE_REQUEST: Kind = Kind { name: "restage-restore-request", version: 1 };
/// The journal of a committed restore.
pub const RESTORE_JOURNAL: Kind = Kind { name: "restage-restore-journal", version: 1 };
/// The result of an operation.
pub const REPORT: Kind = Kind { name: "restage-report", version: 1 };
/// The key slots that a restore has added to a volume.
pub const ADDED_SLOTS: Kind = Kind { name: "restage-added-slots", version: 1 };
/// Why a step was passed over or failed.
pub const NOTE: Kind = Kind { name: "restage-note", version: 1 };

/// Why a file is not what it should be.
#[derive(Debug)]
pub enum EnvelopeError {
    /// Longer than [`MAX_BYTES`].
    TooLarge(usize),
    /// Not JSON, cut off, or with a field missing or unknown; serde names it.
    Malformed(serde_json::Error),
    /// A file of another kind.
    OtherFormat(String),
    /// Written by a newer restage.
    OtherVersion {
        /// The version in the file.
        found: u64,
        /// The version known here.
        known: u32,
    },
    /// The body is not the one that was written.
    Checksum,
}

impl std::fmt::Display for EnvelopeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::TooLarge(bytes) => write!(f, "{bytes} bytes long, more than {MAX_BYTES}"),
            Self::Malformed(error) => write!(f, "damaged or not understood: {error}"),
            Self::OtherFormat(found) => write!(f, "field `format` is `{found}`"),
            Self::OtherVersion { found, known } => {
                write!(f, "field `version` is {found}, and this restage knows version {known} only")
            }
            Self::Checksum => f.write_str("field `sha256` does not match `body`: damaged"),
        }
    }
}

impl std::error::Error for EnvelopeError {}

#[derive(Deserialize)]
struct Head {
    format: String,
    version: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Parsed<'a> {
    #[serde(rename = "format")]
    _format: String,
    #[serde(rename = "version")]
    _version: u64,
    sha256: String,
    #[serde(borrow)]
    body: &'a RawValue,
}

#[derive(Serialize)]
struct Written<'a> {
    format: &'static str,
    version: u32,
    sha256: String,
    body: &'a RawValue,
}

/// Reads a file of `kind`. The version is judged before the fields, so that a newer file is called
/// newer and not damaged.
pub fn parse<T: DeserializeOwned>(bytes: &[u8], kind: Kind) -> Result<T, EnvelopeError> {
    if bytes.len() > MAX_BYTES {
        return Err(EnvelopeError::TooLarge(bytes.len()));
    }
    let head: Head = serde_json::from_slice(bytes).map_err(EnvelopeError::Malformed)?;
    if head.format != kind.name {
        return Err(EnvelopeError::OtherFormat(head.format.chars().take(40).collect()));
    }
    if head.version != u64::from(kind.version) {
        return Err(EnvelopeError::OtherVersion { found: head.version, known: kind.version });
    }
    let parsed: Parsed<'_> = serde_json::from_slice(bytes).map_err(EnvelopeError::Malformed)?;
    if sha256_hex(parsed.body.get().as_bytes()) != parsed.sha256 {
        return Err(EnvelopeError::Checksum);
    }
    serde_json::from_str(parsed.body.get()).map_err(EnvelopeError::Malformed)
}

/// Writes a file of `kind`, one line with a newline at its end.
pub fn encode<T: Serialize>(body: &T, kind: Kind) -> Result<Vec<u8>, serde_json::Error> {
    let body = RawValue::from_string(serde_json::to_string(body)?)?;
    let sha256 = sha256_hex(body.get().as_bytes());
    let mut bytes = serde_json::to_vec(&Written {
        format: kind.name,
        version: kind.version,
        sha256,
        body: &body,
    })?;
    bytes.push(b'\n');
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize, Deserialize, PartialEq, Debug)]
    #[serde(deny_unknown_fields)]
    struct Body {
        a: u32,
    }

    fn written() -> String {
        String::from_utf8(encode(&Body { a: 7 }, REQUEST).unwrap()).unwrap()
    }

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(parse::<Body>(written().as_bytes(), REQUEST).unwrap(), Body { a: 7 });
    }

    #[test]
    fn every_truncation_and_every_flipped_bit_is_an_error() {
        let good = written().trim_end().as_bytes().to_vec();
        for length in 0..good.len() {
            assert!(parse::<Body>(&good[..length], REQUEST).is_err(), "{length} bytes");
        }
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(parse::<Body>(&bad, REQUEST).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_newer_version_is_called_newer_even_with_fields_of_its_own() {
        let newer = written().replace("\"version\":1", "\"version\":2,\"extra\":true");
        let error = parse::<Body>(newer.as_bytes(), REQUEST).unwrap_err();
        assert_eq!(
            error.to_string(),
            "field `version` is 2, and this restage knows version 1 only"
        );
    }

    #[test]
    fn an_unknown_field_is_named() {
        let body = r#"{"a":1,"colour":"red"}"#;
        let text = format!(
            r#"{{"format":"restage-request","version":1,"sha256":"{}","body":{body}}}"#,
            sha256_hex(body.as_bytes())
        );
        let error = parse::<Body>(text.as_bytes(), REQUEST).unwrap_err();
        assert!(error.to_string().contains("unknown field `colour`"), "{error}");
    }
}
