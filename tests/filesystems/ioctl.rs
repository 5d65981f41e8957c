//! The few ioctls that nothing else offers.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::ioctl::{IntegerSetter, ioctl};

const BLKRRPART: u32 = 0x125f;
const BLKFLSBUF: u32 = 0x1261;
const NBD_SET_SOCK: u32 = 0xab00;
const NBD_SET_BLKSIZE: u32 = 0xab01;
const NBD_DO_IT: u32 = 0xab03;
const NBD_SET_SIZE_BLOCKS: u32 = 0xab07;
const NBD_SET_FLAGS: u32 = 0xab0a;
/// Has flags; takes flushes; takes writes that are durable at once.
const NBD_FLAGS: usize = 1 | 4 | 8;
/// Bytes of a sector.
pub const SECTOR: usize = 512;

fn set<const CODE: u32>(device: &File, value: usize) -> io::Result<()> {
    // SAFETY: each of these ioctls takes a plain integer, or ignores it, and keeps no pointer.
    Ok(unsafe { ioctl(device, IntegerSetter::<CODE>::new_usize(value)) }?)
}

/// The kernel forgets the partitions of a disk, and reads its table.
pub fn read_table(disk: &File) -> io::Result<()> {
    set::<BLKRRPART>(disk, 0)
}

/// What is cached of a device is written and forgotten.
pub fn forget_cache(device: &File) -> io::Result<()> {
    set::<BLKFLSBUF>(device, 0)
}

/// Makes the device that of the server at the other end of the socket.
pub fn nbd_attach(device: &File, socket: BorrowedFd<'_>, bytes: usize) -> io::Result<()> {
    let socket = usize::try_from(socket.as_raw_fd()).map_err(io::Error::other)?;
    set::<NBD_SET_BLKSIZE>(device, SECTOR)?;
    set::<NBD_SET_SIZE_BLOCKS>(device, bytes / SECTOR)?;
    set::<NBD_SET_FLAGS>(device, NBD_FLAGS)?;
    set::<NBD_SET_SOCK>(device, socket)
}

/// Serves the device until it is detached.
pub fn nbd_serve(device: &File) -> io::Result<()> {
    set::<NBD_DO_IT>(device, 0)
}
