//! The machine and its OS: SMBIOS, os-release, the clock, the user.
//! Side: both. Reads only.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use super::read_bounded;
use crate::plan::facts::HostFacts;

const MAX_BYTES: u64 = 64 * 1024;
/// Where the os-release of the UKI is in the initrd, in this order: as the stub hands it over, and
/// the initrd's own.
const INITRD_RELEASE: [&str; 3] =
    ["/run/systemd/stub/os-release", "/.extra/os-release", "/etc/initrd-release"];
const OS_RELEASE: [&str; 2] = ["/etc/os-release", "/usr/lib/os-release"];

/// Whether this is an initrd.
#[must_use]
pub fn in_initrd() -> bool {
    Path::new("/etc/initrd-release").exists()
}

/// The machine and OS that this runs on.
#[must_use]
pub fn facts() -> HostFacts {
    facts_from(if in_initrd() { &INITRD_RELEASE } else { &OS_RELEASE })
}

/// The machine, and the OS that the initrd's own os-release names, by which systemd goes there.
#[must_use]
pub fn initrd_facts() -> HostFacts {
    facts_from(&OS_RELEASE)
}

fn facts_from(paths: &[&str]) -> HostFacts {
    let release = paths.iter().find_map(|path| read_bounded(Path::new(path), MAX_BYTES).ok());
    let release = release.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let release = release.unwrap_or_default();
    HostFacts {
        smbios: smbios(),
        os_id: field(&release, "ID"),
        image_id: field(&release, "IMAGE_ID"),
        now: now(),
    }
}

/// Memory that can be had without swapping, in KiB (proc(5), `MemAvailable`).
#[must_use]
pub fn available_memory_kib() -> Option<u64> {
    let bytes = read_bounded(Path::new("/proc/meminfo"), MAX_BYTES).ok()?;
    available_kib(&String::from_utf8(bytes).ok()?)
}

/// The same in a text that the kernel has given.
#[must_use]
pub fn available_kib(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse().ok()
}

/// Seconds since 1970.
#[must_use]
pub fn now() -> u64 {
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the clock")]
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}

/// The SMBIOS system UUID. All zeros or all ones means that the vendor set none.
fn smbios() -> Option<String> {
    let bytes = read_bounded(Path::new("/sys/class/dmi/id/product_uuid"), MAX_BYTES).ok()?;
    meaningful(String::from_utf8(bytes).ok()?.trim())
}

/// A UUID that says something, in lower case.
#[must_use]
pub fn meaningful(uuid: &str) -> Option<String> {
    let digits: Vec<char> = uuid.chars().filter(|c| *c != '-').collect();
    let empty = digits.iter().all(|c| *c == '0') || digits.iter().all(|c| matches!(c, 'f' | 'F'));
    (!empty).then(|| uuid.to_ascii_lowercase())
}

/// Names of the credentials that the boot stub handed to systemd in this boot.
#[must_use]
pub fn loaded_credentials() -> Vec<String> {
    let mut names = Vec::new();
    for directory in
        ["/run/credentials/@encrypted", "/.extra/credentials", "/.extra/global_credentials"]
    {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            names.push(name.strip_suffix(".cred").unwrap_or(&name).to_owned());
        }
    }
    names.sort();
    names.dedup();
    names
}

/// A field of os-release, unquoted.
#[must_use]
pub fn field(release: &str, name: &str) -> Option<String> {
    let value =
        release.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix('='))?;
    let value = value.trim_matches(|c| c == '"' || c == '\'');
    (!value.is_empty()).then(|| value.to_owned())
}

/// Who runs this, for the record.
#[must_use]
pub fn user() -> String {
    let uid = rustix::process::getuid().as_raw();
    let login = read_bounded(Path::new("/proc/self/loginuid"), 64).ok();
    let login = login.and_then(|bytes| String::from_utf8(bytes).ok()?.trim().parse::<u32>().ok());
    match login {
        Some(login) if login != u32::MAX && login != uid => {
            format!("uid {uid} (login uid {login})")
        }
        _ => format!("uid {uid}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_uuids_are_none() {
        assert_eq!(meaningful("00000000-0000-0000-0000-000000000000"), None);
        assert_eq!(meaningful("FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF"), None);
        assert_eq!(meaningful(""), None);
        assert_eq!(meaningful("AB00").as_deref(), Some("ab00"));
    }

    #[test]
    fn os_release_is_read() {
        let text = "NAME=\"x\"\nIMAGE_ID=\"restage-os\"\nID=debian\nVARIANT_ID=\n";
        assert_eq!(field(text, "ID").as_deref(), Some("debian"));
        assert_eq!(field(text, "IMAGE_ID").as_deref(), Some("restage-os"));
        assert_eq!(field(text, "VARIANT_ID"), None);
        assert_eq!(field(text, "VERSION"), None);
    }
}
