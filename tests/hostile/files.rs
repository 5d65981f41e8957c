//! Hostile files of the other formats, each where it would come from.

use std::fs;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::fixtures::files::{self, Hostile, Place};
use crate::fixtures::tar::Tar;
use crate::fixtures::{disks, enveloped, staged};
use crate::rig::{self, Rig};
use crate::support::disk::{Disk, list};
use crate::support::state::{OLD, state_text};
use crate::{each, said};
use restage::format::archive::Layout;
use restage::format::envelope::{self, REQUEST};
use restage::format::sha256_hex;
use restage::request::Request;

fn command(disk: &Disk, arguments: &[&str]) -> Command {
    let binary = std::env::var("RESTAGE_BIN").ok();
    let binary = binary.unwrap_or_else(|| env!("CARGO_BIN_EXE_restage").to_owned());
    let mut command = Command::new(binary);
    command.args(arguments).arg("--disk").arg(disk.image()).arg("--esp").arg(disk.esp());
    command.args(["--tcti", "none"]).stdin(Stdio::null());
    command
}

fn reset(disk: &Disk, arguments: &[&str]) -> Output {
    command(disk, arguments).output().unwrap()
}

const STAGE: [&str; 4] = ["factory-reset", "--force", "-d", r#"{"allow_tpm_reset_failure":true}"#];

/// What is wrong with an answer, if anything.
fn wrong(hostile: &Hostile, output: &Output) -> Option<String> {
    let said = said(output);
    let is_told = !hostile.message.is_empty() && said.contains(hostile.message);
    let is_clean = said.chars().all(|c| c == '\n' || !c.is_control());
    // A profile or a table that cannot be read is a failure; so is a wish that is no text.
    let wanted = match hostile.place {
        Place::Profile => 1,
        Place::Journal | Place::RestoreJournal => 4,
        Place::Report => 0,
        Place::Table if hostile.message != "overlap" => 1,
        Place::Contract if hostile.message == "cannot read the options" => 1,
        _ => 3,
    };
    let is_refused = output.status.code() == Some(wanted);
    (!is_told || !is_clean || !is_refused || said.len() > 4000).then(|| {
        let said: String = said.escape_debug().take(600).collect();
        format!(
            "{} ({}): {}, `{}` wanted: {said}",
            hostile.name, hostile.rule, output.status, hostile.message
        )
    })
}

/// Everything on the ESP, and its content.
fn on_esp(disk: &Disk) -> Vec<(String, Vec<u8>)> {
    let own = disk.esp().join("restage");
    let files = disk.names().into_iter();
    let mut files: Vec<_> =
        files.map(|name| (name.clone(), fs::read(own.join(name)).unwrap())).collect();
    files.extend(list(&disk.esp()).into_iter().map(|name| (name, Vec::new())));
    files
}

fn changed(hostile: &Hostile, is_changed: bool) -> Option<String> {
    is_changed.then(|| format!("{}: a change", hostile.name))
}

#[test]
fn a_hostile_wish_is_refused_and_nothing_changes() {
    let disk = Disk::new();
    let before = (disk.bytes(), list(&disk.esp()));
    let file = disk.esp().parent().unwrap().join("wish.json");
    each(&files::contracts(), |hostile| {
        fs::write(&file, &hostile.bytes).unwrap();
        let data = format!("@{}", file.display());
        let output = reset(&disk, &["factory-reset", "--force", "-d", &data]);
        wrong(hostile, &output)
            .or_else(|| changed(hostile, (disk.bytes(), list(&disk.esp())) != before))
    });
}

#[test]
fn a_hostile_profile_is_refused_and_nothing_changes() {
    let disk = Disk::new();
    let before = (disk.bytes(), list(&disk.esp()));
    let file = disk.esp().parent().unwrap().join("profile.json");
    let good = include_str!("../../src/profile/incusos.json");
    each(&files::profiles(good), |hostile| {
        fs::write(&file, &hostile.bytes).unwrap();
        let output = reset(&disk, &[&STAGE[..], &["--profile", file.to_str().unwrap()]].concat());
        wrong(hostile, &output)
            .or_else(|| changed(hostile, (disk.bytes(), list(&disk.esp())) != before))
    });
}

#[test]
fn a_hostile_request_is_set_aside_at_boot_and_nothing_is_lost() {
    let disk = Disk::new();
    let own = disk.esp().join("restage");
    let staged = reset(&disk, &STAGE);
    assert!(staged.status.success(), "{}", said(&staged));
    let path = disk.file("REQ");
    let good = fs::read(&path).unwrap();
    let before = disk.bytes();
    each(&enveloped::requests(&good), |hostile| {
        fs::remove_dir_all(&own).unwrap();
        fs::create_dir(&own).unwrap();
        fs::write(&path, &hostile.bytes).unwrap();
        let output = reset(&disk, &["initrd", "reset"]);
        let left = left(&disk);
        let again = reset(&disk, &["initrd", "reset"]);
        let is_over = again.status.code() == Some(0);
        wrong(hostile, &output)
            .or_else(|| changed(hostile, disk.bytes() != before))
            .or_else(|| (!left.is_empty()).then(|| format!("{}: left: {left:?}", hostile.name)))
            .or_else(|| (!is_over).then(|| format!("{}: again: {}", hostile.name, said(&again))))
    });
}

/// What should not be on the ESP any more.
fn left(disk: &Disk) -> Vec<String> {
    let names = disk.names().into_iter();
    names
        .filter(|name| ["REQ", "JNL", "SED", "TAR"].iter().any(|end| name.ends_with(end)))
        .collect()
}

const WITH_SEEDS: [&str; 4] = [
    "factory-reset",
    "--force",
    "-d",
    r#"{"allow_tpm_reset_failure":true,"seeds":{"incus":{"apply_defaults":true}}}"#,
];

/// The request that knows of these seeds.
fn knowing(request: &[u8], seeds: &[u8]) -> Vec<u8> {
    let mut request: Request = envelope::parse(request, REQUEST).unwrap();
    let file = request.seeds.as_mut().unwrap();
    (file.sha256, file.bytes) = (sha256_hex(seeds), seeds.len() as u64);
    envelope::encode(&request, REQUEST).unwrap()
}

/// Stages a reset with seeds, puts each in their place, and boots.
fn with_staged_seeds(corpus: &dyn Fn(&[u8]) -> Vec<Hostile>) {
    let disk = Disk::new();
    let own = disk.esp().join("restage");
    let done = reset(&disk, &WITH_SEEDS);
    assert!(done.status.success(), "{}", said(&done));
    let (path, seeds) = (disk.file("REQ"), disk.file("SED"));
    let (asked, good) = (fs::read(&path).unwrap(), fs::read(&seeds).unwrap());
    let before = disk.bytes();
    each(&corpus(&good), |hostile| {
        fs::remove_dir_all(&own).unwrap();
        fs::create_dir(&own).unwrap();
        let is_known = hostile.place == Place::StagedSeeds;
        let request = if is_known { knowing(&asked, &hostile.bytes) } else { asked.clone() };
        fs::write(&path, request).unwrap();
        fs::write(&seeds, &hostile.bytes).unwrap();
        let output = reset(&disk, &["initrd", "reset"]);
        let left = left(&disk);
        wrong(hostile, &output)
            .or_else(|| changed(hostile, disk.bytes() != before))
            .or_else(|| (!left.is_empty()).then(|| format!("{}: left: {left:?}", hostile.name)))
    });
}

#[test]
fn hostile_staged_seeds_are_refused_at_boot_and_nothing_is_lost() {
    with_staged_seeds(&|_| staged::seeds());
}

#[test]
fn other_seeds_than_the_staged_ones_are_refused_at_boot_and_nothing_is_lost() {
    with_staged_seeds(&staged::swapped_seeds);
}

#[test]
fn a_hostile_request_of_a_restore_is_set_aside_at_boot_and_nothing_is_lost() {
    let rig = Rig::new(Layout::Flat);
    let staged = rig.stage_a_good_one();
    let before = rig.kept();
    each(&enveloped::restore_requests(rig::ending_with(&staged[0], "REQ")), |hostile| {
        rig.put_request(&staged, &hostile.bytes);
        let output = rig.restage(&["initrd", "restore"]);
        let left = rig.left();
        let again = rig.restage(&["initrd", "restore"]);
        let is_over = again.status.code() == Some(0);
        wrong(hostile, &output)
            .or_else(|| changed(hostile, rig.kept() != before))
            .or_else(|| (!left.is_empty()).then(|| format!("{}: left: {left:?}", hostile.name)))
            .or_else(|| (!is_over).then(|| format!("{}: again: {}", hostile.name, said(&again))))
    });
}

#[test]
fn a_hostile_journal_of_a_restore_holds_the_boot_and_nothing_is_lost() {
    let rig = Rig::new(Layout::Flat);
    let path = restoring(&rig);
    let good = fs::read(&path).unwrap();
    each(&enveloped::restore_journals(&good), |hostile| {
        fs::write(&path, &hostile.bytes).unwrap();
        let before = rig.everything();
        let output = rig.restage(&["initrd", "restore"]);
        wrong(hostile, &output).or_else(|| changed(hostile, rig.everything() != before))
    });
    // What held it was the journal.
    fs::write(&path, &good).unwrap();
    goes_on(&rig);
}

/// The restored state is in place. Neither the boot nor who confirms goes on with it.
#[test]
fn a_hostile_journal_in_the_window_keeps_it_open_and_nothing_is_lost() {
    let rig = Rig::new(Layout::Flat);
    rig.change();
    rig.stage_a_good_one();
    let skip = ["--skip", "encryption-recovery-keys", "--replace"];
    let file = rig.file("good.tar.gz");
    let stage = [&["restore", file.to_str().unwrap(), "--force"][..], &skip].concat();
    for arguments in [&stage[..], &["initrd", "restore"]] {
        let output = rig.restage(arguments);
        assert!(output.status.success(), "{}", said(&output));
    }
    let path = rig.own_file("JNL");
    let good = fs::read(&path).unwrap();
    each(&enveloped::restore_journals(&good), |hostile| {
        fs::write(&path, &hostile.bytes).unwrap();
        let before = rig.everything();
        let confirmed = rig.restage(&["confirm"]);
        let is_told =
            confirmed.status.code() == Some(1) && said(&confirmed).contains(hostile.message);
        let output = rig.restage(&["initrd", "restore"]);
        wrong(hostile, &output).or_else(|| changed(hostile, rig.everything() != before)).or_else(
            || (!is_told).then(|| format!("{}: confirm: {}", hostile.name, said(&confirmed))),
        )
    });
    // What held it was the journal.
    fs::write(&path, &good).unwrap();
    for arguments in [&["initrd", "restore"][..], &["confirm"]] {
        let output = rig.restage(arguments);
        assert!(output.status.success(), "{}", said(&output));
    }
}

/// The journal of a restore that has begun.
fn restoring(rig: &Rig) -> PathBuf {
    rig.stage_a_good_one();
    goes_on(rig);
    rig.own_file("JNL")
}

fn goes_on(rig: &Rig) {
    let said = said(&rig.boot_without_programs());
    assert!(said.contains("step 3/5 enroll root: "), "{said}");
}

/// A reset that was killed at its first write to the disk, after its commit: no file may grow to where
/// the seed partition begins.
fn interrupted() -> Disk {
    let disk = Disk::new();
    let staged = reset(&disk, &STAGE);
    assert!(staged.status.success(), "{}", said(&staged));
    let whole = command(&disk, &["initrd", "reset"]);
    let mut killed = Command::new("prlimit");
    killed.arg(format!("--fsize={}", disk.range(2).start));
    let killed = killed.arg(whole.get_program()).args(whole.get_args()).output().unwrap();
    assert_eq!(killed.status.signal(), Some(libc::SIGXFSZ), "{}", said(&killed));
    disk
}

#[test]
fn a_hostile_journal_holds_the_boot_and_nothing_is_lost() {
    let disk = interrupted();
    let path = disk.file("JNL");
    let good = fs::read(&path).unwrap();
    let bytes = disk.bytes();
    each(&enveloped::journals(&good), |hostile| {
        fs::write(&path, &hostile.bytes).unwrap();
        let before = on_esp(&disk);
        let output = reset(&disk, &["initrd", "reset"]);
        wrong(hostile, &output)
            .or_else(|| changed(hostile, disk.bytes() != bytes || on_esp(&disk) != before))
    });
    // What held it was the journal.
    fs::write(&path, &good).unwrap();
    let output = reset(&disk, &["initrd", "reset"]);
    // Done, and a reboot is needed.
    assert_eq!(output.status.code(), Some(5), "{}", said(&output));
}

/// A reset that was staged and withdrawn.
fn cancelled() -> Disk {
    let disk = Disk::new();
    for arguments in [&STAGE[..], &["cancel"]] {
        let done = reset(&disk, arguments);
        assert!(done.status.success(), "{}", said(&done));
    }
    disk
}

#[test]
fn a_hostile_report_is_told_and_stands_in_nobodys_way() {
    let disk = cancelled();
    let path = disk.file("RPT");
    let good = fs::read(&path).unwrap();
    let bytes = disk.bytes();
    each(&enveloped::reports(&good), |hostile| {
        fs::write(&path, &hostile.bytes).unwrap();
        let before = on_esp(&disk);
        let output = reset(&disk, &["status"]);
        let booted = reset(&disk, &["initrd", "reset"]);
        let goes_on = booted.status.code() == Some(0);
        wrong(hostile, &output)
            .or_else(|| changed(hostile, disk.bytes() != bytes || on_esp(&disk) != before))
            .or_else(|| (!goes_on).then(|| format!("{}: boot: {}", hostile.name, said(&booted))))
    });
    let staged = reset(&disk, &STAGE);
    assert!(staged.status.success(), "{}", said(&staged));
}

/// The disk with something else in it: refused at staging.
fn with_on_disk(corpus: &[Hostile], put: impl Fn(&Disk, &[u8])) {
    let disk = Disk::new();
    let original = disk.bytes();
    each(corpus, |hostile| {
        disk.overwrite(0, &original);
        put(&disk, &hostile.bytes);
        let before = (disk.bytes(), list(&disk.esp()));
        let output = reset(&disk, &STAGE);
        wrong(hostile, &output)
            .or_else(|| changed(hostile, (disk.bytes(), list(&disk.esp())) != before))
    });
}

#[test]
fn hostile_seeds_are_refused_and_nothing_changes() {
    with_on_disk(&disks::seeds(), |disk, bytes| {
        disk.overwrite(disk.range(2).start as u64, bytes);
    });
}

#[test]
fn a_hostile_partition_table_is_refused_and_nothing_changes() {
    let good = Disk::new().bytes()[..34 * 512].to_vec();
    with_on_disk(&disks::tables(&good), |disk, bytes| {
        disk.overwrite(0, bytes);
        disk.overwrite(disk.bytes().len() as u64 - 33 * 512, &vec![0; 33 * 512]);
    });
}

/// A backup of another machine with this state file.
fn backup(state: &[u8]) -> Vec<u8> {
    Tar::default().file("state.txt", state).file("zpool.local.key", b"key").ended()
}

#[test]
fn a_hostile_state_file_is_refused_and_nothing_changes() {
    let rig = Rig::new(Layout::Flat);
    let before = rig.everything();
    let file = rig.file("hostile.tar.gz");
    each(&files::states(&state_text("other", OLD), OLD), |hostile| {
        fs::write(&file, backup(&hostile.bytes)).unwrap();
        let output = rig.restage(&["restore", file.to_str().unwrap(), "--force"]);
        wrong(hostile, &output).or_else(|| changed(hostile, rig.everything() != before))
    });
}

#[test]
fn a_hostile_volume_is_refused_and_nothing_changes() {
    let rig = Rig::new(Layout::Flat);
    let volume = rig.volume("root");
    let good = fs::read(&volume).unwrap();
    let file = rig.file("backup.tar.gz");
    fs::write(&file, backup(state_text("other", OLD).as_bytes())).unwrap();
    each(&disks::volumes(&good[..0x8000]), |hostile| {
        overwrite(&volume, &hostile.bytes);
        let before = rig.everything();
        let output = rig.restage(&["restore", file.to_str().unwrap(), "--force"]);
        let verdict =
            wrong(hostile, &output).or_else(|| changed(hostile, rig.everything() != before));
        overwrite(&volume, &good[..0x8000]);
        verdict
    });
    // The last word is with the good one: what was refused was refused for what it was.
    let output = rig.restage(&["restore", file.to_str().unwrap(), "--force"]);
    assert!(output.status.success(), "{}", said(&output));
}

fn overwrite(path: &Path, bytes: &[u8]) {
    fs::OpenOptions::new().write(true).open(path).unwrap().write_all_at(bytes, 0).unwrap();
}

#[test]
fn there_are_as_many_of_other_formats_as_there_have_to_be() {
    let disk = Disk::new();
    assert!(reset(&disk, &STAGE).status.success());
    let rig = Rig::new(Layout::Flat);
    let restored = Rig::new(Layout::Flat);
    let [own, _] = restored.stage_a_good_one();
    let begun = Rig::new(Layout::Flat);
    let journal = restoring(&begun);
    let all = [
        files::contracts(),
        staged::seeds(),
        staged::swapped_seeds(b"{}"),
        enveloped::restore_requests(rig::ending_with(&own, "REQ")),
        enveloped::restore_journals(&fs::read(&journal).unwrap()),
        enveloped::requests(&fs::read(disk.file("REQ")).unwrap()),
        enveloped::reports(&fs::read(cancelled().file("RPT")).unwrap()),
        enveloped::journals(&fs::read(interrupted().file("JNL")).unwrap()),
        files::profiles(include_str!("../../src/profile/incusos.json")),
        files::states(&state_text("other", OLD), OLD),
        disks::seeds(),
        disks::tables(&disk.bytes()[..34 * 512]),
        disks::volumes(&fs::read(rig.volume("root")).unwrap()[..0x8000]),
    ];
    let all: Vec<Hostile> = all.into_iter().flatten().collect();
    println!("{} hostile files of other formats", all.len());
    assert!(all.len() >= 360, "{}", all.len());
    let mut names: Vec<(Place, &str)> = all.iter().map(|h| (h.place, h.name.as_str())).collect();
    names.sort_by_key(|(_, name)| *name);
    names.dedup();
    assert_eq!(names.len(), all.len(), "each has a name of its own");
}
