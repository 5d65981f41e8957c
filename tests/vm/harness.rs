//! The VM harness: whole boots of the reference image under OVMF, swtpm and
//! QEMU, driven over QMP and the guest agent.
//!
//! A scenario passes only when its function ran to its end and checked at least
//! as many things as the table says; a crash, a hang, an early power-off and an
//! empty selection are failures.

#![allow(
    clippy::indexing_slicing,
    reason = "JSON values are indexed here, which never panics; a panic would be a failed scenario"
)]
#![allow(clippy::disallowed_methods, reason = "the house rules of the product, not of its tests")]
#![allow(clippy::needless_pass_by_value, reason = "assertions read best with plain values")]

mod agent;
mod base;
mod bench;
mod chance;
mod cli;
mod command;
mod compare;
mod demo;
mod disk;
mod esp;
mod evidence;
mod failure;
mod fat;
mod faults;
mod guest;
mod hunt;
mod lab;
mod machine;
mod nbd;
mod point;
mod qmp;
mod recording;
mod request;
mod runner;
mod scenarios;
mod seeds;
mod serial;
mod small;
mod swtpm;
mod tpm;
mod trial;
mod wire;
mod writes;

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
            for one in scenarios::ALL {
                println!("{:12} {}", one.shard, one.name);
            }
            Ok(())
        }
        Command::ListShards => {
            for shard in scenarios::shards() {
                println!("{shard}");
            }
            Ok(())
        }
        Command::Run(choice) => runner::run(&choice),
        Command::Demo => demo::run(),
        Command::Compare => compare::run(),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(cause) => {
            eprintln!("{cause}");
            ExitCode::FAILURE
        }
    }
}
