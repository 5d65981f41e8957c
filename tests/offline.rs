//! The real binary, offline, on a disk-image file with real LUKS2 volumes and a real software TPM: the
//! same code as a boot runs, without booting. `RESTAGE_BIN` chooses another binary (the static one).

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::cast_possible_truncation,
    reason = "a test: a panic is its verdict"
)]

mod support;

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use sha2::{Digest, Sha256};
use support::disk::{Disk, LOCAL_DATA, POOL, ROOT, SWAP};
use support::swtpm::Swtpm;

const CONTRACT: &str = r#"{"allow_tpm_reset_failure":true,"wipe_existing_seeds":true,"seeds":{"incus":{"apply_defaults":true}}}"#;

fn restage(disk: &Disk, tcti: &str, arguments: &[&str]) -> Output {
    let binary = std::env::var("RESTAGE_BIN");
    let binary = binary.unwrap_or_else(|_| env!("CARGO_BIN_EXE_restage").to_owned());
    let mut command = Command::new(binary);
    command.args(arguments).arg("--disk").arg(disk.image()).arg("--esp").arg(disk.esp());
    command.args(["--tcti", tcti]).stdin(std::process::Stdio::null()).output().unwrap()
}

#[track_caller]
fn expect(output: &Output, status: i32, text: &str) {
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(output.status.code(), Some(status), "{said}");
    assert!(said.contains(text), "`{text}` is not in: {said}");
}

fn stage(disk: &Disk, tcti: &str, data: &str) {
    expect(
        &restage(disk, tcti, &["factory-reset", "--force", "-d", data]),
        0,
        "staged factory reset",
    );
}

fn status(disk: &Disk) -> Value {
    let output = restage(disk, "none", &["status", "--json"]);
    expect(&output, 0, "");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn seeds(disk: &Disk) -> Vec<(String, String)> {
    let bytes = disk.bytes();
    let mut archive = tar::Archive::new(&bytes[disk.range(2)]);
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let name = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        (name, text)
    });
    entries.collect()
}

/// Everything that a refusal must not change: the disk, and the ESP but for restage's directory.
fn untouched(disk: &Disk) -> (Vec<u8>, Vec<String>) {
    (Sha256::digest(disk.bytes()).to_vec(), support::disk::list(&disk.esp()))
}

fn holds(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

fn is(name: &str, extension: &str) -> bool {
    name.split_once('.').is_some_and(|(_, found)| found == extension)
}

/// Changes a field of the staged request and seals it again.
fn forge(disk: &Disk, change: impl FnOnce(&mut Value)) {
    let path = disk.file("REQ");
    let mut file: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut file);
    let body = file["body"].to_string();
    file["sha256"] = Value::from(restage::format::sha256_hex(body.as_bytes()));
    fs::write(path, file.to_string()).unwrap();
}

#[test]
fn a_reset_destroys_what_the_profile_lists_and_keeps_the_rest() {
    let (disk, tpm) = (Disk::new(), Swtpm::start());
    let before = disk.bytes();
    let partitions = disk.partitions();
    tpm.tool("tpm2_createprimary", &["-C", "o", "-c", "/dev/null"]);
    stage(&disk, &tpm.tcti(), r#"{"seeds":{"incus":{"apply_defaults":true}}}"#);
    expect(&restage(&disk, &tpm.tcti(), &["initrd", "reset"]), 5, "done");

    let after = disk.bytes();
    for number in [SWAP, ROOT] {
        assert!(after[disk.range(number)][..16 << 20].iter().all(|b| *b == 0), "{number}");
    }
    assert!(!holds(&after[disk.range(LOCAL_DATA)], POOL));
    // Both tables: the three are gone, the others as they were, with their numbers.
    let kept: Vec<_> = partitions.iter().filter(|(number, _)| **number < SWAP).collect();
    assert_eq!(disk.partitions().iter().collect::<Vec<_>>(), kept);
    let kept = disk.range(1).start..disk.range(1).end;
    assert!(before[kept.clone()] == after[kept]);
    let kept = disk.range(3).start..disk.range(4).end;
    assert!(before[kept.clone()] == after[kept]);
    assert_eq!(
        seeds(&disk),
        [
            ("network.json".to_owned(), "{\"dns\":{}}".to_owned()),
            ("applications.json".to_owned(), "{}".to_owned()),
            ("incus.json".to_owned(), "{\"apply_defaults\":true}".to_owned()),
        ]
    );
    assert!(!holds(&after[disk.range(2)], b"old secret"));
    assert!(!disk.esp().join("sb-disabled").exists());
    assert!(disk.esp().join("EFI/Linux/os.efi").exists());

    let report = status(&disk)["reports"][0].clone();
    assert_eq!(report["outcome"], "done");
    assert_eq!(report["runs"], 1);
    let steps: Vec<_> =
        report["steps"].as_array().unwrap().iter().map(|s| s["step"].as_str()).collect();
    let wanted = ["tpm", "seed", "esp", "wipe swap", "wipe root-x86-64", "wipe local-data", "gpt"];
    assert_eq!(steps, wanted.map(Some));
    assert_eq!(disk.names().len(), 2, "report and log only: {:?}", disk.names());
    expect(
        &restage(&disk, "none", &["status", "--log"]),
        0,
        "TPM2_Clear under the lockout hierarchy",
    );

    // A second run has nothing to do, and a third boot neither.
    let (image, names) = (disk.bytes(), disk.names());
    expect(&restage(&disk, &tpm.tcti(), &["initrd", "reset"]), 0, "nothing is staged");
    assert!(disk.bytes() == image && disk.names() == names);
}

#[test]
fn the_contracts_example_leaves_only_its_seed() {
    let disk = Disk::new();
    stage(&disk, "none", CONTRACT);
    expect(
        &restage(&disk, "none", &["initrd", "reset"]),
        5,
        "passed over: this machine has no TPM",
    );
    assert_eq!(seeds(&disk), [("incus.json".to_owned(), "{\"apply_defaults\":true}".to_owned())]);
    let partition = &disk.bytes()[disk.range(2)];
    for old in ["network", "applications", "old secret", "apply_defaults: false"] {
        assert!(!holds(partition, old.as_bytes()), "{old}");
    }
    let passed = status(&disk)["reports"][0]["steps"][0]["passed_over"].to_string();
    assert!(passed.contains("no TPM 2.0"), "{passed}");
}

#[test]
fn the_dry_run_is_the_plan_and_changes_nothing() {
    let (disk, tpm) = (Disk::new(), Swtpm::start());
    let before = untouched(&disk);
    let output = restage(&disk, &tpm.tcti(), &["factory-reset", "--dry-run", "-d", CONTRACT]);
    expect(&output, 0, "");
    let text = String::from_utf8(output.stdout).unwrap();
    let text = text.replace(disk.image().to_str().unwrap(), "DISK");
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/factory-reset.txt");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&golden, &text).unwrap();
    }
    assert_eq!(text, fs::read_to_string(golden).unwrap());
    assert!(before == untouched(&disk) && disk.names().is_empty());
}

#[test]
fn bad_options_are_refused_by_name() {
    let disk = Disk::new();
    let before = untouched(&disk);
    for (data, message) in [
        ("{", "EOF while parsing"),
        ("", "not a JSON object"),
        ("[]", "not a JSON object"),
        (r#"{"colour":1}"#, "unknown field `colour`"),
        (r#"{"seeds":{"install":{}}}"#, "field `seeds.install`: IncusOS does not allow this seed"),
        (r#"{"seeds":{"../x":{}}}"#, "`../x` is no seed name"),
        (r#"{"seeds":{"incus":[1]}}"#, "field `seeds.incus`: not a JSON object"),
        (r#"{"wipe_existing_seeds":"yes"}"#, "invalid type: string"),
        ("{}", "this machine has no TPM 2.0"),
    ] {
        expect(&restage(&disk, "none", &["factory-reset", "--force", "-d", data]), 3, message);
    }
    expect(&restage(&disk, "none", &["factory-reset", "-d", CONTRACT]), 3, "--force is needed");
    expect(&restage(&disk, "none", &["factory-reset", "-d", "@/absent"]), 1, "/absent");
    expect(&restage(&disk, "none", &["factory-reset", "--colour"]), 2, "--colour");
    assert!(before == untouched(&disk) && disk.names().is_empty());
}

#[test]
fn one_request_at_a_time_and_cancel_withdraws_it() {
    let disk = Disk::new();
    stage(&disk, "none", CONTRACT);
    let first = status(&disk)["staged"][0]["id"].clone();
    let again = ["factory-reset", "--force", "-d", CONTRACT];
    expect(&restage(&disk, "none", &again), 3, "staged already");
    expect(&restage(&disk, "none", &[&again[..], &["--replace"]].concat()), 0, "staged");
    let second = status(&disk)["staged"][0]["id"].clone();
    assert_ne!(first, second);
    let before = untouched(&disk);
    expect(&restage(&disk, "none", &["cancel"]), 0, second.as_str().unwrap());
    expect(&restage(&disk, "none", &["cancel"]), 0, "nothing is staged");
    expect(&restage(&disk, "none", &["initrd", "reset"]), 0, "nothing is staged");
    assert!(before == untouched(&disk));
    let reports = status(&disk)["reports"].clone();
    let ended: Vec<_> = reports.as_array().unwrap().iter().map(|r| r["outcome"].as_str()).collect();
    assert_eq!(ended, [Some("cancelled"), Some("cancelled")]);
    // The seeds of both went with them.
    assert!(disk.names().iter().all(|name| is(name, "RPT")), "{:?}", disk.names());
}

#[test]
fn requests_that_are_not_for_this_are_set_aside() {
    type Change = fn(&mut Value);
    let cases: [(Change, &str); 7] = [
        (
            |f| f["body"]["machine"]["disk"] = Value::from("00000000-0000-0000-0000-000000000001"),
            "field `machine.disk`",
        ),
        (|f| f["body"]["colour"] = Value::from("red"), "unknown field `colour`"),
        (|f| f["version"] = Value::from(2), "field `version` is 2"),
        (|f| f["body"]["staged"]["at"] = Value::from(1), "field `staged.at`"),
        (
            |f| {
                f["body"]["machine"]["partitions"][0]["guid"] =
                    f["body"]["machine"]["disk"].clone();
            },
            "partition 5 `swap` is not the one",
        ),
        (
            |f| drop(f["body"]["machine"]["partitions"].as_array_mut().unwrap().pop()),
            "partition 7 `local-data` is not in the request",
        ),
        (
            |f| f["body"]["seeds"]["sha256"] = Value::from("00"),
            "its SHA-256 is not the one in the request",
        ),
    ];
    for (change, message) in cases {
        let disk = Disk::new();
        stage(&disk, "none", CONTRACT);
        forge(&disk, change);
        let request = fs::read(disk.file("REQ")).unwrap();
        let before = untouched(&disk);
        expect(&restage(&disk, "none", &["initrd", "reset"]), 3, message);
        assert!(before == untouched(&disk), "{message}");
        assert_eq!(fs::read(disk.file("BAD")).unwrap(), request);
        let report = status(&disk)["reports"][0].clone();
        assert_eq!(report["outcome"], "refused");
        assert!(report["reason"].as_str().unwrap().contains(message), "{report}");
        assert!(!disk.names().iter().any(|n| is(n, "REQ") || is(n, "SED")));
        expect(&restage(&disk, "none", &["initrd", "reset"]), 0, "nothing is staged");
    }
}

#[test]
fn truncated_and_several_requests_are_set_aside_in_one_run() {
    let disk = Disk::new();
    stage(&disk, "none", CONTRACT);
    let good = fs::read(disk.file("REQ")).unwrap();
    fs::write(disk.esp().join("restage/00000000.REQ"), &good[..good.len() / 2]).unwrap();
    fs::write(disk.esp().join("restage/00000001.REQ"), "").unwrap();
    let other = String::from_utf8(good).unwrap();
    let id = status(&disk)["staged"]
        .as_array()
        .unwrap()
        .iter()
        .find_map(|s| s["request"]["id"].as_str().map(str::to_owned))
        .unwrap();
    let twin = format!("0000000a{}", &id[8..]);
    fs::write(disk.esp().join("restage/0000000A.REQ"), &other).unwrap();
    let path = disk.esp().join("restage/0000000A.REQ");
    let mut file: Value = serde_json::from_str(&other).unwrap();
    file["body"]["id"] = Value::from(twin);
    file["sha256"] = Value::from(restage::format::sha256_hex(file["body"].to_string().as_bytes()));
    fs::write(path, file.to_string()).unwrap();
    let before = untouched(&disk);
    expect(&restage(&disk, "none", &["initrd", "reset"]), 3, "several requests are staged");
    assert!(before == untouched(&disk));
    assert_eq!(status(&disk)["reports"].as_array().unwrap().len(), 4);
}

#[test]
fn an_esp_from_before_does_nothing_to_the_new_system() {
    let disk = Disk::new();
    stage(&disk, "none", CONTRACT);
    let old = tempfile::tempdir().unwrap();
    let copy = |from: &Path, to: &Path| {
        assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
    };
    copy(&disk.esp().join("restage"), old.path());
    expect(&restage(&disk, "none", &["initrd", "reset"]), 5, "done");
    fs::remove_dir_all(disk.esp().join("restage")).unwrap();
    copy(&old.path().join("restage"), &disk.esp());
    let before = untouched(&disk);
    expect(&restage(&disk, "none", &["initrd", "reset"]), 3, "refused");
    assert!(before == untouched(&disk));
}

#[test]
fn a_tpm_that_would_refuse_is_foreseen_passed_over_or_refused() {
    let (disk, tpm) = (Disk::new(), Swtpm::start());
    let tcti = tpm.tcti();
    stage(&disk, &tcti, "{}");
    tpm.tool("tpm2_changeauth", &["-c", "lockout", "secret"]);
    let before = untouched(&disk);
    expect(&restage(&disk, &tcti, &["initrd", "reset"]), 3, "lockout hierarchy has a password");
    expect(
        &restage(&disk, &tcti, &["factory-reset", "--force"]),
        3,
        "lockout hierarchy has a password",
    );
    assert!(before == untouched(&disk));
    // Nothing was tried, so the right password still works.
    tpm.tool("tpm2_changeauth", &["-c", "lockout", "-p", "secret", "other"]);
    stage(&disk, &tcti, CONTRACT);
    expect(&restage(&disk, &tcti, &["initrd", "reset"]), 5, "passed over");
}

#[test]
fn a_software_tpm_on_the_esp_is_cleared_by_deleting_its_state() {
    let disk = Disk::new();
    fs::create_dir_all(disk.esp().join("swtpm/deep")).unwrap();
    fs::write(disk.esp().join("swtpm/tpm2-00.permall"), "seeds").unwrap();
    stage(&disk, "none", "{}");
    expect(&restage(&disk, "none", &["initrd", "reset"]), 5, "delete the software TPM's state");
    assert!(!disk.esp().join("swtpm").exists());
}

#[test]
fn a_bad_copy_of_the_table_is_healed_first_and_two_are_refused() {
    let good = Disk::new().bytes();
    let last = good.len() - 512;
    for bad in [512, last] {
        let disk = Disk::new();
        disk.overwrite(bad as u64, &[0x55; 512]);
        stage(&disk, "none", CONTRACT);
        expect(&restage(&disk, "none", &["initrd", "reset"]), 5, "partition table: write it anew");
        assert_eq!(disk.partitions().keys().copied().collect::<Vec<_>>(), [1, 2, 3, 4]);
        let bytes = disk.bytes();
        // Both halves are whole again, and the same.
        assert!(bytes[1024..1024 + 16384] == bytes[last - 16384..last]);
        assert_eq!(
            (&bytes[512..520], &bytes[last..last + 8]),
            (&b"EFI PART"[..], &b"EFI PART"[..])
        );
    }
    let disk = Disk::new();
    stage(&disk, "none", CONTRACT);
    disk.overwrite(512, &[0x55; 512]);
    disk.overwrite(last as u64, &[0x55; 512]);
    let before = untouched(&disk);
    expect(&restage(&disk, "none", &["initrd", "reset"]), 3, "no valid partition table");
    assert!(before == untouched(&disk));
}

#[test]
fn damaged_seeds_are_refused_unless_given_up() {
    let disk = Disk::new();
    disk.overwrite(disk.range(2).start as u64, &[0x55; 100]);
    let allow = r#"{"allow_tpm_reset_failure":true}"#;
    expect(
        &restage(&disk, "none", &["factory-reset", "--force", "-d", allow]),
        3,
        "the seed archive is damaged",
    );
    stage(&disk, "none", CONTRACT);
    expect(&restage(&disk, "none", &["initrd", "reset"]), 5, "done");
    assert_eq!(seeds(&disk).len(), 1);
}

#[test]
fn a_profile_of_another_os_is_obeyed() {
    let disk = Disk::new();
    let before = disk.bytes();
    let profile = disk.esp().join("profile.json");
    let text = include_str!("../src/profile/incusos.json");
    let mut value: Value = serde_json::from_str(text).unwrap();
    value["wipe"].as_array_mut().unwrap().drain(1..);
    value["tpm"] = Value::from("keep");
    value["seed"] = Value::Null;
    value["erase"] = Value::from("zero");
    fs::write(&profile, value.to_string()).unwrap();
    let profile = ["--profile", profile.to_str().unwrap()];
    let run = |arguments: &[&str]| restage(&disk, "none", &[arguments, &profile[..]].concat());
    expect(&run(&["factory-reset", "--force"]), 0, "staged");
    expect(&run(&["initrd", "reset"]), 5, "done");
    let after = disk.bytes();
    assert!(after[disk.range(SWAP)].iter().all(|b| *b == 0));
    for number in [2, ROOT, LOCAL_DATA] {
        assert!(before[disk.range(number)] == after[disk.range(number)], "{number}");
    }
    assert_eq!(disk.partitions().keys().copied().collect::<Vec<_>>(), [1, 2, 3, 4, 6, 7]);
    value["erase"] = Value::from("burn");
    fs::write(profile[1], value.to_string()).unwrap();
    expect(&run(&["status"]), 1, "unknown variant `burn`");
}
