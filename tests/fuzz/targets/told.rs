//! What the firmware, the boot loader and the kernel tell, and a person of the TPM.

use std::path::Path;

use restage::plan::facts::HostFacts;
use restage::platform::{boot_entry, efivar, host, locate, tpm};
use restage::request::systemd::{Variable, argument};

use crate::bytes::{Bytes, told};

pub const TEXT_WORDS: &[&str] =
    &["ID=", "IMAGE_ID=", "\"", "MemAvailable: ", " kB", "ffffffff-ffff-ffff-ffff-ffffffffffff"];
pub const MOUNT_WORDS: &[&str] =
    &["22 1 254:2 / / rw - ext4 /dev/vda2 rw\n", "\\040", "\\134", "254:1", " - "];
pub const PPI_WORDS: &[&str] =
    &["0: No Recent Request\n", "5 0xFFFFFFF0: ", "5 4: User not required\n"];
pub const TCTI_WORDS: &[&str] = &["device:/", "swtpm:", "host=", ",port="];

pub fn efi(bytes: &[u8]) {
    let Some(text) = efivar::decode(bytes) else { return };
    let units: Vec<u16> = text.encode_utf16().collect();
    let said = bytes[4..].chunks_exact(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]]));
    assert!(units.iter().copied().eq(said.take_while(|unit| *unit != 0)));
    if let Some(warning) = boot_entry::differs(&text, "this.efi") {
        assert!(!text.eq_ignore_ascii_case("this.efi") && warning.contains(&text));
    }
    asked(&text);
}

/// systemd's request: for this OS, in another boot, or nothing; and never by chance.
fn asked(text: &str) {
    let (id, image_id) = (Some("debian".to_owned()), Some("restage-os".to_owned()));
    let host = HostFacts { os_id: id, image_id, ..HostFacts::default() };
    match Variable::read(Some(text), &host, Some(uuid::Uuid::nil())) {
        Variable::Absent => panic!("it is there"),
        Variable::Foreign(why) => assert!(!why.is_empty()),
        Variable::Pending | Variable::Now => {
            // Also with its letters as escapes.
            assert!(text.contains("debian") || text.contains("\\u"));
        }
    }
}

const SYSTEMD: &str = r#"{"osReleaseId":"debian","osReleaseVersionId":"14","osReleaseImageId":"restage-os","bootId":"00000000000000000000000000000008"}"#;

pub fn efi_seeds() -> Vec<Vec<u8>> {
    let text = |text: &str| {
        let units = text.encode_utf16().flat_map(u16::to_le_bytes);
        [6, 0, 0, 0].into_iter().chain(units).chain([0, 0]).collect()
    };
    let guid = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";
    ["", "os_1.efi", "@saved", "this.efi", guid, "\u{1f600}", SYSTEMD].map(text).to_vec()
}

/// os-release, the SMBIOS UUID, `/proc/meminfo`.
pub fn machine(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    for name in ["ID", "IMAGE_ID"] {
        if let Some(value) = host::field(&text, name) {
            assert!(!value.is_empty() && !value.contains('\n'));
            assert!(!value.starts_with(['"', '\'']) && !value.ends_with(['"', '\'']));
            assert!(text.contains(&value));
            let line = format!("OTHER=x\n{name}=\"{value}\"\n");
            assert_eq!(host::field(&line, name), Some(value));
        }
    }
    if let Some(uuid) = host::meaningful(text.trim()) {
        assert!(uuid.chars().any(|c| !matches!(c, '0' | '-')));
        assert_eq!(host::meaningful(&uuid.to_ascii_uppercase()), Some(uuid));
    }
    if !text.contains(['"', '\'']) {
        let line = format!("{text} systemd.factory_reset=1");
        assert_eq!(argument(&line), Some(true));
        assert!(argument(&format!("{text} systemd.factory-reset=no {line}")) == Some(true));
    }
    if let Some(kib) = host::available_kib(&text) {
        assert_eq!(host::available_kib(&format!("MemAvailable: {kib} kB\n")), Some(kib));
    }
}

pub fn machine_seeds() -> Vec<Vec<u8>> {
    [
        "NAME=\"x\"\nIMAGE_ID=\"restage-os\"\nID=debian\nVARIANT_ID=\n",
        "00000000-0000-0000-0000-000000000000\n",
        "4C4C4544-0051-3010-8052-B4C04F4E3732\n",
        "MemTotal:       16384 kB\nMemAvailable:    8192 kB\n",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

/// The first byte is the minor number of a device, the second the length of a path; then the table.
pub fn mounts(bytes: &[u8]) {
    let mut bytes = Bytes(bytes);
    let device = (254_u64 << 8) | u64::from(bytes.byte());
    let path = String::from_utf8_lossy(bytes.run()).into_owned();
    let table = String::from_utf8_lossy(bytes.0).into_owned();
    let gone = locate::has_gone_read_only(&table, Path::new(&path));
    if let Some(at) = locate::mounted_at(&table, device) {
        let first = format!("1 1 {}:{} / /first rw - vfat x rw\n", device >> 8, device & 0xff);
        let found = locate::mounted_at(&[&first, table.as_str()].concat(), device);
        assert_eq!(found.as_deref(), Some(Path::new("/first")));
        assert_eq!(
            locate::mounted_at(&table.replace(" / ", " /x "), device),
            None,
            "{}",
            at.display()
        );
    }
    if gone {
        assert!(table.contains("ro"));
        assert!(!locate::has_gone_read_only("", Path::new(&path)));
    }
}

pub fn mounts_seeds() -> Vec<Vec<u8>> {
    let table = "22 1 254:2 / / rw - ext4 /dev/vda2 rw\n30 22 254:1 /EFI /bind rw - vfat /dev/vda1 rw\n\
                 31 22 254:1 / /boot\\040x rw,nosuid shared:1 - vfat /dev/vda1 ro\n";
    vec![[b"\x01\x07/boot x", table.as_bytes()].concat(), [b"\x02\x01/", table.as_bytes()].concat()]
}

pub fn ppi(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let failed = |error: std::io::Error| told(&error.to_string());
    match tpm::parse_ppi_request(&text) {
        Ok(operation) => assert_ne!(operation, Some(0)),
        Err(error) => failed(error),
    }
    match tpm::parse_ppi_response(&text) {
        Ok(Some(response)) => {
            let said = format!("{} 0: Success\n", response.operation);
            let again = tpm::parse_ppi_response(&said).unwrap().unwrap();
            assert_eq!(again.operation, response.operation);
        }
        Ok(None) => {}
        Err(error) => failed(error),
    }
    match tpm::parse_ppi_operations(&text) {
        Ok(all) => assert_eq!(all.len(), text.lines().count()),
        Err(error) => failed(error),
    }
}

pub fn ppi_seeds() -> Vec<Vec<u8>> {
    [
        "0\n",
        "5 0\n",
        "0: No Recent Request\n",
        "5 0xFFFFFFF0: User Abort\n",
        "14 17: Corresponding TPM error\n",
        "0 4: User not required\n5 3: User required\n9 2: Blocked for OS by BIOS\n",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

pub fn tcti(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match tpm::parse_tcti(text) {
        Ok(_) => assert!(text.starts_with("device:/") || text.starts_with("swtpm:")),
        Err(error) => told(&error.to_string()),
    }
}

pub fn tcti_seeds() -> Vec<Vec<u8>> {
    ["device:/dev/tpmrm0", "swtpm:host=127.0.0.1,port=2321", "swtpm:port=1,host=localhost", "none"]
        .map(|text| text.as_bytes().to_vec())
        .to_vec()
}
