//! Room for names, before it is needed.
//! Side: both. Touches one directory on FAT.
//!
//! A directory on FAT grows like a file, cluster by cluster, and a power cut may tear that: then its
//! chain of clusters ends in nothing, and none of it can be read any more; or a cluster of it is full of
//! what was there before. So names take the room while nothing depends on the directory, and give it
//! back. Its size would not say enough: not every entry of it need be free. It never shrinks, and the
//! entries of removed names are used again.

use std::io;

use super::Directory;
use crate::error::chain;

/// So many entries of 32 bytes: for eight reports, their logs, and an operation of a hundred boots.
const ENTRIES: u64 = 256;
/// What takes them begins with one of these after the stem of its operation.
const FILLERS: [&str; 2] = [".room", ".Z"];
/// The longest that a name on FAT may be: 20 entries for 13 of its characters each, and one of its own.
const LONGEST_NAME: usize = 255;
const ENTRIES_OF_A_NAME: u64 = 21;

fn long_filler(stem: &str, number: u64) -> String {
    format!("{:x<LONGEST_NAME$}", format!("{stem}{}{number:02X}", FILLERS[0]))
}

/// Eight characters and three: one entry.
fn short_filler(stem: &str, number: u64) -> String {
    format!("{stem}{}{number:02X}", FILLERS[1])
}

/// After this a directory does not grow for as many names as restage can need, durable when this
/// returns. Safe to repeat; nothing is done where growing is one change. A cut leaves empty files with
/// this stem, like others of an operation that was never begun.
pub fn make(directory: &dyn Directory, stem: &str) -> io::Result<()> {
    if !directory.grows_in_pieces()? {
        return Ok(());
    }
    let filled = fill(directory, stem);
    // Those of an attempt that was cut as well.
    let prefixes = FILLERS.map(|filler| format!("{stem}{filler}"));
    let mut names = directory.names()?;
    names.retain(|name| {
        let name = name.to_str();
        name.is_some_and(|name| prefixes.iter().any(|prefix| name.starts_with(prefix)))
    });
    for name in names {
        directory.remove_file(&name)?;
    }
    // New clusters are to be empty before the table says whose they are, which any sync of a file does.
    directory.sync()?;
    filled
}

/// Long names are few. But the kernel looks for the entries of one beyond the end of the directory, and
/// gives up where it finds there what was in a cluster before, as a cut may leave it. One entry after the
/// other closes that gap.
fn fill(directory: &dyn Directory, stem: &str) -> io::Result<()> {
    let mut taken = 0;
    while taken < ENTRIES {
        if let Err(error) = directory.any_file(long_filler(stem, taken).as_ref()) {
            log::warn!("{}: room is made entry by entry", chain(&error));
            break;
        }
        taken += ENTRIES_OF_A_NAME;
    }
    for number in taken..ENTRIES {
        directory.any_file(short_filler(stem, number).as_ref())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::platform::directory;

    #[test]
    fn long_fillers_are_as_long_as_they_can_be_and_short_ones_take_one_entry() {
        let (long, short): (BTreeSet<_>, BTreeSet<_>) = (0..ENTRIES)
            .map(|number| (long_filler("0123ABCD", number), short_filler("0123ABCD", number)))
            .unzip();
        assert_eq!((long.len(), short.len()), (256, 256));
        assert!(long.iter().all(|name| name.len() == 255));
        assert!(short.iter().all(|name| name.len() == 12 && *name == name.to_uppercase()));
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
