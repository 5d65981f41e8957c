mod flat;
mod frames;
mod properties;
mod tools;
mod tree;

use std::io::{Read, Write};

use flate2::bufread::GzDecoder;
use flate2::{Compression, write::GzEncoder};
use tar::{EntryType, Header};

use super::read::CUT;
use super::*;

const LIMITS: Limits = Limits { files: 100, bytes: 1 << 20 };
type Files = BTreeMap<String, Vec<u8>>;
type Contents = Vec<(Entry, Vec<u8>)>;

/// An archive of these entries.
fn archive(layout: Layout, entries: &[(Entry, Vec<u8>)]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new(), layout);
    for (entry, content) in entries {
        writer.append(entry, &mut content.as_slice()).unwrap();
    }
    writer.finish().unwrap()
}

/// Everything in an archive, in its order.
fn contents(layout: Layout, archive: &[u8]) -> Result<Contents, ReadError> {
    let mut contents = Contents::new();
    read(&mut &*archive, layout, LIMITS, &mut |entry, content| {
        let mut bytes = Vec::new();
        content.read_to_end(&mut bytes)?;
        contents.push((entry.clone(), bytes));
        Ok(())
    })?;
    Ok(contents)
}

/// A flat archive of these files.
fn written(files: &Files) -> Vec<u8> {
    let entry = |name: &String, content: &Vec<u8>| Entry::file(name, content.len() as u64, 7);
    let entries: Contents = files.iter().map(|(n, c)| (entry(n, c), c.clone())).collect();
    archive(Layout::Flat, &entries)
}

fn files(archive: &[u8]) -> Result<Files, ReadError> {
    let contents = contents(Layout::Flat, archive)?;
    Ok(contents.into_iter().map(|(entry, content)| (entry.name, content)).collect())
}

fn refused(layout: Layout, archive: &[u8]) -> String {
    match contents(layout, archive) {
        Err(ReadError::Bad(why)) => why,
        other => panic!("{other:?}"),
    }
}

fn refusal(archive: &[u8]) -> String {
    refused(Layout::Flat, archive)
}

/// Why the last of these entries, all without content, is not written.
fn not_written(layout: Layout, entries: &[Entry]) -> String {
    let mut writer = Writer::new(Vec::new(), layout);
    let (last, others) = entries.split_last().unwrap();
    for entry in others {
        writer.append(entry, &mut io::empty()).unwrap();
    }
    writer.append(last, &mut io::empty()).unwrap_err().to_string()
}

fn gzip(tar: &[u8]) -> Vec<u8> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    gzip.write_all(tar).unwrap();
    gzip.finish().unwrap()
}

fn gunzip(archive: &[u8]) -> Vec<u8> {
    let mut tar = Vec::new();
    GzDecoder::new(archive).read_to_end(&mut tar).unwrap();
    tar
}

/// A header with everything right but for what `change` does.
fn header(name: &[u8], bytes: u64, change: impl FnOnce(&mut Header)) -> Vec<u8> {
    let mut header = Header::new_ustar();
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.set_size(bytes);
    header.set_mode(0o600);
    header.set_mtime(0);
    header.set_entry_type(EntryType::Regular);
    change(&mut header);
    header.set_cksum();
    header.as_bytes().to_vec()
}

/// An archive of one such header with a content of zeros, and the end.
fn one(name: &[u8], bytes: usize, change: impl FnOnce(&mut Header)) -> Vec<u8> {
    let mut tar = header(name, bytes as u64, change);
    tar.resize(tar.len() + bytes.next_multiple_of(BLOCK) + 2 * BLOCK, 0);
    gzip(&tar)
}

/// A header of pax records, and these.
fn pax_header(records: &[u8]) -> Vec<u8> {
    let kind = |header: &mut Header| header.set_entry_type(EntryType::XHeader);
    let mut tar = header(b"PaxHeaders/x", records.len() as u64, kind);
    tar.extend_from_slice(records);
    tar.resize(tar.len().next_multiple_of(BLOCK), 0);
    tar
}

/// These blocks, and the end.
fn ended(parts: &[Vec<u8>]) -> Vec<u8> {
    let mut tar = parts.concat();
    tar.resize(tar.len() + 2 * BLOCK, 0);
    gzip(&tar)
}

fn directory(name: &str) -> Entry {
    let attributes = Attributes { mode: 0o755, ..Attributes::default() };
    Entry { name: name.to_owned(), kind: Kind::Directory, attributes }
}

fn link(name: &str, target: &str) -> Entry {
    let attributes = Attributes { mode: 0o777, ..Attributes::default() };
    let kind = Kind::Symlink { target: target.to_owned() };
    Entry { name: name.to_owned(), kind, attributes }
}

/// A tree with something of everything.
fn some_tree() -> Contents {
    let long = format!("etc/{}", "länge".repeat(25));
    let deep = format!("etc/{}/{}", "d".repeat(150), "f".repeat(90));
    let mut owned = Entry::file("etc/owned", 700, 1_700_000_000);
    owned.attributes.mode = 0o4751;
    owned.attributes.owner = 1000;
    owned.attributes.group = u32::MAX - 1;
    owned.attributes.xattrs.insert("user.empty".to_owned(), vec![]);
    owned.attributes.xattrs.insert("user.a=b%3D %25".to_owned(), b"\0\n=1 x=y\n\xff".to_vec());
    let acl = vec![2, 0, 0, 0, 1, 0, 6, 0, 0xff, 0xff, 0xff, 0xff];
    owned.attributes.xattrs.insert("system.posix_acl_access".to_owned(), acl);
    let mut top = directory(".");
    top.attributes.modified = 1 << 40;
    [
        (top, vec![]),
        (directory("etc"), vec![]),
        (owned, vec![b'x'; 700]),
        (Entry::file(long, 3, 0), b"abc".to_vec()),
        (directory(deep.rsplit_once('/').unwrap().0), vec![]),
        (Entry::file(deep.clone(), 0, 0), vec![]),
        (link("etc/up", "../etc/owned"), vec![]),
        (link("far", &deep), vec![]),
        (link(&format!("{}/top", deep.rsplit_once('/').unwrap().0), "../.."), vec![]),
    ]
    .into()
}
