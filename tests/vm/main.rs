//! The VM harness: whole boots of the reference image under OVMF, swtpm and
//! QEMU, driven over QMP and the guest agent.
//!
//! A scenario passes only when its function ran to its end and checked at least
//! as many things as the table says; a crash, a hang, an early power-off and an
//! empty selection are failures.

#![allow(missing_docs, reason = "a program of its own, read by its files' first lines")]

mod agent;
mod base;
mod bench;
mod cli;
mod command;
mod demo;
mod disk;
mod esp;
mod evidence;
mod failure;
mod faults;
mod guest;
mod lab;
mod machine;
mod nbd;
mod qmp;
mod request;
mod runner;
mod scenarios;
mod seeds;
mod serial;
mod swtpm;
mod tpm;
mod trial;
mod wire;

use cli::Command;
use std::process::ExitCode;

fn main() -> ExitCode {
    let command = match cli::parse(std::env::args().skip(1)) {
        Ok(command) => command,
        Err(cause) => {
            eprintln!("{cause}\n{}", cli::USAGE);
            return ExitCode::from(2);
        }
    };
    let ended = match command {
        Command::Help => {
            println!("{}", cli::USAGE);
            Ok(())
        }
        Command::List => {
            scenarios::ALL.iter().for_each(|one| println!("{:12} {}", one.shard, one.name));
            Ok(())
        }
        Command::ListShards => {
            scenarios::shards().iter().for_each(|shard| println!("{shard}"));
            Ok(())
        }
        Command::Run(choice) => runner::run(&choice),
        Command::Demo => demo::run(),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(cause) => {
            eprintln!("{cause}");
            ExitCode::FAILURE
        }
    }
}
