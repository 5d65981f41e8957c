//! The backup becomes a directory beside the state that nothing reaches.
//! Side: initrd. Writes there only.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufReader, Read};

use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::Machine;
use crate::error::{Doing, Error, Refused, Result, chain};
use crate::format::archive::{Attributes, Entry, Kind, Limits, Parse, ReadError, Visit};
use crate::format::state::StateFile;
use crate::format::{hex, stream};
use crate::plan::restore::{Backup, FileFacts, PlannedRestore, stays};
use crate::platform::state_fs::{Place, StateFs};
use crate::profile::State;
use crate::request::file_name;
use crate::request::restore::{RestoreRequest, SkipItem};

/// A state file is a page of text.
pub const MAX_STATE_BYTES: u64 = 1 << 20;

/// What an archive may have in excess of the files in it.
pub const OVERHEAD_BYTES: u64 = 16 << 20;

/// What is read of an archive at once.
const BUFFER_BYTES: usize = 64 << 10;

/// Digests what passes through it.
pub struct Hashing<R> {
    inner: R,
    digest: Sha256,
    bytes: u64,
}

impl<R> Hashing<R> {
    /// Nothing has passed yet.
    pub fn new(inner: R) -> Self {
        Self { inner, digest: Sha256::new(), bytes: 0 }
    }

    /// SHA-256 and number of all bytes that have passed.
    pub fn finish(self) -> (String, u64) {
        (hex(&self.digest.finalize()), self.bytes)
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.digest.update(buffer.get(..count).unwrap_or_default());
        self.bytes += count as u64;
        Ok(count)
    }
}

/// Reads a backup to its end. `visit` sees every file but the state file.
pub fn read(
    parse: Parse,
    source: impl Read,
    profile: &State,
    visit: &mut Visit<'_>,
) -> Result<Backup, ReadError> {
    let mut files = BTreeMap::new();
    let mut others = BTreeMap::new();
    let mut state: Option<Zeroizing<Vec<u8>>> = None;
    let state_file = profile.settings.as_ref().map(|settings| settings.file.as_str());
    let limits = Limits { files: profile.max_files, bytes: profile.max_bytes };
    // Also of what takes no room when it is unpacked.
    let limit = profile.max_bytes.saturating_add(OVERHEAD_BYTES);
    let mut source = BufReader::with_capacity(BUFFER_BYTES, Hashing::new(source.take(limit)));
    let read = parse(&mut source, profile.layout, limits, &mut |entry, content| {
        let mut content = Hashing::new(content);
        if Some(entry.name.as_str()) == state_file {
            let mut bytes = Zeroizing::new(Vec::new());
            (&mut content).take(MAX_STATE_BYTES + 1).read_to_end(&mut bytes)?;
            state = Some(bytes);
        } else {
            visit(entry, &mut content)?;
        }
        stream::copy(&mut content, &mut io::sink())?;
        let (sha256, bytes) = content.finish();
        if let Kind::File { .. } = entry.kind {
            files.insert(entry.name.clone(), FileFacts { bytes, sha256 });
        } else {
            others.insert(entry.name.clone(), entry.kind.clone());
        }
        Ok(())
    });
    if source.get_ref().bytes >= limit {
        return Err(ReadError::Bad(format!("it is larger than {limit} bytes")));
    }
    read?;
    let state = state_file.map(|_| match state {
        None => Err("it is not there".to_owned()),
        Some(bytes) => parse_state(&bytes),
    });
    let (sha256, bytes) = source.into_inner().finish();
    Ok(Backup { sha256, bytes, files, others, state })
}

/// Reads a state file; the error says what is wrong with it.
pub fn parse_state(bytes: &[u8]) -> Result<StateFile, String> {
    if bytes.len() as u64 > MAX_STATE_BYTES {
        return Err(format!("more than {MAX_STATE_BYTES} bytes long"));
    }
    StateFile::parse(bytes).map_err(|error| error.to_string())
}

/// A backup, and its directories, which get their attributes when all is in them.
pub type Extracted = (Backup, Vec<Entry>);

/// Extracts the staged archive, and believes it only when its digest is the request's. When the process
/// that parses it fails, which says nothing of the archive, it is done once more.
pub fn into_new(
    machine: &mut Machine,
    profile: &State,
    request: &RestoreRequest,
) -> Result<Extracted, Refused> {
    let name = file_name(&request.id, "ARC");
    let refused = |why: String| Refused::because(format!("the staged archive {name}: {why}"));
    let mut extracted = once_into_new(machine, profile, request)?;
    if let Err(ReadError::Parser(error)) = &extracted {
        log::warn!("the staged archive {name}: {}; once more", chain(error));
        extracted = once_into_new(machine, profile, request)?;
    }
    let (backup, directories) = extracted.map_err(|error| refused(chain(&error)))?;
    let (asked, other) = (&request.archive, "it is not the one that was staged");
    if backup.bytes != asked.bytes {
        return Err(refused(format!("{other}: {} bytes, and not {}", backup.bytes, asked.bytes)));
    }
    if backup.sha256 != asked.sha256 {
        return Err(refused(format!("{other}: its SHA-256 differs")));
    }
    Ok((backup, directories))
}

/// The directory is made anew.
fn once_into_new(
    machine: &mut Machine,
    profile: &State,
    request: &RestoreRequest,
) -> Result<Result<Extracted, ReadError>, Refused> {
    let name = file_name(&request.id, "ARC");
    let refused = |why: String| Refused::because(format!("the staged archive {name}: {why}"));
    let failed = |error: io::Error| refused(chain(&error));
    let archive = machine.store.open(&name).map_err(failed)?;
    let archive = archive.ok_or_else(|| refused("it is not there".to_owned()))?;
    let made = machine.state.make(Place::New);
    made.map_err(|error| refused(format!("cannot make a directory for it: {}", chain(&error))))?;
    let state = machine.state.as_mut();
    let skip: &BTreeSet<SkipItem> = &request.skip;
    let mut directories = Vec::new();
    let backup = read(machine.parse, archive, profile, &mut |entry, content| {
        if stays(&entry.name, skip, profile) {
            return Ok(());
        }
        if entry.kind == Kind::Directory {
            directories.push(entry.clone());
        }
        state.write(Place::New, entry, content).map_err(|error| unextracted(entry, error))
    });
    Ok(backup.map(|backup| (backup, directories)))
}

/// What went wrong with one entry, in words. What is wrong with the archive says so itself.
fn unextracted(entry: &Entry, error: io::Error) -> io::Error {
    if matches!(error.get_ref(), Some(inner) if inner.is::<ReadError>()) {
        return error;
    }
    io::Error::new(error.kind(), format!("cannot extract `{}`: {}", entry.name, chain(&error)))
}

/// What the extracted backup lacks: the files that stay, and the new state file. What was extracted
/// is read back: it will be the state.
pub fn complete(
    machine: &mut Machine,
    profile: &State,
    (backup, directories): &(Backup, Vec<Entry>),
    planned: &PlannedRestore,
) -> Result<()> {
    let what = || "cannot complete the new state".to_owned();
    for name in &planned.plan.taken {
        let found = digest(machine.state.as_ref(), Place::New, name).doing(what)?;
        if found.as_ref() != backup.files.get(name).map(|file| &file.sha256) {
            let why = format!("`{name}` is not read back as it was written");
            return Err(Error::new(what()).because(why));
        }
    }
    for name in &planned.plan.kept {
        copy(machine.state.as_mut(), (Place::State, name), (Place::New, name)).doing(what)?;
    }
    if let (Some(settings), Some(new)) = (&profile.settings, &planned.state) {
        let text = new.encode();
        let mut entry = Entry::file(&settings.file, text.len() as u64, machine.host.now);
        let present = machine.state.look(Place::State, &settings.file).doing(what)?;
        if let Some(present) = present {
            entry.attributes = Attributes { modified: machine.host.now, ..present.attributes };
        }
        machine.state.write(Place::New, &entry, &mut text.as_slice()).doing(what)?;
    }
    // From the innermost outwards, for each of them changes the time of the one above.
    for directory in directories.iter().rev() {
        machine.state.settle(Place::New, directory).doing(what)?;
    }
    machine.state.sync().doing(what)
}

/// Copies a file that is not there yet, and the directories above it that are not there.
pub fn copy(
    state: &mut dyn StateFs,
    (from, name): (Place<'_>, &str),
    (to, new_name): (Place<'_>, &str),
) -> io::Result<()> {
    let missing = || io::Error::new(io::ErrorKind::NotFound, format!("`{name}` is not there"));
    for (at, _) in new_name.match_indices('/') {
        let above = new_name.get(..at).unwrap_or_default();
        if state.look(to, above)?.is_none() {
            let directory = state.look(from, above)?.ok_or_else(missing)?;
            state.write(to, &directory, &mut io::empty())?;
            state.settle(to, &directory)?;
        }
    }
    let entry = Entry { name: new_name.to_owned(), ..state.look(from, name)?.ok_or_else(missing)? };
    let mut content = state.open(from, name)?.ok_or_else(missing)?;
    state.write(to, &entry, &mut content)
}

/// SHA-256 of a file; none when it is not there.
pub fn digest(state: &dyn StateFs, place: Place<'_>, name: &str) -> io::Result<Option<String>> {
    let Some(content) = state.open(place, name)? else { return Ok(None) };
    let mut content = Hashing::new(content);
    stream::copy(&mut content, &mut io::sink())?;
    Ok(Some(content.finish().0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_no_fault_of_the_archive() {
        let entry = Entry::file("a.key", 1, 0);
        let full = unextracted(&entry, io::Error::from_raw_os_error(libc::ENOSPC));
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        assert!(full.to_string().starts_with("cannot extract `a.key`: No space left"), "{full}");
        let bad = io::Error::other(ReadError::Bad("it is cut short".to_owned()));
        assert_eq!(unextracted(&entry, bad).to_string(), "it is cut short");
    }
}
