//! Arguments to commands. Side: both. Pure.
//!
//! The doc comments here are also the help text, so they are not Markdown.

#![allow(clippy::doc_markdown, rustdoc::bare_urls, reason = "help text")]

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::format::archive::Layout;

/// Recovery agent of image-based Linux systems: the running OS stages a request, the initrd applies
/// it at the next boot.
#[derive(Debug, Parser)]
#[command(name = "restage", version, after_help = EXIT_STATUS)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_STATUS: &str = "Exit status: 0 done, or nothing to do; 1 unexpected failure, nothing committed; \
2 usage; 3 refused, nothing changed; 4 failed after commit, will resume at the next run; 5 done, reboot needed.";

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Stage a factory reset for the next boot
    FactoryReset(FactoryReset),
    /// Tell what is staged, what is running, and what happened
    Status(Status),
    /// Withdraw what is staged and not yet committed
    Cancel(Cancel),
    /// Write a system-level backup: the OS's state and its keys
    Backup(Backup),
    /// Say what is in a backup, and whether it would restore here
    Inspect(Inspect),
    /// Stage a restore for the next boot
    Restore(Restore),
    /// Keep the restored state: without this it rolls itself back
    Confirm(Confirm),
    /// List keys that restores have replaced, or remove those of one restore
    Superseded(Superseded),
    /// What runs in the initrd
    #[command(subcommand)]
    Initrd(Initrd),
    /// Parse a backup for another restage, without any right
    #[command(hide = true)]
    ArchiveReader(ArchiveReader),
}

/// `restage archive-reader`.
#[derive(Debug, Args)]
pub struct ArchiveReader {
    /// What it may hold.
    #[arg(value_parser = Layout::named)]
    pub layout: Layout,
    /// How many entries.
    pub files: u64,
    /// How many bytes.
    pub bytes: u64,
}

/// `restage backup`.
#[derive(Debug, Args)]
pub struct Backup {
    /// Where to write it; - is standard output
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Replace an existing file
    #[arg(long)]
    pub force: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Where to work.
    #[command(flatten)]
    pub place: StatePlace,
}

/// `restage inspect`.
#[derive(Debug, Args)]
pub struct Inspect {
    /// The backup; - is standard input
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// As if restored so
    #[arg(long, value_name = "ITEM", value_delimiter = ',')]
    pub skip: Vec<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Where to work.
    #[command(flatten)]
    pub place: StatePlace,
}

/// `restage restore`.
#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools, reason = "flags of a command line")]
pub struct Restore {
    /// The backup; - is standard input
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Leave out: encryption-recovery-keys, local-data-encryption-key, network-macs
    #[arg(long, value_name = "ITEM", value_delimiter = ',')]
    pub skip: Vec<String>,
    /// Reboot once it is staged
    #[arg(long)]
    pub reboot: bool,
    /// Do not ask
    #[arg(long)]
    pub force: bool,
    /// Replace a restore that is staged already
    #[arg(long)]
    pub replace: bool,
    /// Print the plan and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Where to work.
    #[command(flatten)]
    pub place: StatePlace,
}

/// `restage confirm`.
#[derive(Debug, Args)]
pub struct Confirm {
    /// Only when the profile's health check says that the system is well; waits for it
    #[arg(long)]
    pub when_healthy: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Where to work.
    #[command(flatten)]
    pub place: StatePlace,
}

/// `restage superseded`.
#[derive(Debug, Args)]
pub struct Superseded {
    /// Destroy the keys that this restore has replaced
    #[arg(long, value_name = "ID")]
    pub remove: Option<String>,
    /// Do not ask
    #[arg(long)]
    pub force: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Where to work.
    #[command(flatten)]
    pub place: StatePlace,
}

/// `restage initrd restore`.
#[derive(Debug, Args)]
pub struct InitrdRestore {
    /// Where to work.
    #[command(flatten)]
    pub place: StatePlace,
}

/// Where the state is. Without these everything is found.
#[derive(Debug, Default, Args)]
pub struct StatePlace {
    /// Work offline on the state file system that is mounted, or unpacked, here
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// A volume of the profile: a block device, or a plain file with a LUKS2 header
    #[arg(long, value_name = "NAME=PATH", requires = "root")]
    pub luks: Vec<String>,
    /// The directory that holds the files of the ESP
    #[arg(long, value_name = "DIR", requires = "root")]
    pub esp: Option<PathBuf>,
    /// The TPM; a restore needs none
    #[arg(long, value_name = "CONF")]
    pub tcti: Option<String>,
    /// The OS's layout (default: /usr/lib/restage/profile.json, else IncusOS's)
    #[arg(long, value_name = "FILE")]
    pub profile: Option<PathBuf>,
}

/// `restage factory-reset`.
#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools, reason = "flags of a command line")]
pub struct FactoryReset {
    /// Options as a JSON object, or @FILE: allow_tpm_reset_failure, wipe_existing_seeds, seeds
    #[arg(short = 'd', long = "data", value_name = "JSON|@FILE")]
    pub data: Option<String>,
    /// Reboot once it is staged
    #[arg(long)]
    pub reboot: bool,
    /// Do not ask
    #[arg(long)]
    pub force: bool,
    /// Replace a request that is staged already
    #[arg(long)]
    pub replace: bool,
    /// Be content with a factory reset that is staged already
    #[arg(long, conflicts_with_all = ["replace", "data", "dry_run"])]
    pub or_staged: bool,
    /// Print the plan, step by step, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Where to work.
    #[command(flatten)]
    pub place: Place,
}

/// `restage status`.
#[derive(Debug, Args)]
pub struct Status {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Print the log of the last operation too
    #[arg(long, conflicts_with = "json")]
    pub log: bool,
    /// Where to look.
    #[command(flatten)]
    pub place: Place,
}

/// `restage cancel`.
#[derive(Debug, Args)]
pub struct Cancel {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Where to work.
    #[command(flatten)]
    pub place: Place,
}

/// `restage initrd …`.
#[derive(Debug, Subcommand)]
pub enum Initrd {
    /// Apply a staged factory reset, or resume one
    Reset(Reset),
    /// Apply a staged restore, resume one, or roll one back
    Restore(InitrdRestore),
}

/// `restage initrd reset`.
#[derive(Debug, Args)]
pub struct Reset {
    /// Where to work.
    #[command(flatten)]
    pub place: Place,
}

/// Where to work. Without these everything is found; with them nothing is booted or mounted.
#[derive(Debug, Default, Args)]
pub struct Place {
    /// Work offline on this block device or disk-image file
    #[arg(long, value_name = "PATH", requires = "esp")]
    pub disk: Option<PathBuf>,
    /// The directory that holds the files of the disk's ESP
    #[arg(long, value_name = "DIR")]
    pub esp: Option<PathBuf>,
    /// The root of the state file system, for restores
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// The TPM: device:/dev/tpmrm0, swtpm:host=127.0.0.1,port=2321, or none
    #[arg(long, value_name = "CONF")]
    pub tcti: Option<String>,
    /// The OS's layout (default: /usr/lib/restage/profile.json, else IncusOS's)
    #[arg(long, value_name = "FILE")]
    pub profile: Option<PathBuf>,
}

impl Place {
    /// Whether only a state file system is named.
    #[must_use]
    pub fn is_only_root(&self) -> bool {
        self.root.is_some() && self.disk.is_none() && self.esp.is_none()
    }

    /// Whether the machine that this runs on is left alone.
    #[must_use]
    pub fn is_offline(&self) -> bool {
        self.disk.is_some() || self.esp.is_some() || self.root.is_some()
    }
}
