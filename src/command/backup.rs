//! `restage backup` and `restage inspect`.
//! Side: OS. Reads the state; writes one file that the caller names.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::path::Path;

use serde_json::json;
use sha2::{Digest, Sha256};

use super::os::{print, refuse};
use super::{Exit, print_json, state};
use crate::apply::restore::probe::Trial;
use crate::apply::restore::{Machine, extract, state_of};
use crate::cli;
use crate::error::{Doing, Error, Refused, Result};
use crate::format::archive::{Entry, Kind, ReadError, Writer};
use crate::format::hex;
use crate::format::state::StateFile;
use crate::plan::restore::Backup;
use crate::platform::confined;
use crate::platform::console::{self, Sink, clean};
use crate::platform::new_file::NewFile;
use crate::platform::state_fs::{Place, only_entries};
use crate::profile::{Profile, State};
use crate::request::restore::SkipItem;
use crate::request::stage_restore;

/// The name of standard input and output.
const STREAM: &str = "-";

/// `restage backup`.
pub fn backup(arguments: &cli::Backup) -> Result<Exit> {
    console::start(Sink::Terminal);
    let is_stream = arguments.file.as_os_str() == STREAM;
    if is_stream && arguments.json {
        return refused("--json and a backup cannot both go to standard output", false);
    }
    if is_stream && io::stdout().is_terminal() {
        return refused("a backup holds keys and is no text: not written to a terminal", false);
    }
    let profile = Profile::load(arguments.place.profile.as_deref())?;
    let state = state_of(&profile)?;
    // Read only: the ESP and the volumes are none of a backup's business.
    let root = arguments.place.root.as_deref().unwrap_or(Path::new("/"));
    let machine = state::offline(root, &[], &profile)?;
    let present = match std::fs::symlink_metadata(&arguments.file) {
        Ok(found) if !is_stream => Some(found.is_file()),
        _ => None,
    };
    match present {
        Some(true) if arguments.force => {}
        None => {}
        Some(is_file) => {
            let file = arguments.file.display();
            let why = if is_file { "exists; --force replaces it" } else { "is no regular file" };
            return refused(&format!("{file} {why}"), arguments.json);
        }
    }
    let what = || format!("cannot write the backup {}", arguments.file.display());
    let written = if is_stream {
        write(&machine, state, &mut io::stdout().lock())?
    } else {
        let mut new = NewFile::begin(&arguments.file).doing(what)?;
        match write(&machine, state, new.file()) {
            Ok(written) => {
                new.commit(arguments.force).doing(what)?;
                written
            }
            Err(error) => {
                new.abandon();
                return Err(error);
            }
        }
    };
    let count = written.entries.len();
    if arguments.json {
        let files: Vec<_> = written
            .entries
            .iter()
            .map(|entry| json!({ "name": entry.name, "bytes": entry.bytes() }))
            .collect();
        print_json(&json!({
            "file": arguments.file, "bytes": written.bytes, "sha256": written.sha256, "files": files,
        }))?;
    } else if !is_stream {
        print(&format!(
            "{}: {count} files of /{}, {} bytes, SHA-256 {}\nit holds keys: keep it where nobody else can read it\n",
            arguments.file.display(),
            state.directory,
            written.bytes,
            written.sha256
        ))?;
    }
    Ok(Exit::Done)
}

fn refused(why: &str, json: bool) -> Result<Exit> {
    refuse(&Refused::because(why), json)
}

/// What was written.
struct Written {
    entries: Vec<Entry>,
    sha256: String,
    bytes: u64,
}

/// Counts and digests what passes through it.
struct Counting<W> {
    inner: W,
    digest: Sha256,
    bytes: u64,
}

impl<W: Write> Write for Counting<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.digest.update(bytes.get(..count).unwrap_or_default());
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Writes every file of the state directory. A state that could not be restored is no backup.
fn write(machine: &Machine, profile: &State, sink: &mut dyn Write) -> Result<Written> {
    let what = || format!("cannot back up /{}", profile.directory);
    let files = only_entries(machine.state.as_ref(), Place::State).doing(what)?;
    if let Some(settings) = &profile.settings
        && !files.iter().any(|file| file.name == settings.file)
    {
        return Err(Error::new(what()).because(format!("there is no `{}`", settings.file)));
    }
    let total: u64 = files.iter().map(Entry::bytes).sum();
    if files.len() as u64 > profile.max_files || total > profile.max_bytes {
        return Err(Error::new(what()).because(format!(
            "{} files of {total} bytes are more than a restore accepts ({} files, {} bytes)",
            files.len(),
            profile.max_files,
            profile.max_bytes
        )));
    }
    let sink = Counting { inner: sink, digest: Sha256::new(), bytes: 0 };
    let mut archive = Writer::new(sink, profile.layout);
    let mut entries = Vec::new();
    for entry in files {
        let mut content: Box<dyn Read> = match entry.kind {
            Kind::File { .. } => machine
                .state
                .open(Place::State, &entry.name)
                .and_then(|file| file.ok_or_else(|| io::ErrorKind::NotFound.into()))
                .doing(what)?,
            Kind::Directory | Kind::Symlink { .. } => Box::new(io::empty()),
        };
        archive.append(&entry, &mut content).doing(what)?;
        entries.push(entry);
    }
    let mut sink = archive.finish().doing(what)?;
    sink.flush().doing(what)?;
    Ok(Written { entries, sha256: hex(&sink.digest.finalize()), bytes: sink.bytes })
}

/// Opens a backup that a person named.
pub(super) fn open_backup(file: &Path) -> Result<Box<dyn Read>> {
    if file.as_os_str() == STREAM {
        return Ok(Box::new(io::stdin().lock()));
    }
    let what = || format!("cannot read the backup {}", file.display());
    Ok(Box::new(File::open(file).doing(what)?))
}

/// `restage inspect`.
pub fn inspect(arguments: &cli::Inspect) -> Result<Exit> {
    console::start(Sink::Terminal);
    let profile = Profile::load(arguments.place.profile.as_deref())?;
    let state = state_of(&profile)?;
    let skip = match SkipItem::parse_all(&arguments.skip) {
        Ok(skip) => skip,
        Err(refused) => return refuse(&refused, arguments.json),
    };
    let source = open_backup(&arguments.file)?;
    let backup = match extract::read(confined::read, source, state, &mut |_, _| Ok(())) {
        Ok(backup) => backup,
        Err(ReadError::Bad(why)) => {
            return refuse(&Refused::because(format!("the backup: {why}")), arguments.json);
        }
        Err(ReadError::Io(error) | ReadError::Parser(error)) => {
            let what = format!("cannot read the backup {}", arguments.file.display());
            return Err(Error::new(what).because(error));
        }
    };
    let mut machine = state::at(&arguments.place, &profile)?;
    let checked = stage_restore::check_backup(&mut machine, &profile, &skip, &backup, Trial::Look)?;
    let verdict = checked.map(|(planned, _)| planned.plan);
    let state_file = backup.state.as_ref().and_then(|state| state.as_ref().ok());
    if arguments.json {
        print_json(&json!({
            "sha256": backup.sha256,
            "bytes": backup.bytes,
            "files": backup.files.iter()
                .map(|(name, file)| json!({ "name": name, "bytes": file.bytes }))
                .collect::<Vec<_>>(),
            "others": backup.others.keys().collect::<Vec<_>>(),
            "state_version": state_file.map(StateFile::version),
            "applications": state_file.map(StateFile::applications),
            "recovery_keys": state_file.map(|state| state.recovery_keys().count()),
            "restores_here": verdict.is_ok(),
            "because": verdict.as_ref().err().map(|refused| &refused.reason),
            "plan": verdict.as_ref().ok(),
        }))?;
    } else {
        print(&text(&backup))?;
        print(&match &verdict {
            Ok(plan) => format!("it would restore here:\n  {}\n", plan.describe().join("\n  ")),
            Err(refused) => format!("it would not restore here: {refused}\n"),
        })?;
    }
    Ok(if verdict.is_ok() { Exit::Done } else { Exit::Refused })
}

fn text(backup: &Backup) -> String {
    let mut lines = vec![format!("SHA-256 {}, {} bytes", backup.sha256, backup.bytes)];
    lines.extend(backup.files.iter().map(|(name, file)| format!("{:>10}  {name}", file.bytes)));
    lines.extend(backup.others.iter().map(|(name, kind)| match kind {
        Kind::Symlink { target } => format!("{:>10}  {name} -> {target}", "link"),
        Kind::Directory | Kind::File { .. } => format!("{:>10}  {name}", "directory"),
    }));
    match &backup.state {
        None => {}
        Some(Ok(state)) => lines.push(format!(
            "state file: version {}, {} recovery key(s), applications: {}",
            state.version(),
            state.recovery_keys().count(),
            state.applications().join(", ")
        )),
        Some(Err(why)) => lines.push(format!("state file: {why}")),
    }
    lines.push(String::new());
    lines.iter().map(|line| clean(line)).collect::<Vec<_>>().join("\n")
}
