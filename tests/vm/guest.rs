//! What the harness asks of a booted system, and the answers as values.

use crate::agent::Agent;
use crate::failure::{Doing, Failure, Outcome};
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;

/// What tells one installation from another, and a sound system from a bad one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    pub boot_id: String,
    /// systemctl is-system-running
    pub running: String,
    pub failed_units: String,
    /// UUIDs of the LUKS2 headers.
    pub luks_root: String,
    pub luks_swap: String,
    /// Made by the OS's daemon at its first boot.
    pub key_root: String,
    pub key_swap: String,
    pub key_pool: String,
    /// A passphrase for people; opens both volumes.
    pub passphrase: String,
    pub hostname: String,
    pub timezone: String,
    /// The state file's first line.
    pub state: String,
    pub machine_id: String,
    /// `1`: the firmware boots what is signed, and nothing else.
    pub secure_boot: String,
    /// What the kernel lets root do: `[integrity]` is what Secure Boot makes it.
    pub lockdown: String,
}

const FACTS: &str = r#"
say() { printf '%s=%s\n' "$1" "$(cat)"; }
luks() { dd if="/dev/disk/by-partlabel/$1" bs=8 skip=21 count=5 2>/dev/null | tr -d '\0'; }
state=/var/lib/incus-os
cat /proc/sys/kernel/random/boot_id | say boot_id
systemctl is-system-running | say running
systemctl list-units --failed --plain --no-legend | cut -d' ' -f1 | paste -sd, | say failed_units
luks root-x86-64 | say luks_root
luks swap | say luks_swap
base64 -w0 $state/recovery.root.key | say key_root
base64 -w0 $state/recovery.swap.key | say key_swap
base64 -w0 $state/zpool.local.key | say key_pool
sed -n 's/^System.Security.Config.EncryptionRecoveryKeys\[0\]: //p' $state/state.txt | say passphrase
cat /proc/sys/kernel/hostname | say hostname
readlink -f /etc/localtime | sed s,/usr/share/zoneinfo/,, | say timezone
head -n1 $state/state.txt | say state
cat /etc/machine-id | say machine_id
variable=/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c
od -An -tu1 -j4 $variable 2>/dev/null | tr -d ' ' | say secure_boot
cat /sys/kernel/security/lockdown 2>/dev/null | say lockdown
"#;

/// Gathers the facts; a missing one is empty, and scenarios compare.
pub fn facts(agent: &mut Agent, limit: Duration) -> Outcome<(Facts, String)> {
    let ran = agent.sh(FACTS, limit)?;
    Ok((Facts::from_lines(&ran.out), ran.out))
}

impl Facts {
    /// From `name=value` lines, as the script prints them and the cache keeps them.
    pub fn from_lines(text: &str) -> Self {
        let found: BTreeMap<&str, &str> =
            text.lines().filter_map(|line| line.split_once('=')).collect();
        let take = |name: &str| found.get(name).copied().unwrap_or_default().trim().to_owned();
        Self {
            boot_id: take("boot_id"),
            running: take("running"),
            failed_units: take("failed_units"),
            luks_root: take("luks_root"),
            luks_swap: take("luks_swap"),
            key_root: take("key_root"),
            key_swap: take("key_swap"),
            key_pool: take("key_pool"),
            passphrase: take("passphrase"),
            hostname: take("hostname"),
            timezone: take("timezone"),
            state: take("state"),
            machine_id: take("machine_id"),
            secure_boot: take("secure_boot"),
            lockdown: take("lockdown"),
        }
    }
}

/// `restage status --json`.
#[derive(Debug, Clone)]
pub struct Status(Value);

pub fn status(agent: &mut Agent, limit: Duration) -> Outcome<Status> {
    let ran = agent.sh("restage status --json", limit)?;
    if ran.code != 0 {
        return Err(Failure::new(format!("restage status --json: {}", ran.summary())));
    }
    Ok(Status(serde_json::from_str(&ran.out).doing("reading what restage status printed")?))
}

impl Status {
    fn list(&self, name: &str) -> &[Value] {
        self.0.get(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
    }

    /// The ids of what is staged.
    pub fn staged(&self) -> Vec<&str> {
        self.list("staged").iter().filter_map(|entry| entry["id"].as_str()).collect()
    }

    pub fn running(&self) -> usize {
        self.list("running").len()
    }

    pub fn reports(&self) -> Vec<Report<'_>> {
        self.list("reports").iter().map(Report).collect()
    }

    /// The report of an operation, by its id or by the name of its files, which
    /// is all that is known of a request that could not be read.
    pub fn report(&self, id: &str) -> Outcome<Report<'_>> {
        let stem = crate::request::stem(id);
        self.reports()
            .into_iter()
            .find(|report| crate::request::stem(report.id()) == stem)
            .doing(format!("looking for the report of {stem} in restage status"))
    }
}

/// What happened to one request.
#[derive(Debug, Clone, Copy)]
pub struct Report<'a>(pub &'a Value);

impl<'a> Report<'a> {
    fn text(self, name: &str) -> &'a str {
        self.0.get(name).and_then(Value::as_str).unwrap_or_default()
    }

    pub fn id(self) -> &'a str {
        self.text("id")
    }

    pub fn outcome(self) -> &'a str {
        self.text("outcome")
    }

    pub fn reason(self) -> &'a str {
        self.text("reason")
    }

    pub fn runs(self) -> u64 {
        self.0.get("runs").and_then(Value::as_u64).unwrap_or_default()
    }

    /// The names of the steps, in order.
    pub fn steps(self) -> Vec<&'a str> {
        let steps = self.0.get("steps").and_then(Value::as_array).map(Vec::as_slice);
        steps.unwrap_or_default().iter().filter_map(|step| step["step"].as_str()).collect()
    }

    /// Why the step whose name begins so was passed over; none when it was not.
    pub fn passed_over(self, step: &str) -> Option<&'a str> {
        let steps = self.0.get("steps")?.as_array()?;
        let named =
            |entry: &&Value| entry["step"].as_str().is_some_and(|name| name.starts_with(step));
        steps.iter().find(named)?.get("passed_over")?.as_str()
    }
}
