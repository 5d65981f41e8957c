//! Power cuts on the kernel's own file systems, as many as there are.
//!
//! `restage-filesystems` starts Linux as a process (User-Mode Linux), and in it itself. There every
//! operation is recorded, as the disk sees it, and each state that a power cut may leave of it is
//! mounted, recovered from, and checked. It ends with 1 where something is not as it must be, and says
//! how to see that again.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::expect_used,
    reason = "a test: a panic is its verdict"
)]

mod cases;
mod explore;
mod guest;
mod host;
mod image;
mod inside;
mod ioctl;
mod layout;
mod medium;
mod rig;
mod states;
mod tpm;
mod unsynced;
mod volume;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use restage_campaign::figures::Least;

/// How a state is followed again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Replayed {
    /// As it was.
    Boot,
    /// As it was; but first the kernel must refuse long names in restage's directory, or the state shows
    /// nothing any more.
    BootWithGap,
    /// It is not booted: the same is asked for once more in the OS.
    Stage,
}

/// Interrupts every operation of restage on real file systems.
#[derive(Clone, Debug, Parser)]
pub struct Arguments {
    /// Only these cases.
    pub cases: Vec<String>,
    /// Of what an interruption of the operation leaves, one in so many is followed.
    #[arg(long, default_value_t = 1)]
    pub first: u64,
    /// The recovery of one in so many states is interrupted again.
    #[arg(long, default_value_t = 10)]
    pub second: u64,
    /// Of what such an interruption leaves, one in so many is followed.
    #[arg(long, default_value_t = 10)]
    pub one_in: u64,
    /// One in so many states is also followed with a check of the file systems before us.
    #[arg(long, default_value_t = 1)]
    pub fsck: u64,
    /// One in so many requests of the operation to the disk fails; none when it is zero.
    #[arg(long, default_value_t = 0)]
    pub errors: usize,
    /// Leave the figures in this file, for `restage-figures`.
    #[arg(long)]
    pub figures: Option<PathBuf>,
    /// How much there must be.
    #[command(flatten)]
    pub least: Least,
    /// Stop after so many violations.
    #[arg(long, default_value_t = 10)]
    pub violations: usize,
    /// So many kernels at once; as many as there are processors unless told otherwise.
    #[arg(long)]
    pub kernels: Option<u64>,
    /// Follow a state again that a violation has left; it may be compressed.
    #[arg(long)]
    pub replay: Option<PathBuf>,
    /// What to do with it.
    #[arg(long, requires = "replay", value_enum, default_value_t = Replayed::Boot)]
    pub replay_as: Replayed,
    /// Protocols that are known to be wrong, and that have to be seen to fail.
    #[arg(long)]
    pub controls: bool,
    /// Say what restage says.
    #[arg(long)]
    pub say: bool,
    /// Where User-Mode Linux is unpacked.
    #[arg(long, default_value = ".cache/uml")]
    pub linux: PathBuf,
    /// Where recordings, states and verdicts go.
    #[arg(long, default_value = "target/filesystems")]
    pub directory: PathBuf,
    /// In the kernel: what this process is to do there.
    #[arg(long, hide = true)]
    pub inside: Option<inside::Task>,
    /// What the answer is marked with.
    #[arg(long, hide = true, default_value = "")]
    pub nonce: String,
    /// The kernel's modules.
    #[arg(long, hide = true, default_value = ".")]
    pub modules: PathBuf,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(task) = arguments.inside.clone() {
        inside::run(&task, &arguments);
    }
    match host::run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(what) => {
            println!("FAILED: {what}");
            ExitCode::FAILURE
        }
    }
}
