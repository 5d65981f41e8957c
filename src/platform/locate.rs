//! Which disk and which partition: found by the ESP's unique GUID in the partition tables
//! themselves, never by "the first vfat", and mounted where nobody else sees it.
//! Side: both. Reads disks; mounts.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{FsPickFlags, MountFlags, MountPropagationFlags, UnmountFlags};
use uuid::Uuid;

use super::disk::OpenDisk;
use crate::apply::table;
use crate::format::gpt::{Copy, Entry, Table};
use crate::profile::ESP_TYPE;

/// Where the ESP is mounted when nobody else has mounted it.
const OWN_MOUNT: &str = "/run/restage/esp";
/// A file whose clusters a power cut has unlinked must not make the whole ESP read-only, as it would
/// without `errors=continue`: it could not even be removed.
const MOUNT_OPTIONS: &CStr = c"umask=0077,shortname=mixed,errors=continue";
const BLOCK: &str = "/sys/class/block";

/// An ESP that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// The whole disk's node.
    pub disk: PathBuf,
    /// The ESP's node; none while the kernel or udev has not made it.
    pub partition: Option<PathBuf>,
}

/// The disks whose partition table has an ESP with this GUID. Several are clones; the legs of one
/// multipath map count as the map.
pub fn find(guid: Uuid) -> io::Result<Vec<Located>> {
    find_where(|entry| entry.guid == guid)
}

/// The first ESP of every disk.
pub fn find_any() -> io::Result<Vec<Located>> {
    find_where(|_| true)
}

fn find_where(wanted: impl Fn(&Entry) -> bool) -> io::Result<Vec<Located>> {
    let mut found = Vec::new();
    for name in block_devices()? {
        let sys = Path::new(BLOCK).join(&name);
        if sys.join("partition").exists() || !may_be_a_disk(&sys, &name) || is_multipath_leg(&sys) {
            continue;
        }
        let node = node(&name);
        // A drive without a medium, or one that goes away while we look.
        let Ok(disk) = OpenDisk::open(&node) else { continue };
        let Ok(tables) = table::read(&disk) else { continue };
        let is_esp = |entry: &&Entry| entry.type_guid == ESP_TYPE && wanted(entry);
        let entry = [Copy::Primary, Copy::Backup]
            .iter()
            .filter_map(|copy| tables.get(*copy))
            .find_map(|table| table.entries().iter().find(is_esp));
        if let Some(entry) = entry {
            let partition = partition_of(&sys, &name, entry.number)?;
            found.push(Located { disk: node, partition });
        }
    }
    Ok(found)
}

fn block_devices() -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(BLOCK)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// The node of a block device, by its name in sysfs.
fn node(name: &str) -> PathBuf {
    Path::new("/dev").join(name.replace('!', "/"))
}

/// Device-mapper volumes are made of disks; only a multipath map is one itself.
fn may_be_a_disk(sys: &Path, name: &str) -> bool {
    let unlike = ["ram", "zram", "md", "sr", "fd"];
    if unlike.iter().any(|prefix| name.starts_with(prefix)) {
        return false;
    }
    !name.starts_with("dm-") || dm_uuid(sys).is_some_and(|uuid| uuid.starts_with("mpath-"))
}

fn dm_uuid(sys: &Path) -> Option<String> {
    Some(fs::read_to_string(sys.join("dm/uuid")).ok()?.trim().to_owned())
}

fn is_multipath_leg(sys: &Path) -> bool {
    let Ok(holders) = fs::read_dir(sys.join("holders")) else { return false };
    holders.flatten().any(|holder| {
        dm_uuid(&Path::new(BLOCK).join(holder.file_name())).is_some_and(|u| u.starts_with("mpath-"))
    })
}

/// The node of a partition: a child in sysfs, or, of a multipath map, another map.
fn partition_of(sys: &Path, name: &str, number: u32) -> io::Result<Option<PathBuf>> {
    let map = dm_uuid(sys).map(|uuid| format!("part{number}-{uuid}"));
    for candidate in block_devices()? {
        let child = sys.join(&candidate);
        let is_it = match &map {
            Some(map) => dm_uuid(&Path::new(BLOCK).join(&candidate)).as_ref() == Some(map),
            None => fs::read_to_string(child.join("partition"))
                .is_ok_and(|text| text.trim().parse() == Ok(number)),
        };
        if is_it && candidate != name {
            let node = node(&candidate);
            return Ok(node.exists().then_some(node));
        }
    }
    Ok(None)
}

/// The node of the partition of this type and label on a disk; none when there is none, or several.
pub fn partition_named(disk: &Path, type_guid: Uuid, label: &str) -> io::Result<Option<PathBuf>> {
    let tables = table::read(&OpenDisk::open(disk)?).map_err(io::Error::other)?;
    let table = [Copy::Primary, Copy::Backup].iter().find_map(|copy| tables.get(*copy));
    let is_it = |entry: &&Entry| entry.type_guid == type_guid && entry.label == label;
    let entries = table.map(Table::entries).unwrap_or_default();
    let found: Vec<&Entry> = entries.iter().filter(is_it).collect();
    let ([entry], Some(name)) = (found.as_slice(), disk.file_name().and_then(|n| n.to_str()))
    else {
        return Ok(None);
    };
    partition_of(&Path::new(BLOCK).join(name), name, entry.number)
}

/// The whole disk that a partition, or a volume on one, lies on.
pub fn disk_below(device: &Path) -> io::Result<PathBuf> {
    let device = fs::metadata(device)?.rdev();
    let number = format!("{}:{}", libc::major(device), libc::minor(device));
    let mut sys = fs::canonicalize(Path::new("/sys/dev/block").join(number))?;
    loop {
        let name = sys.file_name().map(|name| name.to_string_lossy().into_owned());
        let name = name.ok_or_else(|| io::Error::other("a strange device"))?;
        if sys.join("partition").exists() {
            sys = sys.parent().ok_or_else(|| io::Error::other("a strange device"))?.to_owned();
        } else if name.starts_with("dm-") && !may_be_a_disk(&sys, &name) {
            let mut below = Vec::new();
            for one in fs::read_dir(sys.join("slaves"))? {
                below.push(one?.path());
            }
            let [one] = below.as_slice() else {
                return Err(io::Error::other(format!("{name} lies on {} devices", below.len())));
            };
            sys = fs::canonicalize(one)?;
        } else {
            return Ok(node(&name));
        }
    }
}

/// Other volumes with keys sealed to a TPM: every block device but `disk` and its partitions.
pub fn tpm_volumes_elsewhere(disk: &Path) -> io::Result<Vec<String>> {
    let own = disk.file_name().map(|name| name.to_string_lossy().into_owned());
    let mut volumes = Vec::new();
    for name in block_devices()? {
        let sys = fs::canonicalize(Path::new(BLOCK).join(&name))?;
        let parent =
            sys.parent().and_then(|p| p.file_name()).map(|n| n.to_string_lossy().into_owned());
        if own.as_ref() == Some(&name)
            || (own.is_some() && parent == own)
            || name.starts_with("dm-")
        {
            continue;
        }
        let Ok(device) = OpenDisk::open(&node(&name)) else { continue };
        if let Ok(Ok(header)) = crate::apply::probe::luks_on_device(&device)
            && header.tpm2_tokens > 0
        {
            volumes.push(format!("{} (LUKS2 volume {})", node(&name).display(), header.uuid));
        }
    }
    Ok(volumes)
}

/// A mounted ESP.
pub struct Mounted {
    /// Where.
    pub path: PathBuf,
    /// Mounted by us, read-only, and to be unmounted by us.
    own: bool,
}

/// Where the ESP is mounted already; else it is mounted read-only in a mount namespace of our own.
pub fn mount(partition: &Path) -> io::Result<Mounted> {
    let device = fs::metadata(partition)?.rdev();
    if let Some(path) = mounted_at(&fs::read_to_string("/proc/self/mountinfo")?, device) {
        return Ok(Mounted { path, own: false });
    }
    let at = Path::new(OWN_MOUNT);
    own_namespace(at)?;
    let mount =
        |read_only| rustix::mount::mount(partition, at, c"vfat", flags(read_only), MOUNT_OPTIONS);
    match mount(true) {
        // Mounted for writing in another namespace: one file system cannot be both.
        Err(Errno::BUSY) => mount(false)?,
        result => result?,
    }
    Ok(Mounted { path: at.to_owned(), own: true })
}

/// Mounts the state file system for writing, in a mount namespace of our own.
pub fn mount_state(device: &Path, filesystem: &str, at: &Path) -> io::Result<Mounted> {
    own_namespace(at)?;
    rustix::mount::mount(device, at, filesystem, flags(false), None)?;
    Ok(Mounted { path: at.to_owned(), own: true })
}

/// What is mounted from here on, below `at`, nobody else sees.
fn own_namespace(at: &Path) -> io::Result<()> {
    // SAFETY: only the file-system view of this single-threaded process is unshared; the file
    // descriptor table stays whole.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS)? };
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private)?;
    fs::create_dir_all(at)
}

fn flags(read_only: bool) -> MountFlags {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    if read_only { flags | MountFlags::RDONLY } else { flags }
}

impl Mounted {
    /// Makes it writable, when there is something to write.
    ///
    /// A mount of others stays as it is. But where its file system has gone read-only by itself, as FAT
    /// does when it meets an entry that a power cut has left broken, it is made writable again.
    pub fn make_writable(&self) -> io::Result<()> {
        if self.own {
            return Ok(rustix::mount::mount_remount(&self.path, flags(false), MOUNT_OPTIONS)?);
        }
        if has_gone_read_only(&fs::read_to_string("/proc/self/mountinfo")?, &self.path) {
            log::warn!("{} has gone read-only after an error; writable again", self.path.display());
            let picked = rustix::mount::fspick(CWD, &self.path, FsPickFlags::FSPICK_CLOEXEC)?;
            rustix::mount::fsconfig_set_flag(picked.as_fd(), "rw")?;
            rustix::mount::fsconfig_reconfigure(picked.as_fd())?;
        }
        Ok(())
    }

    /// Unmounts what was mounted here; everything durable is durable without it.
    pub fn unmount(self) {
        if self.own
            && let Err(error) = rustix::mount::unmount(&self.path, UnmountFlags::DETACH)
        {
            log::warn!("cannot unmount {}: {error}", self.path.display());
        }
    }
}

/// The first mount of the whole file system on this device.
#[must_use]
pub fn mounted_at(mountinfo: &str, device: u64) -> Option<PathBuf> {
    let wanted = format!("{}:{}", libc::major(device), libc::minor(device));
    mountinfo.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(2);
        let (device, root, at) = (fields.next()?, fields.next()?, fields.next()?);
        (device == wanted && root == "/").then(|| PathBuf::from(unescape(at)))
    })
}

/// Whether a mount that is for writing has a file system that is not, and nobody has asked for that at
/// another mount of it.
#[must_use]
pub fn has_gone_read_only(mountinfo: &str, path: &Path) -> bool {
    let is_read_only = |options: &str| options.split(',').any(|option| option == "ro");
    // The last mount at a place is the one that is seen.
    let line = mountinfo
        .lines()
        .rev()
        .find(|line| line.split(' ').nth(4).is_some_and(|at| Path::new(&unescape(at)) == path));
    let Some(line) = line else { return false };
    let device = line.split(' ').nth(2);
    let mut mounts = mountinfo.lines().filter(|line| line.split(' ').nth(2) == device);
    line.rsplit(' ').next().is_some_and(is_read_only)
        && !mounts.any(|line| line.split(' ').nth(5).is_some_and(is_read_only))
}

/// Blanks are octal in mountinfo.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_that_went_read_only_is_not_one_that_was_mounted_so() {
        let line = |of_mount: &str, of_file_system: &str| {
            format!(
                "21 1 8:1 / /boot\\040x {of_mount},relatime shared:2 - vfat /dev/sda1 {of_file_system},fmask=0077\n"
            )
        };
        let gone = |text: &str| has_gone_read_only(text, Path::new("/boot x"));
        assert!(gone(&line("rw", "ro")));
        assert!(!gone(&line("ro", "ro")));
        assert!(!gone(&line("rw", "rw")));
        assert!(!gone(&[line("rw", "ro"), line("ro", "ro")].concat()));
        assert!(!has_gone_read_only(&line("rw", "ro"), Path::new("/boot")));
    }

    #[test]
    fn the_mount_of_the_device_is_found() {
        let info = "22 1 254:2 / / rw - ext4 /dev/vda2 rw\n\
                    30 22 254:1 /EFI /bind rw - vfat /dev/vda1 rw\n\
                    31 22 254:1 / /boot\\040x rw,nosuid shared:1 - vfat /dev/vda1 rw\n";
        let device = libc::makedev(254, 1);
        assert_eq!(mounted_at(info, device), Some(PathBuf::from("/boot x")));
        assert_eq!(mounted_at(info, libc::makedev(254, 9)), None);
    }
}
