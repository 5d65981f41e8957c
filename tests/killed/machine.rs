//! One machine: a disk with its ESP and its TPM, or a state file system with its ESP and volumes. Each
//! run has a copy of its own.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use restage::platform::tpm::{EsysTpm, Tpm};
use rustix::fs::SeekFrom;
use tempfile::TempDir;

use crate::loops::LoopDevice;
use crate::strace;
use crate::support::swtpm::Swtpm;

/// In pieces of this size a disk is compared.
const BLOCK_BYTES: usize = 64 * 1024;

/// What the machine is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A disk-image file and a software TPM.
    Image,
    /// A loop device with sectors of this size, and no TPM.
    Loop(u64),
    /// The state of IncusOS.
    Flat,
    /// The state of another OS: a tree with attributes.
    Tree,
}

/// A machine; gone when dropped.
pub struct Machine {
    pub kind: Kind,
    directory: TempDir,
    device: Option<LoopDevice>,
    tpm: Option<(Swtpm, String)>,
}

impl Machine {
    /// A copy of what lies in `master`, below `place`.
    pub fn copy(kind: Kind, master: &Path, place: &Path) -> Self {
        let directory = tempfile::tempdir_in(place).unwrap();
        copy(master, directory.path());
        let image = directory.path().join("disk.img");
        let device = match kind {
            Kind::Loop(sector_bytes) => Some(LoopDevice::new(&image, sector_bytes)),
            Kind::Image | Kind::Flat | Kind::Tree => None,
        };
        let tpm = (kind == Kind::Image).then(|| {
            let tpm = Swtpm::start();
            let name = owner_name(&tpm.tcti());
            (tpm, name)
        });
        Self { kind, directory, device, tpm }
    }

    /// Where everything of it lies.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    pub fn esp(&self) -> PathBuf {
        self.path().join("esp")
    }

    /// The root of its state file system.
    pub fn root(&self) -> PathBuf {
        self.path().join("fs")
    }

    /// The disk, as the program is told.
    pub fn disk(&self) -> PathBuf {
        let device = self.device.as_ref().map(|device| device.path().to_owned());
        device.unwrap_or_else(|| self.path().join("disk.img"))
    }

    /// What is on the disk: each block that is not all zeros, by its place.
    pub fn disk_blocks(&self) -> BTreeMap<u64, Vec<u8>> {
        if let Some(device) = &self.device {
            device.settle();
        }
        let image = File::open(self.path().join("disk.img")).unwrap();
        let (mut blocks, mut at) = (BTreeMap::new(), 0);
        while let Ok(data) = rustix::fs::seek(&image, SeekFrom::Data(at)) {
            // A hole may begin inside of a block, and reads as zeros.
            let end = rustix::fs::seek(&image, SeekFrom::Hole(data)).unwrap();
            at = data - data % BLOCK_BYTES as u64;
            while at < end {
                let mut block = vec![0; BLOCK_BYTES];
                image.read_exact_at(&mut block, at).unwrap();
                if block.iter().any(|byte| *byte != 0) {
                    blocks.insert(at, block);
                }
                at += BLOCK_BYTES as u64;
            }
        }
        blocks
    }

    /// Whether the TPM has been cleared; none when there is none.
    pub fn is_cleared(&self) -> Option<bool> {
        self.tpm.as_ref().map(|(tpm, before)| owner_name(&tpm.tcti()) != *before)
    }

    pub fn is_disk(&self) -> bool {
        matches!(self.kind, Kind::Image | Kind::Loop(_))
    }

    /// These arguments, and where to work.
    pub fn arguments(&self, words: &[&str]) -> Vec<String> {
        let shown = |path: PathBuf| path.display().to_string();
        let mut all: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let mut add = |option: &str, value: String| all.extend([option.to_owned(), value]);
        // A restore is cancelled where it is staged, and nowhere else.
        if self.is_disk() || words != ["cancel"] {
            add("--esp", shown(self.esp()));
        }
        if self.is_disk() {
            add("--disk", shown(self.disk()));
            let tcti = self.tpm.as_ref().map_or("none".to_owned(), |(tpm, _)| tpm.tcti());
            add("--tcti", tcti);
            return all;
        }
        add("--root", shown(self.root()));
        if self.kind == Kind::Tree {
            add("--profile", shown(self.path().join("profile.json")));
        }
        if self.kind == Kind::Tree || words == ["cancel"] {
            return all;
        }
        for name in ["root", "swap"] {
            add("--luks", format!("{name}={}", shown(self.path().join(format!("{name}.luks")))));
        }
        all
    }

    /// Runs the program, with nothing in its way.
    pub fn run(&self, words: &[&str]) -> Output {
        let mut command = Command::new(strace::binary());
        command.args(self.arguments(words)).stdin(Stdio::null()).output().unwrap()
    }
}

/// Copies what is in a directory; holes stay holes, and times and owners what they are.
pub fn copy(from: &Path, to: &Path) {
    let mut command = Command::new("cp");
    command.args(["-a", "--sparse=always"]).arg(from.join(".")).arg(to);
    let output = command.output().unwrap();
    assert!(output.status.success(), "cp: {}", String::from_utf8_lossy(&output.stderr));
}

/// What changes when the TPM is cleared: its owner hierarchy. Asked by a process of its own: a child of
/// another thread would keep the library's connection open, and swtpm serves one at a time.
fn owner_name(tcti: &str) -> String {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let output = command.args(["--owner-name", tcti]).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// That process.
pub fn tell_owner_name(tcti: &str) {
    println!("{}", EsysTpm::open(tcti).unwrap().owner_primary_name().unwrap());
}

/// Everything that a run said.
pub fn said(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    said + &String::from_utf8_lossy(&output.stderr)
}
