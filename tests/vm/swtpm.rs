//! The software TPM: one process a machine, on a state directory that lives as
//! long as the scenario. Also spoken to directly, with the machine off, to plant
//! things in it and to see what became of them.

use crate::command::Background;
use crate::failure::{Doing, Failure, Outcome};
use crate::lab::tool;
use crate::wire::connect;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Makes an empty state directory; swtpm wants it private.
pub fn make_state(dir: &Path) -> Outcome {
    std::fs::create_dir_all(dir).doing("making the TPM's directory")?;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))?;
    Ok(())
}

/// Copies the state of a TPM that is off.
pub fn copy_state(from: &Path, to: &Path) -> Outcome {
    make_state(to)?;
    for entry in std::fs::read_dir(from).doing("reading a TPM's directory")? {
        let entry = entry?;
        // The lock file says who uses the original.
        if entry.file_name() != ".lock" {
            std::fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

/// Starts the TPM for QEMU, which connects to `control`; it ends with QEMU.
pub fn serve(state: &Path, control: &Path, log: &Path) -> Outcome<Background> {
    let args = [
        "socket".to_owned(),
        "--tpm2".to_owned(),
        "--tpmstate".to_owned(),
        format!("dir={}", state.display()),
        "--ctrl".to_owned(),
        format!("type=unixio,path={}", control.display()),
        "--terminate".to_owned(),
    ];
    let mut swtpm = Background::start(&tool("swtpm", "")?, &args, log)?;
    // QEMU does not wait for the socket, so we do; connecting would end swtpm.
    for _ in 0..200 {
        if control.exists() {
            return Ok(swtpm);
        }
        if let Some(how) = swtpm.ended() {
            return Err(Failure::new(how));
        }
        std::thread::sleep(Duration::from_millis(25));
    }
    Err(Failure::new("swtpm made no control socket"))
}

/// A TPM with the machine off, spoken to by commands in the TPM's own format.
#[derive(Debug)]
pub struct Bare {
    stream: UnixStream,
    _swtpm: Background,
    _sockets: tempfile::TempDir,
}

impl Bare {
    pub fn start(state: &Path) -> Outcome<Self> {
        // Short paths: a Unix socket's may have 107 bytes.
        let sockets = tempfile::tempdir().doing("making a directory for sockets")?;
        let data = sockets.path().join("data");
        let args = [
            "socket".to_owned(),
            "--tpm2".to_owned(),
            "--tpmstate".to_owned(),
            format!("dir={}", state.display()),
            "--server".to_owned(),
            format!("type=unixio,path={}", data.display()),
            "--ctrl".to_owned(),
            format!("type=unixio,path={}", sockets.path().join("control").display()),
            "--flags".to_owned(),
            "not-need-init,startup-clear".to_owned(),
        ];
        let log = sockets.path().join("log");
        let swtpm = Background::start(&tool("swtpm", "")?, &args, &log)?;
        let stream = connect(&data, Duration::from_secs(10)).doing("reaching the TPM")?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        Ok(Self { stream, _swtpm: swtpm, _sockets: sockets })
    }

    /// Sends a command without sessions and returns its parameters.
    pub fn plain(&mut self, code: u32, body: &[u8]) -> Outcome<Vec<u8>> {
        self.transmit(0x8001, code, body)
    }

    /// Sends a command that one empty password authorises.
    pub fn with_empty_auth(
        &mut self,
        code: u32,
        handles: &[u32],
        parameters: &[u8],
    ) -> Outcome<Vec<u8>> {
        let mut body: Vec<u8> = handles.iter().flat_map(|handle| handle.to_be_bytes()).collect();
        // TPM_RS_PW, no nonce, no attributes, no password.
        body.extend([0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0]);
        body.extend(parameters);
        self.transmit(0x8002, code, &body)
    }

    fn transmit(&mut self, tag: u16, code: u32, body: &[u8]) -> Outcome<Vec<u8>> {
        let what = format!("TPM command {code:#x}");
        let length = u32::try_from(body.len() + 10).doing(&what)?;
        let mut message = tag.to_be_bytes().to_vec();
        message.extend(length.to_be_bytes());
        message.extend(code.to_be_bytes());
        message.extend(body);
        self.stream.write_all(&message).doing(&what)?;
        let mut header = [0_u8; 10];
        self.stream.read_exact(&mut header).doing(&what)?;
        let [_, _, l0, l1, l2, l3, r0, r1, r2, r3] = header;
        let length = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
        let mut answer = vec![0_u8; length.saturating_sub(10).min(65536)];
        self.stream.read_exact(&mut answer).doing(&what)?;
        match u32::from_be_bytes([r0, r1, r2, r3]) {
            0 => Ok(answer),
            code => Err(Failure::new(format!("{what} was answered by {code:#x}"))),
        }
    }
}
