//! Names of entries, and where links may point.
//! Side: both. Pure.

use super::{Entry, Kind, Layout};

/// ustar has room for so many bytes of a name.
const MAX_FLAT_NAME_BYTES: usize = 100;
/// Linux has no longer component and no longer path.
const MAX_COMPONENT_BYTES: usize = 255;
const MAX_PATH_BYTES: usize = 4095;
/// Deeper trees are none of a system's state, and each level costs an open directory.
const MAX_DEPTH: usize = 32;

/// Why a file of this name is in no backup; reads well after "is".
#[must_use]
pub fn unfit_name(name: &str, layout: Layout) -> Option<&'static str> {
    if name.is_empty() || name == ".." || (name == "." && layout == Layout::Flat) {
        return Some("no name of a file");
    }
    if layout == Layout::Flat && name.contains('/') {
        return Some("not a plain name");
    }
    if name.chars().any(char::is_control) {
        return Some("a name with a control character");
    }
    if layout == Layout::Flat && name.len() > MAX_FLAT_NAME_BYTES {
        return Some("a name longer than 100 bytes");
    }
    if name.len() > MAX_PATH_BYTES || name.split('/').any(|c| c.len() > MAX_COMPONENT_BYTES) {
        return Some("a name that is too long");
    }
    if name.split('/').count() > MAX_DEPTH {
        return Some("more than 32 directories deep");
    }
    if name == "." {
        return None;
    }
    if name.split('/').any(|component| matches!(component, "" | "." | "..")) {
        return Some("not a plain path below the directory");
    }
    let is_ours = |component: &str| component.starts_with('.') && component.ends_with(".restage");
    name.split('/').any(is_ours).then_some("a name that restage itself uses")
}

/// Why this entry is in no backup; reads well after "is".
#[must_use]
pub fn unfit(entry: &Entry, layout: Layout) -> Option<&'static str> {
    if let Some(why) = unfit_name(&entry.name, layout) {
        return Some(why);
    }
    match &entry.kind {
        Kind::File { .. } if entry.name == "." => Some("no name of a file"),
        Kind::File { .. } => None,
        _ if layout == Layout::Flat => Some("not a regular file"),
        Kind::Directory => None,
        Kind::Symlink { .. } if entry.name == "." => Some("no name of a link"),
        Kind::Symlink { target } => unfit_target(&entry.name, target),
    }
}

/// Why a link may not point there.
///
/// Every parent of an entry is a directory and no link, so leading `..` lead upwards in the tree one
/// directory each. What follows goes down, through directories or through links of which the same is
/// true: nothing leads out.
fn unfit_target(name: &str, target: &str) -> Option<&'static str> {
    const OUT: &str = "a link that leads out of the backup";
    if target.is_empty() || target.len() > MAX_PATH_BYTES || target.chars().any(char::is_control) {
        return Some("a link with a target that is none");
    }
    if target.starts_with('/') {
        return Some(OUT);
    }
    let ups = target.split('/').take_while(|component| *component == "..").count();
    if ups > name.split('/').count() - 1 {
        return Some(OUT);
    }
    let mut down = target.split('/').skip(ups);
    down.any(|component| {
        matches!(component, "" | "." | "..") || component.len() > MAX_COMPONENT_BYTES
    })
    .then_some("a link whose target is not plain: leading `..`, then names")
}
