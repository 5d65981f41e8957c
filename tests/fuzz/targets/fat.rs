//! The boot sector and the table of FAT: chains of clusters.

use std::cell::Cell;
use std::io;

use restage::format::fat::Layout;

use crate::bytes::Bytes;

/// A chain is followed so far at most.
const MOST_READS: usize = 1 << 16;

/// The first byte says how long a ring may be followed, the second and third where it begins, then the
/// fields of the boot sector come, and then the table, which goes on for ever.
pub fn chains(bytes: &[u8]) {
    let mut bytes = Bytes(bytes);
    // A ring takes all the reads that there may be: not every time.
    let most = if bytes.byte() == 0xff { MOST_READS } else { 300 };
    let first = bytes.below(0x1_0000) as u64;
    let mut sector = [0; 512];
    let fields = bytes.take(64);
    sector[..fields.len()].copy_from_slice(fields);
    let table = bytes.0;
    let Some(layout) = Layout::parse(&sector) else { return };
    let reads = Cell::new(0);
    let read = |at: u64, buffer: &mut [u8]| -> io::Result<()> {
        reads.set(reads.get() + 1);
        if reads.get() > most {
            assert!(most < MOST_READS, "a chain without end");
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        for (at, byte) in (at..).zip(buffer) {
            *byte = match table.len() as u64 {
                0 => 0,
                length => table[usize::try_from(at % length).unwrap()],
            };
        }
        Ok(())
    };
    let is_linked = layout.is_linked(first, &read);
    let count = reads.replace(0);
    let _ = layout.read_directories(".a/.b", &read);
    if first < 2 {
        assert!(matches!(is_linked, Ok(false)) && count == 0, "the first two are no clusters");
    }
    // Where a cluster lies and which one lies there is the same question.
    for at in [0, 512, first << 9, u64::MAX] {
        if let Some(cluster) = layout.cluster_at(at) {
            assert!(cluster >= 2);
            assert!(
                layout
                    .is_linked(cluster, &|_, buffer| {
                        buffer.fill(0xff);
                        Ok(())
                    })
                    .unwrap()
            );
            assert!(!layout.is_linked(cluster, &|_, _| Ok(())).unwrap(), "zeros are free");
        }
    }
}

/// A boot sector of so many clusters of one sector each.
fn seed(bits: u64, clusters: u32, table: &[u8]) -> Vec<u8> {
    let mut input = vec![0; 3 + 64];
    let mut put =
        |at: usize, bytes: &[u8]| input[3 + at..3 + at + bytes.len()].copy_from_slice(bytes);
    let table_sectors = (u64::from(clusters) + 2) * bits / 8 / 512 + 1;
    put(11, &512_u16.to_le_bytes());
    put(13, &[1, 4, 0, 2]);
    put(17, &(if bits == 32 { 0_u16 } else { 32 }).to_le_bytes());
    put(32, &(clusters + 4 + 2 * u32::try_from(table_sectors).unwrap()).to_le_bytes());
    match bits {
        32 => put(36, &table_sectors.to_le_bytes()[..4]),
        _ => put(22, &table_sectors.to_le_bytes()[..2]),
    }
    input[1] = 5;
    [input.as_slice(), table].concat()
}

pub fn seeds() -> Vec<Vec<u8>> {
    let chain = [0xff, 0xff, 0xff, 0x0f, 6, 0, 7, 0, 8, 0, 0xff, 0xff];
    let mut all = Vec::new();
    for (bits, clusters) in [(12, 100), (16, 5000), (32, 70_000)] {
        all.push(seed(bits, clusters, &chain));
        all.push(seed(bits, clusters, &[5, 0, 0, 0]));
    }
    let mut ring = seed(16, 5000, &[5, 0, 0, 0]);
    ring[0] = 0xff;
    all.push(ring);
    all
}
