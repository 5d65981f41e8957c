//! What the state of an OS is made of, before a restore and in the backup: IncusOS's plain files, and the
//! tree of another OS.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};
use std::path::Path;

use restage::format::archive::{Attributes, Entry, Kind, Layout, Writer};
use restage::profile::Profile;
use restage_campaign::cases::restore::state_text;
use restage_campaign::model::slots::{NEW, OLD, OWN};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, XattrFlags};

use super::write;
use crate::rig::{Node, said, tree};

pub const STATE: &str = "var/lib/incus-os/";
/// Of the tree's files.
const COLOUR: &str = "user.colour";

pub type Files = BTreeMap<String, Node>;

/// Which of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Plain files, with a state file that lists passphrases of two volumes.
    Flat,
    /// Directories, links, owners and attributes; no state file, no passphrases.
    Tree,
}

impl Shape {
    pub fn profile(self) -> Profile {
        let mut profile = Profile::incusos().unwrap();
        if self == Self::Tree {
            let state = profile.state.as_mut().unwrap();
            state.layout = Layout::Tree;
            (state.settings, state.local_data_key, state.health_check) = (None, None, None);
            state.precious = vec!["keys/*.key".to_owned()];
            state.volumes.clear();
        }
        profile
    }

    /// The backup that is restored.
    pub fn archive(self) -> Result<Vec<u8>, String> {
        let entries = match self {
            Self::Flat => vec![
                (file("state.txt", 0o600), state_text("there", NEW)),
                (file("zpool.local.key", 0o600), "local, of there".to_owned()),
                (file("recovery.root.key", 0o600), "of another machine".to_owned()),
            ],
            Self::Tree => vec![
                (directory(".", 0o751), String::new()),
                (directory("keys", 0o700), String::new()),
                (file("keys/zpool.local.key", 0o400), "local, of there".to_owned()),
                (directory("data", 0o2770), String::new()),
                (directory("data/empty", 0o500), String::new()),
                (file("data/text", 0o4755), "there".to_owned()),
                (link("data/link", "text"), String::new()),
            ],
        };
        let layout = if self == Self::Flat { Layout::Flat } else { Layout::Tree };
        let mut archive = Writer::new(Vec::new(), layout);
        for (mut entry, text) in entries {
            if let Kind::File { bytes } = &mut entry.kind {
                *bytes = text.len() as u64;
            }
            archive.append(&entry, &mut text.as_bytes()).map_err(said)?;
        }
        archive.finish().map_err(said)
    }

    /// Makes the state before.
    pub fn make(self, root: &Path) {
        let state = root.join(STATE);
        match self {
            Self::Flat => {
                for (name, text) in [
                    ("state.txt", state_text("here", OLD).as_str()),
                    ("recovery.root.key", OWN[0]),
                    ("recovery.swap.key", OWN[1]),
                    ("zpool.local.key", "local, of here"),
                    ("zpool.mine.key", "mine"),
                ] {
                    write(&state.join(name), text.as_bytes());
                }
            }
            Self::Tree => {
                for (name, text) in [
                    ("keys/zpool.local.key", "local, of here"),
                    ("keys/zpool.mine.key", "mine"),
                    ("data/deep/text", "here"),
                    ("data/run-me", "#!/bin/sh"),
                ] {
                    write(&state.join(name), text.as_bytes());
                }
                symlink("deep/text", state.join("data/link")).unwrap();
                dress(&state);
            }
        }
    }

    /// All that a file system holds; of a tree also what belongs to each name, as a file of another name.
    pub fn look(self, root: &Path) -> Files {
        let mut all = tree(root);
        if self == Self::Tree {
            let top = STATE.trim_end_matches('/');
            let names: Vec<String> = all
                .keys()
                .filter(|name| *name == top || name.starts_with(STATE))
                .cloned()
                .collect();
            for name in names {
                let text = attributes(&root.join(&name));
                let name = format!("{STATE}?{}", &name[top.len()..]);
                all.insert(name, Node::File(text.into_bytes()));
            }
        }
        all
    }
}

/// Gives the names of the old tree what belongs to them.
fn dress(state: &Path) {
    let set = |name: &str, mode: u32, owner: u32| {
        lchown(state.join(name), Some(owner), Some(owner + 1)).unwrap();
        fs::set_permissions(state.join(name), Permissions::from_mode(mode)).unwrap();
    };
    set("data/run-me", 0o4755, 0);
    set("data/deep/text", 0o640, 1000);
    set("data/deep", 0o2770, 1000);
    set("keys/zpool.mine.key", 0o400, 0);
    set("", 0o751, 0);
    for name in ["data/deep", "data/deep/text"] {
        rustix::fs::setxattr(state.join(name), COLOUR, b"red\0\n", XattrFlags::empty()).unwrap();
    }
    let times = |seconds| {
        let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
        Timestamps { last_access: time, last_modification: time }
    };
    // Parents after what is in them.
    let names = ["data/link", "data/run-me", "data/deep/text", "data/deep", "data", "keys", ""];
    for (seconds, name) in (1_000_000..).zip(names) {
        let path = state.join(name);
        rustix::fs::utimensat(CWD, path, &times(seconds), AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
}

/// What belongs to a name, in words.
fn attributes(path: &Path) -> String {
    let Ok(it) = fs::symlink_metadata(path) else { return "nothing that can be read".to_owned() };
    let mut text = format!("{:o} {}:{} of {}", it.mode(), it.uid(), it.gid(), it.mtime());
    if it.is_symlink() {
        let target = fs::read_link(path).unwrap_or_default();
        let _ = write!(text, " to {}", target.display());
        return text;
    }
    let mut colour = [0; 64];
    if let Ok(length) = rustix::fs::getxattr(path, COLOUR, &mut colour) {
        let _ = write!(text, " {}", colour[..length].escape_ascii());
    }
    text
}

fn with(name: &str, kind: Kind, mode: u32) -> Entry {
    let xattrs = match kind {
        Kind::Symlink { .. } => BTreeMap::new(),
        _ if name.starts_with("data/") => [(COLOUR.to_owned(), b"blue".to_vec())].into(),
        _ => BTreeMap::new(),
    };
    let attributes = Attributes { mode, owner: 12, group: 13, modified: 2_000_000, xattrs };
    Entry { name: name.to_owned(), kind, attributes }
}

fn file(name: &str, mode: u32) -> Entry {
    with(name, Kind::File { bytes: 0 }, mode)
}

fn directory(name: &str, mode: u32) -> Entry {
    with(name, Kind::Directory, mode)
}

fn link(name: &str, target: &str) -> Entry {
    with(name, Kind::Symlink { target: target.to_owned() }, 0o777)
}
