//! What is shown, as a table: a name, the run it belongs to, and how many things
//! it checks at least.

mod committed;
mod cuts;
pub mod end;
mod incus;
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
mod systemd;
mod tpm;

pub use cuts::fresh_machine;

use crate::bench::Bench;
use crate::failure::Outcome;
use crate::lab::Image;

/// The run without a shard's name.
pub const ORDINARY: &str = "ordinary";
/// What the ordinary run has no time for, and no other shard is about.
const BOOTS: &str = "boots";
const MORE: &str = "more-boots";
const KILLS: &str = "kills";
const INCUS: &str = "incus";
const SYSTEMD: &str = "systemd";
const RESTORES: &str = "restores";
const FULL_RESETS: &str = "replay-full-reset";
const FULL_MORE: &str = "replay-full-more";
const FULL_RESTORES: &str = "replay-full-restore";
const SMALL_RESETS: &str = "replay-small-reset";
const SMALL_RESETS_MORE: &str = "replay-small-reset-more";
const SMALL_RESTORES: &str = "replay-small-restore";

pub struct Scenario {
    pub name: &'static str,
    pub shard: &'static str,
    pub image: Image,
    /// A scenario that ends early has not checked so many things.
    pub checks: u32,
    pub run: fn(&mut Bench<'_>) -> Outcome,
}

const fn ordinary(name: &'static str, checks: u32, run: fn(&mut Bench<'_>) -> Outcome) -> Scenario {
    long(ORDINARY, name, checks, run)
}

const fn long(
    shard: &'static str,
    name: &'static str,
    checks: u32,
    run: fn(&mut Bench<'_>) -> Outcome,
) -> Scenario {
    Scenario { name, shard, image: Image::Stable, checks, run }
}

impl Scenario {
    /// The same on the second image.
    const fn on_incus(self) -> Self {
        Self { image: Image::Incus, ..self }
    }
}

/// Long ones first: two at a time they pack better.
pub const ALL: &[Scenario] = &[
    ordinary("restore-rolled-back", 15, restore::rolled_back),
    ordinary("restore-confirmed", 38, restore::confirmed),
    ordinary("replay-gpt", 41, replay::gpt),
    ordinary("replay-wipe", 40, replay::wipe),
    ordinary("incus-reset", 75, incus::reset).on_incus(),
    ordinary("refused", 40, refusals::refused),
    long(FULL_RESETS, "replay-full-reset-a", 40, |bench| replay::resets(bench, 0)),
    long(FULL_RESETS, "replay-full-reset-b", 40, |bench| replay::resets(bench, 1)),
    long(FULL_MORE, "replay-full-reset-c", 40, |bench| replay::resets(bench, 2)),
    long(FULL_MORE, "replay-clone", 40, committed::clone),
    long(FULL_RESTORES, "replay-full-restore-a", 20, |bench| replay::restores(bench, 0)),
    long(FULL_RESTORES, "replay-full-restore-b", 20, |bench| replay::restores(bench, 1)),
    long(SMALL_RESETS, "replay-small-reset-a", 30, |bench| replay_small::resets(bench, 0)),
    long(SMALL_RESETS, "replay-small-reset-b", 30, |bench| replay_small::resets(bench, 1)),
    long(SMALL_RESETS, "replay-small-reset-c", 30, |bench| replay_small::resets(bench, 2)),
    long(SMALL_RESETS_MORE, "replay-small-reset-d", 30, |bench| replay_small::resets(bench, 3)),
    long(SMALL_RESETS_MORE, "replay-small-reset-e", 30, |bench| replay_small::resets(bench, 4)),
    long(SMALL_RESETS_MORE, "replay-small-reset-f", 30, |bench| replay_small::resets(bench, 5)),
    long(SMALL_RESTORES, "replay-small-restore-a", 7, |bench| replay_small::restores(bench, 0)),
    long(SMALL_RESTORES, "replay-small-restore-b", 7, |bench| replay_small::restores(bench, 1)),
    long(SMALL_RESTORES, "replay-small-restore-c", 7, |bench| replay_small::restores(bench, 2)),
    long(SMALL_RESTORES, "replay-small-restore-d", 7, |bench| replay_small::restores(bench, 3)),
    long(SMALL_RESTORES, "replay-full-esp", 180, committed::full_esp),
    long(MORE, "reset", 65, reset::default),
    long(MORE, "quiet", 20, quiet::quiet),
    long(MORE, "restore-health", 5, restore::healthy),
    long(MORE, "power-cuts", 40, cuts::power_cuts),
    long(MORE, "tpm-locked", 30, tpm::locked),
    long(MORE, "tpm-none", 25, tpm::none),
    long(MORE, "crashes", 6, cuts::crashes),
    long(BOOTS, "restore-after-reset", 29, restore_reset::after_reset),
    long(BOOTS, "killed", 20, cuts::killed),
    long(BOOTS, "example", 50, reset::example),
    long(BOOTS, "same-boot", 35, same_boot::once),
    long(BOOTS, "tpm-software", 20, tpm::software),
    long(KILLS, "kills-a", 200, cuts::kills_a),
    long(KILLS, "kills-b", 200, cuts::kills_b),
    long(INCUS, "incus-restore", 20, incus::restore).on_incus(),
    long(INCUS, "incus-resets", 72, incus::resets).on_incus(),
    long(INCUS, "incus-refused", 40, incus::refused).on_incus(),
    long(SYSTEMD, "systemd-argument", 40, systemd::argument).on_incus(),
    long(SYSTEMD, "systemd-variable", 50, systemd::variable).on_incus(),
    long(SYSTEMD, "systemd-refused", 20, systemd::refused).on_incus(),
    long(SYSTEMD, "systemd-target", 40, systemd::target).on_incus(),
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
