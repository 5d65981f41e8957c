//! Restores: one that comes up and is confirmed, one that does not and rolls itself back.

use crate::bench::{Bench, Boot};
use crate::failure::{Failure, Outcome};
use std::time::{Duration, Instant};

const BACKUP: &str = "/var/tmp/backup.tar.gz";
const CHANGED: &str = "changed-passphrase-0123";

/// The device of a volume, in a shell of the guest.
const DEVICE: &str = "/dev/disk/by-partlabel/";
const VOLUMES: [(&str, &str); 2] = [("root", "root-x86-64"), ("swap", "swap")];

/// Three boots. Backup; hostname, timezone, passphrase and a pool key changed; restore: in the
/// window the backup's values are back and both passphrases work; confirmed by hand, only the
/// backup's does. The same again with a backup made now is confirmed by the health check.
pub fn confirmed(bench: &mut Bench<'_>) -> Outcome {
    let old = bench.base()?.facts.clone();
    bench.power_on()?;
    bench.booted(Boot::Usual)?;
    bench.exits(&format!("restage backup {BACKUP}"), 0)?;
    bench.exits(&format!("restage inspect {BACKUP}"), 0)?;
    change(bench, &old.passphrase)?;
    bench.run("systemctl mask restage-confirm.service")?;
    bench.exits(&format!("restage restore {BACKUP} --force"), 0)?;
    bench.start("systemctl reboot")?;
    bench.wait_reset(60)?;
    bench.line(&["restage: the restored state is in place: boot 1 of 3"], 150)?;
    let new = bench.booted(Boot::Usual)?;
    bench.equal("hostname", &new.hostname, &old.hostname)?;
    bench.equal("timezone", &new.timezone, &old.timezone)?;
    bench.equal("passphrase in the state", &new.passphrase, &old.passphrase)?;
    bench.equal("key of the pool", &new.key_pool, &old.key_pool)?;
    bench.equal("machine key of root", &new.key_root, &old.key_root)?;
    bench.equal("machine key of swap", &new.key_swap, &old.key_swap)?;
    bench.equal("failed units", new.failed_units.as_str(), "")?;
    bench.run("test \"$(cat /var/lib/incus-os/zpool.mine.key)\" = mine")?;
    for (name, label) in VOLUMES {
        for passphrase in [&old.passphrase, CHANGED] {
            let works = opens(bench, label, passphrase)?;
            bench.check(&format!("in the window {passphrase} opens {name}"), works)?;
        }
    }
    let said = bench.exits("restage status", 0)?.out;
    bench.tells("status", &said, &["not confirmed", "boot 1 of 3"])?;
    bench.exits("restage factory-reset --force", 3)?;
    bench.exits("restage confirm", 0)?;
    for (name, label) in VOLUMES {
        let (works, gone) = (opens(bench, label, &old.passphrase)?, opens(bench, label, CHANGED)?);
        bench.check(&format!("the backup's passphrase opens {name}"), works)?;
        bench.check(&format!("the changed one no longer opens {name}"), !gone)?;
    }
    let said = bench.exits("restage superseded", 0)?.out;
    bench.tells("kept keys", &said, &["zpool.local.key"])?;

    bench.run("systemctl unmask restage-confirm.service")?;
    bench.exits(&format!("restage backup --force {BACKUP}"), 0)?;
    bench.exits(&format!("restage restore {BACKUP} --force --skip encryption-recovery-keys"), 0)?;
    let id = staged(bench)?;
    bench.start("systemctl reboot")?;
    bench.wait_reset(60)?;
    bench.line(&["restage: the restored state is in place: boot 1 of 3"], 150)?;
    bench.booted(Boot::Usual)?;
    until(bench, "the health check confirms", "test ! -e /var/lib/.incus-os.restage")?;
    let status = bench.status()?;
    bench.equal("outcome", status.report(&id)?.outcome(), "done")
}

/// Five boots. A backup with which the OS's daemon fails, although the boot succeeds: three boots,
/// and the fourth rolls back by itself and says so.
pub fn rolled_back(bench: &mut Bench<'_>) -> Outcome {
    let old = bench.base()?.facts.clone();
    bench.power_on()?;
    bench.booted(Boot::Usual)?;
    bench.exits(&format!("restage backup {BACKUP}"), 0)?;
    bench.run(
        "mkdir /var/tmp/b && cd /var/tmp/b && tar -xzf ../backup.tar.gz && \
         sed -i 's/^\\(System.Network.Config.Time.Timezone\\): .*/\\1: No\\/Where/' state.txt && \
         grep -q No/Where state.txt && tar -czf ../bad.tar.gz *",
    )?;
    bench.exits("restage restore /var/tmp/bad.tar.gz --force", 0)?;
    let id = staged(bench)?;
    for boot in 1..=3 {
        bench.start("systemctl reboot")?;
        bench.wait_reset(60)?;
        let line = format!("restage: the restored state is in place: boot {boot} of 3");
        bench.line(&[&line], 150)?;
        let facts = bench.booted(Boot::Usual)?;
        let failed = facts.failed_units.contains("restage-os-daemon.service");
        bench.check("the daemon fails with the restored state", failed)?;
        let said = bench.exits("restage status", 0)?.out;
        bench.tells("status", &said, &["not confirmed", &format!("boot {boot} of 3")])?;
        if boot == 2 {
            bench.run("umask 077; echo window >/var/lib/incus-os/zpool.window.key; sync")?;
        }
    }
    bench.start("systemctl reboot")?;
    bench.wait_reset(60)?;
    bench.line(&["restage: the restore is rolled back"], 150)?;
    let back = bench.booted(Boot::Usual)?;
    bench.equal("failed units", back.failed_units.as_str(), "")?;
    bench.equal("timezone", &back.timezone, &old.timezone)?;
    bench.equal("passphrase", &back.passphrase, &old.passphrase)?;
    bench.equal("key of the pool", &back.key_pool, &old.key_pool)?;
    bench.run("test \"$(cat /var/lib/incus-os/zpool.window.key)\" = window")?;
    for (name, label) in VOLUMES {
        let works = opens(bench, label, &old.passphrase)?;
        bench.check(&format!("the passphrase opens {name}"), works)?;
    }
    let status = bench.status()?;
    let report = status.report(&id)?;
    bench.equal("outcome", report.outcome(), "rolled-back")?;
    bench.tells("the reason", report.reason(), &["not confirmed in 3 boots"])
}

/// The id of the staged restore.
fn staged(bench: &mut Bench<'_>) -> Outcome<String> {
    let said = bench.run("restage status --json | jq -r '.restores.staged[0].id'")?;
    bench.check("a restore is staged", said.trim().len() == 32)?;
    Ok(said.trim().to_owned())
}

/// What a person and the OS change between backup and restore.
fn change(bench: &mut Bench<'_>, passphrase: &str) -> Outcome {
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
fn opens(bench: &mut Bench<'_>, label: &str, passphrase: &str) -> Outcome<bool> {
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

/// Waits for a condition in the guest.
fn until(bench: &mut Bench<'_>, what: &str, condition: &str) -> Outcome {
    let end = Instant::now() + bench.lab.patience(60);
    while bench.sh(condition)?.code != 0 {
        if Instant::now() > end {
            return bench.check(what, false);
        }
        std::thread::sleep(Duration::from_secs(1));
    }
    bench.check(what, true)
}
