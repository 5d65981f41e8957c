//! The same disk and the same TPM, reset once by systemd alone and once by restage: what each leaves
//! behind, as a table for docs/comparison.md.

use crate::base::{self, Base, EXAMPLE, SECRET};
use crate::bench::{Bench, Boot};
use crate::disk::{Access, Disk};
use crate::failure::{Failure, Outcome};
use crate::faults::drop_in;
use crate::lab::{Image, Lab};
use crate::scenarios::end;
use crate::{evidence, seeds, tpm, trial};
use std::time::{Duration, Instant};

/// The headers and key slots of a LUKS2 volume as systemd-repart makes it.
const LUKS_BYTES: u64 = 16 << 20;
const BLOCK: usize = 4096;
/// A file on the ESP that the profile removes.
const FLAG: &str = "sb-disabled";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Systemd,
    Restage,
}

/// What is there after a reset.
#[allow(clippy::struct_excessive_bools, reason = "a row of the table each")]
struct Left {
    boots: u32,
    took: Duration,
    /// Of the old bytes that were not zero: these are still at their place, of so many.
    slots: (u64, u64),
    data: (u64, u64),
    objects: bool,
    same_owner: bool,
    secret_seed: bool,
    new_seed: bool,
    flag: bool,
    report: bool,
}

pub fn run() -> Outcome {
    let mut lab = Lab::open(Image::Incus)?;
    let tell = |text: &str| println!("compare: {text}");
    trial::choose(&mut lab, &tell)?;
    let base = base::prepare(&lab, &tell)?;
    let (by_systemd, by_restage) = std::thread::scope(|scope| {
        let begun = [Way::Systemd, Way::Restage].map(|way| {
            let (lab, base) = (&lab, &base);
            scope.spawn(move || measured(lab, base, way))
        });
        let [one, other] = begun.map(|thread| {
            thread.join().unwrap_or_else(|_| Err(Failure::new("a panic in the comparison")))
        });
        (one, other)
    });
    let (by_systemd, by_restage) = (by_systemd?, by_restage?);
    print(&by_systemd, &by_restage);
    let left = &by_restage;
    let is_clean = left.slots.0 == 0
        && !left.objects
        && !left.same_owner
        && !left.secret_seed
        && left.new_seed
        && !left.flag
        && left.report;
    if is_clean { Ok(()) } else { Err(Failure::new("restage left what it must not leave")) }
}

fn measured(lab: &Lab, base: &Base, way: Way) -> Outcome<Left> {
    let name = if way == Way::Systemd { "compare-systemd" } else { "compare-restage" };
    let mut bench = Bench::on(lab, base, name)?;
    let left = measure(&mut bench, way);
    if let Err(cause) = &left {
        evidence::keep(&mut bench, name, &cause.to_string());
    }
    bench.pull_plug();
    left
}

fn measure(bench: &mut Bench<'_>, way: Way) -> Outcome<Left> {
    // Many disks discard nothing, and none has to.
    bench.machine.discards = false;
    if way == Way::Systemd {
        let off = "[Service]\nExecStart=\nExecStart=/usr/bin/restage --version\n";
        let units = ["restage-reset.service", "restage-factory-reset.service"];
        bench.machine.oem = units.map(|unit| drop_in(unit, off)).to_vec();
    }
    bench.on_esp(|esp| esp.write(FLAG, b""))?;
    tpm::plant(&bench.machine.tpm)?;
    let before = end::in_tpm(bench)?;
    bench.power_on()?;
    bench.booted(Boot::Usual)?;
    if way == Way::Restage {
        bench.exits(&format!("restage factory-reset --force -d '{EXAMPLE}'"), 0)?;
    }
    // From here on, what a person does is the same.
    let begun = Instant::now();
    bench.start("systemctl start factory-reset.target")?;
    bench.wait_reset(90)?;
    let mut boots = 1;
    if way == Way::Restage {
        bench.line(&["restage: done"], 150)?;
        bench.wait_reset(60)?;
        boots += 1;
    }
    let new = bench.booted(Boot::First)?;
    let took = begun.elapsed();
    bench.differ("LUKS UUID of root", &bench.base()?.facts.luks_root.clone(), &new.luks_root)?;
    let reports = bench.run("restage status --json | jq '.reports | length'")?;
    bench.power_off()?;
    let after = end::in_tpm(bench)?;
    let (old, new) = (bench.base()?.open_disk()?, bench.machine.open_disk(Access::Read)?);
    let mut slots = (0, 0);
    for name in ["swap", "root-x86-64"] {
        let (same, of) = kept(&old, &new, old.part(name)?.start, LUKS_BYTES)?;
        slots = (slots.0 + same, slots.1 + of);
    }
    let root = old.part("root-x86-64")?;
    let data = kept(&old, &new, root.start + LUKS_BYTES, root.length - LUKS_BYTES)?;
    let secret_seed = seeds::holds(&new, SECRET.as_bytes())?;
    let (names, _) = seeds::read(&new)?;
    old.close()?;
    new.close()?;
    Ok(Left {
        boots,
        took,
        slots,
        data,
        objects: after.persistent.contains(&tpm::PLANTED_OBJECT),
        same_owner: before.owner == after.owner,
        secret_seed,
        new_seed: names.keys().eq(["incus.json"]),
        flag: bench.on_esp(|esp| Ok(esp.has(FLAG)))?,
        report: reports.trim() == "1",
    })
}

/// Of the blocks that held something: how many bytes are still the same, and of how many.
fn kept(old: &Disk, new: &Disk, start: u64, length: u64) -> Outcome<(u64, u64)> {
    const PIECE: u64 = 8 << 20;
    let (mut same, mut of) = (0, 0);
    let mut at = start;
    while at < start + length {
        let piece = PIECE.min(start + length - at);
        let (before, after) = (old.read(at, piece)?, new.read(at, piece)?);
        for (one, other) in before.chunks(BLOCK).zip(after.chunks(BLOCK)) {
            if one.iter().any(|byte| *byte != 0) {
                of += one.len() as u64;
                same += if one == other { one.len() as u64 } else { 0 };
            }
        }
        at += piece;
    }
    Ok((same, of))
}

fn print(by_systemd: &Left, by_restage: &Left) {
    let ratio = by_restage.took.as_secs_f64() / by_systemd.took.as_secs_f64();
    let row = |what: &str, of: &dyn Fn(&Left) -> String| {
        println!("| {what} | {} | {} |", of(by_systemd), of(by_restage));
    };
    let there = |is: bool| if is { "there" } else { "gone" }.to_owned();
    let kib = |(same, of): (u64, u64)| format!("{} of {} KiB", same >> 10, of >> 10);
    println!("\n| after the reset | systemd alone | restage |\n|---|---|---|");
    row("headers and key slots of the old volumes, on a disk without discard", &|l| kib(l.slots));
    row("ciphertext of the old root, on a disk without discard", &|l| kib(l.data));
    row("an object and an index in the TPM", &|l| there(l.objects));
    row("the seed of the TPM's owner hierarchy", &|l| {
        if l.same_owner { "the old one" } else { "a new one" }.to_owned()
    });
    row("a secret in the old seeds", &|l| there(l.secret_seed));
    row("seeds", &|l| {
        if l.new_seed { "those that were asked for" } else { "as before" }.to_owned()
    });
    row("what the OS has left on the ESP", &|l| there(l.flag));
    row("a report in the new system", &|l| if l.report { "there" } else { "none" }.to_owned());
    row("boots", &|l| l.boots.to_string());
    println!("| time from the request to the new system | 1 | {ratio:.2} |");
}
