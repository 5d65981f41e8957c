//! What is parsed elsewhere is what is parsed here; and who parses it cannot say what no archive says.

use proptest::prelude::*;

use super::super::frames::{receive, send};
use super::*;

/// What is told of an archive.
fn told(layout: Layout, archive: &[u8]) -> Vec<u8> {
    let mut told = Vec::new();
    send(&mut &*archive, layout, LIMITS, &mut told).unwrap();
    told
}

/// What is believed of that.
fn heard(layout: Layout, told: &[u8]) -> Result<Contents, ReadError> {
    let mut contents = Contents::new();
    receive(&mut &*told, layout, LIMITS, &mut |entry, content| {
        let mut bytes = Vec::new();
        content.read_to_end(&mut bytes)?;
        contents.push((entry.clone(), bytes));
        Ok(())
    })?;
    Ok(contents)
}

fn frame(kind: u8, bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).unwrap().to_le_bytes();
    [&[kind][..], &length, bytes].concat()
}

fn entry_frame(entry: &Entry) -> Vec<u8> {
    frame(b'E', &serde_json::to_vec(entry).unwrap())
}

/// Why nothing of it is believed.
fn unheard(layout: Layout, frames: &[Vec<u8>]) -> String {
    heard(layout, &frames.concat()).unwrap_err().to_string()
}

#[test]
fn what_is_told_is_what_was_read() {
    let tree = archive(Layout::Tree, &some_tree());
    let files: Files = [("a".to_owned(), vec![1; 200_000]), ("b".to_owned(), vec![])].into();
    for (layout, archive) in [(Layout::Tree, tree), (Layout::Flat, written(&files))] {
        let heard = heard(layout, &told(layout, &archive)).unwrap();
        assert_eq!(heard, contents(layout, &archive).unwrap());
        // The refusal as well, wherever it is cut.
        for cut in (0..archive.len()).step_by(7) {
            let cut = &archive[..cut];
            let why = refused(layout, cut);
            assert!(matches!(super::frames::heard(layout, &told(layout, cut)),
                Err(ReadError::Bad(said)) if said == why));
        }
    }
}

#[test]
fn content_that_nobody_wants_is_passed_over() {
    let tree = archive(Layout::Tree, &some_tree());
    let mut names = Vec::new();
    receive(&mut told(Layout::Tree, &tree).as_slice(), Layout::Tree, LIMITS, &mut |entry, _| {
        names.push(entry.name.clone());
        Ok(())
    })
    .unwrap();
    assert!(names.iter().eq(some_tree().iter().map(|(entry, _)| &entry.name)));
}

#[test]
fn an_error_of_the_visitor_is_no_fault_of_the_archive() {
    let told = told(Layout::Tree, &archive(Layout::Tree, &some_tree()));
    let full = || io::Error::from(io::ErrorKind::StorageFull);
    let result = receive(&mut told.as_slice(), Layout::Tree, LIMITS, &mut |_, _| Err(full()));
    assert!(
        matches!(result, Err(ReadError::Io(error)) if error.kind() == io::ErrorKind::StorageFull)
    );
}

#[test]
fn who_does_not_listen_is_an_error() {
    struct Deaf;
    impl Write for Deaf {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let archive = archive(Layout::Tree, &some_tree());
    let error = send(&mut archive.as_slice(), Layout::Tree, LIMITS, &mut Deaf).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
}

#[test]
fn what_no_archive_says_is_not_believed() {
    let good = || frame(b'G', &[]);
    let file = |bytes| entry_frame(&Entry::file("a", bytes, 0));
    let outside = entry_frame(&Entry::file("../a", 0, 0));
    let mut owned = Entry::file("a", 0, 0);
    owned.attributes.owner = u32::MAX;
    let device = br#"{"name":"a","kind":"device","attributes":{}}"#;
    let odd = "who parses it sent";
    for (frames, why) in [
        (vec![outside, good()], "`../a`: not a plain path"),
        (vec![file(0), file(0), good()], "`a` is there twice"),
        (vec![entry_frame(&link("a", "../b")), good()], "`a`: the target of the link lies outside"),
        (
            vec![entry_frame(&Entry::file("b/a", 0, 0))],
            "`b/a`: its directory does not come before it",
        ),
        (vec![entry_frame(&owned), good()], "`a`: an owner or a group that is none"),
        (vec![file(2 << 20)], "`a`: more than 1048576 bytes in all"),
        (vec![file(3), frame(b'C', b"abcd"), good()], &format!("{odd} more than a whole file")),
        (vec![file(3), frame(b'C', b""), good()], &format!("{odd} more than a whole file")),
        (vec![file(3), frame(b'C', b"ab"), good()], &format!("{odd} less than a whole file")),
        (vec![file(3), frame(b'C', b"ab"), file(0)], &format!("{odd} a frame that is none")),
        (vec![file(0), frame(b'C', b"a"), good()], &format!("{odd} a frame that is none")),
        (vec![frame(b'G', b"x")], &format!("{odd} a frame that is none")),
        (vec![frame(b'X', b"")], &format!("{odd} a frame that is none")),
        (vec![frame(b'E', device)], &format!("{odd} an entry that is none")),
        (vec![vec![b'E', 0xff, 0xff, 0xff, 0xff]], &format!("{odd} a frame that is too long")),
        (vec![file(3), frame(b'B', b"why")], "why"),
        (vec![file(3), frame(b'F', b"why")], "why"),
    ] {
        assert_eq!(unheard(Layout::Tree, &frames), why);
    }
    // Cut off anywhere, it is not a good one.
    let whole = [file(3), frame(b'C', b"abc"), good()].concat();
    assert_eq!(heard(Layout::Tree, &whole).unwrap().len(), 1);
    for cut in 0..whole.len() {
        let error = heard(Layout::Tree, &whole[..cut]).unwrap_err();
        assert!(
            matches!(error, ReadError::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof)
        );
    }
}

#[test]
fn nobody_sends_more_than_headers_can_hold() {
    let mut large = directory("d0");
    for number in 0..8 {
        large.attributes.xattrs.insert(format!("user.{number}"), vec![b'x'; 64 << 10]);
    }
    let named = |number: u32| entry_frame(&Entry { name: format!("d{number}"), ..large.clone() });
    let frames: Vec<_> = (0..40).map(named).collect();
    let why = unheard(Layout::Tree, &frames);
    assert_eq!(why, "who parses it sent more than the headers of an archive can hold");
    let few = [frames[..2].concat(), frame(b'G', &[])].concat();
    assert_eq!(heard(Layout::Tree, &few).unwrap().len(), 2);
}

#[test]
fn a_flat_entry_has_no_attributes_but_its_time() {
    let mut entry = Entry::file("a", 0, 7);
    entry.attributes.mode = 0o4777;
    entry.attributes.owner = 5;
    let frames = [entry_frame(&entry), frame(b'G', &[])].concat();
    assert_eq!(heard(Layout::Flat, &frames).unwrap()[0].0, Entry::file("a", 0, 7));
    assert!(unheard(Layout::Flat, &[entry_frame(&directory("d"))]).contains("a directory"));
    let more = vec![entry_frame(&Entry::file("a", 0, 0)); 1];
    assert_eq!(
        receive(
            &mut more.concat().as_slice(),
            Layout::Flat,
            Limits { files: 0, bytes: 9 },
            &mut |_, _| Ok(())
        )
        .unwrap_err()
        .to_string(),
        "more than 0 files"
    );
}

proptest! {
    #[test]
    fn nothing_that_is_sent_does_harm(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut told = told(Layout::Tree, &archive(Layout::Tree, &some_tree()));
        for (at, value) in flips {
            let at = at.index(told.len());
            told[at] = value;
        }
        told.truncate(cut.index(told.len()) + 1);
        let _ = receive(&mut told.as_slice(), Layout::Tree, LIMITS, &mut |entry, content| {
            assert_eq!(unfit(entry, Layout::Tree), None);
            let mut bytes = Vec::new();
            if content.read_to_end(&mut bytes).is_ok() {
                assert_eq!(bytes.len() as u64, entry.bytes());
            }
            Ok(())
        });
    }
}
