//! The small machine: the image's own kernel and initrd, taken out of the UKI and
//! started by QEMU itself, without firmware, boot loader and systemd. A short script
//! is process 1, does what comes before restage, and runs it. Many times as fast
//! as a whole boot.

use crate::base::Base;
use crate::disk::Disk;
use crate::esp::Esp;
use crate::failure::{Doing, Failure, Outcome};
use crate::machine::Direct;
use crate::wire::from_base64;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

/// What the script says at its beginning and at its end.
pub const BEGINS: &str = "small: begins";
pub const REBOOTS: &str = "small: restage asks for a reboot";
pub const STATUS: &str = "small: restage ended with ";
pub const TOLD: &str = "small: all told";

/// The kernel's options are the image's, as far as they matter to a disk.
const COMMAND_LINE: &str = "console=ttyS0 gpt loglevel=4 mitigations=off panic=-1";

/// Process 1. `restage` asks it for a reboot as it asks systemd (a signal).
const INIT: &str = r#"#!/bin/bash
export PATH=/usr/sbin:/usr/bin:/sbin:/bin DM_DISABLE_UDEV=1
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t tmpfs run /run
modprobe --all virtio_blk virtio_rng vfat nls_cp437 nls_ascii nls_iso8859-1 dm-crypt xts
ln -s /proc/self/fd /dev/fd
echo "small: begins"
off() { systemctl reboot --force --force; sleep 600; }
trap 'echo "small: restage asks for a reboot"; off' RTMIN+5
run() {
    restage "$@" --profile /small/profile.json &
    wait $!
    echo "small: restage ended with $?"
}
node() {
    local entry
    for entry in /sys/class/block/*/uevent; do
        grep -qx "PARTNAME=$1" "$entry" && sed -n 's,^DEVNAME=,/dev/,p' "$entry"
    done
}
source /small/work
off
"#;

/// The reset unit, and nothing else.
pub const RESET: &str = "run initrd reset\n";

/// Root is unlocked as its machine key allows; both units; and what the state is
/// after them.
pub const RESTORE: &str = r#"
run initrd reset
cryptsetup open --disable-external-tokens --key-file /small/root.key "$(node root-x86-64)" root
test ! -e /run/restage/restore || run initrd restore
mkdir /state
mount -t ext4 -o ro /dev/mapper/root /state
(cd /state/var/lib/incus-os && sha256sum -- *) | while read -r sum name; do
    echo "small: state $name $sum"
done
echo "small: beside $(cd /state/var/lib && ls -d .*restage* restage*)"
echo "small: store $(cd /state/var/lib/restage && ls)"
umount /state
echo "small: all told"
"#;

/// Makes the small machine's files in `dir`, from the disk that the base booted.
pub fn make(base: &Base, work: &str, dir: &Path) -> Outcome<Direct> {
    let disk = base.open_disk()?;
    let made = of_disk(base, &disk, work, dir);
    disk.close()?;
    made
}

fn of_disk(base: &Base, disk: &Disk, work: &str, dir: &Path) -> Outcome<Direct> {
    let files = Esp::open(disk)?.all()?;
    let image = files
        .iter()
        .find_map(|(path, bytes)| path.to_lowercase().starts_with("efi/linux/").then_some(bytes));
    let image = image.doing("looking for the UKI on the ESP")?;
    let profile = profile(&disk.part("esp")?.guid)?;
    let key = from_base64(&base.facts.key_root)?;
    let release = section(image, ".osrel")?;
    let mut archive = Archive::default();
    archive.directory("small");
    archive.directory(".extra");
    archive.file("init", 0o755, INIT.as_bytes());
    archive.file("small/work", 0o644, work.as_bytes());
    archive.file("small/profile.json", 0o644, profile.to_string().as_bytes());
    archive.file("small/root.key", 0o600, &key);
    archive.file(".extra/os-release", 0o644, release);
    let mut initrd = section(image, ".initrd")?.to_vec();
    // The kernel unpacks what follows, from a multiple of four on, over what it has.
    initrd.resize(initrd.len().next_multiple_of(4), 0);
    initrd.extend(archive.end());

    fs::create_dir_all(dir).doing("making the small machine's directory")?;
    let direct = Direct {
        kernel: dir.join("kernel"),
        initrd: dir.join("initrd"),
        command_line: COMMAND_LINE.to_owned(),
    };
    fs::write(&direct.kernel, section(image, ".linux")?).doing("writing the kernel")?;
    fs::write(&direct.initrd, initrd).doing("writing the small initrd")?;
    Ok(direct)
}

/// The product's own profile, which names the ESP: there is no boot loader to do it.
fn profile(esp: &str) -> Outcome<Value> {
    let text = include_str!("../../src/profile/incusos.json");
    let mut profile: Value = serde_json::from_str(text).doing("reading the profile")?;
    *profile.pointer_mut("/esp/partition_guid").doing("the ESP in the profile")? = json!(esp);
    Ok(profile)
}

/// A section of a PE file: the UKI is one.
fn section<'a>(image: &'a [u8], wanted: &str) -> Outcome<&'a [u8]> {
    let number = |at: usize, length: usize| -> Outcome<usize> {
        let bytes = image.get(at..at + length).doing("reading the UKI")?;
        Ok(bytes.iter().rev().fold(0, |all, byte| all << 8 | usize::from(*byte)))
    };
    let header = number(0x3C, 4)?;
    let (count, optional) = (number(header + 6, 2)?, number(header + 20, 2)?);
    for index in 0..count {
        let at = header + 24 + optional + 40 * index;
        let name = image.get(at..at + 8).doing("reading the UKI")?;
        if name.strip_prefix(wanted.as_bytes()).is_some_and(|rest| rest.iter().all(|b| *b == 0)) {
            let (size, from) = (number(at + 8, 4)?, number(at + 20, 4)?);
            return image.get(from..from + size).doing(format!("the section {wanted}"));
        }
    }
    Err(Failure::new(format!("the UKI has no section {wanted}")))
}

/// A cpio archive, as the kernel unpacks it.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn directory(&mut self, name: &str) {
        self.entry(name, 0o040_755, &[]);
    }

    fn file(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entry(name, 0o100_000 | mode, content);
    }

    fn end(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let (size, name_size) = (content.len(), name.len() + 1);
        // Inode, mode, user, group, links, time, size, four device numbers, name, sum.
        let fields = format!("070701{:08x}{mode:08x}{:016x}{:08x}{:08x}", self.entries, 0, 1, 0);
        let rest = format!("{size:08x}{:032x}{name_size:08x}{:08x}{name}\0", 0, 0);
        for part in [(fields + &rest).as_bytes(), content] {
            self.bytes.extend(part);
            self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        }
    }
}
