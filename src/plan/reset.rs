//! Factory-reset planning: what is asked and the facts of this machine become ordered steps.
//! Side: both. Pure: same facts, same plan.

use zeroize::Zeroizing;

use super::facts::{DiskFacts, Facts, PartitionFacts, TpmFacts};
use super::{Plan, Step, TpmIdentity, TpmWay};
use crate::error::Refused;
use crate::format::seed::{Archive, Seeds};
use crate::format::sha256_hex;
use crate::profile::{Partition, Profile, Seed, TpmMethod};
use crate::request::{self, Binding, BoundPartition};

/// What is asked for, whether still on the command line or already staged.
#[derive(Clone, Debug, Default)]
pub struct Ask {
    /// Go on when the TPM cannot be cleared.
    pub allow_tpm_reset_failure: bool,
    /// Remove the seeds that are on the seed partition.
    pub wipe_existing_seeds: bool,
    /// The seeds to write.
    pub seeds: Seeds,
}

/// A plan and the seed archive that it will write.
pub struct Planned {
    /// The plan.
    pub plan: Plan,
    /// The rendered archive; none when there is no seed step.
    pub archive: Option<Rendered>,
}

/// A rendered seed archive: it may be secret.
pub type Rendered = Zeroizing<Vec<u8>>;

/// Plans a factory reset, or says why not. Changes memory only.
pub fn plan(ask: &Ask, profile: &Profile, facts: &Facts) -> Result<Planned, Refused> {
    request::check_seeds(&ask.seeds, profile)?;
    let disk = &facts.disk;
    if disk.copies_differ {
        return Err(Refused::because(format!(
            "{}: both copies of the partition table are valid and differ; repair it (sgdisk --verify, \
             gdisk) before a reset",
            disk.name
        )));
    }
    let wiped = partitions_to_wipe(profile, disk)?;
    for one in &wiped {
        let overlaps = |other: &&PartitionFacts| {
            other.entry.number != one.entry.number
                && other.entry.first_lba <= one.entry.last_lba
                && other.entry.last_lba >= one.entry.first_lba
        };
        if let Some(other) = disk.partitions.iter().find(overlaps) {
            return Err(Refused::because(format!(
                "partitions {} and {} of {} overlap",
                one.entry.number, other.entry.number, disk.name
            )));
        }
    }
    if let Some(busy) = wiped.iter().find(|partition| partition.in_use) {
        let (number, label) = (busy.entry.number, &busy.entry.label);
        return Err(Refused::because(format!("partition {number} `{label}` is in use")));
    }
    let wiped: Vec<BoundPartition> = wiped.into_iter().map(PartitionFacts::bound).collect();

    let mut steps = Vec::new();
    steps.extend(disk.bad_copy.map(|copy| Step::Heal { copy }));
    steps.extend(plan_tpm(ask, profile.tpm, &facts.tpm)?.map(|way| Step::Tpm { way }));
    let mut archive = None;
    if let Some(rules) = &profile.seed
        && let Some((step, bytes)) = plan_seed(ask, rules, profile.limits.seed_bytes, facts)?
    {
        steps.push(step);
        archive = Some(bytes);
    }
    if !facts.esp_paths.is_empty() {
        steps.push(Step::Esp { paths: facts.esp_paths.clone() });
    }
    let erase = profile.erase;
    steps.extend(wiped.iter().map(|p| Step::Wipe { partition: p.clone(), erase }));
    steps.push(Step::Gpt { partitions: wiped });

    let reboot_because = (!facts.loaded_credentials.is_empty()).then(|| {
        format!("systemd had loaded {} in this boot", facts.loaded_credentials.join(", "))
    });
    let plan = Plan {
        disk: disk.guid,
        disk_bytes: disk.size_bytes,
        sector_bytes: disk.sector_bytes,
        steps,
        after: profile.after_reset,
        reboot_because,
    };
    Ok(Planned { plan, archive })
}

/// What a request that is staged now would be bound to.
pub fn binding(profile: &Profile, facts: &Facts) -> Result<Binding, Refused> {
    let wiped = partitions_to_wipe(profile, &facts.disk)?;
    Ok(Binding {
        disk: facts.disk.guid,
        smbios: facts.host.smbios.clone(),
        os_id: facts.host.os_id.clone(),
        image_id: facts.host.image_id.clone(),
        partitions: wiped.into_iter().map(PartitionFacts::bound).collect(),
    })
}

/// The partitions of the profile that are on the disk, each at most once.
fn partitions_to_wipe<'a>(
    profile: &Profile,
    disk: &'a DiskFacts,
) -> Result<Vec<&'a PartitionFacts>, Refused> {
    let mut found = Vec::new();
    for wanted in &profile.wipe {
        found.extend(only_one(disk, wanted)?);
    }
    if found.is_empty() {
        let labels: Vec<&str> = profile.wipe.iter().map(|p| p.label.as_str()).collect();
        return Err(Refused::because(format!(
            "{} has none of the partitions that {} resets ({})",
            disk.name,
            profile.name,
            labels.join(", ")
        )));
    }
    Ok(found)
}

fn only_one<'a>(
    disk: &'a DiskFacts,
    wanted: &Partition,
) -> Result<Option<&'a PartitionFacts>, Refused> {
    let mut matching = disk.matching(wanted);
    let first = matching.next();
    if let (Some(first), Some(second)) = (first, matching.next()) {
        return Err(Refused::because(format!(
            "{} has two partitions `{}`, {} and {}: which one is meant is not known",
            disk.name, wanted.label, first.entry.number, second.entry.number
        )));
    }
    Ok(first)
}

/// What a person can do about a TPM that is not there. Refusals of a TPM name their own way out.
const WAY_OUT: &str = "; let the reset pass over it with allow_tpm_reset_failure";

fn plan_tpm(ask: &Ask, method: TpmMethod, tpm: &TpmFacts) -> Result<Option<TpmWay>, Refused> {
    let allow_failure = ask.allow_tpm_reset_failure;
    let pass_over = |reason: String| {
        if allow_failure {
            Ok(Some(TpmWay::PassOver { reason }))
        } else {
            Err(Refused::because(format!("the TPM cannot be cleared: {reason}")))
        }
    };
    if method == TpmMethod::Keep {
        return Ok(None);
    }
    let (before, clear_refused, ppi_refused) = match tpm {
        TpmFacts::OnEsp(directory) => {
            return Ok(Some(TpmWay::DeleteState { directory: directory.clone() }));
        }
        TpmFacts::Absent => return pass_over(format!("this machine has no TPM 2.0{WAY_OUT}")),
        TpmFacts::Broken(why) => return pass_over(format!("it does not work: {why}{WAY_OUT}")),
        TpmFacts::Present { identity, clear_refused, ppi_refused } => {
            (identity, clear_refused, ppi_refused)
        }
    };
    let clear = |before: &TpmIdentity| TpmWay::Clear { before: before.clone(), allow_failure };
    let ask_firmware = |before: &TpmIdentity, instead: Option<String>| TpmWay::Ppi {
        before: before.clone(),
        instead,
        allow_failure,
    };
    match (method, clear_refused, ppi_refused) {
        (TpmMethod::Keep, _, _) => Ok(None),
        (TpmMethod::Clear | TpmMethod::ClearOrPpi, None, _) => Ok(Some(clear(before))),
        (TpmMethod::Clear, Some(why), _) | (TpmMethod::Ppi, _, Some(why)) => pass_over(why.clone()),
        (TpmMethod::Ppi, _, None) => Ok(Some(ask_firmware(before, None))),
        (TpmMethod::ClearOrPpi, Some(why), None) => {
            Ok(Some(ask_firmware(before, Some(why.clone()))))
        }
        (TpmMethod::ClearOrPpi, Some(why), Some(ppi)) => pass_over(format!("{why}; and {ppi}")),
    }
}

fn plan_seed(
    ask: &Ask,
    rules: &Seed,
    max_bytes: u64,
    facts: &Facts,
) -> Result<Option<(Step, Rendered)>, Refused> {
    let label = &rules.partition.label;
    let found = only_one(&facts.disk, &rules.partition)?;
    let (Some(partition), Some(start)) = (found, &facts.seed_start) else {
        return if ask.seeds.is_empty() {
            Ok(None)
        } else {
            Err(Refused::because(format!(
                "field `seeds`: {} has no partition `{label}`",
                facts.disk.name
            )))
        };
    };
    let (mut archive, old_names) = match Archive::parse(start) {
        Ok(archive) => {
            let names: Vec<String> = archive.names().map(str::to_owned).collect();
            (archive, names)
        }
        Err(_) if ask.wipe_existing_seeds => (Archive::default(), Vec::new()),
        Err(damage) => {
            return Err(Refused::because(format!(
                "partition {} `{label}`: the seed archive is damaged ({damage}); reset with \
                 wipe_existing_seeds to give it up",
                partition.entry.number
            )));
        }
    };
    let mut removed = Vec::new();
    if ask.wipe_existing_seeds {
        archive = Archive::default();
        removed.clone_from(&old_names);
    }
    let cannot = |e: &dyn std::fmt::Display| Refused::because(format!("field `seeds`: {e}"));
    removed.extend(archive.merge(&ask.seeds).map_err(|e| cannot(&e))?);
    let bytes = archive.encode();
    let bound = partition.bound();
    let room = (bound.last_lba - bound.first_lba + 1).saturating_mul(facts.disk.sector_bytes);
    let limit = room.min(max_bytes);
    if bytes.len() as u64 > limit {
        return Err(Refused::because(format!(
            "the seeds need {} bytes, and partition {} `{label}` takes {limit}",
            bytes.len(),
            partition.entry.number
        )));
    }
    let written: Vec<String> = ask.seeds.keys().map(|name| format!("{name}.json")).collect();
    let kept = archive.names().filter(|n| !written.iter().any(|w| w == n)).map(str::to_owned);
    let step = Step::Seed {
        partition: bound,
        archive_sha256: sha256_hex(&bytes),
        archive_bytes: bytes.len() as u64,
        kept: kept.collect(),
        removed,
        written,
    };
    Ok(Some((step, bytes)))
}
