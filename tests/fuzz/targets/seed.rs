//! Seeds: the archive on their partition, and the wish of a person.

use std::sync::OnceLock;

use restage::format::seed::{Archive, Seeds};
use restage::profile::Profile;
use restage::request::{ResetOptions, check_seeds};
use serde_json::value::RawValue;

use crate::bytes::{Bytes, told};
use crate::fixtures::tar::{Head, Tar, record};
use crate::fixtures::{disks, files};
use crate::{memory, seal};

pub const TAR_WORDS: &[&str] =
    &["incus.json", "./incus.yaml", ".yml", "path=", "size=", "././@LongLink"];
pub const WISH_WORDS: &[&str] = &[
    "\"seeds\":{",
    "\"incus\":{",
    "\"allow_tpm_reset_failure\":true",
    "\"wipe_existing_seeds\":false",
    "\\ud800",
    "\\u0000",
    "1e999",
    "[[[[[[[[",
    "null",
];

pub fn incusos() -> &'static Profile {
    static PROFILE: OnceLock<Profile> = OnceLock::new();
    memory::once(&PROFILE, || Profile::incusos().unwrap())
}

fn names(archive: &Archive) -> Vec<String> {
    archive.names().map(str::to_owned).collect()
}

/// The first byte: whether sums are made right.
pub fn tar(bytes: &[u8]) {
    let mut bytes = Bytes(bytes);
    let how = bytes.byte();
    let mut tar = bytes.0.to_vec();
    if how & 1 != 0 {
        seal::tar(&mut tar);
    }
    let mut archive = match Archive::parse(&tar) {
        Ok(archive) => archive,
        Err(why) => return told(&why.to_string()),
    };
    let (before, written) = (names(&archive), archive.encode());
    assert!(written.len() <= tar.len() + 1024, "more is written than was read");
    let again = Archive::parse(&written).expect("what is written can be read");
    assert_eq!(names(&again), before);
    assert_eq!(*again.encode(), *written);

    let given = RawValue::from_string("{\"a\":1}".to_owned()).unwrap();
    let seeds: Seeds = [("incus".to_owned(), given)].into();
    let gone = archive.merge(&seeds).unwrap();
    let merged = archive.encode();
    let mut wanted = before;
    wanted.retain(|name| !gone.contains(name));
    wanted.push("incus.json".to_owned());
    let mut again = Archive::parse(&merged).expect("what is merged can be read");
    assert_eq!(names(&again), wanted);
    assert_eq!(again.merge(&seeds).unwrap(), ["incus.json"]);
    assert_eq!(*again.encode(), *merged, "merging twice is merging once");
}

pub fn tar_seeds() -> Vec<Vec<u8>> {
    let good = Tar::default().file("incus.yaml", b"{}").file("./network.json", b"{}");
    let long = Head::file("././@LongLink", 150).with(156, b"L").gnu();
    let long = Tar::default().entry(&long, &[b'n'; 150]).file("short", b"1");
    let pax = Tar::default().pax(b'x', &record("path", "incus.yml")).file("x", b"1");
    let global = Tar::default().pax(b'g', &record("comment", "1")).file("x", b"1");
    let made = [good, long, pax, global].map(|tar| [&[1], tar.zeros(2).0.as_slice()].concat());
    let hostile = disks::seeds().into_iter().map(|hostile| hostile.bytes);
    let hostile = hostile.filter(|bytes| bytes.len() < 5000);
    made.into_iter().chain(hostile.map(|bytes| [&[0], bytes.as_slice()].concat())).collect()
}

/// The text of `-d`.
pub fn wish(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let options = match ResetOptions::parse(text) {
        Ok(options) => options,
        Err(refused) => return told(&refused.reason),
    };
    let whole: serde_json::Value = match check_seeds(&options.seeds, incusos()) {
        Ok(()) => serde_json::from_str(text).expect("what is accepted is JSON for all"),
        Err(refused) => return told(&refused.reason),
    };
    // Another reader of JSON sees the same seeds.
    let there = whole.get("seeds").and_then(|seeds| seeds.as_object()).cloned().unwrap_or_default();
    assert_eq!(there.len(), options.seeds.len());
    for (name, value) in &options.seeds {
        let value: serde_json::Value = serde_json::from_str(value.get()).unwrap();
        assert!(value.is_object() && there.get(name) == Some(&value), "{name}");
    }
    let mut archive = Archive::default();
    archive.merge(&options.seeds).unwrap();
    assert_eq!(archive.names().count(), options.seeds.len());
    // As it is staged, and read at boot.
    let staged = serde_json::to_vec(&options.seeds).unwrap();
    let read: Seeds = serde_json::from_slice(&staged).unwrap();
    check_seeds(&read, incusos()).expect("what was staged is accepted at boot");
    let texts =
        |seeds: &Seeds| -> Vec<String> { seeds.values().map(|v| v.get().to_owned()).collect() };
    assert_eq!(texts(&read), texts(&options.seeds));
}

pub fn wish_seeds() -> Vec<Vec<u8>> {
    let good = r#"{"allow_tpm_reset_failure":true,"wipe_existing_seeds":true,"seeds":{"incus":{"a":[1,-2.5e3,"\u00e9",null]},"network":{}}}"#;
    let hostile = files::contracts().into_iter().map(|hostile| hostile.bytes);
    let hostile = hostile.filter(|bytes| bytes.len() < 3000);
    std::iter::once(good.as_bytes().to_vec()).chain(hostile).collect()
}
