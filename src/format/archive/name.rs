//! Names and link targets, and the order in which a tree's entries come.
//! Side: both. Pure.

use std::collections::BTreeSet;

use super::{Entry, Kind, Layout, shown};

/// ustar has room for so many bytes of a name.
pub(super) const MAX_NAME_BYTES: usize = 100;
/// Linux takes no longer names than these, and no longer targets.
const MAX_COMPONENT_BYTES: usize = 255;
const MAX_PATH_BYTES: usize = 4096;
const MAX_TARGET_BYTES: usize = 4095;
/// Trees deeper than this are not ours.
const MAX_COMPONENTS: usize = 32;
/// The top of a tree.
pub(super) const TOP: &str = ".";

const CONTROL: &str = "a control character in the name";
const OURS: &str = "a name that restage itself uses";
pub(super) const OF_WINDOWS: &str = "it begins as a path of Windows does";

/// Why an entry of this name is in no backup.
#[must_use]
pub fn unfit_name(name: &str, layout: Layout) -> Option<&'static str> {
    match layout {
        Layout::Flat => unfit_flat(name),
        Layout::Tree if name == TOP => None,
        Layout::Tree => unfit_path(name),
    }
}

fn unfit_flat(name: &str) -> Option<&'static str> {
    if name.is_empty() || is_dots(name) {
        return Some("no name of a file");
    }
    if name.contains('/') {
        return Some("not a plain name");
    }
    if name.chars().any(char::is_control) {
        return Some(CONTROL);
    }
    // Some programs take it for what lies between directories.
    if name.contains('\\') {
        return Some("a backslash in the name");
    }
    if is_of_windows(name) {
        return Some(OF_WINDOWS);
    }
    if name.len() > MAX_NAME_BYTES {
        return Some("the name is longer than 100 bytes");
    }
    is_ours(name).then_some(OURS)
}

fn unfit_path(path: &str) -> Option<&'static str> {
    if path.is_empty() {
        return Some("no name of a file");
    }
    if path.chars().any(char::is_control) {
        return Some(CONTROL);
    }
    if path.len() > MAX_PATH_BYTES {
        return Some("the path is longer than 4096 bytes");
    }
    if path.split('/').count() > MAX_COMPONENTS {
        return Some("more than 32 names in the path");
    }
    path.split('/').find_map(unfit_component)
}

/// One of the names of a path that has no control characters.
fn unfit_component(name: &str) -> Option<&'static str> {
    if name.is_empty() || is_dots(name) {
        return Some("not a plain path");
    }
    if name.len() > MAX_COMPONENT_BYTES {
        return Some("a name in the path is longer than 255 bytes");
    }
    is_ours(name).then_some(OURS)
}

/// Whether a path as an archive has it begins with a drive (`C:`) or a backslash, which some programs
/// leave out on every system. Behind a `./` it is a name like others.
pub(super) fn is_of_windows(path: &str) -> bool {
    match path.as_bytes() {
        [b'\\', ..] => true,
        [drive, b':', ..] => drive.is_ascii_alphabetic(),
        _ => false,
    }
}

fn is_dots(name: &str) -> bool {
    name == "." || name == ".."
}

/// restage's own directories and temporary files lie beside what they are for.
fn is_ours(name: &str) -> bool {
    name.starts_with('.') && name.ends_with(".restage")
}

/// Why the link `name` may not have this target: only what stays in the tree is accepted.
///
/// A target is some `..`, at most as many as directories lie between the link and the top, and then
/// plain names. No resolution of such links leaves the tree:
///
/// 1. A link lies in a directory of the tree, for [`Order`] demands that every parent is a directory,
///    and never another link. So the `..` of a target are followed from a real directory, and each
///    leads to its real parent: with no more of them than there are parents, the walk is in the tree.
/// 2. Each plain name leads from a directory of the tree to something in it, or to nothing. If that
///    is a link, it is resolved from the directory that holds it, which is 1 again. By induction on
///    the number of links followed (Linux gives up after 40) the walk goes on from something in the
///    tree.
/// 3. After a plain name there is no `..`: none is ever followed from where a link has led, which may
///    be nearer to the top than the names say.
pub(super) fn unfit_target(name: &str, target: &str) -> Option<&'static str> {
    if target.is_empty() {
        return Some("a link without a target");
    }
    if target.chars().any(char::is_control) {
        return Some("a control character in the target of the link");
    }
    if target.len() > MAX_TARGET_BYTES {
        return Some("the target of the link is longer than 4095 bytes");
    }
    if target.starts_with('/') {
        return Some("the target of the link is absolute");
    }
    let ups = target.split('/').take_while(|part| *part == "..").count();
    if ups > name.matches('/').count() {
        return Some("the target of the link lies outside");
    }
    let unfit = target.split('/').skip(ups).find_map(unfit_component);
    unfit.map(|_| "the target of the link is not some `..` and then plain names")
}

/// What an archive has had so far: nothing twice, and in a tree directories before what is in them.
pub(super) struct Order {
    layout: Layout,
    names: BTreeSet<String>,
    directories: BTreeSet<String>,
}

impl Order {
    pub(super) fn new(layout: Layout) -> Self {
        Self { layout, names: BTreeSet::new(), directories: BTreeSet::new() }
    }

    /// Takes the next entry, whose name is a fit one; the error says why it may not be the next.
    pub(super) fn add(&mut self, entry: &Entry) -> Result<(), String> {
        let name = entry.name.as_str();
        let is_directory = entry.kind == Kind::Directory;
        if self.names.contains(name) {
            return Err(format!("`{}` is there twice", shown(name.as_bytes())));
        }
        if self.layout == Layout::Tree {
            let parent = name.rsplit_once('/').map(|(parent, _)| parent);
            let why = if name == TOP && !is_directory {
                Some("the top of the tree is not a directory")
            } else if name == TOP && !self.names.is_empty() {
                Some("the top of the tree comes after something in it")
            } else if parent.is_some_and(|parent| !self.directories.contains(parent)) {
                Some("its directory does not come before it")
            } else {
                None
            };
            if let Some(why) = why {
                return Err(entry.refused(why));
            }
        }
        self.names.insert(name.to_owned());
        if is_directory {
            self.directories.insert(name.to_owned());
        }
        Ok(())
    }
}
