//! What the harness itself says to the TPM, without restage and without the library that restage
//! uses: to bring it into a state, and to see in which one it is.

use std::io::Write as _;
use std::os::unix::net::UnixStream;

use crate::wire::{
    self, CLEAR, CLEAR_CONTROL, CREATE_PRIMARY, FLUSH_CONTEXT, GET_CAPABILITY,
    HIERARCHY_CHANGE_AUTH, LOCK_PARAMETERS, LOCK_RESET, LOCKOUT, NO_SESSIONS, NV_DEFINE_SPACE,
    NV_READ, NV_WRITE, OWNER, PASSWORD, SESSIONS, SHUTDOWN, sized,
};

const CAP_TPM_PROPERTIES: u32 = 6;
const PERMANENT: u32 = 0x200;
const LOCKOUT_COUNTER: u32 = 0x20E;
const OWNER_AUTH_SET: u32 = 1;
/// Of the owner, of the endorsement and of the lockout hierarchy.
const ANY_AUTH_SET: u32 = 7;
const DISABLE_CLEAR: u32 = 1 << 8;
const IN_LOCKOUT: u32 = 1 << 9;
/// An index that anybody with its password reads and writes, and that counts wrong passwords.
const INDEX: u32 = 0x0150_0042;
const INDEX_ATTRIBUTES: u32 = 1 << 18 | 1 << 2; // AUTHREAD, AUTHWRITE, and not NO_DA
const INDEX_BYTES: u16 = 8;
const RETRY: u32 = 0x922;
const SHA256: u16 = 0x0B;

/// An unrestricted P-256 signing key, the same template each time: under one owner seed it is always
/// the same key, under a new seed another one. Not the template that restage uses.
const SIGNING_KEY: [u8; 24] = [
    0x00, 0x23, // ECC
    0x00, 0x0B, // SHA-256 names
    0x00, 0x04, 0x04, 0x72, // sign, no dictionary attacks, userWithAuth, origin, fixed
    0x00, 0x00, // no policy
    0x00, 0x10, // no symmetric part
    0x00, 0x18, 0x00, 0x0B, // ECDSA with SHA-256
    0x00, 0x03, // P-256
    0x00, 0x10, // no KDF
    0x00, 0x00, 0x00, 0x00, // unique, empty
];

/// Passwords, where a state has them.
pub const OWNER_PASSWORD: &[u8] = b"of the owner";
pub const ENDORSEMENT_PASSWORD: &[u8] = b"of the privacy administrator";
pub const LOCKOUT_PASSWORD: &[u8] = b"of the lockout";
pub const INDEX_PASSWORD: &[u8] = b"of an index";
const WRONG: &[u8] = b"wrong";

/// How a TPM is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The public part of the fixed primary: a function of the owner's seed.
    pub primary: Vec<u8>,
    /// `TPM_PT_PERMANENT`: which passwords are set, `disableClear`, `inLockout`.
    pub flags: u32,
    pub lockout_counter: u32,
}

impl Seen {
    pub fn is_in_lockout(&self) -> bool {
        self.flags & IN_LOCKOUT != 0
    }

    /// No passwords, no lockout, and a clear would be carried out.
    pub fn is_as_from_the_factory(&self) -> bool {
        self.flags & (ANY_AUTH_SET | DISABLE_CLEAR | IN_LOCKOUT) == 0 && self.lockout_counter == 0
    }

    /// No passwords, whatever the lockout says.
    pub fn has_no_password(&self) -> bool {
        self.flags & ANY_AUTH_SET == 0
    }
}

/// A connection of the harness's own.
pub struct Chip(pub UnixStream);

/// What the TPM says to a command: the code, and the rest.
type Answer = Result<Vec<u8>, u32>;

impl Chip {
    pub fn see(&mut self) -> Seen {
        let flags = self.property(PERMANENT);
        let password = if flags & OWNER_AUTH_SET == 0 { &b""[..] } else { OWNER_PASSWORD };
        Seen {
            primary: self.primary(password),
            flags,
            lockout_counter: self.property(LOCKOUT_COUNTER),
        }
    }

    fn property(&mut self, tag: u32) -> u32 {
        let body = [CAP_TPM_PROPERTIES, tag, 1].map(u32::to_be_bytes).concat();
        let answer = self.plain(GET_CAPABILITY, &body).expect("a property");
        // moreData, capability, count; then the tag and the value.
        assert_eq!(wire::u32_at(&answer, 9), tag);
        wire::u32_at(&answer, 13)
    }

    fn primary(&mut self, password: &[u8]) -> Vec<u8> {
        let body = [
            &[0, 4, 0, 0, 0, 0][..], // no password, no data
            &sized(&SIGNING_KEY),
            &[0, 0, 0, 0, 0, 0], // no outside info, no PCRs
        ];
        let answer = self.with(CREATE_PRIMARY, &[OWNER], password, &body.concat());
        let answer = answer.expect("a primary key");
        let handle = wire::u32_at(&answer, 0);
        let length = usize::from(answer[8]) << 8 | usize::from(answer[9]);
        self.plain(FLUSH_CONTEXT, &handle.to_be_bytes()).expect("the key goes");
        answer[10..10 + length].to_vec()
    }

    /// A hierarchy that had no password gets one.
    pub fn set_password(&mut self, hierarchy: u32, password: &[u8]) {
        let set = self.with(HIERARCHY_CHANGE_AUTH, &[hierarchy], b"", &sized(password));
        set.expect("a password is set");
    }

    pub fn disable_clear(&mut self) {
        self.with(CLEAR_CONTROL, &[LOCKOUT], b"", &[1]).expect("clear is disabled");
    }

    /// An NV index that counts wrong passwords, and has been written.
    pub fn make_index(&mut self) -> Answer {
        let public = [
            &INDEX.to_be_bytes()[..],
            &SHA256.to_be_bytes(),
            &INDEX_ATTRIBUTES.to_be_bytes(),
            &[0, 0], // no policy
            &INDEX_BYTES.to_be_bytes(),
        ];
        let body = [sized(INDEX_PASSWORD), sized(&public.concat())].concat();
        self.with(NV_DEFINE_SPACE, &[OWNER], b"", &body)
    }

    /// The right password of that index: from here on a power cut counts as a wrong one.
    pub fn use_index(&mut self) -> Answer {
        let body = [sized(&[7; INDEX_BYTES as usize]), vec![0, 0]].concat();
        self.with(NV_WRITE, &[INDEX, INDEX], INDEX_PASSWORD, &body)
    }

    /// Wrong passwords until the TPM takes none at all.
    pub fn lock_out(&mut self) {
        self.make_index().expect("an index");
        self.use_index().expect("its password");
        let read = [INDEX_BYTES.to_be_bytes(), [0, 0]].concat();
        for _ in 0..32 {
            let refused = self.with(NV_READ, &[INDEX, INDEX], WRONG, &read);
            refused.expect_err("a wrong password");
            if self.see().is_in_lockout() {
                return;
            }
        }
        panic!("32 wrong passwords, and no lockout");
    }

    /// One wrong password for the lockout hierarchy, and it takes none for `recovery_s`.
    pub fn burn_lockout(&mut self, recovery_s: u32) {
        let parameters = [3, 1000, recovery_s].map(u32::to_be_bytes).concat();
        let set = self.with(LOCK_PARAMETERS, &[LOCKOUT], b"", &parameters);
        set.expect("the parameters of the lockout");
        self.with(CLEAR, &[LOCKOUT], WRONG, b"").expect_err("a wrong password");
    }

    /// Whether the lockout hierarchy takes its password. Ends a dictionary-attack lockout where it does.
    pub fn takes_lockout_password(&mut self, password: &[u8]) -> bool {
        self.with(LOCK_RESET, &[LOCKOUT], password, b"").is_ok()
    }

    /// What an orderly reboot sends.
    pub fn shut_down(&mut self) {
        self.plain(SHUTDOWN, &[0, 0]).expect("an orderly shutdown");
    }

    fn plain(&mut self, code: u32, body: &[u8]) -> Answer {
        self.exchange(&wire::message(NO_SESSIONS, code, body))
    }

    /// A command that one password authorises.
    fn with(&mut self, code: u32, handles: &[u32], password: &[u8], body: &[u8]) -> Answer {
        // No nonce, continueSession, the password.
        let session = [&PASSWORD.to_be_bytes()[..], &[0, 0, 1], &sized(password)].concat();
        let size = u32::try_from(session.len()).expect("a short password");
        let mut all: Vec<u8> = handles.iter().flat_map(|handle| handle.to_be_bytes()).collect();
        all.extend(size.to_be_bytes());
        all.extend(session);
        all.extend(body);
        self.exchange(&wire::message(SESSIONS, code, &all))
    }

    fn exchange(&mut self, command: &[u8]) -> Answer {
        loop {
            self.0.write_all(command).expect("the TPM takes a command");
            let answer = wire::read(&mut self.0).expect("the TPM answers").expect("the TPM is on");
            match wire::code(&answer) {
                0 => return Ok(answer[wire::HEADER_BYTES..].to_vec()),
                // The first use of an index: it writes down that it is in use, and wants to be asked again.
                RETRY => {}
                code => return Err(code),
            }
        }
    }
}
