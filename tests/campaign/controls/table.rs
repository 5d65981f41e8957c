//! A disk whose partition table the gpt crate writes.

use std::fmt;
use std::io::{self, Read, Seek, SeekFrom, Write};

use gpt::disk::LogicalBlockSize;
use restage::format::gpt::{SectorBytes, locate};
use restage::platform::Disk;

/// The disk, until a table is to be written.
pub struct CrateWrites<D>(pub D);

impl<D: Disk> CrateWrites<D> {
    /// What the crate makes of the new table: it gets the partitions that these entries still have.
    fn write_table(&mut self, entries: &[u8]) -> io::Result<()> {
        let is_there = |number: u32| {
            let at = (number as usize - 1) * 128;
            entries.get(at..at + 128).is_some_and(|entry| entry.iter().any(|byte| *byte != 0))
        };
        let device = Device { disk: &mut self.0, position: 0 };
        let config = gpt::GptConfig::new().writable(true);
        let config = config.logical_block_size(LogicalBlockSize::Lb512);
        let mut table = config.open_from_device(device).map_err(io::Error::other)?;
        for number in table.partitions().keys().copied().collect::<Vec<_>>() {
            if !is_there(number) {
                table.remove_partition(number);
            }
        }
        table.write_inplace().map_err(io::Error::other)
    }
}

impl<D: Disk> Disk for CrateWrites<D> {
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
        self.0.make_writable()
    }
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, buffer)
    }
    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        // One run for each copy: the primary's header is before its entries, the backup's after them.
        let after = bytes.len().saturating_sub(512);
        let (sector, size) = (SectorBytes::new(512).unwrap(), self.size_bytes());
        let is_header = |at: usize| {
            let lba = (offset + at as u64) / 512;
            let header = bytes.get(at..at + 512);
            header.is_some_and(|header| locate(header, lba, sector, size).is_ok())
        };
        if is_header(0) {
            self.write_table(&bytes[512..])
        } else if is_header(after) {
            self.write_table(&bytes[..after])
        } else {
            self.0.write(offset, bytes)
        }
    }
    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
    fn forget_cache(&mut self) -> io::Result<()> {
        self.0.forget_cache()
    }
    fn discard(&mut self, offset: u64, bytes: u64) -> io::Result<bool> {
        self.0.discard(offset, bytes)
    }
    fn partition_in_use(&self, number: u32) -> io::Result<bool> {
        self.0.partition_in_use(number)
    }
    fn drop_partition(&mut self, number: u32) -> io::Result<()> {
        self.0.drop_partition(number)
    }
}

/// The disk as the crate wants it.
struct Device<'a, D> {
    disk: &'a mut D,
    position: u64,
}

impl<D> fmt::Debug for Device<'_, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at {}", self.position)
    }
}

impl<D: Disk> Device<'_, D> {
    /// The sectors around so many bytes, and where these bytes are in them.
    fn around(&self, length: usize) -> io::Result<(u64, Vec<u8>, usize)> {
        let start = self.position / 512 * 512;
        let at = usize::try_from(self.position - start).unwrap();
        let mut sectors = vec![0; (at + length).next_multiple_of(512)];
        self.disk.read(start, &mut sectors)?;
        Ok((start, sectors, at))
    }
}

impl<D: Disk> Read for Device<'_, D> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (_, sectors, at) = self.around(buffer.len())?;
        buffer.copy_from_slice(&sectors[at..at + buffer.len()]);
        self.position += buffer.len() as u64;
        Ok(buffer.len())
    }
}

impl<D: Disk> Write for Device<'_, D> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (start, mut sectors, at) = self.around(bytes.len())?;
        sectors[at..at + bytes.len()].copy_from_slice(bytes);
        self.disk.write(start, &sectors)?;
        self.position += bytes.len() as u64;
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        self.disk.flush()
    }
}

impl<D: Disk> Seek for Device<'_, D> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.position = match to {
            SeekFrom::Start(offset) => offset,
            SeekFrom::Current(delta) => self.position.checked_add_signed(delta).unwrap(),
            SeekFrom::End(delta) => self.disk.size_bytes().checked_add_signed(delta).unwrap(),
        };
        Ok(self.position)
    }
}
