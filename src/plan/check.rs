//! Is this request, or this journal, for what is in front of us? A wipe that nobody asked for is the
//! worst thing that this program could do.
//! Side: initrd. Pure.

use super::facts::{Content, DiskFacts, Facts, HostFacts};
use super::{Plan, Step, TpmWay};
use crate::error::Refused;
use crate::profile::{Profile, TpmMethod};
use crate::request::{BoundPartition, Request, is_valid_id};

/// Whether a staged request matches this machine, disk and OS, now.
pub fn request(request: &Request, profile: &Profile, facts: &Facts) -> Result<(), Refused> {
    let refuse = |reason: String| Err(Refused::because(reason));
    if !is_valid_id(&request.id) {
        return refuse("field `id`: not 32 hexadecimal digits".to_owned());
    }
    let limit = profile.limits.request_age_s;
    // A clock that runs behind, or was never set, is no reason: only what is surely old is refused.
    let age = facts.host.now.saturating_sub(request.staged.at);
    if age > limit {
        return refuse(format!(
            "field `staged.at`: the request is {} hours old, more than the {} that the profile allows",
            age / 3600,
            limit / 3600
        ));
    }
    let bound = &request.machine;
    if bound.disk != facts.disk.guid {
        return refuse(format!(
            "field `machine.disk`: the request is for disk {}, and this is {}",
            bound.disk, facts.disk.guid
        ));
    }
    host(request, &facts.host)?;
    let now = super::reset::binding(profile, facts)?;
    for partition in &bound.partitions {
        if !now.partitions.contains(partition) {
            return refuse(format!(
                "field `machine.partitions`: partition {} `{}` is not the one that the request was \
                 staged for",
                partition.number, partition.label
            ));
        }
    }
    if let Some(extra) = now.partitions.iter().find(|p| !bound.partitions.contains(p)) {
        return refuse(format!(
            "field `machine.partitions`: partition {} `{}` is not in the request",
            extra.number, extra.label
        ));
    }
    Ok(())
}

/// Whether the request names this machine and OS. What either side does not know is not compared.
fn host(request: &Request, host: &HostFacts) -> Result<(), Refused> {
    let bound = &request.machine;
    for (field, asked, found) in [
        ("machine.smbios", &bound.smbios, &host.smbios),
        ("machine.os_id", &bound.os_id, &host.os_id),
        ("machine.image_id", &bound.image_id, &host.image_id),
    ] {
        if let (Some(asked), Some(found)) = (asked, found)
            && asked != found
        {
            return Err(Refused::because(format!(
                "field `{field}`: the request is for {asked}, and this is {found}"
            )));
        }
    }
    Ok(())
}

/// Whether the plan of a committed journal may be resumed: it is for this disk, each partition is
/// as recorded, erased, or gone, and this profile could have planned every step. The reason
/// otherwise; then nothing may be touched.
pub fn journal(
    committed: &Request,
    plan: &Plan,
    profile: &Profile,
    facts: &Facts,
) -> Result<(), Refused> {
    let disk = &facts.disk;
    if plan.disk != disk.guid {
        return Err(Refused::because(format!(
            "the journal is for disk {}, and {} is {}",
            plan.disk, disk.name, disk.guid
        )));
    }
    if plan.disk_bytes != disk.size_bytes || plan.sector_bytes != disk.sector_bytes {
        return Err(Refused::because(format!(
            "{} has {} bytes in sectors of {}, and the journal says {} in sectors of {}",
            disk.name, disk.size_bytes, disk.sector_bytes, plan.disk_bytes, plan.sector_bytes
        )));
    }
    host(committed, &facts.host)?;
    for step in &plan.steps {
        could_be_planned(step, committed, plan, profile)?;
        if let Step::Seed { partition, .. } = step
            && !disk.partitions.iter().any(|found| found.bound().same_place(partition))
        {
            return Err(Refused::because(format!(
                "partition {} `{}` is not as the journal says",
                partition.number, partition.label
            )));
        }
    }
    if !in_order(&plan.steps) {
        return Err(Refused::because(
            "the journal's steps are not in an order that is ever planned",
        ));
    }
    complete(plan, profile)?;
    plan.wiped().try_for_each(|partition| recorded_erased_or_gone(partition, disk))
}

/// Whether the plan has the steps that every reset of this profile has.
fn complete(plan: &Plan, profile: &Profile) -> Result<(), Refused> {
    let has = |wanted: fn(&Step) -> bool| plan.steps.iter().any(wanted);
    let tpm = profile.tpm == TpmMethod::Keep || has(|step| matches!(step, Step::Tpm { .. }));
    if tpm && has(|s| matches!(s, Step::Wipe { .. })) && has(|s| matches!(s, Step::Gpt { .. })) {
        Ok(())
    } else {
        Err(Refused::because("the journal lacks a step that every reset has"))
    }
}

/// A partition to wipe: as recorded, erased, or its entry gone. Anything else was made since.
fn recorded_erased_or_gone(recorded: &BoundPartition, disk: &DiskFacts) -> Result<(), Refused> {
    let refuse = |what: &str| {
        Err(Refused::because(format!(
            "partition {} `{}` {what}, which this reset did not do",
            recorded.number, recorded.label
        )))
    };
    let (first_usable, last_usable) = disk.usable;
    if recorded.first_lba < first_usable
        || recorded.last_lba < recorded.first_lba
        || recorded.last_lba > last_usable
    {
        return refuse("lies outside the usable range of the disk");
    }
    let overlaps = |first: u64, last: u64| first <= recorded.last_lba && last >= recorded.first_lba;
    for found in &disk.partitions {
        let entry = &found.entry;
        if !found.bound().same_place(recorded) {
            if entry.number == recorded.number
                || entry.guid == recorded.guid
                || overlaps(entry.first_lba, entry.last_lba)
            {
                return refuse("is another one now");
            }
            continue;
        }
        if found.in_use {
            return refuse("is in use");
        }
        if let Content::Luks(now) = &found.content {
            match &recorded.luks {
                Some(then) if then.identity == now.identity => {}
                _ => return refuse("holds another LUKS2 volume now"),
            }
        }
    }
    Ok(())
}

impl BoundPartition {
    /// Whether both are the same entry of the table, whatever is in it.
    #[must_use]
    pub fn same_place(&self, other: &Self) -> bool {
        let place = |p: &Self| (p.number, p.guid, p.type_guid, p.first_lba, p.last_lba);
        place(self) == place(other) && self.label == other.label
    }
}

/// The journal lies on an unauthenticated file system, so it is input: a step that this image's
/// profile could not have planned is not carried out.
fn could_be_planned(
    step: &Step,
    committed: &Request,
    plan: &Plan,
    profile: &Profile,
) -> Result<(), Refused> {
    let allowed = committed.allow_tpm_reset_failure;
    let listed = |p: &BoundPartition| {
        profile.wipe.iter().any(|w| w.type_guid == p.type_guid && w.label == p.label)
    };
    let possible = match step {
        Step::Heal { .. } => true,
        Step::Tpm { way } => match way {
            TpmWay::Clear { allow_failure, .. } => {
                *allow_failure == allowed
                    && matches!(profile.tpm, TpmMethod::Clear | TpmMethod::ClearOrPpi)
            }
            TpmWay::Ppi { allow_failure, .. } => {
                *allow_failure == allowed
                    && matches!(profile.tpm, TpmMethod::Ppi | TpmMethod::ClearOrPpi)
            }
            TpmWay::DeleteState { directory } => {
                profile.tpm != TpmMethod::Keep
                    && profile.esp.software_tpm_state.as_ref() == Some(directory)
            }
            TpmWay::PassOver { .. } => allowed && profile.tpm != TpmMethod::Keep,
        },
        Step::Seed { partition, archive_bytes, .. } => profile.seed.as_ref().is_some_and(|seed| {
            seed.partition.type_guid == partition.type_guid
                && seed.partition.label == partition.label
                && *archive_bytes <= profile.limits.seed_bytes
        }),
        Step::Esp { paths } => {
            let odd = |path: &String| path.split('/').any(|c| matches!(c, "" | "." | ".."));
            let ruled = |path: &String| profile.esp.remove.iter().any(|rule| matches(rule, path));
            paths.iter().all(|path| !odd(path) && ruled(path))
        }
        Step::Wipe { partition, erase } => {
            *erase == profile.erase
                && listed(partition)
                && committed.machine.partitions.contains(partition)
        }
        Step::Gpt { partitions } => partitions.iter().eq(plan.wiped()),
    };
    if possible {
        Ok(())
    } else {
        Err(Refused::because(format!(
            "the journal's step `{}` is not one that the profile {} plans",
            step.name(),
            profile.name
        )))
    }
}

/// Whether the steps come in the planner's order, each kind but `wipe` at most once.
fn in_order(steps: &[Step]) -> bool {
    let rank = |step: &Step| match step {
        Step::Heal { .. } => 0,
        Step::Tpm { .. } => 1,
        Step::Seed { .. } => 2,
        Step::Esp { .. } => 3,
        Step::Wipe { .. } => 4,
        Step::Gpt { .. } => 5,
    };
    steps.is_sorted_by(|a, b| rank(a) < rank(b) || (rank(a) == 4 && rank(b) == 4))
}

/// Whether `path` is what `pattern` means: equal, or, where the last component holds a `*`, with
/// anything but a slash in its place.
#[must_use]
pub fn matches(pattern: &str, path: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == path,
        Some((before, after)) => path
            .strip_prefix(before)
            .and_then(|rest| rest.strip_suffix(after))
            .is_some_and(|middle| !middle.contains('/')),
    }
}
