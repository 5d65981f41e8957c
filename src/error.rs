//! Errors and refusals: what we were doing, what boot does next, the cause.
//! Side: both. Pure.

use std::error::Error as StdError;
use std::fmt;
use std::io;

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
        chain(self)
    }
}

/// More of a text nobody reads, and a report has to stay one that can be read: what an error quotes may
/// be as long as a file.
const MAX_TOLD_CHARS: usize = 2000;

fn cut(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(MAX_TOLD_CHARS) {
        text.truncate(end);
        text.push('…');
    }
    text
}

/// Any error with its causes in one line, after colons. What is too long of each is cut off, so that the
/// last cause is told in any case.
#[must_use]
pub fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = cut(error.to_string());
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&cut(error.to_string()));
        cause = error.source();
    }
    text
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

/// An I/O error that says which call has failed, and on what.
#[derive(Debug)]
struct CallFailed {
    what: String,
    source: io::Error,
}

impl fmt::Display for CallFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl StdError for CallFailed {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&self.source)
    }
}

/// Names the call that failed: `cannot sync /boot/restage/0123ABCD.REQ`.
pub trait Calling<T> {
    /// Wraps the error with `what`. Its kind stays, and [`system_error`] still finds its number.
    fn calling(self, what: impl FnOnce() -> String) -> io::Result<T>;
}

impl<T> Calling<T> for io::Result<T> {
    fn calling(self, what: impl FnOnce() -> String) -> io::Result<T> {
        self.map_err(|source| io::Error::new(source.kind(), CallFailed { what: what(), source }))
    }
}

/// The system's number of an error, whatever names it has been given.
#[must_use]
pub fn system_error(error: &io::Error) -> Option<i32> {
    error.raw_os_error().or_else(|| {
        let named = error.get_ref()?.downcast_ref::<CallFailed>()?;
        system_error(&named.source)
    })
}

/// A request that is not going to be carried out, and why. A result to report, not a failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Names the file, the field and the reason; lower case, no full stop.
    pub reason: String,
}

impl Refused {
    /// See [`Refused::reason`]. What is too long is cut off.
    pub fn because(reason: impl Into<String>) -> Self {
        Self { reason: cut(reason.into()) }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl StdError for Refused {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_quoted_at_length_is_cut_off() {
        let long = "ü".repeat(300_000);
        for told in [Refused::because(long.clone()).reason, Error::new(long).chain()] {
            assert_eq!(told, format!("{}…", "ü".repeat(2000)));
        }
        assert_eq!(Refused::because("short").reason, "short");
        let cause = Error::new("ü".repeat(300_000)).because("the cause");
        assert!(cause.chain().ends_with("…: the cause"));
    }

    #[test]
    fn a_named_error_keeps_its_kind_its_number_and_its_cause() {
        let full = || Err::<(), _>(io::Error::from_raw_os_error(28));
        let named = full().calling(|| "cannot make x".to_owned());
        let named = named.calling(|| "cannot do it".to_owned()).unwrap_err();
        assert_eq!(named.kind(), io::ErrorKind::StorageFull);
        assert_eq!(system_error(&named), Some(28));
        assert_eq!(system_error(&io::Error::other("x")), None);
        let cause = io::Error::from_raw_os_error(28);
        assert_eq!(chain(&named), format!("cannot do it: cannot make x: {cause}"));
    }
}
