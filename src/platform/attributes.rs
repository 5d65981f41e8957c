//! Owner, mode, time and extended attributes of what lies in a directory. No link is followed.
//! Side: both.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Gid, Mode, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags};
use rustix::io::Errno;

use super::directory::Node;
use crate::format::archive::{Attributes, Kind};

/// Linux allows no longer list and no longer value (xattr(7)).
const MAX_XATTR_BYTES: usize = 64 * 1024;

/// Reads what `node` does not say, too.
pub fn read(directory: impl AsFd, name: &OsStr, node: &Node) -> io::Result<Attributes> {
    Ok(Attributes {
        mode: node.mode,
        owner: node.owner,
        group: node.group,
        modified: node.modified,
        xattrs: xattrs(&path(directory, name))?,
    })
}

/// Gives them to what is there, the time last, for the others would change it.
pub fn apply(
    directory: impl AsFd,
    name: &OsStr,
    kind: &Kind,
    attributes: &Attributes,
) -> io::Result<()> {
    let (directory, no_follow) = (directory.as_fd(), AtFlags::SYMLINK_NOFOLLOW);
    let owner = (Uid::from_raw(attributes.owner), Gid::from_raw(attributes.group));
    rustix::fs::chownat(directory, name, Some(owner.0), Some(owner.1), no_follow)?;
    if !matches!(kind, Kind::Symlink { .. }) {
        // The mode after the owner: a new owner takes the set-user-ID bit away.
        let mode = Mode::from_raw_mode(attributes.mode);
        // This one follows links, and there is none here: a file or a directory was just made.
        rustix::fs::chmodat(directory, name, mode, AtFlags::empty())?;
    }
    let path = path(directory, name);
    for (key, value) in &attributes.xattrs {
        rustix::fs::lsetxattr(&path, key.as_str(), value, XattrFlags::empty()).map_err(
            |error| {
                let name = name.to_string_lossy();
                io::Error::other(format!("`{name}`: the extended attribute `{key}`: {error}"))
            },
        )?;
    }
    let modified = i64::try_from(attributes.modified).map_err(io::Error::other)?;
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: modified, tv_nsec: 0 },
    };
    Ok(rustix::fs::utimensat(directory, name, &times, no_follow)?)
}

/// There are no calls for extended attributes that take a directory handle and do not follow links.
fn path(directory: impl AsFd, name: &OsStr) -> PathBuf {
    Path::new(&format!("/proc/self/fd/{}", directory.as_fd().as_raw_fd())).join(name)
}

fn xattrs(path: &Path) -> io::Result<BTreeMap<String, Vec<u8>>> {
    let mut names = vec![0_u8; MAX_XATTR_BYTES];
    let length = match rustix::fs::llistxattr(path, &mut names) {
        Ok(length) => length,
        Err(Errno::NOTSUP) => return Ok(BTreeMap::new()),
        Err(error) => return Err(error.into()),
    };
    let names = names.get(..length).unwrap_or_default();
    let mut found = BTreeMap::new();
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let text = String::from_utf8(name.to_vec()).map_err(io::Error::other)?;
        let mut value = vec![0_u8; MAX_XATTR_BYTES];
        match rustix::fs::lgetxattr(path, CString::new(name)?.as_c_str(), &mut value) {
            Ok(length) => {
                value.truncate(length);
                found.insert(text, value);
            }
            // Some are only shown in the list.
            Err(Errno::NODATA | Errno::NOTSUP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(found)
}
