//! Where everything is and how patient to be: the image, the cache, the host's
//! tools, the firmware, the accelerator.

use crate::failure::{Doing, Failure, Outcome};
use crate::point::Point;
use std::env;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How the guest's instructions are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    Kvm,
    Tcg,
}

/// A reference image; each has a cache and a base of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Image {
    /// Debian stable, with all that restage does by itself.
    Stable,
    /// Debian testing, with Incus, and with systemd's own factory reset.
    Incus,
}

impl Image {
    /// Signed, and booted by a firmware that takes nothing else. The other one is not: tests change what
    /// is in its UKI.
    fn is_signed(self) -> bool {
        self == Self::Incus
    }

    /// Below `.cache`, unless the variable says otherwise; and where its machines are kept.
    fn places(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Stable => ("image/restage-os.raw", "RESTAGE_VM_IMAGE", "vm"),
            Self::Incus => ("image-incus/restage-incus.raw", "RESTAGE_VM_IMAGE_INCUS", "vm-incus"),
        }
    }
}

/// What the command line says about recorded runs.
#[derive(Debug, Clone, Default)]
pub struct Replays {
    pub seed: u64,
    /// So many points a scenario, instead of its own number.
    pub rounds: Option<usize>,
    /// This point, and no other.
    pub point: Option<Point>,
}

/// Fixed for a run, shared by all scenarios.
#[derive(Debug)]
pub struct Lab {
    pub image: PathBuf,
    pub cache: PathBuf,
    pub qemu: PathBuf,
    pub ovmf_code: PathBuf,
    pub ovmf_vars: PathBuf,
    /// The firmware has Secure Boot, and with it SMM.
    pub is_secure: bool,
    pub accel: Accel,
    pub replays: Replays,
    /// What times are multiplied by: emulation, and a neighbour on the cores.
    slowness: u32,
}

impl Lab {
    /// Looks for everything and names the first thing that is missing.
    pub fn open(image: Image) -> Outcome<Self> {
        let kept = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../.cache"));
        let (name, variable, place) = image.places();
        let is_secure = image.is_signed();
        let image = path_from(variable, &kept.join(name));
        if !image.exists() {
            return Err(Failure::new(format!(
                "no image at {}: scripts/test builds it",
                image.display()
            )));
        }
        let cache =
            std::env::var_os("RESTAGE_VM_CACHE").map(|given| PathBuf::from(given).join(place));
        let cache = cache.unwrap_or_else(|| kept.join(place));
        std::fs::create_dir_all(&cache).doing("making the cache directory")?;
        // Absolute: swtpm and QEMU are started from other directories.
        let cache = cache.canonicalize()?;
        let qemu = tool("qemu-system-x86_64", "RESTAGE_QEMU")?;
        for needed in ["qemu-img", "qemu-nbd", "swtpm", "setpriv", "sha256sum"] {
            tool(needed, "")?;
        }
        let (ovmf_code, ovmf_vars) = firmware(is_secure)?;
        Ok(Self {
            image: image.canonicalize()?,
            cache,
            qemu,
            ovmf_code,
            ovmf_vars,
            is_secure,
            accel: Accel::Tcg,
            replays: Replays::default(),
            slowness: 1,
        })
    }

    /// Takes the accelerator for good, and with it the measure of patience.
    pub fn settle(&mut self, accel: Accel) {
        self.accel = accel;
        self.slowness = match accel {
            Accel::Kvm => 1,
            Accel::Tcg => 3,
        };
    }

    /// A time limit, given in seconds of a machine that runs guests natively.
    pub fn patience(&self, native_s: u64) -> Duration {
        Duration::from_secs(native_s) * self.slowness
    }
}

fn path_from(variable: &str, otherwise: &Path) -> PathBuf {
    env::var_os(variable).map_or_else(|| otherwise.to_owned(), PathBuf::from)
}

/// Finds a program; sbin directories are looked at too, since a user's PATH
/// may lack them.
pub fn tool(name: &str, variable: &str) -> Outcome<PathBuf> {
    if !variable.is_empty()
        && let Some(given) = env::var_os(variable)
    {
        return Ok(PathBuf::from(given));
    }
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|candidate| candidate.is_file())
        .doing(format!("looking for the program {name}"))
}

/// OVMF with Secure Boot and SMM, or without both. It has no keys: a signed image brings its own.
fn firmware(is_secure: bool) -> Outcome<(PathBuf, PathBuf)> {
    const SECURE: [(&str, &str); 4] = [
        ("OVMF_CODE_4M.secboot.fd", "OVMF_VARS_4M.fd"),
        ("OVMF_CODE.secboot.fd", "OVMF_VARS.fd"),
        ("x64/OVMF_CODE.secboot.4m.fd", "x64/OVMF_VARS.4m.fd"),
        ("ovmf/OVMF_CODE.secboot.fd", "ovmf/OVMF_VARS.fd"),
    ];
    const PLAIN: [(&str, &str); 4] = [
        ("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"),
        ("OVMF_CODE.fd", "OVMF_VARS.fd"),
        ("x64/OVMF_CODE.4m.fd", "x64/OVMF_VARS.4m.fd"),
        ("ovmf/OVMF_CODE.fd", "ovmf/OVMF_VARS.fd"),
    ];
    let mut places = vec![PathBuf::from("/usr/share/OVMF"), PathBuf::from("/usr/share/edk2")];
    if let Some(given) = env::var_os("RESTAGE_OVMF") {
        places.insert(0, PathBuf::from(given));
    }
    for place in &places {
        for (code, vars) in if is_secure { SECURE } else { PLAIN } {
            let (code, vars) = (place.join(code), place.join(vars));
            if code.exists() && vars.exists() {
                return Ok((code, vars));
            }
        }
    }
    let with = if is_secure { "with" } else { "without" };
    Err(Failure::new(format!("no OVMF firmware {with} Secure Boot (Debian package ovmf)")))
}
