//! `restage-api`: the REST paths of IncusOS for backup, restore and factory reset, on a Unix socket, so
//! that `incus admin os system …` works as it is documented.
//! Side: OS. Runs `restage`, which does everything and decides everything.
//!
//! | path | what |
//! |---|---|
//! | `POST /1.0/system/:backup` | the answer's body is the backup |
//! | `POST /1.0/system/:restore?skip=ITEM,…` | the body is the backup |
//! | `POST /1.0/system/:factory-reset` | the body is the JSON of `-d` |
//! | `GET /1.0/restage/status` | what `restage status --json` says |
//!
//! This is no part of the binary in the initrd: it is built with the feature `api`.

pub mod access;
pub mod answer;
pub mod body;
pub mod child;
pub mod route;
pub mod serve;
