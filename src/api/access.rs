//! The socket, and who may connect: root, and the group that the profile names.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use listenfd::ListenFd;
use rustix::fs::{FlockOperation, flock};

use crate::error::{Doing, Error, Result};
use crate::profile::Api;

/// So long is waited for another one that is just starting.
const LOCK_WAIT: Duration = Duration::from_secs(5);

/// The socket that systemd has passed on, or one that is made here. One that lets in more than the
/// profile says is not served.
pub fn listen(api: &Api) -> Result<UnixListener> {
    let what = || format!("cannot listen on {}", api.socket);
    let group = api.group.as_deref().map(group_id).transpose().doing(what)?;
    let passed = ListenFd::from_env().take_unix_listener(0).doing(what)?;
    let listener = match passed {
        Some(listener) => listener,
        None => make(Path::new(&api.socket), group).doing(what)?,
    };
    check(&listener, api, group).map_err(|why| Error::new(what()).because(why))?;
    listener.set_nonblocking(true).doing(what)?;
    Ok(listener)
}

fn make(path: &Path, group: Option<u32>) -> io::Result<UnixListener> {
    let directory = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    if !directory.exists() {
        std::fs::create_dir_all(directory)?;
        if group.is_some() {
            chown(directory, Some(0), group)?;
            std::fs::set_permissions(directory, Permissions::from_mode(0o750))?;
        }
    }
    // Of two that are started at once, one finds the other's.
    let turn = std::fs::File::open(directory)?;
    take_turn(&turn)?;
    match UnixStream::connect(path) {
        Ok(_) => return Err(io::Error::other("another one listens there")),
        // Left by one that is gone. What is no socket refuses as well.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            if !std::fs::symlink_metadata(path)?.file_type().is_socket() {
                return Err(io::Error::other("something else is there"));
            }
            std::fs::remove_file(path)?;
        }
        Err(_) => {}
    }
    // Nobody gets in before it is the group's.
    let umask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(path);
    rustix::process::umask(umask);
    let listener = listener?;
    if group.is_some() {
        chown(path, Some(0), group)?;
        std::fs::set_permissions(path, Permissions::from_mode(0o660))?;
    }
    Ok(listener)
}

/// Whoever may open the directory may have the lock on it: not for ever.
fn take_turn(directory: &std::fs::File) -> io::Result<()> {
    let begin = Instant::now();
    loop {
        match flock(directory, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) if begin.elapsed() < LOCK_WAIT => {
                std::thread::sleep(LOCK_WAIT / 50);
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let what = "another process has kept the lock on its directory for 5 s";
                return Err(io::Error::other(what));
            }
            ended => return Ok(ended?),
        }
    }
}

/// Whether the socket is the profile's, and lets in nobody else.
fn check(listener: &UnixListener, api: &Api, group: Option<u32>) -> Result<(), String> {
    let said = |error: io::Error| error.to_string();
    if !rustix::net::sockopt::socket_acceptconn(listener).map_err(|error| error.to_string())? {
        return Err("it is a connection and no listening socket (a socket unit has to have \
                    Accept=no)"
            .to_owned());
    }
    let address = listener.local_addr().map_err(said)?;
    let path = address.as_pathname().ok_or("it has no path")?;
    if path != Path::new(&api.socket) {
        return Err(format!("it is {}, and not the profile's `api.socket`", path.display()));
    }
    let found = std::fs::symlink_metadata(path).map_err(said)?;
    let mode = found.mode() & 0o777;
    // Bits of the others, and of the group where it is another one.
    let forbidden = if Some(found.gid()) == group { 0o007 } else { 0o077 };
    let is_private = mode & forbidden == 0;
    if found.file_type().is_socket() && found.uid() == 0 && is_private {
        if let Some(name) = &api.group
            && (Some(found.gid()) != group || mode & 0o060 != 0o060)
        {
            log::warn!("{}: group {name}, which the profile names, cannot connect", path.display());
        }
        return Ok(());
    }
    let (uid, gid) = (found.uid(), found.gid());
    let may = api.group.as_deref().map_or_else(String::new, |name| format!(" and of group {name}"));
    Err(format!("it belongs to {uid}:{gid} with mode {mode:o}, and has to be root's alone{may}"))
}

/// The number of a group of this machine.
fn group_id(name: &str) -> io::Result<u32> {
    let groups = std::fs::read_to_string("/etc/group")?;
    let mut numbers = groups.lines().filter_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == name).then(|| fields.nth(1)?.parse().ok())?
    });
    numbers.next().ok_or_else(|| io::Error::other(format!("there is no group {name}")))
}
