//! The operations, and what has to be so.

mod recorded;
pub mod reset;
pub mod restore;

use crate::explore::Case;

/// All of them.
pub fn all() -> Vec<Box<dyn Case>> {
    let mut cases = reset::all();
    cases.extend(restore::all());
    cases
}
