//! Sums that are right, so that what is behind them is reached.

use flate2::Crc;
use restage::format::envelope::Kind;
use restage::format::sha256_hex;
use sha2::{Digest, Sha256};

use crate::fixtures::tar::BLOCK;

/// One gzip member with its content as it is: nobody waits for a compressor.
pub fn gzip(content: &[u8]) -> Vec<u8> {
    let mut member = b"\x1f\x8b\x08\0\0\0\0\0\0\xff".to_vec();
    let mut pieces = content.chunks(0xffff).peekable();
    if pieces.peek().is_none() {
        member.extend([1, 0, 0, 0xff, 0xff]);
    }
    while let Some(piece) = pieces.next() {
        let length = u16::try_from(piece.len()).unwrap();
        member.push(u8::from(pieces.peek().is_none()));
        member.extend(length.to_le_bytes());
        member.extend((!length).to_le_bytes());
        member.extend(piece);
    }
    let mut crc = Crc::new();
    crc.update(content);
    member.extend(crc.sum().to_le_bytes());
    member.extend(crc.amount().to_le_bytes());
    member
}

/// CRC-32, as a GPT has it.
pub fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = Crc::new();
    crc.update(bytes);
    crc.sum()
}

/// Gives each header of a tar its sum, as far as sizes lead from one to the next.
pub fn tar(bytes: &mut [u8]) {
    let mut at = 0;
    while let Some(header) = bytes.get_mut(at..at + BLOCK) {
        if header.iter().all(|byte| *byte == 0) {
            return;
        }
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let digits = header[124..136].iter().take_while(|byte| (b'0'..=b'7').contains(*byte));
        let size = digits.fold(0, |size: usize, digit| size * 8 + usize::from(digit - b'0'));
        at = at.saturating_add(BLOCK + size.next_multiple_of(BLOCK));
    }
}

/// A file of restage's own with this body.
pub fn envelope(body: &[u8], kind: Kind) -> Vec<u8> {
    let body = body.trim_ascii();
    let head = format!(
        r#"{{"format":"{}","version":{},"sha256":"{}","body":"#,
        kind.name,
        kind.version,
        sha256_hex(body)
    );
    [head.as_bytes(), body, b"}\n"].concat()
}

/// A LUKS2 header with its digest.
pub fn luks(header: &mut [u8]) {
    header[448..512].fill(0);
    let digest = Sha256::digest(&*header);
    header[448..480].copy_from_slice(&digest);
}

/// A GPT header, of a table with this array.
pub fn gpt(header: &mut [u8], array: &[u8]) {
    header[88..92].copy_from_slice(&crc32(array).to_le_bytes());
    header[16..20].fill(0);
    let sum = crc32(&header[..92]);
    header[16..20].copy_from_slice(&sum.to_le_bytes());
}
