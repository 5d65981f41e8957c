//! A machine in files, and `restage-api` before it.

use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::support::disk::Disk;
use crate::support::state::{OLD, System};

pub struct Rig {
    pub system: System,
    disk: Disk,
}

impl Rig {
    pub fn new() -> Self {
        let rig = Self { system: System::new("here", OLD), disk: Disk::new() };
        // The paths of the machine are given to `restage` by a script: there is none in the program that
        // would only be for tests.
        let (root, esp) = (rig.system.root(), rig.disk.esp());
        let volume = |name| format!("--luks {name}={}", rig.system.volume(name).display());
        let script = format!(
            "#!/bin/sh\ncommand=$1; shift\ncase $command in\n\
             backup) set -- \"$@\" --root {root} ;;\n\
             restore) set -- \"$@\" --root {root} --esp {esp} {} {} ;;\n\
             factory-reset | status) set -- \"$@\" --disk {image} --esp {esp} --tcti none --root {root} ;;\n\
             esac\nexec {} \"$command\" \"$@\"\n",
            volume("root"),
            volume("swap"),
            restage().display(),
            root = root.display(),
            esp = esp.display(),
            image = rig.disk.image().display(),
        );
        rig.script("restage", &script);
        rig.script(
            "systemctl",
            &format!("#!/bin/sh\necho \"$@\" >> {}\n", rig.reboots().display()),
        );
        rig.set_api(&serde_json::json!({ "socket": rig.socket(), "group": null }));
        // As where something has been staged before.
        fs::create_dir_all(rig.system.own()).unwrap();
        rig
    }

    /// A program of this name, instead of what it was.
    pub fn script(&self, name: &str, text: &str) {
        let new = self.file("new-script");
        fs::write(&new, text).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(new, self.file(name)).unwrap();
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.system.file(name)
    }

    pub fn socket(&self) -> PathBuf {
        self.file("api.socket")
    }

    fn reboots(&self) -> PathBuf {
        self.file("reboots")
    }

    fn profile(&self) -> PathBuf {
        self.file("profile.json")
    }

    pub fn set_api(&self, api: &serde_json::Value) {
        let text = include_str!("../../src/profile/incusos.json");
        let mut profile: serde_json::Value = serde_json::from_str(text).unwrap();
        profile["api"] = api.clone();
        fs::write(self.profile(), profile.to_string()).unwrap();
    }

    pub fn serve(&self) -> Server<'_> {
        Server::start(self, command(self))
    }

    pub fn restage(&self, arguments: &[&str]) -> Output {
        self.system.restage(arguments)
    }

    /// All that a request that is refused must not change.
    pub fn everything(&self) -> impl PartialEq + use<> {
        (self.system.everything(), self.disk.bytes(), self.disk.names())
    }

    /// Started as systemd does it.
    pub fn activated(&self, listener: &(impl AsFd + AsRawFd)) -> Command {
        // dash knows descriptors of one digit only.
        let mut whole = Command::new("bash");
        let number = listener.as_raw_fd();
        rustix::io::fcntl_setfd(listener, rustix::io::FdFlags::empty()).unwrap();
        let command = command(self);
        let words = command.get_args().map(|word| word.to_str().unwrap());
        let words: Vec<&str> =
            std::iter::once(command.get_program().to_str().unwrap()).chain(words).collect();
        let script =
            format!("exec 3<&{number}; LISTEN_FDS=1 LISTEN_PID=$$ exec {}", words.join(" "));
        whole.args(["-c", &script]).env("PATH", self.path());
        whole
    }

    fn path(&self) -> String {
        let own = self.file("");
        format!("{}:{}", own.display(), std::env::var("PATH").unwrap())
    }
}

fn restage() -> PathBuf {
    let binary = std::env::var_os("RESTAGE_BIN").map(PathBuf::from);
    binary.unwrap_or_else(|| env!("CARGO_BIN_EXE_restage").into())
}

/// The program, not started yet.
pub fn command(rig: &Rig) -> Command {
    let binary = std::env::var("RESTAGE_API_BIN").ok();
    let mut command =
        Command::new(binary.unwrap_or_else(|| env!("CARGO_BIN_EXE_restage-api").to_owned()));
    command.arg("--restage").arg(rig.file("restage")).arg("--profile").arg(rig.profile());
    command.arg("--spool").arg(rig.file("spool"));
    command.env("PATH", rig.path()).stdin(Stdio::null());
    command
}

/// The program at work, until it is dropped.
pub struct Server<'a> {
    rig: &'a Rig,
    child: Child,
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl<'a> Server<'a> {
    pub fn start(rig: &'a Rig, mut command: Command) -> Self {
        let server = Self { rig, child: command.spawn().unwrap() };
        let is_there = || std::os::unix::net::UnixStream::connect(rig.socket()).is_ok();
        assert!(soon(is_there), "it does not listen");
        server
    }

    pub fn get(&self, path: &str) -> Answer {
        self.ask(Command::new("curl").args(["--request", "GET"]), path)
    }

    pub fn post(&self, path: &str, body: &[u8]) -> Answer {
        let file = self.rig.file("body");
        fs::write(&file, body).unwrap();
        self.curl(&["--data-binary"], &file, path)
    }

    /// The last of the options has the file for its value.
    pub fn curl(&self, options: &[&str], file: &Path, path: &str) -> Answer {
        let file = format!("@{}", file.display());
        self.ask(Command::new("curl").args(options).arg(file), path)
    }

    fn ask(&self, curl: &mut Command, path: &str) -> Answer {
        let body = self.rig.file("answer");
        let _ = fs::remove_file(&body);
        curl.args(["--silent", "--max-time", "60", "--write-out", "%{http_code}", "--output"])
            .arg(&body)
            .arg("--unix-socket")
            .arg(self.rig.socket())
            .arg(format!("http://localhost{path}"));
        let output = curl.output().unwrap();
        let status = String::from_utf8_lossy(&output.stdout).parse().unwrap();
        let body = fs::read(&body).unwrap_or_default();
        Answer { status, body, curl: output.status.code() }
    }

    /// It has asked for a reboot, once; forgotten then.
    pub fn reboots(&self) {
        let file = self.rig.reboots();
        let said = || fs::read_to_string(&file).unwrap_or_default();
        assert!(soon(|| said() == "reboot\n"), "no reboot: {}", said());
        fs::remove_file(file).unwrap();
    }

    pub fn does_not_reboot(&self) {
        // It would come after one.
        std::thread::sleep(Duration::from_secs(4));
        assert!(!self.rig.reboots().exists(), "a reboot");
    }
}

pub fn soon(mut is_so: impl FnMut() -> bool) -> bool {
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(20) {
        if is_so() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    false
}

pub struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
    pub curl: Option<i32>,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {}", self.text()))
    }
}
