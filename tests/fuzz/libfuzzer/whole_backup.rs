//! A target for libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| restage_fuzz::check("whole-backup", data));
