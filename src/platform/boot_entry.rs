//! Which boot entry is next: an image without restage would ignore a request.
//! Side: OS. Reads EFI variables.

use super::efivar::loader_text;

/// Why the next boot may not be of the image that runs now; none when it is, or cannot be told.
#[must_use]
pub fn warning() -> Option<String> {
    let next = loader_text("LoaderEntryOneShot").or_else(|| loader_text("LoaderEntryDefault"))?;
    differs(&next, &loader_text("LoaderEntrySelected")?)
}

fn differs(next: &str, running: &str) -> Option<String> {
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
