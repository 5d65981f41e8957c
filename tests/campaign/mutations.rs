//! Whether the campaign can see: the program is changed so that it is wrong, and the campaign has to
//! fail.
//!
//! Every sync and every flush of the program is removed, one at a time; and its order is broken in the
//! ways in which such programs are known to be wrong. Each change is made in a copy of the sources. One
//! that is not seen ends this with 1. What nothing could see is listed with the reason, and not tried.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test: a panic is its verdict"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use clap::Parser;

/// Breaks restage in a copy of its sources, in every way it knows, and looks whether the campaign fails.
#[derive(Parser)]
struct Arguments {
    /// Only those whose name contains this.
    only: Option<String>,
    /// Show them, and do nothing.
    #[arg(long)]
    list: bool,
    /// Only those that are looked for by this program: `restage-campaign` or `restage-filesystems`.
    #[arg(long)]
    by: Option<String>,
}

/// One change.
struct Mutation {
    name: String,
    file: &'static str,
    from: String,
    to: String,
    /// Which one of several equal places, from 0.
    place: usize,
}

impl Mutation {
    /// Whether nothing can see it.
    fn is_listed(&self) -> bool {
        let is_it = |(file, line, place, _): &(&str, &str, usize, &str)| {
            let is_there = self.from.trim_matches('\n') == *line && self.place == *place;
            self.file == *file && (is_there || self.name == *line)
        };
        UNSEEN.iter().any(is_it)
    }

    /// Where it may be seen, one after the other.
    fn looks(&self) -> Vec<Look> {
        // What the model stands in for.
        if [KERNEL, "src/platform/disk.rs"].contains(&self.file) {
            let reach = ["--first", "3", "--second", "1000000", "--errors", "1"];
            let cases = ["--violations", "1", "reset-512", "restore"];
            return vec![("restage-filesystems", [&reach[..], &cases].concat())];
        }
        if IN_CLUSTERS.iter().any(|begin| self.name.starts_with(begin)) {
            let reach = ["stage-512", "cancel-512", "--violations", "1", "--second", "1000000"];
            return vec![("restage-filesystems", reach.to_vec())];
        }
        let is_here = |(begin, _): &&(&str, _)| self.file.starts_with(begin);
        let groups = OPERATIONS.iter().find(is_here).map_or(&[][..], |(_, groups)| groups);
        let wide = ["--violations", "1", "--second", "8", "--third", "1000"];
        // A record that is lost is harmless, unless the next attempt fails as well.
        let deep = ["--violations", "1", "--second", "1", "--third", "1000", "--faults", "2"];
        let reaches = groups
            .iter()
            .map(|group| [&wide[..], *group].concat())
            .chain([vec!["--faults-only"], [&deep[..], &["reset", "confirm"]].concat()]);
        reaches.map(|reach| ("restage-campaign", reach)).collect()
    }
}

const ESP: &str = "src/platform/esp.rs";
/// A program of the tests, and how it is called.
type Look = (&'static str, Vec<&'static str>);

const DIRECTORY: &str = "src/platform/directory/mod.rs";
const ROOM: &str = "src/platform/directory/room.rs";
const STATE_FS: &str = "src/platform/state_fs/real.rs";
const EFFECTS: &str = "src/apply/effects.rs";
const KERNEL: &str = "src/platform/directory/kernel.rs";
/// Files with calls that make durable.
const SYNCING: [&str; 10] = [
    ESP,
    "src/apply/reset.rs",
    DIRECTORY,
    ROOM,
    "src/platform/directory/named.rs",
    "src/platform/named_disk.rs",
    STATE_FS,
    EFFECTS,
    "src/apply/table.rs",
    "src/apply/restore/extract.rs",
];

/// The operations that come by what lies here, one group after the other.
const OPERATIONS: [(&str, &[&[&str]]); 5] = [
    (STATE_FS, &[&RESTORES]),
    ("src/apply/restore/", &[&RESTORES]),
    (EFFECTS, &[&RESETS]),
    ("src/apply/table.rs", &[&RESETS]),
    // Everywhere else: those that take seconds, then all.
    ("src/", &[&SHORT, &[]]),
];
const SHORT: [&str; 7] =
    ["stage", "cancel", "restore-stage", "restore-cancel", "restore-skip", "confirm", "roll-back"];
const RESTORES: [&str; 6] =
    ["restore-stage", "restore-cancel", "restore", "restore-skip", "confirm", "roll-back"];
const RESETS: [&str; 5] =
    ["reset", "reset-bad-primary", "reset-bad-backup", "reset-4096", "reset-tpm-on-esp"];

/// What nothing here can see: in this file this line, as it stands there, which of several equal ones, or the
/// change with this name; and why.
const UNSEEN: [(&str, &str, usize, &str); 12] = [
    (
        "src/request/stage.rs",
        "what is left is cleared away as a cache has it",
        0,
        "a boot has settled what lies there before the OS stages; a shell in the initrd may stage as well",
    ),
    ("src/request/stage_restore.rs", "flags are tidied as a cache has them", 0, "the same"),
    (STATE_FS, "        made.sync()", 0, "attributes of directories: the model has none"),
    (
        STATE_FS,
        "        directory::open_at(parent.as_ref(), name)?.ok_or_else(missing)?.sync()",
        0,
        "attributes of directories: the model has none",
    ),
    (
        STATE_FS,
        "                directory::open_at(directory, &temporary)?.ok_or_else(missing)?.sync()?;",
        0,
        "attributes of directories: the model has none",
    ),
    (
        STATE_FS,
        "        if place == Place::New { Ok(()) } else { directory.sync() }",
        0,
        "directories and links in a state: the model's is flat",
    ),
    (
        ROOM,
        "    filled.and(cleared).and(directory.sync())",
        0,
        "what was in a cluster before, beside a journal: no directory lies in the free clusters there",
    ),
    (
        DIRECTORY,
        "    directory.sync()?;",
        0,
        "what is made in a directory brings it as well, and one that was cut before is passed over",
    ),
    (
        DIRECTORY,
        "    directory.any_file(name.as_ref())?.sync()?;",
        0,
        "of an empty file there is only the name, which the directory's sync brings",
    ),
    (
        ESP,
        "        settled.and(self.root.sync())",
        0,
        "who writes in the directory first syncs its name; another program may not have: the model has none",
    ),
    (
        ESP,
        "            None => self.root.sync(),",
        0,
        "nothing in the model removes a directory that is on the way to another path",
    ),
    (
        EFFECTS,
        "            disk.flush()?;",
        0,
        "it bounds how much is unflushed; the flush behind the loop is the one that makes durable",
    ),
];

const IN_FREE_CLUSTERS: &str = "what a cut has left in free clusters stays";
/// Which clusters are given to whom, and what was in them before, only a real file system knows: what begins
/// like this is looked for there.
const IN_CLUSTERS: [&str; 2] = [IN_FREE_CLUSTERS, "src/platform/directory/room.rs:"];

/// Name, file, what stands there, what shall stand there.
const BROKEN: [(&str, &str, &str, &str); 34] = [
    (
        "a directory is looked at that was not read",
        KERNEL,
        "        if self.grows_in_pieces()? { clusters::read_ahead(&self.0, path) } else { Ok(()) }",
        "        Ok(())",
    ),
    ("a file is not synced", KERNEL, "        self.sync_all()", "        Ok(())"),
    ("a directory is not synced", KERNEL, "rustix::fs::fsync(&self.0)?", "()"),
    ("a file system is not synced", KERNEL, "rustix::fs::syncfs(&self.0)?", "()"),
    (
        "a disk is not flushed",
        "src/platform/disk.rs",
        "        self.file.sync_all()",
        "        Ok(())",
    ),
    (
        "seeds and backups are removed with what is in them",
        "src/apply/journal/end.rs",
        "\"SED\" | \"TAR\" | \"ARC\")) => store.shred(name)",
        "\"SED\" | \"TAR\" | \"ARC\")) => store.remove(name)",
    ),
    (
        "a boot rests on a state that a cache has",
        "src/apply/restore/mod.rs",
        "    if let Err(error) = journal::settle(machine.store.as_mut()) {",
        "    if let Err(error) = Ok::<(), Error>(()) {",
    ),
    (
        "a confirmation rests on what a cache has",
        "src/apply/restore/mod.rs",
        "    journal::settle(machine.store.as_mut())?;\n",
        "",
    ),
    (
        "the variable goes, and the request is in a cache",
        "src/apply/systemd.rs",
        "        settle_esp(machine.esp.as_mut());\n",
        "",
    ),
    (
        "a boot rests on what a cache has",
        "src/apply/reset.rs",
        "    journal::settle_esp(machine.esp.as_mut());\n",
        "",
    ),
    (
        "what is left is cleared away as a cache has it",
        "src/request/stage.rs",
        "    journal::settle_esp(store);\n    let found",
        "    let found",
    ),
    (
        "a withdrawal rests on what a cache has",
        "src/request/stage.rs",
        "    journal::settle_esp(store);\n    journal::remove_unlinked",
        "    journal::remove_unlinked",
    ),
    (
        "flags are tidied as a cache has them",
        "src/request/stage_restore.rs",
        "        journal::settle_esp(flags);\n",
        "",
    ),
    (
        "a removal that is repeated is not made durable",
        "src/platform/directory/mod.rs",
        "        None => return removed(parent, Ok(false)),",
        "        None => return Ok(()),",
    ),
    (
        "a file appears by a rename",
        ESP,
        "directory::create_vouched(self.own()?, name, content)",
        "{ let temporary = format!(\"{}.TMP\", name.split('.').next().unwrap_or(name)); \
         directory::create_from(self.own()?, &temporary, name, content, &|| Ok(())) }",
    ),
    (
        "a marker is overwritten",
        ESP,
        "        directory::mark(self.own()?, name)",
        "        let journal = format!(\"{}.JNL\", name.split('.').next().unwrap_or(name));\n        \
         let bytes = self.read(&journal, 1 << 20)?.unwrap_or_default();\n        \
         for bytes in [vec![0; bytes.len()], bytes] {\n            \
         if let Some(mut file) = self.own()?.file_to_overwrite(journal.as_ref())? {\n                \
         std::io::Write::write_all(&mut file, &bytes)?;\n                file.sync()?;\n            \
         }\n        }\n        directory::mark(self.own()?, name)",
    ),
    (
        "headers are destroyed before key slots",
        "src/plan/erase.rs",
        "        add(\"key slots\", headers, data);\n",
        "        add(\"primary header\", 0, luks.header_bytes);\n        \
         add(\"key slots\", headers, data);\n",
    ),
    (
        "what is removed comes back, and nobody looks",
        "src/plan/mod.rs",
        "            Self::Gpt { .. } => true,",
        "            Self::Gpt { .. } => false,",
    ),
    (
        "a restore's step is recorded before it is performed",
        "src/apply/restore/mod.rs",
        "        let ended = match steps::perform(",
        "        journal.record_done(machine.store.as_mut(), number)?;\n        \
         let ended = match steps::perform(",
    ),
    (
        "recorded before it is performed",
        "src/apply/mod.rs",
        "        let state = perform(machine, journal.id(), step, attempt);",
        "        if !over { journal.record_done(machine.esp.as_mut(), index)?; }\n        \
         let state = perform(machine, journal.id(), step, attempt);",
    ),
    (
        "the primary table before the backup",
        "src/apply/effects.rs",
        "    table::write(disk, &backup)?;\n    table::write(disk, &primary)?;",
        "    for extent in primary.encode().doing(|| String::new())? {\n        \
         disk.write(extent.offset, &extent.bytes).doing(|| String::new())?;\n    }\n    \
         table::write(disk, &backup)?;\n    table::write(disk, &primary)?;",
    ),
    (
        "the request is removed before the commit",
        "src/apply/journal.rs",
        "        store.create(&file(\"JNL\"), &bytes).doing(what)?;",
        "        store.remove(&file(\"REQ\")).doing(what)?;\n        \
         store.create(&file(\"JNL\"), &bytes).doing(what)?;",
    ),
    (
        "the directory grows after the commit",
        "src/apply/journal.rs",
        "        store.make_room(&stem(committed.of().0)).doing(what)?;\n",
        "",
    ),
    (
        "what a cut has left of making room stays",
        "src/platform/directory/room.rs",
        "        for name in names {\n            directory.remove_file(&name)?;\n        }\n",
        "",
    ),
    (
        IN_FREE_CLUSTERS,
        "src/apply/journal/mend.rs",
        "    for name in unlinked {",
        "    for name in Vec::<String>::new() {",
    ),
    (
        "the plan is made anew on a resume",
        "src/apply/reset.rs",
        "        [stem] => return Ok(resume(machine, profile, stem)),",
        "        [stem] => {\n            let name = format!(\"{stem}.JNL\");\n            \
         machine.esp.remove(&name).doing(String::new)?;\n            \
         return start(machine, profile, &[stem.clone()]);\n        }",
    ),
    (
        "the old state goes before its keys are kept",
        "src/apply/restore/steps.rs",
        "            keep_keys(machine)?;\n            machine.state",
        "            machine.state",
    ),
    (
        "the old passphrases go before the new ones are in",
        "src/apply/restore/steps.rs",
        "        Step::Enroll(volume) => slots::enroll(machine, profile, journal, volume)?,",
        "        Step::Enroll(volume) => {\n            \
         for one in machine.volumes.iter_mut().filter(|one| one.name() == volume.name) {\n\
         for slot in &volume.old {\n\
         let header = one.header().doing(String::new)?;\n\
         if header.is_ok_and(|h| h.slots.iter().any(|there| there.index == slot.index)) {\n\
         one.remove_slot(slot.index).doing(String::new)?;\n}\n}\n}\n\
         slots::enroll(machine, profile, journal, volume)?;\n        }",
    ),
    (
        "the journal is written anew with each record",
        "src/apply/journal.rs",
        "        self.with_room(store, |store| store.mark(&self.file('S', step)))?;",
        "        let name = file_name(self.id(), \"JNL\");\n        \
         let bytes = store.read(&name, MAX_BYTES).doing(cannot_record)?.unwrap_or_default();\n\
         store.remove(&name).doing(cannot_record)?;\n\
         store.create(&name, &bytes).doing(cannot_record)?;\n        \
         self.with_room(store, |store| store.mark(&self.file('S', step)))?;",
    ),
    (
        "a boot of the window is not counted",
        "src/apply/restore/mod.rs",
        "    match journal.record_hand_over(machine.store.as_mut()) {",
        "    match Ok::<(), Error>(()) {",
    ),
    (
        "the variable goes before the request is there",
        "src/apply/systemd.rs",
        "    let found = find::look(machine.esp.as_ref())?;\n    let by_argument",
        "    if asked.variable {\n        variable.remove().doing(String::new)?;\n    }\n    \
         let found = find::look(machine.esp.as_ref())?;\n    let by_argument",
    ),
    (
        "an argument is not noted",
        "src/apply/systemd.rs",
        "        machine.esp.mark(ARGUMENT_HAD).doing(what)?;",
        "        machine.esp.names().map(drop).doing(what)?;",
    ),
    (
        "what was cut off in hearing it counts as a request",
        "src/apply/systemd.rs",
        "            Err(error) if is_ours(stem) => {",
        "            Err(error) if is_ours(stem) && false => {",
    ),
    (
        "the journal is removed before the request",
        "src/apply/journal/end.rs",
        "    // The request first: it is the one that could be taken for a wish.\n    \
         store.remove(&format!(\"{stem}.REQ\")).doing(what)?;",
        "    store.remove(&format!(\"{stem}.RPT\")).doing(what)?;\n    \
         store.remove(&format!(\"{stem}.JNL\")).doing(what)?;",
    ),
];

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap();
    let mutations: Vec<Mutation> = all(&root)
        .into_iter()
        .filter(|one| arguments.only.as_ref().is_none_or(|only| one.name.contains(only)))
        .filter(|one| {
            let is_by = |by: &String| one.looks().iter().all(|(program, _)| program == by);
            arguments.by.as_ref().is_none_or(is_by)
        })
        .collect();
    if mutations.is_empty() {
        println!("there is no such change");
        return ExitCode::FAILURE;
    }
    if arguments.list {
        for mutation in &mutations {
            println!("{}: {}", mutation.file, mutation.name);
        }
        return ExitCode::SUCCESS;
    }
    let copy = Copy::make(&root);
    let (mut unseen, mut seen) = (Vec::new(), BTreeMap::<&str, usize>::new());
    // What is listed is tried only when it is asked for by name: whether its reason still holds.
    let is_tried = |one: &&Mutation| arguments.only.is_some() || !one.is_listed();
    // Where what is not changed fails, that a change fails says nothing.
    let looks: BTreeSet<Look> =
        mutations.iter().filter(is_tried).flat_map(Mutation::looks).collect();
    for look in &looks {
        let (begin, (program, reach)) = (Instant::now(), look);
        let verdict = copy.look(look);
        let (seconds, word) = (begin.elapsed().as_secs(), verdict.word());
        println!("unchanged, {program} {}: {word} ({seconds} s)", reach.join(" "));
        if verdict != Verdict::NotSeen {
            return ExitCode::FAILURE;
        }
    }
    for mutation in mutations.iter().filter(is_tried) {
        let begin = Instant::now();
        let verdict = copy.judge(mutation);
        println!("{:9} {} ({} s)", verdict.word(), mutation.name, begin.elapsed().as_secs());
        *seen.entry(verdict.word()).or_default() += 1;
        if verdict != Verdict::Seen {
            unseen.push(&mutation.name);
        }
    }
    println!("{} changes: {seen:?}, the others not to be seen:", mutations.len());
    for (file, line, place, why) in UNSEEN {
        println!("{file}: {} ({place}): {why}", line.trim());
    }
    if unseen.is_empty() {
        return ExitCode::SUCCESS;
    }
    for name in unseen {
        println!("NOT SEEN: {name}");
    }
    ExitCode::FAILURE
}

/// All of them; a place that is not there any more is an error of this list.
fn all(root: &Path) -> Vec<Mutation> {
    let read = |file: &str| fs::read_to_string(root.join(file)).unwrap();
    let mut mutations = Vec::new();
    for (name, file, from, to) in BROKEN {
        assert_eq!(read(file).matches(from).count(), 1, "{name}: {file} has changed");
        let (name, from, to) = (name.to_owned(), from.to_owned(), to.to_owned());
        mutations.push(Mutation { name, file, from, to, place: 0 });
    }
    for file in SYNCING {
        let mut places = BTreeMap::<String, usize>::new();
        for (number, line) in read(file).lines().enumerate() {
            let code = line.trim();
            if code.starts_with("//") || code.starts_with("fn ") {
                continue;
            }
            let Some((call, nothing)) = call_in(code) else { continue };
            let place = places.entry(line.to_owned()).or_default();
            mutations.push(Mutation {
                name: format!("{file}:{}: no more `{code}`", number + 1),
                file,
                // Whole: it may be a part of others.
                from: format!("\n{line}\n"),
                to: format!("\n{}\n", line.replacen(call, nothing, 1)),
                place: *place,
            });
            *place += 1;
        }
    }
    mutations
}

/// A call that makes durable, and one of the same type that does nothing.
fn call_in(line: &str) -> Option<(&'static str, &'static str)> {
    let of_files = ["file.sync()", "any_file(", "self.cannot(\"sync\")"];
    let is_file = line.contains(".sync()") && of_files.iter().any(|text| line.contains(text));
    Some(if ["disk.flush()", "self.0.flush()"].iter().any(|call| line.contains(call)) {
        (".flush()", ".partition_in_use(1).map(drop)")
    } else if line.contains(".sync_file_system()") {
        (".sync_file_system()", ".node().map(drop)")
    } else if line.contains("state.sync()") {
        (".sync()", ".free_bytes().map(drop)")
    } else if is_file {
        (".sync()", ".length().map(drop)")
    } else if line.contains(".sync()") {
        (".sync()", ".node().map(drop)")
    } else {
        return None;
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Seen,
    NotSeen,
    NotBuilt,
    /// The campaign failed, and not by what it is there for.
    NotRun,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Self::Seen => "seen",
            Self::NotSeen => "NOT SEEN",
            Self::NotBuilt => "NOT BUILT",
            Self::NotRun => "NOT RUN",
        }
    }
}

/// The copy of the sources.
struct Copy {
    root: PathBuf,
}

impl Copy {
    fn make(from: &Path) -> Self {
        let root = from.join("target/mutations/sources");
        let _ = fs::remove_dir_all(&root);
        let listed = Command::new("git")
            .args(["ls-files", "--cached", "--others", "--exclude-standard"])
            .current_dir(from)
            .output()
            .unwrap();
        for path in String::from_utf8(listed.stdout).unwrap().lines() {
            let to = root.join(path);
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            if from.join(path).is_file() {
                fs::copy(from.join(path), &to).unwrap();
            }
        }
        // What the set-up has made is used from where it is.
        std::os::unix::fs::symlink(from.join(".cache"), root.join(".cache")).unwrap();
        Self { root }
    }

    fn judge(&self, mutation: &Mutation) -> Verdict {
        let path = self.root.join(mutation.file);
        let before = fs::read_to_string(&path).unwrap();
        let (at, _) = before.match_indices(&mutation.from).nth(mutation.place).unwrap();
        let after = [&before[..at], &mutation.to, &before[at + mutation.from.len()..]].concat();
        fs::write(&path, after).unwrap();
        let verdict = self.run(mutation);
        fs::write(&path, before).unwrap();
        verdict
    }

    fn run(&self, mutation: &Mutation) -> Verdict {
        for look in mutation.looks() {
            let verdict = self.look(&look);
            if verdict != Verdict::NotSeen {
                return verdict;
            }
        }
        Verdict::NotSeen
    }

    /// Whether a program of the tests, which is also the name of its package, sees it.
    fn look(&self, (program, reach): &Look) -> Verdict {
        let target = self.root.join("../target");
        let cargo = |arguments: &[&str]| {
            let mut command = Command::new("cargo");
            command.args(arguments).args(["--quiet", "--locked", "--package", program]);
            command.args(["--bin", program]);
            command.current_dir(&self.root).env("CARGO_TARGET_DIR", &target);
            command.env("RUSTFLAGS", "-Awarnings").env("CARGO_PROFILE_DEV_DEBUG", "0");
            command.stdin(Stdio::null()).stdout(Stdio::null());
            command
        };
        if !cargo(&["build"]).stderr(Stdio::inherit()).status().unwrap().success() {
            return Verdict::NotBuilt;
        }
        let mut campaign = cargo(&["run"]);
        campaign.arg("--").args(reach);
        let output = campaign.stdout(Stdio::piped()).output().unwrap();
        if output.status.success() {
            return Verdict::NotSeen;
        }
        let told = [output.stdout, output.stderr].concat();
        let told = String::from_utf8_lossy(&told).into_owned();
        let is_it = |line: &&str| line.starts_with("VIOLATION") || line.contains("panicked at");
        let Some(line) = told.lines().find(is_it) else {
            println!("{told}");
            return Verdict::NotRun;
        };
        println!("{line}");
        Verdict::Seen
    }
}
