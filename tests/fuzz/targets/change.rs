//! Files of restage's that somebody else changes.

use std::io::{Read, Write};

use restage::format::envelope::{
    ADDED_SLOTS, JOURNAL, Kind, NOTE, REPORT, REQUEST, RESTORE_JOURNAL, RESTORE_REQUEST,
};
use restage::platform::directory::{self, Directory};
use serde_json::Value;

use crate::bytes::Bytes;
use crate::seal;

const KINDS: [Kind; 7] =
    [REQUEST, JOURNAL, RESTORE_REQUEST, RESTORE_JOURNAL, REPORT, ADDED_SLOTS, NOTE];
const OTHER_NAMES: [&str; 8] = [
    "89ABCDEF.REQ",
    "89ABCDEF.JNL",
    "01234567.RPT",
    "01234567.S03",
    "01234567.A01",
    "01234567.P01",
    "01234567.F00",
    "89ABCDEF.FLG",
];

/// What has become of it.
pub enum Changed {
    /// It is as it was.
    Nothing,
    /// The file of this name is another one, or gone.
    File(String),
}

/// Changes one file.
pub fn file(own: &dyn Directory, bytes: &mut Bytes<'_>) -> Changed {
    let Some((name, content)) = pick(own, bytes) else { return Changed::Nothing };
    let new = match bytes.byte() % 6 {
        0 => flipped(content, bytes),
        1 => content[..bytes.below(content.len() + 1)].to_vec(),
        2 => bytes.run().to_vec(),
        3 => match with_another_leaf(&content, bytes) {
            Some(new) => new,
            None => return Changed::Nothing,
        },
        4 => {
            directory::remove(own, &name).unwrap();
            return Changed::File(name);
        }
        _ => {
            let other = OTHER_NAMES[bytes.below(OTHER_NAMES.len())];
            put(own, other, &content);
            return Changed::File(other.to_owned());
        }
    };
    put(own, &name, &new);
    Changed::File(name)
}

/// Damages one file, or takes it away: nothing in it is what somebody wanted.
pub fn damage(own: &dyn Directory, bytes: &mut Bytes<'_>) -> Changed {
    let Some((name, content)) = pick(own, bytes) else { return Changed::Nothing };
    let new = match bytes.byte() % 4 {
        0 => flipped(content, bytes),
        1 => content[..bytes.below(content.len() + 1)].to_vec(),
        2 => bytes.run().to_vec(),
        _ => {
            directory::remove(own, &name).unwrap();
            return Changed::File(name);
        }
    };
    put(own, &name, &new);
    Changed::File(name)
}

/// One of the files, and what is in it.
fn pick(own: &dyn Directory, bytes: &mut Bytes<'_>) -> Option<(String, Vec<u8>)> {
    let names = own.names().ok()?;
    let name = names.get(bytes.below(names.len().max(1)))?.to_str()?.to_owned();
    let mut content = Vec::new();
    // One that a cut has left cannot be read.
    own.file(name.as_ref()).ok()??.read_to_end(&mut content).ok()?;
    Some((name, content))
}

fn put(own: &dyn Directory, name: &str, content: &[u8]) {
    directory::remove(own, name).unwrap();
    let mut file = own.new_file(name.as_ref()).unwrap();
    file.write_all(content).unwrap();
    file.sync().unwrap();
    own.sync().unwrap();
}

fn flipped(mut content: Vec<u8>, bytes: &mut Bytes<'_>) -> Vec<u8> {
    let at = bytes.below(content.len().max(1));
    if let Some(byte) = content.get_mut(at) {
        *byte ^= bytes.byte();
    }
    content
}

/// The same file with one value of its body exchanged, and a sum that is right.
fn with_another_leaf(content: &[u8], bytes: &mut Bytes<'_>) -> Option<Vec<u8>> {
    let mut whole: Value = serde_json::from_slice(content).ok()?;
    let kind = KINDS.into_iter().find(|kind| whole["format"] == kind.name)?;
    let (from, to) = (bytes.below(200), bytes.below(200));
    let mut other = nth(&mut whole["body"], &mut { from })?.clone();
    if bytes.byte() & 1 != 0 {
        let odd = [
            Value::Null,
            0.into(),
            u64::MAX.into(),
            "".into(),
            "../x".into(),
            true.into(),
            false.into(),
            Value::Array(Vec::new()),
        ];
        other = odd[bytes.below(odd.len())].clone();
    }
    *nth(&mut whole["body"], &mut { to })? = other;
    Some(seal::envelope(whole["body"].to_string().as_bytes(), kind))
}

/// The value of this number, counted through all that there are.
fn nth<'a>(value: &'a mut Value, number: &mut usize) -> Option<&'a mut Value> {
    if *number == 0 {
        return Some(value);
    }
    *number -= 1;
    match value {
        Value::Array(items) => items.iter_mut().find_map(|item| nth(item, number)),
        Value::Object(fields) => fields.values_mut().find_map(|field| nth(field, number)),
        _ => None,
    }
}
