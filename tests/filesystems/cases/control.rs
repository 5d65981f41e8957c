//! Protocols that are known to be wrong on FAT, which the explorer must see, and one that is right.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use restage::platform::Store;
use restage::platform::directory::{self, Kernel};
use restage::platform::esp::EspDirectory;

use super::{Booted, Case, Ended, write};
use crate::image::Image;
use crate::layout::Layout;
use crate::medium::Beside;
use crate::rig::{self, Rig, must_run, said};
use crate::unsynced::Unsynced;

const NAME: &str = "01234567.REQ";
/// As long as a marker.
const OLD: [u8; 600] = [b'o'; 600];
const NEW: [u8; 600] = [b'n'; 600];

/// What a control does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Protocol {
    /// A marker is written beside the old one and renamed over it.
    RenameOver,
    /// restage's own protocol of a new file.
    Create,
    /// The same with a directory sync that does nothing.
    CreateUnsynced,
    /// restage's own protocol of a removal.
    Remove,
    /// The same with a directory sync that does nothing.
    RemoveUnsynced,
}

struct Control {
    name: &'static str,
    protocol: Protocol,
    start: Image,
}

impl Control {
    fn marker(at: &Path) -> Result<Option<Vec<u8>>, String> {
        EspDirectory::open(at, "restage").and_then(|esp| esp.read(NAME, 4096)).map_err(said)
    }

    fn change(&self, at: &Path) -> Result<(), String> {
        let is_unsynced =
            matches!(self.protocol, Protocol::CreateUnsynced | Protocol::RemoveUnsynced);
        let root = directory::open(at).map_err(said)?;
        let root = if is_unsynced { Box::new(Unsynced(root)) } else { root };
        let mut esp = EspDirectory::below(root, "restage").map_err(said)?;
        match self.protocol {
            Protocol::Create | Protocol::CreateUnsynced => esp.create(NAME, &NEW).map_err(said),
            Protocol::Remove | Protocol::RemoveUnsynced => esp.remove(NAME).map_err(said),
            Protocol::RenameOver => {
                let over = || {
                    let own = at.join("restage");
                    let mut file = File::create(own.join("NEW"))?;
                    file.write_all(&NEW)?;
                    file.sync_all()?;
                    Kernel::open(&own)?.replace("NEW".as_ref(), NAME.as_ref())?;
                    File::open(&own)?.sync_all()
                };
                over().map_err(said)
            }
        }
    }
}

impl Case for Control {
    fn name(&self) -> &'static str {
        self.name
    }
    fn start(&self) -> (&Image, Beside) {
        (&self.start, Beside::BEFORE)
    }
    fn run(&self, rig: &mut Rig) -> Result<(), String> {
        Rig::in_os(|at| {
            self.change(at)?;
            rig.medium.change(|beside| beside.has_returned = true);
            Ok(())
        })?
    }
    fn check_file_systems(&self, _rig: &mut Rig) -> Result<(), String> {
        rig::check("fsck.fat", "-a", rig::ESP).map(drop)
    }
    fn boot(&self, _rig: &mut Rig) -> Result<Booted, String> {
        Ok(Booted::Nothing { writes: 0 })
    }
    fn may_wait_for_check(&self, _rig: &Rig, _ended: Ended) -> bool {
        false
    }
    fn stage_anew(&self, _rig: &mut Rig) -> Result<(), String> {
        Err("a control stages nothing".to_owned())
    }
    fn check_end(&self, _rig: &mut Rig, ended: Ended) -> Result<(), String> {
        let has_returned = ended.has_returned;
        let mounted = Rig::esp()?;
        let marker = Self::marker(&mounted.path);
        mounted.unmount();
        let is = |wanted: &[u8; 600]| matches!(&marker, Ok(Some(found)) if found == wanted);
        let is_right = match self.protocol {
            // What is there before the protocol has ended may be anything that is no marker.
            Protocol::Create | Protocol::CreateUnsynced => !has_returned || is(&NEW),
            Protocol::Remove | Protocol::RemoveUnsynced => !has_returned || marker == Ok(None),
            Protocol::RenameOver => is(&NEW) || (is(&OLD) && !has_returned),
        };
        if is_right {
            Ok(())
        } else {
            Err(format!("the marker: {:?}", marker.map(|m| m.is_some())))
        }
    }
}

/// All controls; those whose names do not begin with `right-` have to fail.
pub fn all(rig: &mut Rig) -> Result<Vec<Box<dyn Case>>, String> {
    let layout = Layout::new();
    rig.medium.allow(&[]);
    rig.load(&layout.image, Beside::BEFORE);
    rig.switch_on()?;
    must_run("mkfs.vfat", &["-F", "32", "-s", "8", "-i", "c0ffee02", "--invariant", rig::ESP])?;
    let empty = rig.medium.image();
    Rig::in_os(|at| write(&at.join("restage").join(NAME), &OLD))?;
    let marked = rig.medium.image();
    let control = |name, protocol, start: &Image| {
        Box::new(Control { name, protocol, start: start.clone() }) as Box<dyn Case>
    };
    Ok(vec![
        control("rename-over", Protocol::RenameOver, &marked),
        control("create-without-directory-sync", Protocol::CreateUnsynced, &empty),
        control("remove-without-directory-sync", Protocol::RemoveUnsynced, &marked),
        control("right-create", Protocol::Create, &empty),
        control("right-remove", Protocol::Remove, &marked),
    ])
}
