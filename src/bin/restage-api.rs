//! `incus admin os system backup|restore|factory-reset`, answered by restage.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use restage::api::access;
use restage::api::body::Place;
use restage::api::child::Restage;
use restage::api::serve::{self, Server};
use restage::apply::restore::extract::OVERHEAD_BYTES;
use restage::error::{Error, Result};
use restage::platform::console::{self, Sink};
use restage::platform::secrecy::{self, Erasing};
use restage::profile::Profile;

#[global_allocator]
static MEMORY: Erasing = Erasing;

/// Answer IncusOS's REST paths for backup, restore and factory reset on a Unix socket: the one that
/// systemd passes on, or the profile's.
#[derive(Debug, Parser)]
#[command(name = "restage-api", version)]
struct Arguments {
    /// The program that does the work
    #[arg(long, value_name = "PROGRAM", default_value = "restage")]
    restage: PathBuf,
    /// Where a backup lies until it has come whole (default: the profile's own directory)
    #[arg(long, value_name = "DIR")]
    spool: Option<PathBuf>,
    /// The OS's layout (default: /usr/lib/restage/profile.json, else IncusOS's)
    #[arg(long, value_name = "FILE")]
    profile: Option<PathBuf>,
}

fn run(arguments: &Arguments) -> Result<()> {
    console::start(Sink::Terminal);
    let profile = Profile::load(arguments.profile.as_deref())?;
    let api = profile.api.ok_or_else(|| {
        Error::new("nothing to serve").because(format!("the profile {} has no `api`", profile.name))
    })?;
    let own = profile.state.as_ref().map(|state| Path::new("/").join(&state.own_directory));
    // Without a state there is nothing to restore, and restage says so.
    let spool = arguments.spool.clone().or(own).map_or(Place::Memory, Place::Directory);
    let max_backup_bytes = profile.state.map_or(0, |state| state.max_bytes);
    let server = Server {
        restage: Restage { program: arguments.restage.clone() },
        spool,
        max_backup_bytes: max_backup_bytes.saturating_add(OVERHEAD_BYTES),
        stalled: serve::STALLED,
    };
    serve::serve(access::listen(&api)?, &server)
}

fn main() -> ExitCode {
    secrecy::begin();
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            console::last_words("restage-api", &error.chain());
            ExitCode::FAILURE
        }
    }
}
