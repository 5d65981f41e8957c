//! A small NBD client: how the harness reads and writes a qcow2 disk from
//! outside, without converting it: through qemu-nbd while the machine is off,
//! through QEMU itself while it is stopped.

use crate::failure::{Doing, Failure, Outcome};
use crate::wire::connect;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

const MAGIC: &[u8; 8] = b"NBDMAGIC";
const OPTION_MAGIC: &[u8; 8] = b"IHAVEOPT";
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
const EXPORT_NAME: u32 = 1;
/// `FIXED_NEWSTYLE` and `NO_ZEROES`, for the client the same bits.
const HANDSHAKE: u32 = 3;
const READ: u16 = 0;
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;
const FLUSH: u16 = 3;
const WRITE_ZEROES: u16 = 6;
/// Every server takes this much at once.
const AT_ONCE: usize = 1 << 20;
/// A length has 32 bits.
const ZERO_AT_ONCE: u64 = 1 << 30;

#[derive(Debug)]
pub struct Nbd {
    stream: UnixStream,
    size: u64,
}

impl Nbd {
    pub fn connect(socket: &Path, export: &str) -> Outcome<Self> {
        let mut stream = connect(socket, Duration::from_secs(20))?;
        stream.set_read_timeout(Some(Duration::from_secs(120)))?;
        let mut hello = [0_u8; 18];
        stream.read_exact(&mut hello).doing("greeting the NBD server")?;
        if !hello.starts_with(MAGIC) {
            return Err(Failure::new("no NBD server there"));
        }
        stream.write_all(&HANDSHAKE.to_be_bytes())?;
        let mut choice = OPTION_MAGIC.to_vec();
        choice.extend(EXPORT_NAME.to_be_bytes());
        choice.extend(u32::try_from(export.len()).doing("an export's name")?.to_be_bytes());
        choice.extend(export.as_bytes());
        stream.write_all(&choice)?;
        // The server closes when there is no such export.
        let mut answer = [0_u8; 10];
        stream.read_exact(&mut answer).doing(format!("opening the export {export}"))?;
        let [size @ .., _, _] = answer;
        Ok(Self { stream, size: u64::from_be_bytes(size) })
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    pub fn read(&mut self, mut offset: u64, bytes: &mut [u8]) -> Outcome {
        for part in bytes.chunks_mut(AT_ONCE) {
            self.ask(READ, offset, part.len(), &[])?;
            self.stream.read_exact(part).doing("reading a disk")?;
            offset += part.len() as u64;
        }
        Ok(())
    }

    pub fn write(&mut self, mut offset: u64, bytes: &[u8]) -> Outcome {
        for part in bytes.chunks(AT_ONCE) {
            self.ask(WRITE, offset, part.len(), part)?;
            offset += part.len() as u64;
        }
        Ok(())
    }

    /// Makes a part read as zeroes, without sending them.
    pub fn zero(&mut self, offset: u64, length: u64) -> Outcome {
        let mut done = 0;
        while done < length {
            let part = (length - done).min(ZERO_AT_ONCE);
            self.ask(WRITE_ZEROES, offset + done, usize::try_from(part).doing("a length")?, &[])?;
            done += part;
        }
        Ok(())
    }

    pub fn flush(&mut self) -> Outcome {
        self.ask(FLUSH, 0, 0, &[])
    }

    fn ask(&mut self, command: u16, offset: u64, length: usize, payload: &[u8]) -> Outcome {
        let what = format!("NBD command {command} at {offset}");
        self.send(command, offset, length, payload).doing(&what)?;
        let mut reply = [0_u8; 16];
        self.stream.read_exact(&mut reply).doing(&what)?;
        let [m0, m1, m2, m3, e0, e1, e2, e3, ..] = reply;
        if u32::from_be_bytes([m0, m1, m2, m3]) != REPLY_MAGIC {
            return Err(Failure::new(format!("{what}: an answer that is none")));
        }
        match u32::from_be_bytes([e0, e1, e2, e3]) {
            0 => Ok(()),
            code => Err(Failure::new(format!("{what}: error {code}"))),
        }
    }

    fn send(&mut self, command: u16, offset: u64, length: usize, payload: &[u8]) -> Outcome {
        let mut request = REQUEST_MAGIC.to_be_bytes().to_vec();
        request.extend([0, 0]); // no flags
        request.extend(command.to_be_bytes());
        request.extend([0; 8]); // one request at a time: no handle needed
        request.extend(offset.to_be_bytes());
        request.extend(u32::try_from(length).doing("a length")?.to_be_bytes());
        request.extend(payload);
        self.stream.write_all(&request)?;
        Ok(())
    }
}

impl Drop for Nbd {
    fn drop(&mut self) {
        // The server ends either way; this is the polite one.
        let _ = self.send(DISCONNECT, 0, 0, &[]);
    }
}
