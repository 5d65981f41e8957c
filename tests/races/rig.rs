//! A machine with all that is staged on it, and a directory outside of it that nothing may reach.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use tempfile::TempDir;

use crate::support::disk::Disk;
use crate::support::state::{OLD, System, run, state_text};

/// A request for a reset, with a seed.
pub const SEEDS: &str =
    r#"{"allow_tpm_reset_failure":true,"seeds":{"incus":{"token":"a-secret-of-the-seed"}}}"#;

/// A disk with its ESP, and a state with a backup of another one.
pub struct Rig {
    pub disk: Disk,
    pub system: System,
    pub backup: String,
    outside: TempDir,
    was_outside: Tree,
}

/// Everything below a directory: kind, mode, and content.
pub type Tree = BTreeMap<String, (u32, Vec<u8>)>;

impl Rig {
    /// A fresh one.
    ///
    /// # Panics
    /// Without root: such a test has not passed.
    pub fn new() -> Self {
        assert!(rustix::process::geteuid().is_root(), "these tests need root");
        static MASTER: OnceLock<System> = OnceLock::new();
        let master = MASTER.get_or_init(|| {
            let system = System::new("before", OLD);
            run(system.command(&["backup"]).arg(system.file("backup.tar.gz")));
            system.write("state.txt", &state_text("after", OLD));
            system
        });
        let system = master.again();
        let backup = system.file("backup.tar.gz").display().to_string();
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("precious"), "of somebody else").unwrap();
        let was_outside = tree(outside.path());
        Self { disk: Disk::new(), system, backup, outside, was_outside }
    }

    pub fn outside(&self) -> &Path {
        self.outside.path()
    }

    /// Nothing was made, changed or removed outside.
    #[track_caller]
    pub fn check_outside(&self, when: &str) {
        assert_eq!(tree(self.outside()), self.was_outside, "{when}");
    }

    /// restage's directory on the ESP.
    pub fn on_esp(&self) -> PathBuf {
        self.disk.esp().join("restage")
    }

    fn command(words: &[&str]) -> Command {
        let binary = std::env::var("RESTAGE_BIN");
        let binary = binary.unwrap_or_else(|_| env!("CARGO_BIN_EXE_restage").to_owned());
        let mut command = Command::new(binary);
        command.args(words).stdin(Stdio::null());
        command
    }

    /// A command of resets: `factory-reset`, `cancel`, `status`, `initrd reset`.
    pub fn of_reset(&self, words: &[&str]) -> Command {
        let mut command = Self::command(words);
        command.arg("--disk").arg(self.disk.image()).arg("--esp").arg(self.disk.esp());
        command.args(["--tcti", "none"]).arg("--root").arg(self.system.root());
        command
    }

    /// A command of restores: `restore`, `confirm`, `initrd restore`.
    pub fn of_restore(&self, words: &[&str]) -> Command {
        let mut command = Self::command(words);
        command.arg("--root").arg(self.system.root()).arg("--esp").arg(self.disk.esp());
        for name in ["root", "swap"] {
            command.arg("--luks").arg(format!("{name}={}", self.system.volume(name).display()));
        }
        command
    }

    pub fn stage_reset(&self) -> Command {
        self.of_reset(&["factory-reset", "--force", "-d", SEEDS])
    }

    pub fn stage_restore(&self) -> Command {
        self.of_restore(&["restore", &self.backup, "--force", "--skip", "encryption-recovery-keys"])
    }

    pub fn back_up(&self, to: &Path, force: bool) -> Command {
        let mut command = Self::command(&["backup"]);
        command.arg(to).arg("--root").arg(self.system.root());
        command.args(force.then_some("--force"));
        command
    }

    pub fn cancel(&self) -> Command {
        self.of_reset(&["cancel"])
    }

    /// The names of both directories of restage's own that mean something staged, or are secret.
    pub fn pending(&self) -> Vec<String> {
        let mut all = crate::support::disk::list(&self.on_esp());
        all.extend(crate::support::disk::list(&self.system.own()));
        all.retain(|name| !matches!(name.rsplit_once('.'), Some((_, "RPT" | "LOG"))));
        all
    }
}

/// How it ended, and what it said.
pub fn ended(mut command: Command) -> (i32, String) {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = said + &String::from_utf8_lossy(&output.stderr);
    (output.status.code().unwrap_or_else(|| panic!("{}: {said}", output.status)), said)
}

#[track_caller]
pub fn expect(command: Command, status: i32, text: &str) {
    let (code, said) = ended(command);
    assert_eq!(code, status, "{said}");
    assert!(said.contains(text), "`{text}` is not in: {said}");
}

/// Everything below `root`.
pub fn tree(root: &Path) -> Tree {
    let mut all = Tree::new();
    let mut todo = vec![root.to_owned()];
    while let Some(directory) = todo.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let metadata = path.symlink_metadata().unwrap();
            let content = match metadata.file_type() {
                kind if kind.is_file() => fs::read(&path).unwrap(),
                kind if kind.is_symlink() => {
                    fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()
                }
                _ => Vec::new(),
            };
            if metadata.is_dir() {
                todo.push(path.clone());
            }
            let name = path.strip_prefix(root).unwrap().display().to_string();
            all.insert(name, (metadata.mode(), content));
        }
    }
    all
}

/// A file system of its own, unmounted when dropped.
pub struct Mount {
    at: PathBuf,
    place: Option<TempDir>,
}

impl Mount {
    /// At a new place.
    pub fn tmpfs(options: &str) -> Self {
        let place = tempfile::tempdir().unwrap();
        let mut mount = Self::tmpfs_at(place.path(), options);
        mount.place = Some(place);
        mount
    }

    pub fn tmpfs_at(at: &Path, options: &str) -> Self {
        let options = format!("{options},mode=0700");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(at));
        Self { at: at.to_owned(), place: None }
    }

    pub fn path(&self) -> &Path {
        &self.at
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // What cannot be unmounted keeps its directory, and the test has said what it has to say.
        let _ = Command::new("umount").arg("--lazy").arg(&self.at).status();
    }
}

pub fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}
