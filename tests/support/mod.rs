//! What several integration tests share.

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::disallowed_methods,
    reason = "each test uses a part of it, and a panic is its verdict"
)]

pub mod disk;
pub mod state;
pub mod swtpm;
