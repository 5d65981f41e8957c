//! The tree layout: each rule, and what is said when it is broken.

use super::*;

const TREE: Layout = Layout::Tree;

fn entry(archive: &[u8]) -> Entry {
    let mut contents = contents(TREE, archive).unwrap();
    assert_eq!(contents.len(), 1);
    contents.remove(0).0
}

/// A directory's header.
fn folder(name: &str) -> Vec<u8> {
    header(name.as_bytes(), 0, |header| header.set_entry_type(EntryType::Directory))
}

fn symlink(name: &str, target: &[u8]) -> Vec<u8> {
    header(name.as_bytes(), 0, |header| {
        header.set_entry_type(EntryType::Symlink);
        header.set_link_name_literal(target).unwrap();
    })
}

fn plain(name: &str) -> Vec<u8> {
    header(name.as_bytes(), 0, |_| {})
}

/// A record whose length is right.
fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let is_right = |length: &usize| *length == rest + length.to_string().len();
    let length = (rest..rest + 9).find(is_right).unwrap();
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}

/// An archive of the file `x` with these records before it.
fn with_records(records: &[u8]) -> Vec<u8> {
    ended(&[pax_header(records), plain("x")])
}

#[test]
fn what_is_written_is_read_again() {
    let archive = archive(TREE, &some_tree());
    assert_eq!(contents(TREE, &archive).unwrap(), some_tree());
}

#[test]
fn only_what_does_not_fit_makes_a_pax_header() {
    let kinds = |entries: &[(Entry, Vec<u8>)]| -> Vec<u8> {
        let tar = gunzip(&archive(TREE, entries));
        tar.chunks(BLOCK).filter(|block| block[257..262] == *b"ustar").map(|b| b[156]).collect()
    };
    assert_eq!(kinds(&some_tree()), b"x55x0x0x502x22".map(|kind| kind));
    let mut most = Entry::file("x", 0, 0o777_7777_7777);
    most.attributes.owner = 0o777_7777;
    most.attributes.group = 0o777_7777;
    assert_eq!(kinds(&[(most, vec![])]), b"0");
}

#[test]
fn what_a_flat_archive_holds_is_a_tree() {
    let files: Files = [("a".to_owned(), vec![1; 600]), ("b".to_owned(), vec![])].into();
    let archive = written(&files);
    assert_eq!(contents(TREE, &archive).unwrap(), contents(Layout::Flat, &archive).unwrap());
}

#[test]
fn the_top_and_directories_may_be_written_in_two_ways() {
    for top in [".", "./"] {
        assert_eq!(entry(&ended(&[folder(top)])).name, ".");
    }
    for name in ["a", "a/", "./a", "./a/"] {
        let archive = ended(&[folder(name), plain("./a/b")]);
        let names: Vec<_> =
            contents(TREE, &archive).unwrap().into_iter().map(|(entry, _)| entry.name).collect();
        assert_eq!(names, ["a", "a/b"]);
    }
}

#[test]
fn only_files_directories_and_symbolic_links_are_accepted() {
    for (kind, why) in [
        (EntryType::Link, "a hard link"),
        (EntryType::Char, "a character device"),
        (EntryType::Block, "a block device"),
        (EntryType::Fifo, "a FIFO"),
        (EntryType::Continuous, "a contiguous file"),
        (EntryType::XGlobalHeader, "a global pax header"),
        (EntryType::GNULongName, "a GNU long name"),
        (EntryType::GNULongLink, "a GNU long name"),
        (EntryType::GNUSparse, "a sparse file"),
        (EntryType::new(b'D'), "of an unknown kind"),
        (EntryType::new(b'V'), "of an unknown kind"),
        (EntryType::new(b'X'), "of an unknown kind"),
    ] {
        let said = refused(TREE, &one(b"x", 0, |header| header.set_entry_type(kind)));
        let and = "and only files, directories and symbolic links are accepted";
        assert_eq!(said, format!("`x`: {why}, {and}"));
    }
}

#[test]
fn only_plain_paths_are_accepted() {
    let long = ["d".repeat(50), "x".repeat(256)].join("/");
    let path = vec!["x".repeat(240); 18].join("/");
    let deep = vec!["x"; 33].join("/");
    for (name, why) in [
        ("", "no name of a file"),
        ("/", "not a plain path"),
        ("/x", "not a plain path"),
        ("./.", "not a plain path"),
        ("././", "not a plain path"),
        (".//", "not a plain path"),
        ("././x", "not a plain path"),
        (".//x", "not a plain path"),
        ("..", "not a plain path"),
        ("../x", "not a plain path"),
        ("a/../x", "not a plain path"),
        ("a/..", "not a plain path"),
        ("a/./x", "not a plain path"),
        ("a//x", "not a plain path"),
        ("a//", "not a plain path"),
        ("a\nb", "a control character in the name"),
        ("a/\u{85}", "a control character in the name"),
        (&long, "a name in the path is longer than 255 bytes"),
        (&path, "the path is longer than 4096 bytes"),
        (&deep, "more than 32 names in the path"),
        (".x.restage", "a name that restage itself uses"),
        ("a/.restage/b", "a name that restage itself uses"),
    ] {
        for kind in [EntryType::Regular, EntryType::Directory] {
            let header = header(b"x", 0, |header| header.set_entry_type(kind));
            let said =
                refused(TREE, &ended(&[pax_header(&record("path", name.as_bytes())), header]));
            assert!(said.ends_with(&format!("`: {why}")), "{name:?}: {said}");
        }
    }
    let said = refused(TREE, &ended(&[folder("a"), plain("a/")]));
    assert_eq!(said, "`a/`: not a plain path");
    assert_eq!(refused(TREE, &one(b"a\xff", 0, |_| {})), "`a\u{fffd}`: the name is not UTF-8");
    assert_eq!(unfit_name(".", TREE), None);
    assert_eq!(unfit_name(&vec!["x"; 32].join("/"), TREE), None);
    assert_eq!(unfit_name(&"x".repeat(255), TREE), None);
}

#[test]
fn a_path_in_two_fields_is_put_together() {
    let archive = ended(&[
        folder("etc"),
        header(b"x", 0, |header| {
            header.as_ustar_mut().unwrap().prefix[..3].copy_from_slice(b"etc");
        }),
    ]);
    assert_eq!(contents(TREE, &archive).unwrap()[1].0.name, "etc/x");
}

#[test]
fn entries_come_once_and_after_their_directories() {
    for (parts, why) in [
        (vec![plain("x"), plain("./x")], "`x` is there twice"),
        (vec![folder("x"), plain("x")], "`x` is there twice"),
        (vec![folder("./"), folder(".")], "`.` is there twice"),
        (vec![plain("x"), folder(".")], "`.`: the top of the tree comes after something in it"),
        (vec![plain(".")], "`.`: the top of the tree is not a directory"),
        (vec![plain("./")], "`.`: the top of the tree is not a directory"),
        (vec![symlink(".", b"x")], "`.`: the top of the tree is not a directory"),
        (vec![plain("a/x")], "`a/x`: its directory does not come before it"),
        (vec![folder("a/b"), folder("a")], "`a/b`: its directory does not come before it"),
        (vec![plain("a"), plain("a/x")], "`a/x`: its directory does not come before it"),
        (
            vec![folder("b"), symlink("a", b"b"), plain("a/x")],
            "`a/x`: its directory does not come before it",
        ),
        (vec![folder("."), plain("a/x")], "`a/x`: its directory does not come before it"),
    ] {
        assert_eq!(refused(TREE, &ended(&parts)), why);
    }
}

#[test]
fn links_stay_inside() {
    let plain_names = "the target of the link is not some `..` and then plain names";
    let outside = "the target of the link lies outside";
    let long = "x/".repeat(2048);
    for (name, target, why) in [
        ("l", "x", None),
        ("l", "x/y", None),
        ("a/l", "..", None),
        ("a/l", "../a/x", None),
        ("a/b/l", "../..", None),
        ("l", "..x", None),
        ("l", "", Some("a link without a target")),
        ("l", "/x", Some("the target of the link is absolute")),
        ("l", "..", Some(outside)),
        ("l", "../x", Some(outside)),
        ("a/l", "../..", Some(outside)),
        ("a/l", "../../x", Some(outside)),
        ("a/b/l", "../../../x", Some(outside)),
        ("a/l", "x/..", Some(plain_names)),
        ("a/l", "x/../..", Some(plain_names)),
        ("a/l", "../x/../y", Some(plain_names)),
        ("l", ".", Some(plain_names)),
        ("l", "./x", Some(plain_names)),
        ("l", "x/./y", Some(plain_names)),
        ("a/l", ".././x", Some(plain_names)),
        ("l", "x//y", Some(plain_names)),
        ("l", "x/", Some(plain_names)),
        ("a/l", "../", Some(plain_names)),
        ("l", ".x.restage", Some(plain_names)),
        ("l", "x\ny", Some("a control character in the target of the link")),
        ("l", &long, Some("the target of the link is longer than 4095 bytes")),
    ] {
        let pax = pax_header(&record("linkpath", target.as_bytes()));
        let parts = [folder("a"), folder("a/b"), pax, symlink(name, b"in the header")];
        match (contents(TREE, &ended(&parts)), why) {
            (Ok(contents), None) => {
                assert_eq!(contents[2].0.kind, Kind::Symlink { target: target.to_owned() });
            }
            (Err(ReadError::Bad(said)), Some(why)) => assert_eq!(said, format!("`{name}`: {why}")),
            other => panic!("{name:?} -> {target:?}: {other:?}"),
        }
        let written = [directory("a"), directory("a/b"), link(name, target)];
        if let Some(why) = why {
            assert_eq!(not_written(TREE, &written), format!("`{name}`: {why}"));
        }
    }
    let said = refused(TREE, &ended(&[symlink("l", b"\xff")]));
    assert_eq!(said, "`l`: the target of the link is not UTF-8");
    assert_eq!(refused(TREE, &ended(&[symlink("l", b"")])), "`l`: a link without a target");
}

#[test]
fn only_files_have_a_length_and_only_links_a_target() {
    for kind in [EntryType::Directory, EntryType::Symlink] {
        let said = refused(
            TREE,
            &one(b"x", 1, |header| {
                header.set_entry_type(kind);
                if kind == EntryType::Symlink {
                    header.set_link_name_literal("y").unwrap();
                }
            }),
        );
        assert_eq!(said, "`x`: a length, and it is no file");
    }
    let said = refused(TREE, &one(b"x", 0, |header| header.set_link_name_literal("y").unwrap()));
    assert_eq!(said, "`x`: the target of a link, and it is none");
    let said = refused(TREE, &with_records(&record("linkpath", b"y")));
    assert_eq!(said, "`x`: the target of a link, and it is none");
}

#[test]
fn attributes_are_read_from_the_header() {
    let read = entry(&one(b"x", 0, |header| {
        header.set_mode(0o7751);
        header.set_uid(1000);
        header.set_gid(u64::from(u32::MAX - 1)); // base 256
        header.set_mtime(1 << 40);
    }));
    let (owner, group, modified) = (1000, u32::MAX - 1, 1 << 40);
    let attributes = Attributes { mode: 0o7751, owner, group, modified, ..Attributes::default() };
    assert_eq!(read.attributes, attributes);
    // Blanks before and after, as old writers have it.
    let read = entry(&one(b"x", 0, |header| header.as_old_mut().mode = *b"   751 \0"));
    assert_eq!(read.attributes.mode, 0o751);
}

#[test]
fn numbers_that_are_wrong_are_refused() {
    const DAMAGED: &str = "a number in the header is damaged";
    const NEGATIVE: u8 = 0xff;
    type Change = fn(&mut Header);
    let changes: [(Change, &str); 17] = [
        (|h| h.as_old_mut().size.fill(0), DAMAGED),
        (|h| h.as_old_mut().size.fill(b'8'), DAMAGED),
        (|h| h.as_old_mut().size.fill(b'7'), "larger than 8 GiB"),
        (|h| h.as_old_mut().size = *b"+0000000001\0", DAMAGED),
        (|h| h.as_old_mut().size = *b"00000\x0000001\0", DAMAGED),
        (|h| h.as_old_mut().size.fill(NEGATIVE), DAMAGED),
        (|h| h.as_old_mut().size = *b"\x80\0\0\0\0\0\0\0\0\0\0\0", DAMAGED),
        (|h| h.as_old_mut().mode.fill(0), DAMAGED),
        (|h| h.as_old_mut().mode = *b"\x80\0\0\0\0\0\0\0", DAMAGED),
        (|h| h.set_mode(0o10_0644), "a mode of more than permissions"),
        (|h| h.as_old_mut().uid.fill(NEGATIVE), DAMAGED),
        (|h| h.as_old_mut().uid.fill(b' '), DAMAGED),
        (|h| h.as_old_mut().uid = *b"-000001\0", DAMAGED),
        (|h| h.set_uid(1 << 32), DAMAGED),
        (|h| h.set_gid(1 << 32), DAMAGED),
        (|h| h.as_old_mut().mtime.fill(NEGATIVE), DAMAGED),
        (|h| h.as_old_mut().mtime = *b"\x80\0\0\x01\0\0\0\0\0\0\0\0", DAMAGED),
    ];
    for (number, (change, why)) in changes.into_iter().enumerate() {
        let said = refused(TREE, &one(b"x", 0, change));
        assert_eq!(said, format!("`x`: {why}"), "{number}");
    }
}

#[test]
fn pax_records_say_what_the_header_does_not() {
    let name = format!("{}/x", "d".repeat(200));
    let records = [
        record("path", format!("./{name}").as_bytes()),
        record("uid", b"4294967294"),
        record("gid", b"0"),
        record("mtime", b"1700000000.999999999"),
        record("atime", b"-1.5"),
        record("ctime", b"1"),
        record("uname", "jürgen".as_bytes()),
        record("gname", b"\xff"),
        record("SCHILY.xattr.user.a%3Db%25", b"\0=\n"),
        record("SCHILY.xattr.system.posix_acl_access", b""),
    ];
    let own = header(b"elsewhere", 0, |header| header.set_gid(7));
    let d = "d".repeat(200);
    let folder = [pax_header(&record("path", d.as_bytes())), folder("d")].concat();
    let read = contents(TREE, &ended(&[folder, pax_header(&records.concat()), own])).unwrap();
    let xattrs = [("user.a=b%", &b"\0=\n"[..]), ("system.posix_acl_access", b"")];
    let expected = Attributes {
        owner: u32::MAX - 1,
        modified: 1_700_000_000,
        xattrs: xattrs.map(|(name, value)| (name.to_owned(), value.to_vec())).into(),
        ..Attributes::default()
    };
    assert_eq!((&read[1].0.name, &read[1].0.attributes), (&name, &expected));
    // They are of the next entry only.
    let two = ended(&[pax_header(&record("uid", b"5")), plain("x"), plain("y")]);
    let owners: Vec<_> =
        contents(TREE, &two).unwrap().iter().map(|(entry, _)| entry.attributes.owner).collect();
    assert_eq!(owners, [5, 0]);
}

#[test]
fn pax_keys_are_a_white_list() {
    for key in [
        "size",
        "comment",
        "charset",
        "hdrcharset",
        "SCHILY.acl.access",
        "SCHILY.dev",
        "SCHILY.xattr",
        "RHT.security.selinux",
        "GNU.sparse.major",
        "LIBARCHIVE.xattr.user.x",
        "Path",
        "",
    ] {
        let said = refused(TREE, &with_records(&record(key, b"1")));
        assert_eq!(said, format!("`x`: the pax key `{key}` is not accepted"));
    }
    let long = format!("SCHILY.xattr.{}", "x".repeat(256));
    for key in ["SCHILY.xattr.", "SCHILY.xattr.a\0b", &long] {
        let said = refused(TREE, &with_records(&record(key, b"1")));
        assert!(said.ends_with("` is no name of an extended attribute"), "{said}");
    }
    let said = refused(TREE, &with_records(b"20 SCHILY.xattr.\xff=1\n"));
    assert!(said.ends_with("` is no name of an extended attribute"), "{said}");
    for key in ["system.x", "nonsense", "user.", "system.posix_acl_access2"] {
        let said = refused(TREE, &with_records(&record(&format!("SCHILY.xattr.{key}"), b"1")));
        assert!(said.ends_with("` is an extended attribute of a kind that no file system keeps"));
    }
    let said = refused(TREE, &with_records(&record("SCHILY.xattr.user.x", &vec![0; 65537])));
    assert!(said.ends_with("` is an extended attribute of more than 64 KiB"), "{said}");
    for key in ["path", "mtime", "uname", "SCHILY.xattr.user.x"] {
        let twice = [record(key, b"1"), record(key, b"1")].concat();
        let said = refused(TREE, &with_records(&twice));
        assert_eq!(said, format!("`x`: the pax key `{key}` is there twice"));
    }
    // In two ways of writing.
    let twice =
        [record("SCHILY.xattr.user.%", b"1"), record("SCHILY.xattr.user.%25", b"1")].concat();
    let said = refused(TREE, &with_records(&twice));
    assert_eq!(said, "`x`: the pax key `SCHILY.xattr.user.%25` is there twice");
}

#[test]
fn pax_values_are_read_strictly() {
    for (key, value) in [
        ("uid", &b""[..]),
        ("uid", b"-1"),
        ("uid", b"+1"),
        ("uid", b" 1"),
        ("uid", b"4294967296"),
        ("gid", b"1.0"),
        ("gid", b"0x1"),
        ("mtime", b""),
        ("mtime", b"-1"),
        ("mtime", b"1."),
        ("mtime", b".5"),
        ("mtime", b"1.5.5"),
        ("mtime", b"1.-5"),
        ("mtime", b"1e9"),
        ("mtime", b"18446744073709551616"),
        ("path", b"\xff"),
        ("linkpath", b"\xff"),
    ] {
        let said = refused(TREE, &with_records(&record(key, value)));
        assert_eq!(said, format!("`x`: the pax key `{key}` has a damaged value"), "{value:?}");
    }
}

#[test]
fn pax_records_end_exactly_where_they_say() {
    for records in [
        &b"x"[..],
        b"\n",
        b"7 uid=1\n",
        b"9 uid=1\n",
        b"8 uid=1\n ",
        b"8 uid=1\n\0",
        b"09 uid=1\n",
        b"+9 uid=1\n",
        b" 9 uid=1\n",
        b"-9 uid=1\n",
        b"8 uid=1 ",
        b"7 uid1\n",
        b"0 uid=1\n",
        b"1 uid=1\n",
        b"2 uid=1\n",
        b"2 \n",
        b"3 \n",
        b"2\n",
        b"99999999999999999999 uid=1\n",
        b"18446744073709551615 uid=1\n",
    ] {
        let said = refused(TREE, &with_records(records));
        let records = String::from_utf8_lossy(records);
        assert_eq!(said, "`x`: a damaged pax header", "{records:?}");
    }
    assert_eq!(entry(&with_records(b"8 uid=1\n")).attributes.owner, 1);
    assert_eq!(entry(&with_records(b"")).name, "x");
}

#[test]
fn a_pax_header_stands_before_an_entry() {
    let pax = || pax_header(&record("uid", b"1"));
    let none = "a pax header that no entry follows";
    assert_eq!(refused(TREE, &ended(&[plain("x"), pax()])), none);
    assert_eq!(refused(TREE, &gzip(&pax())), none);
    let said = refused(TREE, &ended(&[pax(), pax(), plain("x")]));
    assert_eq!(said, "`PaxHeaders/x`: a second pax header for one entry");
    let said = refused(TREE, &ended(&[pax_header(&vec![b'x'; (1 << 20) + 1]), plain("x")]));
    assert_eq!(said, "`PaxHeaders/x`: a pax header of more than 1 MiB");
    let base_256 = header(b"p", 0, |header| {
        header.set_entry_type(EntryType::XHeader);
        header.as_old_mut().size = *b"\x80\0\0\0\0\0\0\0\0\0\0\x01";
    });
    let said = refused(TREE, &ended(&[base_256, plain("x")]));
    assert_eq!(said, "`p`: a number in the header is damaged");
    assert_eq!(
        refused(Layout::Flat, &ended(&[pax(), plain("x")])),
        "`PaxHeaders/x`: a pax header, and only regular files are accepted"
    );
}

#[test]
fn limits_count_every_entry_and_every_pax_header() {
    let many: Contents = (0..101).map(|n| (directory(&n.to_string()), vec![])).collect();
    assert_eq!(refused(TREE, &archive(TREE, &many)), "more than 100 files");
    contents(TREE, &archive(TREE, &many[..100])).unwrap();
    let large = vec![0; LIMITS.bytes as usize - 8];
    let file = |name: &str| (Entry::file(name, large.len() as u64, 0), large.clone());
    let mut owned = Entry::file("y", 0, 0);
    owned.attributes.owner = u32::MAX - 1;
    let said = refused(TREE, &archive(TREE, &[file("x"), (owned.clone(), vec![])]));
    assert_eq!(said, "`././@PaxHeader`: more than 1048576 bytes in all");
    let said = refused(TREE, &archive(TREE, &[(owned, vec![]), file("x")]));
    assert_eq!(said, "`x`: more than 1048576 bytes in all");
}

#[test]
fn what_a_reader_refuses_is_not_written() {
    let file = |change: fn(&mut Entry)| {
        let mut entry = Entry::file("x", 0, 0);
        change(&mut entry);
        entry
    };
    for (entries, why) in [
        (vec![file(|x| x.name = "../x".to_owned())], "`../x`: not a plain path"),
        (vec![file(|x| x.name = "a/x".to_owned())], "`a/x`: its directory does not come before it"),
        (vec![file(|x| x.name = ".".to_owned())], "`.`: the top of the tree is not a directory"),
        (vec![file(|_| {}), directory("x")], "`x` is there twice"),
        (vec![file(|x| x.kind = Kind::File { bytes: 1 << 33 })], "`x`: larger than 8 GiB"),
        (vec![file(|x| x.attributes.mode = 0o10_0644)], "`x`: a mode of more than permissions"),
        (
            vec![file(|x| drop(x.attributes.xattrs.insert(String::new(), vec![])))],
            "`x`: `` is no name of an extended attribute",
        ),
        (
            vec![file(|x| {
                let name = |number| (format!("user.{number}"), vec![0; 60 << 10]);
                x.attributes.xattrs.extend((0..20).map(name));
            })],
            "`x`: more than 1 MiB of extended attributes",
        ),
    ] {
        assert_eq!(not_written(TREE, &entries), why);
    }
    for entry in [directory("x"), link("x", "y")] {
        let mut writer = Writer::new(Vec::new(), TREE);
        let said = writer.append(&entry, &mut &b"x"[..]).unwrap_err();
        assert_eq!(said.to_string(), "`x` was changed meanwhile");
    }
}

#[test]
fn the_layout_has_a_name() {
    assert_eq!(serde_json::to_string(&[Layout::Flat, TREE]).unwrap(), r#"["flat","tree"]"#);
}
