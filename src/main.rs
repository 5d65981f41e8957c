//! The command table: one call a command, the error chain printed once, one place for exit codes.

use std::process::ExitCode;

use clap::Parser;
use restage::cli::{Cli, Command, Initrd};
use restage::command::{Exit, backup, initrd, os, restore};
use restage::platform::confined;
use restage::platform::console;
use restage::platform::secrecy::{self, Erasing};

#[global_allocator]
static MEMORY: Erasing = Erasing;

fn main() -> ExitCode {
    secrecy::begin();
    let cli = Cli::parse();
    let result = match &cli.command {
        Command::FactoryReset(arguments) => os::factory_reset(arguments),
        Command::Status(arguments) => os::status(arguments),
        Command::Cancel(arguments) => os::cancel(arguments),
        Command::Backup(arguments) => backup::backup(arguments),
        Command::Inspect(arguments) => backup::inspect(arguments),
        Command::Restore(arguments) => restore::restore(arguments),
        Command::Confirm(arguments) => restore::confirm(arguments),
        Command::Superseded(arguments) => restore::superseded(arguments),
        Command::ArchiveReader(arguments) => {
            // Its words have no way out but the one that it serves.
            return ExitCode::from(u8::from(confined::serve(arguments).is_err()));
        }
        Command::Initrd(Initrd::Reset(arguments)) => initrd::reset(arguments),
        Command::Initrd(Initrd::Restore(arguments)) => initrd::restore::restore(arguments),
    };
    let exit = result.unwrap_or_else(|error| {
        console::last_words("restage", &error.chain());
        Exit::Failed
    });
    ExitCode::from(exit.status())
}
