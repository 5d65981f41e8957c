//! Whether the clusters of a file on FAT are linked, as the medium has it.
//! Side: both. Reads the medium beside the mounted file system, which has the same cache.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use crate::format::fat::Layout;

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
    let read = |at: u64, buffer: &mut [u8]| medium.read_exact_at(buffer, at);
    let mut sector = [0; 512];
    read(0, &mut sector)?;
    let layout = Layout::parse(&sector).ok_or_else(|| io::Error::other("no FAT where one is"))?;
    let Some(first) = layout.cluster_at(block * block_bytes) else { return Ok(false) };
    layout.is_linked(first, &read)
}

/// The block device with this number. Nothing but the kernel's own names is needed.
fn open_medium(device: u64) -> io::Result<File> {
    let (major, minor) = (libc::major(device), libc::minor(device));
    let about = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/uevent"))?;
    let name = about.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    File::open(Path::new("/dev").join(name.ok_or(io::ErrorKind::NotFound)?))
}
