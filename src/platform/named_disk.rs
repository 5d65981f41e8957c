//! A disk whose errors say what was being done to which sectors.
//! Side: both. Does what the disk inside does, and no more.

use std::io;

use super::Disk;
use crate::error::Calling;

/// A disk, with its name in what it says.
pub struct NamedDisk<D>(D);

impl<D: Disk> NamedDisk<D> {
    /// `disk` has a name already: [`Disk::name`].
    pub fn new(disk: D) -> Self {
        Self(disk)
    }

    /// What cannot be done, to which sectors. A sector that is only partly meant is named as well.
    fn cannot(&self, what: &str, offset: u64, bytes: u64) -> String {
        let sector = self.0.sector_bytes().max(1);
        let first = offset / sector;
        let last = offset.saturating_add(bytes).saturating_sub(1) / sector;
        format!("cannot {what} sectors {first} to {} of {}", last.max(first), self.0.name())
    }
}

impl<D: Disk> Disk for NamedDisk<D> {
    fn name(&self) -> &str {
        self.0.name()
    }
    fn size_bytes(&self) -> u64 {
        self.0.size_bytes()
    }
    fn sector_bytes(&self) -> u64 {
        self.0.sector_bytes()
    }
    fn make_writable(&mut self) -> io::Result<()> {
        let opened = self.0.make_writable();
        opened.calling(|| format!("cannot open {} for writing", self.0.name()))
    }
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let bytes = buffer.len() as u64;
        self.0.read(offset, buffer).calling(|| self.cannot("read", offset, bytes))
    }
    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let written = self.0.write(offset, bytes);
        written.calling(|| self.cannot("write", offset, bytes.len() as u64))
    }
    fn flush(&mut self) -> io::Result<()> {
        let flushed = self.0.flush();
        flushed.calling(|| format!("cannot flush {}", self.0.name()))
    }
    fn forget_cache(&mut self) -> io::Result<()> {
        let forgotten = self.0.forget_cache();
        forgotten.calling(|| format!("cannot forget what is cached of {}", self.0.name()))
    }
    fn discard(&mut self, offset: u64, bytes: u64) -> io::Result<bool> {
        let discarded = self.0.discard(offset, bytes);
        discarded.calling(|| self.cannot("discard", offset, bytes))
    }
    fn partition_in_use(&self, number: u32) -> io::Result<bool> {
        let asked = self.0.partition_in_use(number);
        asked.calling(|| {
            format!("cannot tell whether partition {number} of {} is in use", self.0.name())
        })
    }
    fn drop_partition(&mut self, number: u32) -> io::Result<()> {
        let dropped = self.0.drop_partition(number);
        dropped.calling(|| {
            format!("cannot make the kernel forget partition {number} of {}", self.0.name())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::chain;
    use crate::platform::disk::OpenDisk;

    #[test]
    fn errors_of_a_real_disk_name_its_sectors() {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(1024).unwrap();
        let path = image.path().display().to_string();
        let mut disk = NamedDisk::new(OpenDisk::open(image.path()).unwrap());
        let said = |error: io::Error| chain(&error).replace(&path, "DISK");
        assert_eq!(
            said(disk.read(512, &mut [0; 1024]).unwrap_err()),
            "cannot read sectors 1 to 2 of DISK: failed to fill whole buffer"
        );
        assert_eq!(
            said(disk.write(513, &[1]).unwrap_err()),
            "cannot write sectors 1 to 1 of DISK: Bad file descriptor (os error 9)"
        );
    }
}
