//! Whether the campaign can see: the program is changed so that it is wrong, and the campaign has to
//! fail.
//!
//! Every sync, every flush and every reading ahead of the program is removed, one at a time; and its order
//! is broken in the ways in which such programs are known to be wrong. Each change is made in a copy of the
//! sources. One that is not seen ends this with 1. What nothing could see is listed with the reason, and not
//! tried.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test: a panic is its verdict"
)]

mod calls;
mod copy;
mod looks;
mod mutation;
mod orders;
mod unseen;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;

use copy::{Copy, Verdict};
use looks::Look;
use mutation::{Kind, Mutation};
use unseen::UNSEEN;

/// Breaks restage in a copy of its sources, in every way it knows, and looks whether the campaign fails.
#[derive(Parser)]
struct Arguments {
    /// Only those whose name contains this.
    only: Option<String>,
    /// Show them, and do nothing.
    #[arg(long)]
    list: bool,
    /// Only those that are looked for by this program: `restage-campaign` or `restage-filesystems`.
    #[arg(long)]
    by: Option<String>,
    /// Only those of this kind.
    #[arg(long)]
    kind: Option<Kind>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap();
    let is_asked_for = |one: &Mutation| {
        let is_by = |by: &String| looks::of(one).iter().all(|(program, _)| program == by);
        arguments.only.as_ref().is_none_or(|only| one.name.contains(only))
            && arguments.by.as_ref().is_none_or(is_by)
            && arguments.kind.is_none_or(|kind| one.kind == kind)
    };
    let mutations: Vec<Mutation> = mutation::all(&root).into_iter().filter(is_asked_for).collect();
    if mutations.is_empty() {
        println!("there is no such change");
        return ExitCode::FAILURE;
    }
    if arguments.list {
        for mutation in &mutations {
            println!("{}: {}", mutation.file, mutation.name);
        }
        return ExitCode::SUCCESS;
    }
    let copy = Copy::make(&root);
    let (mut unseen, mut seen) = (Vec::new(), BTreeMap::<&str, usize>::new());
    // What is listed is tried only when it is asked for by name: whether its reason still holds.
    let is_tried = |one: &&Mutation| arguments.only.is_some() || !one.is_listed();
    let mut trusted = BTreeSet::new();
    for mutation in mutations.iter().filter(is_tried) {
        let begin = Instant::now();
        let (verdict, look) = copy.judge(mutation);
        println!("{:9} {} ({} s)", verdict.word(), mutation.name, begin.elapsed().as_secs());
        *seen.entry(verdict.word()).or_default() += 1;
        if verdict != Verdict::Seen {
            unseen.push(&mutation.name);
        }
        // Where what is not changed fails, that a change fails says nothing.
        if let Some(look) = look
            && !trusted.contains(&look)
        {
            if !passes(&copy, &look) {
                return ExitCode::FAILURE;
            }
            trusted.insert(look);
        }
    }
    println!("{} changes: {seen:?}, the others not to be seen:", mutations.len());
    for (file, line, place, why) in UNSEEN {
        println!("{file}: {} ({place}): {why}", line.trim());
    }
    if unseen.is_empty() {
        return ExitCode::SUCCESS;
    }
    for name in unseen {
        println!("NOT SEEN: {name}");
    }
    ExitCode::FAILURE
}

/// Whether what is not changed passes.
fn passes(copy: &Copy, look: &Look) -> bool {
    let (begin, (program, reach)) = (Instant::now(), look);
    let verdict = copy.look(look);
    let (seconds, word) = (begin.elapsed().as_secs(), verdict.word());
    println!("unchanged, {program} {}: {word} ({seconds} s)", reach.join(" "));
    verdict == Verdict::NotSeen
}
