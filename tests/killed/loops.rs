//! Loop devices: an image file as a real block device, with the kernel's ioctls and either sector size.
//! They need root; without it the first one says so.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// A loop device. The kernel takes it away when nobody has it open any more, however this program ends.
pub struct LoopDevice {
    path: PathBuf,
    open: File,
}

impl LoopDevice {
    /// On an image file, with sectors of this size.
    ///
    /// # Panics
    /// When there can be none: such a test has not passed.
    pub fn new(image: &Path, sector_bytes: u64) -> Self {
        // Two that look for a free one at the same time find the same.
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _guard = ONE_AT_A_TIME.lock().unwrap();
        let sector = format!("--sector-size={sector_bytes}");
        let found = losetup(&["--find", "--show", "--partscan", &sector], image);
        let path = PathBuf::from(found.trim());
        let open = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        // As long as it is open this only says: when it is closed.
        losetup(&["--detach"], &path);
        Self { path, open }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is in the kernel's cache for the device goes to the image file.
    pub fn settle(&self) {
        self.open.sync_all().unwrap();
    }
}

fn losetup(options: &[&str], path: &Path) -> String {
    let output = Command::new("losetup").args(options).arg(path).output();
    let output = output.unwrap_or_else(|e| panic!("losetup (Debian: mount): {e}"));
    assert!(
        output.status.success(),
        "losetup {options:?} {}: {} (it needs root, and /dev/loop-control)",
        path.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}
