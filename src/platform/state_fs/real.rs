//! The state on a mounted file system.
//! Side: both. Everything is reached through plain directories, beneath the root of the file system.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::{Listing, Place, SUPERSEDED, StateFs};
use crate::format::archive::{Entry, Kind, Layout, unfit};
use crate::format::stream;
use crate::platform::directory::{self, Dir, Directory, Node, NodeKind};
use crate::profile::State;

/// The real ones.
pub struct StateDirectory {
    root: Dir,
    root_path: PathBuf,
    /// The directory that holds the state, and its path below the root.
    parent: Dir,
    parent_path: String,
    name: String,
    /// restage's own directory: its path below the root.
    own_path: String,
    layout: Layout,
}

impl StateDirectory {
    /// Opens what lies below `root`, the root of the state file system.
    pub fn open(root: &Path, profile: &State) -> io::Result<Self> {
        Self::below(directory::open(root)?, root, profile)
    }

    /// The same on an open root, which programs that take a path find at `root_path`.
    pub fn below(root: Dir, root_path: &Path, profile: &State) -> io::Result<Self> {
        let (parent, name) = profile
            .directory
            .rsplit_once('/')
            .ok_or_else(|| io::Error::other("the state directory lies at the root"))?;
        let missing = || {
            let what = format!("{}: no {parent}", root_path.display());
            io::Error::new(io::ErrorKind::NotFound, what)
        };
        Ok(Self {
            parent: walk(root.as_ref(), parent)?.ok_or_else(missing)?,
            root,
            root_path: root_path.to_owned(),
            parent_path: parent.to_owned(),
            name: name.to_owned(),
            own_path: profile.own_directory.clone(),
            layout: profile.layout,
        })
    }

    fn sibling(&self) -> String {
        format!(".{}.restage", self.name)
    }

    fn new_name(&self) -> String {
        format!(".{}.new.restage", self.name)
    }

    fn open_place(&self, place: Place<'_>) -> io::Result<Option<Dir>> {
        let parent = self.parent.as_ref();
        match place {
            Place::State => directory::open_at(parent, &self.name),
            Place::New => directory::open_at(parent, self.new_name()),
            Place::Sibling => directory::open_at(parent, self.sibling()),
            Place::Superseded(id) => {
                let Some(all) = self.open_superseded()? else { return Ok(None) };
                directory::open_at(all.as_ref(), id)
            }
        }
    }

    /// The directory that holds an entry, and the entry's name in it; none when it is not there.
    fn open_parent<'a>(
        &self,
        place: Place<'_>,
        name: &'a str,
    ) -> io::Result<Option<(Dir, &'a str)>> {
        let Some(directory) = self.open_place(place)? else { return Ok(None) };
        let (parents, last) = name.rsplit_once('/').unwrap_or(("", name));
        Ok(walk(directory.as_ref(), parents)?.map(|directory| (directory, last)))
    }

    /// In the flat layout every file is private, and its time is of no interest.
    fn apply_to_file(
        &self,
        directory: &dyn Directory,
        name: &str,
        entry: &Entry,
    ) -> io::Result<()> {
        match self.layout {
            Layout::Flat => Ok(()),
            Layout::Tree => directory.set_attributes(name.as_ref(), &entry.kind, &entry.attributes),
        }
    }

    fn open_superseded(&self) -> io::Result<Option<Dir>> {
        match walk(self.root.as_ref(), &self.own_path)? {
            Some(own) => directory::open_at(own.as_ref(), SUPERSEDED),
            None => Ok(None),
        }
    }

    fn make_place(&self, place: Place<'_>) -> io::Result<Dir> {
        let parent = self.parent.as_ref();
        match place {
            Place::State => directory::make(parent, &self.name),
            Place::New => directory::make(parent, &self.new_name()),
            Place::Sibling => directory::make(parent, &self.sibling()),
            Place::Superseded(id) => {
                let own = make_path(self.root.as_ref(), &self.own_path)?;
                let all = directory::make(own.as_ref(), SUPERSEDED)?;
                directory::make(all.as_ref(), id)
            }
        }
    }
}

/// An entry of a directory, and its name in the place; else why no backup could hold it.
fn entry_at(
    directory: &dyn Directory,
    name: &str,
    node: &Node,
    full_name: &str,
    layout: Layout,
) -> io::Result<Result<Entry, String>> {
    let kind = match (node.kind, layout) {
        (NodeKind::File, Layout::Flat) => {
            return Ok(Ok(Entry::file(full_name, node.bytes, node.modified)));
        }
        (_, Layout::Flat) => return Ok(Err("not a regular file".to_owned())),
        (NodeKind::File, Layout::Tree) => Kind::File { bytes: node.bytes },
        (NodeKind::Directory, Layout::Tree) => Kind::Directory,
        (NodeKind::Symlink, Layout::Tree) => {
            match String::from_utf8(directory.link_target(name.as_ref())?) {
                Ok(target) => Kind::Symlink { target },
                Err(_) => return Ok(Err("a link to a name that is not UTF-8".to_owned())),
            }
        }
        (NodeKind::Socket | NodeKind::Other, Layout::Tree) => {
            return Ok(Err("neither file, directory nor link".to_owned()));
        }
    };
    if node.links > 1 && node.kind == NodeKind::File {
        log::warn!("`{full_name}` has {} names, and each becomes a file of its own", node.links);
    }
    let attributes = directory.attributes(name.as_ref())?;
    Ok(Ok(Entry { name: full_name.to_owned(), kind, attributes }))
}

/// Everything below a directory, parents first.
fn list_into(
    listing: &mut Listing,
    directory: &dyn Directory,
    prefix: &str,
    device: u64,
    layout: Layout,
) -> io::Result<()> {
    for raw in directory.names()? {
        let shown = format!("{prefix}{}", raw.to_string_lossy());
        let Some(name) = raw.to_str() else {
            listing.odd.push((shown, "no name in UTF-8".to_owned()));
            continue;
        };
        let node = directory.look(&raw)?.ok_or(io::ErrorKind::NotFound)?;
        if layout == Layout::Tree && node.kind == NodeKind::Socket {
            // It belongs to who listens there, and is made anew by him.
            log::info!("`{shown}` is a socket, and in no backup");
            continue;
        }
        let entry = if node.device == device {
            entry_at(directory, name, &node, &shown, layout)?
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
            list_into(listing, inner.as_ref(), &format!("{shown}/"), device, layout)?;
        }
    }
    Ok(())
}

/// The directories that a trial exchanges.
const TRIAL: [&str; 2] = [".restage-try-a", ".restage-try-b"];

fn components(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|component| !component.is_empty())
}

/// Opens a directory below another, through plain directories only; none when it is not there.
fn walk(root: &dyn Directory, path: &str) -> io::Result<Option<Dir>> {
    let mut directory = root.again()?;
    for component in components(path) {
        match directory::open_at(directory.as_ref(), component)? {
            Some(found) => directory = found,
            None => return Ok(None),
        }
    }
    Ok(Some(directory))
}

/// Makes every directory from `root` to `path` that is missing.
pub fn make_path(root: &dyn Directory, path: &str) -> io::Result<Dir> {
    let mut directory = root.again()?;
    for component in components(path) {
        directory = match directory::open_at(directory.as_ref(), component)? {
            Some(found) => found,
            None => directory::make(directory.as_ref(), component)?,
        };
    }
    Ok(directory)
}

impl StateFs for StateDirectory {
    fn identity(&self, place: Place<'_>) -> io::Result<Option<u64>> {
        let Some(directory) = self.open_place(place)? else { return Ok(None) };
        Ok(Some(directory.node()?.number))
    }

    fn list(&self, place: Place<'_>) -> io::Result<Listing> {
        let Some(directory) = self.open_place(place)? else { return Ok(Listing::default()) };
        let mut listing = Listing::default();
        let (directory, node) = (directory.as_ref(), directory.node()?);
        if self.layout == Layout::Tree {
            listing.entries.extend(entry_at(directory, ".", &node, ".", self.layout)?.ok());
        }
        list_into(&mut listing, directory, "", node.device, self.layout)?;
        Ok(listing)
    }

    fn look(&self, place: Place<'_>, name: &str) -> io::Result<Option<Entry>> {
        let Some((directory, last)) = self.open_parent(place, name)? else { return Ok(None) };
        let Some(node) = directory.look(last.as_ref())? else { return Ok(None) };
        match entry_at(directory.as_ref(), last, &node, name, self.layout)? {
            Ok(entry) => Ok(Some(entry)),
            Err(why) => Err(io::Error::other(format!("`{name}`: {why}"))),
        }
    }

    fn open(&self, place: Place<'_>, name: &str) -> io::Result<Option<Box<dyn Read>>> {
        let Some((directory, last)) = self.open_parent(place, name)? else { return Ok(None) };
        Ok(directory.file(last.as_ref())?.map(|file| file as Box<dyn Read>))
    }

    fn make(&mut self, place: Place<'_>) -> io::Result<()> {
        self.remove(place)?;
        let made = self.make_place(place)?;
        if let Some(state) = self.open_place(Place::State)? {
            made.become_like(&state.node()?)?;
        }
        made.sync()
    }

    fn write(&mut self, place: Place<'_>, entry: &Entry, content: &mut dyn Read) -> io::Result<()> {
        if self.open_place(place)?.is_none() {
            self.make_place(place)?;
        }
        let missing = || io::Error::new(io::ErrorKind::NotFound, "its directory is not there");
        let (directory, name) = self.open_parent(place, &entry.name)?.ok_or_else(missing)?;
        let directory = directory.as_ref();
        match &entry.kind {
            Kind::Directory if entry.name == "." => return Ok(()),
            // Its attributes come when all is in it.
            Kind::Directory if place == Place::New => directory.new_directory(name.as_ref())?,
            // It appears with its attributes: one that is there is taken for whole after a cut.
            Kind::Directory => {
                let temporary = format!(".{name}.restage");
                directory::remove_tree(directory, &temporary)?;
                directory.new_directory(temporary.as_ref())?;
                self.apply_to_file(directory, &temporary, entry)?;
                directory::open_at(directory, &temporary)?.ok_or_else(missing)?.sync()?;
                directory.rename(temporary.as_ref(), name.as_ref())?;
            }
            Kind::Symlink { target } => {
                directory.new_link(name.as_ref(), target)?;
                directory.set_attributes(name.as_ref(), &entry.kind, &entry.attributes)?;
            }
            // Nothing looks there before it is whole.
            Kind::File { .. } if place == Place::New => {
                let mut file = directory.new_file(name.as_ref())?;
                stream::copy(content, &mut file)?;
                return self.apply_to_file(directory, name, entry);
            }
            Kind::File { .. } => {
                let temporary = format!(".{name}.restage");
                directory::create_from(directory, &temporary, name, content, &|| {
                    self.apply_to_file(directory, &temporary, entry)
                })?;
                return Ok(());
            }
        }
        if place == Place::New { Ok(()) } else { directory.sync() }
    }

    fn settle(&mut self, place: Place<'_>, directory: &Entry) -> io::Result<()> {
        let missing = || io::Error::new(io::ErrorKind::NotFound, "it is not there");
        let (parent, name) = self.open_parent(place, &directory.name)?.ok_or_else(missing)?;
        parent.set_attributes(name.as_ref(), &directory.kind, &directory.attributes)?;
        directory::open_at(parent.as_ref(), name)?.ok_or_else(missing)?.sync()
    }

    fn sync(&mut self) -> io::Result<()> {
        self.parent.sync_file_system()
    }

    fn remove(&mut self, place: Place<'_>) -> io::Result<()> {
        match place {
            Place::State => Err(io::Error::other("the state is never removed")),
            // And what is left of a trial that was cut off: worthless as well.
            Place::New => std::iter::once(self.new_name().as_str())
                .chain(TRIAL)
                .try_for_each(|name| directory::remove_tree(self.parent.as_ref(), name)),
            Place::Sibling => directory::remove_tree(self.parent.as_ref(), self.sibling()),
            Place::Superseded(id) => match self.open_superseded()? {
                Some(all) => directory::remove_tree(all.as_ref(), id),
                None => Ok(()),
            },
        }
    }

    fn promote(&mut self) -> io::Result<()> {
        self.parent.rename(self.new_name().as_ref(), self.sibling().as_ref())?;
        self.parent.sync()
    }

    fn exchange(&mut self) -> io::Result<()> {
        exchange(self.parent.as_ref(), &self.name, &self.sibling())
    }

    fn check_place(&self) -> io::Result<()> {
        let missing = || io::Error::new(io::ErrorKind::NotFound, "there is no such directory");
        let state = self.open_place(Place::State)?.ok_or_else(missing)?;
        if state.node()?.device != self.parent.node()?.device {
            return Err(io::Error::other("it is a mount point"));
        }
        // The initrd mounts the root of the state file system and nothing below it.
        let state = format!("{}/{}", self.parent_path, self.name);
        for path in [state.as_str(), self.own_path.as_str()] {
            let mut directory = self.root.again()?;
            for component in components(path) {
                if directory.is_mount_point(component.as_ref())? {
                    let path = self.root_path.join(path);
                    return Err(io::Error::other(format!(
                        "{component} in {} is a mount point",
                        path.display()
                    )));
                }
                match directory::open_at(directory.as_ref(), component)? {
                    Some(found) => directory = found,
                    None => break,
                }
            }
        }
        Ok(())
    }

    fn try_exchange(&mut self) -> io::Result<()> {
        let tried = TRIAL
            .iter()
            .try_for_each(|name| directory::make(self.parent.as_ref(), name).map(drop))
            .and_then(|()| exchange(self.parent.as_ref(), TRIAL[0], TRIAL[1]));
        let removed =
            TRIAL.iter().try_for_each(|name| directory::remove_tree(self.parent.as_ref(), name));
        // The first failure is the one to tell.
        tried.and(removed)
    }

    fn free_bytes(&self) -> io::Result<u64> {
        self.parent.free_bytes()
    }

    fn is_encrypted(&self) -> io::Result<bool> {
        let device = self.parent.node()?.device;
        is_on_crypt(&format!("{}:{}", libc::major(device), libc::minor(device)), 8)
    }

    fn superseded(&self) -> io::Result<Vec<String>> {
        let Some(all) = self.open_superseded()? else { return Ok(Vec::new()) };
        let mut ids = Vec::new();
        for name in all.names()? {
            let is_directory =
                all.look(&name)?.is_some_and(|node| node.kind == NodeKind::Directory);
            ids.extend(is_directory.then(|| name.to_string_lossy().into_owned()));
        }
        Ok(ids)
    }

    fn path(&self, place: Place<'_>, name: &str) -> PathBuf {
        let directory = match place {
            Place::State => Path::new(&self.parent_path).join(&self.name),
            Place::New => Path::new(&self.parent_path).join(self.new_name()),
            Place::Sibling => Path::new(&self.parent_path).join(self.sibling()),
            Place::Superseded(id) => Path::new(&self.own_path).join(SUPERSEDED).join(id),
        };
        self.root_path.join(directory).join(name)
    }
}

fn exchange(parent: &dyn Directory, one: &str, other: &str) -> io::Result<()> {
    parent.exchange(one.as_ref(), other.as_ref())?;
    parent.sync()
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
