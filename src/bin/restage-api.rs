//! `incus admin os system backup|restore|factory-reset`, answered by restage.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use restage::api::{access, child::Restage, serve};
use restage::error::{Error, Result};
use restage::platform::console::{self, Sink, clean};
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
    let listener = access::listen(&api)?;
    serve::serve(listener, &Restage { program: arguments.restage.clone() })
}

fn main() -> ExitCode {
    secrecy::begin();
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("restage-api: {}", clean(&error.chain()));
            ExitCode::FAILURE
        }
    }
}
