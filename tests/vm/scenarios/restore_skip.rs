//! What of a backup can be left out.

use crate::bench::{Bench, Boot};
use crate::failure::Outcome;
use crate::scenarios::restored::{
    BACKUP, CHANGED, SLOTS, both, change, nothing_left, slots, window,
};

const ITEMS: [&str; 4] = [
    "encryption-recovery-keys",
    "local-data-encryption-key",
    "network-macs",
    "encryption-recovery-keys,local-data-encryption-key,network-macs",
];
const HOSTNAME: &str = "System.Network.Config.DNS.Hostname";
/// The hardware addresses, as the backup has them, and the names that they become.
const ADDRESSES: [(&str, &str, &str); 2] = [
    ("System.Network.Config.Bonds[0].Hwaddr", "10:66:6a:00:00:0b", "bond0"),
    ("System.Network.Config.Interfaces[0].Hwaddr", "10:66:6a:00:00:01", "enp0s3"),
];

/// Five boots. Everything is changed; each item is left out once, and then all of them: what it names
/// stays as it was changed, and everything else is the backup's.
pub fn each(bench: &mut Bench<'_>) -> Outcome {
    let old = bench.base()?.facts.clone();
    bench.power_on()?;
    bench.booted(Boot::Usual)?;
    bench.run("systemctl mask restage-confirm.service")?;
    bench.run(
        "cd /var/lib/incus-os && sed -i 's/Hwaddr: .*/Hwaddr: 10:66:6a:00:00:01/' state.txt && \
         printf 'System.Network.Config.Bonds[0].%s\\n' 'Hwaddr: 10:66:6a:00:00:0b' 'Name: bond0' \
         >>state.txt",
    )?;
    bench.exits(&format!("restage backup {BACKUP}"), 0)?;
    for (index, skip) in ITEMS.iter().enumerate() {
        // What the restore before has brought is changed again.
        let passphrase = value(bench, "System.Security.Config.EncryptionRecoveryKeys[0]")?;
        if passphrase == old.passphrase {
            change(bench, &old.passphrase)?;
        }
        bench.run(
            "cd /var/lib/incus-os && umask 077 && head -c 32 /dev/urandom >zpool.local.key && \
             sed -i -e 's/DNS.Hostname: .*/DNS.Hostname: changed/' \
             -e 's/Hwaddr: .*/Hwaddr: 10:66:6a:00:00:99/' state.txt && \
             test $(grep -c 00:99 state.txt) = 2",
        )?;
        let changed_key = bench.run("base64 -w0 /var/lib/incus-os/zpool.local.key")?;
        bench.exits(&format!("restage restore {BACKUP} --force --skip {skip}"), 0)?;
        let now = window(bench)?;
        bench.exits("restage confirm", 0)?;
        let hostname = value(bench, HOSTNAME)?;
        bench.equal(&format!("{skip}: hostname"), &hostname, &old.hostname)?;
        let (works, gone) = if skip.contains("recovery-keys") {
            (CHANGED, old.passphrase.as_str())
        } else {
            (old.passphrase.as_str(), CHANGED)
        };
        both(bench, works, true)?;
        both(bench, gone, false)?;
        bench.equal(&format!("{skip}: passphrase in the state"), now.passphrase.as_str(), works)?;
        let local = if skip.contains("local-data") { changed_key.trim() } else { &old.key_pool };
        let key = bench.run("base64 -w0 /var/lib/incus-os/zpool.local.key")?;
        bench.equal(&format!("{skip}: key of the pool"), key.trim(), local)?;
        for (line, address, name) in ADDRESSES {
            let wanted = if skip.contains("network-macs") { name } else { address };
            let is = value(bench, line)?;
            bench.equal(&format!("{skip}: {line}"), is.as_str(), wanted)?;
        }
        bench.equal(&format!("{skip}: failed units"), now.failed_units.as_str(), "")?;
        slots(bench, SLOTS)?;
        nothing_left(bench)?;
        let reports = bench.status()?.reports().len();
        bench.equal("reports", reports, index + 1)?;
    }
    Ok(())
}

/// A value of the state file.
fn value(bench: &mut Bench<'_>, key: &str) -> Outcome<String> {
    let line = bench.run(&format!("grep -F '{key}: ' /var/lib/incus-os/state.txt"))?;
    Ok(line.trim().strip_prefix(&format!("{key}: ")).unwrap_or_default().to_owned())
}
