//! What other programs make of our archives, and we of theirs: GNU tar and Python, which
//! `scripts/setup` installs.

use std::path::Path;
use std::process::Command;

use super::*;

fn run(command: &mut Command) -> String {
    let output = command.env("LC_ALL", "C.UTF-8").env("TZ", "UTC").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    String::from_utf8(output.stdout).unwrap()
}

/// The tree without the time that is none for a program of 32 bits.
fn portable_tree() -> Contents {
    let mut tree = some_tree();
    tree[0].0.attributes.modified = 1_700_000_000;
    tree
}

fn kind_letter(kind: &Kind) -> char {
    match kind {
        Kind::File { .. } => '-',
        Kind::Directory => 'd',
        Kind::Symlink { .. } => 'l',
    }
}

/// As `ls` writes a mode.
fn mode_letters(mode: u32) -> String {
    let bits = |set: u32, special: u32, letter: char| -> String {
        let x = match (mode >> set & 1 == 1, mode & special != 0) {
            (true, true) => letter,
            (false, true) => letter.to_ascii_uppercase(),
            (true, false) => 'x',
            (false, false) => '-',
        };
        let bit = |at: u32, letter: char| if mode >> at & 1 == 1 { letter } else { '-' };
        [bit(set + 2, 'r'), bit(set + 1, 'w'), x].into_iter().collect()
    };
    [bits(6, 0o4000, 's'), bits(3, 0o2000, 's'), bits(0, 0o1000, 't')].concat()
}

#[test]
fn gnu_tar_reads_a_tree() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tree.tar.gz");
    std::fs::write(&file, archive(Layout::Tree, &portable_tree())).unwrap();
    let listed = run(Command::new("tar")
        .args(["--list", "--verbose", "--numeric-owner", "--full-time", "--quoting-style=literal"])
        .arg("--file")
        .arg(&file));
    let listed: Vec<String> =
        listed.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    let expected: Vec<String> = portable_tree()
        .iter()
        .map(|(entry, content)| {
            let attributes = &entry.attributes;
            let end = match &entry.kind {
                Kind::File { .. } => String::new(),
                Kind::Directory => "/".to_owned(),
                Kind::Symlink { target } => format!(" -> {target}"),
            };
            let time = match attributes.modified {
                0 => "1970-01-01 00:00:00",
                _ => "2023-11-14 22:13:20",
            };
            format!(
                "{}{} {}/{} {} {time} {}{end}",
                kind_letter(&entry.kind),
                mode_letters(attributes.mode),
                attributes.owner,
                attributes.group,
                content.len(),
                entry.name,
            )
        })
        .collect();
    assert_eq!(listed, expected);
    // The names and lengths of extended attributes.
    let listed = run(Command::new("tar").args(["-tvv", "--xattrs", "--file"]).arg(&file));
    let xattrs = portable_tree().swap_remove(2).0.attributes.xattrs;
    // It knows access control lists under another key only.
    for (name, value) in xattrs.iter().filter(|(name, _)| name.starts_with("user.")) {
        assert!(listed.contains(&format!("x: {} {name}\n", value.len())), "{name}: {listed}");
    }
}

/// Prints what Python's tarfile finds, a line an entry.
const PYTHON_LISTS: &str = r#"
import sys, tarfile
for e in tarfile.open(sys.argv[1], "r:gz"):
    kind = "-" if e.isreg() else "d" if e.isdir() else "l" if e.issym() else "?"
    print(kind, oct(e.mode), e.uid, e.gid, e.size, int(e.mtime), e.name, e.linkname)
"#;

#[test]
fn python_reads_a_tree() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tree.tar.gz");
    std::fs::write(&file, archive(Layout::Tree, &some_tree())).unwrap();
    let listed = run(Command::new("python3").args(["-c", PYTHON_LISTS]).arg(&file));
    let expected: Vec<String> = some_tree()
        .iter()
        .map(|(entry, content)| {
            let attributes = &entry.attributes;
            let target = match &entry.kind {
                Kind::File { .. } | Kind::Directory => "",
                Kind::Symlink { target } => target,
            };
            format!(
                "{} 0o{:o} {} {} {} {} {} {target}",
                kind_letter(&entry.kind),
                attributes.mode,
                attributes.owner,
                attributes.group,
                content.len(),
                attributes.modified,
                entry.name,
            )
        })
        .collect();
    assert_eq!(listed.lines().collect::<Vec<_>>(), expected);
}

/// A directory with files, links and a name that is too long for ustar's first field.
fn populate(top: &Path) -> String {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let long = format!("etc/{}/{}", "d".repeat(90), "é".repeat(40));
    std::fs::create_dir_all(top.join(&long).parent().unwrap()).unwrap();
    std::fs::write(top.join(&long), "long").unwrap();
    std::fs::write(top.join("state"), "x".repeat(700)).unwrap();
    std::fs::set_permissions(top.join("state"), PermissionsExt::from_mode(0o640)).unwrap();
    symlink("../state", top.join("etc/up")).unwrap();
    long
}

#[test]
fn what_gnu_tar_writes_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let (top, file) = (folder.path().join("top"), folder.path().join("tree.tar.gz"));
    std::fs::create_dir(&top).unwrap();
    let long = populate(&top);
    for (format, group, xattrs) in
        [("ustar", 7, "--no-xattrs"), ("posix", 3_000_000_000, "--xattrs")]
    {
        run(Command::new("tar")
            .args(["--create", "--gzip", "--sort=name", "--owner=me:1000", xattrs])
            .args([&format!("--group=we:{group}"), &format!("--format={format}")])
            .arg("--mtime=@1700000000.5")
            .arg("--directory")
            .arg(&top)
            .arg("--file")
            .args([&file, Path::new(".")]));
        let read = contents(Layout::Tree, &std::fs::read(&file).unwrap()).unwrap();
        let names: Vec<_> = read.iter().map(|(entry, _)| entry.name.as_str()).collect();
        let parent = long.rsplit_once('/').unwrap().0;
        assert_eq!(names, [".", "etc", parent, &long, "etc/up", "state"], "{format}");
        for (entry, _) in &read {
            let attributes = &entry.attributes;
            let found = (attributes.owner, attributes.group, attributes.modified);
            assert_eq!(found, (1000, group, 1_700_000_000), "{format}: {}", entry.name);
        }
        assert_eq!(read[3].1, b"long");
        assert_eq!(read[4].0.kind, Kind::Symlink { target: "../state".to_owned() });
        assert_eq!((read[5].0.attributes.mode, read[5].1.len()), (0o640, 700));
    }
    // Its own format is accepted as long as every name fits.
    std::fs::remove_file(top.join(&long)).unwrap();
    run(Command::new("tar")
        .args(["--create", "--gzip", "--format=gnu", "--directory"])
        .arg(&top)
        .args(["--owner=me:3000000000", "--file", file.to_str().unwrap(), "--sort=name", "."]));
    let read = contents(Layout::Tree, &std::fs::read(&file).unwrap()).unwrap();
    assert_eq!((read.len(), read[0].0.attributes.owner), (5, 3_000_000_000));
}

/// Writes an archive with records in every pax header.
const PYTHON_WRITES: &str = r#"
import io, sys, tarfile
with tarfile.open(sys.argv[1], "w:gz", format=tarfile.PAX_FORMAT) as tar:
    e = tarfile.TarInfo("grün")
    e.type, e.mode, e.uid, e.uname, e.mtime = tarfile.DIRTYPE, 0o755, 3000000000, "jürgen", 1.25
    tar.addfile(e)
    e = tarfile.TarInfo("grün/x")
    e.size, e.mode = 3, 0o600
    e.pax_headers = {"SCHILY.xattr.user.x": "value"}
    tar.addfile(e, io.BytesIO(b"abc"))
"#;

#[test]
fn what_python_writes_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tree.tar.gz");
    run(Command::new("python3").args(["-c", PYTHON_WRITES]).arg(&file));
    let read = contents(Layout::Tree, &std::fs::read(&file).unwrap()).unwrap();
    let mut top = directory("grün");
    top.attributes.owner = 3_000_000_000;
    top.attributes.modified = 1;
    let mut x = Entry::file("grün/x", 3, 0);
    x.attributes.xattrs.insert("user.x".to_owned(), b"value".to_vec());
    assert_eq!(read, [(top, vec![]), (x, b"abc".to_vec())]);
}
