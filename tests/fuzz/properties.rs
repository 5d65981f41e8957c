//! Each target on its seeds, on the inputs that are kept, and on changed ones.
//!
//! `RESTAGE_EXECUTIONS` says how many times more of them than usual.

#![allow(clippy::expect_used, reason = "a test: a panic is its verdict")]

use restage_fuzz::{Target, kept};

fn short(name: &str) {
    let target = Target::named(name).expect("there is such a target");
    let times: u64 = std::env::var("RESTAGE_EXECUTIONS")
        .map_or(1, |text| text.parse().expect("RESTAGE_EXECUTIONS is a number"));
    let runs = kept::run(target, target.pace.short() * times);
    println!("{name:16} {runs:9} executions");
}

macro_rules! properties {
    ($($test:ident $name:literal)*) => {
        $(#[test] fn $test() { short($name) })*

        #[test]
        fn every_target_is_tested() {
            let tested = [$($name),*];
            let all: Vec<&str> = restage_fuzz::TARGETS.iter().map(|target| target.name).collect();
            assert_eq!(tested.as_slice(), all);
        }
    };
}

properties! {
    archive_flat "archive-flat"
    archive_tree "archive-tree"
    archive_gzip "archive-gzip"
    archive_pax "archive-pax"
    archive_frames "archive-frames"
    seed_archive "seed-archive"
    seed_options "seed-options"
    request "request"
    journal "journal"
    restore_request "restore-request"
    restore_journal "restore-journal"
    report "report"
    directory "directory"
    profile "profile"
    state_file "state-file"
    gpt "gpt"
    luks "luks"
    luks_slot "luks-slot"
    fat "fat"
    efi_variable "efi-variable"
    machine_texts "machine-texts"
    mounts "mounts"
    firmware "firmware"
    tcti "tcti"
    whole_reset "whole-reset"
    whole_restore "whole-restore"
    whole_backup "whole-backup"
}
