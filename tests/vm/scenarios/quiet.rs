//! Boots in which nothing is to be done: nothing was staged; what was staged was
//! withdrawn.

use super::end;
use crate::base::EXAMPLE;
use crate::bench::{Bench, Boot};
use crate::failure::{Doing, Outcome};

/// Two boots. Nothing staged: nothing happens, and how long that takes is told.
/// Then: staging, a second request, a dry run, replacing, cancelling; and at the
/// next boot nothing happens either.
pub fn quiet(bench: &mut Bench<'_>) -> Outcome {
    let old = bench.base()?.facts.clone();
    bench.power_on()?;
    let facts = bench.booted(Boot::Usual)?;
    end::same_system(bench, &old, &facts)?;
    let status = bench.status()?;
    bench.equal("staged", status.staged().len(), 0)?;
    bench.equal("running", status.running(), 0)?;
    bench.equal("reports", status.reports().len(), 0)?;
    let took = unit_time(bench)?;
    bench.note(took);

    bench.exits("restage cancel", 0)?; // nothing to withdraw is no error
    let dry = bench.exits("restage factory-reset --dry-run", 0)?;
    bench.tells("the dry run", &dry.out, &["tpm", "seed", "wipe", "gpt", "kept"])?;
    end::none_staged(bench, "staged by a dry run")?;
    // There is no terminal here to ask on.
    bench.exits("restage factory-reset </dev/null", 3)?;
    bench.exits("restage factory-reset --force -d '{\"unknown\":1}'", 3)?;
    bench.exits("restage factory-reset --force -d '{\"seeds\":{\"install\":{}}}'", 3)?;
    end::none_staged(bench, "staged by what was refused")?;

    bench.exits("restage factory-reset --force", 0)?;
    let first = end::staged_id(bench)?;
    let again = bench.exits("restage factory-reset --force", 3)?;
    bench.tells("the second request's refusal", &(again.out + &again.err), &["--replace"])?;
    let still = end::staged_id(bench)?;
    bench.equal("still staged", &still, &first)?;
    bench.exits(&format!("restage factory-reset --force --replace -d '{EXAMPLE}'"), 0)?;
    let second = end::staged_id(bench)?;
    bench.differ("the staged request", &first, &second)?;
    bench.exits("restage cancel", 0)?;
    let status = bench.status()?;
    bench.equal("staged after cancelling", status.staged().len(), 0)?;
    for id in [&first, &second] {
        bench.equal("outcome", status.report(id)?.outcome(), "cancelled")?;
    }

    bench.start("systemctl reboot")?;
    bench.wait_reset(60)?;
    let facts = bench.booted(Boot::Usual)?;
    end::same_system(bench, &old, &facts)?;
    let status = bench.status()?;
    bench.equal("staged", status.staged().len(), 0)?;
    bench.equal("reports", status.reports().len(), 2)?;
    let took = unit_time(bench)?;
    bench.note(took);
    bench.power_off()?;
    end::nothing_erased(bench)
}

/// From the journal: when the unit in the initrd began, and when it had ended.
fn unit_time(bench: &mut Bench<'_>) -> Outcome<String> {
    let said = bench.run(
        "journalctl -b -o json --no-pager _PID=1 UNIT=restage-reset.service | \
         jq -r .__MONOTONIC_TIMESTAMP",
    )?;
    let stamps: Vec<u64> = said.lines().filter_map(|line| line.trim().parse().ok()).collect();
    bench.check("the unit ran in the initrd", stamps.len() >= 2)?;
    let first = stamps.iter().min().copied().doing("the unit's start")?;
    let last = stamps.iter().max().copied().doing("the unit's end")?;
    Ok(format!(
        "nothing staged: the unit took {} ms, {} ms after the kernel started",
        (last - first) / 1000,
        first / 1000
    ))
}
