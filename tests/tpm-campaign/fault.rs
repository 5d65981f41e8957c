//! What happens at one command of a boot, and its spelling: `cut@12`, `retry5@3`, `gone-late@6`.

use std::fmt;
use std::str::FromStr;

use crate::wire::{self, HEADER_BYTES};

/// At which command of the boot, counted from zero and only those that the TPM was given, what happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    pub at: usize,
    pub kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The power goes.
    Cut(When),
    /// The TPM says that it is busy, so many times, or for ever.
    Busy { code: u32, times: Option<u32> },
    /// The TPM never answers.
    Silent(When),
    /// The connection breaks.
    Gone(When),
    /// This response code.
    Code(u32, When),
    /// This refusal, and then the connection breaks: nobody can tell whether something was changed.
    Unproved(u32),
    /// To `TPM2_Clear`, and to nothing else: it says that it has cleared itself, and has not.
    Claim,
    /// An answer that is not one.
    Junk(Junk),
    /// There is no TPM in this boot.
    Absent,
}

/// Whether the TPM still carried the command out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    Before,
    After,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Junk {
    /// A good header, and then anything.
    Body(u64),
    /// A tag that no answer has.
    Tag,
    /// Success, and nothing else.
    Empty,
    /// Cut off in the middle, and the header says so.
    Short,
    /// The header says that there is less than a header.
    Tiny,
    /// The header says that there is more than any TPM gives.
    Huge,
    /// A few bytes are other ones: what comes of it is not known, but it must come to an end.
    Flip(u64),
}

/// The warnings by which a TPM says that it is busy.
const BUSY: [(&str, u32); 5] = [
    ("retry", 0x922),
    ("yielded", 0x908),
    ("testing", 0x90a),
    ("rate", 0x920),
    ("unavailable", 0x923),
];

impl Kind {
    /// Whether the power goes, which no boot sees.
    pub fn is_cut(self) -> bool {
        matches!(self, Self::Cut(_))
    }

    /// Whether restage is patient enough for it.
    pub fn is_harmless(self) -> bool {
        matches!(self, Self::Busy { times: Some(_), .. })
    }

    /// Whether the TPM is given the command all the same.
    pub fn is_delivered(self) -> bool {
        match self {
            Self::Cut(when) | Self::Silent(when) | Self::Gone(when) | Self::Code(_, when) => {
                when == When::After
            }
            Self::Junk(_) => true,
            Self::Absent | Self::Unproved(_) | Self::Claim => false,
            Self::Busy { times, .. } => times.is_some(),
        }
    }

    /// Whether the TPM answers all that follows in the same way.
    pub fn is_for_ever(self) -> bool {
        matches!(self, Self::Code(0x100 | 0x101, When::Before) | Self::Busy { times: None, .. })
    }

    /// Whether it is a no for good.
    pub fn is_definite(self) -> bool {
        matches!(self, Self::Code(0x98e | 0x120 | 0x921, When::Before))
    }

    /// The words by which a message names it, and no other fault.
    pub fn words(self, committed: bool) -> &'static str {
        match self {
            Self::Absent if committed => "the TPM that was there at the commit is gone",
            Self::Absent => "this machine has no TPM",
            Self::Claim => "the TPM says that it is cleared",
            Self::Cut(_) => "the power is gone",
            Self::Busy { .. } => "it is busy",
            Self::Silent(_) => "it never answered",
            Self::Gone(_) => "the connection to it broke",
            Self::Code(0x100, _) => "it was not started up",
            Self::Code(0x101, _) => "it is in failure mode",
            Self::Code(0x120, _) | Self::Unproved(0x120) => "disableClear",
            Self::Code(0x98e, _) | Self::Unproved(0x98e) => "lockout hierarchy has a password",
            Self::Code(0x921, _) | Self::Unproved(0x921) => "locked after wrong passwords",
            Self::Code(..) | Self::Unproved(_) | Self::Junk(_) => "its answer makes no sense",
        }
    }
}

impl Junk {
    /// What becomes of a good answer.
    pub fn spoil(self, answer: &[u8]) -> Vec<u8> {
        let mut bytes = answer.to_vec();
        match self {
            Self::Body(seed) => {
                let mut random = Random::new(seed);
                bytes[HEADER_BYTES..].fill_with(|| random.byte());
            }
            Self::Tag => bytes[..2].copy_from_slice(&[0x55, 0xaa]),
            Self::Empty => {
                return wire::message(wire::NO_SESSIONS, 0, &[]);
            }
            Self::Short => {
                bytes.truncate(HEADER_BYTES + (bytes.len() - HEADER_BYTES) / 2);
                let size = u32::try_from(bytes.len()).expect("a short message");
                bytes[2..6].copy_from_slice(&size.to_be_bytes());
            }
            Self::Tiny => bytes[2..6].copy_from_slice(&[0, 0, 0, 4]),
            Self::Huge => bytes[2..6].copy_from_slice(&[0x7f, 0xff, 0xff, 0xff]),
            Self::Flip(seed) => {
                let mut random = Random::new(seed);
                // Not in the header: another size is waited for, and another code is another answer.
                let Some(body) = bytes.get_mut(HEADER_BYTES..).filter(|body| !body.is_empty())
                else {
                    return bytes;
                };
                let body_bytes = body.len();
                for _ in 0..=random.below(3) {
                    body[random.below(body_bytes)] ^= 1 << random.below(8);
                }
            }
        }
        bytes
    }
}

/// Numbers that are the same every time (`SplitMix64`).
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Less than `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        let limit = u64::try_from(limit.max(1)).expect("a number");
        usize::try_from(self.next() % limit).expect("a small number")
    }

    fn byte(&mut self) -> u8 {
        self.next().to_be_bytes()[0]
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let late = |when| if when == When::After { "-late" } else { "" };
        match self.kind {
            Kind::Cut(when) => write!(f, "cut{}", late(when)),
            Kind::Silent(when) => write!(f, "silent{}", late(when)),
            Kind::Gone(when) => write!(f, "gone{}", late(when)),
            Kind::Absent => write!(f, "absent"),
            Kind::Claim => write!(f, "claim"),
            Kind::Unproved(code) => write!(f, "no{code:x}"),
            Kind::Code(code, when) => write!(f, "rc{code:x}{}", late(when)),
            Kind::Busy { code, times } => {
                let name = BUSY.iter().find(|(_, known)| *known == code).map(|(name, _)| *name);
                write!(f, "{}", name.unwrap_or("busy"))?;
                match times {
                    Some(times) => write!(f, "{times}"),
                    None => write!(f, "*"),
                }
            }
            Kind::Junk(junk) => match junk {
                Junk::Body(seed) => write!(f, "junk-body{seed}"),
                Junk::Flip(seed) => write!(f, "junk-flip{seed}"),
                Junk::Tag => write!(f, "junk-tag"),
                Junk::Empty => write!(f, "junk-empty"),
                Junk::Short => write!(f, "junk-short"),
                Junk::Tiny => write!(f, "junk-tiny"),
                Junk::Huge => write!(f, "junk-huge"),
            },
        }?;
        write!(f, "@{}", self.at)
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let unknown = || format!("`{text}` is no fault");
        let (kind, at) = text.split_once('@').ok_or_else(unknown)?;
        let at = at.parse().map_err(|_| unknown())?;
        Ok(Self { at, kind: parse_kind(kind).ok_or_else(unknown)? })
    }
}

fn parse_kind(text: &str) -> Option<Kind> {
    let (name, when) = match text.strip_suffix("-late") {
        Some(name) => (name, When::After),
        None => (text, When::Before),
    };
    Some(match name {
        "cut" => Kind::Cut(when),
        "silent" => Kind::Silent(when),
        "gone" => Kind::Gone(when),
        "absent" => Kind::Absent,
        "claim" => Kind::Claim,
        "junk-tag" => Kind::Junk(Junk::Tag),
        "junk-empty" => Kind::Junk(Junk::Empty),
        "junk-short" => Kind::Junk(Junk::Short),
        "junk-tiny" => Kind::Junk(Junk::Tiny),
        "junk-huge" => Kind::Junk(Junk::Huge),
        _ => {
            if let Some(seed) = name.strip_prefix("junk-body") {
                return Some(Kind::Junk(Junk::Body(seed.parse().ok()?)));
            }
            if let Some(seed) = name.strip_prefix("junk-flip") {
                return Some(Kind::Junk(Junk::Flip(seed.parse().ok()?)));
            }
            if let Some((word, code)) = BUSY.iter().find(|(word, _)| name.starts_with(word)) {
                let times = match &name[word.len()..] {
                    "*" => None,
                    number => Some(number.parse().ok()?),
                };
                return Some(Kind::Busy { code: *code, times });
            }
            if let Some(code) = name.strip_prefix("no") {
                return Some(Kind::Unproved(u32::from_str_radix(code, 16).ok()?));
            }
            Kind::Code(u32::from_str_radix(name.strip_prefix("rc")?, 16).ok()?, when)
        }
    })
}
