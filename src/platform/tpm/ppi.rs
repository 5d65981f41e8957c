//! The firmware's physical-presence interface, as the kernel shows it in sysfs.
//! Side: initrd. Writes `ppi/request`, reads its siblings.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::path::PathBuf;

/// Physical-presence operation: clear the TPM (TCG PC Client Physical Presence Interface, table 2).
pub const PPI_CLEAR: u32 = 5;

/// Where the kernel shows the firmware's physical-presence interface.
pub const PPI_ROOT: &str = "/sys/class/tpm/tpm0/ppi";

/// The firmware's physical-presence interface: it clears the TPM at the next boot, where the system
/// may not. Not every firmware has it: then reading gives `NotFound`.
#[derive(Clone, Debug)]
pub struct Ppi {
    root: PathBuf,
}

/// What the firmware did with the last request, as `ppi/response` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PpiResponse {
    /// The operation that had been requested.
    pub operation: u32,
    /// How it ended.
    pub outcome: PpiOutcome,
}

/// How a physical-presence request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PpiOutcome {
    /// Done.
    Success,
    /// The person at the console said no, or nobody answered.
    UserAbort,
    /// The firmware failed, before it asked the TPM.
    FirmwareFailure,
    /// The TPM's answer, or another code of the firmware.
    Error(u32),
}

/// What the firmware says it would do with an operation, as `ppi/tcg_operations` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PpiSupport {
    /// The firmware doesn't know it; the kernel leaves such operations out.
    NotImplemented,
    /// Only from the firmware's own setup.
    FirmwareOnly,
    /// The firmware's settings keep the system from asking.
    Blocked,
    /// Somebody has to confirm at the console.
    UserRequired,
    /// It happens by itself.
    UserNotRequired,
}

impl Default for Ppi {
    fn default() -> Self {
        Self::new(PPI_ROOT)
    }
}

impl Ppi {
    /// `root` is [`PPI_ROOT`], or a directory with the same files.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Asks the firmware for `operation` at the next boot; 0 withdraws. On `Ok` the firmware keeps it.
    pub fn request(&self, operation: u32) -> io::Result<()> {
        // The kernel takes what one write brings, so it is one write; there is nothing to create.
        OpenOptions::new()
            .write(true)
            .open(self.root.join("request"))?
            .write_all(format!("{operation}\n").as_bytes())
    }

    /// The operation that waits for the next boot.
    pub fn pending(&self) -> io::Result<Option<u32>> {
        parse_ppi_request(&self.read("request")?)
    }

    /// What came of the last operation. It stays until there is another one, over boots: a response
    /// proves something only together with a request of ours before it.
    pub fn response(&self) -> io::Result<Option<PpiResponse>> {
        parse_ppi_response(&self.read("response")?)
    }

    /// The operations that the firmware lists.
    pub fn operations(&self) -> io::Result<Vec<(u32, PpiSupport)>> {
        parse_ppi_operations(&self.read("tcg_operations")?)
    }

    /// What the firmware would do with one operation.
    pub fn support(&self, operation: u32) -> io::Result<PpiSupport> {
        let listed = self.operations()?;
        Ok(listed
            .iter()
            .find(|(number, _)| *number == operation)
            .map_or(PpiSupport::NotImplemented, |(_, s)| *s))
    }

    fn read(&self, file: &str) -> io::Result<String> {
        fs::read_to_string(self.root.join(file))
    }
}

fn unexpected(text: &str) -> io::Error {
    io::Error::new(
        ErrorKind::InvalidData,
        format!("unexpected content of the kernel's ppi files: {text:?}"),
    )
}

/// `5`; from interface version 1.3 a parameter may follow.
pub fn parse_ppi_request(text: &str) -> io::Result<Option<u32>> {
    let first = text.split_whitespace().next().ok_or_else(|| unexpected(text))?;
    let operation: u32 = first.parse().map_err(|_| unexpected(text))?;
    Ok((operation != 0).then_some(operation))
}

/// `5 0: Success`, `5 0xFFFFFFF0: User Abort`, `5 17: Corresponding TPM error`, or
/// `0: No Recent Request`.
pub fn parse_ppi_response(text: &str) -> io::Result<Option<PpiResponse>> {
    let (numbers, _words) = text.split_once(':').ok_or_else(|| unexpected(text))?;
    let Some((operation, code)) = numbers.split_once(' ') else {
        return if numbers == "0" { Ok(None) } else { Err(unexpected(text)) };
    };
    let operation = operation.parse().map_err(|_| unexpected(text))?;
    let outcome = match parse_number(code).ok_or_else(|| unexpected(text))? {
        0 => PpiOutcome::Success,
        0xffff_fff0 => PpiOutcome::UserAbort,
        0xffff_fff1 => PpiOutcome::FirmwareFailure,
        code => PpiOutcome::Error(code),
    };
    Ok(Some(PpiResponse { operation, outcome }))
}

/// Decimal, or hexadecimal after `0x`: the kernel mixes them.
fn parse_number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// Lines of `5 4: User not required`.
pub fn parse_ppi_operations(text: &str) -> io::Result<Vec<(u32, PpiSupport)>> {
    text.lines()
        .map(|line| {
            let (numbers, _text) = line.split_once(':')?;
            let (operation, support) = numbers.split_once(' ')?;
            let support = match support.trim() {
                "0" => PpiSupport::NotImplemented,
                "1" => PpiSupport::FirmwareOnly,
                "2" => PpiSupport::Blocked,
                "3" => PpiSupport::UserRequired,
                "4" => PpiSupport::UserNotRequired,
                _ => return None,
            };
            Some((operation.parse().ok()?, support))
        })
        .map(|line| line.ok_or_else(|| unexpected(text)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ppi_files_as_the_kernel_writes_them() {
        assert_eq!(parse_ppi_request("0\n").unwrap(), None);
        assert_eq!(parse_ppi_request("5\n").unwrap(), Some(5));
        assert_eq!(parse_ppi_request("5 0\n").unwrap(), Some(5));
        assert!(parse_ppi_request("\n").is_err());

        let response = |text| parse_ppi_response(text).unwrap().map(|r| (r.operation, r.outcome));
        assert_eq!(response("0: No Recent Request\n"), None);
        assert_eq!(response("5 0: Success\n"), Some((5, PpiOutcome::Success)));
        assert_eq!(response("5 0xFFFFFFF0: User Abort\n"), Some((5, PpiOutcome::UserAbort)));
        let failure = response("5 0xFFFFFFF1: BIOS Failure\n");
        assert_eq!(failure, Some((5, PpiOutcome::FirmwareFailure)));
        let tpm_error = response("14 17: Corresponding TPM error\n");
        assert_eq!(tpm_error, Some((14, PpiOutcome::Error(17))));
        for bad in ["", "5\n", "5: Success\n", "x 0: Success\n"] {
            assert!(parse_ppi_response(bad).is_err(), "{bad:?}");
        }

        let operations = parse_ppi_operations(
            "0 4: User not required\n5 3: User required\n9 2: Blocked for OS by BIOS\n",
        );
        assert_eq!(
            operations.unwrap(),
            [
                (0, PpiSupport::UserNotRequired),
                (5, PpiSupport::UserRequired),
                (9, PpiSupport::Blocked)
            ]
        );
        assert!(parse_ppi_operations("5 9: What\n").is_err());
    }

    #[test]
    #[allow(clippy::disallowed_methods)] // a test writes its fixtures
    fn ppi_through_a_directory() {
        let root = tempfile::tempdir().unwrap();
        let ppi = Ppi::new(root.path());
        assert_eq!(ppi.pending().unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(ppi.request(PPI_CLEAR).unwrap_err().kind(), ErrorKind::NotFound);
        fs::write(root.path().join("request"), "0\n").unwrap();
        fs::write(root.path().join("tcg_operations"), "5 1: BIOS only\n").unwrap();
        ppi.request(PPI_CLEAR).unwrap();
        assert_eq!(ppi.pending().unwrap(), Some(PPI_CLEAR));
        assert_eq!(ppi.support(PPI_CLEAR).unwrap(), PpiSupport::FirmwareOnly);
        assert_eq!(ppi.support(22).unwrap(), PpiSupport::NotImplemented);
    }
}
