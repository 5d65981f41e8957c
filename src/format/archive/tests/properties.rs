//! What holds for every archive, and for every damage to one.

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

const LAYOUTS: [Layout; 2] = [Layout::Flat, Layout::Tree];

/// A small archive, and what is in it.
fn small(layout: Layout) -> (Vec<u8>, Contents) {
    let entries: Contents = match layout {
        Layout::Flat => {
            vec![(Entry::file("a", 5, 7), b"hello".to_vec()), (Entry::file("b", 0, 7), vec![])]
        }
        Layout::Tree => some_tree(),
    };
    (archive(layout, &entries), entries)
}

#[test]
fn an_archive_that_is_cut_anywhere_is_refused() {
    for layout in LAYOUTS {
        let (good, _) = small(layout);
        for length in 0..good.len() {
            refused(layout, &good[..length]);
        }
    }
}

#[test]
fn a_flipped_bit_anywhere_is_noticed_or_changes_nothing() {
    for layout in LAYOUTS {
        let (good, entries) = small(layout);
        for bit in 0..good.len() * 8 {
            let mut other = good.clone();
            other[bit / 8] ^= 1 << (bit % 8);
            // Time and system in the gzip header mean nothing here, nor do the bits after the last
            // code.
            if let Ok(read) = contents(layout, &other) {
                assert_eq!(read, entries, "bit {bit}");
            }
        }
    }
}

#[test]
fn a_byte_of_the_tar_that_is_changed_is_no_panic_and_keeps_every_rule() {
    for layout in LAYOUTS {
        let mut entries = small(layout).1;
        // A directory, a file with a pax header, and a link are enough of a tree.
        entries.truncate(3);
        entries.extend((layout == Layout::Tree).then(|| (link("etc/up", "../etc"), vec![])));
        let tar = gunzip(&archive(layout, &entries));
        for at in 0..tar.len() {
            for mask in [0xff, 0x80, 0x01] {
                let mut other = tar.clone();
                other[at] ^= mask;
                sum_up(&mut other, at / BLOCK);
                keeps_every_rule(layout, &other);
            }
        }
    }
}

#[test]
fn a_byte_of_a_header_that_is_changed_is_noticed() {
    for layout in LAYOUTS {
        let tar = gunzip(&small(layout).0);
        for at in 0..BLOCK {
            let mut other = tar.clone();
            other[at] ^= 1;
            let said = refused(layout, &uncompressed(&other));
            assert_eq!(said, "a header is damaged, or this is no tar archive");
        }
    }
}

/// Makes the checksum of a block right, as if it were a header.
fn sum_up(tar: &mut [u8], block: usize) {
    let block = &mut tar[block * BLOCK..][..BLOCK];
    if block[257..262] == *b"ustar" {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}

/// Whatever is accepted can be written, and is then read as the same.
fn keeps_every_rule(layout: Layout, tar: &[u8]) {
    if let Ok(read) = contents(layout, &uncompressed(tar)) {
        assert_eq!(contents(layout, &archive(layout, &read)).unwrap(), read);
    }
}

/// gzip without any effort.
fn uncompressed(tar: &[u8]) -> Vec<u8> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::none());
    gzip.write_all(tar).unwrap();
    gzip.finish().unwrap()
}

fn component() -> impl Strategy<Value = String> {
    let short = "[a-zA-Z0-9._ é=%\\\\'-]{1,12}";
    let long = "[a-zé]{60,120}";
    prop_oneof![8 => short, 2 => long, 1 => "[a-zA-Z]:[a-z\\\\:]{0,3}"]
        .prop_filter("a name", |name| unfit_name(name, Layout::Tree).is_none() && name != ".")
}

fn number() -> impl Strategy<Value = u32> {
    prop_oneof![Just(0), 0..u32::MAX, 0o777_7770..0o1000_0010_u32]
}

fn attributes() -> impl Strategy<Value = Attributes> {
    let modified = prop_oneof![0..=MAX_TIME, 0..2_000_000_000_u64];
    let value = prop::collection::vec(any::<u8>(), 0..40);
    let xattrs =
        prop::collection::btree_map("(user|trusted|security)\\.[a-zé=%23DD5 ]{1,90}", value, 0..3);
    (0..0o10000_u32, number(), number(), modified, xattrs).prop_map(
        |(mode, owner, group, modified, xattrs)| Attributes {
            mode,
            owner,
            group,
            modified,
            xattrs,
        },
    )
}

/// One more entry: in which directory, what, and where a link goes.
type Seed = (Index, String, Index, Vec<u8>, Index, Vec<String>, Attributes);

fn seed() -> impl Strategy<Value = Seed> {
    (
        any::<Index>(),
        component(),
        any::<Index>(),
        prop::collection::vec(any::<u8>(), 0..1500),
        any::<Index>(),
        prop::collection::vec(component(), 0..4),
        attributes(),
    )
}

/// A tree of them.
fn grown(top: Option<Attributes>, seeds: Vec<Seed>) -> Contents {
    let mut directories = vec![String::new()];
    let mut tree = Contents::new();
    if let Some(attributes) = top {
        let name = ".".to_owned();
        tree.push((Entry { name, kind: Kind::Directory, attributes }, vec![]));
    }
    for (parent, component, kind, content, ups, plain, attributes) in seeds {
        let parent = parent.get(&directories);
        let depth = parent.matches('/').count();
        let name = format!("{parent}{component}");
        if unfit_name(&name, Layout::Tree).is_some() || tree.iter().any(|(e, _)| e.name == name) {
            continue;
        }
        let ups = ups.index(depth + 1);
        let mut target = vec!["..".to_owned(); ups];
        target.extend(plain);
        let (kind, content) = match kind.index(3) {
            0 => {
                directories.push(format!("{name}/"));
                (Kind::Directory, vec![])
            }
            1 if !target.is_empty() => (Kind::Symlink { target: target.join("/") }, vec![]),
            _ => (Kind::File { bytes: content.len() as u64 }, content),
        };
        tree.push((Entry { name, kind, attributes }, content));
    }
    tree
}

fn tree() -> impl Strategy<Value = Contents> {
    (prop::option::of(attributes()), prop::collection::vec(seed(), 0..20))
        .prop_map(|(top, seeds)| grown(top, seeds))
}

proptest! {
    #[test]
    fn what_is_written_flat_is_read(
        files_in in prop::collection::btree_map(
            "[a-zA-Z0-9._ é-]{1,40}"
                .prop_filter("a name", |name| unfit_name(name, Layout::Flat).is_none()),
            (prop::collection::vec(any::<u8>(), 0..2000), 0..1_u64 << 40),
            0..12,
        )
    ) {
        let entries: Contents = files_in
            .into_iter()
            .map(|(name, (content, time))| (Entry::file(name, content.len() as u64, time), content))
            .collect();
        prop_assert_eq!(contents(Layout::Flat, &archive(Layout::Flat, &entries)).unwrap(), entries);
    }

    #[test]
    fn what_is_written_as_a_tree_is_read(tree in tree()) {
        let written = archive(Layout::Tree, &tree);
        prop_assert_eq!(&written, &archive(Layout::Tree, &tree));
        prop_assert_eq!(contents(Layout::Tree, &written).unwrap(), tree);
    }

    #[test]
    fn any_change_to_a_tar_is_no_panic_and_keeps_every_rule(
        tree in tree(),
        changes in prop::collection::vec((any::<Index>(), any::<u8>(), any::<bool>()), 1..6),
        swap in prop::option::of((any::<Index>(), any::<Index>())),
    ) {
        let mut tar = gunzip(&archive(Layout::Tree, &tree));
        let blocks = tar.len() / BLOCK;
        if let Some((one, other)) = swap {
            let block = tar[one.index(blocks) * BLOCK..][..BLOCK].to_vec();
            tar[other.index(blocks) * BLOCK..][..BLOCK].copy_from_slice(&block);
        }
        for (at, byte, is_summed) in changes {
            let at = at.index(tar.len());
            tar[at] = byte;
            if is_summed {
                sum_up(&mut tar, at / BLOCK);
            }
        }
        for layout in LAYOUTS {
            keeps_every_rule(layout, &tar);
        }
    }

    #[test]
    fn any_pax_header_is_no_panic_and_keeps_every_rule(
        records in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..200),
            "([0-9]{1,2} (path|linkpath|uid|mtime|size|SCHILY\\.xattr\\.[a%3D]{0,3})=[a-z0-9./]{0,5}\n){0,3}"
                .prop_map(String::into_bytes),
        ]
    ) {
        let parts = [pax_header(&records), header(b"x", 0, |_| {})];
        keeps_every_rule(Layout::Tree, &gunzip(&ended(&parts)));
    }

    #[test]
    fn a_link_that_is_accepted_stays_inside(
        links in prop::collection::vec((0..6_usize, "(\\.\\.|a|b|c|l[0-5])(/(\\.\\.|a|b|c|l[0-5])){0,4}"), 1..6),
        from in "(a|b|c|l[0-5])(/(a|b|c|l[0-5])){0,4}",
    ) {
        // Links in directories of different depths, as an archive would put them there.
        const PLACES: [&str; 6] = ["l0", "l1", "a/l2", "a/l3", "a/b/l4", "a/b/c/l5"];
        let mut tree: BTreeMap<String, Kind> =
            ["a", "a/b", "a/b/c"].map(|name| (name.to_owned(), Kind::Directory)).into();
        for (place, target) in links {
            if super::name::unfit_target(PLACES[place], &target).is_none() {
                tree.insert(PLACES[place].to_owned(), Kind::Symlink { target });
            }
        }
        prop_assert!(walk(&tree, &from));
    }
}

/// Resolves a path as a kernel does; false when it leaves the tree.
fn walk(tree: &BTreeMap<String, Kind>, path: &str) -> bool {
    let mut todo: Vec<String> = path.rsplit('/').map(str::to_owned).collect();
    let mut here: Vec<String> = Vec::new();
    let mut links = 0;
    while let Some(part) = todo.pop() {
        if part == ".." {
            if here.pop().is_none() {
                return false;
            }
            continue;
        }
        here.push(part);
        match tree.get(&here.join("/")) {
            Some(Kind::Symlink { target }) if links < 40 => {
                links += 1;
                here.pop();
                todo.extend(target.rsplit('/').map(str::to_owned));
            }
            Some(Kind::Directory) => {}
            _ => return true, // nothing, or a loop: an error, and inside
        }
    }
    true
}
