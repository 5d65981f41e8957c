//! One header block of the accepted dialect.
//! Side: both. Pure.

use tar::EntryType;

use super::name::{OF_WINDOWS, TOP, is_of_windows, unfit_target};
use super::{
    Attributes, BLOCK, Entry, Kind, Layout, MAX_FILE_BYTES, MAX_TIME, MODE, MODE_BITS, ReadError,
    TIME, TOO_LARGE, bad, pax, shown, unfit_name,
};

const DAMAGED: &str = "a number in the header is damaged";
const NO_LINK: &str = "the target of a link, and it is none";
/// Set in the first byte of a number that GNU tar wrote in base 256.
const BASE_256: u8 = 0x80;

/// A header that is whole; what it says is not checked yet.
pub(super) struct Header<'a> {
    tar: &'a tar::Header,
    layout: Layout,
}

/// What other readers would take for something else, or would not read at all, whatever it is an
/// entry of. Fields that an accepted entry does not use are filled with zeros by all writers.
fn unread_alike(tar: &tar::Header, block: &[u8; BLOCK]) -> Option<&'static str> {
    let fields = tar.as_old();
    let (unused, numbers, texts): (_, _, &[&[u8]]) = match (tar.as_ustar(), tar.as_gnu()) {
        // Some take bytes after the prefix for the mark of another format, with a shorter one.
        (Some(ustar), _) => {
            (block.get(500..), [&ustar.dev_major, &ustar.dev_minor], &[&ustar.prefix])
        }
        // Some read a prefix here that is none.
        (None, Some(gnu)) => (block.get(345..), [&gnu.dev_major, &gnu.dev_minor], &[]),
        (None, None) => return Some("neither a ustar nor a GNU tar header"),
    };
    if !unused.is_some_and(is_empty) {
        return Some("a field that is in use and should not be");
    }
    let is_cut = |text: &&[u8]| text.iter().skip_while(|byte| **byte != 0).any(|byte| *byte != 0);
    if [&fields.name, &fields.linkname]
        .into_iter()
        .map(<[u8; 100]>::as_slice)
        .chain(texts.iter().copied())
        .any(|text| is_cut(&text))
    {
        return Some("something after the end of a name");
    }
    let is_number = |field: &&[u8; 8]| is_empty(*field) || octal(*field).is_some();
    let is_whole = numbers.iter().all(is_number)
        && is_number(&&fields.mode)
        && id(&fields.uid).is_some()
        && id(&fields.gid).is_some();
    // Also where pax records take their place.
    match number(&fields.mtime) {
        Some(seconds) if seconds > MAX_TIME => Some(TIME),
        Some(_) if is_whole => None,
        _ => Some(DAMAGED),
    }
}

fn is_empty(field: &[u8]) -> bool {
    field.iter().all(|byte| *byte == 0)
}

/// A refusal that names the entry.
fn wrong<T>(name: &[u8], why: &str) -> Result<T, ReadError> {
    bad(format!("`{}`: {why}", shown(name)))
}

impl<'a> Header<'a> {
    pub(super) fn open(block: &'a [u8; BLOCK], layout: Layout) -> Result<Self, ReadError> {
        let tar = tar::Header::from_byte_slice(block);
        // The sum of all bytes, those of the sum itself counted as blanks (POSIX.1-1988).
        let sum = |range: std::ops::Range<usize>| -> u32 {
            block.get(range).unwrap_or_default().iter().map(|byte| u32::from(*byte)).sum()
        };
        let said = octal(&tar.as_old().cksum);
        if said != Some(u64::from(sum(0..148) + 8 * 32 + sum(156..BLOCK))) {
            return bad("a header is damaged, or this is no tar archive");
        }
        let header = Self { tar, layout };
        if let Some(why) = unread_alike(tar, block) {
            return header.wrong(why);
        }
        Ok(header)
    }

    /// A refusal that names this header as it names itself.
    pub(super) fn wrong<T>(&self, why: &str) -> Result<T, ReadError> {
        wrong(&self.tar.path_bytes(), why)
    }

    /// Length of the pax records that follow, if this is their header and not an entry's.
    pub(super) fn pax_bytes(&self) -> Result<Option<u64>, ReadError> {
        if self.layout == Layout::Flat || self.tar.entry_type() != EntryType::XHeader {
            return Ok(None);
        }
        let bytes = self.size().or_else(|why| self.wrong(why))?;
        if bytes > pax::MAX_BYTES {
            return self.wrong("a pax header of more than 1 MiB");
        }
        Ok(Some(bytes))
    }

    /// The entry, with the pax records that came before it.
    pub(super) fn entry(&self, records: Option<&[u8]>) -> Result<Entry, ReadError> {
        if let Some(kind) = self.refused_kind() {
            return self.wrong(&format!("{kind}, and {}", self.layout.accepts()));
        }
        match self.layout {
            Layout::Flat => self.flat_entry(),
            Layout::Tree => match pax::parse(records.unwrap_or_default()) {
                Ok(records) => self.tree_entry(records),
                Err(why) => self.wrong(&why),
            },
        }
    }

    fn refused_kind(&self) -> Option<&'static str> {
        let is_flat = self.layout == Layout::Flat;
        // With a name that ends in a slash some take it for a directory, without content.
        if self.tar.as_old().linkflag == [0] {
            return Some("a file as it was marked before POSIX");
        }
        match self.tar.entry_type() {
            EntryType::Regular => None,
            EntryType::Directory => is_flat.then_some("a directory"),
            EntryType::Symlink => is_flat.then_some("a symbolic link"),
            EntryType::Link => Some("a hard link"),
            EntryType::Char => Some("a character device"),
            EntryType::Block => Some("a block device"),
            EntryType::Fifo => Some("a FIFO"),
            EntryType::GNULongName | EntryType::GNULongLink => Some("a GNU long name"),
            EntryType::GNUSparse => Some("a sparse file"),
            EntryType::XGlobalHeader if !is_flat => Some("a global pax header"),
            EntryType::XHeader | EntryType::XGlobalHeader => Some("a pax header"),
            EntryType::Continuous => Some("a contiguous file"),
            _ => Some("of an unknown kind"),
        }
    }

    fn flat_entry(&self) -> Result<Entry, ReadError> {
        let bytes = self.tar.path_bytes();
        let Ok(name) = std::str::from_utf8(&bytes) else {
            return self.wrong("the name is not UTF-8");
        };
        let name = name.strip_prefix("./").unwrap_or(name);
        if let Some(why) = unfit_name(name, Layout::Flat) {
            return self.wrong(why);
        }
        let fields = self.tar.as_old();
        if !is_empty(&fields.linkname) {
            return self.wrong(NO_LINK);
        }
        let Some(modified) = number(&fields.mtime) else {
            return self.wrong(DAMAGED);
        };
        let bytes = self.size().or_else(|why| self.wrong(why))?;
        Ok(Entry::file(name, bytes, modified))
    }

    fn tree_entry(&self, mut records: pax::Records) -> Result<Entry, ReadError> {
        let path = records.path.take().map(String::into_bytes);
        let path = path.map_or_else(|| self.tar.path_bytes(), Into::into);
        self.described(&path, records).or_else(|why| wrong(&path, why))
    }

    fn described(&self, path: &[u8], records: pax::Records) -> Result<Entry, &'static str> {
        let kind = self.tar.entry_type();
        let path = std::str::from_utf8(path).map_err(|_| "the name is not UTF-8")?;
        if is_of_windows(path) {
            return Err(OF_WINDOWS);
        }
        let name = plain_path(path, kind == EntryType::Directory).ok_or("not a plain path")?;
        if let Some(why) = unfit_name(name, Layout::Tree) {
            return Err(why);
        }
        let target = match (records.target, self.tar.link_name_bytes()) {
            (None, Some(bytes)) => Some(
                String::from_utf8(bytes.into())
                    .map_err(|_| "the target of the link is not UTF-8")?,
            ),
            (target, _) => target,
        };
        let bytes = self.size()?;
        let kind = match (kind, target) {
            (EntryType::Symlink, target) => {
                let target = target.unwrap_or_default();
                if let Some(why) = unfit_target(name, &target) {
                    return Err(why);
                }
                Kind::Symlink { target }
            }
            (_, Some(_)) => return Err(NO_LINK),
            (EntryType::Directory, None) => Kind::Directory,
            (_, None) => Kind::File { bytes },
        };
        if bytes != 0 && !matches!(kind, Kind::File { .. }) {
            return Err("a length, and it is no file");
        }
        let fields = self.tar.as_old();
        let mode = octal(&fields.mode).ok_or(DAMAGED)?;
        let attributes = Attributes {
            mode: u32::try_from(mode).ok().filter(|mode| *mode <= MODE_BITS).ok_or(MODE)?,
            owner: records.owner.or_else(|| id(&fields.uid)).ok_or(DAMAGED)?,
            group: records.group.or_else(|| id(&fields.gid)).ok_or(DAMAGED)?,
            modified: records.modified.or_else(|| number(&fields.mtime)).ok_or(DAMAGED)?,
            xattrs: records.xattrs,
        };
        attributes.unfit()?;
        Ok(Entry { name: name.to_owned(), kind, attributes })
    }

    /// The length of what follows; readers that differ about it would see different archives.
    fn size(&self) -> Result<u64, &'static str> {
        let bytes = octal(&self.tar.as_old().size).ok_or(DAMAGED)?;
        if bytes > MAX_FILE_BYTES { Err(TOO_LARGE) } else { Ok(bytes) }
    }
}

/// A path from the top of the tree: without the `./` that it may begin with, nor the `/` that ends a
/// directory's.
fn plain_path(path: &str, is_directory: bool) -> Option<&str> {
    if path == TOP || path == "./" {
        return Some(TOP);
    }
    let name = path.strip_prefix("./").unwrap_or(path);
    let name = if is_directory { name.strip_suffix('/').unwrap_or(name) } else { name };
    // `./.`, `.//` and `/` are other ways to write the top, and two are enough.
    let is_top = name == TOP || name.is_empty() && !path.is_empty();
    (!is_top).then_some(name)
}

/// Octal digits, blanks before them, blanks or zeros after them, and nothing else.
fn octal(field: &[u8]) -> Option<u64> {
    let blanks = field.iter().take_while(|byte| **byte == b' ').count();
    let text = field.get(blanks..)?;
    let digits = text.iter().take_while(|byte| (b'0'..=b'7').contains(*byte)).count();
    let (digits, end) = text.split_at_checked(digits)?;
    if !end.iter().all(|byte| matches!(byte, b' ' | 0)) {
        return None;
    }
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()
}

/// Octal, or GNU tar's base 256, which has a bit for negative ones: none of them is accepted.
fn number(field: &[u8]) -> Option<u64> {
    let (first, rest) = field.split_first()?;
    if first & BASE_256 == 0 {
        return octal(field);
    }
    rest.iter().try_fold(u64::from(first & !BASE_256), |number, byte| {
        number.checked_mul(256)?.checked_add(u64::from(*byte))
    })
}

/// The number of an owner or a group. An empty field is zero: all readers agree about it, and a flat
/// archive has it.
fn id(field: &[u8]) -> Option<u32> {
    if is_empty(field) {
        return Some(0);
    }
    u32::try_from(number(field)?).ok()
}
