//! The OS's layout, as data: which partitions, files and rules a reset works with.
//! Side: both. Parsing is pure; loading reads one file.

use std::path::Path;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::error::{Doing, Error, Result};
use crate::format::archive::Layout;
use crate::format::seed;

/// Where an image puts its own profile.
pub const PATH: &str = "/usr/lib/restage/profile.json";
/// The profile used when the image has none.
const INCUSOS: &str = include_str!("profile/incusos.json");
/// A profile is a page of text.
const MAX_BYTES: u64 = 64 * 1024;

/// The description of an OS's layout. Unknown fields are refused: a misspelt one would silently
/// leave a partition alone or wipe it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Version of the profile's format: 1.
    pub version: u32,
    /// Name of the OS, for people.
    pub name: String,
    /// What concerns the EFI system partition.
    pub esp: Esp,
    /// What concerns the seed partition; none when the OS has no seeds.
    pub seed: Option<Seed>,
    /// Partitions that a factory reset destroys, in this order. All others keep every byte.
    pub wipe: Vec<Partition>,
    /// How they are destroyed.
    pub erase: Erase,
    /// How the TPM is cleared.
    pub tpm: TpmMethod,
    /// What follows a finished reset.
    pub after_reset: AfterReset,
    /// Whether `systemd.factory_reset=1` on the kernel command line asks for a reset. It is bound to nothing,
    /// and may stay in a boot entry for ever.
    #[serde(default)]
    pub kernel_argument: bool,
    /// The OS's state, which a backup holds; none when the OS has none of its own.
    pub state: Option<State>,
    /// Where `restage-api` answers; none when the OS has no such socket.
    pub api: Option<Api>,
    /// Limits.
    pub limits: Limits,
}

/// Where `restage-api` answers, and whom.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Api {
    /// Absolute path of the Unix socket.
    pub socket: String,
    /// The group that may connect beside root; none when nobody else may.
    pub group: Option<String>,
}

/// What concerns the OS's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct State {
    /// The block device of its file system, once it is unlocked.
    pub device: String,
    /// Type of that file system.
    pub filesystem: String,
    /// The directory that holds it, from the root of that file system.
    pub directory: String,
    /// restage's own directory on the same file system: staged archives, journals, kept keys.
    pub own_directory: String,
    /// What lies in `directory`, and in a backup.
    pub layout: Layout,
    /// Whether an archive, which holds keys, may be staged on a file system that is not encrypted.
    pub allow_unencrypted: bool,
    /// What concerns the state file; none when the OS has none like IncusOS's, and everything comes from
    /// the backup.
    pub settings: Option<Settings>,
    /// The key of the local pool, which `--skip local-data-encryption-key` leaves alone.
    pub local_data_key: Option<String>,
    /// Names of key files, with at most one `*`, of which none is ever destroyed.
    pub precious: Vec<String>,
    /// The volumes that open with the recovery passphrases of the state.
    pub volumes: Vec<Volume>,
    /// The unit that is active when the restored state is a good one. Without it only a person can
    /// confirm a restore.
    pub health_check: Option<String>,
    /// For so long, in seconds, it has to stay active without a restart before that is believed.
    pub healthy_for_s: u64,
    /// So many boots may a restored state go unconfirmed; the next one rolls it back.
    pub unconfirmed_boots: u32,
    /// The most files in a backup.
    pub max_files: u64,
    /// The most bytes of all files in a backup.
    pub max_bytes: u64,
}

/// What concerns the state file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The state file, a plain name in the state directory.
    pub file: String,
    /// The lines of the state file whose keys begin so come from the backup; all others stay.
    pub from_backup: Vec<String>,
    /// A backup without one of these applications is refused.
    pub primary_applications: Vec<String>,
}

/// A LUKS2 volume with recovery passphrases.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Volume {
    /// What people call it.
    pub name: String,
    /// Which partition it is.
    pub partition: Partition,
    /// The file in the state directory with this volume's own key. It is never replaced.
    pub key: String,
}

/// What concerns the ESP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Esp {
    /// restage's own directory on it: one plain name.
    pub directory: String,
    /// Unique GUID of the ESP, for boot loaders that do not set `LoaderDevicePartUUID`.
    #[cfg_attr(test, schemars(with = "Option<String>"))]
    pub partition_guid: Option<Uuid>,
    /// Paths that a reset removes, relative to the ESP; the last component may hold one `*`.
    pub remove: Vec<String>,
    /// The directory that holds a software TPM's state. When it is there, deleting it clears the TPM.
    pub software_tpm_state: Option<String>,
}

/// What concerns the seed partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Seed {
    /// Which partition it is.
    pub partition: Partition,
    /// Seed names that a request may not set.
    pub refused_names: Vec<String>,
}

/// A partition, by both its type and its label.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Partition {
    /// Partition type GUID.
    #[serde(rename = "type")]
    #[cfg_attr(test, schemars(with = "String"))]
    pub type_guid: Uuid,
    /// Partition name in the GPT.
    pub label: String,
}

/// How a partition is destroyed. LUKS2 key slots and headers are overwritten in every case, and so
/// are the first 16 MiB and the last MiB of a partition without LUKS2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Erase {
    /// No more than that.
    Keys,
    /// Then the whole partition is discarded, where the device can.
    Discard,
    /// Every byte is overwritten with zeros, then discarded.
    Zero,
}

/// How the TPM is cleared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum TpmMethod {
    /// `TPM2_Clear` under the lockout hierarchy.
    Clear,
    /// The firmware is asked through the physical presence interface: needs a reboot, and often a
    /// key press at the console.
    Ppi,
    /// `TPM2_Clear`; where that is foreseen to be refused, the firmware is asked.
    ClearOrPpi,
    /// The TPM is left alone.
    Keep,
}

/// What follows a finished reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum AfterReset {
    /// A clean reboot; the OS's first boot is a boot of its own.
    Reboot,
    /// The same boot goes on to systemd-repart.
    Continue,
}

/// Limits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// A request older than this, in seconds, is refused.
    pub request_age_s: u64,
    /// The largest seed archive, in bytes, given and kept seeds together.
    pub seed_bytes: u64,
    /// How long the initrd waits for the boot disk, in seconds, while nothing is known to be
    /// committed.
    pub device_wait_s: u64,
}

impl Profile {
    /// The compiled-in profile: IncusOS.
    pub fn incusos() -> Result<Self> {
        Self::parse(INCUSOS.as_bytes())
            .map_err(|e| Error::new("cannot use the built-in profile").because(e))
    }

    /// The profile at `path`; without one that of the image, and where the image has none IncusOS's.
    pub fn load(path: Option<&Path>) -> Result<Self> {
        let image = Path::new(PATH);
        let path = match path {
            Some(path) => path,
            None if image.exists() => image,
            None => return Self::incusos(),
        };
        let what = || format!("cannot use the profile {}", path.display());
        let bytes = crate::platform::read_bounded(path, MAX_BYTES).doing(what)?;
        Self::parse(&bytes).doing(what)
    }

    /// Reads a profile and checks what its types cannot say.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let profile: Self = serde_json::from_slice(bytes).doing(|| "not understood".to_owned())?;
        profile.check().map_err(Error::new)?;
        Ok(profile)
    }

    fn check(&self) -> Result<(), String> {
        if self.version != 1 {
            return Err(format!("field `version` is {}, and only 1 is known", self.version));
        }
        if !is_plain_name(&self.esp.directory) {
            return Err(format!(
                "field `esp.directory`: `{}` is no plain name",
                self.esp.directory
            ));
        }
        let state = self.esp.software_tpm_state.iter();
        for path in self.esp.remove.iter().chain(state) {
            let components: Vec<&str> = path.split('/').collect();
            let last = components.last().copied().unwrap_or_default();
            let plain = components.iter().take(components.len() - 1).all(|c| is_plain_name(c))
                && is_plain_name(&last.replacen('*', "x", 1));
            // FAT does not tell upper from lower case.
            let first = components.first().map(|c| c.to_ascii_lowercase()).unwrap_or_default();
            let own = self.esp.directory.to_ascii_lowercase();
            let ours = crate::platform::esp::names_in_use(&own)
                .any(|own| crate::plan::check::matches(&first, &own));
            if !plain || ours {
                return Err(format!("field `esp`: the path `{path}` may not be removed"));
            }
        }
        if self.esp.software_tpm_state.as_ref().is_some_and(|p| p.contains(['*', '/'])) {
            return Err("field `esp.software_tpm_state` is no plain name".to_owned());
        }
        for (index, partition) in self.wipe.iter().enumerate() {
            let twice = self.wipe.iter().take(index).any(|other| other == partition);
            let seed = self.seed.as_ref().is_some_and(|seed| seed.partition == *partition);
            if twice || seed || partition.type_guid == ESP_TYPE {
                return Err(format!(
                    "field `wipe`: `{}` may not be wiped (twice)",
                    partition.label
                ));
            }
        }
        if let Some(state) = &self.state {
            state.check()?;
        }
        if let Some(api) = &self.api
            && !api.socket.strip_prefix('/').is_some_and(|path| path.split('/').all(is_plain_name))
        {
            return Err(format!("field `api.socket`: `{}` is no absolute path", api.socket));
        }
        if let Some(bad) =
            self.seed.iter().flat_map(|s| &s.refused_names).find(|name| !seed::is_valid_name(name))
        {
            return Err(format!("field `seed.refused_names`: `{bad}` is no seed name"));
        }
        Ok(())
    }
}

impl State {
    fn check(&self) -> Result<(), String> {
        for (field, path) in
            [("directory", &self.directory), ("own_directory", &self.own_directory)]
        {
            if !path.split('/').all(is_plain_name) || !path.contains('/') {
                return Err(format!(
                    "field `state.{field}`: `{path}` is no plain path below a directory"
                ));
            }
        }
        let inside = |one: &str, other: &str| {
            one == other || one.strip_prefix(other).is_some_and(|rest| rest.starts_with('/'))
        };
        if inside(&self.directory, &self.own_directory)
            || inside(&self.own_directory, &self.directory)
        {
            return Err("field `state`: one directory lies in the other".to_owned());
        }
        for pattern in &self.precious {
            let (above, last) = pattern.rsplit_once('/').unwrap_or(("", pattern));
            let above = if above.is_empty() { Vec::new() } else { above.split('/').collect() };
            let is_plain =
                above.into_iter().all(is_plain_name) && is_plain_name(&last.replacen('*', "x", 1));
            if !is_plain || (self.layout == Layout::Flat && pattern.contains('/')) {
                return Err(format!("field `state.precious`: `{pattern}` is no plain name"));
            }
        }
        let keys = self.volumes.iter().map(|volume| ("volumes.key", &volume.key));
        let local = self.local_data_key.iter().map(|key| ("local_data_key", key));
        let file = self.settings.iter().map(|settings| ("settings.file", &settings.file));
        for (field, name) in keys.chain(local).chain(file) {
            if !is_plain_name(name) {
                return Err(format!("field `state.{field}`: `{name}` is no plain name"));
            }
        }
        let names: std::collections::BTreeSet<_> = self.volumes.iter().map(|v| &v.name).collect();
        if names.len() != self.volumes.len() {
            return Err("field `state.volumes`: a name is there twice".to_owned());
        }
        if self.settings.is_none() && !self.volumes.is_empty() {
            return Err(
                "field `state.volumes`: their passphrases are in the state file, and field \
                        `state.settings` names none"
                    .to_owned(),
            );
        }
        if !self.device.starts_with("/dev/") || self.device.contains("..") {
            return Err(format!("field `state.device`: `{}` is no device", self.device));
        }
        if !is_plain_name(&self.filesystem) {
            return Err(format!(
                "field `state.filesystem`: `{}` is no plain name",
                self.filesystem
            ));
        }
        // Progress files have two digits.
        if !(1..=99).contains(&self.unconfirmed_boots) || self.volumes.len() > 8 {
            return Err("field `state.unconfirmed_boots` or `state.volumes`: too few or too many"
                .to_owned());
        }
        Ok(())
    }

    /// Whether the file is one of the machine's own keys, which a restore never replaces.
    #[must_use]
    pub fn is_machine_key(&self, name: &str) -> bool {
        self.volumes.iter().any(|volume| volume.key == name)
    }

    /// Whether the file is a key that is never destroyed.
    #[must_use]
    pub fn is_precious(&self, name: &str) -> bool {
        self.is_machine_key(name)
            || self.precious.iter().any(|pattern| crate::plan::check::matches(pattern, name))
    }
}

/// The partition type GUID of an EFI system partition (UEFI 2.10, table 5-7).
pub const ESP_TYPE: Uuid = Uuid::from_u128(0xc12a_7328_f81f_11d2_ba4b_00a0_c93e_c93b);

/// One component of a path that leads nowhere else.
fn is_plain_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-+".contains(c);
    !name.is_empty() && name != "." && name != ".." && name.chars().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(from: &str, to: &str) -> String {
        assert!(INCUSOS.contains(from), "{from}");
        match Profile::parse(INCUSOS.replacen(from, to, 1).as_bytes()) {
            Ok(_) => "accepted".to_owned(),
            Err(error) => error.chain(),
        }
    }

    #[test]
    fn the_built_in_profile_is_valid() {
        assert_eq!(Profile::incusos().unwrap().name, "IncusOS");
    }

    #[test]
    fn mistakes_are_named() {
        assert!(changed("\"erase\"", "\"ersae\"").contains("unknown field `ersae`"));
        assert!(changed("\"discard\"", "\"burn\"").contains("unknown variant `burn`"));
        assert!(changed("\"version\": 1", "\"version\": 2").contains("`version` is 2"));
        assert!(changed("\"sb-disabled\"", "\"../x\"").contains("`../x` may not be removed"));
        assert!(changed("\"sb-disabled\"", "\"restage/x\"").contains("may not be removed"));
        assert!(changed("\"sb-disabled\"", "\"RESTAGE\"").contains("may not be removed"));
        assert!(changed("\"sb-disabled\"", "\"*\"").contains("may not be removed"));
        assert!(changed("\"sb-disabled\"", "\"/x\"").contains("may not be removed"));
        assert!(
            changed("\"directory\": \"restage\"", "\"directory\": \"..\"").contains("plain name")
        );
        assert!(changed("\"label\": \"swap\"", "\"label\": \"local-data\"").contains("accepted"));
    }
}
