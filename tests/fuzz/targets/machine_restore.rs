//! A restore as a whole: staged from any backup, carried out, confirmed and rolled back on a machine
//! whose own files are damaged meanwhile, with power cuts and faults.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::OnceLock;

use flate2::read::GzDecoder;
use restage::apply::restore::Restored;
use restage::error::{Error, Next, Result};
use restage::format::archive::{self, Layout, Limits};
use restage::format::state::StateFile;
use restage::platform::directory;
use restage_campaign::cases::restore::{Lab, OWN_DIRECTORY, STATE};
use restage_campaign::model::files::{self, Found};
use restage_campaign::model::{Device, Fault, World};

use super::change::{self, Changed};
use crate::bytes::{Bytes, told};
use crate::{memory, seal};

const MAX_EVENTS: usize = 6;
const MAX_BOOTS: usize = 10;
const STEM: &str = "01234567";
/// With this the passphrases of the volumes stay, whatever a backup lists.
const SKIP: &str = "encryption-recovery-keys,local-data-encryption-key,network-macs";

fn lab() -> &'static Lab {
    static LAB: OnceLock<Lab> = OnceLock::new();
    memory::once(&LAB, || Lab::new(""))
}

fn skipping() -> &'static Lab {
    static LAB: OnceLock<Lab> = OnceLock::new();
    memory::once(&LAB, || Lab::new(SKIP))
}

/// The machine before and after each change of a restore, of its confirmation and of its roll-back.
fn starts() -> &'static Vec<World> {
    static STARTS: OnceLock<Vec<World>> = OnceLock::new();
    memory::once(&STARTS, || {
        let lab = lab();
        let within = |start: &World, work: &dyn Fn(&restage_campaign::model::Shared)| {
            let world = start.share();
            let trace = world.borrow_mut().trace();
            work(&world);
            let trace = trace.lock().unwrap();
            trace.iter().map(|boundary| boundary.world.settled()).collect::<Vec<_>>()
        };
        let mut all = vec![lab.staged.clone(), lab.window.clone(), lab.unconfirmed.clone()];
        all.extend(within(&lab.staged, &|world| drop(lab.apply(world).unwrap())));
        all.extend(within(&lab.window, &|world| drop(lab.confirm(world).unwrap())));
        all.extend(within(&lab.unconfirmed, &|world| drop(lab.apply(world).unwrap())));
        all
    })
}

/// A file of that restore, as it first was.
pub fn file(extension: &str) -> Vec<u8> {
    let path = format!("{OWN_DIRECTORY}{STEM}.{extension}");
    let there = |world: &World| match world.state.all().remove(&path) {
        Some(Found::File(bytes)) => bytes.ends_with(b"\n").then_some(bytes),
        _ => None,
    };
    starts().iter().find_map(there).expect("it is there at some time")
}

/// What is in the state directory and in the volumes.
fn state(world: &World) -> (BTreeMap<String, Found>, [restage_campaign::model::slots::Slots; 2]) {
    let mut all = world.state.all();
    all.retain(|path, _| path.starts_with(STATE));
    (all, world.slots)
}

pub fn machine(bytes: &[u8]) {
    let mut bytes = Bytes(bytes);
    let mut world = starts()[bytes.below(starts().len())].clone();
    for _ in 0..MAX_EVENTS {
        if bytes.0.is_empty() {
            break;
        }
        world = match bytes.byte() % 7 {
            0..=2 => damaged(&world, &mut bytes),
            3 => boot(&world, None).1,
            4 => confirm(&world),
            5 => cut(&world, &mut bytes),
            _ => {
                let fault = Fault::ALL[bytes.below(Fault::ALL.len())];
                boot(&world, Some((bytes.below(400), fault))).1
            }
        };
    }
    for _ in 0..MAX_BOOTS {
        let (restored, next) = boot(&world, None);
        world = next;
        match restored {
            Ok(Restored::Nothing) | Err(_) => return,
            Ok(Restored::Unfinished(error)) if error.next() == Next::HoldForOperator => return,
            Ok(_) => {}
        }
    }
    panic!("not over after {MAX_BOOTS} boots");
}

/// restage's own directory is damaged. Its empty files stay: what was synced is not lost by itself.
fn damaged(world: &World, bytes: &mut Bytes<'_>) -> World {
    let shared = world.share();
    let root = files::root(&shared, Device::State);
    let mut own = Some(root);
    for name in OWN_DIRECTORY.trim_end_matches('/').split('/') {
        own = own.and_then(|parent| directory::open_at(parent.as_ref(), name).unwrap());
    }
    let Some(own) = own else { return world.clone() };
    match change::damage(own.as_ref(), bytes) {
        Changed::File(name) if is_progress(&name) => world.clone(),
        // Nor is a journal: what is left without it looks as if it were only staged.
        Changed::File(name)
            if name.ends_with("JNL") && own.look(name.as_ref()).unwrap().is_none() =>
        {
            world.clone()
        }
        Changed::Nothing | Changed::File(_) => {
            let mut world = shared.borrow().settled();
            // Who damages it overwrites nothing first.
            world.state.wrong = None;
            world
        }
    }
}

fn is_progress(name: &str) -> bool {
    name.split_once('.').is_some_and(|(_, extension)| {
        extension[1..].bytes().all(|byte| byte.is_ascii_digit())
            && extension.starts_with(['A', 'S', 'R', 'W', 'C', 'B'])
    })
}

fn sound(world: &World) {
    if let Err(what) = lab().check_state(world) {
        panic!("{what}");
    }
}

fn boot(before: &World, fault: Option<(usize, Fault)>) -> (Result<Restored>, World) {
    let world = before.share();
    world.borrow_mut().fault = fault;
    let restored = lab().apply(&world);
    let after = world.borrow().settled();
    sound(&after);
    tell(&restored);
    let is_untouched = || state(&after) == state(before);
    match &restored {
        Ok(Restored::Nothing) => assert!(is_untouched(), "nothing to do, and something is done"),
        Ok(Restored::Refused(_)) => assert!(is_untouched(), "refused, and something is changed"),
        Err(_) => assert!(is_untouched(), "failed before the commit, and something is changed"),
        Ok(_) => {}
    }
    (restored, after)
}

fn tell(restored: &Result<Restored>) {
    match restored {
        Ok(Restored::Nothing | Restored::Window { .. } | Restored::Confirmed) => {}
        Ok(Restored::Refused(reasons)) => {
            for reason in reasons {
                told(reason);
            }
        }
        Ok(Restored::RolledBack(why)) => told(why),
        Ok(Restored::Later(error) | Restored::Unfinished(error)) | Err(error) => {
            told(&error.chain());
        }
    }
}

fn confirm(before: &World) -> World {
    let world = before.share();
    tell(&lab().confirm(&world));
    let after = world.borrow().settled();
    sound(&after);
    after
}

/// The power goes at some change of a boot.
fn cut(before: &World, bytes: &mut Bytes<'_>) -> World {
    let world = before.share();
    let trace = world.borrow_mut().trace();
    let _ = lab().apply(&world);
    let trace = trace.lock().unwrap();
    let Some(boundary) = trace.get(bytes.below(0x1_0000) % trace.len().max(1)) else {
        return before.clone();
    };
    let mut images = boundary.world.images();
    let image = images.swap_remove(bytes.below(0x1_0000) % images.len());
    sound(&image);
    image
}

pub fn seeds() -> Vec<Vec<u8>> {
    let count = starts().len();
    let start = |number: usize| {
        let bytes = u16::try_from(number).unwrap().to_le_bytes();
        if count > 256 { bytes.to_vec() } else { bytes[..1].to_vec() }
    };
    let mut all = vec![[start(0), vec![3, 4]].concat(), [start(1), vec![3, 3, 3]].concat()];
    for number in (0..count).step_by(5) {
        all.push([start(number), vec![0, 0, 0, 9, 1, 3]].concat());
        all.push([start(number), vec![1, 1, 1, 20, 3]].concat());
        all.push([start(number), vec![5, 9, 0, 3, 0, 3]].concat());
        all.push([start(number), vec![6, 1, 40, 0, 4]].concat());
    }
    all
}

/// A backup is staged, and what is staged is restored: the bytes change the tar of a good one. With the
/// passphrases left alone; with them it is looked at only, for the volumes of the model know no others.
pub fn backup(bytes: &[u8]) {
    let mut bytes = Bytes(bytes);
    let how = bytes.byte();
    let archive = if how & 1 == 0 { changed(&mut bytes) } else { bytes.0.to_vec() };
    let lab = if how & 2 == 0 { skipping() } else { lab() };
    let world = lab.clean.share();
    let staged = lab.stage_archive(&world, &archive);
    let after = world.borrow().settled();
    assert_eq!(state(&after), state(&lab.clean), "staging has changed the state");
    match staged {
        Ok(Ok(())) => {}
        Ok(Err(refused)) => return refused_at_staging(&after, &refused.reason),
        Err(error) => return refused_at_staging(&after, &error.chain()),
    }
    if how & 2 == 0 {
        restored(lab, &after, &archive).unwrap_or_else(|error| panic!("{}", error.chain()));
    }
}

fn refused_at_staging(world: &World, why: &str) {
    told(why);
    let all = world.state.all();
    let left = all.keys().find(|path| path.starts_with(OWN_DIRECTORY) && path.contains(STEM));
    assert_eq!(left, None, "refused, and it is there");
}

/// What was accepted at staging is accepted at boot, and becomes the state, file by file.
fn restored(lab: &Lab, staged: &World, mut bytes: &[u8]) -> Result<(), Error> {
    let world = staged.share();
    let booted = lab.apply(&world)?;
    assert!(matches!(booted, Restored::Window { boots: 1, .. }), "{booted:?}");
    let after = world.borrow().settled();
    let (now, slots) = state(&after);
    assert_eq!(slots, lab.clean.slots);
    let there = |name: &str| now.get(&format!("{STATE}{name}")).cloned();
    let limits = Limits { files: 1000, bytes: 1 << 26 };
    let before = state(&lab.clean).0;
    archive::read(&mut bytes, Layout::Flat, limits, &mut |entry, content| {
        let mut wanted = Vec::new();
        content.read_to_end(&mut wanted)?;
        let stays = ["recovery.root.key", "recovery.swap.key", "zpool.local.key"];
        if stays.contains(&entry.name.as_str()) {
            let here = before.get(&format!("{STATE}{}", entry.name)).cloned();
            assert_eq!(there(&entry.name), here, "{}", entry.name);
        } else if entry.name != "state.txt" {
            assert_eq!(there(&entry.name), Some(Found::File(wanted)), "{}", entry.name);
        }
        Ok(())
    })
    .expect("what was staged can be read");
    let Some(Found::File(text)) = there("state.txt") else { panic!("no state file") };
    let file = StateFile::parse(&text).expect("the new state file can be read");
    assert!(file.recovery_keys().eq(["old-passphrase-0123"]), "a passphrase that opens nothing");
    let world = after.share();
    let confirmed = lab.confirm(&world)?;
    assert!(matches!(confirmed, Restored::Confirmed), "{confirmed:?}");
    let end = world.borrow().settled();
    assert_eq!(state(&end), (now, slots), "confirming has changed the state");
    Ok(())
}

fn good() -> &'static Vec<u8> {
    static GOOD: OnceLock<Vec<u8>> = OnceLock::new();
    memory::once(&GOOD, || {
        let mut tar = Vec::new();
        GzDecoder::new(skipping().archive.as_slice()).read_to_end(&mut tar).unwrap();
        tar
    })
}

/// The good one with runs of bytes over it, and more of them behind a place.
fn changed(bytes: &mut Bytes<'_>) -> Vec<u8> {
    let mut tar = good().clone();
    while !bytes.0.is_empty() {
        let at = bytes.below(tar.len());
        let is_insertion = bytes.byte() & 1 != 0;
        let run = bytes.run();
        if is_insertion {
            let at = at / 512 * 512;
            let mut run = run.to_vec();
            run.resize(run.len().next_multiple_of(512), 0);
            tar.splice(at..at, run);
        } else {
            let end = (at + run.len()).min(tar.len());
            tar[at..end].copy_from_slice(&run[..end - at]);
        }
    }
    seal::tar(&mut tar);
    seal::gzip(&tar)
}

pub const WORDS: &[&str] = &[
    "zpool.other.key",
    "state.txt",
    "luks.x.key",
    "recovery.swap.key",
    "./",
    "#Version: 7\n",
    "Applications[incus].State.Version: 1\n",
    "System.Security.Config.EncryptionRecoveryKeys[1]: ",
    "System.Network.Config.Interfaces[0].Hwaddr: x\n",
    "ustar\u{0}00",
    "00000000010\u{0}",
];

pub fn backup_seeds() -> Vec<Vec<u8>> {
    let name = |at: u16| [&at.to_le_bytes()[..], &[0, 15], b"zpool.other.key"].concat();
    let files = good().chunks(512).enumerate().filter(|(_, block)| block[257..262] == *b"ustar");
    let mut all: Vec<Vec<u8>> =
        files.map(|(at, _)| [vec![0], name(u16::try_from(at * 512).unwrap())].concat()).collect();
    all.extend([vec![0], vec![2], [&[1], skipping().archive.as_slice()].concat()]);
    all.push([&[0, 10, 2, 0, 12], b"#Version: 7\n".as_slice()].concat());
    all
}
