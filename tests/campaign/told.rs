//! What an operation says in the end, and what follows from it.

use restage::apply::reset::{self, Applied};
use restage::apply::restore::{self, Restored};
use restage::command::{Exit, initrd};
use restage::error::{Error, Next, Refused, Result};

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State {
    /// There was nothing to do.
    Nothing,
    /// Done: staged, cancelled, reset, confirmed.
    Done,
    /// Refused, and nothing is changed.
    Refused,
    /// An error before anything was committed.
    Failed,
    /// Committed, and not finished.
    Unfinished,
    /// A restored state is handed over to.
    Window,
    /// Rolled back.
    RolledBack,
    /// The state in place stays, and something remains to be tidied up.
    Later,
}

/// How it ended, what the boot does next, the exit status of the command, and what was said.
#[derive(Clone, Debug)]
pub struct Told {
    /// How it ended.
    pub state: State,
    /// What the boot does next.
    pub next: Next,
    /// The exit status of the command.
    pub exit: u8,
    /// The reason, with its causes; empty when all is well.
    pub why: String,
}

impl Told {
    fn new(state: State, next: Next, exit: Exit, why: &str) -> Self {
        Self { state, next, exit: exit.status(), why: why.to_owned() }
    }

    fn failed(error: &Error) -> Self {
        Self::new(State::Failed, error.next(), Exit::Failed, &error.chain())
    }
}

/// A command of the running OS.
impl From<Result<Result<(), Refused>>> for Told {
    fn from(result: Result<Result<(), Refused>>) -> Self {
        match result {
            Ok(Ok(())) => Self::new(State::Done, Next::ContinueBoot, Exit::Done, ""),
            Ok(Err(refused)) => {
                Self::new(State::Refused, Next::ContinueBoot, Exit::Refused, &refused.reason)
            }
            Err(error) => Self::failed(&error),
        }
    }
}

/// A boot that may have found a reset.
impl From<Result<Applied>> for Told {
    fn from(applied: Result<Applied>) -> Self {
        let applied = match applied {
            Ok(applied) => applied,
            Err(error) => return Self::failed(&error),
        };
        let (state, why) = match &applied {
            Applied::Nothing => (State::Nothing, String::new()),
            Applied::Refused(reasons) => (State::Refused, reasons.join("; ")),
            Applied::Done { .. } => (State::Done, String::new()),
            Applied::RebootFirst => (State::Unfinished, "the firmware is asked".to_owned()),
            Applied::Unfinished(error) => (State::Unfinished, error.chain()),
        };
        Self::new(state, reset::next(&applied), initrd::exit(&applied), &why)
    }
}

/// A boot, or a confirmation, that may have found a restore.
impl From<Result<Restored>> for Told {
    fn from(restored: Result<Restored>) -> Self {
        let restored = match restored {
            Ok(restored) => restored,
            Err(error) => return Self::failed(&error),
        };
        let (state, why) = match &restored {
            Restored::Nothing => (State::Nothing, String::new()),
            Restored::Refused(reasons) => (State::Refused, reasons.join("; ")),
            Restored::Window { .. } => (State::Window, String::new()),
            Restored::Confirmed => (State::Done, String::new()),
            Restored::RolledBack(why) => (State::RolledBack, why.clone()),
            Restored::Later(error) => (State::Later, error.chain()),
            Restored::Unfinished(error) => (State::Unfinished, error.chain()),
        };
        Self::new(state, restore::next(&restored), initrd::restore::exit(&restored), &why)
    }
}
