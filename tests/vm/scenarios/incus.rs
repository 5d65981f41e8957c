//! The contract's own commands, word for word, with the real Incus: its client asks incusd, which asks
//! restage-api, which asks restage.

use crate::bench::{Bench, Boot};
use crate::failure::Outcome;
use crate::scenarios::end;
use crate::scenarios::restored::until;

/// Waits for the daemon, which the first client starts.
fn started(bench: &mut Bench<'_>) -> Outcome {
    bench.run("systemctl start --no-block incus.service")?;
    until(bench, "incusd is up", "systemctl is-active incus.service")
}

/// One boot. What cannot be done is refused with restage's own words, and nothing is staged by it.
pub fn refused(bench: &mut Bench<'_>) -> Outcome {
    bench.power_on()?;
    bench.booted(Boot::Usual)?;
    started(bench)?;
    for command in [
        "incus admin os system --help",
        "incus admin os system factory-reset --help",
        "incus admin os system restore --help",
        "incus admin os system backup --help",
        "systemctl status incus.service restage-api.socket restage-api.service",
        "journalctl -b -u restage-api.service --no-pager",
        "incus admin os show",
        "incus admin os system factory-reset --force -d '{\"unknown\":1}'",
        "incus admin os system factory-reset --force -d '{'",
        "cd /var/tmp && incus admin os system backup backup.tar.gz; ls -l",
        "cd /var/tmp && echo hello >bad.tar.gz && incus admin os system restore --force bad.tar.gz",
        "cd /var/tmp && incus admin os system restore --force --skip everything backup.tar.gz",
        "journalctl -b -u restage-api.service --no-pager",
        "tail -50 /var/log/incus/incus.log",
        "systemd-analyze critical-chain incus.service --no-pager; systemd-analyze blame | head -30",
    ] {
        let ran = bench.sh(command);
        bench.note(format!("{command}: {ran:?}"));
    }
    end::none_staged(bench, "staged by what was refused")
}
