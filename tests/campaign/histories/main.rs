//! Single histories in the model: what somebody else does to a machine between its boots, what fails at
//! each of them, and what must never come of it. That nothing is lost wherever the power goes is what the
//! programs of this package show.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::expect_used,
    reason = "a test: a panic is its verdict"
)]

mod reset;
mod restore;

use std::ffi::OsStr;
use std::io::Write;

use restage::platform::directory::{self, Dir};
use restage_campaign::model::files::{self, Found};
use restage_campaign::model::{Device, World};

/// The machine, at rest again, after somebody has worked in this directory of its file system.
fn after(world: &World, device: Device, path: &str, work: impl FnOnce(&Dir)) -> World {
    let world = world.share();
    let names = path.split('/').filter(|name| !name.is_empty());
    let directory = names.fold(files::root(&world, device), |directory, name| {
        directory.directory(OsStr::new(name)).unwrap().unwrap()
    });
    work(&directory);
    let world = world.borrow();
    world.settled()
}

/// A file gets this content.
fn put(directory: &Dir, name: &str, bytes: &[u8]) {
    directory::remove(directory.as_ref(), name).unwrap();
    directory.new_file(name.as_ref()).unwrap().write_all(bytes).unwrap();
}

/// The content of a file.
fn text(world: &World, device: Device, path: &str) -> String {
    let files = if device == Device::Esp { &world.esp } else { &world.state };
    match files.all().remove(path) {
        Some(Found::File(bytes)) => String::from_utf8(bytes).unwrap(),
        found => panic!("{path}: {found:?}"),
    }
}
