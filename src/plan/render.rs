//! The dry run: a plan as text, step by step, exactly as it would be applied.
//! Side: both. Pure.

use std::fmt::Write as _;

use super::facts::Facts;
use super::{Plan, Step, TpmWay, erase};
use crate::profile::{AfterReset, Erase};
use crate::request::BoundPartition;

/// The whole plan: what is erased, what is written, what is kept.
#[must_use]
pub fn text(plan: &Plan, facts: &Facts) -> String {
    let disk = &facts.disk;
    let mut out =
        format!("factory reset of {} (disk {}, {})\n", disk.name, plan.disk, size(plan.disk_bytes));
    for (index, step) in plan.steps.iter().enumerate() {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{:3}. {}", index + 1, describe(step, plan.sector_bytes));
    }
    let _ =
        writeln!(out, "{:3}. report: leave the result for the running OS", plan.steps.len() + 1);
    let after = match (plan.after, &plan.reboot_because) {
        (_, Some(reason)) => format!("reboot, because {reason}"),
        (AfterReset::Reboot, None) => "reboot into the first boot".to_owned(),
        (AfterReset::Continue, None) => "go on to the first boot".to_owned(),
    };
    let _ = writeln!(out, "then: {after}");
    let wiped: Vec<u32> = plan.wiped().map(|p| p.number).collect();
    let kept: Vec<String> = disk
        .partitions
        .iter()
        .filter(|p| !wiped.contains(&p.entry.number))
        .map(|p| format!("{} `{}`", p.entry.number, p.entry.label))
        .collect();
    let _ = writeln!(out, "kept: partitions {}; every other disk", kept.join(", "));
    if loses_tpm(plan) {
        for volume in &facts.other_tpm_volumes {
            let _ =
                writeln!(out, "warning: {volume} has a key sealed to the TPM, which will be lost");
        }
    }
    out
}

/// Whether keys sealed to the TPM are lost.
#[must_use]
pub fn loses_tpm(plan: &Plan) -> bool {
    plan.steps
        .iter()
        .any(|step| matches!(step, Step::Tpm { way } if !matches!(way, TpmWay::PassOver { .. })))
}

/// One step in one line.
#[must_use]
pub fn describe(step: &Step, sector_bytes: u64) -> String {
    let name = step.name();
    match step {
        Step::Heal { copy } => format!("{name}: write it anew from the {} copy", copy.other()),
        Step::Tpm { way } => match way {
            TpmWay::Clear { .. } => {
                format!("{name}: TPM2_Clear under the lockout hierarchy; all its keys are lost")
            }
            TpmWay::Ppi { instead, .. } => {
                let why = instead.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
                format!(
                    "{name}: ask the firmware to clear it{why}; needs a reboot, and perhaps a key \
                     press at the console"
                )
            }
            TpmWay::DeleteState { directory } => {
                format!("{name}: delete the software TPM's state, `{directory}/` on the ESP")
            }
            TpmWay::PassOver { reason } => format!("{name}: passed over: {reason}"),
        },
        Step::Seed { partition, archive_bytes, kept, removed, written, .. } => format!(
            "{name}: partition {} `{}`: keep {}; remove {}; write {} ({archive_bytes} bytes); zero \
             the rest",
            partition.number,
            partition.label,
            list(kept),
            list(removed),
            list(written)
        ),
        Step::Esp { paths } => format!("{name}: remove {}", list(paths)),
        Step::Wipe { partition, erase } => {
            format!("{name}: {}", describe_wipe(partition, sector_bytes, *erase))
        }
        Step::Gpt { partitions } => {
            let numbers: Vec<String> = partitions.iter().map(|p| p.number.to_string()).collect();
            format!(
                "{name}: remove entries {} from both tables; the others keep their numbers",
                numbers.join(", ")
            )
        }
    }
}

fn describe_wipe(partition: &BoundPartition, sector_bytes: u64, erase: Erase) -> String {
    let sectors = partition.last_lba.saturating_sub(partition.first_lba).saturating_add(1);
    let holds = match &partition.luks {
        Some(luks) => format!("LUKS2 volume {}", luks.uuid),
        None => "not a LUKS2 volume".to_owned(),
    };
    let regions: Vec<String> = erase::regions(partition, sector_bytes, erase)
        .iter()
        .map(|region| format!("{} {}", region.what, size(region.bytes)))
        .collect();
    let then = match erase {
        Erase::Keys => "",
        Erase::Discard | Erase::Zero => "; discard all of it",
    };
    format!(
        "partition {} ({}, {holds}): zero {}{then}",
        partition.number,
        size(sectors.saturating_mul(sector_bytes)),
        regions.join(", ")
    )
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
}

/// A size for people: exact, in the largest binary unit that leaves no rest.
fn size(bytes: u64) -> String {
    let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    units
        .iter()
        .find(|(unit, _)| bytes >= *unit && bytes.is_multiple_of(*unit))
        .map_or_else(|| format!("{bytes} bytes"), |(unit, name)| format!("{} {name}", bytes / unit))
}
