//! Inside User-Mode Linux: this program is its only process, and says at the end how it went.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, finit_module, reboot};

/// What they need is found in `modules.dep`; but dm-crypt looks for its ciphers itself.
const MODULES: [&str; 10] = [
    "nbd",
    "nls_cp437",
    "nls_ascii",
    "nls_iso8859-1",
    "vfat",
    "cbc",
    "ecb",
    "xts",
    "crypto_null",
    "dm-crypt",
];

/// Mounts what a system has, and loads what it needs.
pub fn begin(modules: &Path) -> Result<(), String> {
    let none = MountFlags::empty();
    for (what, at) in [("proc", "/proc"), ("sysfs", "/sys"), ("tmpfs", "/run")] {
        mount(what, at, what, none, None).map_err(|error| format!("{at}: {error}"))?;
    }
    // The host's root is the root here as well; its /dev is not.
    match mount("devtmpfs", "/dev", "devtmpfs", none, None) {
        Ok(()) | Err(rustix::io::Errno::BUSY) => {}
        Err(error) => return Err(format!("/dev: {error}")),
    }
    // Only what is asked for is written, so that two recordings are the same.
    for (file, text) in [("dirty_writeback_centisecs", "0"), ("dirty_expire_centisecs", "360000")] {
        put(&format!("/proc/sys/vm/{file}"), text)?;
    }
    load_modules(modules)?;
    // There is nobody to ask for more of them, nor to tell of devices: each time it is a process.
    for helper in ["modprobe", "hotplug"] {
        let path = format!("/proc/sys/kernel/{helper}");
        if Path::new(&path).exists() {
            put(&path, "\n")?;
        }
    }
    Ok(())
}

/// Writes to a file of the kernel.
pub fn put(path: &str, text: &str) -> Result<(), String> {
    let mut file = File::options().write(true).open(path);
    let put = file.as_mut().map_err(|error| error.to_string()).and_then(|file| {
        io::Write::write_all(file, text.as_bytes()).map_err(|error| error.to_string())
    });
    put.map_err(|error| format!("{path}: {error}"))
}

fn load_modules(modules: &Path) -> Result<(), String> {
    let dep = modules.join("modules.dep");
    let text = std::fs::read_to_string(&dep).map_err(|e| format!("{}: {e}", dep.display()))?;
    let needs: BTreeMap<&str, Vec<&str>> = text
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(module, needs)| (module, needs.split_whitespace().collect()))
        .collect();
    let mut loaded = BTreeSet::new();
    for name in MODULES {
        let is_it = |path: &&str| path.rsplit('/').next() == Some(&format!("{name}.ko"));
        // What is no module is in the kernel, or the first mount says that it is not.
        let Some(path) = needs.keys().copied().find(is_it) else { continue };
        // What is needed by others comes last.
        for path in needs[path].iter().rev().chain([&path]) {
            if loaded.insert(*path) {
                load(&modules.join(path))?;
            }
        }
    }
    Ok(())
}

fn load(path: &PathBuf) -> Result<(), String> {
    let parameters = if path.ends_with("nbd.ko") { c"nbds_max=1 max_part=16" } else { c"" };
    let file = File::open(path).map_err(|error| format!("{}: {error}", path.display()))?;
    match finit_module(&file, parameters, 0) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}

/// Ends this kernel, in order. It does not return.
pub fn end() -> ! {
    rustix::fs::sync();
    let why = reboot(RebootCommand::PowerOff);
    panic!("not switched off: {why:?}");
}
