//! The seed archive: a plain tar at the start of the seed partition, read, merged, rendered.
//! Side: both. Changes memory only; nothing is written.
//!
//! Entries that stay keep their bytes, headers included: whoever wrote them knows what they meant.
//! New ones are ustar, `NAME.json`, mode 0600.

use std::collections::BTreeMap;
use std::io::Read;

use serde_json::value::RawValue;
use tar::{Archive as Tar, EntryType, Header};
use zeroize::Zeroizing;

const BLOCK: usize = 512;
/// The largest extension header (long name, pax records) that is looked at.
const MAX_EXTENSION_BYTES: u64 = 64 * 1024;

/// The seeds of a request: name and JSON text, as given.
pub type Seeds = BTreeMap<String, Box<RawValue>>;

/// A seed archive in memory.
#[derive(Default)]
pub struct Archive {
    members: Vec<Member>,
}

/// One entry with the extension headers that belong to it.
struct Member {
    /// None for a global header, which belongs to no entry.
    name: Option<String>,
    bytes: Zeroizing<Vec<u8>>,
}

/// Why what is on the partition is not a seed archive.
#[derive(Debug)]
pub struct Damaged(String);

impl std::fmt::Display for Damaged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Damaged {}

impl From<std::io::Error> for Damaged {
    fn from(error: std::io::Error) -> Self {
        Self(error.to_string())
    }
}

impl Archive {
    /// Reads the archive at the start of `bytes`, which may go on after its end. A first block of
    /// zeros is an empty archive, as a blank partition is.
    pub fn parse(bytes: &[u8]) -> Result<Self, Damaged> {
        let mut members = Vec::new();
        let mut pending = Zeroizing::new(Vec::new());
        let mut long_name: Option<Vec<u8>> = None;
        let mut tar = Tar::new(bytes);
        for entry in tar.entries()?.raw(true) {
            let mut entry = entry?;
            let header = entry.header().clone();
            let kind = header.entry_type();
            let at = usize::try_from(entry.raw_header_position()).unwrap_or(usize::MAX);
            let size = header.entry_size()?;
            let length = usize::try_from(size)
                .ok()
                .and_then(|size| size.checked_next_multiple_of(BLOCK)?.checked_add(BLOCK));
            let whole = length
                .and_then(|length| bytes.get(at..at.checked_add(length)?))
                .ok_or_else(|| Damaged(format!("the entry at byte {at} reaches past the end")))?;
            let is_extension = kind.is_gnu_longname()
                || kind.is_gnu_longlink()
                || kind.is_pax_local_extensions()
                || kind.is_pax_global_extensions();
            if !is_extension && !is_plain(kind) {
                // Of some of these not even the length is what the header says.
                let kind = char::from(kind.as_byte()).escape_debug();
                return Err(Damaged(format!("the entry at byte {at} is of the kind `{kind}`")));
            }
            if is_extension && size > MAX_EXTENSION_BYTES {
                return Err(Damaged(format!("the extension header at byte {at} has {size} bytes")));
            }
            match kind {
                EntryType::GNULongName => {
                    let mut name = Vec::new();
                    entry.read_to_end(&mut name)?;
                    name.truncate(name.iter().position(|b| *b == 0).unwrap_or(name.len()));
                    only_name(&mut long_name, name, at)?;
                }
                EntryType::XHeader => {
                    let mut records = Vec::new();
                    entry.read_to_end(&mut records)?;
                    for record in tar::PaxExtensions::new(&records) {
                        let record = record?;
                        match record.key_bytes() {
                            b"path" => only_name(&mut long_name, record.value_bytes().into(), at)?,
                            key => plain_key(key, at)?,
                        }
                    }
                }
                EntryType::XGlobalHeader => {
                    let mut records = Vec::new();
                    entry.read_to_end(&mut records)?;
                    for record in tar::PaxExtensions::new(&records) {
                        match record?.key_bytes() {
                            b"path" => {
                                let why = format!("a name for all entries at byte {at}");
                                return Err(Damaged(why));
                            }
                            key => plain_key(key, at)?,
                        }
                    }
                    if !pending.is_empty() {
                        let why =
                            format!("a global header between an entry and its own at byte {at}");
                        return Err(Damaged(why));
                    }
                    members.push(Member { name: None, bytes: Zeroizing::new(whole.to_vec()) });
                    continue;
                }
                _ => {}
            }
            pending.extend_from_slice(whole);
            if is_extension {
                continue;
            }
            let name = long_name.take().unwrap_or_else(|| header.path_bytes().into_owned());
            let name = String::from_utf8(name)
                .map_err(|_| Damaged(format!("the name of the entry at byte {at} is not UTF-8")))?;
            let bytes = std::mem::take(&mut *pending);
            members.push(Member { name: Some(name), bytes: Zeroizing::new(bytes) });
        }
        if pending.is_empty() {
            Ok(Self { members })
        } else {
            Err(Damaged("an extension header without its entry at the end".to_owned()))
        }
    }

    /// The names of the entries, in their order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.members.iter().filter_map(|member| member.name.as_deref())
    }

    /// Puts the given seeds in: each replaces every file of its name in the three spellings.
    /// Returns the names of the entries that went.
    pub fn merge(&mut self, seeds: &Seeds) -> Result<Vec<String>, Damaged> {
        let mut replaced = Vec::new();
        self.members.retain(|member| {
            let Some(name) = member.name.as_deref() else { return true };
            let gone = seed_name(name).is_some_and(|seed| seeds.contains_key(seed));
            if gone {
                replaced.push(name.to_owned());
            }
            !gone
        });
        for (name, json) in seeds {
            let name = format!("{name}.json");
            let content = json.get().as_bytes();
            let mut header = Header::new_ustar();
            header.set_path(&name)?;
            header.set_mode(0o600);
            header.set_size(content.len() as u64);
            header.set_entry_type(EntryType::Regular);
            header.set_cksum();
            let mut bytes = Zeroizing::new(header.as_bytes().to_vec());
            bytes.extend_from_slice(content);
            let padded = bytes.len().next_multiple_of(BLOCK);
            bytes.resize(padded, 0);
            self.members.push(Member { name: Some(name), bytes });
        }
        Ok(replaced)
    }

    /// The archive with its end marker.
    #[must_use]
    pub fn encode(&self) -> Zeroizing<Vec<u8>> {
        let length =
            self.members.iter().map(|member| member.bytes.len()).sum::<usize>() + 2 * BLOCK;
        // One allocation: a grown Vec leaves copies of secrets behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(length));
        for member in &self.members {
            bytes.extend_from_slice(&member.bytes);
        }
        bytes.resize(length, 0);
        bytes
    }
}

/// What a seed archive may hold, the seeds and what somebody has packed with them: files, links and
/// directories.
fn is_plain(kind: EntryType) -> bool {
    matches!(
        kind,
        EntryType::Regular
            | EntryType::Continuous
            | EntryType::Link
            | EntryType::Symlink
            | EntryType::Directory
    )
}

/// An entry has one name: readers differ in which of two they take.
fn only_name(there: &mut Option<Vec<u8>>, name: Vec<u8>, at: usize) -> Result<(), Damaged> {
    match there.replace(name) {
        None => Ok(()),
        Some(_) => Err(Damaged(format!("a second name for one entry at byte {at}"))),
    }
}

/// What changes how much of the archive an entry is.
fn plain_key(key: &[u8], at: usize) -> Result<(), Damaged> {
    if key == b"size" || key.starts_with(b"GNU.sparse.") {
        let key = String::from_utf8_lossy(key);
        return Err(Damaged(format!("a pax {key} at byte {at}")));
    }
    Ok(())
}

/// `NAME` of `NAME.json`, `./NAME.yaml` and the like; None for other files.
fn seed_name(path: &str) -> Option<&str> {
    let (name, extension) = path.strip_prefix("./").unwrap_or(path).rsplit_once('.')?;
    (matches!(extension, "json" | "yaml" | "yml") && !name.contains('/')).then_some(name)
}

/// Whether a seed may have this name: `[a-z0-9][a-z0-9-]*`, short enough for a ustar header.
#[must_use]
pub fn is_valid_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !name.is_empty() && name.len() <= 90 && !name.starts_with('-') && name.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn seeds(pairs: &[(&str, &str)]) -> Seeds {
        let raw = |text: &str| RawValue::from_string(text.to_owned()).unwrap();
        pairs.iter().map(|(name, json)| ((*name).to_owned(), raw(json))).collect()
    }

    fn archive(names: &[&str]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for name in names {
            let mut header = Header::new_gnu();
            header.set_size(3);
            header.set_mode(0o644);
            if name.starts_with("./") {
                // The builder would tidy the name up.
                header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
                header.set_cksum();
                builder.append(&header, &b"abc"[..]).unwrap();
            } else {
                builder.append_data(&mut header, name, &b"abc"[..]).unwrap();
            }
        }
        builder.into_inner().unwrap()
    }

    fn names(bytes: &[u8]) -> Vec<String> {
        Archive::parse(bytes).unwrap().names().map(str::to_owned).collect()
    }

    #[test]
    fn a_blank_partition_is_an_empty_archive() {
        assert!(names(&[0; 4096]).is_empty());
        assert!(names(&[]).is_empty());
    }

    #[test]
    fn entries_that_stay_keep_their_bytes_even_with_long_names() {
        let long = "x".repeat(150);
        let original = archive(&["incus.yaml", &long, "network.json"]);
        assert_eq!(names(&original), ["incus.yaml", long.as_str(), "network.json"]);
        assert_eq!(*Archive::parse(&original).unwrap().encode(), original);
    }

    #[test]
    fn a_seed_replaces_all_its_spellings_and_nothing_else() {
        let original = archive(&[
            "incus.yaml",
            "./incus.json",
            "incus.yml",
            "a/incus.json",
            "incus",
            "incus.txt",
        ]);
        let mut merged = Archive::parse(&original).unwrap();
        let replaced = merged.merge(&seeds(&[("incus", r#"{"apply_defaults":true}"#)])).unwrap();
        assert_eq!(replaced, ["incus.yaml", "./incus.json", "incus.yml"]);
        let bytes = merged.encode();
        assert_eq!(names(&bytes), ["a/incus.json", "incus", "incus.txt", "incus.json"]);
        let mut tar = Tar::new(&bytes[..]);
        let mut last = tar.entries().unwrap().nth(3).unwrap().unwrap();
        assert_eq!(last.header().mode().unwrap(), 0o600);
        let mut text = String::new();
        last.read_to_string(&mut text).unwrap();
        assert_eq!(text, r#"{"apply_defaults":true}"#);
    }

    #[test]
    fn damage_is_noticed() {
        let good = archive(&["incus.json", "network.json"]);
        let mut flipped = good.clone();
        flipped[3] ^= 1;
        assert!(Archive::parse(&flipped).is_err());
        assert!(Archive::parse(&good[..700]).is_err());
        assert!(Archive::parse(&vec![0x55; 4096]).is_err());
    }

    #[test]
    fn names_are_checked() {
        for good in ["incus", "migration-manager", "0a"] {
            assert!(is_valid_name(good));
        }
        for bad in ["", "-a", "A", "a/b", "a.b", "..", "ä"] {
            assert!(!is_valid_name(bad), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
            let _ = Archive::parse(&bytes);
        }

        #[test]
        fn merging_is_idempotent(present in proptest::collection::vec("[a-z]{1,8}\\.(json|yaml|txt)", 0..6),
                                 given in proptest::collection::btree_map("[a-z]{1,8}", Just("{}"), 0..4)) {
            let present: Vec<&str> = present.iter().map(String::as_str).collect();
            let given: Vec<(&str, &str)> = given.iter().map(|(k, v)| (k.as_str(), *v)).collect();
            let mut once = Archive::parse(&archive(&present)).unwrap();
            once.merge(&seeds(&given)).unwrap();
            let first = once.encode();
            let mut twice = Archive::parse(&first).unwrap();
            twice.merge(&seeds(&given)).unwrap();
            prop_assert_eq!(&*first, &*twice.encode());
        }
    }
}
