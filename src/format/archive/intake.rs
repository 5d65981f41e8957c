//! What an archive may still hold after what it has had so far.
//! Side: both. Pure.

use super::name::Order;
use super::{Entry, Layout, Limits};

/// The entries that have come, against the order and the limits.
pub(super) struct Intake {
    order: Order,
    limits: Limits,
    files: u64,
    bytes: u64,
}

impl Intake {
    /// Nothing has come yet.
    pub(super) fn new(layout: Layout, limits: Limits) -> Self {
        Self { order: Order::new(layout), limits, files: 0, bytes: 0 }
    }

    /// Takes the next entry, which is a fit one; the error says why it may not be the next.
    pub(super) fn entry(&mut self, entry: &Entry) -> Result<(), String> {
        self.order.add(entry)?;
        if self.files >= self.limits.files {
            return Err(format!("more than {} files", self.limits.files));
        }
        self.files += 1;
        self.bytes(entry.bytes()).map_err(|why| entry.refused(&why))
    }

    /// Takes so many bytes of content, or of what extends a header.
    pub(super) fn bytes(&mut self, bytes: u64) -> Result<(), String> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > self.limits.bytes {
            return Err(format!("more than {} bytes in all", self.limits.bytes));
        }
        Ok(())
    }
}
