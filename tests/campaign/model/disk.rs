//! A disk with a volatile write cache.
//!
//! Modelled: between two flushes any in-order prefix of the writes may have reached the medium, the
//! last of them torn at any 512 bytes; any subset of at most eight whole writes, or of more each alone
//! and each missing; and a number of random subsets of their sectors. Reads come from the cache until it is forgotten. Not modelled: sectors that
//! are torn inside, or that lie.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::ops::Range;
use std::sync::Arc;

use restage::platform::Disk;
use xxhash_rust::xxh3::xxh3_64;

use super::call::{Object, Op};
use super::{Call, Device, Shared, World};

/// What is copied when one byte changes.
const CHUNK: usize = 4096;
/// What a disk writes whole.
const ATOM: usize = 512;
/// Up to so many unflushed writes, all their subsets are tried.
const MAX_SUBSETS: usize = 8;

struct Chunk {
    bytes: [u8; CHUNK],
    digest: u64,
}

impl Chunk {
    fn new(bytes: &[u8; CHUNK]) -> Arc<Self> {
        Arc::new(Self { bytes: *bytes, digest: xxh3_64(bytes) })
    }

    /// Of this chunk at this place.
    fn digest_at(&self, index: usize) -> u64 {
        let mut hasher = DefaultHasher::new();
        (index, self.digest).hash(&mut hasher);
        hasher.finish()
    }
}

#[derive(Clone)]
struct Medium {
    chunks: Arc<Vec<Arc<Chunk>>>,
    /// Of all chunks and their places; kept up to date by each write.
    digest: u64,
}

impl Medium {
    fn new(bytes: &[u8]) -> Self {
        let chunks = bytes.chunks(CHUNK).map(|chunk| Chunk::new(chunk.try_into().unwrap()));
        let chunks: Vec<_> = chunks.collect();
        let digests = chunks.iter().enumerate().map(|(index, chunk)| chunk.digest_at(index));
        Self { digest: digests.fold(0, |all, one| all ^ one), chunks: Arc::new(chunks) }
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        let chunks = Arc::make_mut(&mut self.chunks);
        let mut at = usize::try_from(offset).unwrap();
        let mut rest = bytes;
        while !rest.is_empty() {
            let length = rest.len().min(CHUNK - at % CHUNK);
            let (now, later) = rest.split_at(length);
            let index = at / CHUNK;
            let chunk = &mut chunks[index];
            if chunk.bytes[at % CHUNK..][..length] != *now {
                let mut bytes = chunk.bytes;
                bytes[at % CHUNK..][..length].copy_from_slice(now);
                let new = Chunk::new(&bytes);
                self.digest ^= chunk.digest_at(index) ^ new.digest_at(index);
                *chunk = new;
            }
            at += length;
            rest = later;
        }
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) {
        let mut at = usize::try_from(offset).unwrap();
        let mut rest = buffer;
        while !rest.is_empty() {
            let length = rest.len().min(CHUNK - at % CHUNK);
            let (now, later) = rest.split_at_mut(length);
            now.copy_from_slice(&self.chunks[at / CHUNK].bytes[at % CHUNK..][..length]);
            at += length;
            rest = later;
        }
    }
}

#[derive(Clone)]
struct Written {
    offset: u64,
    bytes: Arc<Vec<u8>>,
    /// A flush that should have brought it to the medium has failed.
    is_lost: bool,
}

/// The disk: what is on the medium, and what is in the cache.
#[derive(Clone)]
pub struct Sectors {
    medium: Medium,
    cached: Medium,
    pending: Vec<Written>,
    sector_bytes: u64,
}

impl Sectors {
    /// A disk that holds these bytes.
    pub fn new(bytes: &[u8], sector_bytes: u64) -> Self {
        let medium = Medium::new(bytes);
        Self { cached: medium.clone(), medium, pending: Vec::new(), sector_bytes }
    }

    /// Where another disk differs: offsets of 512 bytes.
    pub fn differences(&self, other: &Self) -> Vec<u64> {
        let mut offsets = Vec::new();
        let pairs = self.cached.chunks.iter().zip(other.cached.chunks.iter());
        for (index, (one, two)) in pairs.enumerate() {
            if Arc::ptr_eq(one, two) || one.digest == two.digest {
                continue;
            }
            for (atom, (one, two)) in one.bytes.chunks(ATOM).zip(two.bytes.chunks(ATOM)).enumerate()
            {
                if one != two {
                    offsets.push((index * CHUNK + atom * ATOM) as u64);
                }
            }
        }
        offsets
    }

    /// Its size in bytes.
    pub fn size_bytes(&self) -> u64 {
        (self.cached.chunks.len() * CHUNK) as u64
    }

    /// Puts bytes on it, as another system does: at rest.
    pub fn put(&mut self, offset: u64, bytes: &[u8]) {
        self.cached.write(offset, bytes);
        self.medium.write(offset, bytes);
    }

    /// What a sector is here.
    pub fn sector_bytes(&self) -> u64 {
        self.sector_bytes
    }

    /// A part of it.
    pub fn part(&self, offset: u64, length: u64) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(length).unwrap()];
        self.cached.read(offset, &mut bytes);
        bytes
    }

    /// What tells it from all others.
    pub fn digest(&self) -> u64 {
        self.cached.digest
    }

    /// What tells its other parts from those of all others: chunks that are not wholly in this one.
    pub fn digest_outside(&self, part: Range<u64>) -> u64 {
        let mut hasher = DefaultHasher::new();
        for (index, chunk) in self.cached.chunks.iter().enumerate() {
            let (start, end) = ((index * CHUNK) as u64, ((index + 1) * CHUNK) as u64);
            if start < part.start || end > part.end {
                (index, chunk.digest).hash(&mut hasher);
            }
        }
        hasher.finish()
    }

    pub(super) fn lose(&mut self) {
        for written in &mut self.pending {
            written.is_lost = true;
        }
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.cached.write(offset, bytes);
        self.pending.push(Written { offset, bytes: Arc::new(bytes.to_vec()), is_lost: false });
    }

    fn flush(&mut self) {
        for written in self.pending.iter().filter(|written| !written.is_lost) {
            self.medium.write(written.offset, &written.bytes);
        }
        self.pending.retain(|written| written.is_lost);
        if self.pending.is_empty() {
            self.medium = self.cached.clone();
        }
    }

    fn forget(&mut self) {
        // What is dirty is written first; what a failed flush has lost is not dirty any more.
        self.cached = self.medium.clone();
        for written in self.pending.iter().filter(|written| !written.is_lost) {
            self.cached.write(written.offset, &written.bytes);
        }
        self.pending.retain(|written| !written.is_lost);
    }

    pub(super) fn images(&self) -> Vec<Self> {
        let mut images = Vec::new();
        let mut add = |chosen: &[(usize, usize)]| {
            let mut medium = self.medium.clone();
            for (index, length) in chosen {
                let written = &self.pending[*index];
                medium.write(written.offset, &written.bytes[..*length]);
            }
            let sector_bytes = self.sector_bytes;
            images.push(Self { cached: medium.clone(), medium, pending: Vec::new(), sector_bytes });
        };
        let whole = |index: usize| (index, self.pending[index].bytes.len());
        let count = self.pending.len();
        add(&[]);
        let Some(last) = count.checked_sub(1) else { return images };
        // All before the last in order, and the last torn.
        let before: Vec<_> = (0..last).map(whole).collect();
        for length in (ATOM..self.pending[last].bytes.len()).step_by(ATOM) {
            add(&[before.clone(), vec![(last, length)]].concat());
        }
        if count <= MAX_SUBSETS {
            for mask in 1..(1_u32 << count) - 1 {
                let chosen: Vec<_> =
                    (0..count).filter(|i| mask & (1 << i) != 0).map(whole).collect();
                add(&chosen);
            }
        } else {
            for one in 0..count {
                add(&[whole(one)]);
                let others: Vec<_> = (0..count).filter(|i| *i != one).map(whole).collect();
                add(&others);
            }
        }
        // The image with everything in it stays the last.
        add(&(0..count).map(whole).collect::<Vec<_>>());
        let all = images.pop();
        images.extend((0..super::scatter()).map(|number| self.scattered(number)));
        images.extend(all);
        images
    }

    /// Any sectors of what is unflushed, as a disk with a cache of its own may choose them: which, is
    /// the same for the same writes.
    fn scattered(&self, number: u64) -> Self {
        let mut medium = self.medium.clone();
        for written in &self.pending {
            for (index, atom) in written.bytes.chunks(ATOM).enumerate() {
                let offset = written.offset + (index * ATOM) as u64;
                let mut hasher = DefaultHasher::new();
                (number, offset, self.pending.len(), written.bytes.len()).hash(&mut hasher);
                if hasher.finish().is_multiple_of(2) {
                    medium.write(offset, atom);
                }
            }
        }
        let sector_bytes = self.sector_bytes;
        Self { cached: medium.clone(), medium, pending: Vec::new(), sector_bytes }
    }
}

/// The disk of a run.
pub struct ModelDisk {
    world: Shared,
    size_bytes: u64,
    sector_bytes: u64,
    is_writable: bool,
}

impl ModelDisk {
    /// The disk of this machine.
    pub fn new(world: &Shared) -> Self {
        let disk = &world.borrow().disk;
        let size_bytes = disk.size_bytes();
        let sector_bytes = disk.sector_bytes;
        Self { world: world.clone(), size_bytes, sector_bytes, is_writable: false }
    }
}

impl ModelDisk {
    fn call<T>(
        &self,
        call: Call,
        verb: &'static str,
        object: Object<'_>,
        effect: impl FnOnce(&mut World) -> T,
    ) -> io::Result<T> {
        let op = Op { device: Device::Disk, call, verb, object };
        self.world.borrow_mut().call(op, |world, _| Ok(effect(world)))
    }
}

impl Disk for ModelDisk {
    fn name(&self) -> &'static str {
        "the disk"
    }
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }
    fn sector_bytes(&self) -> u64 {
        self.sector_bytes
    }
    fn make_writable(&mut self) -> io::Result<()> {
        self.is_writable = true;
        self.call(Call::Read, "open", Object::Whole, |_| ())
    }
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let object = Object::Sectors(offset, buffer.len() as u64);
        self.call(Call::Read, "read", object, |world| world.disk.cached.read(offset, buffer))
    }
    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        assert!(self.is_writable, "written before it was opened for writing");
        let object = Object::Sectors(offset, bytes.len() as u64);
        self.call(Call::Change, "write", object, |world| world.disk.write(offset, bytes))
    }
    fn flush(&mut self) -> io::Result<()> {
        self.call(Call::Sync, "flush", Object::Whole, |world| world.disk.flush())
    }
    fn forget_cache(&mut self) -> io::Result<()> {
        let verb = "forget what is cached of";
        self.call(Call::Read, verb, Object::Whole, |world| world.disk.forget())
    }
    fn discard(&mut self, offset: u64, bytes: u64) -> io::Result<bool> {
        // What a discard leaves behind is not defined; that nothing is left is the harder case.
        self.call(Call::Read, "discard", Object::Sectors(offset, bytes), |_| false)
    }
    fn partition_in_use(&self, number: u32) -> io::Result<bool> {
        self.call(Call::Read, "tell whether", Object::Partition(number), |_| false)
    }
    fn drop_partition(&mut self, number: u32) -> io::Result<()> {
        let verb = "make the kernel forget";
        self.call(Call::Read, verb, Object::Partition(number), |_| ())
    }
}
