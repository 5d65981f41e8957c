//! Restore planning: a backup, a request and the facts of this system become a plan, or a refusal.
//! Side: both, the same rules at staging and at boot. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::facts::HostFacts;
use crate::error::Refused;
use crate::format::archive::Kind;
use crate::format::luks::{MAX_SLOTS, SlotKind};
use crate::format::state::{StateFile, weakness};
use crate::profile::{Settings, State};
use crate::request::restore::{RestoreRequest, SkipItem};

/// A restore leaves this much free on the state file system.
const SPARE_BYTES: u64 = 16 << 20;

/// A file of a backup, or of the state directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileFacts {
    /// Length in bytes.
    pub bytes: u64,
    /// SHA-256 of its content.
    pub sha256: String,
}

/// What an archive holds, read to its end.
#[derive(Clone, Debug)]
pub struct Backup {
    /// SHA-256 of the archive.
    pub sha256: String,
    /// Its length in bytes.
    pub bytes: u64,
    /// The files in it.
    pub files: BTreeMap<String, FileFacts>,
    /// Its directories and links.
    pub others: BTreeMap<String, Kind>,
    /// Its state file; else what is wrong with it. None when the OS has none.
    pub state: Option<Result<StateFile, String>>,
}

/// The system that it would be restored to.
#[derive(Clone, Debug)]
pub struct RestoreFacts {
    /// The machine and its OS.
    pub host: HostFacts,
    /// The files in the state directory.
    pub files: BTreeMap<String, FileFacts>,
    /// Its state file; else what is wrong with it. None when the OS has none.
    pub state: Option<Result<StateFile, String>>,
    /// Free space on the state file system, in bytes.
    pub free_bytes: u64,
    /// Whether the state file system is encrypted; not asked where a directory was given by hand.
    pub is_encrypted: Option<bool>,
    /// Why two directories cannot be exchanged where the state directory lies.
    pub no_exchange: Option<String>,
    /// Whether the old or new state of another restore lies beside the state.
    pub other_state: bool,
    /// Whether a hibernated system waits to be resumed.
    pub is_hibernated: bool,
    /// The volumes of the profile, in its order; none when their passphrases stay.
    pub volumes: Vec<VolumeFacts>,
    /// Passphrases, of this system and of the backup, that open every volume; looked for when the
    /// passphrases stay.
    pub open_passphrases: Vec<Zeroizing<String>>,
}

/// A LUKS2 volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeFacts {
    /// What the profile calls it.
    pub name: String,
    /// Its header; else why it cannot be read.
    pub header: Result<VolumeHeader, String>,
    /// The slot that this machine's own key opens; else why it opens none.
    pub own_key: Result<RecordedSlot, String>,
}

/// What is known of a volume by its header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeHeader {
    /// Volume UUID.
    pub uuid: String,
    /// What names the volume key; see `format::luks`.
    pub identity: String,
    /// The key slots.
    pub slots: Vec<RecordedSlot>,
    /// Which of them are passphrases.
    pub passphrases: Vec<RecordedSlot>,
}

/// A key slot as it was: never touched when it is another one by then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct RecordedSlot {
    /// Its number.
    pub index: u32,
    /// SHA-256 of its object in the header.
    pub digest: String,
}

impl VolumeHeader {
    /// What a plan needs to know of a header.
    #[must_use]
    pub fn of(header: &crate::format::luks::Header) -> Self {
        let record = |slot: &crate::format::luks::Slot| RecordedSlot {
            index: slot.index,
            digest: slot.digest.clone(),
        };
        let is_passphrase = |slot: &&crate::format::luks::Slot| slot.kind == SlotKind::Password;
        Self {
            uuid: header.uuid.clone(),
            identity: header.identity.clone(),
            slots: header.slots.iter().map(record).collect(),
            passphrases: header.slots.iter().filter(is_passphrase).map(record).collect(),
        }
    }
}

/// What a restore will do. Passphrases are not in it: they are in the new state, on the encrypted file
/// system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct RestorePlan {
    /// SHA-256 of the archive.
    pub archive_sha256: String,
    /// Files that come from the backup.
    pub taken: Vec<String>,
    /// Files of this system that stay as they are.
    pub kept: Vec<String>,
    /// Files of this system that are neither in the backup nor kept.
    pub dropped: Vec<String>,
    /// Keys of this system that the backup replaces; they are kept aside.
    pub superseded: Vec<String>,
    /// Version of the backup's state file, and of this system's; none when the OS has none.
    pub state_versions: Option<(u32, u32)>,
    /// Hardware addresses in the new state that become names.
    pub forgotten_macs: usize,
    /// Applications that the backup lists and this system lacks.
    pub missing_applications: Vec<String>,
    /// The volumes that get the backup's passphrases; none when they stay.
    pub volumes: Vec<VolumePlan>,
    /// How many passphrases.
    pub passphrases: usize,
    /// So many boots may the restored state go unconfirmed.
    pub unconfirmed_boots: u32,
}

/// What happens to a volume's key slots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct VolumePlan {
    /// What the profile calls it.
    pub name: String,
    /// Volume UUID.
    pub uuid: String,
    /// What names the volume key.
    pub identity: String,
    /// The key slots before.
    pub before: Vec<RecordedSlot>,
    /// Those of them that are removed when the restore is confirmed: the old passphrases.
    pub old: Vec<RecordedSlot>,
}

/// The plan, and the new state file.
#[derive(Debug)]
pub struct PlannedRestore {
    /// What will happen.
    pub plan: RestorePlan,
    /// The state file that the system will have; none when the OS has none.
    pub state: Option<StateFile>,
}

/// Whether a file of the backup stays out of the new state, because this machine's own stays.
#[must_use]
pub fn stays(name: &str, skip: &BTreeSet<SkipItem>, profile: &State) -> bool {
    profile.is_machine_key(name)
        || (skip.contains(&SkipItem::LocalDataEncryptionKey)
            && profile.local_data_key.as_deref() == Some(name))
}

/// Why an item cannot be skipped here: this OS has no such thing.
fn check_skip(skip: &BTreeSet<SkipItem>, profile: &State) -> Result<(), Refused> {
    let is_there = |item: &SkipItem| match item {
        SkipItem::EncryptionRecoveryKeys | SkipItem::NetworkMacs => profile.settings.is_some(),
        SkipItem::LocalDataEncryptionKey => profile.local_data_key.is_some(),
    };
    match skip.iter().find(|item| !is_there(item)) {
        Some(item) => Err(Refused::because(format!("`--skip {item}`: this OS has no such thing"))),
        None => Ok(()),
    }
}

/// The new state file, and what is to be told of it.
struct NewState {
    file: StateFile,
    versions: (u32, u32),
    forgotten_macs: usize,
    missing_applications: Vec<String>,
    /// How many passphrases the backup brings.
    passphrases: usize,
}

fn new_state(
    skip: &BTreeSet<SkipItem>,
    settings: &Settings,
    backup: &Backup,
    facts: &RestoreFacts,
) -> Result<NewState, Refused> {
    let name = &settings.file;
    let named = |whose: &str, why: &str| Refused::because(format!("`{name}` of {whose}: {why}"));
    let known = |state: &Option<Result<StateFile, String>>, whose: &str| match state {
        Some(Ok(state)) => Ok(state.clone()),
        Some(Err(why)) => Err(named(whose, why)),
        None => Err(named(whose, "it was not looked at")),
    };
    let (present, there) =
        (known(&facts.state, "this system")?, known(&backup.state, "the backup")?);
    check_state(&there).map_err(|why| named("the backup", &why.reason))?;
    let applications = there.applications();
    if !settings.primary_applications.iter().any(|name| applications.contains(name)) {
        let wanted = settings.primary_applications.join(", ");
        return Err(Refused::because(format!("`{name}` of the backup lists none of {wanted}")));
    }
    let installed = present.applications();
    let missing = applications.into_iter().filter(|name| !installed.contains(name)).collect();

    let mut upgraded = there.clone();
    upgraded.upgrade(present.version()).map_err(|why| named("the backup", &why.to_string()))?;
    let mut state = present.composed(&upgraded, &settings.from_backup);
    let mut forgotten_macs = 0;
    if skip.contains(&SkipItem::NetworkMacs) {
        let forgotten = state.forget_hardware_addresses();
        forgotten_macs = forgotten.map_err(|why| named("the backup", &why.to_string()))?;
    }
    let mut passphrases = there.recovery_keys().count();
    if skip.contains(&SkipItem::EncryptionRecoveryKeys) {
        if facts.open_passphrases.is_empty() {
            return Err(Refused::because(
                "no passphrase of this system or of the backup opens its volumes; without `--skip \
                 encryption-recovery-keys` the restore enrolls those of the backup",
            ));
        }
        state.set_recovery_keys(&facts.open_passphrases);
        passphrases = 0;
    }
    Ok(NewState {
        file: state,
        versions: (there.version(), present.version()),
        forgotten_macs,
        missing_applications: missing,
        passphrases,
    })
}

/// Checks everything, and says what will happen.
pub fn plan(
    skip: &BTreeSet<SkipItem>,
    profile: &State,
    backup: &Backup,
    facts: &RestoreFacts,
) -> Result<PlannedRestore, Refused> {
    let refuse = |reason: String| Err(Refused::because(reason));
    check_skip(skip, profile)?;
    let settings = profile.settings.as_ref();
    let new = settings.map(|settings| new_state(skip, settings, backup, facts)).transpose()?;
    if backup.files.is_empty() {
        return refuse("the backup holds no file".to_owned());
    }
    check_system(profile, facts)?;
    let passphrases = new.as_ref().map_or(0, |new| new.passphrases);
    let volumes = if passphrases == 0 { Vec::new() } else { volumes(profile, facts, passphrases)? };

    let is_state = |name: &String| settings.is_some_and(|settings| *name == settings.file);
    let taken: Vec<String> = backup
        .files
        .keys()
        .filter(|name| !stays(name, skip, profile) && !is_state(name))
        .cloned()
        .collect();
    let kept: Vec<String> = facts
        .files
        .keys()
        .filter(|name| {
            stays(name, skip, profile)
                || (profile.is_precious(name) && !backup.files.contains_key(*name))
        })
        .cloned()
        .collect();
    if let Some((name, above)) = kept.iter().find_map(|name| in_the_way(name, backup)) {
        return refuse(format!(
            "`{name}` of this system stays, and in the backup `{above}` is in its place"
        ));
    }
    let superseded = facts
        .files
        .iter()
        .filter(|(name, file)| {
            profile.is_precious(name)
                && !kept.contains(name)
                && backup.files.get(*name).is_some_and(|new| new.sha256 != file.sha256)
        })
        .map(|(name, _)| name.clone())
        .collect();
    let dropped = facts
        .files
        .keys()
        .filter(|name| !is_state(name) && !kept.contains(name) && !taken.contains(name))
        .cloned()
        .collect();
    // Old and new state lie side by side, and so do the keys that are kept aside.
    let needed = |files: &BTreeMap<String, FileFacts>| files.values().map(|f| f.bytes).sum::<u64>();
    let needed = needed(&backup.files)
        .saturating_add(needed(&facts.files).saturating_mul(2))
        .saturating_add(SPARE_BYTES);
    if facts.free_bytes < needed {
        return refuse(format!(
            "{} bytes are free on the state file system, and a restore needs {needed}",
            facts.free_bytes
        ));
    }
    let plan = RestorePlan {
        archive_sha256: backup.sha256.clone(),
        taken,
        kept,
        dropped,
        superseded,
        state_versions: new.as_ref().map(|new| new.versions),
        forgotten_macs: new.as_ref().map_or(0, |new| new.forgotten_macs),
        missing_applications: new
            .as_ref()
            .map_or_else(Vec::new, |new| new.missing_applications.clone()),
        volumes,
        passphrases,
        unconfirmed_boots: profile.unconfirmed_boots,
    };
    Ok(PlannedRestore { plan, state: new.map(|new| new.file) })
}

/// What of the backup has the place of a file that stays, or of a directory above it.
fn in_the_way<'a>(name: &'a str, backup: &Backup) -> Option<(&'a str, &'a str)> {
    let above = name.match_indices('/').filter_map(|(at, _)| name.get(..at));
    let is_there = |above: &&str| {
        backup.files.contains_key(*above)
            || matches!(backup.others.get(*above), Some(Kind::Symlink { .. }))
    };
    let found = above.into_iter().find(is_there);
    found.or_else(|| backup.others.contains_key(name).then_some(name)).map(|above| (name, above))
}

/// What the backup's state file must have.
fn check_state(state: &StateFile) -> Result<(), Refused> {
    let mut count = 0;
    for (index, key) in state.recovery_keys().enumerate() {
        count += 1;
        if let Some(why) = weakness(key) {
            return Err(Refused::because(format!("recovery key {index} is too weak: {why}")));
        }
    }
    if count == 0 {
        return Err(Refused::because("it has no recovery key"));
    }
    Ok(())
}

/// What the system must be like.
fn check_system(profile: &State, facts: &RestoreFacts) -> Result<(), Refused> {
    let refuse = |reason: String| Err(Refused::because(reason));
    if facts.is_encrypted == Some(false) && !profile.allow_unencrypted {
        return refuse(format!(
            "the file system of /{} is not encrypted, and a backup holds keys",
            profile.directory
        ));
    }
    if let Some(why) = &facts.no_exchange {
        return refuse(format!("/{} cannot be exchanged with another: {why}", profile.directory));
    }
    if facts.other_state {
        return refuse(format!(
            "the other state of a restore lies beside /{}, and no journal says why: its name ends with \
             `.restage`; look what is in it, and remove it",
            profile.directory
        ));
    }
    if facts.is_hibernated {
        return refuse("a hibernated system waits to be resumed".to_owned());
    }
    Ok(())
}

fn volumes(
    profile: &State,
    facts: &RestoreFacts,
    passphrases: usize,
) -> Result<Vec<VolumePlan>, Refused> {
    let mut plans = Vec::new();
    for (volume, found) in profile.volumes.iter().zip(&facts.volumes) {
        let refuse = |why: &str| {
            Refused::because(format!(
                "volume `{}`: {why}; `--skip encryption-recovery-keys` leaves the passphrases alone",
                volume.name
            ))
        };
        let header = found.header.as_ref().map_err(|why| refuse(why))?;
        let own_key = found.own_key.as_ref().map_err(|why| {
            refuse(&format!("this machine's `{}` does not open it: {why}", volume.key))
        })?;
        if header.slots.len() + passphrases > MAX_SLOTS {
            return Err(refuse(&format!(
                "{} of {MAX_SLOTS} key slots are taken, and {passphrases} more are needed",
                header.slots.len()
            )));
        }
        plans.push(VolumePlan {
            name: volume.name.clone(),
            uuid: header.uuid.clone(),
            identity: header.identity.clone(),
            before: header.slots.clone(),
            old: header.passphrases.iter().filter(|slot| *slot != own_key).cloned().collect(),
        });
    }
    if plans.len() != profile.volumes.len() {
        return Err(Refused::because("the volumes of the profile were not all looked at"));
    }
    Ok(plans)
}

/// Whether a journaled plan is one that could have been made for this profile.
pub fn check_resumed(plan: &RestorePlan, profile: &State) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    for volume in &plan.volumes {
        if !profile.volumes.iter().any(|known| known.name == volume.name)
            || !seen.insert(&volume.name)
        {
            return Err(format!("field `plan.volumes`: `{}` is not expected", volume.name));
        }
        if !volume.old.iter().all(|slot| volume.before.contains(slot)) {
            return Err(format!("field `plan.volumes`: the slots of `{}`", volume.name));
        }
    }
    if let Some(name) = plan.superseded.iter().find(|name| !profile.is_precious(name)) {
        return Err(format!("field `plan.superseded`: `{name}` is no key"));
    }
    // Progress files have two digits.
    if !(1..=99).contains(&plan.unconfirmed_boots) {
        return Err("field `plan.unconfirmed_boots`: too few or too many".to_owned());
    }
    Ok(())
}

/// Whether the request is for this machine and not too old.
pub fn check_request(
    request: &RestoreRequest,
    max_age_s: u64,
    facts: &RestoreFacts,
) -> Result<(), Refused> {
    let host = &facts.host;
    let differs = |field: &str, asked: &Option<String>, here: &Option<String>| match (asked, here) {
        (Some(asked), Some(here)) if asked != here => Err(Refused::because(format!(
            "field `machine.{field}`: the request is for `{asked}`, and this is `{here}`"
        ))),
        _ => Ok(()),
    };
    differs("smbios", &request.machine.smbios, &host.smbios)?;
    differs("os_id", &request.machine.os_id, &host.os_id)?;
    differs("image_id", &request.machine.image_id, &host.image_id)?;
    for (name, uuid) in &request.machine.volumes {
        let now = facts.volumes.iter().find(|volume| volume.name == *name);
        let now = now.and_then(|volume| volume.header.as_ref().ok());
        if now.is_some_and(|now| now.uuid != *uuid) {
            return Err(Refused::because(format!(
                "field `machine.volumes`: `{name}` is another volume than the request was staged for"
            )));
        }
    }
    let age_s = host.now.saturating_sub(request.staged.at);
    if age_s > max_age_s {
        return Err(Refused::because(format!(
            "field `staged.at`: the request is {age_s} s old, and {max_age_s} s is the limit"
        )));
    }
    Ok(())
}

impl RestorePlan {
    /// The plan as a person reads it.
    #[must_use]
    pub fn describe(&self) -> Vec<String> {
        let list = |what: &str, names: &[String]| {
            (!names.is_empty()).then(|| format!("{what}: {}", names.join(", ")))
        };
        let mut lines = vec![match self.state_versions {
            None => "everything comes from the backup, but for what is kept".to_owned(),
            Some((from, to)) if from == to => {
                format!(
                    "state file: settings from the backup (version {to}), what is installed stays"
                )
            }
            Some((from, to)) => format!(
                "state file: settings from the backup (version {from}, brought to {to}), what is installed stays"
            ),
        }];
        lines.extend(list("taken from the backup", &self.taken));
        lines.extend(list("kept as they are here", &self.kept));
        lines.extend(list("replaced keys, kept aside", &self.superseded));
        lines.extend(list("dropped", &self.dropped));
        if self.forgotten_macs > 0 {
            lines.push(format!("{} hardware addresses become names", self.forgotten_macs));
        }
        for volume in &self.volumes {
            lines.push(format!(
                "volume {}: {} new recovery passphrase(s) first, {} old one(s) removed when the restore is confirmed",
                volume.name,
                self.passphrases,
                volume.old.len()
            ));
        }
        if self.volumes.is_empty() && self.state_versions.is_some() {
            lines.push("recovery passphrases stay".to_owned());
        }
        lines.extend(list(
            "warning: applications of the backup that are not installed here",
            &self.missing_applications,
        ));
        lines.push(format!(
            "the restored state rolls itself back unless it is confirmed within {} boots",
            self.unconfirmed_boots
        ));
        lines
    }
}
