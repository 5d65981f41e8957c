//! The EFI system partition of a machine that is off: its files, read and
//! written from outside; and a second ESP made from nothing.

use crate::disk::{Disk, Region};
use crate::failure::{Doing, Outcome};
use fatfs::{Dir, FileSystem, FormatVolumeOptions, FsOptions};
use std::collections::BTreeMap;
use std::io::{Read, Write};

/// Files by path, upper and lower case as they are stored.
pub type Files = BTreeMap<String, Vec<u8>>;

/// restage's directory there.
pub const RESTAGE: &str = "restage";

pub struct Esp {
    fat: FileSystem<Region>,
}

impl Esp {
    pub fn open(disk: &Disk) -> Outcome<Self> {
        let part = disk.part("esp")?;
        let fat = FileSystem::new(disk.region(&part), FsOptions::new()).doing("opening the ESP")?;
        Ok(Self { fat })
    }

    /// The files directly in a directory; none when it is not there.
    pub fn files_in(&self, directory: &str) -> Outcome<Files> {
        let mut files = Files::new();
        let Ok(dir) = self.fat.root_dir().open_dir(directory) else {
            return Ok(files);
        };
        for entry in dir.iter() {
            let entry = entry.doing("listing the ESP")?;
            if entry.is_file() {
                files.insert(entry.file_name(), content(&mut entry.to_file())?);
            }
        }
        Ok(files)
    }

    /// Every file, by its path.
    pub fn all(&self) -> Outcome<Files> {
        let mut files = Files::new();
        walk(&self.fat.root_dir(), "", &mut files)?;
        Ok(files)
    }

    pub fn has(&self, path: &str) -> bool {
        let root = self.fat.root_dir();
        root.open_file(path).is_ok() || root.open_dir(path).is_ok()
    }

    /// Writes a file anew, and the directories above it.
    pub fn write(&self, path: &str, bytes: &[u8]) -> Outcome {
        let what = || format!("writing {path} to the ESP");
        let root = self.fat.root_dir();
        for (at, _) in path.match_indices('/') {
            root.create_dir(path.get(..at).unwrap_or_default()).doing(what())?;
        }
        let mut file = root.create_file(path).doing(what())?;
        file.truncate().doing(what())?;
        file.write_all(bytes).doing(what())?;
        file.flush().doing(what())
    }

    /// Removes a file as most programs do: what was in it stays where it was.
    pub fn remove(&self, path: &str) -> Outcome {
        self.fat.root_dir().remove(path).doing(format!("removing {path} from the ESP"))
    }

    pub fn put(&self, directory: &str, files: &Files) -> Outcome {
        files.iter().try_for_each(|(name, bytes)| self.write(&format!("{directory}/{name}"), bytes))
    }

    /// Makes what was written last.
    pub fn close(self) -> Outcome {
        self.fat.unmount().doing("closing the ESP")
    }
}

fn walk(dir: &Dir<'_, Region>, above: &str, files: &mut Files) -> Outcome {
    for entry in dir.iter() {
        let entry = entry.doing("listing the ESP")?;
        let name = entry.file_name();
        if name == "." || name == ".." {
            continue;
        }
        let path = format!("{above}{name}");
        if entry.is_dir() {
            walk(&entry.to_dir(), &format!("{path}/"), files)?;
        } else {
            files.insert(path, content(&mut entry.to_file())?);
        }
    }
    Ok(())
}

fn content(file: &mut impl Read) -> Outcome<Vec<u8>> {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).doing("reading a file on the ESP")?;
    Ok(bytes)
}

/// Makes a FAT file system in the whole of a region.
pub fn format(mut region: Region) -> Outcome<Esp> {
    fatfs::format_volume(&mut region, FormatVolumeOptions::new()).doing("making a second ESP")?;
    let fat = FileSystem::new(region, FsOptions::new()).doing("opening the second ESP")?;
    Ok(Esp { fat })
}
