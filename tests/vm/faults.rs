//! What goes wrong, without a flag for it in the product: units that exist only
//! in the test machine's initrd, handed over as systemd credentials in SMBIOS
//! strings, and a shell on the second serial port through which the harness acts
//! at the moment it likes.

use crate::failure::{Doing, Failure, Outcome};
use crate::wire::{Wire, to_base64};
use serde_json::Value;
use std::path::Path;
use std::time::{Duration, Instant};

/// One string of SMBIOS type 11; systemd takes credentials from them.
pub type Oem = String;

/// Adds a unit, in the initrd and in the OS; the unit's own conditions say where
/// it means something.
pub fn unit(name: &str, text: &str) -> Oem {
    binary(&format!("systemd.extra-unit.{name}"), text)
}

/// Adds to a unit that is there.
pub fn drop_in(unit: &str, text: &str) -> Oem {
    binary(&format!("systemd.unit-dropin.{unit}"), text)
}

fn binary(name: &str, text: &str) -> Oem {
    format!("io.systemd.credential.binary:{name}={}", to_base64(text.as_bytes()))
}

/// What opens the volumes of a machine whose TPM does not.
pub fn passphrase(text: &str) -> Oem {
    format!("io.systemd.credential:cryptsetup.passphrase={text}")
}

/// The words that the shell greets with.
pub const PROBE_READY: &str = "probe-ready";

/// A shell on the second serial port, in the initrd only, from the time when
/// restage may start.
pub fn probe() -> Vec<Oem> {
    vec![
        unit(
            "test-probe.service",
            "[Unit]\n\
             DefaultDependencies=no\n\
             ConditionPathExists=/etc/initrd-release\n\
             IgnoreOnIsolate=yes\n\
             Conflicts=initrd-switch-root.target\n\
             [Service]\n\
             Type=exec\n\
             StandardInput=null\n\
             ExecStart=/bin/sh -c 'exec 0<>/dev/ttyS1 1>&0 2>&0; stty raw -echo 2>/dev/null; \
             echo probe-ready; while read -r line; do eval \"$line\"; done'\n",
        ),
        drop_in("sysinit.target", "[Unit]\nWants=test-probe.service\n"),
    ]
}

/// A gate between restage and whatever uses the disk after it: the boot waits
/// there, and says so, until the harness opens it.
pub fn gate() -> Vec<Oem> {
    let required = "[Unit]\nRequires=test-gate.service\nAfter=test-gate.service\n";
    vec![
        unit(
            "test-gate.service",
            "[Unit]\n\
             DefaultDependencies=no\n\
             ConditionPathExists=/etc/initrd-release\n\
             After=restage-reset.service\n\
             Before=systemd-repart.service cryptsetup-pre.target\n\
             JobTimeoutSec=infinity\n\
             [Service]\n\
             Type=oneshot\n\
             TimeoutStartSec=infinity\n\
             ExecStart=/bin/sh -c 'echo test-gate: closed >/dev/console; \
             until test -e /run/test-gate; do sleep 0.2; done'\n",
        ),
        drop_in("systemd-repart.service", required),
    ]
}

/// The profile of the product, with one field changed, for the reset unit in the initrd.
pub fn profile(field: &str, value: Value) -> Outcome<Vec<Oem>> {
    let text = include_str!("../../src/profile/incusos.json");
    let mut profile: Value = serde_json::from_str(text).doing("reading the profile")?;
    *profile.get_mut(field).doing("the profile's field")? = value;
    let profile = to_base64(profile.to_string().as_bytes());
    Ok(vec![
        unit(
            "test-profile.service",
            &format!(
                "[Unit]\nDefaultDependencies=no\nConditionPathExists=/etc/initrd-release\n\
                 Before=restage-reset.service\n\
                 [Service]\nType=oneshot\n\
                 ExecStart=/bin/sh -c 'echo {profile} | base64 -d >/run/test-profile.json'\n"
            ),
        ),
        drop_in(
            "restage-reset.service",
            "[Unit]\nWants=test-profile.service\nAfter=test-profile.service\n\
             [Service]\nExecStart=\n\
             ExecStart=/usr/bin/restage initrd reset --profile /run/test-profile.json\n",
        ),
    ])
}

/// The harness's end of the shell.
#[derive(Debug)]
pub struct Probe {
    wire: Wire,
}

impl Probe {
    pub fn connect(socket: &Path) -> Outcome<Self> {
        Ok(Self { wire: Wire::connect(socket, Duration::from_secs(20))? })
    }

    /// Waits for the shell's greeting.
    pub fn ready(&mut self, limit: Duration) -> Outcome {
        self.line_with(PROBE_READY, limit).map(drop).doing("waiting for the shell in the initrd")
    }

    /// Runs one line, and returns what it printed.
    pub fn sh(&mut self, line: &str, limit: Duration) -> Outcome<String> {
        // Put together by the shell, so that an echoed command is not its end.
        self.wire.send(format!("{line}; echo \"<<\"done\">>\"\n").as_bytes())?;
        self.line_with("<<done>>", limit).doing(format!("running in the initrd: {line}"))
    }

    fn line_with(&mut self, text: &str, limit: Duration) -> Outcome<String> {
        let until = Instant::now() + limit;
        let mut before = String::new();
        while let Some(line) = self.wire.line(until)? {
            let line = String::from_utf8_lossy(&line).trim().to_owned();
            if line.contains(text) {
                return Ok(before);
            }
            before.push_str(&line);
            before.push('\n');
        }
        Err(Failure::new(format!("no `{text}` within {} s", limit.as_secs())))
    }
}
