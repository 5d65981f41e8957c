//! The record of a step is made before the first thing that the step does.

use std::cell::Cell;
use std::io::{self, Read};
use std::rc::Rc;

use restage::platform::esp::EspDirectory;
use restage::platform::tpm::{Tpm, TpmError, TpmProperties};
use restage::platform::{Disk, Esp, Store};

use crate::model::files;
use crate::model::{Device, Shared};

/// What the parts of one machine know of each other.
#[derive(Clone)]
pub struct Hasty {
    world: Shared,
    stem: &'static str,
    is_recorded: Rc<Cell<bool>>,
}

impl Hasty {
    /// On this machine, for the operation with this stem.
    pub fn new(world: &Shared, stem: &'static str) -> Self {
        Self { world: world.clone(), stem, is_recorded: Rc::default() }
    }

    fn esp(&self) -> io::Result<EspDirectory> {
        EspDirectory::below(files::root(&self.world, Device::Esp), "restage")
    }

    /// Something is about to be done: the step in which it is done is recorded now.
    fn record(&self) -> io::Result<()> {
        let mut esp = self.esp()?;
        let names = esp.names()?;
        let has = |name: &String| names.contains(name);
        if self.is_recorded.get() || !has(&format!("{}.JNL", self.stem)) {
            return Ok(());
        }
        let marks = (0..30).map(|number| format!("{}.S{number:02}", self.stem));
        let Some(next) = marks.into_iter().find(|mark| !has(mark)) else { return Ok(()) };
        esp.mark(&next)?;
        self.is_recorded.set(true);
        Ok(())
    }
}

/// A part of the machine that records first.
pub struct RecordsFirst<T> {
    /// The part.
    pub inner: T,
    /// What it shares with the others.
    pub hasty: Hasty,
}

impl<D: Disk> Disk for RecordsFirst<D> {
    fn name(&self) -> &str {
        self.inner.name()
    }
    fn size_bytes(&self) -> u64 {
        self.inner.size_bytes()
    }
    fn sector_bytes(&self) -> u64 {
        self.inner.sector_bytes()
    }
    fn make_writable(&mut self) -> io::Result<()> {
        self.inner.make_writable()
    }
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.inner.read(offset, buffer)
    }
    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.hasty.record()?;
        self.inner.write(offset, bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
    fn forget_cache(&mut self) -> io::Result<()> {
        self.inner.forget_cache()
    }
    fn discard(&mut self, offset: u64, bytes: u64) -> io::Result<bool> {
        self.inner.discard(offset, bytes)
    }
    fn partition_in_use(&self, number: u32) -> io::Result<bool> {
        self.inner.partition_in_use(number)
    }
    fn drop_partition(&mut self, number: u32) -> io::Result<()> {
        self.inner.drop_partition(number)
    }
}

impl<T: Tpm> Tpm for RecordsFirst<T> {
    fn properties(&mut self) -> Result<TpmProperties, TpmError> {
        self.inner.properties()
    }
    fn owner_primary_name(&mut self) -> Result<String, TpmError> {
        self.inner.owner_primary_name()
    }
    fn clear(&mut self) -> Result<(), TpmError> {
        self.hasty.record().unwrap();
        self.inner.clear()
    }
    fn reset_count(&mut self) -> Result<u32, TpmError> {
        self.inner.reset_count()
    }
}

impl<E: Esp> Store for RecordsFirst<E> {
    fn names(&self) -> io::Result<Vec<String>> {
        self.inner.names()
    }
    fn read(&self, name: &str, max_bytes: usize) -> io::Result<Option<Vec<u8>>> {
        self.inner.read(name, max_bytes)
    }
    fn unlinked(&self, among: Vec<String>) -> Vec<String> {
        self.inner.unlinked(among)
    }
    fn make_room(&mut self, stem: &str) -> io::Result<()> {
        self.inner.make_room(stem)
    }
    fn create(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.inner.create(name, bytes)
    }
    fn open(&self, name: &str) -> io::Result<Option<Box<dyn Read>>> {
        self.inner.open(name)
    }
    fn create_from(&mut self, name: &str, content: &mut dyn Read) -> io::Result<u64> {
        self.inner.create_from(name, content)
    }
    fn mark(&mut self, name: &str) -> io::Result<()> {
        // The record that is made now, at its proper time, ends the step.
        if name.contains(".S") {
            self.hasty.is_recorded.set(false);
        }
        self.inner.mark(name)
    }
    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.inner.remove(name)
    }
    fn shred(&mut self, name: &str) -> io::Result<()> {
        self.inner.shred(name)
    }
    fn settle(&mut self) -> io::Result<()> {
        self.inner.settle()
    }
}

impl<E: Esp> Esp for RecordsFirst<E> {
    fn matching(&self, pattern: &str) -> io::Result<Vec<String>> {
        self.inner.matching(pattern)
    }
    fn remove_path(&mut self, path: &str) -> io::Result<()> {
        self.hasty.record()?;
        self.inner.remove_path(path)
    }
}
