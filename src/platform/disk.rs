//! A block device or a disk-image file as a [`Disk`].
//! Side: both; opened for writing in the initrd only.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Advice, FallocateFlags, FlockOperation};

use super::Disk;

/// udev holds a shared lock while it probes; it never takes this long.
const LOCK_WAIT: Duration = Duration::from_secs(30);

/// An open disk.
pub struct OpenDisk {
    file: File,
    path: PathBuf,
    name: String,
    size_bytes: u64,
    sector_bytes: u64,
    /// Device number; none for an image file.
    device: Option<u64>,
}

mod ioctl {
    //! The block-device ioctls of `linux/fs.h` and `linux/blkpg.h`.
    use nix::{ioctl_none, ioctl_read, ioctl_read_bad, ioctl_write_ptr_bad, request_code_none};

    /// `struct blkpg_partition`.
    #[repr(C)]
    pub struct BlkpgPartition {
        pub start: i64,
        pub length: i64,
        pub number: i32,
        pub names: [u8; 128],
    }

    /// `struct blkpg_ioctl_arg`.
    #[repr(C)]
    pub struct BlkpgArgument {
        pub operation: i32,
        pub flags: i32,
        pub length: i32,
        pub data: *mut BlkpgPartition,
    }

    /// `BLKPG_DEL_PARTITION`.
    pub const DELETE: i32 = 2;

    ioctl_read!(size_bytes, 0x12, 114, libc::size_t);
    ioctl_read_bad!(sector_bytes, request_code_none!(0x12, 104), libc::c_int);
    ioctl_none!(flush_buffers, 0x12, 97);
    ioctl_write_ptr_bad!(discard, request_code_none!(0x12, 119), [u64; 2]);
    ioctl_write_ptr_bad!(partition, request_code_none!(0x12, 105), BlkpgArgument);
}

impl OpenDisk {
    /// Opens a block device or a plain file: nothing can be changed through it, until
    /// [`Disk::make_writable`].
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::from_file(open_file(path, false)?, path)
    }

    fn from_file(file: File, path: &Path) -> io::Result<Self> {
        let metadata = file.metadata()?;
        let kind = metadata.file_type();
        let path = path.to_owned();
        let name = path.display().to_string();
        if kind.is_block_device() {
            let mut size: libc::size_t = 0;
            let mut sector: libc::c_int = 0;
            // SAFETY: the descriptor is open and both pointers outlive their calls.
            unsafe {
                ioctl::size_bytes(file.as_raw_fd(), &raw mut size)?;
                ioctl::sector_bytes(file.as_raw_fd(), &raw mut sector)?;
            }
            let sector_bytes = u64::try_from(sector).map_err(io::Error::other)?;
            let device = Some(metadata.rdev());
            return Ok(Self { file, path, name, size_bytes: size as u64, sector_bytes, device });
        }
        if !kind.is_file() {
            return Err(io::Error::other("neither a block device nor a plain file"));
        }
        let sector_bytes = image_sector_bytes(&file)?;
        Ok(Self { file, path, name, size_bytes: metadata.len(), sector_bytes, device: None })
    }

    fn lock(&self) -> io::Result<()> {
        let begin = Instant::now();
        loop {
            match rustix::fs::flock(&self.file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(()),
                Err(rustix::io::Errno::WOULDBLOCK) if begin.elapsed() < LOCK_WAIT => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    return Err(io::Error::other("another program holds the disk's lock"));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// An image has no sector size of its own: it is where the table's signature is.
fn image_sector_bytes(file: &File) -> io::Result<u64> {
    let mut signature = [0; 8];
    for sector_bytes in [512, 4096] {
        match file.read_exact_at(&mut signature, sector_bytes) {
            Ok(()) if &signature == b"EFI PART" => return Ok(sector_bytes),
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
            Err(error) => return Err(error),
        }
    }
    Ok(512)
}

/// The node of partition `number` of the disk with this device number.
fn partition_node(device: u64, number: u32) -> io::Result<Option<PathBuf>> {
    let (major, minor) = (libc::major(device), libc::minor(device));
    let directory = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let Ok(text) = std::fs::read_to_string(entry.path().join("partition")) else { continue };
        if text.trim().parse() == Ok(number) {
            let name = entry.file_name().to_string_lossy().replace('!', "/");
            return Ok(Some(Path::new("/dev").join(name)));
        }
    }
    Ok(None)
}

/// Opens a disk; for writing too, when something is about to be changed.
fn open_file(path: &Path, for_writing: bool) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(for_writing)
        .custom_flags(libc::O_CLOEXEC | libc::O_NOCTTY)
        .open(path)
}

impl Disk for OpenDisk {
    fn name(&self) -> &str {
        &self.name
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn sector_bytes(&self) -> u64 {
        self.sector_bytes
    }

    fn make_writable(&mut self) -> io::Result<()> {
        let file = open_file(&self.path, true)?;
        let (then, now) = (self.file.metadata()?, file.metadata()?);
        let place = |m: &std::fs::Metadata| (m.dev(), m.ino(), m.rdev());
        let opened = Self::from_file(file, &self.path)?;
        if place(&then) != place(&now) || opened.size_bytes != self.size_bytes {
            return Err(io::Error::other("another disk is there now"));
        }
        opened.lock()?;
        *self = opened;
        Ok(())
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let end = offset.checked_add(bytes.len() as u64);
        if end.is_none_or(|end| end > self.size_bytes) {
            // An image file would grow.
            return Err(io::Error::other(format!("a write at byte {offset} past the end")));
        }
        self.file.write_all_at(bytes, offset)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.sync_all()
    }

    fn forget_cache(&mut self) -> io::Result<()> {
        if self.device.is_some() {
            // SAFETY: the descriptor is open; the call takes no argument.
            unsafe { ioctl::flush_buffers(self.file.as_raw_fd())? };
            return Ok(());
        }
        Ok(rustix::fs::fadvise(&self.file, 0, None, Advice::DontNeed)?)
    }

    fn discard(&mut self, offset: u64, bytes: u64) -> io::Result<bool> {
        let result = if self.device.is_some() {
            let range = [offset, bytes];
            // SAFETY: the descriptor is open and `range` outlives the call.
            unsafe { ioctl::discard(self.file.as_raw_fd(), &raw const range) }
                .map(drop)
                .map_err(io::Error::from)
        } else {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(&self.file, flags, offset, bytes).map_err(io::Error::from)
        };
        match result {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn partition_in_use(&self, number: u32) -> io::Result<bool> {
        let Some(device) = self.device else { return Ok(false) };
        let Some(node) = partition_node(device, number)? else { return Ok(false) };
        match OpenOptions::new().read(true).custom_flags(libc::O_EXCL | libc::O_CLOEXEC).open(node)
        {
            Ok(_) => Ok(false),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn drop_partition(&mut self, number: u32) -> io::Result<()> {
        if self.device.is_none() {
            return Ok(());
        }
        let number = i32::try_from(number).map_err(io::Error::other)?;
        let mut data = ioctl::BlkpgPartition { start: 0, length: 0, number, names: [0; 128] };
        let argument = ioctl::BlkpgArgument {
            operation: ioctl::DELETE,
            flags: 0,
            length: i32::try_from(size_of::<ioctl::BlkpgPartition>()).map_err(io::Error::other)?,
            data: &raw mut data,
        };
        // SAFETY: the descriptor is open; `argument` and what it points to outlive the call.
        match unsafe { ioctl::partition(self.file.as_raw_fd(), &raw const argument) } {
            Ok(_) | Err(nix::errno::Errno::ENXIO) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
