//! What the boot does next: wait, go on, reboot, hold.
//! Side: initrd.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use super::console;

/// udev's queue exists as long as it has something to do.
const UDEV_QUEUE: &str = "/run/udev/queue";
const UDEV_QUIET: Duration = Duration::from_secs(1);
const SETTLE_WAIT: Duration = Duration::from_secs(15);
/// The reason of a hold is repeated this often: the console scrolls.
const REPEAT_EVERY: Duration = Duration::from_secs(60);

/// Waits until `look` finds something, at most `limit`; says what it waits for.
pub fn wait_for<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let begin = Instant::now();
    let mut said = false;
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if begin.elapsed() >= limit {
            return None;
        }
        if !said && begin.elapsed() >= Duration::from_secs(3) {
            said = true;
            log::info!("waiting for {what}, at most {} s", limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// As long as this file is there, `emergency.service` opens no shell (see `initrd/`).
const NO_SHELL: &str = "/run/restage/committed";

/// A committed reset is, or may be, under way.
pub fn forbid_shell() {
    let made = std::fs::create_dir_all("/run/restage").and_then(|()| File::create(NO_SHELL));
    if let Err(error) = made {
        log::warn!("cannot make {NO_SHELL}: {error}");
    }
}

/// It is not, or not any more.
pub fn allow_shell() {
    if let Err(error) = std::fs::remove_file(NO_SHELL) {
        log::warn!("cannot remove {NO_SHELL}: {error}");
    }
}

/// The condition of `restage-restore.service`, so that a boot with nothing staged mounts nothing.
const RESTORE_FLAG: &str = "/run/restage/restore";

/// There is a flag on the ESP: a restore is staged, or waits to be confirmed.
pub fn want_restore() {
    let made = std::fs::create_dir_all("/run/restage").and_then(|()| File::create(RESTORE_FLAG));
    if let Err(error) = made {
        log::error!("cannot make {RESTORE_FLAG}: {error}");
    }
}

/// What is started in a boot. Of each there is a file with one byte for each start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Started {
    /// `restage initrd reset`.
    Reset,
    /// `restage initrd restore`.
    Restore,
}

/// Counts this start. Returns how many there were before in this boot: each of them was ended by a
/// crash or a kill, or systemd would not have started another one.
#[must_use]
pub fn count_start(what: Started) -> usize {
    let path = match what {
        Started::Reset => "/run/restage/reset-starts",
        Started::Restore => "/run/restage/restore-starts",
    };
    let before = std::fs::metadata(path).map_or(0, |found| found.len());
    let counted = std::fs::create_dir_all("/run/restage")
        .and_then(|()| File::options().create(true).append(true).open(path))
        .and_then(|mut file| file.write_all(b"."));
    if let Err(error) = counted {
        log::warn!("cannot count this start in {path}: {error}");
    }
    usize::try_from(before).unwrap_or(usize::MAX)
}

/// systemd (258 and later) counts the factory reset of this boot as over once this file is there, and
/// until then it makes no node by which the root is found.
const RESET_MODE_LEFT: &str = "/run/systemd/factory-reset-complete";
/// With it `factory-reset-now.target` is not reached (see `initrd/`).
const NO_RESET: &str = "/run/restage/no-factory-reset";
/// Why systemd counts this boot as one of a factory reset, for a restage that is started again.
const RESET_MODE: &str = "/run/restage/reset-mode";
const BLOCK_DEVICES: &str = "/sys/class/block";

/// Says that this boot is none of a factory reset (any more), and has udev look at the block devices
/// again, as `systemd-factory-reset complete --retrigger` does where the reset is systemd's own.
pub fn leave_reset_mode() {
    for path in [NO_RESET, RESET_MODE_LEFT] {
        let directory = Path::new(path).parent().unwrap_or(Path::new("/run"));
        let made = std::fs::create_dir_all(directory).and_then(|()| File::create(path));
        if let Err(error) = made {
            log::error!("cannot make {path}: {error}");
        }
    }
    for device in std::fs::read_dir(BLOCK_DEVICES).into_iter().flatten().flatten() {
        let path = device.path().join("uevent");
        let triggered =
            File::options().write(true).open(&path).and_then(|mut file| file.write_all(b"change"));
        if let Err(error) = triggered {
            log::warn!("cannot trigger {}: {error}", path.display());
        }
    }
}

/// Remembers a word about this boot, unless there is one; the one there is.
#[must_use]
pub fn reset_mode(seen: Option<&str>) -> Option<String> {
    if let Ok(known) = super::read_bounded(Path::new(RESET_MODE), 64) {
        return Some(String::from_utf8_lossy(&known).into_owned());
    }
    let word = seen?;
    let kept = std::fs::create_dir_all("/run/restage")
        .and_then(|()| File::create_new(RESET_MODE))
        .and_then(|mut file| file.write_all(word.as_bytes()));
    if let Err(error) = kept {
        log::warn!("cannot make {RESET_MODE}: {error}");
    }
    Some(word.to_owned())
}

/// The id of this boot; none when the kernel does not tell.
#[must_use]
pub fn id() -> Option<uuid::Uuid> {
    let bytes = super::read_bounded(Path::new("/proc/sys/kernel/random/boot_id"), 64).ok()?;
    std::str::from_utf8(&bytes).ok()?.trim().parse().ok()
}

/// The kernel command line.
#[must_use]
pub fn command_line() -> String {
    let bytes = super::read_bounded(Path::new("/proc/cmdline"), 64 * 1024).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Waits until udev has had nothing to do for a second: what was changed reaches it by way of the
/// kernel, a moment later.
pub fn settle() {
    let mut idle_since = Instant::now();
    let idle = || {
        if Path::new(UDEV_QUEUE).exists() {
            idle_since = Instant::now();
        }
        (idle_since.elapsed() >= UDEV_QUIET).then_some(())
    };
    if wait_for("udev to settle", SETTLE_WAIT, idle).is_none() {
        log::warn!("udev did not settle");
    }
}

/// Asks systemd for a clean reboot, in which the kernel sends `TPM2_Shutdown`, and waits for it: this
/// process must not end before, or the boot would go on.
pub fn reboot() -> ! {
    // systemd starts reboot.target, irreversibly, on this signal (systemd(1), SIGRTMIN+5).
    let signal = libc::SIGRTMIN() + 5;
    loop {
        // SAFETY: kill(2) with plain integers.
        if unsafe { libc::kill(1, signal) } != 0 {
            log::error!("cannot ask for a reboot: {}", std::io::Error::last_os_error());
        }
        std::thread::sleep(Duration::from_secs(90));
    }
}

/// Holds the boot for ever, and says why. Only a power cycle leads out, and it tries once more.
pub fn hold(lines: &[String]) -> ! {
    forbid_shell();
    loop {
        for line in lines {
            log::error!("HOLD: {line}");
        }
        console::status("holding: a committed reset cannot go on");
        std::thread::sleep(REPEAT_EVERY);
    }
}
