//! The contract's own commands, word for word, with the real Incus: its client asks incusd, which asks
//! restage-api, which asks restage.

use crate::base::EXAMPLE;
use crate::bench::{Bench, Boot};
use crate::failure::{Doing, Outcome};
use crate::guest::Facts;
use crate::hunt;
use crate::scenarios::restored::{CHANGED, VOLUMES, change, opens, until};
use crate::scenarios::{end, reset};
use crate::seeds::Seeds;

/// The system with its daemon at work.
fn booted(bench: &mut Bench<'_>) -> Outcome<Facts> {
    bench.power_on()?;
    let facts = bench.booted(Boot::Usual)?;
    bench.equal("failed units", facts.failed_units.as_str(), "")?;
    with_incus(bench)?;
    Ok(facts)
}

/// The first client would start the daemon as well, and wait for longer than the guest agent does.
fn with_incus(bench: &mut Bench<'_>) -> Outcome {
    bench.run("systemctl start --no-block incus.service")?;
    until(bench, "incusd is up", "systemctl is-active incus.service")
}

/// What is followed by a reboot: the client has its answer, and ends well, before that.
fn reboots(bench: &mut Bench<'_>, command: &str) -> Outcome {
    bench.start(&format!(
        "cd /var/tmp; {command}; echo \"the client ended with $?\" >/dev/console"
    ))?;
    bench.line(&["the client ended with 0"], 60)?;
    bench.wait_reset(60)
}

/// A command that fails, and what its client shows.
fn fails(bench: &mut Bench<'_>, command: &str, why: &str) -> Outcome {
    let ran = bench.exits(&format!("cd /var/tmp; {command}"), 1)?;
    bench.tells(command, &ran.err, &["Error: ", why])
}

/// One boot. What cannot be done is refused: the client shows restage's own words and fails, and nothing
/// is staged by it, nor is a seed with a secret told to anybody.
pub fn refused(bench: &mut Bench<'_>) -> Outcome {
    booted(bench)?;
    // What it asks for at its start is not there, and is no trouble.
    let log = "journalctl -b -o cat -q --no-pager -u";
    let asked = bench.run(&format!("{log} restage-api.service"))?;
    bench.tells("restage-api", &asked, &["GET /1.0/services/", "404 Not Found"])?;
    let started = bench.run(&format!("{log} incus.service; cat /var/log/incus/incus.log"))?;
    bench.tells("the journal", &started, &["Started incus.service"])?;
    let complains =
        ["incusos", "incus-os"].iter().any(|word| started.to_lowercase().contains(word));
    bench.check("incusd does not complain of its IncusOS", !complains)?;
    let command = "incus admin os system factory-reset --force";
    let restore = "incus admin os system restore --force";
    fails(bench, &format!("{command} -d '{{'"), "the options: EOF while parsing an object")?;
    fails(bench, &format!("{command} -d '{{\"seed\":{{}}}}'"), "unknown field `seed`")?;
    let secret = reset::secret_seed(bench)?;
    let installer = "\"$(jq -c '.seeds.install={}' /run/seeds.json)\"";
    fails(bench, &format!("{command} -d {installer}"), "does not allow this seed")?;
    bench.run("rm /run/seeds.json")?;
    hunt::inside(bench, &[&secret])?;
    bench.exits("cd /var/tmp; incus admin os system backup backup.tar.gz", 0)?;
    bench.exits("restage inspect /var/tmp/backup.tar.gz", 0)?;
    bench.run("head -c 100000 /dev/urandom >/var/tmp/bad.tar.gz")?;
    fails(bench, &format!("{restore} bad.tar.gz"), "the backup: gzip: invalid gzip header")?;
    bench.run("cd /var/tmp; head -c -1 backup.tar.gz >cut.tar.gz")?;
    fails(bench, &format!("{restore} cut.tar.gz"), "the backup: it is cut short")?;
    fails(
        bench,
        &format!("{restore} --skip everything backup.tar.gz"),
        "`--skip everything`: not known",
    )?;
    end::none_staged(bench, "staged by what was refused")?;

    // A second one beside one that is staged.
    bench.exits("restage factory-reset --force", 0)?;
    let id = end::staged_id(bench)?;
    fails(bench, command, "staged already")?;
    fails(bench, &format!("{restore} backup.tar.gz"), "staged already")?;
    let still = end::staged_id(bench)?;
    bench.equal("still staged", &still, &id)?;
    bench.exits("restage cancel", 0)?;
    // What was refused is a warning there, and nothing has failed.
    let log = "journalctl -b -u restage-api.service -o cat -q --no-pager -p";
    let told = bench.run(&format!("{log} warning"))?;
    bench.tells("the log", &told, &["400 Bad Request: the backup: it is cut short"])?;
    let errors = bench.run(&format!("{log} err"))?;
    bench.equal("errors of restage-api", errors.trim(), "")?;
    bench.power_off()?;
    end::nothing_erased(bench)
}

/// Three boots: a seed that nobody may find again is staged by the client, up to the new system, as
/// when `restage` itself is asked.
pub fn reset(bench: &mut Bench<'_>) -> Outcome {
    reset::whole(bench, &|bench| {
        with_incus(bench)?;
        reboots(
            bench,
            "echo yes | incus admin os system factory-reset -d \"$(cat /run/seeds.json)\"",
        )
    })
}

/// Four boots. `incus admin os system factory-reset`, the question answered with yes, up to the new
/// system; there once more, with the contract's own example for its options.
pub fn resets(bench: &mut Bench<'_>) -> Outcome {
    let old = bench.base()?.facts.clone();
    let kept = bench.base()?.seeds.clone();
    booted(bench)?;
    reboots(bench, "echo yes | incus admin os system factory-reset")?;
    let (new, first) = reset_done(bench, &old, &kept, None)?;
    let staged = bench.base()?.request("example")?;
    let wanted = end::seeds_after(bench, &staged)?;
    with_incus(bench)?;
    reboots(bench, &format!("echo yes | incus admin os system factory-reset -d '{EXAMPLE}'"))?;
    reset_done(bench, &new, &wanted, Some(first)).map(drop)
}

/// The reset that was staged, in the initrd, and the first boot of the new system; what its report is
/// called. There may be one of an earlier reset.
fn reset_done(
    bench: &mut Bench<'_>,
    old: &Facts,
    seeds: &Seeds,
    earlier: Option<String>,
) -> Outcome<(Facts, String)> {
    bench.line(&["restage: committed"], 60)?;
    bench.off_at_reboot(120)?;
    let files = bench.restage_files()?;
    let mut stems = files.keys().filter_map(|name| name.strip_suffix(".RPT"));
    let stem = stems.find(|stem| Some(*stem) != earlier.as_deref());
    let stem = stem.doing("looking for a report on the ESP")?.to_owned();
    end::reset_done(bench, &stem, seeds)?;
    bench.power_on()?;
    let new = bench.booted(Boot::First)?;
    end::new_system(bench, old, &new)?;
    let status = bench.status()?;
    bench.equal("outcome", status.report(&stem)?.outcome(), "done")?;
    Ok((new, stem))
}

/// Three boots. A backup by the client; hostname, timezone, passphrase and a key changed; restored by the
/// client, and confirmed; changed again, and restored without the recovery keys.
pub fn restore(bench: &mut Bench<'_>) -> Outcome {
    let old = bench.base()?.facts.clone();
    booted(bench)?;
    bench.exits("cd /var/tmp; umask 077; incus admin os system backup backup.tar.gz", 0)?;
    bench.run("systemctl mask restage-confirm.service")?;
    change(bench, &old.passphrase)?;
    reboots(bench, "echo yes | incus admin os system restore backup.tar.gz")?;
    bench.line(&["restage: the restored state is in place: boot 1 of 3"], 150)?;
    let new = bench.booted(Boot::Usual)?;
    bench.equal("hostname", &new.hostname, &old.hostname)?;
    bench.equal("timezone", &new.timezone, &old.timezone)?;
    bench.equal("passphrase in the state", &new.passphrase, &old.passphrase)?;
    bench.equal("key of the pool", &new.key_pool, &old.key_pool)?;
    bench.equal("machine key of root", &new.key_root, &old.key_root)?;
    bench.exits("restage confirm", 0)?;
    for (name, label) in VOLUMES {
        let (works, gone) = (opens(bench, label, &old.passphrase)?, opens(bench, label, CHANGED)?);
        bench.check(
            &format!("the backup's passphrase opens {name}, and no other"),
            works && !gone,
        )?;
    }

    change(bench, &old.passphrase)?;
    with_incus(bench)?;
    let skip = "--skip encryption-recovery-keys,network-macs";
    reboots(bench, &format!("echo yes | incus admin os system restore {skip} backup.tar.gz"))?;
    bench.line(&["restage: the restored state is in place: boot 1 of 3"], 150)?;
    let new = bench.booted(Boot::Usual)?;
    bench.equal("hostname", &new.hostname, &old.hostname)?;
    bench.equal("passphrase in the state", new.passphrase.as_str(), CHANGED)?;
    let macs = bench.run("grep Hwaddr /var/lib/incus-os/state.txt")?;
    bench.tells("the state", &macs, &["Hwaddr: enp0s3"])?;
    bench.exits("restage confirm", 0)?;
    for (name, label) in VOLUMES {
        let works = opens(bench, label, CHANGED)?;
        bench.check(&format!("the changed passphrase still opens {name}"), works)?;
    }
    Ok(())
}
