//! restage: the recovery agent of image-based Linux systems.
//!
//! The running OS *stages* a request as a marker file on the ESP; at the next boot, in the initrd,
//! before the main system mounts, one static binary *applies* it, resumes it after any interruption,
//! and *reports*. Folders in the order of the story, each using only what comes before it:
//!
//! - [`request`]: what was asked. The contract from the OS to the initrd.
//! - [`plan`]: what will happen. Pure: facts and a request become ordered steps.
//! - [`apply`]: make it so. Resume, perform, record; a function a step.
//! - [`report`]: what happened. The contract from the initrd to the OS.
//! - [`format`](mod@format): bytes. Pure codecs of everything that lies on a disk.
//! - [`platform`]: the edge. System calls, the TPM, mounts, the console.
//! - [`command`]: the commands, put together from these.
//! - `api`: the commands on a socket, as a program of its own; only with the feature of that name.
//!
//! | side | commands | may write |
//! |---|---|---|
//! | running OS | factory-reset, restore, cancel, status, inspect, backup | the staged request, a backup file |
//! | running OS | confirm, superseded | what a restore has kept, as its journal says |
//! | initrd | initrd reset | disk, TPM, journal, report |
//! | initrd | initrd restore | the state, the volumes' recovery passphrases, journal, report |
//! | anywhere | `--dry-run` | nothing |
//!
//! What always holds: before the commit (`apply::journal::Journal::commit`) nothing that a failure
//! could spoil has been written; after it, the plan in the journal and no other is carried out; a
//! step is recorded when its effect is durable and verified; the report's appearance ends it all.

#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::cast_possible_truncation,
        clippy::disallowed_methods,
        reason = "in a test a panic is the verdict"
    )
)]

#[cfg(feature = "api")]
pub mod api;
pub mod apply;
pub mod cli;
pub mod command;
pub mod error;
pub mod format;
pub mod plan;
pub mod platform;
pub mod profile;
pub mod report;
pub mod request;

#[cfg(test)]
mod schema;
