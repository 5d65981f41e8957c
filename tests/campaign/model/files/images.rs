//! What a cut leaves of a file system.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{
    CLUSTER_ENTRIES, Change, File, Files, Flavor, Item, Part, Slot, Tree, apply, is_filler, put,
    reached, room_for,
};

/// Up to so many unsynced changes, all their subsets are tried.
const MAX_SUBSETS: usize = 6;

impl Files {
    /// What may be on the medium when the power goes, as it is mounted at the next boot.
    pub(in crate::model) fn images(&self) -> Vec<Self> {
        let mut images = Vec::new();
        let synced = (0..self.pending.len()).filter(|index| self.pending[*index].is_synced);
        let synced: Vec<_> = synced.map(|index| (index, Part::Whole)).collect();
        for mut chosen in self.choices() {
            let mut tree = self.medium.clone();
            chosen.extend(&synced);
            chosen.sort_by_key(|(index, _)| *index);
            for (index, part) in chosen {
                let change = &self.pending[index].change;
                apply(Arc::make_mut(&mut tree), Some(&self.seen), self.flavor, change, part);
            }
            self.mounted(tree, &mut images);
        }
        images
    }

    /// Which changes survive.
    fn choices(&self) -> Vec<Vec<(usize, Part)>> {
        let open: Vec<usize> =
            (0..self.pending.len()).filter(|index| !self.pending[*index].is_synced).collect();
        let all = || open.iter().copied();
        let whole = |indices: Vec<usize>| indices.into_iter().map(|i| (i, Part::Whole)).collect();
        let mut choices: Vec<Vec<(usize, Part)>> = vec![Vec::new()];
        if open.is_empty() {
            return choices;
        }
        let is_content = |i: &usize| matches!(self.pending[*i].change, Change::Content { .. });
        let contents: Vec<usize> = all().filter(is_content).collect();
        match self.flavor {
            Flavor::Ext4 => {
                for names in self.beginnings(&open) {
                    for subset in subsets(&contents) {
                        choices.push(whole([names.clone(), subset].concat()));
                    }
                }
            }
            Flavor::Fat => {
                choices.extend(subsets(&all().collect::<Vec<_>>()).into_iter().map(whole));
            }
        }
        for half in contents {
            let part = |i: usize| if i == half { Part::Half } else { Part::Whole };
            choices.push(all().map(|i| (i, part(i))).collect());
        }
        choices.push(whole(all().collect()));
        choices
    }

    /// ext4: of the names of each directory, what was changed until some call, in all combinations.
    fn beginnings(&self, open: &[usize]) -> Vec<Vec<usize>> {
        let mut directories = BTreeMap::<u64, Vec<usize>>::new();
        for index in open {
            if let Change::Name { directory, .. } = &self.pending[*index].change {
                directories.entry(*directory).or_default().push(*index);
            }
        }
        directories.values().fold(vec![Vec::new()], |before, names| {
            let mut calls: Vec<u64> = names.iter().map(|i| self.pending[*i].call).collect();
            calls.dedup();
            let until = |last| names.iter().copied().filter(move |i| self.pending[*i].call <= last);
            let with = |last| {
                before.iter().map(move |before| before.iter().copied().chain(until(last)).collect())
            };
            std::iter::once(0).chain(calls).flat_map(with).collect()
        })
    }

    /// A tree as it is found by the next boot: as it is, and repaired where it is not sound.
    fn mounted(&self, mut tree: Arc<Tree>, images: &mut Vec<Self>) {
        let reached = reached(&tree);
        if reached.len() < tree.len() {
            Arc::make_mut(&mut tree).retain(|number, _| reached.contains(number));
        }
        // What survived has its clusters. Those that only fillers have are room that was not yet made.
        let mut rooms = self.durable_rooms.clone();
        for (number, item) in tree.iter() {
            let Item::Directory(names) = item else { continue };
            let needed = room_for(names.keys().filter(|name| !is_filler(name)));
            if needed > CLUSTER_ENTRIES && rooms.get(number).is_none_or(|room| *room < needed) {
                rooms.insert(*number, needed);
            }
        }
        let image = Self {
            flavor: self.flavor,
            medium: tree.clone(),
            seen: tree,
            pending: Vec::new(),
            next: self.next,
            calls: 0,
            is_read_only: false,
            clusters: self.clusters,
            errors_remount_ro: false,
            rooms: rooms.clone(),
            durable_rooms: rooms,
            read: BTreeSet::new(),
            wrong: self.wrong,
        };
        let mut repaired = image.clone();
        let is_changed = repaired.repair();
        // The image with everything in it stays the last.
        if is_changed {
            images.push(repaired);
        }
        images.push(image);
    }

    fn repair(&mut self) -> bool {
        let mut is_changed = false;
        let mut owners = BTreeSet::new();
        let directories: Vec<u64> = self
            .seen
            .iter()
            .filter(|(_, item)| matches!(item, Item::Directory(_)))
            .map(|(number, _)| *number)
            .collect();
        for directory in directories {
            for (name, slot) in self.names(directory).iter() {
                let slot = *slot;
                let is_directory = matches!(self.seen[&slot.number], Item::Directory(_));
                let is_shared = !is_directory && !owners.insert(slot.number);
                if self.is_broken(slot) || (is_shared && slot.bytes > 0) {
                    // Its own file again, and empty.
                    let number = self.next;
                    self.next += 1;
                    let seen = Arc::make_mut(&mut self.seen);
                    seen.insert(number, Item::File(File::default()));
                    put(seen, directory, name, Slot { number, bytes: 0 });
                    is_changed = true;
                }
            }
        }
        self.medium = self.seen.clone();
        is_changed
    }
}

/// All subsets of few, each alone and each missing of many; not the empty one, nor the whole.
fn subsets(indices: &[usize]) -> Vec<Vec<usize>> {
    let count = indices.len();
    if count <= MAX_SUBSETS {
        let chosen = |mask: u32| (0..count).filter(move |i| mask & (1 << i) != 0);
        return (0..1_u32 << count).map(|m| chosen(m).map(|i| indices[i]).collect()).collect();
    }
    let mut subsets = Vec::new();
    for one in indices {
        subsets.push(vec![*one]);
        subsets.push(indices.iter().copied().filter(|i| i != one).collect());
    }
    subsets
}
