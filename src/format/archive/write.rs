//! Entries and contents become an archive: the same ones always the same bytes.
//! Side: both. Writes to its sink only.

use std::io::{self, Read, Write};

use flate2::{Compression, write::GzEncoder};
use tar::{EntryType, Header};

use super::super::stream;
use super::name::{MAX_NAME_BYTES, Order, is_of_windows, unfit_target};
use super::pax::{self, Records};
use super::{
    Attributes, BLOCK, Entry, Kind, Layout, MAX_FILE_BYTES, MAX_PAX_BYTES, MAX_TIME, MODE,
    MODE_BITS, TIME, TOO_LARGE, padding, unfit_name,
};

/// ustar has room for so many bytes of the directories before a name.
const MAX_PREFIX_BYTES: usize = 155;
/// ustar has room for so many octal digits of an owner's number, and of a time.
const MAX_USTAR_ID: u32 = 0o777_7777;
const MAX_USTAR_TIME: u64 = 0o777_7777_7777;
/// What Python calls a pax header; readers of pax never look at it.
const PAX_NAME: &str = "././@PaxHeader";

/// Writes an archive.
pub struct Writer<W: Write> {
    gzip: GzEncoder<W>,
    layout: Layout,
    order: Order,
    pax_bytes: u64,
}

impl<W: Write> Writer<W> {
    /// An empty archive.
    pub fn new(sink: W, layout: Layout) -> Self {
        let gzip = GzEncoder::new(sink, Compression::default());
        Self { gzip, layout, order: Order::new(layout), pax_bytes: 0 }
    }

    /// Adds an entry, in a tree after the directory that holds it. What [`read`](super::read) would
    /// refuse is an error, and so is a `content` of fewer or more bytes than `entry` says.
    pub fn append(&mut self, entry: &Entry, content: &mut dyn Read) -> io::Result<()> {
        if let Some(why) = unfit(entry, self.layout) {
            return Err(io::Error::other(entry.refused(&why)));
        }
        self.order.add(entry).map_err(io::Error::other)?;
        let header = match self.layout {
            Layout::Flat => flat_header(entry)?,
            Layout::Tree => {
                let (header, records) = tree_header(entry);
                self.pax(&records)
                    .map_err(|why| io::Error::other(entry.refused(&why.to_string())))?;
                header
            }
        };
        self.gzip.write_all(header.as_bytes())?;
        let copied = stream::copy(&mut content.take(entry.bytes()), &mut self.gzip)?;
        if copied != entry.bytes() || content.read(&mut [0])? != 0 {
            return Err(io::Error::other(format!("`{}` was changed meanwhile", entry.name)));
        }
        self.fill(entry.bytes())
    }

    /// The header before the header, if there is something for it.
    fn pax(&mut self, records: &Records) -> io::Result<()> {
        let records = records.encode();
        let bytes = records.len() as u64;
        if bytes == 0 {
            return Ok(());
        }
        if bytes > pax::MAX_BYTES {
            return Err(io::Error::other("more than 1 MiB of extended attributes"));
        }
        self.pax_bytes += bytes;
        if self.pax_bytes > MAX_PAX_BYTES {
            return Err(io::Error::other(
                "with it, more than 16 MiB of extended attributes in all",
            ));
        }
        let mut header = Header::new_ustar();
        copy(&mut header.as_old_mut().name, PAX_NAME);
        header.set_mode(0o600);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(bytes);
        header.set_mtime(0);
        header.set_entry_type(EntryType::XHeader);
        header.set_cksum();
        self.gzip.write_all(header.as_bytes())?;
        self.gzip.write_all(&records)?;
        self.fill(bytes)
    }

    /// Fills content of this length up to a whole block.
    fn fill(&mut self, bytes: u64) -> io::Result<()> {
        self.gzip.write_all([0; BLOCK].get(..padding(bytes)).unwrap_or_default())
    }

    /// Writes the end, and gives the sink back: all bytes were handed to it.
    pub fn finish(mut self) -> io::Result<W> {
        self.gzip.write_all(&[0; 2 * BLOCK])?;
        self.gzip.finish()
    }
}

/// Why no archive of this layout holds the entry.
#[must_use]
pub fn unfit(entry: &Entry, layout: Layout) -> Option<String> {
    let refused_kind = match (&entry.kind, layout) {
        (Kind::File { .. }, _) | (_, Layout::Tree) => None,
        (Kind::Directory, Layout::Flat) => Some("a directory"),
        (Kind::Symlink { .. }, Layout::Flat) => Some("a symbolic link"),
    };
    if let Some(kind) = refused_kind {
        return Some(format!("{kind}, and {}", layout.accepts()));
    }
    if let Some(why) = unfit_name(&entry.name, layout) {
        return Some(why.to_owned());
    }
    if let Kind::Symlink { target } = &entry.kind
        && let Some(why) = unfit_target(&entry.name, target)
    {
        return Some(why.to_owned());
    }
    if entry.bytes() > MAX_FILE_BYTES {
        return Some(TOO_LARGE.to_owned());
    }
    match layout {
        Layout::Flat => (entry.attributes.modified > MAX_TIME).then(|| TIME.to_owned()),
        Layout::Tree => unfit_attributes(&entry.attributes),
    }
}

fn unfit_attributes(attributes: &Attributes) -> Option<String> {
    if attributes.mode > MODE_BITS {
        return Some(MODE.to_owned());
    }
    if let Err(why) = attributes.unfit() {
        return Some(why.to_owned());
    }
    attributes.xattrs.iter().find_map(|(name, value)| {
        let why = pax::unfit_xattr(name, value)?;
        Some(format!("`{}` {why}", super::shown(name.as_bytes())))
    })
}

/// What IncusOS reads. Owner and group are left empty, which is zero.
fn flat_header(entry: &Entry) -> io::Result<Header> {
    let mut header = Header::new_ustar();
    header.set_path(&entry.name)?;
    header.set_mode(0o600);
    header.set_size(entry.bytes());
    header.set_mtime(entry.attributes.modified);
    header.set_entry_type(EntryType::Regular);
    header.set_cksum();
    Ok(header)
}

/// The header, and the records for what does not fit into it.
fn tree_header(entry: &Entry) -> (Header, Records) {
    let attributes = &entry.attributes;
    let mut records = Records { xattrs: attributes.xattrs.clone(), ..Records::default() };
    let mut header = Header::new_ustar();
    let mut path = entry.name.clone();
    if is_of_windows(&path) {
        path.insert_str(0, "./");
    }
    let kind = match &entry.kind {
        Kind::File { .. } => EntryType::Regular,
        Kind::Directory => {
            path.push('/');
            EntryType::Directory
        }
        Kind::Symlink { target } => {
            copy(&mut header.as_old_mut().linkname, target);
            records.target = Some(target.clone()).filter(|target| target.len() > MAX_NAME_BYTES);
            EntryType::Symlink
        }
    };
    header.set_entry_type(kind);
    if let Some((prefix, name)) = split(&path) {
        copy(&mut header.as_old_mut().name, name);
        if let Some(ustar) = header.as_ustar_mut() {
            copy(&mut ustar.prefix, prefix);
        }
    } else {
        copy(&mut header.as_old_mut().name, &path);
        records.path = Some(path);
    }
    let id = |id: u32| if id > MAX_USTAR_ID { (0, Some(id)) } else { (u64::from(id), None) };
    let (owner, pax_owner) = id(attributes.owner);
    let (group, pax_group) = id(attributes.group);
    header.set_uid(owner);
    header.set_gid(group);
    (records.owner, records.group) = (pax_owner, pax_group);
    header.set_mode(attributes.mode);
    header.set_size(entry.bytes());
    if attributes.modified > MAX_USTAR_TIME {
        records.modified = Some(attributes.modified);
    }
    header.set_mtime(attributes.modified.min(MAX_USTAR_TIME));
    header.set_cksum();
    (header, records)
}

/// A path in the two fields of ustar, the slash between them in neither; none when it has no place.
fn split(path: &str) -> Option<(&str, &str)> {
    if path.len() <= MAX_NAME_BYTES {
        return Some(("", path));
    }
    path.match_indices('/').find_map(|(at, _)| {
        let (prefix, name) = (path.get(..at)?, path.get(at + 1..)?);
        let fits = prefix.len() <= MAX_PREFIX_BYTES && name.len() <= MAX_NAME_BYTES;
        (fits && !name.is_empty()).then_some((prefix, name))
    })
}

/// Puts into a field of zeros as much of a text as it takes, in whole characters.
fn copy(field: &mut [u8], text: &str) {
    let mut end = text.len().min(field.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    for (byte, of_text) in field.iter_mut().zip(text.as_bytes().iter().take(end)) {
        *byte = *of_text;
    }
}
