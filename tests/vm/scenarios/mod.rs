//! What is shown, as a table: a name, the run it belongs to, and how many things
//! it checks at least.

mod cuts;
mod end;
mod quiet;
mod refusals;
mod replay;
mod replay_small;
mod reset;
mod restore;
mod restore_cuts;
mod restore_reset;
mod restore_skip;
pub mod restored;
mod same_boot;
mod tpm;

pub use cuts::fresh_machine;

use crate::bench::Bench;
use crate::failure::Outcome;

/// The run without a shard's name.
pub const ORDINARY: &str = "ordinary";
const KILLS: &str = "kills";
const RESTORES: &str = "restores";
const REPLAY_FULL: &str = "replay-full";
const REPLAY_SMALL: &str = "replay-small";

pub struct Scenario {
    pub name: &'static str,
    pub shard: &'static str,
    /// A scenario that ends early has not checked so many things.
    pub checks: u32,
    pub run: fn(&mut Bench<'_>) -> Outcome,
}

const fn ordinary(name: &'static str, checks: u32, run: fn(&mut Bench<'_>) -> Outcome) -> Scenario {
    Scenario { name, shard: ORDINARY, checks, run }
}

const fn long(
    shard: &'static str,
    name: &'static str,
    checks: u32,
    run: fn(&mut Bench<'_>) -> Outcome,
) -> Scenario {
    Scenario { name, shard, checks, run }
}

/// Long ones first: two at a time they pack better.
pub const ALL: &[Scenario] = &[
    ordinary("restore-rolled-back", 15, restore::rolled_back),
    ordinary("restore-confirmed", 25, restore::confirmed),
    ordinary("restore-after-reset", 29, restore_reset::after_reset),
    ordinary("killed", 20, cuts::killed),
    ordinary("power-cuts", 40, cuts::power_cuts),
    ordinary("replay-gpt", 41, replay::gpt),
    ordinary("replay-wipe", 40, replay::wipe),
    ordinary("reset", 55, reset::default),
    ordinary("example", 50, reset::example),
    ordinary("tpm-locked", 30, tpm::locked),
    ordinary("tpm-none", 25, tpm::none),
    ordinary("same-boot", 35, same_boot::once),
    ordinary("quiet", 20, quiet::quiet),
    ordinary("refused", 25, refusals::refused),
    ordinary("tpm-software", 20, tpm::software),
    long(REPLAY_FULL, "replay-full-reset", 40, replay::resets),
    long(REPLAY_FULL, "replay-full-restore", 10, replay::restores),
    long(REPLAY_SMALL, "replay-small-reset-a", 20, replay_small::resets_a),
    long(REPLAY_SMALL, "replay-small-reset-b", 20, replay_small::resets_b),
    long(REPLAY_SMALL, "replay-small-restore-a", 8, replay_small::restores_a),
    long(REPLAY_SMALL, "replay-small-restore-b", 8, replay_small::restores_b),
    long(KILLS, "kills-a", 200, cuts::kills_a),
    long(KILLS, "kills-b", 200, cuts::kills_b),
    long(RESTORES, "restore-skips", 60, restore_skip::each),
    long(RESTORES, "restore-cuts", 30, restore_cuts::restore),
    long(RESTORES, "restore-hangs", 19, restore_cuts::hang),
    long(RESTORES, "restore-confirm-cuts", 20, restore_cuts::confirm),
    long(RESTORES, "restore-by-passphrase", 10, restore_reset::by_passphrase),
];

/// The long runs.
pub fn shards() -> Vec<&'static str> {
    let mut shards: Vec<_> =
        ALL.iter().map(|one| one.shard).filter(|shard| *shard != ORDINARY).collect();
    shards.dedup();
    shards
}
