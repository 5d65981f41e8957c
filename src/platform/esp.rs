//! The ESP as a directory: where it is mounted, or where the caller says.
//! Side: both.

use std::io::{self, Read};
use std::path::Path;
use std::time::{Duration, Instant};

use super::directory::{self, Dir, Directory, Node};
use super::{Esp, Store, locks};
use crate::error::{chain, system_error};
use crate::plan::check::matches;

/// So many directories that cannot be read are passed over.
const MAX_PASSED_OVER: usize = 9;
/// What the kernel says of a directory that is broken, and not of one that it cannot read just now.
const BROKEN: [i32; 3] = [libc::EIO, libc::ENOTDIR, libc::EUCLEAN];
/// An error that is gone after so long was none of the directory's.
const SECOND_LOOK: Duration = Duration::from_secs(1);
/// Whoever has the lock is waited for: staging takes a second, and a question to a person longer.
const LOCK_WAIT: Duration = Duration::from_secs(5);
const LOCK_LOOK: Duration = Duration::from_millis(50);

/// What other users of the OS may do in a directory of restage's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Others {
    /// Look: there is nothing secret in it.
    MayRead,
    /// Nothing.
    MayNothing,
}

/// An open ESP, or another directory that holds one of restage's own.
///
/// A directory on FAT is not made in one change: a power cut may leave its name, and nothing or old data
/// where its first entries should be. Nothing can be done with such a one, and not every fsck mends it.
/// So whoever stages a request passes over a directory on the ESP that cannot be read, and the next file
/// is made in a new one with a number, `restage.1`. The one with the highest number is the one in use.
pub struct EspDirectory {
    root: Dir,
    /// The name of the one in use, or of the one that the first file makes.
    name: String,
    /// restage's own directory; made when the first file is.
    own: Option<Dir>,
    /// Whether its name is durable: whoever made it may not have come to that.
    is_named: bool,
}

impl EspDirectory {
    /// Opens `root`, and restage's directory `name` in it.
    pub fn open(root: &Path, name: &str) -> io::Result<Self> {
        Self::below(directory::open(root)?, name)
    }

    /// The same on an open root.
    pub fn below(root: Dir, name: &str) -> io::Result<Self> {
        root.read_ahead(name)?;
        let own = directory::open_at(root.as_ref(), name)?;
        Ok(Self { root, name: name.to_owned(), own, is_named: false })
    }

    /// On the ESP with this root: of restage's directories there, which begin with `name`, the one in use.
    pub fn on_esp(root: Dir, name: &str) -> io::Result<Self> {
        let name = numbered(name, in_use(root.as_ref(), name)?);
        Self::below(root, &name)
    }

    /// The same for who has something to put there: where restage's directory is broken, it is as if
    /// it were not there, and the next file is made in another one. Nobody else may take what he
    /// cannot read for what is not there. Changes nothing yet.
    pub fn on_esp_to_stage(root: Dir, name: &str) -> io::Result<Self> {
        let number = in_use(root.as_ref(), name)?;
        let used = numbered(name, number);
        let listed = || {
            root.read_ahead(&used)?;
            let own = directory::open_at(root.as_ref(), &used)?;
            own.as_ref().map(|own| own.names()).transpose()?;
            Ok(own)
        };
        let is_broken =
            |error: &io::Error| system_error(error).is_some_and(|number| BROKEN.contains(&number));
        let own = match listed() {
            Err(error) if is_broken(&error) => {
                log::warn!("`{used}` is looked at once more: {}", chain(&error));
                std::thread::sleep(SECOND_LOOK);
                listed()
            }
            own => own,
        };
        match own {
            Ok(own) => Ok(Self { root, name: used, own, is_named: false }),
            Err(error) if is_broken(&error) && number < MAX_PASSED_OVER => {
                let next = numbered(name, number + 1);
                log::warn!("`{next}` will be used instead of `{used}`: {}", chain(&error));
                Ok(Self { root, name: next, own: None, is_named: false })
            }
            Err(error) => Err(error),
        }
    }

    /// Takes the lock that keeps two restages apart, until this is dropped or the process ends, however
    /// it ends. An error names the process that has it.
    pub fn lock(&mut self) -> io::Result<()> {
        let own = self.made()?;
        let until = Instant::now() + LOCK_WAIT;
        while !own.lock()? {
            if Instant::now() > until {
                let holder = locks::holder(&own.node()?);
                let holder = holder.map(|who| format!(": {who}")).unwrap_or_default();
                return Err(io::Error::other(format!("another restage is at work here{holder}")));
            }
            std::thread::sleep(LOCK_LOOK);
        }
        Ok(())
    }

    /// Why it is no place to stage in: other users may do more than that in restage's directory, and what
    /// is staged there is believed at the next boot. On FAT it is the mount that says who may, so it is
    /// known before that directory is made.
    pub fn unguarded(&self, others: Others) -> io::Result<Option<String>> {
        let node = match &self.own {
            Some(own) => own.node()?,
            None if self.root.grows_in_pieces()? => self.root.node()?,
            None => return Ok(None),
        };
        let why = unguarded(&node, rustix::process::geteuid().as_raw(), others);
        Ok(why.map(|why| format!("`{}` {why}", self.name)))
    }

    /// restage's directory, durable, for who makes something in it.
    fn own(&mut self) -> io::Result<&dyn Directory> {
        if self.own.is_some() && !self.is_named {
            self.root.sync()?;
            self.is_named = true;
        }
        self.made()
    }

    /// restage's directory, as it is.
    fn made(&mut self) -> io::Result<&dyn Directory> {
        let own = if let Some(own) = self.own.take() {
            own
        } else {
            let made = directory::make(self.root.as_ref(), &self.name)?;
            self.is_named = true;
            made
        };
        Ok(&**self.own.insert(own))
    }

    /// The directory that holds `path`, and its last component. None when it is not there.
    fn parent<'a>(&self, path: &'a str) -> io::Result<Option<(Dir, &'a str)>> {
        let mut parent = self.root.again()?;
        let (directories, last) = path.rsplit_once('/').map_or((None, path), |(d, l)| (Some(d), l));
        parent.read_ahead(path)?;
        for component in directories.iter().flat_map(|d| d.split('/')) {
            match directory::open_at(parent.as_ref(), component)? {
                Some(next) => parent = next,
                None => return Ok(None),
            }
        }
        Ok(Some((parent, last)))
    }
}

/// Why a directory is none to stage in.
fn unguarded(node: &Node, user: u32, others: Others) -> Option<String> {
    let mode = node.mode;
    if node.owner != user {
        return Some(format!("belongs to user {}", node.owner));
    }
    if mode & 0o022 != 0 {
        return Some(format!("may be changed by other users (mode {mode:04o})"));
    }
    (others == Others::MayNothing && mode & 0o055 != 0).then(|| {
        format!("may be read by other users (mode {mode:04o}), and seeds may be secret: mount the ESP with umask=0077")
    })
}

/// The name of restage's directory after so many that were passed over.
fn numbered(name: &str, number: usize) -> String {
    if number == 0 { name.to_owned() } else { format!("{name}.{number}") }
}

/// All names that restage's directory may have.
pub fn names_in_use(name: &str) -> impl Iterator<Item = String> {
    (0..=MAX_PASSED_OVER).map(move |number| numbered(name, number))
}

/// How many were passed over. They are neither opened nor looked at: for a broken one that may make the file
/// system read-only, or worse.
fn in_use(root: &dyn Directory, name: &str) -> io::Result<usize> {
    // Of the root itself: names that cannot be read are passed over by the kernel.
    root.read_ahead("")?;
    let names = names(root)?;
    let is_there = |number: &usize| {
        let wanted = numbered(name, *number);
        names.iter().any(|name| name.eq_ignore_ascii_case(&wanted))
    };
    Ok((1..=MAX_PASSED_OVER).rev().find(is_there).unwrap_or(0))
}

/// The names in a directory; one that is not UTF-8 is none that restage has given.
fn names(directory: &dyn Directory) -> io::Result<Vec<String>> {
    let names = directory.names()?.into_iter();
    Ok(names.map(|name| name.to_string_lossy().into_owned()).collect())
}

impl Store for EspDirectory {
    fn names(&self) -> io::Result<Vec<String>> {
        self.own.as_ref().map_or(Ok(Vec::new()), |own| names(own.as_ref()))
    }

    fn read(&self, name: &str, max_bytes: usize) -> io::Result<Option<Vec<u8>>> {
        self.own.as_ref().map_or(Ok(None), |own| directory::read(own.as_ref(), name, max_bytes))
    }

    fn unlinked(&self, among: Vec<String>) -> Vec<String> {
        self.own.as_ref().map_or_else(Vec::new, |own| directory::unlinked(own.as_ref(), among))
    }

    fn make_room(&mut self, stem: &str) -> io::Result<()> {
        directory::room::make(self.own()?, stem)
    }

    fn create(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.create_from(name, &mut &*bytes).map(drop)
    }

    fn open(&self, name: &str) -> io::Result<Option<Box<dyn Read>>> {
        let Some(own) = &self.own else { return Ok(None) };
        Ok(own.file(name.as_ref())?.map(|file| file as Box<dyn Read>))
    }

    fn create_from(&mut self, name: &str, content: &mut dyn Read) -> io::Result<u64> {
        directory::create_vouched(self.own()?, name, content)
    }

    fn mark(&mut self, name: &str) -> io::Result<()> {
        directory::mark(self.own()?, name)
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.own.as_ref().map_or(Ok(()), |own| directory::remove(own.as_ref(), name))
    }

    fn shred(&mut self, name: &str) -> io::Result<()> {
        self.own.as_ref().map_or(Ok(()), |own| directory::shred(own.as_ref(), name))
    }

    fn settle(&mut self) -> io::Result<()> {
        let Some(own) = &self.own else { return Ok(()) };
        if !own.grows_in_pieces()? {
            return own.sync_file_system();
        }
        // On vfat that sends the disk no flush.
        let settled = directory::settle(own.as_ref());
        // Its own name.
        settled.and(self.root.sync())
    }
}

impl Esp for EspDirectory {
    fn matching(&self, pattern: &str) -> io::Result<Vec<String>> {
        let Some((parent, _)) = self.parent(pattern)? else { return Ok(Vec::new()) };
        let prefix = pattern.rsplit_once('/').map(|(directories, _)| directories);
        let paths = names(parent.as_ref())?.into_iter().map(|name| match prefix {
            Some(prefix) => format!("{prefix}/{name}"),
            None => name,
        });
        Ok(paths.filter(|path| matches(pattern, path)).collect())
    }

    fn remove_path(&mut self, path: &str) -> io::Result<()> {
        match self.parent(path)? {
            Some((parent, last)) => directory::remove_tree(parent.as_ref(), last),
            // Something on the way to it was removed, durably or not.
            None => self.root.sync(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn esp() -> (tempfile::TempDir, EspDirectory) {
        let root = tempfile::tempdir().unwrap();
        let esp = EspDirectory::open(root.path(), "restage").unwrap();
        (root, esp)
    }

    #[test]
    fn nothing_is_made_before_the_first_file() {
        let (root, mut esp) = esp();
        assert!(esp.names().unwrap().is_empty());
        esp.remove("X.REQ").unwrap();
        assert!(fs::read_dir(root.path()).unwrap().next().is_none());
        esp.create("0000000A.REQ", b"abc").unwrap();
        assert_eq!(esp.names().unwrap(), ["0000000A.REQ"]);
        assert_eq!(esp.read("0000000A.REQ", 3).unwrap().unwrap(), b"abc");
        assert!(esp.read("0000000A.REQ", 2).is_err());
    }

    #[test]
    fn a_broken_one_is_passed_over_by_who_stages_only() {
        let (root, _) = esp();
        // A directory that cannot be opened, for root too: a file.
        fs::write(root.path().join("restage"), "").unwrap();
        let at = || directory::open(root.path()).unwrap();
        let open = || EspDirectory::on_esp(at(), "restage");
        for next in ["restage.1", "restage.2"] {
            assert!(open().is_err(), "a boot passes over nothing");
            let mut esp = EspDirectory::on_esp_to_stage(at(), "restage").unwrap();
            assert!(esp.names().unwrap().is_empty());
            assert!(!root.path().join(next).exists());
            esp.create("0000000A.REQ", b"abc").unwrap();
            assert_eq!(open().unwrap().names().unwrap(), ["0000000A.REQ"]);
            fs::remove_dir_all(root.path().join(next)).unwrap();
            fs::write(root.path().join(next), "").unwrap();
        }
        // Also where one of them is gone.
        fs::remove_file(root.path().join("restage.1")).unwrap();
        assert!(open().is_err());
        // Only on an ESP: elsewhere a name like that is somebody else's.
        fs::remove_file(root.path().join("restage")).unwrap();
        assert!(EspDirectory::open(root.path(), "restage").unwrap().names().unwrap().is_empty());
    }

    #[test]
    fn an_existing_file_is_never_replaced() {
        let (_root, mut esp) = esp();
        esp.create("0000000A.REQ", b"abc").unwrap();
        assert!(esp.create("0000000A.REQ", b"def").is_err());
        assert_eq!(esp.read("0000000A.REQ", 9).unwrap().unwrap(), b"abc");
    }

    #[test]
    fn patterns_find_what_they_mean_and_links_are_not_followed() {
        let (root, mut esp) = esp();
        fs::create_dir_all(root.path().join("loader/credentials/deep")).unwrap();
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("precious"), "1").unwrap();
        for name in ["nvpcr1.cred", "nvpcr2.cred", "other.cred"] {
            fs::write(root.path().join("loader/credentials").join(name), "x").unwrap();
        }
        std::os::unix::fs::symlink(
            outside.path(),
            root.path().join("loader/credentials/deep/link"),
        )
        .unwrap();
        assert_eq!(
            esp.matching("loader/credentials/nvpcr*.cred").unwrap(),
            ["loader/credentials/nvpcr1.cred", "loader/credentials/nvpcr2.cred"]
        );
        assert!(esp.matching("absent/x*").unwrap().is_empty());
        assert_eq!(esp.matching("loader").unwrap(), ["loader"]);
        esp.remove_path("loader").unwrap();
        esp.remove_path("loader").unwrap();
        assert!(!root.path().join("loader").exists());
        assert!(outside.path().join("precious").exists());
    }

    #[test]
    fn two_do_not_work_at_once() {
        let (root, mut first) = esp();
        first.lock().unwrap();
        let mut second = EspDirectory::open(root.path(), "restage").unwrap();
        let refused = second.lock().unwrap_err().to_string();
        let own = format!("another restage is at work here: process {}", std::process::id());
        assert!(refused.starts_with(&own), "{refused}");
        drop(first);
        second.lock().unwrap();
        // One that is just about to end is waited for.
        drop(second);
        let held = fs::File::open(root.path().join("restage")).unwrap();
        rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
        let mut third = EspDirectory::open(root.path(), "restage").unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                std::thread::sleep(Duration::from_millis(200));
                drop(held);
            });
            third.lock().unwrap();
        });
    }

    #[test]
    fn a_directory_of_others_is_none_to_stage_in() {
        let (root, mut esp) = esp();
        esp.create("0000000A.REQ", b"abc").unwrap();
        assert_eq!(esp.unguarded(Others::MayNothing).unwrap(), None);
        let own = root.path().join("restage");
        let mode = |mode| {
            fs::set_permissions(&own, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
        };
        for (bits, read, nothing) in
            [(0o755, true, false), (0o770, false, false), (0o702, false, false)]
        {
            mode(bits);
            assert_eq!(esp.unguarded(Others::MayRead).unwrap().is_none(), read, "{bits:o}");
            assert_eq!(esp.unguarded(Others::MayNothing).unwrap().is_none(), nothing, "{bits:o}");
        }
        let node =
            Node { owner: 1000, mode: 0o700, ..directory::open(&own).unwrap().node().unwrap() };
        assert_eq!(unguarded(&node, 0, Others::MayRead).unwrap(), "belongs to user 1000");
    }
}
