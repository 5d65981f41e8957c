//! The targets, in the order in which they are told.

mod archive;
mod change;
mod directory;
mod disk;
mod fat;
mod files;
mod machine_reset;
mod machine_restore;
mod seed;
mod state;
mod told;

use crate::Pace::{self, Machine, Parser};
use crate::Target;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;
const NONE: &[&str] = &[];

const fn target(
    name: &'static str,
    run: fn(&[u8]),
    seeds: fn() -> Vec<Vec<u8>>,
    words: &'static [&'static str],
    peak_bytes: usize,
    pace: Pace,
) -> Target {
    Target { name, run, seeds, words, peak_bytes, pace }
}

/// All of them.
pub static TARGETS: [Target; 27] = [
    target("archive-flat", archive::flat, archive::flat_seeds, archive::WORDS, MIB, Parser),
    target("archive-tree", archive::tree, archive::tree_seeds, archive::WORDS, MIB, Parser),
    target("archive-gzip", archive::gz, archive::gz_seeds, NONE, 8 * MIB, Parser),
    target("archive-pax", archive::pax, archive::pax_seeds, archive::WORDS, MIB, Parser),
    target(
        "archive-frames",
        archive::frames,
        archive::frames_seeds,
        archive::FRAME_WORDS,
        24 * MIB,
        Parser,
    ),
    target("seed-archive", seed::tar, seed::tar_seeds, seed::TAR_WORDS, MIB, Parser),
    target("seed-options", seed::wish, seed::wish_seeds, seed::WISH_WORDS, MIB, Parser),
    target("request", files::request, files::request_seeds, files::WORDS, MIB, Parser),
    target("journal", files::journal, files::journal_seeds, files::WORDS, MIB, Parser),
    target(
        "restore-request",
        files::restore_request,
        files::restore_request_seeds,
        files::WORDS,
        MIB,
        Parser,
    ),
    target(
        "restore-journal",
        files::restore_journal,
        files::restore_journal_seeds,
        files::WORDS,
        MIB,
        Parser,
    ),
    target("report", files::report, files::report_seeds, files::WORDS, MIB, Parser),
    target("directory", directory::mend, directory::seeds, directory::WORDS, MIB, Parser),
    target("profile", files::profile, files::profile_seeds, files::WORDS, MIB, Parser),
    target("state-file", state::file, state::seeds, state::WORDS, MIB, Parser),
    target("gpt", disk::gpt, disk::gpt_seeds, NONE, 20 * MIB, Parser),
    target("luks", disk::luks, disk::luks_seeds, disk::LUKS_WORDS, MIB, Parser),
    target("luks-slot", disk::slot, disk::slot_seeds, disk::LUKS_WORDS, 4 * MIB, Parser),
    target("fat", fat::chains, fat::seeds, NONE, 64 * KIB, Parser),
    target("efi-variable", told::efi, told::efi_seeds, NONE, 256 * KIB, Parser),
    target(
        "machine-texts",
        told::machine,
        told::machine_seeds,
        told::TEXT_WORDS,
        256 * KIB,
        Parser,
    ),
    target("mounts", told::mounts, told::mounts_seeds, told::MOUNT_WORDS, 256 * KIB, Parser),
    target("firmware", told::ppi, told::ppi_seeds, told::PPI_WORDS, 256 * KIB, Parser),
    target("tcti", told::tcti, told::tcti_seeds, told::TCTI_WORDS, MIB, Parser),
    target("whole-reset", machine_reset::machine, machine_reset::seeds, NONE, 64 * MIB, Machine),
    target(
        "whole-restore",
        machine_restore::machine,
        machine_restore::seeds,
        NONE,
        64 * MIB,
        Machine,
    ),
    target(
        "whole-backup",
        machine_restore::backup,
        machine_restore::backup_seeds,
        machine_restore::WORDS,
        64 * MIB,
        Machine,
    ),
];
