//! Restore planning: a backup, a request and the facts of this system become a plan, or a refusal.
//! Side: both, the same rules at staging and at boot. Pure.

mod check;
mod facts;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

pub use check::{check_request, check_resumed};
pub use facts::{Backup, FileFacts, RecordedSlot, RestoreFacts, VolumeFacts, VolumeHeader};

use crate::error::Refused;
use crate::format::archive::Kind;
use crate::format::state::StateFile;
use crate::profile::{Settings, State};
use crate::request::restore::SkipItem;
use check::{check_skip, check_state, check_system, volumes};

/// A restore leaves this much free on the state file system.
const SPARE_BYTES: u64 = 16 << 20;

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
