//! LUKS2 headers and key slots that are real, with a key derivation that takes no time.
//!
//! `tests/filesystems` has the same volumes.

use std::sync::OnceLock;

use aes::Aes256;
use aes::cipher::KeyInit;
use base64::Engine;
use pbkdf2::hmac::Hmac;
use restage::format::luks::{self, Header};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use xts_mode::{Xts128, get_tweak_default};

/// Size of one header, binary and JSON area: the smallest that there is.
pub const HEADER_BYTES: u64 = 0x4000;
const KEY_BYTES: usize = 64;
/// Bytes of one key slot's material.
pub const AREA_BYTES: u64 = 512;
/// Where the material of key slots begins, behind both headers.
pub const FIRST_AREA: u64 = 2 * HEADER_BYTES;
/// Where the data begin.
pub const DATA_OFFSET: u64 = FIRST_AREA + 8 * AREA_BYTES;

/// The recovery passphrase before the restore, and the one that the backup brings.
pub const OLD: &str = "old-passphrase-0123";
pub const NEW: &str = "new-passphrase-4567";
/// Root's and swap's own keys.
pub const OWN: [&str; 2] = ["root-machine-key-0123456789", "swap-machine-key-0123456789"];
/// What the profile calls the volumes.
pub const NAMES: [&str; 2] = ["root", "swap"];
/// The number of the one that takes the place of one of them, and what tells volumes apart.
pub const OTHER: usize = 2;
const UUIDS: [&str; 3] = ["root", "swap", "else"];

/// Which key slots a volume has: 0 is its own, 1 the old passphrase's, 2 the new one's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Slots {
    /// By number.
    pub there: [bool; 3],
    /// The material of this one is destroyed.
    pub wiped: Option<u32>,
    /// Another volume has its place.
    pub is_other: bool,
}

impl Slots {
    /// Before a restore.
    pub const BEFORE: Self = Self { there: [true, true, false], wiped: None, is_other: false };
    /// Of a volume that somebody has made anew: with the machine's own key.
    pub const OTHER: Self = Self { there: [true, false, false], wiped: None, is_other: true };

    /// Whether the slot opens.
    pub fn opens(self, index: usize) -> bool {
        self.there[index] && self.wiped.and_then(|w| usize::try_from(w).ok()) != Some(index)
    }
}

fn derive(secret: &[u8], salt: &[u8], key: &mut [u8]) {
    pbkdf2::pbkdf2::<Hmac<Sha256>>(secret, salt, 1, key).unwrap();
}

fn base64(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

fn volume_key(volume: usize) -> [u8; KEY_BYTES] {
    [b'k' + u8::try_from(volume).unwrap(); KEY_BYTES]
}

fn salt(slot: usize) -> [u8; 32] {
    [b's' + u8::try_from(slot).unwrap(); 32]
}

/// The material of a slot: the volume key, encrypted with what the passphrase becomes.
pub fn material(volume: usize, slot: usize, passphrase: &str) -> Vec<u8> {
    let mut area_key = [0; KEY_BYTES];
    derive(passphrase.as_bytes(), &salt(slot), &mut area_key);
    let mut area = vec![0; usize::try_from(AREA_BYTES).unwrap()];
    area[..KEY_BYTES].copy_from_slice(&volume_key(volume));
    let (first, second) = area_key.split_at(KEY_BYTES / 2);
    let cipher = Xts128::<Aes256>::new(
        Aes256::new_from_slice(first).unwrap(),
        Aes256::new_from_slice(second).unwrap(),
    );
    cipher.encrypt_area(&mut area, 512, 0, get_tweak_default);
    area
}

/// A header of this volume with these slots.
pub fn header(volume: usize, there: [bool; 3], is_secondary: bool) -> Vec<u8> {
    let indices: Vec<usize> = (0..3).filter(|index| there[*index]).collect();
    let slot = |index: &usize| {
        let offset = FIRST_AREA + AREA_BYTES * *index as u64;
        let slot = json!({
            "type": "luks2", "key_size": KEY_BYTES,
            "af": { "type": "luks1", "stripes": 1, "hash": "sha256" },
            "area": { "type": "raw", "offset": offset.to_string(), "size": AREA_BYTES.to_string(),
                      "encryption": "aes-xts-plain64", "key_size": KEY_BYTES },
            "kdf": { "type": "pbkdf2", "hash": "sha256", "iterations": 1,
                     "salt": base64(&salt(*index)) },
        });
        (index.to_string(), slot)
    };
    let mut digest = [0; 32];
    derive(&volume_key(volume), &salt(9), &mut digest);
    let names: Vec<String> = indices.iter().map(ToString::to_string).collect();
    let area = json!({
        "keyslots": indices.iter().map(slot).collect::<serde_json::Map<String, Value>>(),
        "tokens": {},
        "segments": { "0": { "type": "crypt", "offset": DATA_OFFSET.to_string(), "size": "dynamic",
                             "iv_tweak": "0", "encryption": "aes-xts-plain64",
                             "sector_size": 512 } },
        "digests": { "0": { "type": "pbkdf2", "keyslots": names, "segments": ["0"],
                            "hash": "sha256", "iterations": 1, "salt": base64(&salt(9)),
                            "digest": base64(&digest) } },
        "config": {},
    });
    let mut bytes = vec![0; usize::try_from(HEADER_BYTES).unwrap()];
    bytes[..6].copy_from_slice(if is_secondary { b"SKUL\xba\xbe" } else { b"LUKS\xba\xbe" });
    bytes[6..8].copy_from_slice(&2_u16.to_be_bytes());
    bytes[8..16].copy_from_slice(&HEADER_BYTES.to_be_bytes());
    bytes[72..78].copy_from_slice(b"sha256");
    bytes[168..168 + 4].copy_from_slice(UUIDS[volume].as_bytes());
    let offset = if is_secondary { HEADER_BYTES } else { 0 };
    bytes[256..264].copy_from_slice(&offset.to_be_bytes());
    let text = area.to_string();
    bytes[4096..4096 + text.len()].copy_from_slice(text.as_bytes());
    let digest = Sha256::digest(&bytes);
    bytes[448..480].copy_from_slice(&digest);
    bytes
}

/// What lies before the data of this volume: both headers and the key slots.
pub fn start_of_volume(volume: usize) -> Vec<u8> {
    let there = Slots::BEFORE.there;
    let mut bytes = header(volume, there, false);
    bytes.extend(header(volume, there, true));
    for (index, passphrase) in [OWN[volume], OLD].into_iter().enumerate() {
        bytes.extend(material(volume, index, passphrase));
    }
    bytes.resize(usize::try_from(DATA_OFFSET).unwrap(), 0x5e);
    bytes
}

/// All volumes, for each set of slots, read once.
pub fn read(volume: usize, there: [bool; 3]) -> &'static Header {
    static ALL: OnceLock<Vec<Header>> = OnceLock::new();
    let all = ALL.get_or_init(|| {
        let sets = (0..8).map(|mask| [mask & 1 != 0, mask & 2 != 0, mask & 4 != 0]);
        let read = |(volume, there)| luks::parse(&header(volume, there, false), 0).unwrap();
        (0..=OTHER).flat_map(|v| sets.clone().map(move |there| (v, there))).map(read).collect()
    });
    let mask = usize::from(there[0]) + 2 * usize::from(there[1]) + 4 * usize::from(there[2]);
    &all[volume * 8 + mask]
}
