//! The bytes of a disk, cheap to copy, to change and to tell apart.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read, Write};
use std::sync::Arc;

/// What copies share, and what is told apart.
pub const CHUNK: usize = 4096;
/// So many chunks are shared by one pointer, until one of them is changed.
const GROUP: usize = 64;

struct Chunk {
    bytes: Box<[u8]>,
    digest: u64,
}

impl Chunk {
    fn new(bytes: Box<[u8]>) -> Arc<Self> {
        let mut hasher = DefaultHasher::new();
        bytes.hash(&mut hasher);
        Arc::new(Self { bytes, digest: hasher.finish() })
    }
}

/// A disk.
#[derive(Clone)]
pub struct Image {
    groups: Vec<Arc<Vec<Arc<Chunk>>>>,
    /// Their number.
    chunks: usize,
    /// Of all chunks and their places; kept up to date by each write.
    digest: u64,
}

fn placed(index: usize, digest: u64) -> u64 {
    let mut hasher = DefaultHasher::new();
    (index, digest).hash(&mut hasher);
    hasher.finish()
}

impl Image {
    /// Zeros.
    pub fn new(bytes: usize) -> Self {
        assert!(bytes.is_multiple_of(CHUNK));
        let zero = Chunk::new(vec![0; CHUNK].into());
        let chunks = bytes / CHUNK;
        let digest = (0..chunks).fold(0, |all, index| all ^ placed(index, zero.digest));
        let group = Arc::new(vec![zero; GROUP]);
        let groups = vec![group; chunks.div_ceil(GROUP)];
        Self { groups, chunks, digest }
    }

    fn chunk(&self, index: usize) -> &Arc<Chunk> {
        assert!(index < self.chunks, "behind the end of the disk");
        &self.groups[index / GROUP][index % GROUP]
    }

    fn chunks(&self) -> impl Iterator<Item = (usize, &Arc<Chunk>)> {
        let all = self.groups.iter().flat_map(|group| group.iter());
        all.take(self.chunks).enumerate()
    }

    /// Its size in bytes.
    pub fn len(&self) -> usize {
        self.chunks * CHUNK
    }

    /// What tells it from all other disks.
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// Fills the buffer.
    pub fn read(&self, offset: usize, buffer: &mut [u8]) {
        let mut done = 0;
        while done < buffer.len() {
            let (index, within) = ((offset + done) / CHUNK, (offset + done) % CHUNK);
            let length = (CHUNK - within).min(buffer.len() - done);
            let bytes = &self.chunk(index).bytes[within..within + length];
            buffer[done..done + length].copy_from_slice(bytes);
            done += length;
        }
    }

    /// Changes a part of it.
    pub fn write(&mut self, offset: usize, bytes: &[u8]) {
        let mut done = 0;
        while done < bytes.len() {
            let (index, within) = ((offset + done) / CHUNK, (offset + done) % CHUNK);
            let length = (CHUNK - within).min(bytes.len() - done);
            let (old, new) = (self.chunk(index), &bytes[done..done + length]);
            if old.bytes[within..within + length] != *new {
                let mut changed = old.bytes.clone();
                changed[within..within + length].copy_from_slice(new);
                let changed = Chunk::new(changed);
                self.digest ^= placed(index, old.digest) ^ placed(index, changed.digest);
                Arc::make_mut(&mut self.groups[index / GROUP])[index % GROUP] = changed;
            }
            done += length;
        }
    }

    /// Where the chunks begin that differ.
    pub fn differences<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = usize> + 'a {
        let groups = self.groups.iter().zip(&other.groups).enumerate();
        let groups = groups.filter(|(_, (a, b))| !Arc::ptr_eq(a, b));
        let pairs = groups.flat_map(|(group, (a, b))| {
            let within = a.iter().zip(b.iter()).enumerate();
            within.map(move |(index, pair)| (group * GROUP + index, pair))
        });
        let differ = pairs.filter(|(_, (a, b))| !Arc::ptr_eq(a, b) && a.bytes != b.bytes);
        differ.map(|(index, _)| index * CHUNK)
    }

    /// Writes it to a file: how many chunks it has, then those that are not zero.
    pub fn save(&self, file: &mut impl Write) -> io::Result<()> {
        let used: Vec<_> = self.chunks().filter(|(_, chunk)| is_used(chunk)).collect();
        for number in [self.chunks, used.len()] {
            file.write_all(&(number as u64).to_le_bytes())?;
        }
        for (index, chunk) in used {
            file.write_all(&(index as u64).to_le_bytes())?;
            file.write_all(&chunk.bytes)?;
        }
        Ok(())
    }

    /// Reads what [`Image::save`] has written.
    pub fn load(file: &mut impl Read) -> io::Result<Self> {
        let (chunks, used) = (read_number(file)?, read_number(file)?);
        let mut image = Self::new(chunks * CHUNK);
        for _ in 0..used {
            let index = read_number(file)?;
            let mut bytes = vec![0; CHUNK];
            file.read_exact(&mut bytes)?;
            image.write(index * CHUNK, &bytes);
        }
        Ok(image)
    }
}

fn is_used(chunk: &Chunk) -> bool {
    chunk.bytes.iter().any(|byte| *byte != 0)
}

/// A length or an index.
pub fn read_number(file: &mut impl Read) -> io::Result<usize> {
    let mut bytes = [0; 8];
    file.read_exact(&mut bytes)?;
    usize::try_from(u64::from_le_bytes(bytes)).map_err(io::Error::other)
}
