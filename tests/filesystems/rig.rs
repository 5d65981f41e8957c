//! The machine that the operations run on: its disk, and what of a boot comes before restage.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use restage::platform::locate::{self, Mounted};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::time::{ClockId, Timespec, clock_settime};

use crate::image::Image;
use crate::ioctl;
use crate::medium::{Beside, DISK, Medium};

/// The ESP's node.
pub const ESP: &str = "/dev/nbd0p1";
/// Where the OS has its ESP.
pub const OS_ESP: &str = "/run/boot";
/// As much of the ESP, from its start, as holds its tables and directories.
const AHEAD_BYTES: usize = 128 << 10;
/// Every boot begins at this time: what is written does not depend on when it is tried.
const NOW: i64 = 1_700_000_000;

/// The machine.
pub struct Rig {
    /// Its disk.
    pub medium: Medium,
    disk: File,
    /// Whether the partitions are in use all the time, by device mapper.
    is_busy: bool,
    scanned: Option<Image>,
    tables: [Range<usize>; 2],
}

/// What an I/O error in a test is: its message.
pub fn said(error: impl std::fmt::Display) -> String {
    error.to_string()
}

impl Rig {
    /// A machine with this disk.
    pub fn new(medium: Medium, tables: [Range<usize>; 2]) -> io::Result<Self> {
        Ok(Self { medium, disk: File::open(DISK)?, is_busy: false, scanned: None, tables })
    }

    /// Its partitions stay as they are from now on.
    pub fn keep_partitions(&mut self) {
        self.is_busy = true;
    }

    /// Switched off, and on again with this disk.
    pub fn load(&mut self, image: &Image, beside: Beside) {
        self.medium.load(image, beside);
    }

    /// What a boot begins with: nothing is cached, the clock is set, the table is read.
    pub fn switch_on(&mut self) -> Result<(), String> {
        let time = Timespec { tv_sec: NOW, tv_nsec: 0 };
        clock_settime(ClockId::Realtime, time).map_err(said)?;
        ioctl::forget_cache(&self.disk).map_err(said)?;
        if !self.is_busy && !self.is_scanned() {
            ioctl::read_table(&self.disk).map_err(|e| format!("the table is not read: {e}"))?;
            self.scanned = Some(self.medium.image());
        }
        Ok(())
    }

    /// What failed for the run before is nothing that the next one is told.
    pub fn forget_errors() {
        for path in [DISK, ESP, "/dev/mapper/root"] {
            let _ = File::open(path).and_then(|device| device.sync_all());
        }
    }

    /// Whether the kernel knows the partitions of this table already.
    fn is_scanned(&self) -> bool {
        let Some(scanned) = &self.scanned else { return false };
        let now = self.medium.image();
        let differs = now.differences(scanned);
        let is_table = |at: usize| self.tables.iter().any(|table| table.contains(&at));
        !differs.into_iter().any(is_table)
    }

    /// The kernel has been told to forget partitions.
    pub fn must_scan(&mut self) {
        self.scanned = None;
    }

    /// The ESP as the initrd mounts it: read-only, until there is something to do.
    pub fn esp() -> Result<Mounted, String> {
        let mounted = locate::mount(Path::new(ESP));
        let mounted = mounted.map_err(|error| format!("the ESP is not mounted: {error}"))?;
        if let Err(what) = Self::read_ahead() {
            mounted.unmount();
            return Err(what);
        }
        Ok(mounted)
    }

    /// FAT asks for its tables sector by sector; here each request is a change of processes. Where
    /// nothing is cached yet, all of them are one.
    fn read_ahead() -> Result<(), String> {
        let mut esp = File::open(ESP).map_err(said)?;
        io::Read::read_exact(&mut esp, &mut vec![0; AHEAD_BYTES]).map_err(said)
    }

    /// The ESP that the OS has mounted, which may have gone read-only when it was looked at.
    pub fn make_writable_in_os() -> Result<(), String> {
        let mounted = locate::mount(Path::new(ESP)).map_err(said)?;
        mounted.make_writable().map_err(|e| format!("the ESP stays read-only: {e}"))
    }

    /// The ESP as the OS mounts it, for as long as `work` takes.
    pub fn in_os<T>(work: impl FnOnce(&Path) -> T) -> Result<T, String> {
        let at = Path::new(OS_ESP);
        std::fs::create_dir_all(at).map_err(said)?;
        mount(ESP, at, c"vfat", MountFlags::NOSUID, c"umask=0077").map_err(said)?;
        let done = Self::read_ahead().map(|()| work(at));
        unmount(at, UnmountFlags::empty()).map_err(|e| format!("the ESP is kept busy: {e}"))?;
        done
    }
}

/// Whether the kernel meets, in restage's directory, the end before names: it is to refuse one of some names
/// of many entries, and makes the ESP read-only.
pub fn refuses_long_names() -> Result<(), String> {
    let path = |at: &Path, number: u32| at.join("restage").join(format!("{number:x<255}"));
    let made = Rig::in_os(|at| (10..30).try_for_each(|n| File::create(path(at, n)).map(drop)))?;
    match made.map_err(|error| error.raw_os_error()) {
        Err(Some(code)) if code == Errno::IO.raw_os_error() => Ok(()),
        other => Err(format!("long names are made ({other:?}): no gap is here, or no harm in it")),
    }
}

/// A program of the host. This is the first process: nobody has set a path.
fn program(name: &str, arguments: &[&str]) -> Result<Output, String> {
    let mut command = Command::new(name);
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("DM_DISABLE_UDEV", "1");
    let output = command.args(arguments).stdin(Stdio::null()).output();
    output.map_err(|error| format!("{name}: {error}"))
}

/// Checks a file system; the exit status of the program. It has to end.
pub fn check(name: &str, option: &str, device: &str) -> Result<i32, String> {
    let output = program("timeout", &["-s", "KILL", "30", name, option, device])?;
    match output.status.code() {
        Some(137) | None => Err(format!("{name} {option} does not end: {}", output.status)),
        Some(code) => Ok(code),
    }
}

/// Runs a program that has to succeed.
pub fn must_run(name: &str, arguments: &[&str]) -> Result<(), String> {
    let output = program(name, arguments)?;
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stdout, output.stderr].concat();
    Err(format!("{name} {arguments:?}: {}: {}", output.status, String::from_utf8_lossy(&said)))
}

/// Everything below a directory: files with their content, directories with none. What cannot be read
/// says why.
pub fn tree(root: &Path) -> std::collections::BTreeMap<String, Node> {
    let mut all = std::collections::BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(directory) = open.pop() {
        let name = |path: &Path| path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
        let entries = match std::fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) => {
                all.insert(name(&directory), Node::Unreadable(error.to_string()));
                continue;
            }
        };
        for entry in entries {
            let (path, kind) = match entry {
                Ok(entry) => (entry.path(), entry.file_type()),
                Err(error) => {
                    all.insert(format!("{}/?", name(&directory)), Node::Unreadable(said(error)));
                    break;
                }
            };
            if kind.is_ok_and(|kind| kind.is_dir()) {
                all.insert(name(&path), Node::Directory);
                open.push(path);
            } else {
                let node =
                    std::fs::read(&path).map_or_else(|e| Node::Unreadable(said(e)), Node::File);
                all.insert(name(&path), node);
            }
        }
    }
    all
}

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// A file, with its content.
    File(Vec<u8>),
    /// A directory.
    Directory,
    /// Nothing that can be read.
    Unreadable(String),
}
