//! What is to come of a boot, and of the whole: a pure rule, told apart from restage's own.

use crate::case::Case;
use crate::fault::{Fault, Junk, Kind};
use crate::proxy::Fired;
use crate::state::Obstacle;
use crate::wire::{CLEAR, CREATE_PRIMARY, GET_CAPABILITY};

/// How a boot finds the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "what there is to know")]
pub struct Situation {
    /// There is a journal.
    pub committed: bool,
    /// The record of a first attempt.
    pub attempted: bool,
    /// The record that the TPM is cleared.
    pub recorded: bool,
    /// The TPM is another one.
    pub cleared: bool,
    /// The lockout hierarchy has had the time to recover.
    pub recovered: bool,
    /// Failures on record.
    pub failures: usize,
}

/// What a boot comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// The TPM cleared, and the disk reset.
    Done,
    /// The disk reset, and the TPM passed over for this reason.
    PassedOver(&'static str),
    /// Nothing changed, for this reason.
    Refused(&'static str),
    /// Another boot is needed, for this reason.
    Unfinished(&'static str),
}

impl Expected {
    /// In a word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::PassedOver(_) => "done, the TPM passed over",
            Self::Refused(_) => "refused",
            Self::Unfinished(_) => "unfinished",
        }
    }
}

/// Where a fault met the boot, if it did.
pub type Met = Option<(Fault, Fired)>;

/// What may come of a boot that is not cut; mostly one thing.
pub fn of_boot(case: &Case, situation: Situation, met: Met) -> Vec<Expected> {
    let healthy = undisturbed(case, situation);
    let Some((fault, fired)) = met.filter(|(fault, _)| !fault.kind.is_harmless()) else {
        return vec![healthy];
    };
    let disturbed = disturbed(case, situation, fault, fired);
    if is_seen(fault.kind, fired.command) { vec![disturbed] } else { vec![disturbed, healthy] }
}

/// Whether restage cannot but notice it.
fn is_seen(kind: Kind, command: u32) -> bool {
    let Kind::Junk(junk) = kind else { return true };
    match junk {
        Junk::Tag | Junk::Tiny | Junk::Huge => true,
        // To a command without answer parameters the least is a good answer.
        Junk::Body(_) | Junk::Empty | Junk::Short => {
            matches!(command, GET_CAPABILITY | CREATE_PRIMARY)
        }
        Junk::Flip(_) => false,
    }
}

fn undisturbed(case: &Case, situation: Situation) -> Expected {
    if situation.recorded || (situation.committed && situation.cleared) {
        return Expected::Done;
    }
    match case.state.obstacle() {
        None => Expected::Done,
        Some(Obstacle::Burnt) if situation.recovered => Expected::Done,
        Some(obstacle) if case.allow => Expected::PassedOver(obstacle.words()),
        // Only the first attempt can end so.
        Some(obstacle) if situation.attempted => Expected::Unfinished(obstacle.words()),
        Some(obstacle) => Expected::Refused(obstacle.words()),
    }
}

fn disturbed(case: &Case, situation: Situation, fault: Fault, fired: Fired) -> Expected {
    let words = fault.kind.words(fired.committed);
    if fired.proved {
        return Expected::Done;
    }
    if case.allow {
        return Expected::PassedOver(words);
    }
    if !fired.committed {
        return Expected::Refused(words);
    }
    if fault.kind.is_definite() && fired.command == CLEAR && !situation.attempted {
        Expected::Refused(words)
    } else {
        Expected::Unfinished(words)
    }
}

/// All that a message can name, to see that it names nothing else.
pub const ALL_WORDS: [&str; 12] = [
    "this machine has no TPM",
    "the TPM that was there at the commit is gone",
    "the TPM says that it is cleared",
    "it is busy",
    "it never answered",
    "the connection to it broke",
    "it was not started up",
    "it is in failure mode",
    "its answer makes no sense",
    "disableClear",
    "lockout hierarchy has a password",
    "locked after wrong passwords",
];

/// Whether the text names this, and nothing else.
pub fn names_only(text: &str, words: &str) -> Result<(), String> {
    for known in ALL_WORDS {
        if (known == words) != text.contains(known) {
            return Err(format!("it is to name `{words}` and nothing else: {text}"));
        }
    }
    Ok(())
}
