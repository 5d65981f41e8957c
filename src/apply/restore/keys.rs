//! Keys that are never destroyed: copied aside, or into the state that stays.
//! Side: both. Copies files; removes none.

use super::extract::{copy, digest};
use super::{Committed, Machine};
use crate::error::{Doing, Error, Result};
use crate::format::archive::Kind;
use crate::platform::state_fs::Place;
use crate::profile::State;

/// The precious files of a directory. What has the name of one and is no file is an error only for
/// who would destroy it.
struct Precious {
    files: Vec<String>,
    odd: Option<(String, String)>,
}

fn precious(machine: &Machine, profile: &State, place: Place<'_>) -> Result<Precious> {
    let listing = machine.state.list(place).doing(|| "cannot list the keys".to_owned())?;
    let files = listing.files().filter(|name| profile.is_precious(name)).map(ToOwned::to_owned);
    let files = files.collect();
    // A directory or a link with the name of a key is odd, too.
    let entries =
        listing.entries.into_iter().filter(|entry| !matches!(entry.kind, Kind::File { .. }));
    let named = entries.map(|entry| (entry.name, "not a regular file".to_owned()));
    let odd = listing.odd.into_iter().chain(named).find(|(name, _)| profile.is_precious(name));
    Ok(Precious { files, odd })
}

fn is_same(machine: &Machine, one: Place<'_>, name: &str, other: Place<'_>) -> Result<bool> {
    let what = || format!("cannot compare `{name}`");
    let state = machine.state.as_ref();
    Ok(digest(state, one, name).doing(what)? == digest(state, other, name).doing(what)?)
}

/// Copies a key aside, unless it is there: under its name, or when another one of that name is there
/// under its name and digest.
pub fn keep(machine: &mut Machine, from: Place<'_>, name: &str, id: &str) -> Result<()> {
    let what = || format!("cannot keep the key `{name}`");
    let aside = Place::Superseded(id);
    let state = machine.state.as_mut();
    let Some(wanted) = digest(state, from, name).doing(what)? else { return Ok(()) };
    let other = format!("{name}.{}", wanted.get(..16).unwrap_or(&wanted));
    for kept in [name, &other] {
        match digest(state, aside, kept).doing(what)? {
            Some(found) if found == wanted => return Ok(()),
            Some(_) => {}
            None => return copy(state, (from, name), (aside, kept)).doing(what),
        }
    }
    Err(Error::new(what()).because("another file has its place"))
}

/// Keys of the sibling that the state in place lacks, or has otherwise, are copied aside. Afterwards
/// the sibling may be destroyed; an error names what stands against that.
pub fn keep_all_of_sibling(machine: &mut Machine, profile: &State, id: &str) -> Result<()> {
    let found = precious(machine, profile, Place::Sibling)?;
    for name in &found.files {
        if !is_same(machine, Place::Sibling, name, Place::State)? {
            keep(machine, Place::Sibling, name, id)?;
        }
    }
    match found.odd {
        None => Ok(()),
        Some((name, why)) => Err(Error::new(format!("cannot keep the key `{name}`"))
            .because(format!("{why}; move it away from the state that is not in place"))),
    }
}

/// Before the roll-back: keys that were made in the restored state go into the old one, and where that
/// has another of the same name, aside.
pub fn keep_new(machine: &mut Machine, profile: &State, committed: &Committed) -> Result<()> {
    let what = || "cannot keep the keys of the restored state".to_owned();
    if machine.state.identity(Place::State).doing(what)? != Some(committed.new_state) {
        return Ok(());
    }
    // What is odd stays in the restored state, which is then not destroyed.
    for name in precious(machine, profile, Place::State)?.files {
        let state = machine.state.as_mut();
        if digest(state, Place::Sibling, &name).doing(what)?.is_none() {
            copy(state, (Place::State, &name), (Place::Sibling, &name)).doing(what)?;
        } else if !is_same(machine, Place::State, &name, Place::Sibling)? {
            keep(machine, Place::State, &name, &committed.request.id)?;
        }
    }
    Ok(())
}
