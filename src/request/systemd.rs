//! A factory reset that was asked for in systemd's own way (258 and later; `systemd-factory-reset(8)`): by
//! the EFI variable that `systemctl start factory-reset.target` sets, or on the kernel command line.
//! Side: both. Pure.

use serde::Deserialize;
use uuid::Uuid;

use crate::plan::facts::HostFacts;

/// Name of the EFI variable, with systemd's vendor GUID.
pub const VARIABLE: &str = "FactoryResetRequest";
/// On the ESP while the kernel command line asks for a reset that it has had. An empty file: that the
/// argument is still there says nothing about what anybody wants.
pub const ARGUMENT_HAD: &str = "KERNEL.ARG";
/// The argument of the kernel command line.
const ARGUMENT: &str = "systemd.factory_reset";

/// What the EFI variable says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Variable {
    /// It is not set.
    Absent,
    /// It means nothing here: why.
    Foreign(String),
    /// The next boot is to reset this OS.
    Pending,
    /// This boot is to reset this OS.
    Now,
}

/// What of it systemd looks at as well. Versions are only there to be read by people.
#[derive(Deserialize)]
struct Content {
    #[serde(rename = "osReleaseId")]
    os_id: String,
    #[serde(rename = "osReleaseImageId")]
    image_id: Option<String>,
    #[serde(rename = "bootId")]
    boot: Uuid,
}

impl Variable {
    /// Reads its text. `boot` is the id of this boot: a request is for the boot after the one that made it.
    #[must_use]
    pub fn read(text: Option<&str>, host: &HostFacts, boot: Option<Uuid>) -> Self {
        let Some(text) = text else { return Self::Absent };
        let content: Content = match serde_json::from_str(text) {
            Ok(content) => content,
            Err(error) => return Self::Foreign(error.to_string()),
        };
        let differs = |field: &str, its: Option<&str>, ours: Option<&str>| {
            let told = |id: Option<&str>| id.map_or("absent".to_owned(), |id| format!("`{id}`"));
            (its != ours).then(|| {
                format!("field `{field}` is {}, and this OS's is {}", told(its), told(ours))
            })
        };
        let its = content.image_id.as_deref();
        let other = differs("osReleaseId", Some(&content.os_id), host.os_id.as_deref())
            .or_else(|| differs("osReleaseImageId", its, host.image_id.as_deref()));
        match other {
            Some(why) => Self::Foreign(why),
            None if Some(content.boot) == boot => Self::Pending,
            None => Self::Now,
        }
    }
}

/// What the kernel command line says: to reset, expressly not to, or nothing. As systemd reads it: the
/// last one counts, `-` is as good as `_`, and no value is a yes; what is neither yes nor no is a no.
#[must_use]
pub fn argument(command_line: &str) -> Option<bool> {
    let found = words(command_line).into_iter().rev().find_map(|word| {
        let (key, value) = match word.split_once('=') {
            Some((key, value)) => (key, Some(value.to_owned())),
            None => (word.as_str(), None),
        };
        (key.replace('-', "_") == ARGUMENT).then_some(value)
    })?;
    Some(found.is_none_or(|value| {
        ["1", "yes", "y", "true", "t", "on"].contains(&value.to_ascii_lowercase().as_str())
    }))
}

/// The words of a command line, without their quotes.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for c in line.chars() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '"' | '\'') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, c) if c.is_ascii_whitespace() => words.extend(word.take()),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

/// What this boot was asked for in systemd's way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// The EFI variable asks for a reset.
    pub variable: bool,
    /// The kernel command line does.
    pub argument: bool,
}

impl Asked {
    /// From both. An express no on the command line counts for the variable too, which then stays.
    #[must_use]
    pub fn new(variable: &Variable, argument: Option<bool>) -> Self {
        Self {
            variable: argument != Some(false) && *variable == Variable::Now,
            argument: argument == Some(true),
        }
    }

    /// Whether systemd counts this boot as one of a factory reset of this OS.
    #[must_use]
    pub fn is_reset_mode(self) -> bool {
        self.variable || self.argument
    }

    /// Whether the command line's wish is one: the profile allows it, and it has not had its reset.
    #[must_use]
    pub fn by_argument(self, is_allowed: bool, had: bool) -> bool {
        self.argument && is_allowed && !had
    }

    /// Whether there is something to do: a wish, or a note that is not true any more.
    #[must_use]
    pub fn is_work(self, is_allowed: bool, had: bool) -> bool {
        self.variable || self.by_argument(is_allowed, had) || (had && !self.argument)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOT: Uuid = Uuid::from_u128(7);

    fn host() -> HostFacts {
        HostFacts {
            os_id: Some("debian".to_owned()),
            image_id: Some("restage-os".to_owned()),
            ..HostFacts::default()
        }
    }

    fn read(text: &str) -> Variable {
        Variable::read(Some(text), &host(), Some(BOOT))
    }

    fn why(text: &str) -> String {
        match read(text) {
            Variable::Foreign(why) => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_request_is_for_this_os_and_for_the_next_boot() {
        let text = |boot: &str| {
            format!(
                r#"{{"osReleaseId":"debian","osReleaseVersionId":"14","osReleaseImageId":"restage-os","bootId":"{boot}"}}"#
            )
        };
        assert_eq!(read(&text("00000000000000000000000000000007")), Variable::Pending);
        assert_eq!(read(&text("00000000-0000-0000-0000-000000000007")), Variable::Pending);
        assert_eq!(read(&text("00000000000000000000000000000008")), Variable::Now);
        assert_eq!(Variable::read(None, &host(), Some(BOOT)), Variable::Absent);
        // A boot whose id is not known is another one.
        let asked = Variable::read(Some(&text("00000000000000000000000000000007")), &host(), None);
        assert_eq!(asked, Variable::Now);
    }

    #[test]
    fn what_is_not_for_us_is_left_alone_and_says_why() {
        let boot = r#""bootId":"00000000000000000000000000000008""#;
        let other = why(&format!(r#"{{"osReleaseId":"fedora",{boot}}}"#));
        assert_eq!(other, "field `osReleaseId` is `fedora`, and this OS's is `debian`");
        let other = why(&format!(r#"{{"osReleaseId":"debian",{boot}}}"#));
        assert_eq!(other, "field `osReleaseImageId` is absent, and this OS's is `restage-os`");
        let other = why(&format!(r#"{{"osReleaseId":"debian","osReleaseImageId":"x",{boot}}}"#));
        assert_eq!(other, "field `osReleaseImageId` is `x`, and this OS's is `restage-os`");
        assert!(why(&format!("{{{boot}}}")).contains("missing field `osReleaseId`"));
        assert!(why(r#"{"osReleaseId":"debian"}"#).contains("missing field `bootId`"));
        assert!(why(r#"{"osReleaseId":"debian","bootId":"x"}"#).contains("invalid"));
        assert!(why("").contains("EOF"));
        assert!(why("[]").contains("invalid length"));
    }

    #[test]
    fn the_command_line_is_read_as_systemd_does() {
        let yes = ["1", "yes", "true", "on", "Y", "T"];
        let no = ["0", "no", "false", "off", "", "2", "maybe"];
        for value in yes {
            assert_eq!(argument(&format!("quiet systemd.factory_reset={value} x")), Some(true));
        }
        for value in no {
            assert_eq!(argument(&format!("systemd.factory_reset={value}\n")), Some(false));
        }
        assert_eq!(argument("systemd.factory-reset"), Some(true));
        assert_eq!(argument("\"systemd.factory_reset\"='1'"), Some(true));
        assert_eq!(argument("systemd.factory_reset=1 systemd.factory_reset=0"), Some(false));
        assert_eq!(argument("systemd.factory_reset=0 systemd.factory_reset=1"), Some(true));
        // Not words of their own.
        assert_eq!(argument("a=\"x systemd.factory_reset=1 y\""), None);
        assert_eq!(argument("rd.systemd.factory_reset=1 systemd.factory_resets=1"), None);
        assert_eq!(argument(""), None);
    }

    #[test]
    fn an_express_no_counts_for_both() {
        let asked = |variable, argument| Asked::new(&variable, argument);
        let both = |variable, argument| Asked { variable, argument };
        assert_eq!(asked(Variable::Now, None), both(true, false));
        assert_eq!(asked(Variable::Now, Some(true)), both(true, true));
        assert_eq!(asked(Variable::Now, Some(false)), both(false, false));
        assert_eq!(asked(Variable::Pending, Some(true)), both(false, true));
        assert_eq!(asked(Variable::Pending, None), both(false, false));
    }

    #[test]
    fn an_argument_is_heard_once() {
        let asked = Asked { variable: false, argument: true };
        assert!(asked.by_argument(true, false) && asked.is_work(true, false));
        assert!(!asked.is_work(true, true), "it has had its reset");
        assert!(!asked.is_work(false, false), "the profile does not allow it");
        assert!(Asked::default().is_work(true, true), "a boot without it: the note goes");
        assert!(!Asked::default().is_work(true, false));
    }
}
