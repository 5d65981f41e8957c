//! A profile that goes on in the same boot: the reset, repartitioning and the
//! first boot, without a reboot in between.

use super::end;
use crate::bench::{Bench, Boot};
use crate::failure::Outcome;
use crate::faults;
use crate::machine::Bus;
use serde_json::json;
use std::time::Duration;

/// One boot, on another bus than the one that the request was staged on: stopped
/// right after our unit, and the disk looked at, before anything is made anew.
pub fn once(bench: &mut Bench<'_>) -> Outcome {
    let old = bench.base()?.facts.clone();
    let staged = bench.base()?.request("default")?;
    let kept = bench.base()?.seeds.clone();
    bench.put_request(&staged)?;
    bench.machine.bus = Bus::Nvme;
    bench.machine.oem = faults::profile("after_reset", json!("continue"))?;
    bench.machine.oem.extend(faults::probe().into_iter().chain(faults::gate()));
    bench.power_on()?;
    bench.line(&["restage: committed"], 90)?;
    bench.vm()?.qmp.forget_events()?;
    bench.line(&["test-gate: closed"], 120)?;
    let disk = bench.vm()?.freeze()?;
    end::erased(bench, &disk, &kept)?;
    bench.vm()?.thaw(disk)?;
    let limit = bench.lab.patience(30);
    bench.vm()?.probe.sh("touch /run/test-gate", limit)?;
    let new = bench.booted(Boot::First)?;
    end::new_system(bench, &old, &new)?;
    let reset = bench.vm()?.qmp.take_event("RESET", Duration::ZERO)?;
    bench.check("no reboot in between", reset.is_none())?;
    let status = bench.status()?;
    bench.equal("outcome", status.report(&staged.id)?.outcome(), "done")
}
