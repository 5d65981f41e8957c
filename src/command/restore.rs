//! `restage restore`, `confirm` and `superseded`.
//! Side: OS. Writes restage's own directory on the state file system, and a flag on the ESP; confirm
//! removes what the restore has kept, as its journal says.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;

use super::backup::open_backup;
use super::os::{confirm as ask, print, reboot, refuse};
use super::state::{self, FlagPlace};
use super::{Exit, Side, print_json};
use crate::apply::restore::probe::Trial;
use crate::apply::restore::{self as operation, Machine, Restored, state_of};
use crate::cli;
use crate::error::{Doing, Error, Refused, Result};
use crate::platform::console::{self, Sink};
use crate::platform::state_fs::Place;
use crate::platform::{Store, boot_entry, host};
use crate::profile::Profile;
use crate::request::restore::SkipItem;
use crate::request::stage::{self, new_id};
use crate::request::{Staged, find, stage_restore, stem};

/// `restage restore`.
pub fn restore(arguments: &cli::Restore) -> Result<Exit> {
    console::start(Sink::Terminal);
    let profile = Profile::load(arguments.place.profile.as_deref())?;
    let state = state_of(&profile)?;
    let skip = match SkipItem::parse_all(&arguments.skip) {
        Ok(skip) => skip,
        Err(refused) => return refuse(&refused, arguments.json),
    };
    let mut machine = state::at(&arguments.place, &profile)?;
    let root = arguments.place.root.as_deref().unwrap_or(Path::new("/"));
    let place = stage_restore::check_place(&machine, state)?;
    if let Err(refused) = place.and(state::guarded(root, &profile)?) {
        return refuse(&refused, arguments.json);
    }
    if arguments.dry_run {
        let mut source = open_backup(&arguments.file)?;
        let checked =
            stage_restore::check(&mut machine, &profile, &skip, &mut source, Trial::Look)?;
        let plan = match checked {
            Ok(checked) => checked.planned.plan,
            Err(refused) => return refuse(&refused, arguments.json),
        };
        if arguments.json {
            print_json(&plan)?;
        } else {
            print(&format!("{}\n", plan.describe().join("\n")))?;
        }
        return Ok(Exit::Done);
    }
    let mut flags = state::flags(&arguments.place, &profile, Side::Stager)?;
    if let Err(refused) = room(&machine, flags.as_ref(), arguments.replace)? {
        return refuse(&refused, arguments.json);
    }
    if let Err(refused) = state::lock_to_stage(&mut machine, root, &profile)? {
        return refuse(&refused, arguments.json);
    }
    if let Some(flags) = &mut flags {
        flags.make_writable(&profile)?;
    }
    // Looked at again under the lock: another one may have been faster.
    if let Err(refused) = room(&machine, flags.as_ref(), arguments.replace)? {
        return refuse(&refused, arguments.json);
    }
    // The archive is taken in first and checked there: what is checked is what is restored. Without
    // the request it means nothing.
    let id = new_id(machine.store.as_ref())?;
    let mut source = open_backup(&arguments.file)?;
    let archive = stage_restore::take_in(&mut machine, state, &id, &mut source)?;
    let staged = stage_taken(arguments, &profile, &skip, &mut machine, flags, archive, &id);
    if !matches!(staged, Ok(Exit::Done)) {
        stage_restore::abandon(&mut machine, &id)?;
        return staged;
    }
    if arguments.reboot {
        reboot(arguments.place.root.is_some())?;
    }
    staged
}

/// The rest, which leaves the archive behind when it refuses.
fn stage_taken(
    arguments: &cli::Restore,
    profile: &Profile,
    skip: &std::collections::BTreeSet<SkipItem>,
    machine: &mut Machine,
    mut flags: Option<FlagPlace>,
    archive: crate::request::restore::ArchiveFile,
    id: &str,
) -> Result<Exit> {
    let what = || "cannot read the staged backup".to_owned();
    let taken = machine.store.open(&format!("{}.ARC", stem(id))).doing(what)?;
    let mut taken = taken.ok_or_else(|| Error::new(what()))?;
    let checked = match stage_restore::check(machine, profile, skip, &mut taken, Trial::Make)? {
        Ok(checked) => checked,
        Err(refused) => return refuse(&refused, arguments.json),
    };
    if checked.backup.sha256 != archive.sha256 {
        return Err(Error::new(what()).because("it is not read back as it was written"));
    }
    let plan = &checked.planned.plan;
    let is_offline = arguments.place.root.is_some();
    let entry = (!is_offline).then(boot_entry::next);
    let entry_text = entry.as_ref().map(super::os::describe).unwrap_or_default();
    let text = format!("{}\n{entry_text}", plan.describe().join("\n"));
    if !arguments.force
        && let Err(refused) = ask(&text)?
    {
        return refuse(&refused, arguments.json);
    }
    if arguments.replace {
        stage_restore::cancel(machine, Some(id))?;
    }
    let staged = Staged {
        command: "restage restore".to_owned(),
        user: host::user(),
        restage: env!("CARGO_PKG_VERSION").to_owned(),
        at: host::now(),
    };
    let has_flag = flags.is_some();
    let store = flags.as_mut().map(|flags| &mut flags.esp as &mut dyn Store);
    stage_restore::stage(machine, store, &checked, archive, skip, staged, id)?;
    if arguments.json {
        print_json(&json!({ "staged": id, "plan": plan, "next_boot": entry }))?;
    } else {
        if arguments.force {
            print(&text)?;
        }
        print(&format!(
            "staged restore {id}; the next boot applies it (`restage cancel` withdraws it)\n"
        ))?;
        if !has_flag {
            print(
                "no --esp was given: without a flag there a boot does not look for it, and only\n\
                 `restage initrd restore --root` applies it\n",
            )?;
        }
    }
    Ok(Exit::Done)
}

/// One request at a time: neither a restore nor a reset may be there.
fn room(
    machine: &Machine,
    flags: Option<&FlagPlace>,
    replace: bool,
) -> Result<std::result::Result<(), Refused>> {
    let found = find::look(machine.store.as_ref())?;
    if (!replace || !found.committed.is_empty())
        && let Err(refused) = stage_restore::room(machine.store.as_ref())?
    {
        return Ok(Err(refused));
    }
    match flags {
        Some(flags) => stage::room(&flags.esp, stage::Present::Keep),
        None => Ok(Ok(())),
    }
}

/// `restage confirm`.
pub fn confirm(arguments: &cli::Confirm) -> Result<Exit> {
    console::start(if arguments.when_healthy { Sink::Boot } else { Sink::Terminal });
    let profile = Profile::load(arguments.place.profile.as_deref())?;
    let mut machine = state::at(&arguments.place, &profile)?;
    let is_open = !find::look(machine.store.as_ref())?.committed.is_empty();
    if arguments.when_healthy && is_open {
        let state = state_of(&profile)?;
        let Some(unit) = state.health_check.clone() else {
            return refuse(
                &Refused::because("the profile names no health check: only a person can confirm"),
                arguments.json,
            );
        };
        wait_until_healthy(&unit, Duration::from_secs(state.healthy_for_s))?;
    }
    let root = arguments.place.root.as_deref().unwrap_or(Path::new("/"));
    state::lock(&mut machine, root, &profile)?;
    let confirmed = operation::confirm(&mut machine, &profile)?;
    // A flag that stays means nothing, and costs the next boot a look. What is not finished needs that
    // look: a report that could not be synced is seen now, and not after a power cut.
    if !matches!(confirmed, Restored::Later(_))
        && let Err(error) = tidy_flags(&machine, &arguments.place, &profile)
    {
        log::warn!("{}", error.chain());
    }
    let (says, exit) = match confirmed {
        Restored::Confirmed => ("confirmed: the restored state stays", Exit::Done),
        Restored::Nothing => ("no restore waits to be confirmed", Exit::Done),
        Restored::Later(error) => {
            log::error!("{}", error.chain());
            ("confirmed, and not all that the restore has kept is removed yet", Exit::Unfinished)
        }
        other => return Err(Error::new(format!("confirming ended with {other:?}"))),
    };
    if arguments.json {
        print_json(&json!({ "says": says }))?;
    } else {
        print(&format!("{says}\n"))?;
    }
    Ok(exit)
}

fn tidy_flags(machine: &Machine, place: &cli::StatePlace, profile: &Profile) -> Result<()> {
    let Some(mut flags) = state::flags(place, profile, Side::Reader)? else { return Ok(()) };
    flags.make_writable(profile)?;
    stage_restore::tidy_flags(machine.store.as_ref(), &mut flags.esp)
}

/// Waits until the boot is complete and the health check has been active for a while, in one and the
/// same invocation. There is no time-out, and a failure of the unit is not the end, for systemd may
/// start it again: a system that never gets there is rolled back by the boots that are counted.
fn wait_until_healthy(unit: &str, healthy_for: Duration) -> Result<()> {
    let mut since: Option<(Instant, String)> = None;
    loop {
        let health = invocation(unit)?;
        let is_complete = invocation("boot-complete.target")?.is_some();
        since = match (health.filter(|_| is_complete), since.take()) {
            (Some(now), Some((begin, invocation))) if now == invocation => {
                if begin.elapsed() >= healthy_for {
                    return Ok(());
                }
                Some((begin, invocation))
            }
            (Some(now), _) => Some((Instant::now(), now)),
            (None, _) => None,
        };
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// What distinguishes this run of an active unit from all others; none when it is not active.
fn invocation(unit: &str) -> Result<Option<String>> {
    let what = || format!("cannot ask systemd about {unit}");
    let mut command = std::process::Command::new("systemctl");
    command.args(["show", "--property=ActiveState,InvocationID,NRestarts", unit]);
    let output = command.output().doing(what)?;
    let said = String::from_utf8_lossy(&output.stdout);
    Ok(said.lines().any(|line| line == "ActiveState=active").then(|| said.trim().to_owned()))
}

/// `restage superseded`.
pub fn superseded(arguments: &cli::Superseded) -> Result<Exit> {
    console::start(Sink::Terminal);
    let profile = Profile::load(arguments.place.profile.as_deref())?;
    let root = arguments.place.root.as_deref().unwrap_or(Path::new("/"));
    let mut machine = state::offline(root, &[], &profile)?;
    let status = stage_restore::status(&machine)?;
    let Some(id) = &arguments.remove else {
        if arguments.json {
            print_json(&json!({ "superseded": status.superseded }))?;
        } else if status.superseded.is_empty() {
            print("no restore has replaced a key\n")?;
        }
        for keys in status.superseded.iter().filter(|_| !arguments.json) {
            print(&format!("{}: {}\n", keys.id, keys.files.join(", ")))?;
        }
        return Ok(Exit::Done);
    };
    let Some(keys) = status.superseded.iter().find(|keys| keys.id == *id) else {
        let reason = format!("no keys of a restore {id} are kept");
        return refuse(&Refused::because(reason), arguments.json);
    };
    // Of a journal that cannot be read only the stem is known.
    if status.open.iter().any(|open| stem(&open.id) == stem(id)) {
        let reason = "the restore is not confirmed yet: its keys are needed for a roll-back";
        return refuse(&Refused::because(reason), arguments.json);
    }
    let text = format!(
        "these keys will be destroyed, and what only they open is lost: {}",
        keys.files.join(", ")
    );
    if !arguments.force
        && let Err(refused) = super::os::ask(&text, "Destroy them?")?
    {
        return refuse(&refused, arguments.json);
    }
    state::lock(&mut machine, root, &profile)?;
    let what = || format!("cannot destroy the keys of {id}");
    machine.state.remove(Place::Superseded(id)).doing(what)?;
    if arguments.json {
        print_json(&json!({ "destroyed": keys.files }))?;
    } else {
        print(&format!("destroyed: {}\n", keys.files.join(", ")))?;
    }
    Ok(Exit::Done)
}
