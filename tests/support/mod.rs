//! What several integration tests share.

pub mod disk;
pub mod swtpm;
