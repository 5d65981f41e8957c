//! What scenarios plant in a TPM that is off, and what they look for after:
//! a persistent object, an NV index, a lockout password, the owner's seed.

use crate::failure::{Doing, Failure, Outcome};
use crate::swtpm::{self, Bare};
use std::path::Path;

const OWNER: u32 = 0x4000_0001;
const LOCKOUT: u32 = 0x4000_000A;
const PLATFORM: u32 = 0x4000_000C;
const PCR_ALLOCATE: u32 = 0x12B;
const GET_CAPABILITY: u32 = 0x17A;
const HIERARCHY_CHANGE_AUTH: u32 = 0x129;
const CREATE_PRIMARY: u32 = 0x131;
const EVICT_CONTROL: u32 = 0x120;
const FLUSH_CONTEXT: u32 = 0x165;
const NV_DEFINE_SPACE: u32 = 0x12A;
const SHUTDOWN: u32 = 0x145;

/// Of the range for owners, away from where systemd keeps its own.
pub const PLANTED_OBJECT: u32 = 0x8101_0042;
pub const PLANTED_INDEX: u32 = 0x0150_0042;

/// An unrestricted P-256 signing key, the same template each time: under one
/// owner seed it is always the same key, under a new seed another one.
const SIGNING_KEY: [u8; 24] = [
    0x00, 0x23, // ECC
    0x00, 0x0B, // SHA-256 names
    0x00, 0x04, 0x00, 0x72, // sign, userWithAuth, origin, fixedTPM, fixedParent
    0x00, 0x00, // no policy
    0x00, 0x10, // no symmetric part
    0x00, 0x18, 0x00, 0x0B, // ECDSA with SHA-256
    0x00, 0x03, // P-256
    0x00, 0x10, // no KDF
    0x00, 0x00, 0x00, 0x00, // unique, empty
];

/// What tells one TPM from the same one after a clear.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contents {
    pub persistent: Vec<u32>,
    pub nv: Vec<u32>,
    /// The public part of the fixed primary: a function of the owner's seed.
    pub owner: Vec<u8>,
}

/// A new TPM with one bank of PCRs, SHA-256, as TPMs are sold. One that is made
/// from nothing has four, and firmware, stub and kernel hash all of the UKI for
/// each of them: under emulation that is ten seconds of every boot.
pub fn make(state: &Path) -> Outcome {
    const BANKS: [(u16, [u8; 3]); 4] =
        [(0x0004, [0; 3]), (0x000B, [0xFF; 3]), (0x000C, [0; 3]), (0x000D, [0; 3])];
    swtpm::make_state(state)?;
    let mut tpm = Bare::start(state)?;
    let mut wanted = vec![0, 0, 0, 4];
    for (hash, pcrs) in BANKS {
        wanted.extend(hash.to_be_bytes());
        wanted.push(3); // bytes of selection
        wanted.extend(pcrs);
    }
    let answer = tpm.with_empty_auth(PCR_ALLOCATE, &[PLATFORM], &wanted).doing("choosing banks")?;
    // The size of the parameters, then whether it can be had.
    if answer.get(4) != Some(&1) {
        return Err(Failure::new("the TPM cannot have SHA-256 as its only bank"));
    }
    finish(&mut tpm)
}

/// Makes a persistent object and an NV index that only a clear removes.
pub fn plant(state: &Path) -> Outcome {
    let mut tpm = Bare::start(state)?;
    let (handle, _) = primary(&mut tpm)?;
    tpm.with_empty_auth(EVICT_CONTROL, &[OWNER, handle], &PLANTED_OBJECT.to_be_bytes())
        .doing("making a persistent object")?;
    flush(&mut tpm, handle)?;
    let mut space = vec![0, 0]; // no password
    let mut public = PLANTED_INDEX.to_be_bytes().to_vec();
    public.extend([0x00, 0x0B]); // SHA-256 names
    // owner and auth may read and write, no dictionary-attack protection
    public.extend(0x0206_0006_u32.to_be_bytes());
    public.extend([0, 0, 0, 16]); // no policy, 16 bytes
    space.extend(u16::try_from(public.len()).doing("an NV index")?.to_be_bytes());
    space.extend(public);
    tpm.with_empty_auth(NV_DEFINE_SPACE, &[OWNER], &space).doing("making an NV index")?;
    finish(&mut tpm)
}

/// Sets the password without which the TPM cannot be cleared.
pub fn lock(state: &Path, password: &str) -> Outcome {
    let mut tpm = Bare::start(state)?;
    let mut new = u16::try_from(password.len()).doing("a password")?.to_be_bytes().to_vec();
    new.extend(password.as_bytes());
    tpm.with_empty_auth(HIERARCHY_CHANGE_AUTH, &[LOCKOUT], &new)
        .doing("setting the lockout password")?;
    finish(&mut tpm)
}

pub fn contents(state: &Path) -> Outcome<Contents> {
    let mut tpm = Bare::start(state)?;
    let persistent = handles(&mut tpm, 0x8100_0000)?;
    let nv = handles(&mut tpm, 0x0100_0000)?;
    let (handle, owner) = primary(&mut tpm)?;
    flush(&mut tpm, handle)?;
    finish(&mut tpm)?;
    Ok(Contents { persistent, nv, owner })
}

/// The handle and the public part of the fixed primary.
fn primary(tpm: &mut Bare) -> Outcome<(u32, Vec<u8>)> {
    let mut parameters = vec![0, 4, 0, 0, 0, 0]; // no password, no data
    parameters.extend(u16::try_from(SIGNING_KEY.len()).doing("a template")?.to_be_bytes());
    parameters.extend(SIGNING_KEY);
    parameters.extend([0, 0, 0, 0, 0, 0]); // no outside info, no PCRs
    let answer =
        tpm.with_empty_auth(CREATE_PRIMARY, &[OWNER], &parameters).doing("making a primary key")?;
    let mut fields = Fields(&answer);
    let handle = fields.u32()?;
    let _parameter_size = fields.u32()?;
    let length = fields.u16()?;
    Ok((handle, fields.take(length.into())?.to_vec()))
}

fn flush(tpm: &mut Bare, handle: u32) -> Outcome {
    tpm.plain(FLUSH_CONTEXT, &handle.to_be_bytes()).map(drop)
}

/// An orderly shutdown, or the next power-on would count as an attack.
fn finish(tpm: &mut Bare) -> Outcome {
    tpm.plain(SHUTDOWN, &[0, 0]).map(drop).doing("shutting the TPM down")
}

fn handles(tpm: &mut Bare, first: u32) -> Outcome<Vec<u32>> {
    let mut ask = 1_u32.to_be_bytes().to_vec(); // TPM_CAP_HANDLES
    ask.extend(first.to_be_bytes());
    ask.extend(254_u32.to_be_bytes());
    let answer = tpm.plain(GET_CAPABILITY, &ask).doing("listing handles")?;
    let mut fields = Fields(answer.get(5..).unwrap_or_default());
    let count = fields.u32()?;
    (0..count).map(|_| fields.u32()).collect()
}

/// Big-endian fields, taken from the front.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> Outcome<&'a [u8]> {
        let (front, rest) = self.0.split_at_checked(count).doing("reading a TPM's answer")?;
        self.0 = rest;
        Ok(front)
    }

    fn u16(&mut self) -> Outcome<u16> {
        Ok(self.take(2)?.iter().fold(0, |all, byte| all << 8 | u16::from(*byte)))
    }

    fn u32(&mut self) -> Outcome<u32> {
        Ok(self.take(4)?.iter().fold(0, |all, byte| all << 8 | u32::from(*byte)))
    }
}
