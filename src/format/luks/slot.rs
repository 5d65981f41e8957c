//! LUKS2 key slots: which there are, what they are for, and whether a passphrase opens one.
//! Side: both. Pure: the caller reads the bytes. Nothing here makes or changes a slot.
//!
//! LUKS2 On-Disk Format Specification 1.1.3, §3.2 and §3.5; the anti-forensic splitter is that of
//! LUKS1 (LUKS1 On-Disk Format Specification 1.2.3, §2.4).

use aes::cipher::KeyInit;
use aes::{Aes128, Aes256};
use base64::Engine;
use pbkdf2::hmac::Hmac;
use serde_json::Value;
use sha2::{Digest, Sha256, Sha512};
use xts_mode::{Xts128, get_tweak_default};
use zeroize::Zeroizing;

use super::Fault;
use crate::format::sha256_hex;

/// How many slots a volume can have (§3.2).
/// They are numbered from 0.
pub const MAX_SLOTS: usize = 32;
const SECTOR: usize = 512;
/// More than any of these is no slot of cryptsetup's, and would only keep the machine busy.
const MAX_AREA_BYTES: u64 = 4 << 20;
const MAX_MEMORY_KIB: u32 = 4 << 20;
/// Passes over memory, counted in KiB: 256 GiB together, minutes of work.
const MAX_PASSES_KIB: u64 = 1 << 28;
const MAX_ITERATIONS: u32 = 1 << 28;
const MAX_KEY_BYTES: usize = 128;

/// What a slot is for, by the token that names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SlotKind {
    /// No token: a passphrase.
    Password,
    /// A recovery key of systemd-cryptenroll.
    Recovery,
    /// Sealed to a TPM.
    Tpm2,
    /// Another token, of this type.
    Other(String),
}

/// A key slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Its number.
    pub index: u32,
    /// SHA-256 of its object in the header, salts included: no other slot has the same.
    pub digest: String,
    /// What it is for.
    pub kind: SlotKind,
    /// Its object in the header, and that of the digest that proves its key.
    lock: Value,
    proof: Value,
}

/// Why a slot cannot be tried: it is made in a way that is not known here, or damaged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownSlot(String);

impl std::fmt::Display for UnknownSlot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a key slot with {}", self.0)
    }
}

impl std::error::Error for UnknownSlot {}

/// The slots in the JSON area of a header, by number.
pub(super) fn slots(header: &Value) -> Result<Vec<Slot>, Fault> {
    let mut slots = Vec::new();
    let is_named = |list: &Value, index: &str| {
        list.get("keyslots")
            .and_then(Value::as_array)
            .is_some_and(|names| names.iter().any(|name| name.as_str() == Some(index)))
    };
    let object = |name| header.get(name).and_then(Value::as_object).ok_or(Fault::Field(name));
    let digests = object("digests")?;
    for (index, slot) in object("keyslots")? {
        // As cryptsetup writes it: `01` would be another name of the same slot.
        let number = (0..MAX_SLOTS).find(|number| number.to_string() == *index);
        let number = number.and_then(|number| u32::try_from(number).ok());
        let mut proof = digests.values().find(|digest| is_named(digest, index)).cloned();
        // Which others it vouches for is no property of this slot.
        if let Some(proof) = proof.as_mut().and_then(Value::as_object_mut) {
            proof.remove("keyslots");
        }
        let token = header.get("tokens").and_then(Value::as_object).and_then(|tokens| {
            tokens.values().find(|token| is_named(token, index))?.get("type")?.as_str()
        });
        slots.push(Slot {
            index: number.ok_or(Fault::Field("keyslots"))?,
            // `Value` keeps its keys sorted, so the text is the same for the same content.
            digest: sha256_hex(slot.to_string().as_bytes()),
            kind: match token {
                None => SlotKind::Password,
                Some("systemd-recovery") => SlotKind::Recovery,
                Some("systemd-tpm2") => SlotKind::Tpm2,
                Some(other) => SlotKind::Other(other.to_owned()),
            },
            lock: slot.clone(),
            proof: proof.unwrap_or_default(),
        });
    }
    slots.sort_by_key(|slot| slot.index);
    Ok(slots)
}

impl Slot {
    /// Where in the partition its key material lies: offset and length in bytes.
    pub fn area(&self) -> Result<(u64, u64), UnknownSlot> {
        let area = child(&self.lock, "area")?;
        let (offset, size) = (decimal(area, "offset")?, decimal(area, "size")?);
        if size > MAX_AREA_BYTES {
            return Err(UnknownSlot(format!("an area of {size} bytes")));
        }
        Ok((offset, size))
    }

    /// The memory that its key derivation takes, in KiB; 0 when that is next to nothing.
    #[must_use]
    pub fn memory_kib(&self) -> u32 {
        child(&self.lock, "kdf").and_then(|kdf| number(kdf, "memory")).unwrap_or(0)
    }

    /// Whether `passphrase` opens this slot, whose area holds `material`. Takes as long, and as much
    /// memory, as the slot's key derivation asks for.
    pub fn opens(&self, passphrase: &[u8], material: &[u8]) -> Result<bool, UnknownSlot> {
        let area = child(&self.lock, "area")?;
        let af = child(&self.lock, "af")?;
        let is_known = text(&self.lock, "type")? == "luks2"
            && text(area, "type")? == "raw"
            && text(af, "type")? == "luks1";
        if !is_known {
            return Err(UnknownSlot("another layout".to_owned()));
        }
        let key_bytes = length(&self.lock, "key_size")?;
        let stripes = usize::try_from(number(af, "stripes")?).unwrap_or(usize::MAX);
        let split_bytes = key_bytes.saturating_mul(stripes);
        let mut split = material
            .get(..split_bytes.next_multiple_of(SECTOR))
            .map(|bytes| Zeroizing::new(bytes.to_vec()))
            .ok_or_else(|| UnknownSlot("an area that is too small".to_owned()))?;
        let encryption = text(area, "encryption")?;
        if encryption != "aes-xts-plain64" {
            return Err(UnknownSlot(format!("`{encryption}`")));
        }
        let mut area_key = Zeroizing::new(vec![0; length(area, "key_size")?]);
        derive(child(&self.lock, "kdf")?, passphrase, &mut area_key)?;
        decrypt(&area_key, &mut split)?;
        let split = split.get(..split_bytes).unwrap_or_default();
        let key = merge(split, key_bytes, text(af, "hash")?)?;

        if text(&self.proof, "type")? != "pbkdf2" {
            return Err(UnknownSlot("a digest of another kind".to_owned()));
        }
        let wanted = binary(&self.proof, "digest")?;
        let mut found = vec![0; wanted.len()];
        derive(&self.proof, &key, &mut found)?;
        Ok(!wanted.is_empty() && found == *wanted)
    }
}

/// The key derivation that `how` describes, of a slot or of a digest.
fn derive(how: &Value, secret: &[u8], key: &mut [u8]) -> Result<(), UnknownSlot> {
    let salt = binary(how, "salt")?;
    let variant = match text(how, "type")? {
        "pbkdf2" => {
            let rounds = number(how, "iterations")?;
            if rounds > MAX_ITERATIONS {
                return Err(UnknownSlot(format!("{rounds} iterations")));
            }
            let done = match text(how, "hash")? {
                "sha256" => pbkdf2::pbkdf2::<Hmac<Sha256>>(secret, &salt, rounds, key),
                "sha512" => pbkdf2::pbkdf2::<Hmac<Sha512>>(secret, &salt, rounds, key),
                other => return Err(UnknownSlot(format!("the hash `{other}`"))),
            };
            return done.map_err(|_| UnknownSlot("a salt of the wrong length".to_owned()));
        }
        "argon2i" => argon2::Algorithm::Argon2i,
        "argon2id" => argon2::Algorithm::Argon2id,
        other => return Err(UnknownSlot(format!("the key derivation `{other}`"))),
    };
    let memory_kib = number(how, "memory")?;
    if memory_kib > MAX_MEMORY_KIB {
        return Err(UnknownSlot(format!("{memory_kib} KiB of memory")));
    }
    let passes = number(how, "time")?;
    if u64::from(passes).saturating_mul(memory_kib.into()) > MAX_PASSES_KIB {
        return Err(UnknownSlot(format!("{passes} passes over {memory_kib} KiB of memory")));
    }
    let wrong = |error: argon2::Error| UnknownSlot(format!("wrong argon2 parameters: {error}"));
    let parameters = argon2::Params::new(memory_kib, passes, number(how, "cpus")?, Some(key.len()));
    argon2::Argon2::new(variant, argon2::Version::V0x13, parameters.map_err(wrong)?)
        .hash_password_into(secret, &salt, key)
        .map_err(wrong)
}

/// aes-xts-plain64, counted from the start of the area.
fn decrypt(key: &[u8], area: &mut [u8]) -> Result<(), UnknownSlot> {
    let (first, second) = key.split_at(key.len() / 2);
    let wrong = |_| UnknownSlot(format!("a key of {} bytes", key.len()));
    match key.len() {
        32 => Xts128::<Aes128>::new(
            Aes128::new_from_slice(first).map_err(wrong)?,
            Aes128::new_from_slice(second).map_err(wrong)?,
        )
        .decrypt_area(area, SECTOR, 0, get_tweak_default),
        64 => Xts128::<Aes256>::new(
            Aes256::new_from_slice(first).map_err(wrong)?,
            Aes256::new_from_slice(second).map_err(wrong)?,
        )
        .decrypt_area(area, SECTOR, 0, get_tweak_default),
        length => return Err(UnknownSlot(format!("a key of {length} bytes"))),
    }
    Ok(())
}

/// Puts the stripes together again (LUKS1, §2.4).
fn merge(split: &[u8], key_bytes: usize, hash: &str) -> Result<Zeroizing<Vec<u8>>, UnknownSlot> {
    let diffuse: fn(&mut [u8]) = match hash {
        "sha256" => diffuse::<Sha256>,
        "sha512" => diffuse::<Sha512>,
        other => return Err(UnknownSlot(format!("the hash `{other}`"))),
    };
    let mut key = Zeroizing::new(vec![0; key_bytes]);
    let mut stripes = split.chunks_exact(key_bytes.max(1)).peekable();
    while let Some(stripe) = stripes.next() {
        for (byte, other) in key.iter_mut().zip(stripe) {
            *byte ^= other;
        }
        if stripes.peek().is_some() {
            diffuse(&mut key);
        }
    }
    Ok(key)
}

/// Each piece of the size of a digest becomes the digest of its number and itself, cut to its length.
fn diffuse<D: Digest>(key: &mut [u8]) {
    for (number, piece) in (0_u32..).zip(key.chunks_mut(<D as Digest>::output_size())) {
        let digest = D::new().chain_update(number.to_be_bytes()).chain_update(&*piece).finalize();
        for (byte, new) in piece.iter_mut().zip(digest) {
            *byte = new;
        }
    }
}

fn child<'a>(object: &'a Value, field: &str) -> Result<&'a Value, UnknownSlot> {
    object.get(field).ok_or_else(|| UnknownSlot(format!("no `{field}`")))
}

fn text<'a>(object: &'a Value, field: &str) -> Result<&'a str, UnknownSlot> {
    child(object, field)?.as_str().ok_or_else(|| UnknownSlot(format!("a strange `{field}`")))
}

/// 64-bit numbers are texts in LUKS2.
fn decimal(object: &Value, field: &str) -> Result<u64, UnknownSlot> {
    text(object, field)?.parse().map_err(|_| UnknownSlot(format!("a strange `{field}`")))
}

fn number(object: &Value, field: &str) -> Result<u32, UnknownSlot> {
    let number = child(object, field)?.as_u64().and_then(|number| u32::try_from(number).ok());
    number.filter(|n| *n > 0).ok_or_else(|| UnknownSlot(format!("a strange `{field}`")))
}

fn length(object: &Value, field: &str) -> Result<usize, UnknownSlot> {
    let length = usize::try_from(number(object, field)?).unwrap_or(usize::MAX);
    if length > MAX_KEY_BYTES {
        return Err(UnknownSlot(format!("a key of {length} bytes")));
    }
    Ok(length)
}

fn binary(object: &Value, field: &str) -> Result<Vec<u8>, UnknownSlot> {
    base64::engine::general_purpose::STANDARD
        .decode(text(object, field)?)
        .map_err(|_| UnknownSlot(format!("a strange `{field}`")))
}
