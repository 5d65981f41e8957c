//! What others do to the directories that restage works in: links and other things planted under every
//! name that is written, directories swapped while it works, another umask, a full file system, two at
//! once, and a kill at each system call of a backup. The real binary, as root; `RESTAGE_BIN` chooses
//! another one.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::case_sensitive_file_extension_comparisons,
    clippy::items_after_statements,
    clippy::large_stack_arrays,
    clippy::similar_names,
    clippy::verbose_bit_mask,
    reason = "a test: a panic is its verdict"
)]

mod full;
mod killed;
mod planted;
mod rig;
mod secrets;
#[path = "../support/mod.rs"]
mod support;
mod swapped;
mod twice;
mod umask;
