//! LUKS2 volumes: their key slots as systemd-cryptenroll changes them.
//!
//! An enrolment is there or not. A removal destroys the key material first, and the slot then.

use std::io;
use std::path::Path;

use restage::format::luks::{Fault, Header, Slot};
use restage::platform::volume::Volume;
use zeroize::Zeroizing;

use super::call::{Object, Op};
use super::slots::{AREA_BYTES, NAMES, OTHER, material, read};
pub use super::slots::{DATA_OFFSET, FIRST_AREA, NEW, OLD, OWN, Slots, start_of_volume};
use super::{Call, Device, Shared, World};
use crate::model::files::Found;

/// A volume of a run.
pub struct ModelVolume {
    world: Shared,
    index: usize,
}

impl ModelVolume {
    /// Root or swap.
    pub fn new(world: &Shared, index: usize) -> Self {
        Self { world: world.clone(), index }
    }

    /// Which one it is.
    fn volume(&self, slots: Slots) -> usize {
        if slots.is_other { OTHER } else { self.index }
    }

    fn call<T>(
        &self,
        call: Call,
        verb: &'static str,
        effect: impl FnOnce(&mut World) -> T,
    ) -> io::Result<T> {
        let op = Op { device: Device::Slots, call, verb, object: Object::Volume(self.index) };
        self.world.borrow_mut().call(op, |world, _| Ok(effect(world)))
    }
}

impl Volume for ModelVolume {
    fn name(&self) -> &str {
        NAMES[self.index]
    }
    fn header(&self) -> io::Result<Result<Header, Fault>> {
        let slots = self.call(Call::Read, "header", |world| world.slots[self.index])?;
        Ok(Ok(read(self.volume(slots), slots.there).clone()))
    }
    fn material(&self, slot: &Slot) -> io::Result<Zeroizing<Vec<u8>>> {
        let index = self.index;
        self.call(Call::Read, "try", |world| {
            let number = usize::try_from(slot.index).unwrap();
            Zeroizing::new(if world.slots[index].wiped == Some(slot.index) {
                vec![0; usize::try_from(AREA_BYTES).unwrap()]
            } else {
                material(self.volume(world.slots[index]), number, [OWN[index], OLD, NEW][number])
            })
        })
    }
    fn enroll(&mut self, key_file: &Path, passphrase: &str) -> io::Result<()> {
        let index = self.index;
        assert_eq!(passphrase, NEW);
        self.call(Call::Change, "enroll", |world| {
            let path = key_file.strip_prefix("/").unwrap().to_string_lossy().into_owned();
            let key = Found::File(OWN[index].as_bytes().to_vec());
            assert_eq!(world.state.all().get(&path), Some(&key), "not the machine's own key");
            assert!(!world.slots[index].there[2], "a slot leaks");
            world.slots[index].there[2] = true;
        })
    }
    fn remove_slot(&mut self, slot: u32) -> io::Result<()> {
        let index = self.index;
        let number = usize::try_from(slot).unwrap();
        self.call(Call::Change, "remove", |world| {
            assert!(number > 0 && world.slots[index].there[number], "no such slot is to go");
            world.slots[index].wiped = Some(slot);
        })?;
        self.call(Call::Change, "remove", |world| {
            world.slots[index].there[number] = false;
            world.slots[index].wiped = None;
        })
    }
}
