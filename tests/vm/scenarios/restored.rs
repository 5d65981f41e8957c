//! What the scenarios of restores share.

use crate::bench::{Bench, Boot};
use crate::failure::{Failure, Outcome};
use crate::guest::Facts;
use crate::hunt::Hunt;
use crate::wire::{from_base64, to_base64};
use serde_json::json;
use std::time::{Duration, Instant};

/// Where a backup lies in the guest.
pub const BACKUP: &str = "/var/tmp/backup.tar.gz";
/// What a person has changed the passphrase to.
pub const CHANGED: &str = "changed-passphrase-0123";

/// The device of a volume, in a shell of the guest.
pub const DEVICE: &str = "/dev/disk/by-partlabel/";
/// The volumes with recovery passphrases, and their partitions.
pub const VOLUMES: [(&str, &str); 2] = [("root", "root-x86-64"), ("swap", "swap")];
/// Slots of a volume: the TPM's, the machine's own key, the passphrase.
pub const SLOTS: &str = "3";
/// In the window the backup's passphrase has one as well.
pub const SLOTS_IN_WINDOW: &str = "4";
/// How every line about the work on a restore begins.
const WORK: [&str; 2] = ["restage: checking and extracting", "restage: step "];

/// The keys of a system, to be looked for.
pub fn add_keys(hunt: &mut Hunt, facts: &Facts) -> Outcome {
    hunt.add("the passphrase", facts.passphrase.as_bytes())?;
    hunt.add("the machine key of root", &from_base64(&facts.key_root)?)?;
    hunt.add("the machine key of swap", &from_base64(&facts.key_swap)?)?;
    hunt.add("the key of the pool", &from_base64(&facts.key_pool)?)
}

/// The id of the staged restore.
pub fn staged(bench: &mut Bench<'_>) -> Outcome<String> {
    let said = bench.run("restage status --json | jq -r '.restores.staged[0].id'")?;
    bench.check("a restore is staged", said.trim().len() == 32)?;
    Ok(said.trim().to_owned())
}

/// What a person and the OS change between backup and restore.
pub fn change(bench: &mut Bench<'_>, passphrase: &str) -> Outcome {
    bench.run(&format!(
        "cd /var/lib/incus-os && umask 077 && printf %s {CHANGED} >/run/new && \
         printf %s '{passphrase}' >/run/old && echo mine >zpool.mine.key && \
         head -c 32 /dev/urandom >zpool.local.key && \
         sed -i -e 's/DNS.Hostname: .*/DNS.Hostname: changed/' -e 's/Time.Timezone: .*/Time.Timezone: UTC/' \
         -e 's/Keys\\[0\\]: .*/Keys[0]: {CHANGED}/' state.txt"
    ))?;
    for (name, label) in VOLUMES {
        bench.run(&format!(
            "cryptsetup luksAddKey --batch-mode --key-file /var/lib/incus-os/recovery.{name}.key \
             --pbkdf pbkdf2 --pbkdf-force-iterations 1000 {DEVICE}{label} /run/new && \
             cryptsetup luksRemoveKey --batch-mode {DEVICE}{label} /run/old"
        ))?;
        let (works, gone) = (opens(bench, label, CHANGED)?, opens(bench, label, passphrase)?);
        bench.check(&format!("{name} has another passphrase"), works && !gone)?;
    }
    bench.run("rm /run/new /run/old; sync").map(drop)
}

/// Whether a passphrase opens a volume; not whether the TPM does.
pub fn opens(bench: &mut Bench<'_>, label: &str, passphrase: &str) -> Outcome<bool> {
    let ran = bench.sh(&format!(
        "printf %s '{passphrase}' | cryptsetup open --test-passphrase --disable-external-tokens \
         --key-file - {DEVICE}{label}"
    ))?;
    match ran.code {
        0 => Ok(true),
        // No permission: no key slot opens with it.
        2 => Ok(false),
        _ => Err(Failure::new(format!("cryptsetup open {label}: {}", ran.summary()))),
    }
}

/// Waits for a condition in the guest: longer than the minute for which the health check must be
/// active, which is a minute on every machine.
pub fn until(bench: &mut Bench<'_>, what: &str, condition: &str) -> Outcome {
    let end = Instant::now() + bench.lab.patience(120);
    while bench.sh(condition)?.code != 0 {
        if Instant::now() > end {
            return bench.check(what, false);
        }
        std::thread::sleep(Duration::from_secs(1));
    }
    bench.check(what, true)
}

/// Puts a file into the guest, for root only.
pub fn put(bench: &mut Bench<'_>, path: &str, bytes: &[u8]) -> Outcome {
    let text = to_base64(bytes);
    bench.run(&format!("umask 077; base64 -d >{path} <<E\n{text}\nE\nsync")).map(drop)
}

/// The restored state is handed over to, for the first time of three.
pub fn window(bench: &mut Bench<'_>) -> Outcome<Facts> {
    bench.start("systemctl reboot")?;
    bench.wait_reset(60)?;
    bench.line(&["restage: the restored state is in place: boot 1 of 3"], 200)?;
    bench.booted(Boot::Usual)
}

/// What a watchdog does.
pub fn hard_reset(bench: &mut Bench<'_>) -> Outcome {
    let vm = bench.vm()?;
    vm.qmp.forget_events()?;
    vm.qmp.call("system_reset", json!({}))?;
    bench.wait_reset(60)
}

/// This passphrase opens both volumes, or neither.
pub fn both(bench: &mut Bench<'_>, passphrase: &str, open: bool) -> Outcome {
    for (name, label) in VOLUMES {
        let does = if open { "opens" } else { "does not open" };
        let is_so = opens(bench, label, passphrase)? == open;
        bench.check(&format!("{passphrase} {does} {name}"), is_so)?;
    }
    Ok(())
}

/// So many key slots has each volume.
pub fn slots(bench: &mut Bench<'_>, wanted: &str) -> Outcome {
    for (name, label) in VOLUMES {
        let count = bench.run(&format!(
            "cryptsetup luksDump --dump-json-metadata {DEVICE}{label} | jq '.keyslots | length'"
        ))?;
        bench.equal(&format!("key slots of {name}"), count.trim(), wanted)?;
    }
    Ok(())
}

/// The first work of this boot is this line again: there the boot before was cut.
pub fn goes_on_at(bench: &mut Bench<'_>, place: &str) -> Outcome {
    bench.line(&WORK, 200)?;
    let console = bench.console()?;
    let first = console.lines().find(|line| WORK.iter().any(|work| line.contains(work)));
    bench.tells("where the boot goes on", first.unwrap_or_default(), &[place])
}

/// In the window the old state, and nothing else, lies beside the restored one.
pub fn one_sibling(bench: &mut Bench<'_>) -> Outcome {
    let beside = bench.run("ls -A /var/lib | grep restage | paste -sd' '")?;
    bench.equal("what is beside the state", beside.trim(), ".incus-os.restage restage")
}

/// Of a restore that is over nothing is left but its report, its log and kept keys.
pub fn nothing_left(bench: &mut Bench<'_>) -> Outcome {
    let beside = bench.run("ls -A /var/lib | grep restage")?;
    bench.equal("what is beside the state", beside.trim(), "restage")?;
    let left = bench.run("ls /var/lib/restage | grep -Ev '[.](RPT|LOG)$|^superseded$' || true")?;
    bench.equal("what is left in the store", left.trim(), "")?;
    let flags = bench.run("ls /boot/restage | grep FLG || true")?;
    bench.equal("flags on the ESP", flags.trim(), "")
}
