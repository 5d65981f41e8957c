//! A model of the machine, the operations of restage in it, and what must be so whenever one of them is
//! interrupted.
//!
//! The programs of this package interrupt them everywhere; its tests tell single histories; others take
//! the machines, the figures or the key slots.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::expect_used,
    clippy::missing_panics_doc,
    clippy::must_use_candidate,
    clippy::return_self_not_must_use,
    missing_docs,
    reason = "a test: a panic is its verdict, and nobody else calls it"
)]

pub mod cases;
pub mod controls;
pub mod explore;
pub mod faults;
pub mod figures;
pub mod model;
pub mod steps;
pub mod told;
