//! The ESP as a directory: where it is mounted, or where the caller says.
//! Side: both.

use std::io::{self, Read};
use std::path::Path;

use super::directory::{self, Dir, Directory};
use super::{Esp, Store};
use crate::plan::check::matches;

/// So many directories that cannot be read are passed over.
const MAX_PASSED_OVER: usize = 9;

/// An open ESP.
///
/// A directory on FAT is not made in one change: a power cut may leave its name, and nothing or old data
/// where its first entries should be. Nothing can be done with such a one, and not every fsck mends it.
/// So when restage's directory cannot be read, the OS passes it over: the next file is made in a new one
/// with a number, `restage.1`. The one with the highest number is the one in use.
pub struct EspDirectory {
    root: Dir,
    /// The name of the one in use, or of the one that the first file makes.
    name: String,
    own: Own,
}

/// restage's own directory.
enum Own {
    /// Not there; made when the first file is.
    Absent,
    /// There, and it cannot be read.
    Unreadable(io::Error),
    /// Here it is.
    Open(Dir),
}

impl EspDirectory {
    /// Opens the ESP at `root`; `name` is restage's directory on it.
    pub fn open(root: &Path, name: &str) -> io::Result<Self> {
        Self::below(directory::open(root)?, name)
    }

    /// The same on an open root.
    pub fn below(root: Dir, name: &str) -> io::Result<Self> {
        let mut used = name.to_owned();
        for number in 1..=MAX_PASSED_OVER {
            let candidate = numbered(name, number);
            if root.look(candidate.as_ref())?.is_none() {
                break;
            }
            used = candidate;
        }
        // Only the last one is listed: where it goes wrong, that may make the file system read-only.
        let own = match directory::open_at(root.as_ref(), &used) {
            Ok(None) => Own::Absent,
            Ok(Some(found)) => match found.names() {
                Ok(_) => Own::Open(found),
                Err(error) => Own::Unreadable(error),
            },
            Err(error) => Own::Unreadable(error),
        };
        Ok(Self { root, name: used, own })
    }

    /// Where restage's directory cannot be read, goes on as if it were not there: the next file is made
    /// in another one. Only for the running OS, which has something to put there; a boot must not take
    /// a directory that it cannot read for one that is not there. Changes nothing yet.
    pub fn pass_over_unreadable(&mut self) -> io::Result<()> {
        let Own::Unreadable(error) = &self.own else { return Ok(()) };
        let (name, number) = match self.name.rsplit_once('.') {
            Some((name, number)) => (name, number.parse::<usize>().unwrap_or_default()),
            None => (self.name.as_str(), 0),
        };
        if number >= MAX_PASSED_OVER {
            return Err(again(error));
        }
        let next = numbered(name, number + 1);
        log::warn!("{} on the ESP is passed over, for `{next}`: {error}", self.name);
        (self.name, self.own) = (next, Own::Absent);
        Ok(())
    }

    /// Takes the lock that keeps two restages apart, until this is dropped.
    pub fn lock(&mut self) -> io::Result<()> {
        if self.own()?.lock()? {
            Ok(())
        } else {
            Err(io::Error::other("another restage is at work on this ESP"))
        }
    }

    fn own(&mut self) -> io::Result<&dyn Directory> {
        if let Own::Absent = self.own {
            self.own = Own::Open(directory::make(self.root.as_ref(), &self.name)?);
        }
        self.there()?.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// restage's directory; none when it is not there.
    fn there(&self) -> io::Result<Option<&dyn Directory>> {
        match &self.own {
            Own::Absent => Ok(None),
            Own::Unreadable(error) => Err(again(error)),
            Own::Open(own) => Ok(Some(own.as_ref())),
        }
    }

    /// The directory that holds `path`, and its last component. None when it is not there.
    fn parent<'a>(&self, path: &'a str) -> io::Result<Option<(Dir, &'a str)>> {
        let mut parent = self.root.again()?;
        let (directories, last) = path.rsplit_once('/').map_or((None, path), |(d, l)| (Some(d), l));
        for component in directories.iter().flat_map(|d| d.split('/')) {
            match directory::open_at(parent.as_ref(), component)? {
                Some(next) => parent = next,
                None => return Ok(None),
            }
        }
        Ok(Some((parent, last)))
    }
}

/// The name of restage's directory after so many that were passed over.
fn numbered(name: &str, number: usize) -> String {
    if number == 0 { name.to_owned() } else { format!("{name}.{number}") }
}

/// The same error once more.
fn again(error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), error.to_string())
}

/// The names in a directory; one that is not UTF-8 is none that restage has given.
fn names(directory: &dyn Directory) -> io::Result<Vec<String>> {
    let names = directory.names()?.into_iter();
    Ok(names.map(|name| name.to_string_lossy().into_owned()).collect())
}

impl Store for EspDirectory {
    fn names(&self) -> io::Result<Vec<String>> {
        self.there()?.map_or(Ok(Vec::new()), names)
    }

    fn read(&self, name: &str, max_bytes: usize) -> io::Result<Option<Vec<u8>>> {
        self.there()?.map_or(Ok(None), |own| directory::read(own, name, max_bytes))
    }

    fn create(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.create_from(name, &mut &*bytes).map(drop)
    }

    fn open(&self, name: &str) -> io::Result<Option<Box<dyn Read>>> {
        let Some(own) = self.there()? else { return Ok(None) };
        Ok(own.file(name.as_ref())?.map(|file| file as Box<dyn Read>))
    }

    fn create_from(&mut self, name: &str, content: &mut dyn Read) -> io::Result<u64> {
        directory::create_vouched(self.own()?, name, content)
    }

    fn mark(&mut self, name: &str) -> io::Result<()> {
        directory::mark(self.own()?, name)
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.there()?.map_or(Ok(()), |own| directory::remove(own, name))
    }

    fn shred(&mut self, name: &str) -> io::Result<()> {
        self.there()?.map_or(Ok(()), |own| directory::shred(own, name))
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
            None => Ok(()),
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
    fn one_that_cannot_be_read_is_passed_over_by_the_os_only() {
        let (root, mut first) = esp();
        // A directory that cannot be listed, for root too: a file.
        fs::write(root.path().join("restage"), "").unwrap();
        assert!(first.pass_over_unreadable().is_ok(), "it was not there when it was opened");
        let open = || EspDirectory::open(root.path(), "restage").unwrap();
        for next in ["restage.1", "restage.2"] {
            let mut esp = open();
            assert!(esp.names().is_err());
            assert!(esp.read("0000000A.REQ", 3).is_err());
            assert!(esp.mark("0000000A.REQ").is_err(), "a boot makes none");
            esp.pass_over_unreadable().unwrap();
            assert!(esp.names().unwrap().is_empty());
            assert!(!root.path().join(next).exists());
            esp.create("0000000A.REQ", b"abc").unwrap();
            assert_eq!(open().names().unwrap(), ["0000000A.REQ"]);
            fs::remove_dir_all(root.path().join(next)).unwrap();
            fs::write(root.path().join(next), "").unwrap();
        }
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
        assert!(second.lock().is_err());
        drop(first);
        second.lock().unwrap();
    }
}
