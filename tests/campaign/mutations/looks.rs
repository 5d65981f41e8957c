//! Where a change may be seen.

use crate::mutation::{DISK, EFFECTS, KERNEL, Mutation, STATE_FS};
use crate::orders::IN_FREE_CLUSTERS;

/// A program of the tests, and how it is called.
pub type Look = (&'static str, Vec<&'static str>);

/// The operations that come by what lies here, one group after the other.
const OPERATIONS: [(&str, &[&[&str]]); 5] = [
    (STATE_FS, &[&RESTORES]),
    ("src/apply/restore/", &[&RESTORES]),
    (EFFECTS, &[&RESETS]),
    ("src/apply/table.rs", &[&RESETS]),
    // Everywhere else: those that take seconds, then all.
    ("src/", &[&SHORT, &[]]),
];
const SHORT: [&str; 7] =
    ["stage", "cancel", "restore-stage", "restore-cancel", "restore-skip", "confirm", "roll-back"];
const RESTORES: [&str; 6] =
    ["restore-stage", "restore-cancel", "restore", "restore-skip", "confirm", "roll-back"];
const RESETS: [&str; 5] =
    ["reset", "reset-bad-primary", "reset-bad-backup", "reset-4096", "reset-tpm-on-esp"];

/// Which clusters are given to whom, and what was in them before, only a real file system knows: what begins
/// like this is looked for there.
const IN_CLUSTERS: [&str; 2] = [IN_FREE_CLUSTERS, "src/platform/directory/room.rs:"];

/// Where it may be seen, one after the other.
pub fn of(mutation: &Mutation) -> Vec<Look> {
    // What the model stands in for.
    if [KERNEL, DISK].contains(&mutation.file) {
        let once = ["--second", "1000000", "--violations", "1"];
        let failing = ["--first", "1000000", "--errors", "1", "reset-512"];
        let cut = ["--first", "12", "reset-512", "restore"];
        let reaches = [[&once[..], &cut].concat(), [&once[..], &failing].concat()];
        return reaches.map(|reach| ("restage-filesystems", reach)).into();
    }
    if IN_CLUSTERS.iter().any(|begin| mutation.name.starts_with(begin)) {
        let reach = ["stage-512", "cancel-512", "--violations", "1", "--second", "1000000"];
        return vec![("restage-filesystems", reach.to_vec())];
    }
    let is_here = |(begin, _): &&(&str, _)| mutation.file.starts_with(begin);
    let groups = OPERATIONS.iter().find(is_here).map_or(&[][..], |(_, groups)| groups);
    let wide = ["--violations", "1", "--second", "8", "--third", "1000"];
    // A record that is lost is harmless, unless the next attempt fails as well.
    let deep = ["--violations", "1", "--second", "1", "--third", "1000", "--faults", "2"];
    let mut reaches: Vec<_> = groups.iter().map(|group| [&wide[..], *group].concat()).collect();
    // Shorter than the second group, and nearly everything comes by there.
    reaches.insert(reaches.len().min(1), vec!["--faults-only", "--violations", "1"]);
    reaches.push([&deep[..], &["reset", "confirm"]].concat());
    reaches.into_iter().map(|reach| ("restage-campaign", reach)).collect()
}
