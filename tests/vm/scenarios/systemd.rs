//! A factory reset that is asked for in systemd's own way (258 and later): by its target, by its EFI
//! variable, on the kernel command line; done by restage, and refused by it.

use super::end;
use crate::bench::{Bench, Boot};
use crate::failure::{Doing, Outcome};
use crate::faults;
use crate::guest::Facts;
use crate::tpm;
use serde_json::json;

const TOOL: &str = "/usr/lib/systemd/systemd-factory-reset";
const ARGUMENT: &str = "systemd.factory_reset=1";

/// What systemd says of the factory reset, with its exit status.
fn mode(bench: &mut Bench<'_>, word: &str, status: i64) -> Outcome {
    let said = bench.exits(&format!("{TOOL} status"), status)?;
    bench.equal("systemd-factory-reset status", said.out.trim(), word)?;
    let variable = bench.run("ls /sys/firmware/efi/efivars | grep -c ^FactoryReset || true")?;
    let wanted = if word == "pending" { "1" } else { "0" };
    bench.equal("EFI variables of a factory reset", variable.trim(), wanted)
}

/// The reset runs in the initrd, and nothing was made anew when the machine goes off; what its report is
/// called.
fn done(bench: &mut Bench<'_>, by: &str) -> Outcome<String> {
    let kept = bench.base()?.seeds.clone();
    bench.line(&["restage: committed"], 90)?;
    bench.off_at_reboot(150)?;
    let files = bench.restage_files()?;
    let stems: Vec<_> = files.keys().filter_map(|name| name.strip_suffix(".RPT")).collect();
    bench.equal("how many reports there are", stems.len(), 1)?;
    let id = (*stems.first().doing("looking for a report on the ESP")?).to_owned();
    let report = end::reset_done(bench, &id, &kept)?;
    let command = report.pointer("/staged/command").and_then(|value| value.as_str());
    bench.tells("who asked", command.unwrap_or_default(), &[by])?;
    Ok(id)
}

/// The first boot after it, in which nobody knows of a factory reset any more.
fn new_system(bench: &mut Bench<'_>, old: &Facts, id: &str) -> Outcome<Facts> {
    bench.power_on()?;
    let new = bench.booted(Boot::First)?;
    end::new_system(bench, old, &new)?;
    let status = bench.status()?;
    bench.equal("outcome", status.report(id)?.outcome(), "done")?;
    Ok(new)
}

/// Three boots. `systemctl start factory-reset.target`: ours is staged, and both are one request.
pub fn target(bench: &mut Bench<'_>) -> Outcome {
    let old = bench.base()?.facts.clone();
    tpm::plant(&bench.machine.tpm)?;
    let tpm_before = end::in_tpm(bench)?;
    bench.power_on()?;
    bench.booted(Boot::Usual)?;
    mode(bench, "unspecified", 0)?;
    let call = "varlinkctl call /run/systemd/io.systemd.FactoryReset \
                io.systemd.FactoryReset.CanRequestFactoryReset '{}'";
    let can = bench.exits(call, 0)?;
    bench.tells("whether it can be requested", &can.out, &["supported", "true"])?;
    let told =
        bench.run("systemctl show --property=Environment systemd-factory-reset@x.service")?;
    let truth = ["SYSTEMD_FACTORY_RESET_SUPPORTED=1", "SYSTEMD_FACTORY_RESET_SECURE=0"];
    bench.tells("what Varlink's callers are told", &told, &truth)?;
    bench.start("systemctl start factory-reset.target")?;
    bench.wait_reset(90)?;
    let id = done(bench, "restage factory-reset")?;
    let tpm_after = end::in_tpm(bench)?;
    end::tpm_cleared(bench, &tpm_before, &tpm_after)?;
    new_system(bench, &old, &id)?;
    mode(bench, "unspecified", 0)
}

/// Four boots. systemd's variable alone: withdrawn by restage, set again, done; beside a request of ours,
/// whose options count, and which is the same one.
pub fn variable(bench: &mut Bench<'_>) -> Outcome {
    let old = bench.base()?.facts.clone();
    bench.power_on()?;
    bench.booted(Boot::Usual)?;
    bench.exits(&format!("{TOOL} request"), 0)?;
    mode(bench, "pending", 11)?;
    let told = bench.exits("restage status", 0)?;
    bench.tells("restage status", &told.out, &["pending: a factory reset by systemd"])?;
    let told = bench.exits("restage cancel", 0)?;
    bench.tells("restage cancel", &told.out, &["cancelled systemd's request"])?;
    mode(bench, "unspecified", 0)?;
    bench.exits(&format!("{TOOL} request"), 0)?;
    bench.start("systemctl reboot")?;
    bench.wait_reset(90)?;
    let id = done(bench, "systemd's factory reset, by an EFI variable")?;
    let new = new_system(bench, &old, &id)?;
    mode(bench, "unspecified", 0)?;
    let log = bench.exits("restage status --log", 0)?;
    bench.tells("the log", &log.out, &["asks for a factory reset", "committed"])?;

    // Both at once, and in the initrd that is one.
    bench.exits("restage factory-reset --force -d '{\"seeds\":{\"incus\":{}}}'", 0)?;
    bench.exits("restage factory-reset --force --or-staged", 0)?;
    let staged = end::staged_id(bench)?;
    bench.exits(&format!("{TOOL} request"), 0)?;
    bench.start("systemctl reboot")?;
    bench.wait_reset(90)?;
    bench.line(&["restage: committed"], 90)?;
    bench.wait_reset(150)?;
    let newer = bench.booted(Boot::First)?;
    end::new_system(bench, &new, &newer)?;
    mode(bench, "unspecified", 0)?;
    let status = bench.status()?;
    bench.equal("outcome", status.report(&staged)?.outcome(), "done")?;
    let reports = bench.run("restage status --json | jq '.reports | length'")?;
    bench.equal("reports", reports.trim(), "2")
}

/// Five boots. On the kernel command line, where the profile allows it: heard once, and again only after
/// a boot without it.
pub fn argument(bench: &mut Bench<'_>) -> Outcome {
    let old = bench.base()?.facts.clone();
    bench.machine.oem = faults::profile("kernel_argument", json!(true))?;
    ARGUMENT.clone_into(&mut bench.machine.kernel_arguments);
    bench.power_on()?;
    let id = done(bench, "systemd's factory reset, by the kernel command line")?;
    let new = new_system(bench, &old, &id)?;
    // It is still there, and systemd would begin one.
    mode(bench, "complete", 0)?;
    bench.start("systemctl reboot")?;
    bench.wait_reset(90)?;
    let again = bench.booted(Boot::Usual)?;
    end::same_system(bench, &new, &again)?;
    bench.exits("ls /boot/restage/KERNEL.ARG", 0)?;
    bench.power_off()?;

    bench.machine.kernel_arguments.clear();
    bench.power_on()?;
    let without = bench.booted(Boot::Usual)?;
    end::same_system(bench, &new, &without)?;
    mode(bench, "unspecified", 0)?;
    bench.exits("ls /boot/restage/KERNEL.ARG", 2)?;
    bench.power_off()?;
    ARGUMENT.clone_into(&mut bench.machine.kernel_arguments);
    bench.power_on()?;
    bench.line(&["restage: committed"], 90)?;
    bench.off_at_reboot(150)
}

/// Five boots. What is refused is over, in both worlds: in the OS, so that there is no reboot; in the
/// initrd, and the old system comes up as it was; and on a command line that the profile does not hear.
pub fn refused(bench: &mut Bench<'_>) -> Outcome {
    let old = bench.base()?.facts.clone();
    tpm::lock(&bench.machine.tpm, "a lockout password")?;
    bench.power_on()?;
    bench.booted(Boot::Usual)?;
    bench.exits("systemctl start factory-reset.target", 1)?;
    mode(bench, "unspecified", 0)?;
    end::none_staged(bench, "staged by what was refused")?;
    let log = bench.run("journalctl -b -o cat -q --no-pager -u restage-factory-reset.service")?;
    bench.tells("why", &log, &["refused", "lockout"])?;
    bench.run("systemctl reset-failed")?;

    bench.exits(&format!("{TOOL} request"), 0)?;
    bench.start("systemctl reboot")?;
    bench.wait_reset(90)?;
    bench.line(&["the factory reset that systemd has begun is refused"], 90)?;
    bench.wait_reset(60)?;
    let facts = bench.booted(Boot::Usual)?;
    end::same_system(bench, &old, &facts)?;
    mode(bench, "unspecified", 0)?;
    let status = bench.status()?;
    bench.equal("staged", status.staged().len(), 0)?;
    let told = bench.exits("restage status", 0)?;
    bench.tells("restage status", &told.out, &["refused: factory reset", "lockout"])?;
    bench.power_off()?;
    end::nothing_erased(bench)?;

    ARGUMENT.clone_into(&mut bench.machine.kernel_arguments);
    bench.power_on()?;
    bench.line(&["the boot goes on without the factory reset"], 90)?;
    let facts = bench.booted(Boot::Usual)?;
    end::same_system(bench, &old, &facts)?;
    mode(bench, "complete", 0)?;
    let target = bench.console_ever_said("Reached target factory-reset-now.target")?;
    bench.check("nothing was marked complete by systemd", !target)?;
    bench.power_off()?;
    end::nothing_erased(bench)
}
