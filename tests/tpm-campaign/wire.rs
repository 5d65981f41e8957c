//! The bytes between a program and a TPM: a header that says how long the message is, and then the
//! message (TCG TPM 2.0 Part 3).

use std::io::{self, Read};

pub const NO_SESSIONS: u16 = 0x8001;
pub const SESSIONS: u16 = 0x8002;
/// Tag, size, command or response code.
pub const HEADER_BYTES: usize = 10;
/// No TPM takes or gives more.
const MAX_BYTES: usize = 4096;

pub const PASSWORD: u32 = 0x4000_0009; // TPM_RS_PW: in the place of a session
pub const OWNER: u32 = 0x4000_0001;
pub const LOCKOUT: u32 = 0x4000_000A;
pub const ENDORSEMENT: u32 = 0x4000_000B;

pub const CLEAR: u32 = 0x126;
pub const CLEAR_CONTROL: u32 = 0x127;
pub const HIERARCHY_CHANGE_AUTH: u32 = 0x129;
pub const NV_DEFINE_SPACE: u32 = 0x12A;
pub const CREATE_PRIMARY: u32 = 0x131;
pub const NV_WRITE: u32 = 0x137;
pub const LOCK_RESET: u32 = 0x139;
pub const LOCK_PARAMETERS: u32 = 0x13A;
pub const SHUTDOWN: u32 = 0x145;
pub const NV_READ: u32 = 0x14E;
pub const FLUSH_CONTEXT: u32 = 0x165;
pub const GET_CAPABILITY: u32 = 0x17A;
pub const QUOTE: u32 = 0x158;

/// A command as the log of a run calls it.
pub fn name(code: u32) -> &'static str {
    match code {
        CLEAR => "Clear",
        CREATE_PRIMARY => "CreatePrimary",
        FLUSH_CONTEXT => "FlushContext",
        GET_CAPABILITY => "GetCapability",
        QUOTE => "Quote",
        _ => "another command",
    }
}

/// One whole message; none where the other side has hung up.
pub fn read(stream: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut message = vec![0; HEADER_BYTES];
    if stream.read(&mut message[..1])? == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut message[1..])?;
    let size = u32_at(&message, 2) as usize;
    if !(HEADER_BYTES..=MAX_BYTES).contains(&size) {
        return Err(io::Error::other(format!("a message of {size} bytes")));
    }
    message.resize(size, 0);
    stream.read_exact(&mut message[HEADER_BYTES..])?;
    Ok(Some(message))
}

/// What a command asks for, or what an answer says.
pub fn code(message: &[u8]) -> u32 {
    u32_at(message, 6)
}

pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().fold(0, |all, byte| all << 8 | u32::from(*byte))
}

/// A whole message of this kind.
pub fn message(tag: u16, code: u32, body: &[u8]) -> Vec<u8> {
    let size = u32::try_from(HEADER_BYTES + body.len()).expect("a short message");
    [&tag.to_be_bytes()[..], &size.to_be_bytes(), &code.to_be_bytes(), body].concat()
}

/// A counted string of bytes.
pub fn sized(bytes: &[u8]) -> Vec<u8> {
    let size = u16::try_from(bytes.len()).expect("a short string");
    [&size.to_be_bytes()[..], bytes].concat()
}
