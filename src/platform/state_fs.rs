//! The directory of the OS's state, what lies beside it, and the exchange of the two.
//! Side: both. Touches the state file system below the directories of the profile.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Mode, RenameFlags, Uid};
use rustix::io::Errno;
use zeroize::Zeroizing;

use super::directory;
use crate::profile::State;

/// One of the directories that a restore works with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place<'a> {
    /// The OS's state.
    State,
    /// Beside it: what a backup becomes before anything is committed. Worth nothing.
    New,
    /// Beside it: the committed new state, or the old one. There is a journal as long as it is there.
    Sibling,
    /// Keys that the operation with this id has replaced.
    Superseded(&'a str),
}

/// A regular file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileEntry {
    /// Its name.
    pub name: String,
    /// Length in bytes.
    pub bytes: u64,
    /// Time of the last change, in seconds since 1970.
    pub modified: u64,
}

/// What is in a directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// The regular files, by name.
    pub files: Vec<FileEntry>,
    /// Everything that no backup could hold: its name as far as it can be shown, and why.
    pub odd: Vec<(String, String)>,
}

/// The state, what lies beside it, and the keys that are kept aside. Files are flat and regular.
pub trait StateFs {
    /// A number that no other directory has and that a directory keeps for life; none when it is not
    /// there.
    fn identity(&self, place: Place<'_>) -> io::Result<Option<u64>>;
    /// What is in it; nothing when the directory is not there.
    fn list(&self, place: Place<'_>) -> io::Result<Listing>;
    /// Opens a file for reading; none when it is not there.
    fn open(&self, place: Place<'_>, name: &str) -> io::Result<Option<Box<dyn Read>>>;
    /// Makes an empty directory, with the owner and mode of the state; what was there is destroyed.
    fn make(&mut self, place: Place<'_>) -> io::Result<()>;
    /// Makes a file that is not there yet: whole and durable when this returns, whole or absent after
    /// a power cut. Makes the directory when it is not there.
    fn write(&mut self, place: Place<'_>, name: &str, content: &mut dyn Read) -> io::Result<()>;
    /// Destroys a directory: contents overwritten, then removed. Durable when this returns. Safe to
    /// repeat.
    fn remove(&mut self, place: Place<'_>) -> io::Result<()>;
    /// What was extracted becomes the sibling, in one step. Durable when this returns.
    fn promote(&mut self) -> io::Result<()>;
    /// Exchanges the state and its sibling, in one step. Durable when this returns.
    fn exchange(&mut self) -> io::Result<()>;
    /// Looks whether the state is a plain directory that can be exchanged with another one, and that
    /// restage's own lies on the same file system.
    fn check_place(&self) -> io::Result<()>;
    /// Tries an exchange of two empty directories beside the state. Leaves nothing behind.
    fn try_exchange(&mut self) -> io::Result<()>;
    /// Free space, in bytes.
    fn free_bytes(&self) -> io::Result<u64>;
    /// Whether the file system lies on an encrypted volume.
    fn is_encrypted(&self) -> io::Result<bool>;
    /// The ids with superseded keys.
    fn superseded(&self) -> io::Result<Vec<String>>;
    /// Where this file is, for a program that takes a path.
    fn path(&self, place: Place<'_>, name: &str) -> PathBuf;
}

/// The files of a directory that must hold nothing else: an error names what is there besides.
pub fn only_files(state: &dyn StateFs, place: Place<'_>) -> io::Result<Vec<FileEntry>> {
    let listing = state.list(place)?;
    match listing.odd.first() {
        Some((name, why)) => Err(io::Error::other(format!("`{name}` is {why}"))),
        None => Ok(listing.files),
    }
}

/// Reads a small file that may be secret.
pub fn read_small(
    state: &dyn StateFs,
    place: Place<'_>,
    name: &str,
    max_bytes: u64,
) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
    let Some(file) = state.open(place, name)? else { return Ok(None) };
    let limit = usize::try_from(max_bytes).map_err(io::Error::other)?;
    // One allocation: a grown Vec leaves copies of secrets behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(limit + 1));
    file.take(max_bytes + 1).read_to_end(&mut bytes)?;
    if bytes.len() > limit {
        return Err(io::Error::other(format!("more than {max_bytes} bytes long")));
    }
    Ok(Some(bytes))
}

/// The real ones.
pub struct StateDirectory {
    root: PathBuf,
    /// The directory that holds the state.
    parent: OwnedFd,
    parent_path: PathBuf,
    name: String,
    own_path: PathBuf,
}

impl StateDirectory {
    /// Opens what lies below `root`, the root of the state file system.
    pub fn open(root: &Path, profile: &State) -> io::Result<Self> {
        let (parent, name) = profile
            .directory
            .rsplit_once('/')
            .ok_or_else(|| io::Error::other("the state directory lies at the root"))?;
        let parent_path = root.join(parent);
        Ok(Self {
            root: root.to_owned(),
            parent: walk(root, parent)?,
            parent_path,
            name: name.to_owned(),
            own_path: root.join(&profile.own_directory),
        })
    }

    fn sibling(&self) -> String {
        format!(".{}.restage", self.name)
    }

    fn new_name(&self) -> String {
        format!(".{}.new.restage", self.name)
    }

    fn open_place(&self, place: Place<'_>) -> io::Result<Option<OwnedFd>> {
        match place {
            Place::State => directory::open_at(&self.parent, &self.name),
            Place::New => directory::open_at(&self.parent, self.new_name()),
            Place::Sibling => directory::open_at(&self.parent, self.sibling()),
            Place::Superseded(id) => {
                let Some(all) = self.open_superseded()? else { return Ok(None) };
                directory::open_at(&all, id)
            }
        }
    }

    fn open_superseded(&self) -> io::Result<Option<OwnedFd>> {
        match directory::open(&self.own_path) {
            Ok(own) => directory::open_at(&own, SUPERSEDED),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn make_place(&self, place: Place<'_>) -> io::Result<OwnedFd> {
        match place {
            Place::State => directory::make(&self.parent, &self.name),
            Place::New => directory::make(&self.parent, &self.new_name()),
            Place::Sibling => directory::make(&self.parent, &self.sibling()),
            Place::Superseded(id) => {
                let own = make_path(&self.root, &self.own_path)?;
                directory::make(directory::make(&own, SUPERSEDED)?, id)
            }
        }
    }
}

const SUPERSEDED: &str = "superseded";

/// Opens a directory below another, through plain directories only.
fn walk(root: &Path, path: &str) -> io::Result<OwnedFd> {
    let mut directory = directory::open(root)?;
    for component in path.split('/') {
        directory = directory::open_at(&directory, component)?.ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, format!("{}: no {path}", root.display()))
        })?;
    }
    Ok(directory)
}

/// Makes every directory from `root` to `path` that is missing.
pub fn make_path(root: &Path, path: &Path) -> io::Result<OwnedFd> {
    let mut directory = directory::open(root)?;
    for component in path.strip_prefix(root).map_err(io::Error::other)?.components() {
        let name = component.as_os_str().to_string_lossy();
        directory = match directory::open_at(&directory, name.as_ref())? {
            Some(found) => found,
            None => directory::make(&directory, &name)?,
        };
    }
    Ok(directory)
}

impl StateFs for StateDirectory {
    fn identity(&self, place: Place<'_>) -> io::Result<Option<u64>> {
        let Some(directory) = self.open_place(place)? else { return Ok(None) };
        Ok(Some(rustix::fs::fstat(&directory)?.st_ino))
    }

    fn list(&self, place: Place<'_>) -> io::Result<Listing> {
        let Some(directory) = self.open_place(place)? else { return Ok(Listing::default()) };
        let mut listing = Listing::default();
        for name in directory::raw_names(&directory)? {
            let stat = rustix::fs::statat(&directory, &name, AtFlags::SYMLINK_NOFOLLOW)?;
            let mut odd =
                |name: &str, why: &str| listing.odd.push((name.to_owned(), why.to_owned()));
            match name.to_str() {
                None => odd(&name.to_string_lossy(), "no name in UTF-8"),
                Some(name) if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile => {
                    odd(name, "not a regular file");
                }
                Some(name) => listing.files.push(FileEntry {
                    name: name.to_owned(),
                    bytes: u64::try_from(stat.st_size).map_err(io::Error::other)?,
                    modified: u64::try_from(stat.st_mtime).unwrap_or(0),
                }),
            }
        }
        Ok(listing)
    }

    fn open(&self, place: Place<'_>, name: &str) -> io::Result<Option<Box<dyn Read>>> {
        let Some(directory) = self.open_place(place)? else { return Ok(None) };
        let file = directory::open_file(&directory, name)?;
        Ok(file.map(|file| Box::new(file) as Box<dyn Read>))
    }

    fn make(&mut self, place: Place<'_>) -> io::Result<()> {
        self.remove(place)?;
        let made = self.make_place(place)?;
        if let Some(state) = self.open_place(Place::State)? {
            let stat = rustix::fs::fstat(&state)?;
            let owner = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
            let now = rustix::fs::fstat(&made)?;
            if (now.st_uid, now.st_gid) != (stat.st_uid, stat.st_gid) {
                rustix::fs::fchown(&made, Some(owner.0), Some(owner.1))?;
            }
            rustix::fs::fchmod(&made, Mode::from_raw_mode(stat.st_mode))?;
        }
        Ok(rustix::fs::fsync(made)?)
    }

    fn write(&mut self, place: Place<'_>, name: &str, content: &mut dyn Read) -> io::Result<()> {
        let directory = match self.open_place(place)? {
            Some(directory) => directory,
            None => self.make_place(place)?,
        };
        directory::create_from(&directory, &format!(".{name}.restage"), name, content).map(drop)
    }

    fn remove(&mut self, place: Place<'_>) -> io::Result<()> {
        match place {
            Place::State => Err(io::Error::other("the state is never removed")),
            Place::New => directory::remove_tree(&self.parent, &self.new_name()),
            Place::Sibling => directory::remove_tree(&self.parent, &self.sibling()),
            Place::Superseded(id) => match self.open_superseded()? {
                Some(all) => directory::remove_tree(&all, id),
                None => Ok(()),
            },
        }
    }

    fn promote(&mut self) -> io::Result<()> {
        let (parent, flags) = (&self.parent, RenameFlags::NOREPLACE);
        rustix::fs::renameat_with(parent, self.new_name(), parent, self.sibling(), flags)?;
        Ok(rustix::fs::fsync(parent)?)
    }

    fn exchange(&mut self) -> io::Result<()> {
        exchange(&self.parent, &self.name, &self.sibling())
    }

    fn check_place(&self) -> io::Result<()> {
        let missing = || io::Error::new(io::ErrorKind::NotFound, "there is no such directory");
        let state = self.open_place(Place::State)?.ok_or_else(missing)?;
        let device = |fd: &OwnedFd| rustix::fs::fstat(fd).map(|stat| stat.st_dev);
        if device(&state)? != device(&self.parent)? {
            return Err(io::Error::other("it is a mount point"));
        }
        // The initrd mounts the root of the state file system and nothing below it.
        let state = self.parent_path.join(&self.name);
        let below = |path: &Path| -> Vec<PathBuf> {
            path.ancestors().take_while(|one| *one != self.root).map(Path::to_owned).collect()
        };
        for path in below(&state).into_iter().chain(below(&self.own_path)) {
            if is_mount_point(&path)? {
                return Err(io::Error::other(format!("{} is a mount point", path.display())));
            }
        }
        Ok(())
    }

    fn try_exchange(&mut self) -> io::Result<()> {
        let names = [".restage-try-a", ".restage-try-b"];
        let tried = names
            .iter()
            .try_for_each(|name| directory::make(&self.parent, name).map(drop))
            .and_then(|()| exchange(&self.parent, names[0], names[1]));
        for name in names {
            directory::remove_tree(&self.parent, name)?;
        }
        tried
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let space = rustix::fs::fstatvfs(&self.parent)?;
        Ok(space.f_bavail.saturating_mul(space.f_frsize))
    }

    fn is_encrypted(&self) -> io::Result<bool> {
        let device = std::fs::metadata(&self.parent_path)?.dev();
        is_on_crypt(&format!("{}:{}", libc::major(device), libc::minor(device)), 8)
    }

    fn superseded(&self) -> io::Result<Vec<String>> {
        let Some(all) = self.open_superseded()? else { return Ok(Vec::new()) };
        Ok(directory::list(all)?
            .into_iter()
            .filter(|(_, is_dir)| *is_dir)
            .map(|(n, _)| n)
            .collect())
    }

    fn path(&self, place: Place<'_>, name: &str) -> PathBuf {
        let directory = match place {
            Place::State => self.parent_path.join(&self.name),
            Place::New => self.parent_path.join(self.new_name()),
            Place::Sibling => self.parent_path.join(self.sibling()),
            Place::Superseded(id) => self.own_path.join(SUPERSEDED).join(id),
        };
        directory.join(name)
    }
}

fn exchange(parent: impl AsFd, one: &str, other: &str) -> io::Result<()> {
    rustix::fs::renameat_with(&parent, one, &parent, other, RenameFlags::EXCHANGE)?;
    Ok(rustix::fs::fsync(parent)?)
}

/// Bind mounts of the same file system have the same device number.
fn is_mount_point(path: &Path) -> io::Result<bool> {
    let (flags, wanted) = (AtFlags::SYMLINK_NOFOLLOW, rustix::fs::StatxFlags::BASIC_STATS);
    match rustix::fs::statx(rustix::fs::CWD, path, flags, wanted) {
        Ok(stat) => Ok(stat.stx_attributes.contains(rustix::fs::StatxAttributes::MOUNT_ROOT)),
        Err(Errno::NOSYS | Errno::NOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Whether a block device is a dm-crypt volume, or lies on nothing but such.
fn is_on_crypt(device: &str, depth: u32) -> io::Result<bool> {
    let sys = Path::new("/sys/dev/block").join(device);
    let uuid = std::fs::read_to_string(sys.join("dm/uuid")).unwrap_or_default();
    // libcryptsetup's other kinds, integrity and verity, hide nothing.
    if ["CRYPT-LUKS1-", "CRYPT-LUKS2-", "CRYPT-PLAIN-"].iter().any(|kind| uuid.starts_with(kind)) {
        return Ok(true);
    }
    let Ok(slaves) = std::fs::read_dir(sys.join("slaves")) else { return Ok(false) };
    let mut on_any = false;
    for slave in slaves {
        let slave = slave?.path().join("dev");
        let Ok(device) = std::fs::read_to_string(slave) else { return Ok(false) };
        if depth == 0 || !is_on_crypt(device.trim(), depth - 1)? {
            return Ok(false);
        }
        on_any = true;
    }
    Ok(on_any)
}

/// A file whose name a person gave: written beside its place and moved there when it is whole.
pub struct NewFile {
    directory: OwnedFd,
    name: String,
    temporary: String,
    file: File,
}

impl NewFile {
    /// Begins a file at `path`, mode 0600. Nothing is seen there until [`NewFile::commit`].
    pub fn begin(path: &Path) -> io::Result<Self> {
        let name = path.file_name().ok_or_else(|| io::Error::other("not the name of a file"))?;
        let name = name.to_str().ok_or_else(|| io::Error::other("the name is not UTF-8"))?;
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
        let directory = rustix::fs::open(
            parent.unwrap_or(Path::new(".")),
            rustix::fs::OFlags::RDONLY
                | rustix::fs::OFlags::DIRECTORY
                | rustix::fs::OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let temporary = format!(".{name}.restage-{}", std::process::id());
        let file = directory::new_file(&directory, &temporary)?;
        Ok(Self { directory, name: name.to_owned(), temporary, file })
    }

    /// Where to write.
    pub fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Makes it appear, durable when this returns; an existing file is replaced only if `replace`.
    pub fn commit(self, replace: bool) -> io::Result<()> {
        let flags = if replace { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
        let moved = self.file.sync_all().and_then(|()| {
            let (directory, name) = (&self.directory, &self.name);
            Ok(rustix::fs::renameat_with(directory, &self.temporary, directory, name, flags)?)
        });
        match moved {
            Ok(()) => Ok(rustix::fs::fsync(&self.directory)?),
            Err(error) => {
                self.abandon();
                Err(error)
            }
        }
    }

    /// Leaves nothing behind.
    pub fn abandon(self) {
        // There is nothing better to do about a file that cannot be removed.
        let _ = directory::shred(&self.directory, &self.temporary);
    }
}
