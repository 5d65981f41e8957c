//! The LUKS2 volumes: real slots, which change at once and durably, or in the two steps of a removal.

use std::io;
use std::path::Path;
use std::sync::OnceLock;

use restage::format::luks::{Fault, Header, Slot};
use restage::platform::volume::Volume;
use restage_campaign::model::slots::{AREA_BYTES, NAMES, NEW, OLD, OWN, material, read};
use zeroize::Zeroizing;

use crate::medium::Medium;

/// Root or swap.
pub struct Passphrases {
    medium: Medium,
    index: usize,
}

impl Passphrases {
    /// Those of this machine.
    pub fn new(medium: &Medium, index: usize) -> Self {
        Self { medium: medium.clone(), index }
    }
}

impl Volume for Passphrases {
    fn name(&self) -> &str {
        NAMES[self.index]
    }
    fn header(&self) -> io::Result<Result<Header, Fault>> {
        let there = self.medium.beside().slots[self.index].there;
        Ok(Ok(read(self.index, there).clone()))
    }
    fn material(&self, slot: &Slot) -> io::Result<Zeroizing<Vec<u8>>> {
        // Deriving takes longer than anything else here.
        static ALL: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
        let all = ALL.get_or_init(|| {
            let slots = (0..2).flat_map(|volume| (0..3).map(move |number| (volume, number)));
            slots.map(|(v, number)| material(v, number, [OWN[v], OLD, NEW][number])).collect()
        });
        let number = usize::try_from(slot.index).unwrap();
        if self.medium.beside().slots[self.index].wiped == Some(slot.index) {
            return Ok(Zeroizing::new(vec![0; usize::try_from(AREA_BYTES).unwrap()]));
        }
        Ok(Zeroizing::new(all[self.index * 3 + number].clone()))
    }
    fn enroll(&mut self, key_file: &Path, passphrase: &str) -> io::Result<()> {
        assert_eq!(passphrase, NEW);
        assert_eq!(std::fs::read(key_file)?, OWN[self.index].as_bytes(), "not its own key");
        let index = self.index;
        self.medium.change(|beside| {
            assert!(!beside.slots[index].there[2], "a slot leaks");
            beside.slots[index].there[2] = true;
        });
        Ok(())
    }
    fn remove_slot(&mut self, slot: u32) -> io::Result<()> {
        let (index, number) = (self.index, usize::try_from(slot).unwrap());
        self.medium.change(|beside| {
            assert!(number > 0 && beside.slots[index].there[number], "no such slot is to go");
            beside.slots[index].wiped = Some(slot);
        });
        self.medium.change(|beside| {
            beside.slots[index].there[number] = false;
            beside.slots[index].wiped = None;
        });
        Ok(())
    }
}
