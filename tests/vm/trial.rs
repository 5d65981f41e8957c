//! Whether KVM really runs a guest here, decided by trying once: the device may
//! exist and still hang or kill a machine. The verdict is kept.

use crate::base::factory_new;
use crate::bench::Bench;
use crate::failure::{Doing, Outcome};
use crate::lab::{Accel, Lab};
use std::fs;

/// Native seconds from power-on to systemd's first words; a machine that needs
/// longer has gained nothing over emulation.
const LIMIT_S: u64 = 40;

pub fn choose(lab: &mut Lab, tell: &dyn Fn(&str)) -> Outcome {
    match std::env::var("RESTAGE_VM_ACCEL").as_deref() {
        Ok("kvm") => lab.settle(Accel::Kvm),
        Ok("tcg") => lab.settle(Accel::Tcg),
        _ => {
            let accel = if fs::File::options().read(true).write(true).open("/dev/kvm").is_err() {
                Accel::Tcg
            } else {
                tried(lab, tell)?
            };
            lab.settle(accel);
        }
    }
    Ok(())
}

fn tried(lab: &mut Lab, tell: &dyn Fn(&str)) -> Outcome<Accel> {
    let memo = lab.cache.join("accel");
    // Of this boot of the host, and of this firmware: another kernel may do better, SMM worse.
    let boot =
        fs::read_to_string("/proc/sys/kernel/random/boot_id").doing("reading the boot id")?;
    let boot = format!("{boot}{}\n", lab.ovmf_code.display());
    if let Some(known) =
        fs::read_to_string(&memo).ok().as_deref().and_then(|t| t.strip_prefix(boot.as_str()))
    {
        return Ok(if known == "kvm" { Accel::Kvm } else { Accel::Tcg });
    }
    tell("trying whether KVM runs a guest");
    lab.settle(Accel::Kvm);
    let runs = one_boot(lab);
    let (accel, word) = match &runs {
        Ok(()) => (Accel::Kvm, "kvm"),
        Err(_) => (Accel::Tcg, "tcg"),
    };
    if let Err(cause) = runs {
        tell(&format!("KVM does not run a guest here, so emulation it is ({cause})"));
    }
    fs::write(&memo, format!("{boot}{word}")).doing("remembering the accelerator")?;
    Ok(accel)
}

fn one_boot(lab: &Lab) -> Outcome {
    let dir = lab.cache.join("run").join("trial");
    let mut bench = Bench::bare(lab, "trial", factory_new(lab, &dir)?);
    bench.power_on()?;
    let seen = bench.line(&["systemd[1]"], LIMIT_S).map(drop);
    bench.pull_plug();
    // Only the verdict is of use.
    let _ = fs::remove_dir_all(dir);
    seen
}
