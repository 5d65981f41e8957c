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
/// Names are listed so often until there are none.
const LISTINGS: usize = 3;
/// What takes entries begins with one of these after the stem of its operation.
const FILLERS: [&str; 2] = [".room", ".Z"];
/// The longest that a name on FAT may be: 20 entries for 13 of its characters each, and one of its own.
const LONGEST_NAME: usize = 255;
const ENTRIES_OF_A_LONG_NAME: u64 = 21;

fn long_filler(stem: &str, number: u64) -> String {
    format!("{:x<LONGEST_NAME$}", format!("{stem}{}{number:03}", FILLERS[0]))
}

/// Names of eight characters and three, which take one entry each; more than twice as many as are needed.
/// Two letters: a digit would be progress.
fn short_fillers(stem: &str) -> impl Iterator<Item = String> {
    let letters = || (b'A'..=b'Z').map(char::from);
    let pairs = letters().flat_map(move |one| letters().map(move |other| (one, other)));
    pairs.map(move |(one, other)| format!("{stem}{}{one}{other}", FILLERS[1]))
}

/// Whatever its case: the OS may list short names in small letters.
fn is_filler(name: &OsStr, stem: &str) -> bool {
    name.to_str().is_some_and(|name| {
        FILLERS.iter().map(|filler| format!("{stem}{filler}")).any(|filler| {
            name.get(..filler.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(&filler))
        })
    })
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
    let filled = fill(stem, &Real(directory));
    let cleared = clear(directory, stem);
    // New clusters are to be empty before the table says whose they are, which any sync of a file does.
    filled.and(cleared).and(directory.sync())
}

/// Where a cut has left a name behind the end of the directory, there may be two of it now, and the kernel
/// does not find the second one at once: so they are listed again.
fn clear(directory: &dyn Directory, stem: &str) -> io::Result<()> {
    for _ in 0..LISTINGS {
        let mut names = directory.names()?;
        names.retain(|name| is_filler(name, stem));
        if names.is_empty() {
            break;
        }
        for name in names {
            directory.remove_file(&name)?;
        }
    }
    Ok(())
}

/// What is filled.
trait Entries {
    /// Takes one entry; false if there is such a name.
    fn take_one(&self, name: &str) -> io::Result<bool>;
    /// Takes entries for a long name.
    fn take_many(&self, name: &str) -> io::Result<()>;
    fn bytes(&self) -> io::Result<u64>;
}

struct Real<'a>(&'a dyn Directory);

impl Entries for Real<'_> {
    fn take_one(&self, name: &str) -> io::Result<bool> {
        match self.0.new_file(name.as_ref()) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error),
        }
    }
    fn take_many(&self, name: &str) -> io::Result<()> {
        self.0.any_file(name.as_ref()).map(drop)
    }
    fn bytes(&self) -> io::Result<u64> {
        Ok(self.0.node()?.bytes)
    }
}

/// Names of one entry first, until the directory grows: the kernel gives each the first that is free. For
/// a long name it would look for many in a row, beyond the end of the directory as well, where a cut may
/// have left what was in a cluster before: there it gives up, and makes the file system read-only. In
/// new clusters nothing is left, and long names are few.
///
/// How many entries are free is not asked: names behind such an end are not listed. They are once there is
/// no end before them, and stay: a request, a journal or a report among them is read as one, and the rest
/// is told and passed over.
fn fill(stem: &str, entries: &dyn Entries) -> io::Result<()> {
    let before = entries.bytes()?;
    let mut taken = 0;
    for name in short_fillers(stem) {
        if taken == ENTRIES || entries.bytes()? != before {
            break;
        }
        // One that was not listed may be there.
        taken += u64::from(entries.take_one(&name)?);
    }
    while taken < ENTRIES {
        entries.take_many(&long_filler(stem, taken))?;
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
    #[derive(Clone)]
    struct Slots {
        all: Vec<Slot>,
        cluster: usize,
        taken: usize,
        names: BTreeSet<String>,
    }

    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Slot {
        Used,
        Free,
        /// Never used; the end of the directory.
        End,
    }

    impl Slots {
        fn new(slots: &[(Slot, usize)], cluster: usize) -> Self {
            let slots = slots.iter().flat_map(|(slot, count)| vec![*slot; *count]).collect();
            Self { all: slots, cluster, taken: 0, names: BTreeSet::new() }
        }

        fn take(&mut self, count: usize) -> io::Result<()> {
            let (mut row, mut has_ended, mut at) = (0, false, 0);
            while row < count {
                let slot = self.all.get(at).copied().unwrap_or_else(|| {
                    self.all.extend(vec![Slot::End; self.cluster]);
                    Slot::End
                });
                if slot == Slot::Used && has_ended {
                    return Err(io::Error::from_raw_os_error(5));
                }
                has_ended |= slot == Slot::End;
                row = if slot == Slot::Used { 0 } else { row + 1 };
                at += 1;
            }
            self.all.get_mut(at - count..at).unwrap().fill(Slot::Used);
            self.taken += count;
            Ok(())
        }

        /// What was not used before is free.
        fn give_back(&mut self, before: &Self) {
            for (at, slot) in self.all.iter_mut().enumerate() {
                if *slot == Slot::Used && before.all.get(at) != Some(&Slot::Used) {
                    *slot = Slot::Free;
                }
            }
        }
    }

    impl Entries for RefCell<Slots> {
        fn take_one(&self, name: &str) -> io::Result<bool> {
            let mut slots = self.borrow_mut();
            if !slots.names.insert(name.to_owned()) {
                return Ok(false);
            }
            slots.take(1).map(|()| true)
        }
        fn take_many(&self, name: &str) -> io::Result<()> {
            let mut slots = self.borrow_mut();
            assert!(slots.names.insert(name.to_owned()), "{name} twice");
            slots.take(21)
        }
        fn bytes(&self) -> io::Result<u64> {
            Ok(self.borrow().all.len() as u64 * 32)
        }
    }

    fn filled(slots: Slots) -> Slots {
        let slots = RefCell::new(slots);
        fill("0123ABCD", &slots).unwrap();
        slots.into_inner()
    }

    #[test]
    fn long_fillers_are_as_long_as_they_can_be_and_short_ones_have_eight_and_three() {
        let long: BTreeSet<_> = (0..ENTRIES).map(|n| long_filler("0123ABCD", n)).collect();
        let short: BTreeSet<_> = short_fillers("0123ABCD").collect();
        assert_eq!((long.len(), short.len()), (256, 676));
        assert!(long.iter().all(|name| name.len() == 255));
        assert!(short.iter().all(|name| name.len() == 12));
        assert!(long.iter().chain(&short).all(|name| is_filler(name.as_ref(), "0123ABCD")));
        assert!(!is_filler("0123ABCD.S00".as_ref(), "0123ABCD"));
        assert!(!is_filler("ABCD0123.ZAA".as_ref(), "0123ABCD"));
        assert!(is_filler("0123abcd.zaa".as_ref(), "0123ABCD"));
    }

    #[test]
    fn so_many_entries_are_taken_and_few_names_where_it_grows() {
        let slots = filled(Slots::new(&[(Slot::Used, 6), (Slot::End, 10)], 16));
        assert!(slots.taken >= 256 && slots.names.len() < 30, "{}", slots.names.len());
        let slots = filled(Slots::new(&[(Slot::Used, 6), (Slot::End, 1018)], 1024));
        assert_eq!((slots.taken, slots.all.len()), (256, 1024));
        // Again, when they were removed: nothing grows.
        let slots = filled(Slots::new(&[(Slot::Used, 6), (Slot::Free, 256), (Slot::End, 10)], 16));
        assert_eq!((slots.taken, slots.all.len()), (256, 272));
    }

    #[test]
    fn names_that_are_there_take_nothing() {
        let mut slots = Slots::new(&[(Slot::Used, 106), (Slot::End, 1024)], 16);
        slots.names = short_fillers("0123ABCD").skip(7).take(100).collect();
        assert_eq!(filled(slots).taken, 256);
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
                let left = Slots::new(&left, 16);
                let mut slots = filled(left.clone());
                assert!(slots.taken >= 256);
                slots.give_back(&left);
                slots.take(21).unwrap();
                // Before, a long name is not given any where the gap is in its way.
                assert_eq!(left.clone().take(21).is_err(), free + gap < 21);
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
