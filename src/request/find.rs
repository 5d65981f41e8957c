//! What lies in restage's directory on the ESP, sorted by what it means.
//! Side: both. Reads names only; changes nothing.

use std::collections::{BTreeMap, BTreeSet};

use super::systemd::ARGUMENT_HAD;
use crate::error::{Doing, Result};
use crate::platform::Store;
use crate::platform::state_fs::SUPERSEDED;

/// What the names say, by stem.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Committed and not finished.
    pub committed: Vec<String>,
    /// Staged, neither committed nor finished.
    pub staged: Vec<String>,
    /// A restore is staged or in its window: flags on the ESP, which authorise nothing.
    pub flags: Vec<String>,
    /// The kernel command line has had the reset that it asks for.
    pub argument_had: bool,
    /// Finished, or never begun, with files that have no meaning any more.
    pub leftovers: Vec<String>,
}

impl Found {
    /// Whether there is nothing to do here.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.committed.is_empty() && self.staged.is_empty() && self.leftovers.is_empty()
    }
}

/// Looks at the names, and for files that a power cut has left in free clusters.
pub fn look(store: &dyn Store) -> Result<Found> {
    let what = || "cannot look for what there is to do".to_owned();
    let names = store.names().doing(what)?;
    let mut found = sort(&names);
    for name in unlinked(store, &names) {
        let stem = name.split('.').next().unwrap_or_default().to_owned();
        let known = [&found.committed, &found.staged, &found.flags, &found.leftovers];
        if !known.iter().any(|stems| stems.contains(&stem)) {
            found.leftovers.push(stem);
        }
    }
    Ok(found)
}

/// Of these names, those of our files that a power cut has left in free clusters.
#[must_use]
pub fn unlinked(store: &dyn Store, names: &[String]) -> Vec<String> {
    store.unlinked(names.iter().filter(|name| is_ours(name)).cloned().collect())
}

/// Whether a name is one that a file of restage has.
fn is_ours(name: &str) -> bool {
    name.split_once('.').is_some_and(|(stem, extension)| {
        is_stem(stem)
            && extension.len() == 3
            && extension.bytes().all(|b| b.is_ascii_alphanumeric())
    })
}

/// A report ends everything with its stem; a journal is a commit; a request without either is
/// staged. All other files serve one of these, and without it they are leftovers.
#[must_use]
pub fn sort(names: &[String]) -> Found {
    let mut stems: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for name in names {
        match name.split_once('.') {
            Some((stem, extension)) if is_stem(stem) => {
                stems.entry(stem).or_default().insert(extension);
            }
            _ if name == SUPERSEDED || name == ARGUMENT_HAD => {}
            _ => log::warn!("restage's directory holds `{name}`, which is none of ours"),
        }
    }
    let argument_had = names.iter().any(|name| name == ARGUMENT_HAD);
    let mut found = Found { argument_had, ..Found::default() };
    for (stem, extensions) in stems {
        let list = if extensions.iter().all(|extension| *extension == "FLG") {
            &mut found.flags
        } else if extensions.contains("RPT") {
            if extensions.iter().all(|e| matches!(*e, "RPT" | "LOG" | "BAD")) {
                continue;
            }
            &mut found.leftovers
        } else if extensions.contains("JNL") {
            &mut found.committed
        } else if extensions.contains("REQ") {
            &mut found.staged
        } else {
            &mut found.leftovers
        };
        list.push(stem.to_owned());
    }
    found
}

fn is_stem(stem: &str) -> bool {
    stem.len() == 8 && stem.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(names: &[&str]) -> (Vec<String>, Vec<String>, Vec<String>) {
        let found = sort(&names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>());
        (found.committed, found.staged, found.leftovers)
    }

    #[test]
    fn names_mean_what_the_table_says() {
        let one = || vec!["0123ABCD".to_owned()];
        assert_eq!(sorted(&["0123ABCD.REQ"]), (vec![], one(), vec![]));
        assert_eq!(
            sorted(&["0123ABCD.REQ", "0123ABCD.SED", "0123ABCD.TAR"]),
            (vec![], one(), vec![])
        );
        assert_eq!(sorted(&["0123ABCD.REQ", "0123ABCD.JNL"]), (one(), vec![], vec![]));
        assert_eq!(sorted(&["0123ABCD.JNL", "0123ABCD.S00"]), (one(), vec![], vec![]));
        assert_eq!(sorted(&["0123ABCD.JNL", "0123ABCD.RPT"]), (vec![], vec![], one()));
        assert_eq!(sorted(&["0123ABCD.REQ", "0123ABCD.RPT"]), (vec![], vec![], one()));
        assert_eq!(sorted(&["0123ABCD.RPT", "0123ABCD.LOG"]), (vec![], vec![], vec![]));
        let flagged = sort(&["0123ABCD.FLG".to_owned()]);
        assert_eq!((flagged.flags.clone(), flagged.is_empty()), (one(), true));
        let had = sort(&["KERNEL.ARG".to_owned()]);
        assert_eq!((had.argument_had, had.is_empty()), (true, true));
        assert_eq!(sorted(&["0123ABCD.SED"]), (vec![], vec![], one()));
        assert_eq!(sorted(&["FSCK0000.REC", "x", "0123abcd.REQ"]), (vec![], vec![], vec![]));
    }
}
