//! restage's directory after a power cut: any names, and anything in the files.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::sync::OnceLock;

use restage::apply::journal::{self, Commit, Committed, Journal};
use restage::apply::restore;
use restage::format::envelope;
use restage::platform::Store;
use restage::request::find;

use super::{machine_reset, machine_restore};
use crate::bytes::{Bytes, told};
use crate::memory;

const STEMS: [&str; 3] = ["01234567", "89ABCDEF", "0000000A"];
const EXTENSIONS: [&str; 20] = [
    "REQ", "SED", "TAR", "RSV", "JNL", "A00", "S00", "S01", "S29", "P00", "R00", "F00", "F30",
    "K00", "W00", "C00", "B00", "RPT", "FLG", "ARC",
];

pub const WORDS: &[&str] = &["restage-journal", "restage-report", "FSCK0000.REC", ".room00"];

type Files = BTreeMap<String, Vec<u8>>;

#[derive(Clone, Default)]
struct Memory {
    files: Files,
    /// Those that were cut off while they were made.
    unlinked: Vec<String>,
    /// Those that cannot be read.
    broken: Vec<String>,
}

impl Store for Memory {
    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.files.keys().cloned().collect())
    }
    fn read(&self, name: &str, max_bytes: usize) -> io::Result<Option<Vec<u8>>> {
        if self.broken.iter().any(|broken| broken == name) {
            return Err(io::Error::from_raw_os_error(5));
        }
        match self.files.get(name) {
            Some(bytes) if bytes.len() > max_bytes => Err(io::Error::other("too long")),
            bytes => Ok(bytes.cloned()),
        }
    }
    fn unlinked(&self, among: Vec<String>) -> Vec<String> {
        among.into_iter().filter(|name| self.unlinked.contains(name)).collect()
    }
    fn make_room(&mut self, _stem: &str) -> io::Result<()> {
        Ok(())
    }
    fn create(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        if self.files.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.broken.retain(|broken| broken != name);
        self.unlinked.retain(|unlinked| unlinked != name);
        self.files.insert(name.to_owned(), bytes.to_vec());
        Ok(())
    }
    fn open(&self, name: &str) -> io::Result<Option<Box<dyn Read>>> {
        let bytes = self.read(name, usize::MAX)?;
        Ok(bytes.map(|bytes| Box::new(io::Cursor::new(bytes)) as Box<dyn Read>))
    }
    fn create_from(&mut self, name: &str, content: &mut dyn Read) -> io::Result<u64> {
        let mut bytes = Vec::new();
        content.read_to_end(&mut bytes)?;
        self.create(name, &bytes).map(|()| bytes.len() as u64)
    }
    fn mark(&mut self, name: &str) -> io::Result<()> {
        self.files.entry(name.to_owned()).or_default();
        Ok(())
    }
    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.files.remove(name);
        Ok(())
    }
    fn shred(&mut self, name: &str) -> io::Result<()> {
        self.remove(name)
    }
    fn settle(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Files that are whole, of both kinds of operation.
fn whole() -> &'static Vec<Vec<u8>> {
    static WHOLE: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    memory::once(&WHOLE, || {
        let reset = ["REQ", "JNL", "RPT"].map(machine_reset::file);
        let restore = ["REQ", "JNL"].map(machine_restore::file);
        reset.into_iter().chain(restore).collect()
    })
}

fn directory(bytes: &mut Bytes<'_>) -> Memory {
    let mut store = Memory::default();
    while !bytes.0.is_empty() && store.files.len() < 24 {
        let how = bytes.byte();
        let name = if how & 0x80 == 0 {
            format!("{}.{}", STEMS[bytes.below(3)], EXTENSIONS[bytes.below(EXTENSIONS.len())])
        } else {
            let name: String = String::from_utf8_lossy(bytes.run()).chars().take(40).collect();
            name.replace(['/', '\0'], "_")
        };
        let content = match how & 7 {
            0 => Vec::new(),
            which @ 1..=5 => whole()[usize::from(which) - 1].clone(),
            6 => {
                let mut file = whole()[bytes.below(5)].clone();
                let at = bytes.below(file.len());
                file[at] ^= bytes.byte();
                file
            }
            _ => bytes.run().to_vec(),
        };
        if how & 0x40 != 0 {
            store.unlinked.push(name.clone());
        }
        if how & 0x20 != 0 {
            store.broken.push(name.clone());
        }
        if !name.is_empty() {
            store.files.insert(name, content);
        }
    }
    store
}

/// The first byte: whose directory it is.
pub fn mend(bytes: &[u8]) {
    let mut bytes = Bytes(bytes);
    if bytes.byte() & 1 == 0 {
        check::<Committed>(directory(&mut bytes));
    } else {
        check::<restore::Committed>(directory(&mut bytes));
    }
}

fn check<C: Commit>(mut store: Memory) {
    let names = store.names().unwrap();
    let sorted = find::sort(&names);
    let mut all = [sorted.committed, sorted.staged, sorted.flags, sorted.leftovers].concat();
    let count = all.len();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), count, "a stem means two things");

    let before = store.clone();
    let mended = journal::mend::<C>(&mut store, 1000);
    for (name, content) in &before.files {
        let (stem, extension) = name.split_once('.').unwrap_or((name, ""));
        let is_whole = !before.unlinked.contains(name) && !before.broken.contains(name);
        let stays = match extension {
            "JNL" => is_whole && envelope::parse::<C>(content, C::KIND).is_ok(),
            "REQ" | "SED" | "ARC" | "TAR" => is_whole,
            _ => false,
        };
        if stays && stem.len() == 8 {
            assert_eq!(store.files.get(name), Some(content), "{name} is gone");
        }
    }
    let found = match mended {
        Ok(found) => found,
        Err(error) => return told(&error.chain()),
    };
    let reports = journal::reports(&store).unwrap();
    assert!(reports.is_sorted_by_key(|report| std::cmp::Reverse(report.finished_at)));
    for stem in &found.committed {
        match Journal::<C>::load(&store, stem) {
            Ok(journal) => assert_eq!(restage::request::stem(journal.id()), *stem),
            Err(error) => told(&error.chain()),
        }
    }
    let once = store.files.clone();
    let again = journal::mend::<C>(&mut store, 1000).expect("what is mended can be mended again");
    assert_eq!((&again, &store.files), (&found, &once), "mending twice is not mending once");
    for stem in &found.leftovers {
        journal::clear_away(&mut store, stem).unwrap();
        let extension = |name: &String| {
            let rest = name.strip_prefix(stem.as_str())?;
            rest.strip_prefix('.').map(str::to_owned)
        };
        let mut left = store.files.keys().filter_map(extension);
        assert!(left.all(|extension| matches!(extension.as_str(), "RPT" | "LOG" | "BAD")));
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let file = |how: u8, stem: u8, extension: &str| {
        let extension = EXTENSIONS.iter().position(|one| *one == extension).unwrap();
        vec![how, stem, u8::try_from(extension).unwrap()]
    };
    let all = [
        vec![file(1, 0, "REQ")],
        vec![file(1, 0, "REQ"), file(2, 0, "JNL"), file(0, 0, "R00"), file(0, 0, "S00")],
        vec![file(2, 0, "JNL"), file(3, 0, "RPT")],
        vec![file(0, 0, "JNL"), file(1, 0, "REQ")],
        vec![file(0x42, 0, "JNL"), file(0, 0, "A00")],
        vec![file(0x43, 0, "RPT"), file(1, 0, "REQ")],
        vec![file(0x20, 1, "JNL"), file(0, 2, "FLG"), file(3, 1, "RPT")],
    ];
    let restore = [vec![1], file(4, 0, "REQ"), file(5, 0, "JNL"), file(0, 0, "W00")].concat();
    all.into_iter().map(|files| [vec![0], files.concat()].concat()).chain([restore]).collect()
}
