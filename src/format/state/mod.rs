//! IncusOS's state file: a version line, then `Key.Path[index]: value` lines.
//! Side: both. Pure. A line that is taken over passes through byte for byte, known or not.

mod upgrade;

use zeroize::Zeroizing;

/// The newest version of the format that is known here.
pub const NEWEST: u32 = 8;
const VERSION_PREFIX: &str = "#Version: ";
/// The most that cryptsetup reads as a passphrase at a prompt (cryptsetup(8)).
const MAX_KEY_BYTES: usize = 512;
/// Shorter ones are not accepted as a recovery key by the OS.
const MIN_KEY_CHARS: usize = 15;
const MIN_DIFFERENT_CHARS: usize = 5;

/// A state file. It holds passphrases, so its memory is zeroized.
#[derive(Clone, PartialEq, Eq)]
pub struct StateFile {
    version: u32,
    /// What follows the version line, without the ends of lines.
    lines: Vec<Zeroizing<String>>,
    /// Whether the last line has an end.
    is_ended: bool,
}

/// What is wrong with a state file; names the line and never a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadState(String);

impl std::fmt::Display for BadState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BadState {}

impl std::fmt::Debug for StateFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "state file of version {} with {} lines", self.version, self.lines.len())
    }
}

impl StateFile {
    /// Reads the text of a state file.
    pub fn parse(bytes: &[u8]) -> Result<Self, BadState> {
        let bad = |why: String| Err(BadState(why));
        let Ok(text) = std::str::from_utf8(bytes) else { return bad("not UTF-8".to_owned()) };
        let (first, rest) = text.split_once('\n').unwrap_or((text, ""));
        let Some(version) = first.strip_prefix(VERSION_PREFIX) else {
            return bad(format!("the first line is not `{VERSION_PREFIX}N`"));
        };
        let digits = !version.is_empty() && version.bytes().all(|b| b.is_ascii_digit());
        let Some(version) = digits.then(|| version.parse().ok()).flatten() else {
            return bad(format!("the first line is not `{VERSION_PREFIX}N`"));
        };
        if version > NEWEST {
            return bad(format!("version {version} is newer than {NEWEST}, the newest known here"));
        }
        let is_ended = rest.is_empty() || rest.ends_with('\n');
        let lines = rest.strip_suffix('\n').unwrap_or(rest);
        let mut file = Self { version, lines: Vec::new(), is_ended };
        if rest.is_empty() {
            return Ok(file);
        }
        for (index, line) in lines.split('\n').enumerate() {
            let has_key = line.starts_with('#') || line.trim().is_empty() || key(line).is_some();
            if !has_key {
                return bad(format!("line {} is no `Key: value`", index + 2));
            }
            file.lines.push(Zeroizing::new(line.to_owned()));
        }
        Ok(file)
    }

    /// The text, as the OS reads it.
    #[must_use]
    pub fn encode(&self) -> Zeroizing<Vec<u8>> {
        let first = format!("{VERSION_PREFIX}{}\n", self.version);
        let length = first.len() + self.lines.iter().map(|line| line.len() + 1).sum::<usize>();
        // One allocation: a grown Vec leaves copies of secrets behind.
        let mut text = Zeroizing::new(Vec::with_capacity(length));
        text.extend_from_slice(first.as_bytes());
        for line in &self.lines {
            text.extend_from_slice(line.as_bytes());
            text.push(b'\n');
        }
        if !self.is_ended {
            text.pop();
        }
        text
    }

    /// Version of the format, 0 to [`NEWEST`].
    #[must_use]
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The lines that say something: key and value, in their order.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &str)> {
        self.lines.iter().filter_map(|line| entry(line))
    }

    /// The value of the first line with this key.
    #[must_use]
    pub fn value(&self, key: &str) -> Option<&str> {
        self.entries().find(|(name, _)| *name == key).map(|(_, value)| value)
    }

    /// Brings an older file to `version`, one version after the other.
    pub fn upgrade(&mut self, version: u32) -> Result<(), BadState> {
        if version < self.version {
            return Err(BadState(format!(
                "version {} is newer than {version}, the one of this system",
                self.version
            )));
        }
        while self.version < version {
            upgrade::step(self)?;
            self.version += 1;
        }
        Ok(())
    }

    /// The recovery passphrases, in their order.
    pub fn recovery_keys(&self) -> impl Iterator<Item = &str> {
        let prefix = self.recovery_prefix();
        self.entries().filter(|(key, _)| is_indexed(key, prefix)).map(|(_, value)| value)
    }

    fn recovery_prefix(&self) -> &'static str {
        match self.version {
            0 => "System.Encryption.Config.RecoveryKeys",
            _ => "System.Security.Config.EncryptionRecoveryKeys",
        }
    }

    /// The names of the installed applications, as version 8 spells them or as they stand there. One that
    /// stands in an older file under a name of version 8 is none of those, and does not become one.
    #[must_use]
    pub fn applications(&self) -> Vec<String> {
        let suffix = match self.version {
            0..=2 => "].Version",
            3..=7 => "].State.Version",
            _ => ".State.Version",
        };
        let open = if self.version < 8 { "Applications[" } else { "Applications." };
        let mut names: Vec<String> = self
            .entries()
            .filter(|(_, value)| !value.is_empty())
            .filter_map(|(key, _)| key.strip_prefix(open)?.strip_suffix(suffix))
            .filter(|name| self.version >= 8 || !upgrade::is_since_8(name))
            .map(|name| upgrade::application(name).unwrap_or(name).to_owned())
            .collect();
        names.sort();
        names.dedup();
        names
    }

    /// Takes every line whose key begins with one of `prefixes` from `backup`; the others, comments
    /// and blank lines among them, stay as they are. Both have the same version.
    #[must_use]
    pub fn composed(&self, backup: &Self, prefixes: &[String]) -> Self {
        let from_backup = |line: &str| {
            entry(line)
                .is_some_and(|(key, _)| prefixes.iter().any(|prefix| key.starts_with(prefix)))
        };
        let taken = || backup.lines.iter().filter(|line| from_backup(line)).cloned();
        let place = self.lines.iter().position(|line| from_backup(line));
        let place = place.unwrap_or(self.lines.len());
        let kept = |lines: &[Zeroizing<String>]| -> Vec<_> {
            lines.iter().filter(|line| !from_backup(line)).cloned().collect()
        };
        let (before, after) = self.lines.split_at(place);
        let lines = kept(before).into_iter().chain(taken()).chain(kept(after)).collect();
        Self { version: self.version, lines, is_ended: true }
    }

    /// Replaces the recovery passphrases, in the place of the first one that is there.
    pub fn set_recovery_keys(&mut self, keys: &[Zeroizing<String>]) {
        let prefix = self.recovery_prefix();
        let is_key = |line: &str| entry(line).is_some_and(|(key, _)| is_indexed(key, prefix));
        let place = self.lines.iter().position(|line| is_key(line)).unwrap_or(self.lines.len());
        let mut lines: Vec<_> = self.lines.drain(..).collect();
        let after = lines.split_off(place);
        let new = keys
            .iter()
            .enumerate()
            .map(|(index, value)| Zeroizing::new(format!("{prefix}[{index}]: {}", value.as_str())));
        let after = after.into_iter().filter(|line| !is_key(line));
        self.lines = lines.into_iter().chain(new).chain(after).collect();
        self.is_ended = true;
    }

    /// Replaces each hardware address of an interface or bond by that entry's name, which the OS
    /// resolves at boot. Returns how many lines it changed. An error names an entry without a name.
    pub fn forget_hardware_addresses(&mut self) -> Result<usize, BadState> {
        let mut changes = Vec::new();
        for (index, line) in self.lines.iter().enumerate() {
            let Some((key, _)) = entry(line) else { continue };
            let Some(owner) = key.strip_suffix(".Hwaddr").filter(|owner| is_nic(owner)) else {
                continue;
            };
            let name = self.value(&format!("{owner}.Name")).filter(|name| !name.is_empty());
            let name = name.ok_or_else(|| {
                BadState(format!(
                    "line {}: `{owner}` has a hardware address and no name",
                    index + 2
                ))
            })?;
            changes.push((index, Zeroizing::new(format!("{key}: {name}"))));
        }
        let count = changes.len();
        for (index, line) in changes {
            if let Some(place) = self.lines.get_mut(index) {
                *place = line;
            }
        }
        Ok(count)
    }
}

/// `Key: value` of a line that is neither blank nor a comment.
fn entry(line: &str) -> Option<(&str, &str)> {
    if line.starts_with('#') {
        return None;
    }
    let (key, value) = line.split_once(": ").or_else(|| Some((line.strip_suffix(':')?, "")))?;
    (!key.trim().is_empty()).then_some((key, value))
}

fn key(line: &str) -> Option<&str> {
    entry(line).map(|(key, _)| key)
}

/// Whether `key` is `prefix[N]`.
fn is_indexed(key: &str, prefix: &str) -> bool {
    let index = key.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('['));
    index
        .and_then(|rest| rest.strip_suffix(']'))
        .is_some_and(|index| !index.is_empty() && index.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Whether this names one interface or bond.
fn is_nic(owner: &str) -> bool {
    ["System.Network.Config.Interfaces", "System.Network.Config.Bonds"]
        .iter()
        .any(|list| is_indexed(owner, list))
}

/// Why a passphrase would not be accepted as a recovery key; names the rule, never the passphrase.
#[must_use]
pub fn weakness(passphrase: &str) -> Option<String> {
    if passphrase.len() > MAX_KEY_BYTES {
        return Some(format!("it is longer than {MAX_KEY_BYTES} bytes"));
    }
    // A line break is `\n` in the file, and no prompt takes one.
    if passphrase.chars().any(char::is_control) || passphrase.contains("\\n") {
        return Some("it has a line break or another control character".to_owned());
    }
    if passphrase.chars().count() < MIN_KEY_CHARS {
        return Some(format!("it is shorter than {MIN_KEY_CHARS} characters"));
    }
    if passphrase.chars().all(char::is_alphanumeric) {
        return Some("it has no special character".to_owned());
    }
    let different: std::collections::BTreeSet<char> = passphrase.chars().collect();
    (different.len() < MIN_DIFFERENT_CHARS)
        .then(|| format!("it has fewer than {MIN_DIFFERENT_CHARS} different characters"))
}

#[cfg(test)]
mod tests;
