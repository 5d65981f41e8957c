//! A state file system in a directory, with LUKS2 volumes in files beside it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

pub const OLD: &str = "old-passphrase-0123";
pub const ROOT_KEY: &str = "root-machine-key-0123456789";
pub const SWAP_KEY: &str = "swap-machine-key-0123456789";

/// One machine.
pub struct System {
    directory: tempfile::TempDir,
}

impl System {
    /// Freshly installed, with `passphrase` as its recovery passphrase.
    pub fn new(hostname: &str, passphrase: &str) -> Self {
        let system = Self { directory: tempfile::tempdir().unwrap() };
        fs::create_dir_all(system.state()).unwrap();
        fs::create_dir_all(system.esp()).unwrap();
        fs::set_permissions(system.state(), fs::Permissions::from_mode(0o700)).unwrap();
        for (name, key) in [("root", ROOT_KEY), ("swap", SWAP_KEY)] {
            system.make_volume(name, key, passphrase);
            system.write(&format!("recovery.{name}.key"), key);
        }
        system.write("zpool.local.key", &format!("local key of {hostname}"));
        system.write("state.txt", &state_text(hostname, passphrase));
        system
    }

    /// Another one like it.
    pub fn again(&self) -> Self {
        let directory = tempfile::tempdir().unwrap();
        run(Command::new("cp")
            .args(["-a", "--sparse=always"])
            .arg(self.directory.path().join("."))
            .arg(directory.path()));
        Self { directory }
    }

    fn make_volume(&self, name: &str, key: &str, passphrase: &str) {
        let path = self.volume(name);
        fs::File::create(&path).unwrap().set_len(20 << 20).unwrap();
        let fast = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--batch-mode"];
        let (one, other) = (self.secret("one", key), self.secret("other", passphrase));
        run(Command::new("cryptsetup")
            .args(["luksFormat", "--type", "luks2"])
            .args(fast)
            .arg(&path)
            .arg(&one));
        run(Command::new("cryptsetup")
            .args(["luksAddKey", "--key-file"])
            .arg(&one)
            .args(fast)
            .arg(&path)
            .arg(&other));
    }

    fn secret(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    pub fn root(&self) -> PathBuf {
        self.directory.path().join("fs")
    }

    pub fn state(&self) -> PathBuf {
        self.root().join("var/lib/incus-os")
    }

    pub fn own(&self) -> PathBuf {
        self.root().join("var/lib/restage")
    }

    pub fn esp(&self) -> PathBuf {
        self.directory.path().join("esp")
    }

    pub fn volume(&self, name: &str) -> PathBuf {
        self.directory.path().join(format!("{name}.luks"))
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        let path = self.state().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.state().join(name)).unwrap()
    }

    /// The files of the state, with their content.
    pub fn files(&self) -> Vec<(String, Vec<u8>)> {
        files(&self.state())
    }

    /// Everything below the root, and the volumes.
    pub fn everything(&self) -> Vec<(String, Vec<u8>)> {
        let mut all = tree(&self.root(), "");
        for name in ["root", "swap"] {
            all.push((name.to_owned(), fs::read(self.volume(name)).unwrap()));
        }
        all
    }

    pub fn opens(&self, volume: &str, passphrase: &str) -> bool {
        let key = self.secret("try", passphrase);
        let status = Command::new("cryptsetup")
            .args(["open", "--test-passphrase", "--key-file"])
            .arg(key)
            .arg(self.volume(volume))
            .stderr(Stdio::null())
            .status();
        status.unwrap().success()
    }

    /// How many key slots a volume has.
    pub fn slots(&self, volume: &str) -> usize {
        let bytes = fs::read(self.volume(volume)).unwrap();
        let size = restage::format::luks::announced_bytes(&bytes).unwrap();
        restage::format::luks::parse(&bytes[..size as usize], 0).unwrap().slots.len()
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let binary = std::env::var("RESTAGE_BIN").ok();
        // Cargo names it to the tests of the same package only.
        let binary = binary.or(option_env!("CARGO_BIN_EXE_restage").map(str::to_owned));
        let mut command = Command::new(binary.expect("RESTAGE_BIN names no binary"));
        command.args(arguments).arg("--root").arg(self.root()).stdin(Stdio::null());
        command
    }

    pub fn restage(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// With the volumes and the ESP.
    pub fn full(&self, arguments: &[&str]) -> Output {
        self.full_command(arguments).output().unwrap()
    }

    /// The same, not run yet.
    pub fn full_command(&self, arguments: &[&str]) -> Command {
        let mut command = self.command(arguments);
        command.arg("--esp").arg(self.esp());
        for name in ["root", "swap"] {
            command.arg("--luks").arg(format!("{name}={}", self.volume(name).display()));
        }
        command
    }
}

/// The state file of a machine.
pub fn state_text(hostname: &str, passphrase: &str) -> String {
    format!(
        "#Version: 8\nApplications.Incus.State.Initialized: true\n\
         Applications.Incus.State.Version: 202611230000\nOS.Name: {hostname}-os\n\
         System.Network.Config.DNS.Hostname: {hostname}\n\
         System.Network.Config.Interfaces[0].Hwaddr: 10:66:6a:00:00:01\n\
         System.Network.Config.Interfaces[0].Name: enp0s3\n\
         System.Security.Config.EncryptionRecoveryKeys[0]: {passphrase}\n"
    )
}

pub fn files(directory: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            (name, fs::read(entry.path()).unwrap_or_default())
        })
        .collect();
    files.sort();
    files
}

fn tree(directory: &Path, prefix: &str) -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{prefix}/{}", entry.file_name().into_string().unwrap());
        if entry.file_type().unwrap().is_dir() {
            all.extend(tree(&entry.path(), &name));
        }
        all.push((name, fs::read(entry.path()).unwrap_or_default()));
    }
    all.sort();
    all
}

pub fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|e| panic!("cannot run {command:?}: {e}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
