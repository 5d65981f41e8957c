use super::*;

type Tree = Vec<(Entry, Vec<u8>)>;
/// A header, and its content.
type Part<'a> = (Vec<u8>, &'a [u8]);

fn entry(name: &str, kind: Kind) -> Entry {
    let xattrs = BTreeMap::from([("user.colour".to_owned(), b"r\0d\n=".to_vec())]);
    let attributes =
        Attributes { mode: 0o4750, owner: 1000, group: 3_000_000, modified: 9, xattrs };
    Entry { name: name.to_owned(), kind, attributes }
}

fn directory(name: &str) -> Entry {
    entry(name, Kind::Directory)
}

fn link(name: &str, target: &str) -> Entry {
    entry(name, Kind::Symlink { target: target.to_owned() })
}

fn packed(tree: &Tree) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new(), Layout::Tree);
    for (entry, content) in tree {
        writer.append(entry, &mut content.as_slice()).unwrap();
    }
    writer.finish().unwrap()
}

fn unpacked(archive: &[u8]) -> Result<Tree, ReadError> {
    let mut tree = Tree::new();
    read(archive, Layout::Tree, LIMITS, &mut |entry, content| {
        let mut bytes = Vec::new();
        content.read_to_end(&mut bytes)?;
        tree.push((entry.clone(), bytes));
        Ok(())
    })?;
    Ok(tree)
}

fn small() -> Tree {
    let long = format!("d/{}", "x".repeat(200));
    vec![
        (directory("."), vec![]),
        (directory("d"), vec![]),
        (entry("d/file", Kind::File { bytes: 3 }), b"abc".to_vec()),
        (directory("d/e"), vec![]),
        (link("d/e/up", "../../f"), vec![]),
        (link("d/e/side", &format!("../{}", "y".repeat(150))), vec![]),
        (entry(&long, Kind::File { bytes: 0 }), vec![]),
        (Entry::file("f", 1, 7), b"z".to_vec()),
        (entry("g\u{e9}", Kind::File { bytes: 1 }), b"z".to_vec()),
    ]
}

fn why(archive: &[u8]) -> String {
    match unpacked(archive) {
        Err(ReadError::Bad(why)) => why,
        other => panic!("{other:?}"),
    }
}

/// An archive of these headers, each with its content.
fn raw(parts: &[Part<'_>]) -> Vec<u8> {
    let mut tar = Vec::new();
    for (header, content) in parts {
        tar.extend_from_slice(header);
        tar.extend_from_slice(content);
        tar.resize(tar.len().next_multiple_of(BLOCK), 0);
    }
    tar.resize(tar.len() + 2 * BLOCK, 0);
    gzip(&tar)
}

fn pax(records: &[u8]) -> Part<'_> {
    let x = |header: &mut Header| header.set_entry_type(EntryType::XHeader);
    (header(b"PaxHeaders/x", records.len() as u64, x), records)
}

fn file(name: &[u8]) -> Part<'static> {
    (header(name, 0, |_| ()), b"")
}

#[test]
fn what_is_written_is_read() {
    let tree = small();
    assert_eq!(unpacked(&packed(&tree)).unwrap(), tree);
}

#[test]
fn gnu_tar_reads_it_and_is_read() {
    let place = tempfile::tempdir().unwrap();
    let archive = place.path().join("a.tar.gz");
    std::fs::write(&archive, packed(&small())).unwrap();
    let tar = |arguments: &[&str]| {
        let mut tar = std::process::Command::new("tar");
        let output = tar.args(arguments).current_dir(place.path()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let listed = tar(&["--list", "--verbose", "--numeric-owner", "--file", "a.tar.gz"]);
    let lines: Vec<&str> = listed.lines().collect();
    assert_eq!(lines.len(), 9, "{listed}");
    assert!(lines[1].starts_with("drwsr-x--- 1000/3000000"), "{listed}");
    assert!(lines[4].ends_with("d/e/up -> ../../f"), "{listed}");
    assert!(lines[6].ends_with(&"x".repeat(200)), "{listed}");

    std::fs::create_dir_all(place.path().join("in/d")).unwrap();
    std::fs::write(place.path().join("in/d/file"), "abc").unwrap();
    std::os::unix::fs::symlink("d/file", place.path().join("in/link")).unwrap();
    for format in ["ustar", "gnu", "pax"] {
        let format = format!("--format={format}");
        tar(&["--create", "--gzip", &format, "-C", "in", "--file", "theirs.tar.gz", "."]);
        let theirs = unpacked(&std::fs::read(place.path().join("theirs.tar.gz")).unwrap()).unwrap();
        let mut names: Vec<&str> = theirs.iter().map(|(entry, _)| entry.name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, [".", "d", "d/file", "link"]);
    }
}

#[test]
fn what_is_not_in_the_dialect_is_named() {
    let kind = |kind| move |header: &mut Header| header.set_entry_type(kind);
    let linked = |target: &'static [u8]| {
        move |header: &mut Header| {
            header.set_entry_type(EntryType::Symlink);
            header.as_old_mut().linkname[..target.len()].copy_from_slice(target);
        }
    };
    let dir = || (header(b"d/", 0, kind(EntryType::Directory)), &b""[..]);
    let link = |name: &[u8], target: &'static [u8]| (header(name, 0, linked(target)), &b""[..]);
    let one = |part: (Vec<u8>, &'static [u8])| vec![part];
    let cases: Vec<(Vec<Part<'_>>, &str)> = vec![
        (one(file(b"/etc/passwd")), "not a plain path"),
        (one(file(b"../x")), "not a plain path"),
        (one(file(b"a/../../x")), "not a plain path"),
        (one(file(b"a/b")), "`a` is no directory that came before it"),
        (vec![file(b"a"), file(b"a/b")], "`a` is no directory that came before it"),
        (vec![link(b"a", b"d"), file(b"a/b")], "`a` is no directory that came before it"),
        (vec![dir(), dir()], "is there twice"),
        (vec![dir(), file(b"d")], "is there twice"),
        (vec![file(b"f"), (header(b"./", 0, kind(EntryType::Directory)), b"")], "comes first"),
        (one(link(b"l", b"/etc")), "a link that leads out"),
        (one(link(b"l", b"../x")), "a link that leads out"),
        (vec![dir(), link(b"d/l", b"../../x")], "a link that leads out"),
        (one(link(b"l", b"d/../../x")), "a link whose target is not plain"),
        (one(link(b"l", b"./x")), "a link whose target is not plain"),
        (one(link(b"l", b"x//y")), "a link whose target is not plain"),
        (one(link(b"l", b"")), "a link with a target that is none"),
        (one((header(b"h", 0, kind(EntryType::Link)), b"")), "a hard link"),
        (one((header(b"c", 0, kind(EntryType::Char)), b"")), "a character device"),
        (one((header(b"p", 0, kind(EntryType::Fifo)), b"")), "a FIFO"),
        (one((header(b"s", 0, kind(EntryType::GNUSparse)), b"")), "a sparse file"),
        (one((header(b"n", 0, kind(EntryType::GNULongName)), b"")), "a GNU long name"),
        (one((header(b"g", 0, kind(EntryType::XGlobalHeader)), b"")), "a pax header"),
        (
            one((header(b"d", 3, kind(EntryType::Directory)), b"abc")),
            "a content, and it is no file",
        ),
        (one(file(b".x.restage")), "a name that restage itself uses"),
        (one(pax(b"10 path=x\n")), "a pax header that no entry follows"),
        (vec![pax(b"10 path=x\n"), pax(b"10 path=x\n"), file(b"f")], "two pax headers"),
        (vec![pax(b"11 path=x\n"), file(b"f")], "a pax header is damaged"),
        (vec![pax(b"10 path=x "), file(b"f")], "a pax header is damaged"),
        (vec![pax(b"010 path=x\n"), file(b"f")], "a pax header is damaged"),
        (vec![pax(b"8 path=x\n"), file(b"f")], "a pax header is damaged"),
        (vec![pax(b"99999999999999999999 a=b\n"), file(b"f")], "a pax header is damaged"),
        (vec![pax(b"13 path=../x\n"), file(b"f")], "not a plain path"),
        (vec![pax(b"10 size=5\n"), file(b"f")], "pax header `size`: it is not accepted"),
        (vec![pax(b"20 path=x\n10 path=y\n"), file(b"f")], "a name with a control character"),
        (vec![pax(b"10 path=x\n10 path=y\n"), file(b"f")], "with `path` twice"),
        (vec![pax(b"18 uid=4294967296\n"), file(b"f")], "`uid`: too large"),
        (vec![pax(b"12 mtime=-1\n"), file(b"f")], "`mtime`: not a number"),
        (vec![pax(b"18 SCHILY.xattr.=\n"), file(b"f")], "pax header `SCHILY.xattr.`"),
        (vec![pax(b"26 SCHILY.acl.access=user\n"), file(b"f")], "it is not accepted"),
        (vec![pax(b"22 GNU.sparse.major=1\n"), file(b"f")], "it is not accepted"),
    ];
    for (parts, wanted) in cases {
        let said = why(&raw(&parts));
        assert!(said.contains(wanted), "`{wanted}` is not in: {said}");
    }
    let deep = vec!["d"; 40].join("/");
    assert_eq!(unfit_name(&deep, Layout::Tree), Some("more than 32 directories deep"));
    let long = "x".repeat(300);
    assert_eq!(unfit_name(&long, Layout::Tree), Some("a name that is too long"));
}

#[test]
fn a_cut_or_a_flipped_bit_is_an_error_or_changes_nothing() {
    let tree = small();
    let good = packed(&tree);
    for length in 0..good.len() {
        assert!(unpacked(&good[..length]).is_err(), "{length} bytes");
    }
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        if let Ok(read) = unpacked(&bad) {
            assert_eq!(read, tree, "bit {bit}");
        }
    }
}

/// Any tree: each entry lies in one of the directories before it.
fn any_tree() -> impl Strategy<Value = Tree> {
    let one =
        (0_usize..8, "[a-z\u{e9}.]{1,30}", 0_u8..4, prop::collection::vec(any::<u8>(), 0..600));
    let with = (one, any::<u32>(), any::<u32>(), "[a-z]{1,8}");
    prop::collection::vec(with, 0..20).prop_map(|parts| {
        let mut tree = Tree::new();
        for ((parent, name, what, bytes), owner, mode, key) in parts {
            let directories: Vec<String> = tree
                .iter()
                .filter(|(entry, _)| entry.kind == Kind::Directory)
                .map(|(entry, _)| format!("{}/", entry.name))
                .collect();
            let above = directories.get(parent).cloned().unwrap_or_default();
            let name = format!("{above}{name}");
            let kind = match what {
                0 => Kind::Directory,
                1 => Kind::Symlink {
                    target: format!("{}x", "../".repeat(above.matches('/').count())),
                },
                _ => Kind::File { bytes: bytes.len() as u64 },
            };
            let content = if let Kind::File { .. } = kind { bytes.clone() } else { Vec::new() };
            let xattrs = BTreeMap::from([(format!("user.{key}"), bytes)]);
            let attributes =
                Attributes { mode: mode & 0o7777, owner, group: owner / 2, modified: 5, xattrs };
            let entry = Entry { name, kind, attributes };
            let is_new =
                entry.name != "." && tree.iter().all(|(other, _)| other.name != entry.name);
            if is_new && unfit(&entry, Layout::Tree).is_none() {
                tree.push((entry, content));
            }
        }
        tree
    })
}

proptest! {
    #[test]
    fn any_tree_is_read_as_it_was_written(tree in any_tree()) {
        prop_assert_eq!(unpacked(&packed(&tree)).unwrap(), tree);
    }

    #[test]
    fn no_pax_header_makes_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = pax::parse(&bytes);
        let text: Vec<u8> = bytes.iter().map(|b| b"0123456789 =\npathuidSCHILY.xattr."[*b as usize % 33]).collect();
        let _ = pax::parse(&text);
    }
}
