//! Errors and refusals: what we were doing, what boot does next, the cause.
//! Side: both. Pure.

use std::error::Error as StdError;
use std::fmt;

/// What the boot does after an error. Decided where the error is made, obeyed in one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing is committed: the boot goes on into the untouched system.
    ContinueBoot,
    /// A committed operation is unfinished and the next boot tries again.
    RetryNextBoot,
    /// A committed operation is unfinished and trying again by itself would be wrong.
    HoldForOperator,
}

/// An unexpected failure. `Display` says what we were doing; the cause is in `source()`.
#[derive(Debug)]
pub struct Error {
    what: String,
    next: Next,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// Result of everything that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// `what` is lower case, without a full stop: `cannot read the partition table of /dev/vda`.
    pub fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), next: Next::ContinueBoot, source: None }
    }

    /// Adds the cause.
    #[must_use]
    pub fn because(mut self, cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(cause.into());
        self
    }

    /// Says where in the plan it happened.
    #[must_use]
    pub fn at(mut self, place: &str) -> Self {
        self.what = format!("{place}: {}", self.what);
        self
    }

    /// Says that the boot must hold: repeating by itself would be wrong.
    #[must_use]
    pub fn hold(mut self) -> Self {
        self.next = Next::HoldForOperator;
        self
    }

    /// Raises an error that was made without knowing of a commit: after one, nothing continues.
    #[must_use]
    pub fn after_commit(mut self) -> Self {
        if self.next == Next::ContinueBoot {
            self.next = Next::RetryNextBoot;
        }
        self
    }

    /// What the boot does next.
    #[must_use]
    pub fn next(&self) -> Next {
        self.next
    }

    /// The whole chain in one line, causes after colons.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|e| e as &(dyn StdError + 'static))
    }
}

/// Says what we were doing when an I/O call failed.
pub trait Doing<T> {
    /// Wraps the error with `what`.
    fn doing(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<Box<dyn StdError + Send + Sync>>> Doing<T> for std::result::Result<T, E> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|cause| Error::new(what()).because(cause))
    }
}

/// A request that is not going to be carried out, and why. A result to report, not a failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Names the file, the field and the reason; lower case, no full stop.
    pub reason: String,
}

impl Refused {
    /// See [`Refused::reason`].
    pub fn because(reason: impl Into<String>) -> Self {
        Self { reason: reason.into() }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl StdError for Refused {}
