//! File systems with what they promise, and no more.
//!
//! *ext4* (data=ordered): the names of a directory change in the order in which they were changed, each
//! call whole, and a sync of the directory makes them durable; content is durable once its file is synced,
//! and before that may be missing, or be there in part. A journal that cannot be written makes it
//! read-only. Less is promised than ext4 keeps, whose every sync brings all that was done before: what
//! restage needs durable it has to sync itself, as on XFS.
//!
//! *FAT*: nothing is ordered and a rename is not one change. A name, the length in its directory entry,
//! the chain of clusters and the content survive each by itself: a name without a length is an empty
//! file, a length without a chain cannot be read, and a chain without content is garbage. A sync of the
//! file brings all of its own, but not its name (Linux brings that of one that is not empty; nobody has
//! promised it); a sync of the directory brings names and chains. A repair
//! (`fsck.fat -a`) empties what cannot be read and what shares its clusters. An error that the kernel
//! meets makes it read-only until it is mounted again (`errors=remount-ro`), unless restage mounted it.
//! A directory may be looked at only when it was read since the mount (hazard H38).
//!
//! Not modelled: names that are lost although they were synced, sectors torn inside, a full journal.

mod handles;
mod images;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, OnceLock};

pub use handles::{root, root_path};

/// What is read where the content was lost.
const GARBAGE: u8 = 0xf7;
/// What a file takes its space in.
const CLUSTER_BYTES: usize = 4096;
/// So many entries a directory grows by: those of the smallest cluster.
const CLUSTER_ENTRIES: usize = 16;
/// The number of the root.
const ROOT: u64 = 1;

/// Whose promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavor {
    /// FAT's.
    Fat,
    /// Those of ext4.
    Ext4,
}

#[derive(Default)]
struct Content {
    bytes: Vec<u8>,
    digest: OnceLock<u64>,
}

impl Clone for Content {
    fn clone(&self) -> Self {
        Self { bytes: self.bytes.clone(), digest: OnceLock::new() }
    }
}

impl Content {
    fn digest(&self) -> u64 {
        *self.digest.get_or_init(|| {
            let mut hasher = DefaultHasher::new();
            without_prose(&self.bytes).unwrap_or(&self.bytes).hash(&mut hasher);
            hasher.finish()
        })
    }
}

/// What counts of a whole note or report: which words a failure was told in, which differ with the call
/// that failed, makes no machine another one.
fn without_prose(bytes: &[u8]) -> Option<&[u8]> {
    let text = std::str::from_utf8(bytes).ok()?;
    let is_whole = text.trim_end().ends_with("}}");
    if is_whole && text.starts_with("{\"format\":\"restage-note\"") {
        return Some(b"a note");
    }
    if is_whole && text.starts_with("{\"format\":\"restage-report\"") {
        let (_, outcome) = text.split_once("\"outcome\":\"")?;
        return Some(outcome.split_once('"')?.0.as_bytes());
    }
    None
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Slot {
    number: u64,
    /// On FAT the length is a part of the directory entry.
    bytes: usize,
}

#[derive(Clone, Default)]
struct File {
    content: Arc<Content>,
    /// On FAT: its clusters are linked.
    is_chained: bool,
}

#[derive(Clone)]
enum Item {
    File(File),
    Directory(Arc<BTreeMap<OsString, Slot>>),
}

/// What is on the medium, or what programs see.
type Tree = BTreeMap<u64, Item>;

#[derive(Clone, Debug)]
enum Change {
    /// A name gets another meaning, or none.
    Name { directory: u64, name: OsString, number: Option<u64>, is_directory: bool },
    /// FAT: the length in a directory entry.
    Length { directory: u64, name: OsString, number: u64 },
    /// FAT: the clusters of a file are linked.
    Chained { number: u64 },
    /// FAT: they are free.
    Freed { number: u64 },
    /// The content of a file.
    Content { number: u64 },
}

#[derive(Clone, Debug)]
struct Pending {
    change: Change,
    /// Changes of one call: on ext4 they survive together.
    call: u64,
    is_lost: bool,
    /// It is on the medium, and is seen there once the name is that it belongs to.
    is_synced: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Whole,
    Half,
}

/// A file system.
#[derive(Clone)]
pub struct Files {
    flavor: Flavor,
    medium: Arc<Tree>,
    seen: Arc<Tree>,
    pending: Vec<Pending>,
    next: u64,
    calls: u64,
    is_read_only: bool,
    /// So many clusters, names and content together; none is room for everything.
    pub clusters: Option<usize>,
    /// FAT: an error that the kernel meets makes it read-only. Not so where restage mounts it.
    pub errors_remount_ro: bool,
    /// FAT: so many entries of 32 bytes each directory has clusters for.
    rooms: BTreeMap<u64, usize>,
    /// The same on the medium.
    durable_rooms: BTreeMap<u64, usize>,
    /// Directories that were read from the medium since it was mounted, or made.
    read: BTreeSet<u64>,
    /// What was done that must not be done, where no machine at rest shows it.
    pub wrong: Option<&'static str>,
}

/// What is at a path, for assertions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// A file with this content.
    File(Vec<u8>),
    /// A file that cannot be read.
    Unreadable,
    /// A directory.
    Directory,
}

impl Files {
    /// An empty one.
    pub fn new(flavor: Flavor) -> Self {
        let tree = Arc::new(Tree::from([(ROOT, Item::Directory(Arc::default()))]));
        Self {
            flavor,
            medium: tree.clone(),
            seen: tree,
            pending: Vec::new(),
            next: ROOT + 1,
            calls: 0,
            is_read_only: false,
            clusters: None,
            errors_remount_ro: false,
            rooms: BTreeMap::new(),
            durable_rooms: BTreeMap::new(),
            read: BTreeSet::from([ROOT]),
            wrong: None,
        }
    }

    /// Directories have no more room than for what is in them, as if by a program that knows nothing of
    /// that.
    pub fn narrow(&mut self) {
        self.rooms.clear();
        self.durable_rooms.clear();
    }

    /// So many entries of 32 bytes a directory has clusters for.
    fn entries(&self, directory: u64) -> usize {
        self.rooms.get(&directory).copied().unwrap_or(CLUSTER_ENTRIES)
    }

    /// The size of a directory, as if it gave back what names do not need any more: FAT's does not. Room
    /// for names is made by fewer calls that way, each time as at the first.
    fn bytes_of_directory(&self, number: u64) -> u64 {
        match self.flavor {
            Flavor::Fat => 32 * room_for(self.names(number).keys()) as u64,
            Flavor::Ext4 => 0,
        }
    }

    /// What is in a directory has to have room.
    fn grow(&mut self, directory: u64) {
        let Some(Item::Directory(names)) = self.seen.get(&directory) else { return };
        let needed = room_for(names.keys());
        let room = self.entries(directory);
        if self.flavor == Flavor::Fat && needed > room {
            let is_journal = |name: &OsString| name.as_encoded_bytes().ends_with(b".JNL");
            if names.keys().any(is_journal) {
                // A cut may leave neither of them readable.
                self.wrong = Some("restage's directory on the ESP grows beside a journal");
            }
            self.rooms.insert(directory, needed);
        }
    }

    /// The directories on the way to `path`, and all below it, are read from the medium.
    fn read_ahead(&mut self, path: &str) {
        let mut found = BTreeSet::from([ROOT]);
        for component in path.split('/') {
            self.read.extend(&found);
            found = self.directories_in(&found, |name| name.eq_ignore_ascii_case(component));
        }
        while !found.is_empty() {
            self.read.extend(&found);
            found = self.directories_in(&found, |_| true);
        }
    }

    fn directories_in(
        &self,
        these: &BTreeSet<u64>,
        is_it: impl Fn(&OsStr) -> bool,
    ) -> BTreeSet<u64> {
        let named = these.iter().flat_map(|number| names(&self.seen, *number).iter());
        let numbers = named.filter(|(name, _)| is_it(name)).map(|(_, slot)| slot.number);
        numbers.filter(|number| matches!(self.seen[number], Item::Directory(_))).collect()
    }

    /// As after a mount: a machine that is reset while its power stays has none of them in its memory.
    pub fn forget_what_was_read(&mut self) {
        self.read.clear();
    }

    /// A directory is looked at, or what is in it. Linux frees the clusters of one on FAT that it cannot
    /// read; so it has to be read before.
    fn look_at(&mut self, directory: u64) {
        if self.flavor == Flavor::Fat && !self.read.contains(&directory) {
            self.wrong = Some("a directory on the ESP is looked at that was not read first");
        }
    }

    /// The path of a directory; none when it has no name any more.
    pub fn path_of(&self, number: u64) -> Option<String> {
        if number == ROOT {
            return Some(String::new());
        }
        self.seen.iter().find_map(|(parent, item)| {
            let Item::Directory(names) = item else { return None };
            let (name, _) = names.iter().find(|(_, slot)| slot.number == number)?;
            Some(format!("{}/{}", self.path_of(*parent)?, name.to_string_lossy()))
        })
    }

    /// How many clusters are taken.
    pub fn used_clusters(&self) -> usize {
        let taken = |number: &u64| match &self.seen[number] {
            Item::Directory(_) => 1,
            Item::File(file) => file.content.bytes.len().div_ceil(CLUSTER_BYTES),
        };
        reached(&self.seen).iter().map(taken).sum()
    }

    /// So many clusters are free.
    fn free_clusters(&self) -> usize {
        self.clusters.map_or(usize::MAX, |all| all.saturating_sub(self.used_clusters()))
    }

    /// Everything in it, by path.
    pub fn all(&self) -> BTreeMap<String, Found> {
        let mut found = BTreeMap::new();
        self.all_below(ROOT, "", &mut found);
        found
    }

    fn all_below(&self, directory: u64, prefix: &str, found: &mut BTreeMap<String, Found>) {
        for (name, slot) in self.names(directory).iter() {
            let path = format!("{prefix}{}", name.to_string_lossy());
            let is = match &self.seen[&slot.number] {
                Item::Directory(_) => {
                    self.all_below(slot.number, &format!("{path}/"), found);
                    Found::Directory
                }
                Item::File(file) => match self.content(file, *slot) {
                    Some(bytes) => Found::File(bytes),
                    None => Found::Unreadable,
                },
            };
            found.insert(path, is);
        }
    }

    fn names(&self, directory: u64) -> Arc<BTreeMap<OsString, Slot>> {
        names(&self.seen, directory).clone()
    }

    /// The bytes of a file, as its entry has them; none where the chain is broken.
    fn content(&self, file: &File, slot: Slot) -> Option<Vec<u8>> {
        let mut bytes = file.content.bytes.clone();
        if self.flavor == Flavor::Fat {
            if slot.bytes > 0 && !file.is_chained {
                return None;
            }
            bytes.resize(slot.bytes, GARBAGE);
        }
        Some(bytes)
    }

    /// A file loses its name. What may be secret has to be overwritten, and that on the medium: else it stays
    /// readable in free clusters. Of one that cannot be read that cannot be asked.
    fn free(&mut self, name: &OsStr, slot: Slot) {
        let Some(Item::File(file)) = self.seen.get(&slot.number) else { return };
        if is_open_to_all(name) || self.is_broken(slot) {
            return;
        }
        let is_pending = |pending: &Pending| {
            matches!(pending.change, Change::Content { number } if number == slot.number)
                && !pending.is_synced
                && !pending.is_lost
        };
        // Of one that has lost its length nobody can overwrite more than this.
        let bytes = self.content(file, slot).unwrap_or_default();
        if bytes.iter().any(|byte| *byte != 0) {
            self.wrong = Some("a file is removed that was not overwritten");
        } else if !bytes.is_empty() && self.pending.iter().any(is_pending) {
            self.wrong = Some("a file is removed before its zeros are durable");
        }
    }

    fn is_broken(&self, slot: Slot) -> bool {
        matches!(&self.seen[&slot.number], Item::File(file)
            if self.flavor == Flavor::Fat && slot.bytes > 0 && !file.is_chained)
    }

    pub(super) fn digest(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.digest_below(ROOT, &mut hasher);
        // On ext4 restage knows directories by their numbers.
        let next = (self.flavor == Flavor::Ext4).then_some(self.next);
        (next, &self.durable_rooms, self.wrong).hash(&mut hasher);
        hasher.finish()
    }

    fn digest_below(&self, directory: u64, hasher: &mut DefaultHasher) {
        let names = names(&self.seen, directory);
        // Which fillers a cut has left, and how many, makes no machine another one.
        let fillers = names.keys().filter(|name| is_filler(name)).count();
        (names.len() - fillers, fillers > 0).hash(hasher);
        for (name, slot) in names.iter().filter(|(name, _)| !is_filler(name)) {
            name.hash(hasher);
            match &self.seen[&slot.number] {
                Item::Directory(_) => {
                    let number = (self.flavor == Flavor::Ext4).then_some(slot.number);
                    number.hash(hasher);
                    self.digest_below(slot.number, hasher);
                }
                Item::File(file) => {
                    let is_shown = slot.bytes.cmp(&file.content.bytes.len());
                    (is_shown, file.is_chained, file.content.digest()).hash(hasher);
                }
            }
        }
    }

    pub(super) fn lose(&mut self) {
        for pending in &mut self.pending {
            pending.is_lost = true;
        }
        self.is_read_only |= self.flavor == Flavor::Ext4;
    }

    /// Something was changed: programs see it, and a cut may lose it.
    fn change(&mut self, changes: Vec<Change>) {
        self.calls += 1;
        for change in changes {
            let (seen, flavor, now) = (&mut self.seen, self.flavor, None);
            apply(Arc::make_mut(seen), now, flavor, &change, Part::Whole);
            let is_there = |pending: &Pending| match (&pending.change, &change) {
                (Change::Content { number: one }, Change::Content { number: other })
                | (Change::Chained { number: one }, Change::Chained { number: other }) => {
                    one == other && !pending.is_lost
                }
                _ => false,
            };
            if let Change::Name { directory, number: Some(_), .. } = &change {
                self.grow(*directory);
            }
            if let Some(there) = self.pending.iter_mut().find(|pending| is_there(pending)) {
                there.is_synced = false;
            } else {
                let call = self.calls;
                self.pending.push(Pending { change, call, is_lost: false, is_synced: false });
            }
        }
    }

    /// Makes durable what `which` says.
    fn settle(&mut self, which: impl Fn(&Change) -> bool) {
        for pending in &mut self.pending {
            pending.is_synced |= !pending.is_lost && which(&pending.change);
        }
        loop {
            let before = self.pending.len();
            for pending in std::mem::take(&mut self.pending) {
                if !pending.is_synced || !is_reached(&self.medium, &pending.change) {
                    self.pending.push(pending);
                    continue;
                }
                let (medium, seen) = (&mut self.medium, Some(&*self.seen));
                apply(Arc::make_mut(medium), seen, self.flavor, &pending.change, Part::Whole);
            }
            if self.pending.len() == before {
                break;
            }
        }
        if self.pending.is_empty() {
            self.medium = self.seen.clone();
        }
    }

    fn sync_file(&mut self, number: u64) {
        self.settle(|change| match change {
            Change::Content { number: this } | Change::Length { number: this, .. } => {
                *this == number
            }
            Change::Name { .. } => false,
            Change::Chained { .. } | Change::Freed { .. } => true,
        });
    }

    fn sync_directory(&mut self, number: u64) {
        if let Some(room) = self.rooms.get(&number) {
            self.durable_rooms.insert(number, *room);
        }
        self.settle(|change| match change {
            Change::Content { .. } | Change::Length { .. } => false,
            Change::Name { directory, .. } => *directory == number,
            Change::Chained { .. } | Change::Freed { .. } => true,
        });
    }
}

/// How many entries of 32 bytes a name takes: one for 8.3 characters, else one for 13 of them besides.
fn entries(name: &OsStr) -> usize {
    let bytes = name.as_encoded_bytes();
    let (stem, extension) = match bytes.iter().position(|byte| *byte == b'.') {
        Some(dot) => (&bytes[..dot], &bytes[dot + 1..]),
        None => (bytes, &b""[..]),
    };
    let is_short = stem.len() <= 8 && extension.len() <= 3 && !extension.contains(&b'.');
    let is_upper = !bytes.iter().any(u8::is_ascii_lowercase);
    if is_short && is_upper { 1 } else { 1 + bytes.len().div_ceil(13) }
}

/// Whether it takes room for other names.
pub(super) fn is_filler(name: &OsStr) -> bool {
    name.to_str().is_some_and(|name| name.contains(".room") || name.contains(".Z"))
}

/// Whether a file of this name holds no secret: requests, journals, reports and their like. All others may.
fn is_open_to_all(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    let is_ours = name.len() == 12
        && name[..8].iter().all(u8::is_ascii_hexdigit)
        && name[8] == b'.'
        && name[9..].iter().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit());
    is_ours && ![&b"SED"[..], b"TAR", b"ARC"].contains(&&name[9..])
}

/// The entries of the clusters that these names need, and the directory's two own.
fn room_for<'a>(names: impl Iterator<Item = &'a OsString>) -> usize {
    let needed = 2 + names.map(|name| entries(name)).sum::<usize>();
    needed.next_multiple_of(CLUSTER_ENTRIES)
}

fn names(tree: &Tree, directory: u64) -> &Arc<BTreeMap<OsString, Slot>> {
    match &tree[&directory] {
        Item::Directory(names) => names,
        Item::File(_) => panic!("{directory} is no directory"),
    }
}

fn put(tree: &mut Tree, directory: u64, name: &OsStr, slot: Slot) {
    if let Some(Item::Directory(names)) = tree.get_mut(&directory) {
        Arc::make_mut(names).insert(name.to_owned(), slot);
    }
}

/// Whether what a change is about is there: a directory, a file, a file under this name.
fn is_reached(tree: &Tree, change: &Change) -> bool {
    match change {
        Change::Name { directory, .. } => tree.contains_key(directory),
        Change::Length { directory, name, number } => {
            tree.contains_key(directory)
                && names(tree, *directory).get(name).is_some_and(|slot| slot.number == *number)
        }
        Change::Chained { number } | Change::Freed { number } | Change::Content { number } => {
            tree.contains_key(number)
        }
    }
}

/// The numbers that have a name.
fn reached(tree: &Tree) -> BTreeSet<u64> {
    let mut reached = BTreeSet::from([ROOT]);
    let mut open = vec![ROOT];
    while let Some(directory) = open.pop() {
        for slot in names(tree, directory).values() {
            reached.insert(slot.number);
            if matches!(tree[&slot.number], Item::Directory(_)) {
                open.push(slot.number);
            }
        }
    }
    reached
}

/// One change, on a tree; `seen` has the content as programs saw it last.
fn apply(tree: &mut Tree, seen: Option<&Tree>, flavor: Flavor, change: &Change, part: Part) {
    let file = |tree: &Tree, number: &u64| match tree.get(number) {
        Some(Item::File(file)) => Some(file.clone()),
        _ => None,
    };
    match change {
        Change::Name { directory, name, number: Some(number), is_directory } => {
            if !tree.contains_key(directory) {
                return; // its directory was lost
            }
            tree.entry(*number).or_insert_with(|| {
                if *is_directory {
                    Item::Directory(Arc::default())
                } else {
                    Item::File(File::default())
                }
            });
            // On FAT the length comes by itself; programs see the right one at once.
            let bytes = match (flavor, seen, file(tree, number)) {
                (Flavor::Fat, None, Some(file)) => file.content.bytes.len(),
                _ => 0,
            };
            put(tree, *directory, name, Slot { number: *number, bytes });
        }
        Change::Name { directory, name, number: None, .. } => {
            if let Some(Item::Directory(names)) = tree.get_mut(directory) {
                Arc::make_mut(names).remove(name);
            }
        }
        Change::Length { directory, name, number } => {
            let content = file(seen.unwrap_or(tree), number);
            let bytes = content.map_or(0, |file| file.content.bytes.len());
            if let Some(Item::Directory(names)) = tree.get_mut(directory)
                && let Some(slot) = Arc::make_mut(names).get_mut(name)
                && slot.number == *number
            {
                slot.bytes = bytes;
            }
        }
        Change::Chained { number } | Change::Freed { number } => {
            if let Some(Item::File(file)) = tree.get_mut(number) {
                file.is_chained = matches!(change, Change::Chained { .. });
            }
        }
        Change::Content { number } => {
            let Some(new) = seen.and_then(|seen| file(seen, number)) else { return };
            if let Some(Item::File(file)) = tree.get_mut(number) {
                file.content = match part {
                    Part::Whole => new.content,
                    Part::Half => {
                        let mut bytes = file.content.bytes.clone();
                        bytes.resize(new.content.bytes.len(), GARBAGE);
                        let half = bytes.len() / 2;
                        bytes[..half].copy_from_slice(&new.content.bytes[..half]);
                        Arc::new(Content { bytes, digest: OnceLock::new() })
                    }
                };
            }
        }
    }
}
