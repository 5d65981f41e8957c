//! What lies on a disk: partition tables and LUKS2 headers.

use std::collections::BTreeSet;

use restage::format::gpt::{self, SectorBytes, Table};
use restage::format::luks::{self, HEADER_SIZES, Header};
use restage_campaign::model::slots;
use serde_json::Value;

use crate::bytes::{Bytes, told};
use crate::fixtures::disks;
use crate::seal;

pub const LUKS_WORDS: &[&str] = &[
    "\"keyslots\":{\"0\":{",
    "\"01\":",
    "\"+1\":",
    "\"digests\":{\"0\":{\"type\":\"pbkdf2\",\"keyslots\":[\"0\"],",
    "\"segments\":{\"0\":{\"offset\":\"0\"}}",
    "\"tokens\":{\"0\":{\"type\":\"systemd-tpm2\",\"keyslots\":[\"0\"]}}",
    "\"type\":\"argon2id\",\"time\":1,\"memory\":8,\"cpus\":1",
    "\"iterations\":1",
    "\"key_size\":64",
    "\"key_size\":32",
    "\"stripes\":4000",
    "\"size\":\"18446744073709551615\"",
    "sha512",
    "4294967295",
];

/// As many sectors as a disk may have here.
const SECTORS: u64 = 4096;

fn table(header: &[u8], array: &[u8], lba: u64, sector: SectorBytes) -> Option<Table> {
    let located = match gpt::locate(header, lba, sector, SECTORS * sector.get()) {
        Ok(located) => located,
        Err(why) => {
            told(&why.to_string());
            return None;
        }
    };
    let size = SECTORS * sector.get();
    assert!(
        located.array_offset + located.array_bytes as u64 <= size && located.other_lba < SECTORS
    );
    assert!(located.array_bytes <= 128 * 1024);
    let mut array = array.to_vec();
    array.resize(located.array_bytes, 0);
    match located.complete(array) {
        Ok(table) => Some(table),
        Err(why) => {
            told(&why.to_string());
            None
        }
    }
}

/// What a copy is written as, read as if it lay on a disk.
fn reread(table: &Table, lba: u64, sector: SectorBytes) -> Table {
    let extents = table.encode().expect("what is read can be written");
    let part = |from: u64, length: u64| {
        let extent = extents.iter().find(|extent| {
            extent.offset <= from && from + length <= extent.offset + extent.bytes.len() as u64
        });
        let extent = extent.expect("it is written whole");
        extent.bytes[usize::try_from(from - extent.offset).unwrap()..][..length as usize].to_vec()
    };
    let header = part(lba * sector.get(), sector.get());
    let located = gpt::locate(&header, lba, sector, SECTORS * sector.get());
    let located = located.expect("what is written can be read");
    let array = part(located.array_offset, located.array_bytes as u64);
    located.complete(array).expect("what is written can be read")
}

/// The first byte: sums, sector size, which copy. Then a header of 92 bytes, and entries.
pub fn gpt(bytes: &[u8]) {
    let mut bytes = Bytes(bytes);
    let how = bytes.byte();
    let sector = SectorBytes::new(if how & 2 == 0 { 512 } else { 4096 }).unwrap();
    let mut header = vec![0; usize::try_from(sector.get()).unwrap()];
    let fields = bytes.take(92);
    header[..fields.len()].copy_from_slice(fields);
    let mut array = bytes.0.to_vec();
    let entries = u32::from_le_bytes(header[80..84].try_into().unwrap()).min(64) as usize;
    array.resize(entries * 128, 0);
    if how & 1 != 0 {
        seal::gpt(&mut header, &array);
    }
    let lba = if how & 4 == 0 { 1 } else { SECTORS - 1 };
    let Some(mut table) = table(&header, &array, lba, sector) else { return };
    let (first, last) = table.usable();
    for entry in table.entries() {
        assert!(
            first <= entry.first_lba && entry.first_lba <= entry.last_lba && entry.last_lba <= last
        );
        assert!(!entry.type_guid.is_nil() && entry.number >= 1);
    }
    let is_usable = |at: u64| (first * sector.get()..(last + 1) * sector.get()).contains(&at);
    for extent in table.encode().expect("what is read can be written") {
        let end = extent.offset + extent.bytes.len() as u64 - 1;
        assert!(!is_usable(extent.offset) && !is_usable(end), "over a partition");
    }
    let again = reread(&table, lba, sector);
    // What is reserved is written as zeros.
    assert!(again.same_content(&table) && again.usable() == table.usable(), "it is another one");
    assert_eq!(again.entries(), table.entries());
    if let Ok(other) = table.as_other_copy() {
        assert!(other.same_content(&table) && other.entries() == table.entries());
        let other_lba = u64::from_le_bytes(header[32..40].try_into().unwrap());
        assert_eq!(reread(&other, other_lba, sector).entries(), table.entries());
    }
    let Some(gone) = table.entries().last().map(|entry| entry.number) else { return };
    let mut kept = table.entries().to_vec();
    kept.pop();
    table.remove(gone);
    assert_eq!(table.entries(), kept);
    assert_eq!(reread(&table, lba, sector).entries(), kept, "another one went");
}

pub fn gpt_seeds() -> Vec<Vec<u8>> {
    let header = |lba: u64, start: u64, entries: u32| {
        let mut header = vec![0; 92];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"EFI PART\0\0\x01\0\x5c\0\0\0");
        put(24, &lba.to_le_bytes());
        put(32, &(SECTORS - lba).to_le_bytes());
        put(40, &34_u64.to_le_bytes());
        put(48, &(SECTORS - 34).to_le_bytes());
        put(56, &[7; 16]);
        put(72, &start.to_le_bytes());
        put(80, &entries.to_le_bytes());
        put(84, &128_u32.to_le_bytes());
        header
    };
    let entry = |number: u8| {
        let mut entry = vec![0; 128];
        entry[..16].fill(0x10 + number);
        entry[16..32].fill(0x20 + number);
        entry[32..40].copy_from_slice(&(40 + 100 * u64::from(number)).to_le_bytes());
        entry[40..48].copy_from_slice(&(99 + 100 * u64::from(number)).to_le_bytes());
        entry[56..62].copy_from_slice(b"r\0o\0t\0");
        entry
    };
    let array = [entry(0), vec![0; 128], entry(2), entry(3)].concat();
    vec![
        [&[1][..], &header(1, 2, 4), &array].concat(),
        [&[5][..], &header(SECTORS - 1, SECTORS - 2, 4), &array].concat(),
        [&[3][..], &header(1, 2, 4), &array].concat(),
        [&[1][..], &header(1, 2, 128), &entry(0)].concat(),
        [&[0][..], &header(1, 2, 4), &array].concat(),
    ]
}

/// A header that is as it should be but for its JSON.
fn with_json(json: &[u8], is_secondary: bool) -> (Vec<u8>, u64) {
    let mut header = slots::header(0, [true, true, false], is_secondary);
    let length = json.len().min(header.len() - 4096);
    header[4096..].fill(0);
    header[4096..4096 + length].copy_from_slice(&json[..length]);
    seal::luks(&mut header);
    (header, if is_secondary { slots::HEADER_BYTES } else { 0 })
}

fn sound(header: &Header) {
    assert_eq!(header.identity.len(), 64);
    assert!(HEADER_SIZES.contains(&header.header_bytes));
    let numbers: BTreeSet<u32> = header.slots.iter().map(|slot| slot.index).collect();
    assert_eq!(numbers.len(), header.slots.len(), "two slots of one number");
    assert!(header.slots.is_sorted_by_key(|slot| slot.index));
    assert!(header.slots.len() <= luks::MAX_SLOTS, "{} slots", header.slots.len());
    for slot in &header.slots {
        assert_eq!(slot.digest.len(), 64);
        match slot.area() {
            Ok((_, bytes)) => assert!(bytes <= 4 << 20),
            Err(why) => told(&why.to_string()),
        }
        let _ = slot.memory_kib();
    }
}

/// The first byte: the JSON of a good header, or what lies before it.
pub fn luks(bytes: &[u8]) {
    let mut bytes = Bytes(bytes);
    let how = bytes.byte();
    let (header, offset) = if how & 1 == 0 {
        with_json(bytes.0, how & 2 != 0)
    } else {
        let (mut header, offset) = with_json(b"", how & 2 != 0);
        header = [&bytes.0[..bytes.0.len().min(4096)], &header[bytes.0.len().min(4096)..]].concat();
        if how & 4 != 0 {
            seal::luks(&mut header);
        }
        (header, offset)
    };
    let Ok(found) = luks::parse(&header, offset) else { return };
    sound(&found);
    assert_eq!(luks::announced_bytes(&header), Ok(found.header_bytes));
    assert!(luks::parse(&header, offset + 0x4000).is_err(), "in another place it is none");
    // The other copy says the same; sums take their time, so not always.
    if how & 0xf1 == 0 {
        let (other, offset) = with_json(bytes.0, how & 2 == 0);
        assert_eq!(luks::parse(&other, offset), Ok(found));
    }
}

/// Numbers that would only keep the machine busy, which is what the limits of the slots allow.
fn is_dear(json: &Value) -> bool {
    match json {
        Value::Number(number) => number.as_u64().is_some_and(|number| number > 600),
        Value::Array(items) => items.iter().any(is_dear),
        Value::Object(fields) => fields.values().any(is_dear),
        _ => false,
    }
}

/// A slot is tried, with the JSON of a good header that is changed, and with any material.
pub fn slot(bytes: &[u8]) {
    let mut bytes = Bytes(bytes);
    let length = bytes.below(0x1_0000);
    let json = bytes.take(length);
    let Ok(value) = serde_json::from_slice::<Value>(json) else { return };
    if is_dear(&value) {
        return;
    }
    let (header, offset) = with_json(json, false);
    let Ok(found) = luks::parse(&header, offset) else { return };
    let good = slots::material(0, 1, slots::OLD);
    let material = if bytes.0.is_empty() { good.as_slice() } else { bytes.0 };
    for slot in &found.slots {
        match slot.opens(slots::OLD.as_bytes(), material) {
            Ok(true) => {
                let wrong = slot.opens(b"another passphrase", material);
                assert_eq!(wrong, Ok(false), "any passphrase opens it");
            }
            Ok(false) => {}
            Err(why) => told(&why.to_string()),
        }
    }
}

fn json_of(header: &[u8]) -> Vec<u8> {
    header[4096..].iter().copied().take_while(|byte| *byte != 0).collect()
}

pub fn luks_seeds() -> Vec<Vec<u8>> {
    let good = slots::header(0, [true, true, false], false);
    let mut both = good.clone();
    both.extend(slots::header(0, [true, true, false], true));
    let mut all = vec![[&[0], json_of(&good).as_slice()].concat()];
    all.push([&[2], json_of(&slots::header(1, [true, true, true], false)).as_slice()].concat());
    all.push([&[5], &good[..512]].concat());
    all.push([&[1], &good[..512]].concat());
    for hostile in disks::volumes(&both) {
        all.push([&[0], json_of(&hostile.bytes).as_slice()].concat());
        all.push([&[1], &hostile.bytes[..512]].concat());
    }
    all.retain(|seed| seed.len() < 4000);
    all
}

pub fn slot_seeds() -> Vec<Vec<u8>> {
    let json = json_of(&slots::header(0, [false, true, false], false));
    let length = u16::try_from(json.len()).unwrap().to_le_bytes();
    let argon = String::from_utf8(json.clone()).unwrap().replacen(
        "\"hash\":\"sha256\",\"iterations\":1,",
        "\"time\":1,\"memory\":8,\"cpus\":1,",
        2,
    );
    let argon = argon.replacen("\"type\":\"pbkdf2\"},", "\"type\":\"argon2id\"},", 1);
    let argon_length = u16::try_from(argon.len()).unwrap().to_le_bytes();
    vec![
        [&length, json.as_slice()].concat(),
        [&length, json.as_slice(), &[7; 64]].concat(),
        [&argon_length, argon.as_bytes()].concat(),
    ]
}
