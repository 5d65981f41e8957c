//! One header of the accepted dialect (POSIX.1-1988 ustar, and GNU's).
//! Side: both. Pure.

use std::io;

use tar::{EntryType, Header};

use super::names::unfit;
use super::pax::{self, Extended};
use super::{Attributes, BLOCK, Entry, Kind, Layout, MAX_FILE_BYTES, ReadError, bad};

/// What a header announces.
pub enum Head {
    /// An entry.
    Entry(Entry),
    /// More about the next entry, so many bytes.
    Pax { bytes: u64 },
}

/// ustar's fields.
const MAX_NAME_BYTES: usize = 100;
const MAX_ID: u32 = 0o777_7777;

/// Reads a header; `extended` is what a pax header said of it, and is used up.
pub fn parse(
    block: &[u8; BLOCK],
    layout: Layout,
    extended: &mut Option<Extended>,
) -> Result<Head, ReadError> {
    let header = Header::from_byte_slice(block);
    let raw = header.path_bytes();
    let shown: String = String::from_utf8_lossy(&raw).escape_debug().take(200).collect();
    let wrong = |why: &str| bad(format!("`{shown}`: {why}"));
    // The sum of all bytes, those of the sum itself counted as blanks (POSIX.1-1988).
    let sum = |range: std::ops::Range<usize>| -> u32 {
        block.get(range).unwrap_or_default().iter().map(|byte| u32::from(*byte)).sum()
    };
    if header.cksum().ok() != Some(sum(0..148) + 8 * 32 + sum(156..BLOCK)) {
        return bad("a header is damaged, or this is no tar archive");
    }
    if header.as_ustar().is_none() && header.as_gnu().is_none() {
        return wrong("neither a ustar nor a GNU tar header");
    }
    let is_tree = layout == Layout::Tree;
    let refused = match header.entry_type() {
        EntryType::Regular => None,
        EntryType::Directory | EntryType::Symlink | EntryType::XHeader if is_tree => None,
        EntryType::Directory => Some("a directory"),
        EntryType::Link => Some("a hard link"),
        EntryType::Symlink => Some("a symbolic link"),
        EntryType::Char => Some("a character device"),
        EntryType::Block => Some("a block device"),
        EntryType::Fifo => Some("a FIFO"),
        EntryType::GNULongName | EntryType::GNULongLink => Some("a GNU long name"),
        EntryType::GNUSparse => Some("a sparse file"),
        EntryType::XHeader | EntryType::XGlobalHeader => Some("a pax header"),
        EntryType::Continuous => Some("a contiguous file"),
        _ => Some("of an unknown kind"),
    };
    if let Some(kind) = refused {
        let only = if is_tree { "files, directories and symbolic links" } else { "regular files" };
        return wrong(&format!("{kind}, and only {only} are accepted"));
    }
    let (Ok(bytes), Ok(modified)) = (header.entry_size(), header.mtime()) else {
        return wrong("a number in the header is damaged");
    };
    if header.entry_type() == EntryType::XHeader {
        if extended.is_some() {
            return wrong("two pax headers for one entry");
        }
        if bytes > pax::MAX_BYTES {
            return wrong("a pax header that is too long");
        }
        return Ok(Head::Pax { bytes });
    }
    let extended = extended.take().unwrap_or_default();
    let name = match (extended.path, std::str::from_utf8(&raw)) {
        (Some(name), _) => name,
        (None, Ok(name)) => name.to_owned(),
        (None, Err(_)) => return wrong("the name is not UTF-8"),
    };
    let shown: String = name.escape_debug().take(200).collect();
    let wrong = |why: &str| bad(format!("`{shown}`: {why}"));
    if bytes > MAX_FILE_BYTES {
        return wrong("larger than 8 GiB");
    }
    let kind = match header.entry_type() {
        EntryType::Directory => Kind::Directory,
        EntryType::Symlink => {
            let target = header.link_name_bytes().unwrap_or_default();
            match (extended.target, std::str::from_utf8(&target)) {
                (Some(target), _) => Kind::Symlink { target },
                (None, Ok(target)) => Kind::Symlink { target: target.to_owned() },
                (None, Err(_)) => return wrong("the target of the link is not UTF-8"),
            }
        }
        _ => Kind::File { bytes },
    };
    if bytes != 0 && !matches!(kind, Kind::File { .. }) {
        return wrong("a content, and it is no file");
    }
    let attributes = if is_tree {
        let id = |extended: Option<u32>, header: io::Result<u64>| {
            extended.or_else(|| header.ok().and_then(|id| u32::try_from(id).ok()))
        };
        let (Ok(mode), Some(owner), Some(group)) =
            (header.mode(), id(extended.owner, header.uid()), id(extended.group, header.gid()))
        else {
            return wrong("a number in the header is damaged");
        };
        let modified = extended.modified.unwrap_or(modified);
        Attributes { mode: mode & 0o7777, owner, group, modified, xattrs: extended.xattrs }
    } else {
        Attributes { modified, ..Attributes::default() }
    };
    // How GNU tar calls what lies in `.`, and a directory.
    let plain = name.strip_prefix("./").unwrap_or(&name);
    let plain = if is_tree && kind == Kind::Directory {
        let plain = plain.strip_suffix('/').unwrap_or(plain);
        if plain.is_empty() { "." } else { plain }
    } else {
        plain
    };
    let entry = Entry { name: plain.to_owned(), kind, attributes };
    match unfit(&entry, layout) {
        Some(why) => wrong(why),
        None => Ok(Head::Entry(entry)),
    }
}

/// The blocks before an entry's content: its header, and one before that with what does not fit.
pub fn encode(entry: &Entry, layout: Layout) -> io::Result<Vec<Vec<u8>>> {
    let mut header = Header::new_ustar();
    header.set_size(entry.bytes());
    header.set_mtime(entry.attributes.modified);
    header.set_mode(0o600);
    header.set_entry_type(match entry.kind {
        Kind::File { .. } => EntryType::Regular,
        Kind::Directory => EntryType::Directory,
        Kind::Symlink { .. } => EntryType::Symlink,
    });
    let mut name = entry.name.clone();
    if entry.kind == Kind::Directory {
        name.push('/');
    }
    let mut extended = Extended::default();
    put(&mut header.as_old_mut().name, &name, &mut extended.path);
    if let Kind::Symlink { target } = &entry.kind {
        put(&mut header.as_old_mut().linkname, target, &mut extended.target);
    }
    if layout == Layout::Tree {
        let attributes = &entry.attributes;
        header.set_mode(attributes.mode);
        let fits = |id: u32| (id <= MAX_ID).then_some(u64::from(id));
        header.set_uid(fits(attributes.owner).unwrap_or(0));
        header.set_gid(fits(attributes.group).unwrap_or(0));
        extended.owner = fits(attributes.owner).is_none().then_some(attributes.owner);
        extended.group = fits(attributes.group).is_none().then_some(attributes.group);
        extended.xattrs = attributes.xattrs.clone();
    }
    header.set_cksum();
    let more = pax::encode(&extended);
    let mut blocks = Vec::new();
    if !more.is_empty() {
        let length = more.len() as u64;
        if length > pax::MAX_BYTES {
            let why = format!("`{}` has too many extended attributes", entry.name);
            return Err(io::Error::other(why));
        }
        let mut before = Header::new_ustar();
        put(&mut before.as_old_mut().name, &format!("PaxHeaders/{name}"), &mut None);
        before.set_size(length);
        before.set_mode(0o600);
        before.set_mtime(0);
        before.set_entry_type(EntryType::XHeader);
        before.set_cksum();
        blocks.push(before.as_bytes().to_vec());
        let mut padded = more;
        padded.resize(padded.len().next_multiple_of(BLOCK), 0);
        blocks.push(padded);
    }
    blocks.push(header.as_bytes().to_vec());
    Ok(blocks)
}

/// Puts a name where it fits; else the beginning of it, and the whole of it into the pax header.
fn put(field: &mut [u8; MAX_NAME_BYTES], name: &str, otherwise: &mut Option<String>) {
    if name.len() > field.len() {
        *otherwise = Some(name.to_owned());
    }
    for (byte, new) in field.iter_mut().zip(name.bytes()) {
        *byte = new;
    }
}
