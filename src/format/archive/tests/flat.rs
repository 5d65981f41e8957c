//! The flat layout: what IncusOS writes and reads.

use super::*;

fn some() -> Files {
    [("state.txt", vec![b'x'; 700]), ("zpool.local.key", vec![1; 32]), ("empty", vec![])]
        .into_iter()
        .map(|(name, content)| (name.to_owned(), content))
        .collect()
}

/// Byte for byte what Go's archive/tar makes of a header with name, size, mode 0600 and a time, as
/// IncusOS hands it over.
fn as_go_writes_it(files: &Files) -> Vec<u8> {
    let mut tar = Vec::new();
    for (name, content) in files {
        let mut block = [0_u8; BLOCK];
        block[..name.len()].copy_from_slice(name.as_bytes());
        block[100..108].copy_from_slice(b"0000600\0");
        block[108..116].copy_from_slice(b"0000000\0");
        block[116..124].copy_from_slice(b"0000000\0");
        block[124..136].copy_from_slice(format!("{:011o}\0", content.len()).as_bytes());
        block[136..148].copy_from_slice(b"15112537600\0");
        block[156] = b'0';
        block[257..265].copy_from_slice(b"ustar\x0000");
        block[329..337].copy_from_slice(b"0000000\0");
        block[337..345].copy_from_slice(b"0000000\0");
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        tar.extend_from_slice(&block);
        tar.extend_from_slice(content);
        tar.resize(tar.len().next_multiple_of(BLOCK), 0);
    }
    tar.resize(tar.len() + 2 * BLOCK, 0);
    gzip(&tar)
}

#[test]
fn what_incusos_writes_is_read() {
    assert_eq!(files(&as_go_writes_it(&some())).unwrap(), some());
}

#[test]
fn names_may_begin_with_a_dot_and_a_slash() {
    let read = files(&one(b"./state.txt", 3, |_| {})).unwrap();
    assert_eq!(read.keys().collect::<Vec<_>>(), ["state.txt"]);
}

#[test]
fn only_regular_files_are_accepted() {
    for (kind, why) in [
        (EntryType::Directory, "a directory"),
        (EntryType::Symlink, "a symbolic link"),
        (EntryType::Link, "a hard link"),
        (EntryType::Char, "a character device"),
        (EntryType::Block, "a block device"),
        (EntryType::Fifo, "a FIFO"),
        (EntryType::Continuous, "a contiguous file"),
        (EntryType::XHeader, "a pax header"),
        (EntryType::XGlobalHeader, "a pax header"),
        (EntryType::GNULongName, "a GNU long name"),
        (EntryType::GNULongLink, "a GNU long name"),
        (EntryType::GNUSparse, "a sparse file"),
        (EntryType::new(b'V'), "of an unknown kind"),
    ] {
        let said = refusal(&one(b"x", 0, |header| header.set_entry_type(kind)));
        assert_eq!(said, format!("`x`: {why}, and only regular files are accepted"));
    }
}

#[test]
fn only_plain_names_are_accepted() {
    for (name, why) in [
        (&b"../x"[..], "not a plain name"),
        (b"/x", "not a plain name"),
        (b"a/b", "not a plain name"),
        (b"././x", "not a plain name"),
        (b"..", "no name of a file"),
        (b".", "no name of a file"),
        (b"./", "no name of a file"),
        (b"", "no name of a file"),
        (b"a\nb", "a control character in the name"),
        (b"a\xff", "the name is not UTF-8"),
        (b".x.restage", "a name that restage itself uses"),
        (b".restage", "a name that restage itself uses"),
    ] {
        let said = refusal(&one(name, 0, |_| {}));
        assert!(said.ends_with(why), "{name:?}: {said}");
    }
    for name in [&b".x.restage~"[..], b"x.restage", b".restage.x"] {
        files(&one(name, 0, |_| {})).unwrap();
    }
    // A name in two parts is a path.
    let said = refusal(&one(b"x", 0, |header| {
        header.as_ustar_mut().unwrap().prefix[..3].copy_from_slice(b"etc");
    }));
    assert_eq!(said, "`etc/x`: not a plain name");
}

#[test]
fn numbers_and_headers_that_are_wrong_are_named() {
    assert!(refusal(&one(b"x", 0, |h| h.as_old_mut().size.fill(b'z'))).contains("damaged"));
    assert!(refusal(&one(b"x", 0, |h| h.set_size(u64::MAX / 2))).contains("x`"));
    assert!(refusal(&one(b"x", 0, |h| h.as_ustar_mut().unwrap().magic.fill(0))).contains("ustar"));
    assert!(refusal(&gzip(&[b'x'; 4 * BLOCK])).contains("no tar archive"));
    let mut tar = header(b"x", 0, |_| {});
    tar[0] ^= 1;
    assert!(refusal(&gzip(&tar)).contains("damaged"));
}

#[test]
fn every_end_but_the_right_one_is_refused() {
    let good = written(&some());
    let mut tar = header(b"x", 0, |_| {});
    assert_eq!(refusal(&gzip(&tar)), "it ends without its end marker");
    assert_eq!(refusal(&gzip(&[])), "it ends without its end marker");
    tar.extend_from_slice(&[0; BLOCK]);
    assert_eq!(refusal(&gzip(&tar)), "the end marker is cut short");
    tar.extend_from_slice(&header(b"y", 0, |_| {}));
    assert_eq!(refusal(&gzip(&tar)), "there is something after the end marker");
    tar.truncate(2 * BLOCK);
    tar.resize(tar.len() + 4000 * BLOCK, 0);
    assert_eq!(refusal(&gzip(&tar)), "too many zeros after the end marker");
    let twice = [good.clone(), good.clone()].concat();
    assert_eq!(refusal(&twice), "there is a second gzip member");
    assert_eq!(refusal(&[&good[..], b"x"].concat()), "there is something after the gzip member");
    let mut wrong = good.clone();
    let crc = wrong.len() - 8;
    wrong[crc] ^= 1;
    assert!(refusal(&wrong).starts_with("gzip: "));
    let mut wrong = good;
    let size = wrong.len() - 4;
    wrong[size] ^= 1;
    assert!(refusal(&wrong).starts_with("gzip: "));
    assert_eq!(refusal(b""), CUT);
    assert!(refusal(b"plain text").starts_with("gzip: "));
}

#[test]
fn an_archive_that_is_cut_anywhere_is_refused() {
    let good = written(&some());
    for length in 0..good.len() {
        refusal(&good[..length]);
    }
}

#[test]
fn limits_hold_before_anything_is_unpacked() {
    let many: Files = (0..101).map(|n| (n.to_string(), Vec::new())).collect();
    assert_eq!(refusal(&written(&many)), "more than 100 files");
    let large: Files = [("a".to_owned(), vec![0; 1 << 20]), ("b".to_owned(), vec![0])].into();
    assert_eq!(refusal(&written(&large)), "`b`: more than 1048576 bytes in all");
    let mut tar = header(b"x", 0, |_| {});
    tar.extend_from_slice(&header(b"./x", 0, |_| {}));
    assert_eq!(refusal(&gzip(&tar)), "`x` is there twice");
}

#[test]
fn an_error_of_the_source_or_the_visitor_is_not_the_archives_fault() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::from_raw_os_error(5))
        }
    }
    let result = read(&mut io::BufReader::new(Broken), Layout::Flat, LIMITS, &mut |_, _| Ok(()));
    assert!(matches!(result, Err(ReadError::Io(_))), "{result:?}");
    let full = || io::Error::from(io::ErrorKind::StorageFull);
    let result =
        read(&mut written(&some()).as_slice(), Layout::Flat, LIMITS, &mut |_, _| Err(full()));
    assert!(matches!(result, Err(ReadError::Io(_))), "{result:?}");
}

#[test]
fn a_file_that_changes_while_it_is_read_is_noticed() {
    let entry = Entry::file("x", 3, 0);
    for content in [&b"ab"[..], b"abcd"] {
        let said =
            Writer::new(Vec::new(), Layout::Flat).append(&entry, &mut &content[..]).unwrap_err();
        assert_eq!(said.to_string(), "`x` was changed meanwhile");
    }
}

/// SHA-256 of the archive without its compression, as the first release wrote it.
const BYTES_OF_SOME: &str = "e3bffc4d5513e35778df12b1618ead1dee15e2c617d6850b3f57cb2e35475b5c";

#[test]
fn what_is_written_does_not_change() {
    assert_eq!(crate::format::sha256_hex(&gunzip(&written(&some()))), BYTES_OF_SOME);
}

#[test]
fn attributes_are_not_written() {
    let mut entry = Entry::file("x", 0, 7);
    let plain = archive(Layout::Flat, &[(entry.clone(), vec![])]);
    entry.attributes.mode = 0o4755;
    entry.attributes.owner = 1000;
    entry.attributes.xattrs.insert("user.x".to_owned(), vec![1]);
    assert_eq!(archive(Layout::Flat, &[(entry, vec![])]), plain);
}

#[test]
fn what_a_reader_refuses_is_not_written() {
    let link = Kind::Symlink { target: "y".to_owned() };
    for (name, kind, why) in [
        ("a/b", Kind::File { bytes: 0 }, "not a plain name"),
        (".x.restage", Kind::File { bytes: 0 }, "a name that restage itself uses"),
        ("x", Kind::File { bytes: 1 << 33 }, "larger than 8 GiB"),
        ("x", Kind::Directory, "a directory, and only regular files are accepted"),
        ("x", link, "a symbolic link, and only regular files are accepted"),
    ] {
        let entry = Entry { name: name.to_owned(), kind, attributes: Attributes::default() };
        assert_eq!(not_written(Layout::Flat, &[entry]), format!("`{name}`: {why}"));
    }
    let twice = [Entry::file("x", 0, 0), Entry::file("x", 0, 0)];
    assert_eq!(not_written(Layout::Flat, &twice), "`x` is there twice");
}
