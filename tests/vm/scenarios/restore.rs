//! Restores: one that comes up and is confirmed, one that does not and rolls itself back.

use crate::bench::{Bench, Boot};
use crate::failure::Outcome;
use crate::hunt::{self, Hunt};
use crate::request::stem;
use crate::scenarios::restored::{
    BACKUP, CHANGED, VOLUMES, add_keys, change, hard_reset, opens, staged, until,
};

/// Two boots. Backup; hostname, timezone, passphrase and a pool key changed; restore: in the
/// window the backup's values are back and both passphrases work; confirmed by the unit, which has few
/// rights, only the backup's does.
pub fn confirmed(bench: &mut Bench<'_>) -> Outcome {
    let old = bench.base()?.facts.clone();
    bench.power_on()?;
    bench.booted(Boot::Usual)?;
    bench.exits(&format!("restage backup {BACKUP}"), 0)?;
    bench.exits(&format!("restage inspect {BACKUP}"), 0)?;
    change(bench, &old.passphrase)?;
    bench.run("systemctl mask restage-confirm.service")?;
    bench.exits(&format!("restage restore {BACKUP} --force"), 0)?;
    let id = staged(bench)?;
    bench.start("systemctl reboot")?;
    bench.wait_reset(60)?;
    bench.line(&["restage: the restored state is in place: boot 1 of 3"], 150)?;
    let new = bench.booted(Boot::Usual)?;
    // Now: what is asked below has passphrases in it, and the guest agent logs that.
    hunt::inside(bench, &[&old.passphrase, CHANGED])?;
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
    bench.run("systemctl unmask restage-confirm.service")?;
    bench.run("systemctl start --no-block restage-confirm.service")?;
    until(bench, "the unit confirms", &format!("test ! -e /var/lib/restage/{}.JNL", stem(&id)))?;
    let state = "systemctl show -P SubState restage-confirm.service";
    until(bench, "the unit has ended", &format!("{state} | grep -qx dead"))?;
    let ended =
        "systemctl show -P Result -P ExecMainCode -P ExecMainStatus restage-confirm.service";
    let ended = bench.run(ended)?;
    bench.equal(
        "the unit",
        ended.split_whitespace().collect::<Vec<_>>(),
        vec!["success", "1", "0"],
    )?;
    for (name, label) in VOLUMES {
        let (works, gone) = (opens(bench, label, &old.passphrase)?, opens(bench, label, CHANGED)?);
        bench.check(&format!("the backup's passphrase opens {name}"), works)?;
        bench.check(&format!("the changed one no longer opens {name}"), !gone)?;
    }
    let said = bench.exits("restage superseded", 0)?.out;
    bench.tells("kept keys", &said, &["zpool.local.key"])?;

    // Every key that has been in this machine: on its disk there is ciphertext only.
    let mut hunt = Hunt::default();
    add_keys(&mut hunt, &old)?;
    hunt.add("the changed passphrase", CHANGED.as_bytes())?;
    bench.power_off()?;
    hunt::outside(bench, &hunt, &[])
}

/// Two boots. The state of a backup that was made a moment ago comes up, and the health check
/// confirms it without being told to.
pub fn healthy(bench: &mut Bench<'_>) -> Outcome {
    bench.power_on()?;
    bench.booted(Boot::Usual)?;
    bench.exits(&format!("restage backup {BACKUP}"), 0)?;
    bench.exits(&format!("restage restore {BACKUP} --force --skip encryption-recovery-keys"), 0)?;
    let id = staged(bench)?;
    bench.start("systemctl reboot")?;
    bench.wait_reset(60)?;
    bench.line(&["restage: the restored state is in place: boot 1 of 3"], 150)?;
    bench.booted(Boot::Usual)?;
    // The journal goes last, after the report.
    let journal = format!("/var/lib/restage/{}.JNL", stem(&id));
    bench.exits(&format!("test -e {journal}"), 0)?;
    until(bench, "the health check confirms", &format!("test ! -e {journal}"))?;
    bench.exits("test -e /var/lib/.incus-os.restage", 1)?;
    let status = bench.status()?;
    bench.equal("outcome", status.report(&id)?.outcome(), "done")?;
    bench.power_off()
}

/// Five boots. A backup with which the OS's daemon fails, although the boot succeeds: three boots, two
/// of them ended by a reset as a watchdog does it, and the fourth rolls back by itself and says so.
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
    bench.start("systemctl reboot")?;
    bench.wait_reset(60)?;
    for boot in 1..=3 {
        let line = format!("restage: the restored state is in place: boot {boot} of 3");
        bench.line(&[&line], 150)?;
        if boot > 1 {
            hard_reset(bench)?;
            continue;
        }
        let facts = bench.booted(Boot::Usual)?;
        let failed = facts.failed_units.contains("restage-os-daemon.service");
        bench.check("the daemon fails with the restored state", failed)?;
        let said = bench.exits("restage status", 0)?.out;
        bench.tells("status", &said, &["not confirmed", "boot 1 of 3"])?;
        bench.run("umask 077; echo window >/var/lib/incus-os/zpool.window.key; sync")?;
        hard_reset(bench)?;
    }
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
