//! Whether the clusters of a file on FAT are linked, as the medium has it.
//! Side: both. Reads the medium beside the mounted file system, which has the same cache.

use std::cell::RefCell;
use std::fs::File;
use std::io::{
    self,
    ErrorKind::{NotFound, PermissionDenied},
};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use crate::format::fat::Layout;

/// What is read from the medium at once.
const PIECE_BYTES: usize = 4096;

mod ioctl {
    //! The ioctls of `linux/fs.h` for where a file lies.
    use nix::{ioctl_read_bad, ioctl_readwrite_bad, request_code_none};

    // Block of the file in, block of the medium out; 0 where there is none.
    ioctl_readwrite_bad!(map, request_code_none!(0, 1), libc::c_int);
    ioctl_read_bad!(block_bytes, request_code_none!(0, 2), libc::c_int);
}

/// Looks at a file on a mounted FAT.
pub fn are_linked(file: &File) -> io::Result<bool> {
    let metadata = file.metadata()?;
    if metadata.len() == 0 {
        return Ok(true);
    }
    let (mut block, mut block_bytes) = (0, 0);
    // SAFETY: both take a pointer to an int, and write one there.
    unsafe {
        ioctl::map(file.as_raw_fd(), &raw mut block)?;
        ioctl::block_bytes(file.as_raw_fd(), &raw mut block_bytes)?;
    }
    let (Ok(block), Ok(block_bytes)) = (u64::try_from(block), u64::try_from(block_bytes)) else {
        return Err(io::Error::other("its place on the medium is a negative number"));
    };
    if block == 0 {
        return Ok(false);
    }
    let medium = open_medium(metadata.dev())?;
    let pieces = RefCell::new(Pieces { medium, at: 0, piece: Vec::new() });
    let read = |at: u64, buffer: &mut [u8]| pieces.borrow_mut().read(at, buffer);
    let mut sector = [0; 512];
    read(0, &mut sector)?;
    let layout = Layout::parse(&sector).ok_or_else(|| io::Error::other("no FAT where one is"))?;
    let Some(first) = layout.cluster_at(block * block_bytes) else { return Ok(false) };
    layout.is_linked(first, &read)
}

/// Reads the directories on the way to `path`, from the root of a mounted FAT, and all that are below, into
/// the cache that the file system has as well.
///
/// Linux takes a directory that it cannot read for a broken one, and frees its clusters, on a mount that is
/// read-only too (seen with 7.2); and it passes over the names that it cannot read. A journal would be gone
/// for one sector that was not read once. So who looks for a directory has it read first.
///
/// # Errors
///
/// They cannot be read, twice. Where nobody may look at the medium nothing is read, and that is none.
pub fn read_ahead(directory: &impl AsFd, path: &str) -> io::Result<()> {
    let medium = match open_medium(rustix::fs::fstat(directory)?.st_dev) {
        Ok(medium) => medium,
        Err(error) if matches!(error.kind(), NotFound | PermissionDenied) => {
            log::debug!("{path} is not read from the medium first: {error}");
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let pieces = RefCell::new(Pieces { medium, at: 0, piece: Vec::new() });
    let read = |at: u64, buffer: &mut [u8]| pieces.borrow_mut().read(at, buffer);
    let go = || {
        let mut sector = [0; 512];
        read(0, &mut sector)?;
        let layout =
            Layout::parse(&sector).ok_or_else(|| io::Error::other("no FAT where one is"))?;
        layout.read_directories(path, &read)
    };
    // A disk that fails once may not fail twice.
    let is_all = go().or_else(|_: io::Error| go())?;
    if !is_all {
        log::warn!("there is more below {path} than is read from the medium first");
    }
    Ok(())
}

/// A medium that is read in pieces: the entries of a chain lie beside each other.
struct Pieces {
    medium: File,
    /// Where the piece at hand begins.
    at: u64,
    piece: Vec<u8>,
}

impl Pieces {
    fn read(&mut self, at: u64, buffer: &mut [u8]) -> io::Result<()> {
        if self.part(at, buffer.len()).is_none() {
            self.at = at - at % PIECE_BYTES as u64;
            // The last one may be a short one; and an entry of 12 bits may lie in two of them.
            self.piece.resize(2 * PIECE_BYTES, 0);
            let count = self.medium.read_at(&mut self.piece, self.at).unwrap_or(0);
            self.piece.truncate(count);
        }
        match self.part(at, buffer.len()) {
            Some(part) => buffer.copy_from_slice(part),
            // What lies beside it may be what cannot be read.
            None => self.medium.read_exact_at(buffer, at)?,
        }
        Ok(())
    }

    fn part(&self, at: u64, bytes: usize) -> Option<&[u8]> {
        let start = usize::try_from(at.checked_sub(self.at)?).ok()?;
        self.piece.get(start..start.checked_add(bytes)?)
    }
}

/// The block device with this number. Nothing but the kernel's own names is needed.
fn open_medium(device: u64) -> io::Result<File> {
    let (major, minor) = (libc::major(device), libc::minor(device));
    let about = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/uevent"))?;
    let name = about.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    File::open(Path::new("/dev").join(name.ok_or(io::ErrorKind::NotFound)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_asked_for_is_read_as_it_is() {
        let bytes: Vec<u8> = (0..20_001_u32).map(|at| (at % 251) as u8).collect();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &bytes).unwrap();
        let medium = File::open(file.path()).unwrap();
        let mut pieces = Pieces { medium, at: 0, piece: Vec::new() };
        for at in [0_usize, 4095, 4094, 8191, 8192, 12_287, 3, 19_997, 100, 16_383] {
            let mut four = [0; 4];
            pieces.read(at as u64, &mut four).unwrap();
            assert_eq!(four, bytes[at..at + 4], "{at}");
        }
        for beyond in [19_998, 20_001, 30_000] {
            let error = pieces.read(beyond, &mut [0; 4]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{beyond}");
        }
    }
}
