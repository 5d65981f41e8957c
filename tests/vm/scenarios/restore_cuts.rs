//! Power cuts, kills and hangs: in the restore, in its window, in the confirmation, in the roll-back.

use crate::bench::{Bench, Boot};
use crate::failure::Outcome;
use crate::machine::SYSTEM_DISK;
use crate::scenarios::restored::{
    BACKUP, CHANGED, SLOTS, SLOTS_IN_WINDOW, both, change, goes_on_at, hard_reset, nothing_left,
    one_sibling, slots, staged, until, window,
};
use std::time::Duration;

/// Bytes a second at which a step takes long enough to be cut; the exchange is but one rename.
const SLOW: u64 = 300 * 1024;
const SLOWEST: u64 = 64 * 1024;
/// What the console says at the five places, in the order of the restore; the fourth is between the
/// enrolment in root and the exchange.
const PLACES: [&str; 5] = [
    "restage: checking and extracting",
    "restage: step 2/5 supersede",
    "restage: step 3/5 enroll root",
    "restage: step 4/5 enroll swap",
    "restage: step 5/5 exchange",
];

/// A changed system with a restore of its backup staged; its id.
fn stage(bench: &mut Bench<'_>, passphrase: &str) -> Outcome<String> {
    bench.power_on()?;
    bench.booted(Boot::Usual)?;
    bench.run("systemctl mask restage-confirm.service")?;
    bench.exits(&format!("restage backup {BACKUP}"), 0)?;
    change(bench, passphrase)?;
    bench.exits(&format!("restage restore {BACKUP} --force"), 0)?;
    staged(bench)
}

/// Seven boots. QEMU is killed at five places in the restore, and each boot goes on where the one
/// before was cut; it ends like one that nobody interrupted, and no key slot leaks.
pub fn restore(bench: &mut Bench<'_>) -> Outcome {
    let old = bench.base()?.facts.clone();
    let id = stage(bench, &old.passphrase)?;
    bench.power_off()?;
    for (index, place) in PLACES.iter().enumerate() {
        let is_last = index + 1 == PLACES.len();
        bench.machine.write_limit = if is_last { SLOWEST } else { SLOW };
        bench.power_on()?;
        if let Some(cut) = index.checked_sub(1).and_then(|before| PLACES.get(before)) {
            goes_on_at(bench, cut)?;
        }
        bench.line(&[place], 200)?;
        if place.contains("enroll") {
            // Into the step, not before it: it takes seconds.
            std::thread::sleep(Duration::from_millis(300 * index as u64));
        }
        bench.pull_plug();
        let over = bench.console_ever_said("restage: the restored state is in place")?;
        bench.check(&format!("cut at `{place}`"), !over)?;
    }
    bench.machine.write_limit = 0;
    bench.power_on()?;
    goes_on_at(bench, PLACES[4])?;
    bench.line(&["restage: the restored state is in place: boot 1 of 3"], 200)?;
    let now = bench.booted(Boot::Usual)?;
    bench.equal("hostname", &now.hostname, &old.hostname)?;
    bench.equal("passphrase in the state", &now.passphrase, &old.passphrase)?;
    bench.equal("key of the pool", &now.key_pool, &old.key_pool)?;
    bench.equal("machine key of root", &now.key_root, &old.key_root)?;
    bench.run("test \"$(cat /var/lib/incus-os/zpool.mine.key)\" = mine")?;
    both(bench, &old.passphrase, true)?;
    both(bench, CHANGED, true)?;
    slots(bench, SLOTS_IN_WINDOW)?;
    one_sibling(bench)?;
    bench.exits("restage confirm", 0)?;
    both(bench, &old.passphrase, true)?;
    both(bench, CHANGED, false)?;
    slots(bench, SLOTS)?;
    nothing_left(bench)?;
    let status = bench.status()?;
    bench.equal("outcome", status.report(&id)?.outcome(), "done")
}

/// Three boots. The confirmation is killed once it is decided, and the next one by the plug: the boot
/// after that finishes it.
pub fn confirm(bench: &mut Bench<'_>) -> Outcome {
    let old = bench.base()?.facts.clone();
    let id = stage(bench, &old.passphrase)?;
    window(bench)?;
    // Of a restore that nobody interrupts: what those that are cut are held to.
    slots(bench, SLOTS_IN_WINDOW)?;
    one_sibling(bench)?;
    bench.run("umask 077; echo window >/var/lib/incus-os/zpool.window.key; sync")?;
    let stem = crate::request::stem(&id);
    let killed = bench.run(&format!(
        "restage confirm >/dev/null 2>&1 & pid=$!; \
         until test -e /var/lib/restage/{stem}.C00; do kill -0 $pid || exit 1; done; \
         kill -KILL $pid; wait $pid; echo $?"
    ))?;
    bench.equal("the confirmation's end", killed.trim(), "137")?;
    let said = bench.exits("restage status", 0)?.out;
    bench.tells("status", &said, &["unfinished", "confirming"])?;
    bench.exits(&format!("restage restore {BACKUP} --force"), 3)?;

    bench.vm()?.qmp.limit_writes(SYSTEM_DISK, SLOW)?;
    bench.start("restage confirm")?;
    until(bench, "the first old passphrase goes", &format!("test -e /var/lib/restage/{stem}.S31"))?;
    bench.pull_plug();
    bench.power_on()?;
    goes_on_at(bench, "restage: step 3/4 remove old passphrases of swap")?;
    bench.line(&["restage: the restore is confirmed"], 200)?;
    let now = bench.booted(Boot::Usual)?;
    bench.equal("hostname", &now.hostname, &old.hostname)?;
    bench.equal("key of the pool", &now.key_pool, &old.key_pool)?;
    bench.run("test \"$(cat /var/lib/incus-os/zpool.window.key)\" = window")?;
    bench.run("test \"$(cat /var/lib/incus-os/zpool.mine.key)\" = mine")?;
    both(bench, &old.passphrase, true)?;
    both(bench, CHANGED, false)?;
    slots(bench, SLOTS)?;
    // The flag goes when somebody looks for it.
    bench.exits("restage confirm", 0)?;
    nothing_left(bench)?;
    let status = bench.status()?;
    bench.equal("outcome", status.report(&id)?.outcome(), "done")
}

/// Six boots. With the restored state the boot hangs, and the machine is reset, three times; in the
/// roll-back the plug is pulled, and the boot after that finishes it: what was changed since the backup
/// is there, its passphrase alone opens the volumes, and so is the key that was made in the window.
pub fn hang(bench: &mut Bench<'_>) -> Outcome {
    let old = bench.base()?.facts.clone();
    bench.power_on()?;
    bench.booted(Boot::Usual)?;
    bench.exits(&format!("restage backup {BACKUP}"), 0)?;
    bench.run(
        "mkdir /var/tmp/b && cd /var/tmp/b && tar -xzf ../backup.tar.gz && \
         echo 'System.Storage.Config.WaitFor: /dev/disk/by-label/nowhere' >>state.txt && \
         tar -czf ../hangs.tar.gz *",
    )?;
    change(bench, &old.passphrase)?;
    let changed_key = bench.run("base64 -w0 /var/lib/incus-os/zpool.local.key")?;
    bench.exits("restage restore /var/tmp/hangs.tar.gz --force", 0)?;
    let id = staged(bench)?;
    bench.start("systemctl reboot")?;
    bench.wait_reset(60)?;
    for boot in 1..=3 {
        let line = format!("restage: the restored state is in place: boot {boot} of 3");
        bench.line(&[&line], 200)?;
        bench.line(&["Starting restage-os-daemon.service"], 100)?;
        if boot == 1 {
            bench.never(&["Finished restage-os-daemon.service"], 20)?;
            bench.run("umask 077; echo window >/var/lib/incus-os/zpool.window.key; sync")?;
            let running = bench.sh("systemctl is-system-running")?.out;
            bench.equal("the boot", running.trim(), "starting")?;
            slots(bench, SLOTS_IN_WINDOW)?;
        }
        hard_reset(bench)?;
    }
    bench.vm()?.qmp.limit_writes(SYSTEM_DISK, SLOW)?;
    bench.line(&["restage: rolling back: it was not confirmed in 3 boots"], 200)?;
    bench.line(&["restage: step 3/5 remove new passphrases of root"], 100)?;
    bench.pull_plug();
    bench.power_on()?;
    goes_on_at(bench, "restage: step 3/5 remove new passphrases of root")?;
    bench.line(&["restage: the restore is rolled back"], 200)?;
    let back = bench.booted(Boot::Usual)?;
    bench.equal("failed units", back.failed_units.as_str(), "")?;
    bench.equal("hostname", back.hostname.as_str(), "changed")?;
    bench.equal("passphrase in the state", back.passphrase.as_str(), CHANGED)?;
    bench.equal("key of the pool", back.key_pool.as_str(), changed_key.trim())?;
    bench.exits("test \"$(cat /var/lib/incus-os/zpool.window.key)\" = window", 0)?;
    bench.exits("test \"$(cat /var/lib/incus-os/zpool.mine.key)\" = mine", 0)?;
    bench.exits("grep -q WaitFor /var/lib/incus-os/state.txt", 1)?;
    both(bench, CHANGED, true)?;
    both(bench, &old.passphrase, false)?;
    slots(bench, SLOTS)?;
    bench.exits("restage confirm", 0)?;
    nothing_left(bench)?;
    let status = bench.status()?;
    let report = status.report(&id)?;
    bench.equal("outcome", report.outcome(), "rolled-back")?;
    bench.tells("the reason", report.reason(), &["not confirmed in 3 boots"])
}
