//! Backups: of each layout, compressed, and what extends the headers of a tree.

use std::collections::BTreeSet;
use std::io::{self, BufRead, Read, Write};

use flate2::read::MultiGzDecoder;
use restage::format::archive::{self, Entry, Kind, Layout, Limits, ReadError, Visit, Writer};

use crate::bytes::{Bytes, told};
use crate::fixtures::tar::{Head, Tar, gzip, record};
use crate::fixtures::{archives, random};
use crate::seal;

const LIMITS: Limits = Limits { files: 60, bytes: 1 << 20 };
/// Of the first byte: headers get sums that are right.
const SEALED: u8 = 1;
/// It is read in small pieces as well, and what is in the files is skipped.
const IN_PIECES: u8 = 2;
/// It ends as it has to.
const ENDED: u8 = 4;

pub const FRAME_WORDS: &[&str] = &[
    "{\"name\":\"",
    "\"kind\":{\"file\":{\"bytes\":0}}",
    "\"kind\":\"directory\"",
    "\"kind\":{\"symlink\":{\"target\":\"",
    "\"attributes\":{\"mode\":384,\"owner\":0,\"group\":0,\"modified\":0,\"xattrs\":{}}}",
    "G\u{0}\u{0}\u{0}\u{0}",
    "C\u{1}\u{0}\u{0}\u{0}",
];

pub const WORDS: &[&str] = &[
    "ustar\u{0}00",
    "ustar  \u{0}",
    "./",
    "../",
    "0000600\u{0}",
    "00000000000\u{0}",
    "00000001000\u{0}",
    "state.txt",
    ".restage",
    "\u{0}\u{0}\u{0}\u{0}\u{0}\u{0}\u{0}\u{0}",
    "30 mtime=1700000000.123456789\n",
    "SCHILY.xattr.user.a=",
    "SCHILY.xattr.system.posix_acl_access=",
    "path=",
    "linkpath=",
    "uid=3000000\n",
];

type Seen = Vec<(Entry, Vec<u8>)>;

/// Reads it to the end: what was in it, or what was said.
fn read(source: &mut dyn BufRead, layout: Layout) -> Result<Seen, String> {
    seen_by(&mut |visit| archive::read(source, layout, LIMITS, visit))
}

type Reading<'a> = dyn FnMut(&mut Visit<'_>) -> Result<(), ReadError> + 'a;

fn seen_by(reading: &mut Reading<'_>) -> Result<Seen, String> {
    let mut seen = Seen::new();
    let mut bytes = 0;
    let result = reading(&mut |entry, content| {
        let mut all = Vec::new();
        content.read_to_end(&mut all)?;
        assert_eq!(all.len() as u64, entry.bytes());
        bytes += entry.bytes();
        seen.push((entry.clone(), all));
        Ok(())
    });
    assert!(bytes <= LIMITS.bytes && seen.len() as u64 <= LIMITS.files, "no limit");
    result.map_err(refusal)?;
    Ok(seen)
}

fn refusal(error: ReadError) -> String {
    match error {
        ReadError::Bad(why) => {
            told(&why);
            assert!(!why.chars().any(char::is_control), "{why:?}");
            why
        }
        ReadError::Io(error) | ReadError::Parser(error) => panic!("memory cannot be read: {error}"),
    }
}

/// A source that gives a few bytes at a time.
struct Pieces<'a>(&'a [u8]);

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(buffer)?;
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for Pieces<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        Ok(&self.0[..self.0.len().min(1 + self.0.len() % 7)])
    }
    fn consume(&mut self, count: usize) {
        self.0 = &self.0[count..];
    }
}

fn check(member: &[u8], layout: Layout, in_pieces: bool) {
    let seen = read(&mut { member }, layout);
    if in_pieces {
        let mut skipped = Vec::new();
        let result = archive::read(&mut Pieces(member), layout, LIMITS, &mut |entry, _| {
            skipped.push(entry.clone());
            Ok(())
        });
        let result = result.map_err(refusal);
        // How far a damaged stream is read before it is seen to be depends on how it comes.
        let is_damaged = |why: &String| why.starts_with("gzip: ");
        if !result.as_ref().is_err_and(is_damaged) && !seen.as_ref().is_err_and(is_damaged) {
            assert_eq!(result.as_ref(), seen.as_ref().map(|_| &()));
        }
        assert_eq!(result.is_ok(), seen.is_ok());
        if let Ok(seen) = &seen {
            assert!(skipped.iter().eq(seen.iter().map(|(entry, _)| entry)));
        }
        // Another process has read it.
        let mut told = Vec::new();
        archive::send(&mut { member }, layout, LIMITS, &mut told).unwrap();
        assert_eq!(heard(&told, layout), seen);
    }
    let Ok(seen) = seen else { return };
    stays_inside(&seen, layout);
    // A compressor takes its time, so not always.
    if is_once_in(8, member) {
        written_again(&seen, layout);
    }
}

/// One in so many times, by what is read.
fn is_once_in(times: u32, member: &[u8]) -> bool {
    seal::crc32(member).is_multiple_of(times)
}

fn written_again(seen: &Seen, layout: Layout) {
    let mut writer = Writer::new(Vec::new(), layout);
    for (entry, content) in seen {
        writer.append(entry, &mut content.as_slice()).expect("what is read can be written");
    }
    let again = read(&mut writer.finish().unwrap().as_slice(), layout);
    assert_eq!(again.as_ref(), Ok(seen), "written again, it is another one");
}

/// No name and no link leads out, each name is there once, and directories come first.
fn stays_inside(seen: &Seen, layout: Layout) {
    let (mut names, mut directories) = (BTreeSet::new(), BTreeSet::new());
    for (Entry { name, kind, .. }, _) in seen {
        assert!(names.insert(name), "{name} twice");
        if layout == Layout::Flat {
            assert!(matches!(kind, Kind::File { .. }) && !name.contains('/'));
        }
        let parts: Vec<&str> = name.split('/').collect();
        assert!(
            name == "." || parts.iter().all(|part| !matches!(*part, "" | "." | "..")),
            "{name}"
        );
        if let Some((parent, _)) = name.rsplit_once('/') {
            assert!(directories.contains(parent), "{name} comes before its directory");
        }
        match kind {
            Kind::File { .. } => {}
            Kind::Directory => drop(directories.insert(name.clone())),
            Kind::Symlink { target } => {
                let ups = target.split('/').take_while(|part| *part == "..").count();
                let rest = target.split('/').skip(ups);
                let is_plain = rest.clone().all(|part| !matches!(part, "" | "." | ".."));
                assert!(ups < parts.len() && is_plain, "{name} leads to {target}");
            }
        }
    }
}

fn tar(bytes: &[u8], layout: Layout) {
    let mut bytes = Bytes(bytes);
    let how = bytes.byte();
    let mut tar = bytes.0.to_vec();
    if how & ENDED != 0 {
        tar.resize(tar.len().next_multiple_of(512) + 1024, 0);
    }
    if how & SEALED != 0 {
        seal::tar(&mut tar);
    }
    check(&seal::gzip(&tar), layout, how & IN_PIECES != 0);
}

pub fn flat(bytes: &[u8]) {
    tar(bytes, Layout::Flat);
}

pub fn tree(bytes: &[u8]) {
    tar(bytes, Layout::Tree);
}

/// Any compressed bytes.
pub fn gz(bytes: &[u8]) {
    let mut bytes = Bytes(bytes);
    let how = bytes.byte();
    let layout = if how & 1 == 0 { Layout::Flat } else { Layout::Tree };
    check(bytes.0, layout, how & IN_PIECES != 0);
}

fn heard(mut told: &[u8], layout: Layout) -> Result<Seen, String> {
    seen_by(&mut |visit| archive::receive(&mut told, layout, LIMITS, visit))
}

/// What the process that parses a backup says, whatever has become of it.
pub fn frames(bytes: &[u8]) {
    let mut bytes = Bytes(bytes);
    let layout = if bytes.byte() & 1 == 0 { Layout::Flat } else { Layout::Tree };
    let mut seen = Seen::new();
    let _ = archive::receive(&mut { bytes.0 }, layout, LIMITS, &mut |entry, content| {
        assert_eq!(archive::unfit(entry, layout), None);
        let mut all = Vec::new();
        if content.read_to_end(&mut all).is_ok() {
            assert_eq!(all.len() as u64, entry.bytes());
        }
        seen.push((entry.clone(), all));
        Ok(())
    });
    stays_inside(&seen, layout);
}

pub fn frames_seeds() -> Vec<Vec<u8>> {
    let layouts = [(0, Layout::Flat), (1, Layout::Tree)];
    let told = |(how, layout)| {
        known(layout).take(40).map(move |(bytes, _)| {
            let mut told = vec![how];
            archive::send(&mut bytes.as_slice(), layout, LIMITS, &mut told).unwrap();
            told
        })
    };
    layouts.into_iter().flat_map(told).collect()
}

/// Records before a file of a tree: as they are, or each line as one with its length.
pub fn pax(bytes: &[u8]) {
    let mut bytes = Bytes(bytes);
    let how = bytes.byte();
    let records = if how & SEALED == 0 {
        bytes.0.to_vec()
    } else {
        let line = |line: &[u8]| {
            let (key, value) = line.split_at(line.iter().position(|b| *b == b'=').unwrap_or(0));
            record(&String::from_utf8_lossy(key), value.get(1..).unwrap_or_default())
        };
        // More of them are only slower: floods are `MAX_BYTES` of records as they are.
        bytes.0.split(|byte| *byte == b'\n').take(64).flat_map(line).collect()
    };
    let tar = Tar::default().pax(b'x', &records);
    let tar = if how & ENDED == 0 { tar.file("x", b"abc") } else { tar.link("x", "y") };
    check(&seal::gzip(&tar.zeros(2).0), Layout::Tree, how & IN_PIECES != 0);
}

/// The archives of the fixtures that are small, and what is in them: good ones, and hostile ones.
fn known(layout: Layout) -> impl Iterator<Item = (Vec<u8>, Vec<u8>)> {
    let made = (0..60).map(random::archive).filter(move |(of, _)| *of == layout);
    let hostile = match layout {
        Layout::Flat => archives::flat("#Version: 8\n", (60, 1 << 20)),
        Layout::Tree => archives::tree((60, 1 << 20)),
    };
    let hostile = hostile.into_iter().map(|hostile| hostile.bytes);
    made.map(|(_, bytes)| bytes).chain(hostile).filter_map(|bytes| {
        let mut tar = Vec::new();
        // Some are cut or have a wrong sum: what comes before is as good.
        let _ = MultiGzDecoder::new(bytes.as_slice()).take(5000).read_to_end(&mut tar);
        (bytes.len() < 2000 && tar.len() < 5000 && !tar.is_empty()).then_some((bytes, tar))
    })
}

fn with(how: u8, bytes: &[u8]) -> Vec<u8> {
    [&[how], bytes].concat()
}

fn seeds(layout: Layout) -> Vec<Vec<u8>> {
    known(layout).map(|(_, tar)| with(IN_PIECES, &tar)).collect()
}

pub fn flat_seeds() -> Vec<Vec<u8>> {
    let mut seeds = seeds(Layout::Flat);
    seeds.push(with(SEALED | ENDED, &Tar::default().file("state.txt", b"x").0));
    seeds
}

pub fn tree_seeds() -> Vec<Vec<u8>> {
    let mut seeds = seeds(Layout::Tree);
    let tar = Tar::default().directory("./").directory("etc/").link("etc/l", "../x");
    let records = record("SCHILY.xattr.user.a", b"b");
    seeds.push(with(SEALED | ENDED, &tar.clone().pax(b'x', &records).file("etc/f", b"x").0));
    let long = Head::file("f", 0).with(345, b"etc").gnu();
    seeds.push(with(SEALED | ENDED, &tar.head(&long).0));
    seeds
}

pub fn gz_seeds() -> Vec<Vec<u8>> {
    let mut all: Vec<_> = known(Layout::Flat).take(40).map(|(gz, _)| with(0, &gz)).collect();
    all.extend(known(Layout::Tree).take(40).map(|(gz, _)| with(1 | IN_PIECES, &gz)));
    let mut bomb = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    bomb.write_all(&vec![0; 3 << 20]).unwrap();
    all.extend([with(0, &bomb.finish().unwrap()), with(0, &gzip(b"")), with(0, &seal::gzip(b""))]);
    all
}

pub fn pax_seeds() -> Vec<Vec<u8>> {
    let lines = [
        "path=etc/f",
        "path=f\nuid=3000000\ngid=7\nmtime=1.5",
        "linkpath=y\natime=-1.25\nctime=3",
        "uname=root\ngname=wheel",
        "SCHILY.xattr.user.a%3Db=1\nSCHILY.xattr.security.capability=\u{1}",
        "SCHILY.xattr.system.posix_acl_default=x\nSCHILY.xattr.trusted.x=",
        "size=1",
        "GNU.sparse.major=1",
    ];
    let mut all: Vec<_> = lines.iter().map(|line| with(SEALED, line.as_bytes())).collect();
    all.extend(lines.iter().map(|line| with(SEALED | ENDED | IN_PIECES, line.as_bytes())));
    all.push(with(0, &record("path", "f")));
    all
}
