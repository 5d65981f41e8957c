//! The state on a mounted file system.
//! Side: both. Everything is reached through plain directories, beneath the root of the file system.

use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Mode, RenameFlags, Uid};
use rustix::io::Errno;

use super::{Listing, Place, StateFs, attributes};
use crate::format::archive::{Entry, Kind, Layout, unfit};
use crate::platform::directory;
use crate::profile::State;

/// The real ones.
pub struct StateDirectory {
    root: PathBuf,
    /// The directory that holds the state.
    parent: OwnedFd,
    parent_path: PathBuf,
    name: String,
    own_path: PathBuf,
    layout: Layout,
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
            layout: profile.layout,
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

    /// The directory that holds an entry, and the entry's name in it; none when it is not there.
    fn open_parent<'a>(
        &self,
        place: Place<'_>,
        name: &'a str,
    ) -> io::Result<Option<(OwnedFd, &'a str)>> {
        let Some(mut directory) = self.open_place(place)? else { return Ok(None) };
        let (parents, last) = name.rsplit_once('/').unwrap_or(("", name));
        for parent in parents.split('/').filter(|parent| !parent.is_empty()) {
            match directory::open_at(&directory, parent)? {
                Some(found) => directory = found,
                None => return Ok(None),
            }
        }
        Ok(Some((directory, last)))
    }

    /// In the flat layout every file is private, and its time is of no interest.
    fn apply_to_file(&self, directory: impl AsFd, name: &str, entry: &Entry) -> io::Result<()> {
        match self.layout {
            Layout::Flat => Ok(()),
            Layout::Tree => attributes::apply(directory, name, &entry.kind, &entry.attributes),
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

/// An entry of a directory, and its name in the place; else why no backup could hold it.
fn entry_at(
    directory: &OwnedFd,
    name: &str,
    full_name: &str,
    layout: Layout,
) -> io::Result<Result<Entry, String>> {
    let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let bytes = u64::try_from(stat.st_size).map_err(io::Error::other)?;
    let kind = match (FileType::from_raw_mode(stat.st_mode), layout) {
        (FileType::RegularFile, Layout::Flat) => {
            let modified = u64::try_from(stat.st_mtime).unwrap_or(0);
            return Ok(Ok(Entry::file(full_name, bytes, modified)));
        }
        (_, Layout::Flat) => return Ok(Err("not a regular file".to_owned())),
        (FileType::RegularFile, Layout::Tree) => Kind::File { bytes },
        (FileType::Directory, Layout::Tree) => Kind::Directory,
        (FileType::Symlink, Layout::Tree) => {
            let target = rustix::fs::readlinkat(directory, name, Vec::new())?;
            match target.into_string() {
                Ok(target) => Kind::Symlink { target },
                Err(_) => return Ok(Err("a link to a name that is not UTF-8".to_owned())),
            }
        }
        (_, Layout::Tree) => return Ok(Err("neither file, directory nor link".to_owned())),
    };
    if stat.st_nlink > 1 && matches!(kind, Kind::File { .. }) {
        log::warn!("`{full_name}` has {} names, and each becomes a file of its own", stat.st_nlink);
    }
    let attributes = attributes::read(directory, name, &stat)?;
    Ok(Ok(Entry { name: full_name.to_owned(), kind, attributes }))
}

/// Everything below a directory, parents first.
fn list_into(
    listing: &mut Listing,
    directory: &OwnedFd,
    prefix: &str,
    device: u64,
    layout: Layout,
) -> io::Result<()> {
    for raw in directory::raw_names(directory)? {
        let shown = format!("{prefix}{}", raw.to_string_lossy());
        let Some(name) = raw.to_str() else {
            listing.odd.push((shown, "no name in UTF-8".to_owned()));
            continue;
        };
        let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if layout == Layout::Tree && FileType::from_raw_mode(stat.st_mode) == FileType::Socket {
            // It belongs to who listens there, and is made anew by him.
            log::info!("`{shown}` is a socket, and in no backup");
            continue;
        }
        let entry = if stat.st_dev == device {
            entry_at(directory, name, &shown, layout)?
        } else {
            Err("on another file system".to_owned())
        };
        let entry = match entry {
            Ok(entry) => entry,
            Err(why) => {
                listing.odd.push((shown, why));
                continue;
            }
        };
        let is_directory = entry.kind == Kind::Directory;
        if let Some(why) = unfit(&entry, layout) {
            listing.odd.push((shown, why));
            continue;
        }
        listing.entries.push(entry);
        if is_directory && let Some(inner) = directory::open_at(directory, name)? {
            list_into(listing, &inner, &format!("{shown}/"), device, layout)?;
        }
    }
    Ok(())
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
        let device = rustix::fs::fstat(&directory)?.st_dev;
        if self.layout == Layout::Tree {
            listing.entries.extend(entry_at(&directory, ".", ".", self.layout)?.ok());
        }
        list_into(&mut listing, &directory, "", device, self.layout)?;
        Ok(listing)
    }

    fn look(&self, place: Place<'_>, name: &str) -> io::Result<Option<Entry>> {
        let Some((directory, last)) = self.open_parent(place, name)? else { return Ok(None) };
        match entry_at(&directory, last, name, self.layout) {
            Ok(Ok(entry)) => Ok(Some(entry)),
            Ok(Err(why)) => Err(io::Error::other(format!("`{name}`: {why}"))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn open(&self, place: Place<'_>, name: &str) -> io::Result<Option<Box<dyn Read>>> {
        let Some((directory, last)) = self.open_parent(place, name)? else { return Ok(None) };
        let file = directory::open_file(&directory, last)?;
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

    fn write(&mut self, place: Place<'_>, entry: &Entry, content: &mut dyn Read) -> io::Result<()> {
        if self.open_place(place)?.is_none() {
            self.make_place(place)?;
        }
        let missing = || io::Error::new(io::ErrorKind::NotFound, "its directory is not there");
        let (directory, name) = self.open_parent(place, &entry.name)?.ok_or_else(missing)?;
        match &entry.kind {
            Kind::Directory if entry.name == "." => return Ok(()),
            Kind::Directory => {
                rustix::fs::mkdirat(&directory, name, Mode::RWXU)?;
                return if place == Place::New {
                    Ok(())
                } else {
                    Ok(rustix::fs::fsync(&directory)?)
                };
            }
            Kind::Symlink { target } => {
                rustix::fs::symlinkat(target.as_str(), &directory, name)?;
                attributes::apply(&directory, name, &entry.kind, &entry.attributes)?;
                if place != Place::New {
                    rustix::fs::fsync(&directory)?;
                }
            }
            // Nothing looks there before it is whole.
            Kind::File { .. } if place == Place::New => {
                let mut file = directory::new_file(&directory, name)?;
                io::copy(content, &mut file)?;
                self.apply_to_file(&directory, name, entry)?;
            }
            Kind::File { .. } => {
                let temporary = format!(".{name}.restage");
                directory::create_from(&directory, &temporary, name, content, &|| {
                    self.apply_to_file(&directory, &temporary, entry)
                })?;
            }
        }
        Ok(())
    }

    fn settle(&mut self, place: Place<'_>, directory: &Entry) -> io::Result<()> {
        let missing = || io::Error::new(io::ErrorKind::NotFound, "it is not there");
        let (parent, name) = self.open_parent(place, &directory.name)?.ok_or_else(missing)?;
        attributes::apply(&parent, name, &directory.kind, &directory.attributes)?;
        let settled = directory::open_at(&parent, name)?.ok_or_else(missing)?;
        Ok(rustix::fs::fsync(settled)?)
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(&self.parent)?)
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
