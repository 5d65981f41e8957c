//! TPMs that cannot be cleared, that are not there, that are files on the ESP.

use super::end;
use crate::bench::{Bench, Boot};
use crate::failure::Outcome;
use crate::faults;
use crate::guest::Report;
use crate::tpm;

const ALLOW: &str = r#"{"allow_tpm_reset_failure":true}"#;

/// Three boots. A lockout password set after staging: refused at boot, the system
/// untouched and up. In that system: refused in staging, with the reason; with the
/// allow flag staged, done, recorded; and the new system comes up.
pub fn locked(bench: &mut Bench<'_>) -> Outcome {
    let old = bench.base()?.facts.clone();
    let staged = bench.base()?.request("default")?;
    let kept = bench.base()?.seeds.clone();
    bench.put_request(&staged)?;
    tpm::plant(&bench.machine.tpm)?;
    tpm::lock(&bench.machine.tpm, "a lockout password")?;
    let tpm_before = end::in_tpm(bench)?;

    bench.power_on()?;
    let facts = bench.booted(Boot::Usual)?;
    end::same_system(bench, &old, &facts)?;
    let status = bench.status()?;
    let report = status.report(&staged.id)?;
    bench.equal("outcome", report.outcome(), "refused")?;
    bench.tells("the reason", report.reason(), &["lockout"])?;
    bench.equal("staged", status.staged().len(), 0)?;

    let refused = bench.exits("restage factory-reset --force", 3)?;
    bench.tells("the refusal in staging", &(refused.out + &refused.err), &["lockout"])?;
    end::none_staged(bench, "staged")?;
    bench.exits(&format!("restage factory-reset --force -d '{ALLOW}'"), 0)?;
    let id = end::staged_id(bench)?;
    bench.start("systemctl reboot")?;
    bench.wait_reset(60)?;
    bench.line(&["restage: committed"], 90)?;
    bench.off_at_reboot(150)?;
    let report = end::reset_done(bench, &id, &kept)?;
    let passed_over = Report(&report).passed_over("tpm").unwrap_or_default();
    bench.tells("why the TPM was passed over", passed_over, &["lockout"])?;
    let tpm_after = end::in_tpm(bench)?;
    bench.equal("the TPM", &tpm_after.owner, &tpm_before.owner)?;

    bench.power_on()?;
    let new = bench.booted(Boot::First)?;
    end::new_system(bench, &old, &new)?;
    let status = bench.status()?;
    bench.equal("outcome", status.report(&id)?.outcome(), "done")
}

/// Two boots of a machine whose TPM is not there any more (its volumes open with
/// the passphrase): refused at boot, refused in staging, with the flag staged,
/// done and recorded. The image's own first boot needs a TPM, so it ends there.
pub fn none(bench: &mut Bench<'_>) -> Outcome {
    let old = bench.base()?.facts.clone();
    let staged = bench.base()?.request("default")?;
    let kept = bench.base()?.seeds.clone();
    bench.put_request(&staged)?;
    bench.machine.has_tpm = false;
    bench.machine.oem = vec![faults::passphrase(&old.passphrase)];

    bench.power_on()?;
    let facts = bench.booted(Boot::First)?; // it waits for the TPM before it gives up
    bench.equal("LUKS UUID of root", &facts.luks_root, &old.luks_root)?;
    bench.equal("recovery key of root", &facts.key_root, &old.key_root)?;
    bench.equal("key of the pool", &facts.key_pool, &old.key_pool)?;
    let status = bench.status()?;
    let report = status.report(&staged.id)?;
    bench.equal("outcome", report.outcome(), "refused")?;
    bench.tells("the reason", report.reason(), &["tpm"])?;

    let refused = bench.exits("restage factory-reset --force", 3)?;
    bench.tells("the refusal in staging", &(refused.out + &refused.err), &["tpm"])?;
    end::none_staged(bench, "staged")?;
    bench.exits(&format!("restage factory-reset --force -d '{ALLOW}'"), 0)?;
    let id = end::staged_id(bench)?;
    bench.start("systemctl reboot")?;
    bench.wait_reset(60)?;
    bench.line(&["restage: committed"], 90)?;
    bench.off_at_reboot(150)?;
    let report = end::reset_done(bench, &id, &kept)?;
    let passed_over = Report(&report).passed_over("tpm").unwrap_or_default();
    bench.check("why the TPM was passed over is recorded", !passed_over.is_empty())
}

/// One boot: the machine has no TPM, but the state of a software TPM on the ESP,
/// and deleting that is the clear. No flag is needed.
pub fn software(bench: &mut Bench<'_>) -> Outcome {
    let staged = bench.base()?.request("default")?;
    let kept = bench.base()?.seeds.clone();
    bench.put_request(&staged)?;
    let state = b"not really a TPM's state, and not needed to be".repeat(64);
    bench.on_esp(|esp| {
        esp.write("swtpm/tpm2-00.permall", &state)?;
        esp.write("swtpm/.lock", b"")
    })?;
    bench.machine.has_tpm = false;
    bench.power_on()?;
    bench.line(&["restage: committed"], 90)?;
    bench.off_at_reboot(150)?;
    let report = end::reset_done(bench, &staged.id, &kept)?;
    let report = Report(&report);
    bench.check("the TPM was not passed over", report.passed_over("tpm").is_none())?;
    let first = report.steps().first().copied().unwrap_or_default().to_owned();
    bench.check("there was a TPM step, the first", first.starts_with("tpm"))?;
    let gone = bench.on_esp(|esp| Ok(!esp.has("swtpm/tpm2-00.permall")))?;
    bench.check("the software TPM's state is gone", gone)
}
