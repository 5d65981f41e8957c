//! The extended header of an entry (POSIX.1-2001 pax), of which few keys are accepted.
//! Side: both. Pure.

use std::collections::BTreeMap;

/// What such a header may have at most, in bytes.
pub const MAX_BYTES: u64 = 1 << 20;
/// How GNU tar, bsdtar and star call an extended attribute.
const XATTR: &str = "SCHILY.xattr.";
/// Linux has no longer name of one (xattr(7)).
const MAX_XATTR_NAME_BYTES: usize = 255;

/// What it says of the entry that follows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extended {
    pub path: Option<String>,
    pub target: Option<String>,
    pub owner: Option<u32>,
    pub group: Option<u32>,
    pub modified: Option<u64>,
    pub xattrs: BTreeMap<String, Vec<u8>>,
}

/// Reads one: `LENGTH KEY=VALUE\n`, the length being that of the whole record.
pub fn parse(bytes: &[u8]) -> Result<Extended, String> {
    let mut extended = Extended::default();
    let mut keys = std::collections::BTreeSet::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let (key, value, behind) = record(rest).ok_or("a pax header is damaged")?;
        rest = behind;
        if !keys.insert(key) {
            return Err(format!("a pax header with `{}` twice", shown(key)));
        }
        take(&mut extended, key, value)
            .map_err(|why| format!("pax header `{}`: {why}", shown(key)))?;
    }
    Ok(extended)
}

fn shown(key: &str) -> String {
    key.escape_debug().take(100).collect()
}

fn record(bytes: &[u8]) -> Option<(&str, &[u8], &[u8])> {
    let blank = bytes.iter().take(8).position(|byte| *byte == b' ')?;
    let digits = std::str::from_utf8(bytes.get(..blank)?).ok()?;
    let is_decimal = digits.bytes().all(|byte| byte.is_ascii_digit()) && !digits.starts_with('0');
    let length: usize = digits.parse().ok().filter(|_| is_decimal)?;
    let text = bytes.get(blank + 1..length)?.strip_suffix(b"\n")?;
    let equals = text.iter().position(|byte| *byte == b'=')?;
    let key = std::str::from_utf8(text.get(..equals)?).ok()?;
    Some((key, text.get(equals + 1..)?, bytes.get(length..)?))
}

fn take(extended: &mut Extended, key: &str, value: &[u8]) -> Result<(), String> {
    let text = || std::str::from_utf8(value).map_err(|_| "not UTF-8".to_owned());
    let number = |text: &str| -> Result<u64, String> {
        let is_decimal = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse().ok().filter(|_| is_decimal).ok_or_else(|| "not a number".to_owned())
    };
    let id = |text: &str| u32::try_from(number(text)?).map_err(|_| "too large".to_owned());
    match key {
        "path" => extended.path = Some(text()?.to_owned()),
        "linkpath" => extended.target = Some(text()?.to_owned()),
        "uid" => extended.owner = Some(id(text()?)?),
        "gid" => extended.group = Some(id(text()?)?),
        // Parts of a second are cut off.
        "mtime" => {
            let text = text()?;
            let (seconds, part) = text.split_once('.').unwrap_or((text, "0"));
            number(part)?;
            extended.modified = Some(number(seconds)?);
        }
        // GNU tar writes them, and nobody restores them.
        "atime" | "ctime" | "uname" | "gname" => {}
        _ => {
            let name = key.strip_prefix(XATTR).ok_or("it is not accepted")?;
            if name.is_empty() || name.len() > MAX_XATTR_NAME_BYTES || name.contains('\0') {
                return Err("no name of an extended attribute".to_owned());
            }
            extended.xattrs.insert(name.to_owned(), value.to_vec());
        }
    }
    Ok(())
}

/// Writes one; empty when there is nothing to say.
pub fn encode(extended: &Extended) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut record = |key: &str, value: &[u8]| {
        // The length counts its own digits.
        let without = key.len() + value.len() + 3;
        let mut length = without + 1;
        while length != without + length.to_string().len() {
            length = without + length.to_string().len();
        }
        bytes.extend_from_slice(format!("{length} {key}=").as_bytes());
        bytes.extend_from_slice(value);
        bytes.push(b'\n');
    };
    let texts = [("path", &extended.path), ("linkpath", &extended.target)];
    for (key, text) in texts {
        if let Some(text) = text {
            record(key, text.as_bytes());
        }
    }
    for (key, id) in [("uid", extended.owner), ("gid", extended.group)] {
        if let Some(id) = id {
            record(key, id.to_string().as_bytes());
        }
    }
    for (name, value) in &extended.xattrs {
        record(&format!("{XATTR}{name}"), value);
    }
    bytes
}
