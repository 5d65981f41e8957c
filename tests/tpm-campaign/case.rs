//! A case: a state of the TPM, a request, and what happens in each boot. Its name is all of it:
//! `oe+:cut@3/-/retry5@2` is passwords of owner and endorsement, a failure of the TPM allowed, a cut in
//! the first boot, nothing in the second, a busy TPM in the third, and nothing from then on.

use std::fmt;
use std::str::FromStr;

use crate::fault::{Fault, Kind};
use crate::state::State;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    pub state: State,
    /// `allow_tpm_reset_failure`.
    pub allow: bool,
    /// One for each boot; the boots after them are left alone.
    pub boots: Vec<Option<Fault>>,
}

impl Case {
    pub fn new(state: State, allow: bool, boots: &[Fault]) -> Self {
        Self { state, allow, boots: boots.iter().copied().map(Some).collect() }
    }

    /// Whether the power is all that fails, so that the shipped program can be used, which waits long
    /// for a TPM and does not tell whether it would hold.
    pub fn is_only_cut(&self) -> bool {
        let only = self.boots.iter().flatten().all(|fault| fault.kind.is_cut());
        only && !self.state.burnt && !self.state.burnt_shortly
    }

    pub fn has_silence(&self) -> bool {
        self.boots.iter().flatten().any(|fault| matches!(fault.kind, Kind::Silent(_)))
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.state, if self.allow { "+" } else { "" })?;
        for (index, fault) in self.boots.iter().enumerate() {
            f.write_str(if index == 0 { ":" } else { "/" })?;
            match fault {
                Some(fault) => write!(f, "{fault}")?,
                None => f.write_str("-")?,
            }
        }
        Ok(())
    }
}

impl FromStr for Case {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (state, boots) = text.split_once(':').unwrap_or((text, ""));
        let (state, allow) = match state.strip_suffix('+') {
            Some(state) => (state, true),
            None => (state, false),
        };
        let boots = boots.split('/').filter(|boot| !boot.is_empty());
        let boots = boots.map(|boot| if boot == "-" { Ok(None) } else { boot.parse().map(Some) });
        Ok(Self { state: state.parse()?, allow, boots: boots.collect::<Result<_, _>>()? })
    }
}
