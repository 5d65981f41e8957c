//! The harness's own arguments.

use crate::failure::{Doing, Failure, Outcome};
use crate::lab::Replays;

pub const USAGE: &str = "usage: vm [--jobs N] [--shard NAME] [--keep] [--seed N] [--rounds N] [--point POINT] [SCENARIO…]
       vm --list | --list-shards | demo | compare
Without a name: every scenario of the ordinary run. A name also stands for all
that begin with it. --keep leaves the machines' files in place. --seed chooses the
points at which recorded runs are cut, --rounds how many of them a scenario tries,
--point is one of them, as a failure names it.";

/// Which scenarios, and how.
#[derive(Debug, Clone)]
pub struct Choice {
    pub jobs: usize,
    pub shard: Option<String>,
    pub keep: bool,
    pub names: Vec<String>,
    pub replays: Replays,
}

#[derive(Debug)]
pub enum Command {
    Help,
    List,
    ListShards,
    Run(Choice),
    Demo,
    Compare,
}

pub fn parse(mut args: impl Iterator<Item = String>) -> Outcome<Command> {
    let mut choice = Choice {
        jobs: 2,
        shard: None,
        keep: false,
        names: Vec::new(),
        replays: Replays::default(),
    };
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--help" | "-h" => return Ok(Command::Help),
            "--list" => return Ok(Command::List),
            "--list-shards" => return Ok(Command::ListShards),
            "demo" => return Ok(Command::Demo),
            "compare" => return Ok(Command::Compare),
            "--keep" => choice.keep = true,
            "--jobs" => {
                let number = args.next().doing("--jobs wants a number")?;
                choice.jobs = number.parse().doing("--jobs")?;
            }
            "--shard" => choice.shard = Some(args.next().doing("--shard wants a name")?),
            "--seed" => {
                let number = args.next().doing("--seed wants a number")?;
                choice.replays.seed = number.parse().doing("--seed")?;
            }
            "--rounds" => {
                let number = args.next().doing("--rounds wants a number")?;
                choice.replays.rounds = Some(number.parse().doing("--rounds")?);
            }
            "--point" => {
                let text = args.next().doing("--point wants a point")?;
                choice.replays.point = Some(text.parse()?);
            }
            flag if flag.starts_with('-') => {
                return Err(Failure::new(format!("unknown option {flag}")));
            }
            name => choice.names.push(name.to_owned()),
        }
    }
    Ok(Command::Run(choice))
}
