//! The ways in which such programs are known to be wrong.

use crate::mutation::{DISK, ESP, KERNEL, Kind, Mutation};

/// What a cut has left in free clusters is not cleared away.
pub const IN_FREE_CLUSTERS: &str = "what a cut has left in free clusters stays";

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
    ("a disk is not flushed", DISK, "        self.file.sync_all()", "        Ok(())"),
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

/// All of them.
pub fn all(read: &dyn Fn(&str) -> String) -> impl Iterator<Item = Mutation> {
    BROKEN.into_iter().map(|(name, file, from, to)| {
        assert_eq!(read(file).matches(from).count(), 1, "{name}: {file} has changed");
        let (name, from, to) = (name.to_owned(), from.to_owned(), to.to_owned());
        Mutation { name, kind: Kind::Orders, file, from, to, place: 0 }
    })
}
