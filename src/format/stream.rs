//! Bytes that pass through. Side: both. Pure.

use std::io::{self, Read, Write};

/// As much at a time as the standard library takes.
const BUFFER_BYTES: usize = 8 * 1024;

/// [`io::copy`], which would leave the last of what has passed on the stack: here the buffer is on the
/// heap, where it is erased (`platform::secrecy`).
pub fn copy(from: &mut (impl Read + ?Sized), to: &mut (impl Write + ?Sized)) -> io::Result<u64> {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut copied = 0;
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) => return Ok(copied),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        to.write_all(buffer.get(..count).unwrap_or_default())?;
        copied += count as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_passes() {
        for length in [0, 1, BUFFER_BYTES - 1, BUFFER_BYTES, 3 * BUFFER_BYTES + 7] {
            let bytes: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
            let mut out = Vec::new();
            assert_eq!(copy(&mut bytes.as_slice(), &mut out).unwrap(), length as u64);
            assert!(out == bytes, "{length}");
        }
    }
}
