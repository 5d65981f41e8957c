//! The binary of `scripts/build` needs nothing but a kernel: no interpreter, no shared library.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test: a panic is its verdict")]

use object::Endianness;
use object::elf::{DT_NEEDED, FileHeader64, PT_DYNAMIC, PT_INTERP};
use object::read::elf::{Dyn, FileHeader, ProgramHeader};

#[test]
fn there_is_no_interpreter_and_no_needed_library() {
    let path = std::env::var("RESTAGE_BIN").expect("RESTAGE_BIN names the static binary");
    let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let header = FileHeader64::<Endianness>::parse(&*bytes).unwrap();
    let endian = header.endian().unwrap();
    let segments = header.program_headers(endian, &*bytes).unwrap();
    let mut entries = 0;
    for segment in segments {
        assert_ne!(segment.p_type(endian), PT_INTERP, "{path} has an interpreter");
        if segment.p_type(endian) == PT_DYNAMIC {
            for entry in segment.dynamic(endian, &*bytes).unwrap().unwrap_or_default() {
                entries += 1;
                assert_ne!(entry.tag32(endian), Some(DT_NEEDED), "{path} needs a shared library");
            }
        }
    }
    assert!(
        entries > 0,
        "{path}: a static-pie has a dynamic section; this looked at the wrong thing"
    );
}
