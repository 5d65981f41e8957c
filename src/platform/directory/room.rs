//! Room for names, before it is needed.
//! Side: both. Touches one directory on FAT.
//!
//! A directory on FAT grows like a file, cluster by cluster, and a power cut may tear that: then its
//! chain of clusters ends in nothing, and none of it can be read any more; or a cluster of it is full of
//! what was there before. So names take the room while nothing depends on the directory, and give it
//! back. It never shrinks, and the entries of removed names are used again.

use std::ffi::OsStr;
use std::io;

use super::Directory;

/// So many entries of 32 bytes are taken: for eight reports, their logs, and an operation of a hundred
/// boots.
const ENTRIES: u64 = 256;
/// So many that are free are enough: they are those that were taken for this operation.
const ENOUGH: u64 = 192;
const ENTRY_BYTES: u64 = 32;
/// A directory's own two: itself, and the one above it.
const OWN_ENTRIES: u64 = 2;
/// What takes entries begins with one of these after the stem of its operation.
const FILLERS: [&str; 2] = [".room", ".Z"];
/// The longest that a name on FAT may be: 20 entries for 13 of its characters each, and one of its own.
const LONGEST_NAME: usize = 255;
const CHARACTERS_OF_AN_ENTRY: usize = 13;
const ENTRIES_OF_A_LONG_NAME: u64 = 21;

fn long_filler(stem: &str, number: u64) -> String {
    format!("{:x<LONGEST_NAME$}", format!("{stem}{}{number:03}", FILLERS[0]))
}

/// As many names of eight characters and three, which take one entry each. Two letters: a digit would
/// be progress.
fn short_fillers(stem: &str) -> impl Iterator<Item = String> {
    let letters = || (b'A'..=b'P').map(char::from);
    let pairs = letters().flat_map(move |one| letters().map(move |other| (one, other)));
    pairs.map(move |(one, other)| format!("{stem}{}{one}{other}", FILLERS[1]))
}

fn is_filler(name: &OsStr, stem: &str) -> bool {
    let rest = name.to_str().and_then(|name| name.strip_prefix(stem));
    rest.is_some_and(|rest| FILLERS.iter().any(|filler| rest.starts_with(filler)))
}

/// How many entries a name takes.
fn entries_of(name: &OsStr) -> u64 {
    let bytes = name.as_encoded_bytes();
    let (stem, extension) = match bytes.iter().position(|byte| *byte == b'.') {
        Some(dot) => (bytes.get(..dot), bytes.get(dot + 1..)),
        None => (Some(bytes), None),
    };
    let is_part = |part: Option<&[u8]>, most: usize| {
        part.is_none_or(|part| {
            let is_plain = |byte: &u8| byte.is_ascii_uppercase() || byte.is_ascii_digit();
            part.len() <= most && part.iter().all(is_plain)
        })
    };
    if is_part(stem, 8) && is_part(extension, 3) {
        1
    } else {
        1 + bytes.len().div_ceil(CHARACTERS_OF_AN_ENTRY) as u64
    }
}

/// After this a directory does not grow for as many names as restage can need, durable when this
/// returns. Safe to repeat; nothing is done where growing is one change. A cut leaves empty files with
/// this stem, like others of an operation that was never begun.
pub fn make(directory: &dyn Directory, stem: &str) -> io::Result<()> {
    if !directory.grows_in_pieces()? {
        return Ok(());
    }
    // Of an attempt that was cut.
    clear(directory, stem)?;
    let names = directory.names()?;
    let all = directory.node()?.bytes / ENTRY_BYTES;
    let used = OWN_ENTRIES + names.iter().map(|name| entries_of(name)).sum::<u64>();
    if all.saturating_sub(used) >= ENOUGH {
        return directory.sync();
    }
    let take = |name: String| directory.any_file(name.as_ref()).map(drop);
    let bytes = || Ok(directory.node()?.bytes);
    let filled = fill(stem, &take, &bytes);
    let cleared = clear(directory, stem);
    // New clusters are to be empty before the table says whose they are, which any sync of a file does.
    filled.and(cleared).and(directory.sync())
}

fn clear(directory: &dyn Directory, stem: &str) -> io::Result<()> {
    let mut names = directory.names()?;
    names.retain(|name| is_filler(name, stem));
    for name in names {
        directory.remove_file(&name)?;
    }
    Ok(())
}

/// Names of one entry first, until the directory grows: the kernel gives each the first that is free. For
/// a long name it would look for many in a row, beyond the end of the directory as well, where a cut may
/// have left what was in a cluster before: there it gives up, and makes the file system read-only. In
/// new clusters nothing is left, and long names are few.
fn fill(
    stem: &str,
    take: &dyn Fn(String) -> io::Result<()>,
    bytes: &dyn Fn() -> io::Result<u64>,
) -> io::Result<()> {
    let before = bytes()?;
    let mut taken = 0;
    for name in short_fillers(stem) {
        if bytes()? != before {
            break;
        }
        take(name)?;
        taken += 1;
    }
    while taken < ENTRIES {
        take(long_filler(stem, taken))?;
        taken += ENTRIES_OF_A_LONG_NAME;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeSet;

    use super::*;
    use crate::platform::directory;

    /// Entries as the kernel gives them: it looks from the beginning for as many in a row as a name
    /// takes, and adds a cluster where there are none.
    struct Entries {
        slots: Vec<Slot>,
        cluster: usize,
        taken: usize,
    }

    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Slot {
        Used,
        Free,
        /// Never used; the end of the directory.
        End,
    }

    impl Entries {
        fn take(&mut self, count: usize) -> io::Result<()> {
            let (mut row, mut has_ended, mut at) = (0, false, 0);
            while row < count {
                let slot = self.slots.get(at).copied().unwrap_or_else(|| {
                    self.slots.extend(vec![Slot::End; self.cluster]);
                    Slot::End
                });
                if slot == Slot::Used && has_ended {
                    return Err(io::Error::from_raw_os_error(5));
                }
                has_ended |= slot == Slot::End;
                row = if slot == Slot::Used { 0 } else { row + 1 };
                at += 1;
            }
            self.slots.get_mut(at - count..at).unwrap().fill(Slot::Used);
            self.taken += count;
            Ok(())
        }
    }

    fn filled(slots: &[(Slot, usize)], cluster: usize) -> (io::Result<()>, Vec<String>, Entries) {
        let slots = slots.iter().flat_map(|(slot, count)| vec![*slot; *count]).collect();
        let entries = RefCell::new(Entries { slots, cluster, taken: 0 });
        let names = RefCell::new(Vec::new());
        let take = |name: String| {
            let count = usize::try_from(entries_of(name.as_ref())).unwrap();
            names.borrow_mut().push(name);
            entries.borrow_mut().take(count)
        };
        let bytes = || Ok(entries.borrow().slots.len() as u64 * ENTRY_BYTES);
        let result = fill("0123ABCD", &take, &bytes);
        (result, names.into_inner(), entries.into_inner())
    }

    #[test]
    fn long_fillers_are_as_long_as_they_can_be_and_short_ones_take_one_entry() {
        let long: BTreeSet<_> = (0..ENTRIES).map(|n| long_filler("0123ABCD", n)).collect();
        let short: BTreeSet<_> = short_fillers("0123ABCD").collect();
        assert_eq!((long.len(), short.len()), (256, 256));
        assert!(long.iter().all(|name| name.len() == 255));
        let are = |names: &BTreeSet<String>, entries| {
            names.iter().all(|name| entries_of(name.as_ref()) == entries)
        };
        assert!(are(&long, ENTRIES_OF_A_LONG_NAME) && are(&short, 1));
        assert!(long.iter().chain(&short).all(|name| is_filler(name.as_ref(), "0123ABCD")));
        assert!(!is_filler("0123ABCD.S00".as_ref(), "0123ABCD"));
    }

    #[test]
    fn so_many_entries_are_taken_with_few_names() {
        let (result, names, entries) = filled(&[(Slot::Used, 6), (Slot::End, 10)], 16);
        result.unwrap();
        assert!(entries.taken >= 256 && names.len() < 30, "{} {}", entries.taken, names.len());
        let (result, _, entries) = filled(&[(Slot::Used, 6), (Slot::End, 1018)], 1024);
        result.unwrap();
        assert_eq!((entries.taken, entries.slots.len()), (256, 1024));
    }

    #[test]
    fn what_a_cut_has_left_behind_the_end_is_no_trouble() {
        for free in [0, 20, 200] {
            for gap in [1, 9, 100] {
                let left = [
                    (Slot::Used, 6),
                    (Slot::Free, free),
                    (Slot::End, gap),
                    (Slot::Used, 16),
                    (Slot::Free, 5),
                ];
                let (result, _, entries) = filled(&left, 16);
                result.unwrap();
                assert!(entries.taken >= 256);
                // A long name is not given any where the gap is in its way.
                let slots = left.iter().flat_map(|(slot, count)| vec![*slot; *count]).collect();
                let mut entries = Entries { slots, cluster: 16, taken: 0 };
                assert_eq!(entries.take(21).is_err(), free + gap < 21);
            }
        }
    }

    #[test]
    fn where_growing_is_one_change_nothing_is_done() {
        let root = tempfile::tempdir().unwrap();
        let directory = directory::open(root.path()).unwrap();
        assert!(!directory.grows_in_pieces().unwrap());
        make(directory.as_ref(), "0123ABCD").unwrap();
        assert!(directory.names().unwrap().is_empty());
    }
}
