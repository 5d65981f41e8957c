//! A software TPM of one's own for a test: real swtpm, on TCP ports of its own, gone with the value.

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

const START_TIMEOUT: Duration = Duration::from_secs(10);
const START_ATTEMPTS: u32 = 10;

/// A running swtpm and its state.
pub struct Swtpm {
    state: TempDir,
    port: u16,
    process: Child,
}

#[allow(dead_code, reason = "each test program uses a part of it")]
impl Swtpm {
    /// Starts a new TPM, as it comes from the factory.
    ///
    /// # Panics
    /// Where there is no swtpm, or it doesn't start: such a test has not passed.
    pub fn start() -> Self {
        let state = tempfile::tempdir().expect("a directory for the TPM's state");
        let (port, process) = launch(state.path());
        Self { state, port, process }
    }

    /// For `--tcti`, for [`restage::platform::tpm::EsysTpm::open`], and for tpm2-tools.
    pub fn tcti(&self) -> String {
        format!("swtpm:host=127.0.0.1,port={}", self.port)
    }

    /// Power off and on: what the TPM has in memory is lost, and its state directory stays.
    /// The ports, and so [`Swtpm::tcti`], are others afterwards.
    pub fn power_cycle(&mut self) {
        self.power_off();
        let (port, process) = launch(self.state.path());
        self.port = port;
        self.process = process;
    }

    /// Nothing answers any more.
    pub fn power_off(&mut self) {
        // Neither can fail in a way that matters: it may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    /// It takes connections and commands, and never answers.
    ///
    /// # Panics
    /// When it is not running.
    pub fn freeze(&self) {
        let id = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(id, rustix::process::Signal::STOP).expect("swtpm is running");
    }

    /// Runs a program of tpm2-tools on this TPM.
    ///
    /// # Panics
    /// When it fails, or there is no such program.
    pub fn tool(&self, program: &str, arguments: &[&str]) {
        let output = self.run(program, arguments);
        assert!(
            output.status.success(),
            "{program} {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// The same, but the TPM must say no.
    ///
    /// # Panics
    /// When it does not fail, or there is no such program.
    pub fn tool_fails(&self, program: &str, arguments: &[&str]) {
        assert!(!self.run(program, arguments).status.success(), "{program} {arguments:?}");
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Output {
        Command::new(program)
            .args(arguments)
            .env("TPM2TOOLS_TCTI", self.tcti())
            .env("TSS2_LOG", "all+NONE")
            .output()
            .unwrap_or_else(|error| panic!("{program} (Debian: tpm2-tools): {error}"))
    }
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        self.power_off();
    }
}

/// Tries other ports when somebody takes ours between finding and using them.
fn launch(state: &Path) -> (u16, Child) {
    for _ in 0..START_ATTEMPTS {
        let port = free_port_pair();
        let mut process = Command::new("swtpm")
            .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear"])
            .args(["--tpmstate", &format!("dir={},mode=0600", state.display())])
            .args(["--server", &format!("type=tcp,port={port},bindaddr=127.0.0.1")])
            .args(["--ctrl", &format!("type=tcp,port={},bindaddr=127.0.0.1", port + 1)])
            .args(["--pid", &format!("file={}", state.join("pid").display())])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("swtpm (Debian: swtpm): {error}"));
        if is_up(&mut process, &state.join("pid")) {
            return (port, process);
        }
        let _ = process.kill();
        let _ = process.wait();
    }
    panic!("swtpm did not start in {START_ATTEMPTS} attempts");
}

/// swtpm writes its process id when it listens. Connecting would tell too, but it takes one client only.
fn is_up(process: &mut Child, pid_file: &Path) -> bool {
    let deadline = Instant::now() + START_TIMEOUT;
    let id = process.id().to_string();
    while Instant::now() < deadline {
        if std::fs::read_to_string(pid_file).is_ok_and(|text| text.trim() == id) {
            return true;
        }
        if process.try_wait().is_ok_and(|status| status.is_some()) {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    false
}

/// The TCTI takes the control channel to be on the next port.
fn free_port_pair() -> u16 {
    loop {
        let first = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = first.local_addr().expect("its number").port();
        if port < u16::MAX && TcpListener::bind((Ipv4Addr::LOCALHOST, port + 1)).is_ok() {
            return port;
        }
    }
}
