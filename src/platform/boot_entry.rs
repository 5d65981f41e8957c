//! Which boot entry is next: an image without restage would ignore a request.
//! Side: OS. Reads EFI variables.

use super::efivar::loader_text;

/// The next boot's entry, as far as the boot loader tells.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Next {
    /// What it is, in a sentence.
    pub says: String,
    /// Why it may not be the image that runs now.
    pub warning: Option<String>,
}

/// Which entry is next. Without an entry for once or by default the boot loader takes the newest.
#[must_use]
pub fn next() -> Next {
    let running = loader_text("LoaderEntrySelected");
    let next = loader_text("LoaderEntryOneShot").or_else(|| loader_text("LoaderEntryDefault"));
    let warning = match (&next, &running) {
        (Some(next), Some(running)) => differs(next, running),
        _ => None,
    };
    let says = match (next, running) {
        (Some(next), _) => format!("the next boot is of `{next}`"),
        (None, Some(running)) => {
            format!("the next boot is of the boot loader's first entry; this one is of `{running}`")
        }
        (None, None) => "which entry the next boot is of, the boot loader does not tell".to_owned(),
    };
    Next { says, warning }
}

/// Why the next entry is surely another one than the one that runs.
#[must_use]
pub fn differs(next: &str, running: &str) -> Option<String> {
    // Defaults may be patterns (`*.efi`) or names of their own (`@saved`).
    let cannot_tell = next.is_empty() || next.starts_with('@') || next.contains(['*', '?', '[']);
    (!cannot_tell && !next.eq_ignore_ascii_case(running)).then(|| {
        format!(
            "the next boot will be of `{next}`, and this is `{running}`: without restage in its \
             initrd it will ignore the request"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::differs;

    #[test]
    fn only_a_known_other_entry_warns() {
        assert_eq!(differs("a.efi", "A.efi"), None);
        assert_eq!(differs("@saved", "a.efi"), None);
        assert_eq!(differs("os_*.efi", "a.efi"), None);
        assert!(differs("b.efi", "a.efi").unwrap().contains("`b.efi`"));
    }
}
