//! A profile that goes on in the same boot: the reset, repartitioning and the
//! first boot, without a reboot in between.

use super::end;
use crate::bench::{Bench, Boot};
use crate::failure::{Doing, Outcome};
use crate::faults::{self, drop_in, unit};
use crate::machine::Bus;
use crate::wire::to_base64;
use serde_json::{Value, json};
use std::time::Duration;

/// One boot, on another bus than the one that the request was staged on: stopped
/// right after our unit, and the disk looked at, before anything is made anew.
pub fn once(bench: &mut Bench<'_>) -> Outcome {
    let old = bench.base()?.facts.clone();
    let staged = bench.base()?.request("default")?;
    let kept = bench.base()?.seeds.clone();
    bench.put_request(&staged)?;
    bench.machine.bus = Bus::Nvme;
    bench.machine.oem = profile_that_continues()?;
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

/// The profile of the product, with one field changed, for the reset unit in the initrd.
fn profile_that_continues() -> Outcome<Vec<String>> {
    let text = include_str!("../../../src/profile/incusos.json");
    let mut profile: Value = serde_json::from_str(text).doing("reading the profile")?;
    *profile.get_mut("after_reset").doing("the profile's field after_reset")? = json!("continue");
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
