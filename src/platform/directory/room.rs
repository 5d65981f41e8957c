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

/// So many entries of 32 bytes: for eight reports, their logs, and an operation of a hundred boots.
const ENTRIES: u64 = 256;
/// What takes them has this after the stem of its operation.
const FILLER: &str = ".room";
/// The longest that a name on FAT may be: 20 entries for 13 of its characters each, and one of its own.
const LONGEST_NAME: usize = 255;
const ENTRIES_OF_A_NAME: u64 = 21;

fn filler(stem: &str, number: u64) -> String {
    format!("{:x<LONGEST_NAME$}", format!("{stem}{FILLER}{number:02}"))
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
    let prefix = format!("{stem}{FILLER}");
    let mut names = directory.names()?;
    names.retain(|name| name.to_str().is_some_and(|name| name.starts_with(&prefix)));
    for name in names {
        directory.remove_file(&name)?;
    }
    // New clusters are to be empty before the table says whose they are, which any sync of a file does.
    directory.sync()?;
    filled
}

fn fill(directory: &dyn Directory, stem: &str) -> io::Result<()> {
    for number in 0..ENTRIES.div_ceil(ENTRIES_OF_A_NAME) {
        directory.any_file(filler(stem, number).as_ref())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::directory;

    #[test]
    fn fillers_are_as_long_as_they_can_be_and_all_different() {
        let names: std::collections::BTreeSet<_> = (0..13).map(|n| filler("0123ABCD", n)).collect();
        assert_eq!(names.len(), 13);
        assert!(names.iter().all(|name| name.len() == 255));
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
