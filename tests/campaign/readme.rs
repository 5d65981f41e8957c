//! Tells the campaign's figures in the README: from what its runs have left, and never by hand.
//!
//! `restage-figures README.md FIGURES.json…` replaces what is between two marks there.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a tool of the tests: a panic is its answer to a broken file"
)]

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::PathBuf;

use clap::Parser;
use restage_campaign::figures::Tried;

/// Tells the campaign's figures in the README.
#[derive(Parser)]
struct Arguments {
    /// The file with the two marks.
    readme: PathBuf,
    /// What the runs have left.
    #[arg(required = true)]
    figures: Vec<PathBuf>,
}

const BEGIN: &str = "<!-- figures: made by scripts/figures -->\n";
const END: &str = "<!-- end of the figures -->\n";

fn main() {
    let arguments = Arguments::parse();
    let layers: Vec<Tried> = arguments
        .figures
        .iter()
        .map(|path| {
            let bytes =
                fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            serde_json::from_slice(&bytes)
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        })
        .collect();
    let text = fs::read_to_string(&arguments.readme).unwrap();
    let (before, rest) = text.split_once(BEGIN).expect("the first mark");
    let (_, after) = rest.split_once(END).expect("the second mark");
    fs::write(&arguments.readme, [before, BEGIN, &table(&layers), END, after].concat()).unwrap();
}

fn table(layers: &[Tried]) -> String {
    let mut text = String::new();
    for layer in layers {
        writeln!(text, "\n**{}**: {} {}\n", layer.layer, thousands(layer.total()), layer.unit)
            .unwrap();
        text.push_str("| operation | | in its steps | how they ended |\n|---|--:|---|---|\n");
        for operation in &layer.operations {
            writeln!(
                text,
                "| {} | {} | {} | {} |",
                operation.name,
                thousands(operation.total()),
                list(&operation.steps),
                list(&operation.outcomes)
            )
            .unwrap();
        }
    }
    text.push('\n');
    text
}

fn list(counts: &BTreeMap<String, usize>) -> String {
    let counts = counts.iter().map(|(name, count)| format!("{name} {}", thousands(*count)));
    counts.collect::<Vec<_>>().join(", ")
}

/// 12345 as people read it.
fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
