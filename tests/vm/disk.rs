//! A disk seen from outside: its partitions, and any byte of it.

use crate::command::{Background, run};
use crate::failure::{Doing, Failure, Outcome};
use crate::lab::tool;
use crate::nbd::Nbd;
use serde_json::Value;
use std::cell::RefCell;
use std::fmt::Write as _;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

pub const SECTOR: u64 = 512;
/// Enough of a disk at once to be fast, and little enough for memory.
const BLOCK: u64 = 8 << 20;

/// What a disk is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
}

#[derive(Debug)]
pub struct Disk {
    nbd: Rc<RefCell<Nbd>>,
    server: Option<Background>,
    _sockets: Option<tempfile::TempDir>,
    /// None when a machine shows it, which may not have written all of it yet.
    path: Option<PathBuf>,
}

/// One used entry of the partition table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    pub number: usize,
    pub kind: String,
    pub guid: String,
    pub name: String,
    pub start: u64,
    pub length: u64,
}

impl Disk {
    /// Opens a qcow2 file that no machine has open for writing.
    pub fn open(path: &Path, access: Access) -> Outcome<Self> {
        let sockets = tempfile::tempdir().doing("making a directory for sockets")?;
        let socket = sockets.path().join("nbd");
        let mut args = vec![
            format!("--socket={}", socket.display()),
            "--export-name=disk".to_owned(),
            "--format=qcow2".to_owned(),
        ];
        if access == Access::Read {
            args.push("--read-only".to_owned());
        }
        args.push(path.display().to_string());
        let log = sockets.path().join("log");
        let server = Background::start(&tool("qemu-nbd", "")?, &args, &log)?;
        let nbd = Nbd::connect(&socket, "disk").map_err(|cause| {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            Failure::new(format!("opening a disk from outside: {cause} {}", said.trim()))
        })?;
        Ok(Self {
            nbd: Rc::new(RefCell::new(nbd)),
            server: Some(server),
            _sockets: Some(sockets),
            path: Some(path.to_owned()),
        })
    }

    /// A disk that a stopped machine exports itself.
    pub fn exported(nbd: Nbd) -> Self {
        Self { nbd: Rc::new(RefCell::new(nbd)), server: None, _sockets: None, path: None }
    }

    pub fn read(&self, offset: u64, length: u64) -> Outcome<Vec<u8>> {
        let mut bytes = vec![0_u8; usize::try_from(length).doing("a length")?];
        self.nbd.borrow_mut().read(offset, &mut bytes)?;
        Ok(bytes)
    }

    pub fn write(&self, offset: u64, bytes: &[u8]) -> Outcome {
        self.nbd.borrow_mut().write(offset, bytes)
    }

    pub fn zero(&self, offset: u64, length: u64) -> Outcome {
        self.nbd.borrow_mut().zero(offset, length)
    }

    /// Makes what was written last, and lets go of the file.
    pub fn close(self) -> Outcome {
        self.nbd.borrow_mut().flush()?;
        let Self { nbd, server, _sockets, path: _ } = self;
        drop(nbd);
        match server {
            // qemu-nbd ends after its first client; until then the file is locked.
            Some(mut server) => server.wait(Duration::from_secs(30)),
            None => Ok(()),
        }
    }

    /// Whether a part is the same as on `base`. Only what lies in overlays of that is
    /// compared, if this is one: all else is the base's own.
    pub fn same_as(&self, base: &Self, start: u64, length: u64) -> Outcome<bool> {
        for extent in self.not_of(base)? {
            let (mut at, end) = (extent.start.max(start), extent.end.min(start + length));
            while at < end {
                let count = BLOCK.min(end - at);
                if self.read(at, count)? != base.read(at, count)? {
                    return Ok(false);
                }
                at += count;
            }
        }
        Ok(true)
    }

    /// Where the disk may differ from one that it is an overlay of.
    fn not_of(&self, base: &Self) -> Outcome<Vec<Range<u64>>> {
        let all: Vec<_> = std::iter::once(0..self.size()).collect();
        let (Some(path), Some(base)) = (&self.path, &base.path) else { return Ok(all) };
        let ask = |words: &[&str]| -> Outcome<Vec<Value>> {
            let path = path.display().to_string();
            let said =
                run("qemu-img", &[words, &["--force-share", "--output=json", &path]].concat())?;
            serde_json::from_str(&said).doing("reading what qemu-img said")
        };
        let chain = ask(&["info", "--backing-chain"])?;
        let mut names = chain.iter().map(|disk| disk["filename"].as_str().map(Path::new));
        let Some(depth_of_base) = names.position(|name| name == Some(base)) else {
            return Ok(all);
        };
        let above = ask(&["map"])?.into_iter().filter_map(|extent| {
            let number = |name: &str| extent[name].as_u64();
            let is_own = number("depth")? < depth_of_base as u64;
            is_own.then_some(number("start")?..number("start")? + number("length")?)
        });
        Ok(above.collect())
    }

    pub fn size(&self) -> u64 {
        self.nbd.borrow().size()
    }

    /// The partitions of the primary table.
    pub fn parts(&self) -> Outcome<Vec<Part>> {
        self.table_at(SECTOR).doing("reading the primary partition table")
    }

    /// The partitions of the backup table, in the last sectors.
    pub fn backup_parts(&self) -> Outcome<Vec<Part>> {
        self.table_at(self.size() - SECTOR).doing("reading the backup partition table")
    }

    /// The first partition of that name.
    pub fn part(&self, name: &str) -> Outcome<Part> {
        self.parts()?
            .into_iter()
            .find(|part| part.name == name)
            .doing(format!("looking for the partition {name}"))
    }

    pub fn bytes_of(&self, part: &Part) -> Outcome<Vec<u8>> {
        self.read(part.start, part.length)
    }

    pub fn region(&self, part: &Part) -> Region {
        Region {
            nbd: Rc::clone(&self.nbd),
            start: part.start,
            length: part.length,
            at: 0,
            ahead: Vec::new(),
            ahead_at: 0,
        }
    }

    /// A reader of its own, and not the product's: it must not share an error.
    fn table_at(&self, offset: u64) -> Outcome<Vec<Part>> {
        let header = self.read(offset, SECTOR)?;
        if !header.starts_with(b"EFI PART") {
            return Err(Failure::new("no GPT header there"));
        }
        let entries_at = number(&header, 72, 8)? * SECTOR;
        let count = number(&header, 80, 4)?;
        let size = number(&header, 84, 4)?;
        let entries = self.read(entries_at, (count * size).min(1 << 20))?;
        let mut parts = Vec::new();
        for (index, entry) in entries.chunks(usize::try_from(size).doing("a size")?).enumerate() {
            let Some(kind) = entry.get(0..16).filter(|kind| kind.iter().any(|byte| *byte != 0))
            else {
                continue;
            };
            let (first, last) = (number(entry, 32, 8)?, number(entry, 40, 8)?);
            let name: Vec<u16> = entry
                .get(56..128)
                .unwrap_or_default()
                .chunks_exact(2)
                .map(|pair| pair.iter().rev().fold(0, |all, byte| all << 8 | u16::from(*byte)))
                .take_while(|unit| *unit != 0)
                .collect();
            parts.push(Part {
                number: index + 1,
                kind: guid(kind),
                guid: guid(entry.get(16..32).unwrap_or_default()),
                name: String::from_utf16_lossy(&name),
                start: first * SECTOR,
                length: (last + 1 - first) * SECTOR,
            });
        }
        Ok(parts)
    }
}

/// A little-endian number of up to eight bytes.
fn number(bytes: &[u8], at: usize, length: usize) -> Outcome<u64> {
    let field = bytes.get(at..at + length).doing("reading a field")?;
    Ok(field.iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte)))
}

/// A GUID as it is written: the first three groups are little-endian on disk.
fn guid(bytes: &[u8]) -> String {
    const ORDER: [usize; 16] = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
    let mut text = String::new();
    for (place, index) in ORDER.into_iter().enumerate() {
        if [4, 6, 8, 10].contains(&place) {
            text.push('-');
        }
        let byte = bytes.get(index).copied().unwrap_or_default();
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// One partition as a seekable file, for the FAT reader.
#[derive(Debug)]
pub struct Region {
    nbd: Rc<RefCell<Nbd>>,
    start: u64,
    length: u64,
    at: u64,
    /// The FAT reader asks for a few bytes at a time; this was read ahead.
    ahead: Vec<u8>,
    ahead_at: u64,
}

const AHEAD: u64 = 256 * 1024;

impl Read for Region {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let left = self.length.saturating_sub(self.at);
        let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        if wanted == 0 {
            return Ok(0);
        }
        let held = self.ahead_at..self.ahead_at + self.ahead.len() as u64;
        if !held.contains(&self.at) {
            let mut block = vec![0_u8; usize::try_from(left.min(AHEAD)).map_err(io::Error::other)?];
            self.nbd
                .borrow_mut()
                .read(self.start + self.at, &mut block)
                .map_err(|cause| io::Error::other(cause.to_string()))?;
            (self.ahead, self.ahead_at) = (block, self.at);
        }
        let skip = usize::try_from(self.at - self.ahead_at).map_err(io::Error::other)?;
        let held = self.ahead.get(skip..).unwrap_or_default();
        let count = held.len().min(wanted);
        if let (Some(to), Some(from)) = (bytes.get_mut(..count), held.get(..count)) {
            to.copy_from_slice(from);
        }
        self.at += count as u64;
        Ok(count)
    }
}

impl Write for Region {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let left = usize::try_from(self.length.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let part = bytes.get(..left.min(bytes.len())).unwrap_or_default();
        self.nbd
            .borrow_mut()
            .write(self.start + self.at, part)
            .map_err(|cause| io::Error::other(cause.to_string()))?;
        self.ahead.clear();
        self.at += part.len() as u64;
        Ok(part.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Region {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::End(by) => self.length.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or_else(|| io::Error::other("a seek before the start"))?;
        Ok(self.at)
    }
}
