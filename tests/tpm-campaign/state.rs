//! The states in which a reset finds a TPM, and the pure rule of what is to come of each.

use std::fmt;
use std::str::FromStr;

use crate::chip::{Chip, ENDORSEMENT_PASSWORD, LOCKOUT_PASSWORD, OWNER_PASSWORD};
use crate::wire::{ENDORSEMENT, LOCKOUT, OWNER};

/// Long enough for any run.
const LONG_S: u32 = 100_000;
/// Short enough to wait for.
pub const SHORT_RECOVERY_S: u32 = 4;

/// What is so before the reset, each by a letter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(clippy::struct_excessive_bools, reason = "dimensions of a table")]
pub struct State {
    /// `o`: the owner hierarchy has a password.
    pub owner_auth: bool,
    /// `e`: the endorsement hierarchy has one.
    pub endorsement_auth: bool,
    /// `l`: the lockout hierarchy has one.
    pub lockout_auth: bool,
    /// `d`: `TPM2_ClearControl` has forbidden the clear.
    pub disable_clear: bool,
    /// `t`: too many wrong passwords for protected objects.
    pub in_lockout: bool,
    /// `b`: a wrong password for the lockout hierarchy, which has none.
    pub burnt: bool,
    /// `s`: the same, and it is over after a few seconds.
    pub burnt_shortly: bool,
    /// `u`: before restage, each boot uses an object that counts power cuts as wrong passwords.
    pub in_use: bool,
}

/// Why `TPM2_Clear` cannot be carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    ClearDisabled,
    LockoutAuth,
    /// No flag says so: only the attempt tells.
    Burnt,
}

impl Obstacle {
    /// The words by which a message names it, and no other.
    pub fn words(self) -> &'static str {
        match self {
            Self::ClearDisabled => "disableClear",
            Self::LockoutAuth => "lockout hierarchy has a password",
            Self::Burnt => "locked after wrong passwords",
        }
    }
}

impl State {
    /// What stands in the way of a clear, by the specification of the TPM.
    pub fn obstacle(self) -> Option<Obstacle> {
        if self.disable_clear {
            Some(Obstacle::ClearDisabled)
        } else if self.lockout_auth {
            Some(Obstacle::LockoutAuth)
        } else if self.burnt || self.burnt_shortly {
            Some(Obstacle::Burnt)
        } else {
            None
        }
    }

    /// Brings a new TPM into this state.
    pub fn make(self, chip: &mut Chip) {
        if self.in_lockout {
            chip.lock_out();
        }
        if self.in_use {
            // There already where a lockout was brought about with it.
            let _ = chip.make_index();
        }
        if self.disable_clear {
            chip.disable_clear();
        }
        if self.owner_auth {
            chip.set_password(OWNER, OWNER_PASSWORD);
        }
        if self.endorsement_auth {
            chip.set_password(ENDORSEMENT, ENDORSEMENT_PASSWORD);
        }
        if self.lockout_auth {
            chip.set_password(LOCKOUT, LOCKOUT_PASSWORD);
        }
        if self.burnt {
            chip.burn_lockout(LONG_S);
        }
        if self.burnt_shortly {
            chip.burn_lockout(SHORT_RECOVERY_S);
        }
    }

    pub fn lockout_password(self) -> &'static [u8] {
        if self.lockout_auth { LOCKOUT_PASSWORD } else { b"" }
    }

    fn letters(self) -> [(char, bool); 8] {
        [
            ('o', self.owner_auth),
            ('e', self.endorsement_auth),
            ('l', self.lockout_auth),
            ('d', self.disable_clear),
            ('t', self.in_lockout),
            ('b', self.burnt),
            ('s', self.burnt_shortly),
            ('u', self.in_use),
        ]
    }

    /// Each combination of passwords, `disableClear` and lockout.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..32_u32).map(|bits| Self {
            owner_auth: bits & 1 != 0,
            endorsement_auth: bits & 2 != 0,
            in_lockout: bits & 4 != 0,
            lockout_auth: bits & 8 != 0,
            disable_clear: bits & 16 != 0,
            ..Self::default()
        })
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let set: String =
            self.letters().iter().filter(|(_, set)| *set).map(|(letter, _)| *letter).collect();
        f.pad(if set.is_empty() { "plain" } else { &set })
    }
}

impl FromStr for State {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut state = Self::default();
        for letter in if text == "plain" { "" } else { text }.chars() {
            match letter {
                'o' => state.owner_auth = true,
                'e' => state.endorsement_auth = true,
                'l' => state.lockout_auth = true,
                'd' => state.disable_clear = true,
                't' => state.in_lockout = true,
                'b' => state.burnt = true,
                's' => state.burnt_shortly = true,
                'u' => state.in_use = true,
                _ => return Err(format!("`{text}` is no state")),
            }
        }
        Ok(state)
    }
}
