//! JSON lines over a Unix socket, with deadlines: what QMP and the guest agent
//! have in common; and base64, in which the agent wraps what programs print.

use crate::failure::{Doing, Failure, Outcome};
use serde_json::Value;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

#[derive(Debug)]
pub struct Wire {
    stream: UnixStream,
    pending: Vec<u8>,
}

impl Wire {
    /// Connects; the other side may need a moment to make its socket.
    pub fn connect(path: &Path, limit: Duration) -> Outcome<Self> {
        let stream = connect(path, limit)?;
        Ok(Self { stream, pending: Vec::new() })
    }

    pub fn send(&mut self, bytes: &[u8]) -> Outcome {
        self.stream.set_write_timeout(Some(Duration::from_secs(10)))?;
        self.stream.write_all(bytes).doing("sending")
    }

    /// The next line, without its end; `None` at the deadline.
    pub fn line(&mut self, until: Instant) -> Outcome<Option<Vec<u8>>> {
        let mut block = [0_u8; 8192];
        loop {
            if let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
                let mut line: Vec<u8> = self.pending.drain(..=end).collect();
                line.pop();
                return Ok(Some(line));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            match self.stream.read(&mut block) {
                Ok(0) => return Err(Failure::new("the other side closed the socket")),
                Ok(count) => self.pending.extend(block.iter().take(count)),
                Err(cause) => match cause.kind() {
                    ErrorKind::WouldBlock | ErrorKind::TimedOut => return Ok(None),
                    ErrorKind::Interrupted => {}
                    _ => return Err(cause.into()),
                },
            }
        }
    }

    /// The next line that is JSON; what a restarted agent left half said is
    /// passed over.
    pub fn value(&mut self, until: Instant) -> Outcome<Option<Value>> {
        while let Some(line) = self.line(until)? {
            // 0xFF is what the agent puts in front of a delimited answer.
            let text = line.rsplit(|byte| *byte == 0xFF).next().unwrap_or_default();
            if let Ok(value) = serde_json::from_slice(text) {
                return Ok(Some(value));
            }
        }
        Ok(None)
    }
}

/// Connects to a Unix socket that may not be there yet.
pub fn connect(path: &Path, limit: Duration) -> Outcome<UnixStream> {
    let until = Instant::now() + limit;
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => return Ok(stream),
            Err(cause) if Instant::now() > until => {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                return Err(Failure::new(format!("connecting to {name}: {cause}")));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(30)),
        }
    }
}

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

pub fn from_base64(text: &str) -> Outcome<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut held, mut bits) = (0_u32, 0_u32);
    for digit in text.bytes().filter(|byte| !byte.is_ascii_whitespace() && *byte != b'=') {
        let value = DIGITS
            .iter()
            .position(|known| *known == digit)
            .doing("reading base64: a digit that is none")?;
        held = (held << 6 | u32::try_from(value).unwrap_or_default()) & 0xFF_FFFF;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push(u8::try_from(held >> bits & 0xFF).unwrap_or_default());
        }
    }
    Ok(bytes)
}

pub fn to_base64(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let held = group.iter().fold(0_u32, |all, byte| all << 8 | u32::from(*byte))
            << (8 * (3 - group.len()));
        for place in 0..4 {
            if place <= group.len() {
                let digit = DIGITS.get((held >> (18 - 6 * place) & 63) as usize);
                text.push(char::from(*digit.unwrap_or(&b'=')));
            } else {
                text.push('=');
            }
        }
    }
    text
}
