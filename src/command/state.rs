//! The machine of the restore commands: given by hand, or the running one.
//! Side: both. Opens; changes nothing.

use std::path::{Path, PathBuf};

use super::Side;
use crate::apply::restore::{Machine, state_of};
use crate::cli::StatePlace;
use crate::error::{Doing, Error, Refused, Result};
use crate::plan::facts::HostFacts;
use crate::platform::esp::{EspDirectory, Others};
use crate::platform::locate::{self, Mounted};
use crate::platform::state_fs::{StateDirectory, make_path};
use crate::platform::volume::{LuksVolume, Volume};
use crate::platform::{confined, directory};
use crate::platform::{efivar, host};
use crate::profile::{Profile, State};
use crate::request::find::{self, Found};

/// The ESP that flags lie on, and its mount when that is ours.
pub struct FlagPlace {
    /// restage's directory on it.
    pub esp: EspDirectory,
    mounted: Option<Mounted>,
    side: Side,
}

impl FlagPlace {
    /// Makes it writable, when there is something to write.
    pub fn make_writable(&mut self, profile: &Profile) -> Result<()> {
        let what = || "cannot write to the ESP".to_owned();
        if let Some(mounted) = &self.mounted {
            self.esp = super::open_esp(&mounted.path, profile, self.side)?;
            // After it was looked at: that may have made it read-only.
            mounted.make_writable().doing(what)?;
        }
        self.esp.lock().doing(what)
    }
}

/// Directories and volumes that were given by hand.
pub fn offline(root: &Path, luks: &[String], profile: &Profile) -> Result<Machine> {
    let state = state_of(profile)?;
    let mut given = Vec::new();
    for one in luks {
        let (name, path) = one
            .split_once('=')
            .ok_or_else(|| Error::new(format!("--luks {one}: not NAME=PATH")))?;
        if !state.volumes.iter().any(|volume| volume.name == name) {
            let known: Vec<_> = state.volumes.iter().map(|v| v.name.as_str()).collect();
            return Err(Error::new(format!(
                "--luks {one}: the profile's volumes are {}",
                known.join(", ")
            )));
        }
        given.push((name, Path::new(path)));
    }
    let volumes = state.volumes.iter().map(|volume| {
        let path = given.iter().find(|(name, _)| *name == volume.name).map(|(_, path)| *path);
        // Without a path it cannot be read, and only a restore that needs it says so.
        let path = path.unwrap_or(Path::new("/nonexistent"));
        Box::new(LuksVolume::new(&volume.name, path)) as Box<dyn Volume>
    });
    let host = HostFacts { now: host::now(), ..HostFacts::default() };
    open(root, state, volumes.collect(), host, true)
}

fn open(
    root: &Path,
    state: &State,
    volumes: Vec<Box<dyn Volume>>,
    host: HostFacts,
    is_offline: bool,
) -> Result<Machine> {
    let what = || format!("cannot open /{} below {}", state.directory, root.display());
    let (parent, name) = state
        .own_directory
        .rsplit_once('/')
        .ok_or_else(|| Error::new(what()).because("field `state.own_directory`"))?;
    Ok(Machine {
        state: Box::new(StateDirectory::open(root, state).doing(what)?),
        store: Box::new(EspDirectory::open(&root.join(parent), name).doing(what)?),
        volumes,
        parse: confined::read,
        host,
        is_hibernated: !is_offline && efivar::is_hibernated(),
        is_offline,
        crashes: 0,
    })
}

/// The ESP of the disk that was booted from, when that is known.
fn boot_esp(profile: &Profile) -> Result<PathBuf> {
    let what = || "cannot find the disk that this machine was booted from".to_owned();
    let guid = super::esp_guid(profile).ok_or_else(|| {
        Error::new(what()).because("the EFI variable LoaderDevicePartUUID is not set")
    })?;
    let located = locate::find(guid).doing(what)?;
    match located.as_slice() {
        [one] => {
            let esp = one.partition.clone();
            esp.ok_or_else(|| Error::new(what()).because("its ESP has no device node"))
        }
        [] => Err(Error::new(what()).because(format!("no disk has partition {guid}"))),
        several => {
            Err(Error::new(what())
                .because(format!("{} disks have partition {guid}", several.len())))
        }
    }
}

/// The running machine, its state file system mounted at `root`. The volumes are those of the disk
/// that the state lies on: whatever other disks there are, that is the one in use.
pub fn running(root: &Path, profile: &Profile) -> Result<Machine> {
    let state = state_of(profile)?;
    let disk = locate::disk_below(Path::new(&state.device))
        .doing(|| format!("cannot find the disk that {} lies on", state.device))?;
    let mut volumes = Vec::new();
    for volume in &state.volumes {
        let what = || format!("cannot find the volume `{}`", volume.name);
        let partition = &volume.partition;
        let node = locate::partition_named(&disk, partition.type_guid, &partition.label);
        let node = node.doing(what)?.unwrap_or_else(|| PathBuf::from("/nonexistent"));
        volumes.push(Box::new(LuksVolume::new(&volume.name, &node)) as Box<dyn Volume>);
    }
    open(root, state, volumes, host::facts(), false)
}

/// The ESP that the machine was booted from.
fn flag_place(profile: &Profile, side: Side) -> Result<FlagPlace> {
    let esp = boot_esp(profile)?;
    let mounted =
        locate::mount(&esp).doing(|| format!("cannot mount the ESP {}", esp.display()))?;
    let esp = super::open_esp(&mounted.path, profile, side)?;
    Ok(FlagPlace { esp, mounted: Some(mounted), side })
}

/// Where the arguments say, else the running machine.
pub fn at(place: &StatePlace, profile: &Profile) -> Result<Machine> {
    match &place.root {
        Some(root) => offline(root, &place.luks, profile),
        None => running(Path::new("/"), profile),
    }
}

/// Where the flags are: as the arguments say, else on the ESP of this boot. None when a root was given
/// by hand, and no ESP.
pub fn flags(place: &StatePlace, profile: &Profile, side: Side) -> Result<Option<FlagPlace>> {
    match (&place.esp, &place.root) {
        (Some(esp), _) => {
            let esp = super::open_esp(esp, profile, side)?;
            Ok(Some(FlagPlace { esp, mounted: None, side }))
        }
        (None, Some(_)) => Ok(None),
        (None, None) => flag_place(profile, side).map(Some),
    }
}

/// What lies in restage's own directory below `root`; nothing when it is not made yet.
pub fn look(root: &Path, profile: &Profile) -> Result<Found> {
    let state = state_of(profile)?;
    let what = || format!("cannot look at {}", root.join(&state.own_directory).display());
    let (parent, name) = state.own_directory.rsplit_once('/').unwrap_or(("", ""));
    match EspDirectory::open(&root.join(parent), name) {
        Ok(store) => find::look(&store),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Found::default()),
        Err(error) => Err(error).doing(what),
    }
}

/// Takes the lock on restage's own directory, until the machine is dropped.
pub fn lock(machine: &mut Machine, root: &Path, profile: &Profile) -> Result<()> {
    machine.store = Box::new(locked(root, profile)?);
    Ok(())
}

/// Whether other users may change anything in restage's directory: the files in it are for root alone.
pub fn guarded(root: &Path, profile: &Profile) -> Result<Result<(), Refused>> {
    let state = state_of(profile)?;
    let what = || format!("cannot look at {}", root.join(&state.own_directory).display());
    let (parent, name) = state.own_directory.rsplit_once('/').unwrap_or(("", ""));
    match EspDirectory::open(&root.join(parent), name) {
        Ok(store) => super::guarded(&store, Others::MayRead),
        // It is made then, for root alone.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Ok(())),
        Err(error) => Err(error).doing(what),
    }
}

/// Takes the lock to stage there.
pub fn lock_to_stage(
    machine: &mut Machine,
    root: &Path,
    profile: &Profile,
) -> Result<Result<(), Refused>> {
    let store = locked(root, profile)?;
    let guarded = super::guarded(&store, Others::MayRead)?;
    machine.store = Box::new(store);
    Ok(guarded)
}

fn locked(root: &Path, profile: &Profile) -> Result<EspDirectory> {
    let what = || "cannot lock restage's directory".to_owned();
    let state = state_of(profile)?;
    let (parent, name) = state.own_directory.rsplit_once('/').unwrap_or(("", ""));
    let root = directory::open(root).doing(what)?;
    let parent = make_path(root.as_ref(), parent).doing(what)?;
    let mut store = EspDirectory::below(parent, name).doing(what)?;
    store.lock().doing(what)?;
    Ok(store)
}
