//! A software TPM that is switched on and off: a process on a state directory, reached over a Unix
//! socket by the harness and by the proxy.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const START_TIMEOUT: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(2);

/// Where a TPM of a bench has its state and its sockets.
#[derive(Clone, Debug)]
pub struct Place {
    pub state: PathBuf,
    pub data: PathBuf,
    pub control: PathBuf,
}

impl Place {
    pub fn below(directory: &Path) -> Self {
        let place = |name| directory.join(name);
        Self { state: place("tpm"), data: place("data.sock"), control: place("control.sock") }
    }

    pub fn connect(&self) -> UnixStream {
        UnixStream::connect(&self.data).expect("the TPM is on")
    }
}

/// A TPM that is on. Dropping it is a power cut.
pub struct Swtpm {
    process: Child,
}

impl Swtpm {
    /// Power on: `TPM2_Startup(CLEAR)`, as the firmware sends it.
    pub fn power_on(place: &Place) -> Self {
        let pid_file = place.state.join("pid");
        for old in [&place.data, &place.control, &pid_file] {
            // Of the boot before; mostly not there.
            let _ = fs::remove_file(old);
        }
        let process = Command::new("swtpm")
            .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear"])
            .args(["--tpmstate", &format!("dir={},mode=0600", place.state.display())])
            .args(["--server", &format!("type=unixio,path={}", place.data.display())])
            .args(["--ctrl", &format!("type=unixio,path={}", place.control.display())])
            .args(["--pid", &format!("file={}", pid_file.display())])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("swtpm (Debian: swtpm): {error}"));
        let mut tpm = Self { process };
        let until = Instant::now() + START_TIMEOUT;
        let id = tpm.process.id().to_string();
        // It writes its process id once it listens.
        while !fs::read_to_string(&pid_file).is_ok_and(|text| text.trim() == id) {
            let ended = tpm.process.try_wait().expect("its status");
            assert!(ended.is_none(), "swtpm did not start: {ended:?}");
            assert!(Instant::now() < until, "swtpm does not listen");
            std::thread::sleep(PAUSE);
        }
        tpm
    }

    /// The power goes: what it has in memory is lost, and its state directory stays.
    pub fn cut(mut self) {
        self.end();
    }

    fn end(&mut self) {
        // Neither can fail in a way that matters: it may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        self.end();
    }
}
