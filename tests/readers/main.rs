//! Whatever restage accepts, GNU tar, bsdtar, Python and Go read as well, and see the same in it: no
//! backup means one thing here and another one there.
//!
//! `RESTAGE_ARCHIVES` says how many are made, from `RESTAGE_FIRST` on.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test: a panic is its verdict"
)]

#[path = "../fixtures/mod.rs"]
mod fixtures;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use restage::format::archive::{self, Kind, Layout, Limits};
use restage::format::sha256_hex;
use serde::Deserialize;

/// So many archives are read by each of the others in one go.
const BATCH: u64 = 500;
/// Of all, so many at least have to be accepted: else too little is compared.
const ACCEPTED_PERCENT: u64 = 20;
const LIMITS: Limits = Limits { files: 100, bytes: 1 << 20 };

/// What is in an archive, by name: what it is, its length, its SHA-256 or the target, and of a tree
/// mode, owner, group and time, which extracting needs rights for.
type Seen = BTreeMap<String, (String, u64, String, Option<[u64; 4]>)>;

#[derive(Deserialize)]
struct Line {
    archive: String,
    entries: Vec<(String, String, u64, String, [u64; 4])>,
    error: String,
}

fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).map_or(otherwise, |text| text.parse().unwrap())
}

/// The archive as restage sees it; none where it is refused.
fn ours(layout: Layout, mut bytes: &[u8]) -> Option<Seen> {
    let mut seen = Seen::new();
    archive::read(&mut bytes, layout, LIMITS, &mut |entry, content| {
        let mut bytes = Vec::new();
        content.read_to_end(&mut bytes)?;
        let is = match &entry.kind {
            Kind::File { .. } => ("file", sha256_hex(&bytes)),
            Kind::Directory => ("directory", String::new()),
            Kind::Symlink { target } => ("link", target.clone()),
        };
        let about = &entry.attributes;
        let about = [about.mode.into(), about.owner.into(), about.group.into(), about.modified];
        // A flat one keeps none of them.
        let about = (layout == Layout::Tree).then_some(about);
        seen.insert(entry.name.clone(), (is.0.to_owned(), entry.bytes(), is.1, about));
        Ok(())
    })
    .ok()?;
    // Others make no difference whether the top is told.
    seen.remove(".");
    Some(seen)
}

/// Whether two have seen the same, as far as both have looked.
fn is_alike(one: &Seen, other: &Seen) -> bool {
    one.len() == other.len()
        && one.iter().zip(other).all(|((one_name, one), (name, other))| {
            let are_about = one.3.zip(other.3).is_none_or(|(one, other)| one == other);
            one_name == name
                && (&one.0, one.1, &one.2) == (&other.0, other.1, &other.2)
                && are_about
        })
}

/// A name as all agree about it.
fn plain(name: &str) -> &str {
    let name = name.strip_suffix('/').unwrap_or(name);
    name.strip_prefix("./").unwrap_or(name)
}

/// What a program prints of all archives of a folder.
fn printed(command: &mut Command) -> BTreeMap<String, Result<Seen, String>> {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout).unwrap();
    let lines = lines.lines().map(|line| serde_json::from_str::<Line>(line).unwrap());
    lines
        .map(|line| {
            if !line.error.is_empty() {
                return (line.archive, Err(line.error));
            }
            let count = line.entries.len();
            let is = |(kind, name, bytes, rest, about): (String, String, u64, String, [u64; 4])| {
                (plain(&name).to_owned(), (kind, bytes, rest, Some(about)))
            };
            let mut seen: Seen = line.entries.into_iter().map(is).collect();
            let is_once = seen.len() == count;
            seen.remove(".");
            (line.archive, if is_once { Ok(seen) } else { Err("a name twice".to_owned()) })
        })
        .collect()
}

/// What a program extracts.
fn extracted(program: &str, archive: &Path, to: &Path) -> Result<Seen, String> {
    fs::create_dir(to).unwrap();
    let output = Command::new(program)
        .args(["-x", "-z", "--no-same-owner", "--no-same-permissions", "-C"])
        .arg(to)
        .arg("-f")
        .arg(archive)
        .env("LC_ALL", "C.UTF-8")
        .output()
        .unwrap();
    let mut seen = Seen::new();
    look(to, "", &mut seen);
    fs::remove_dir_all(to).unwrap();
    if output.status.success() {
        Ok(seen)
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into())
    }
}

fn look(directory: &Path, prefix: &str, seen: &mut Seen) {
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{prefix}{}", entry.file_name().into_string().unwrap());
        let kind = entry.file_type().unwrap();
        let is = if kind.is_dir() {
            look(&entry.path(), &format!("{name}/"), seen);
            ("directory".to_owned(), 0, String::new(), None)
        } else if kind.is_symlink() {
            let target = fs::read_link(entry.path()).unwrap();
            ("link".to_owned(), 0, target.into_os_string().into_string().unwrap(), None)
        } else {
            let bytes = fs::read(entry.path()).unwrap();
            ("file".to_owned(), bytes.len() as u64, sha256_hex(&bytes), None)
        };
        seen.insert(name, is);
    }
}

fn go_reader(folder: &Path) -> PathBuf {
    let program = folder.join("read-go");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/readers/read.go");
    let built = Command::new("go")
        .args(["build", "-o"])
        .arg(&program)
        .arg(source)
        .env("GOCACHE", folder.join("go"))
        .env("GO111MODULE", "off")
        .output()
        .expect("Go: scripts/setup installs it");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    program
}

#[test]
fn what_is_accepted_all_readers_see_alike() {
    let folder = tempfile::tempdir().unwrap();
    let go = go_reader(folder.path());
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/readers/read.py");
    let (first, count) = (number("RESTAGE_FIRST", 0), number("RESTAGE_ARCHIVES", 2000));
    let (mut accepted, mut entries, mut failures) = (0, 0, Vec::new());
    for batch in (first..first + count).step_by(usize::try_from(BATCH).unwrap()) {
        let archives = folder.path().join("archives");
        fs::create_dir(&archives).unwrap();
        let mut wanted = BTreeMap::new();
        for seed in batch..(batch + BATCH).min(first + count) {
            let (layout, bytes) = fixtures::random::archive(seed);
            if let Some(seen) = ours(layout, &bytes) {
                entries += seen.len();
                let name = format!("{seed:08}");
                fs::write(archives.join(&name), bytes).unwrap();
                wanted.insert(name, seen);
            }
        }
        accepted += wanted.len() as u64;
        let by_python = printed(Command::new("python3").arg(&python).arg(&archives));
        let by_go = printed(Command::new(&go).arg(&archives));
        for (name, wanted) in &wanted {
            let path = archives.join(name);
            let by_tar = extracted("tar", &path, &folder.path().join("tar"));
            let by_bsdtar = extracted("bsdtar", &path, &folder.path().join("bsdtar"));
            let found = [
                ("Python", &by_python[name]),
                ("Go", &by_go[name]),
                ("GNU tar", &by_tar),
                ("bsdtar", &by_bsdtar),
            ];
            for (reader, found) in found {
                if !found.as_ref().is_ok_and(|found| is_alike(found, wanted)) {
                    failures.push(format!("{name}: {reader}: {found:?}\n    restage: {wanted:?}"));
                }
            }
        }
        fs::remove_dir_all(archives).unwrap();
    }
    println!(
        "{count} archives, {accepted} accepted with {entries} entries, all readers agree on each"
    );
    assert!(
        failures.is_empty(),
        "{}\n{}",
        failures.len(),
        failures[..failures.len().min(10)].join("\n")
    );
    assert!(accepted * 100 >= count * ACCEPTED_PERCENT, "only {accepted} of {count} are accepted");
}

/// Whatever is accepted is accepted to its last byte.
#[test]
fn what_is_accepted_is_refused_without_its_end() {
    let gnu = tempfile::tempdir().unwrap();
    fs::write(gnu.path().join("a.txt"), "one\n".repeat(300)).unwrap();
    let mut tar = Command::new("tar");
    tar.args(["--format=gnu", "-czf", "-", "-C"]).arg(gnu.path()).arg("a.txt");
    let by_tar = (Layout::Flat, tar.output().unwrap().stdout);
    let generated = (0..60).map(fixtures::random::archive);
    let (mut archives, mut cuts) = (0, 0);
    for (layout, bytes) in generated.chain([by_tar]) {
        if ours(layout, &bytes).is_none() {
            continue;
        }
        archives += 1;
        for length in 0..bytes.len() {
            assert!(ours(layout, &bytes[..length]).is_none(), "{length} of {} bytes", bytes.len());
            cuts += 1;
        }
    }
    println!("{archives} archives, {cuts} times without their end");
    assert!(archives >= 15 && cuts >= 5000, "{archives} {cuts}");
}
