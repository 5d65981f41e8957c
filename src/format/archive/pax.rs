//! The pax extended header: what a ustar header has no room for, as `LENGTH KEY=VALUE\n` records.
//! Side: both. Pure. A white list of keys: where readers differ about a key, it is refused.

use std::collections::{BTreeMap, BTreeSet};

use super::{MAX_TIME, shown};

/// It is held in memory as a whole.
pub(super) const MAX_BYTES: u64 = 1 << 20;
const XATTR: &str = "SCHILY.xattr.";
/// Linux takes no longer ones.
const MAX_XATTR_NAME_BYTES: usize = 255;
const MAX_XATTR_BYTES: usize = 64 << 10;
/// The only ones of the namespace `system`.
const ACLS: [&str; 2] = ["system.posix_acl_access", "system.posix_acl_default"];

/// What the records say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Records {
    pub path: Option<String>,
    pub target: Option<String>,
    pub owner: Option<u32>,
    pub group: Option<u32>,
    pub modified: Option<u64>,
    pub xattrs: BTreeMap<String, Vec<u8>>,
}

/// Reads all records; the error says what is wrong with which.
pub(super) fn parse(mut bytes: &[u8]) -> Result<Records, String> {
    let mut records = Records::default();
    let mut keys = BTreeSet::new();
    while !bytes.is_empty() {
        let (key, value, rest) = record(bytes).ok_or("a damaged pax header")?;
        let refused = |why: &str| format!("the pax key `{}` {why}", shown(key));
        if !keys.insert(key) {
            return Err(refused("is there twice"));
        }
        let damaged = || refused("has a damaged value");
        let text = || std::str::from_utf8(value).map(str::to_owned).map_err(|_| damaged());
        let number = || text()?.parse().ok().filter(|_| is_digits(value)).ok_or_else(damaged);
        match key {
            b"path" => records.path = Some(text()?),
            b"linkpath" => records.target = Some(text()?),
            b"uid" => records.owner = Some(number()?),
            b"gid" => records.group = Some(number()?),
            b"mtime" => records.modified = Some(seconds(&text()?).ok_or_else(damaged)?),
            // GNU tar writes them; they are not restored, but others read them.
            b"atime" | b"ctime" => {
                let text = text()?;
                let seconds = seconds(text.strip_prefix('-').unwrap_or(&text));
                seconds.filter(|seconds| *seconds <= MAX_TIME).ok_or_else(damaged)?;
            }
            b"uname" | b"gname" => {
                if value.contains(&0) {
                    return Err(damaged());
                }
            }
            _ => {
                let name = key.strip_prefix(XATTR.as_bytes());
                let name = name.ok_or_else(|| refused("is not accepted"))?;
                let name = std::str::from_utf8(name).map(decode_name).unwrap_or_default();
                if let Some(why) = unfit_xattr(&name, value) {
                    return Err(refused(why));
                }
                if records.xattrs.insert(name, value.to_vec()).is_some() {
                    return Err(refused("is there twice"));
                }
            }
        }
        bytes = rest;
    }
    Ok(records)
}

/// The first record's key and value, and the rest. Its length must end exactly behind its newline.
fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let mut parts = bytes.splitn(2, |byte| *byte == b' ');
    let digits = parts.next()?;
    if !is_digits(digits) || digits.starts_with(b"0") {
        return None;
    }
    let length: usize = std::str::from_utf8(digits).ok()?.parse().ok()?;
    let (record, rest) = bytes.split_at_checked(length)?;
    let body = record.get(digits.len() + 1..)?.strip_suffix(b"\n")?;
    let key = body.split(|byte| *byte == b'=').next()?;
    let value = body.get(key.len() + 1..)?;
    Some((key, value, rest))
}

fn is_digits(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(u8::is_ascii_digit)
}

/// Whole seconds; a fraction is cut off.
fn seconds(text: &str) -> Option<u64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let good = is_digits(whole.as_bytes()) && is_digits(fraction.as_bytes());
    good.then(|| whole.parse().ok()).flatten()
}

/// Why this extended attribute is in no backup.
pub(super) fn unfit_xattr(name: &str, value: &[u8]) -> Option<&'static str> {
    if name.is_empty() || name.len() > MAX_XATTR_NAME_BYTES || name.chars().any(char::is_control) {
        return Some("is no name of an extended attribute");
    }
    let is_known = ["user.", "trusted.", "security."]
        .iter()
        .any(|space| name.strip_prefix(space).is_some_and(|rest| !rest.is_empty()));
    if !is_known && !ACLS.contains(&name) {
        return Some("is an extended attribute of a kind that no file system keeps");
    }
    (value.len() > MAX_XATTR_BYTES).then_some("is an extended attribute of more than 64 KiB")
}

/// A key ends at its first `=`, so GNU tar writes it, and its escape character, as a URL does.
fn encode_name(name: &str) -> String {
    name.replace('%', "%25").replace('=', "%3D")
}

fn decode_name(key: &str) -> String {
    key.replace("%3D", "=").replace("%25", "%")
}

impl Records {
    /// The header's bytes, always in the same order; none when there is nothing to say.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let number = |number: u64| number.to_string().into_bytes();
        let owner = |id: Option<u32>| id.map(|id| number(id.into()));
        let text = |text: &Option<String>| text.clone().map(String::into_bytes);
        for (key, value) in [
            ("path", text(&self.path)),
            ("linkpath", text(&self.target)),
            ("uid", owner(self.owner)),
            ("gid", owner(self.group)),
            ("mtime", self.modified.map(number)),
        ] {
            if let Some(value) = value {
                append(&mut bytes, key, &value);
            }
        }
        for (name, value) in &self.xattrs {
            append(&mut bytes, &format!("{XATTR}{}", encode_name(name)), value);
        }
        bytes
    }
}

/// Adds a record. Its length counts the digits of the length.
fn append(bytes: &mut Vec<u8>, key: &str, value: &[u8]) {
    let rest = " ".len() + key.len() + "=".len() + value.len() + "\n".len();
    let mut length = rest;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    bytes.extend_from_slice(format!("{length} {key}=").as_bytes());
    bytes.extend_from_slice(value);
    bytes.push(b'\n');
}
