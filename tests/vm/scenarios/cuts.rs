//! Power cuts and kills in the middle of a committed reset.

use super::end;
use crate::bench::{Bench, Boot, DEAD_ENDS};
use crate::chance::Chance;
use crate::failure::{Failure, Outcome};
use crate::faults;
use crate::guest::Report;
use crate::machine::{Machine, SYSTEM_DISK};
use crate::request::Staged;
use crate::swtpm;
use std::time::{Duration, Instant};

/// Bytes a second at which the headers and key slots of one LUKS2 volume, 16 MiB,
/// take 256 s, 80 s, 4 s.
const CRAWL: u64 = 64 * 1024;
const SLOW: u64 = 200 * 1024;
const QUICK: u64 = 4 * 1024 * 1024;
/// What the console of a boot says that has gone past the reset.
const PAST: [&str; 5] = [
    "Mounting sysroot.mount",
    "Mounted sysroot.mount",
    "initrd-switch-root.target",
    "Switching Root",
    "systemd-repart.service - Repartition",
];

/// Four boots: the plug is pulled in the middle of the wipe, and again in the
/// middle of the resume; the third boot ends like one that nobody interrupted;
/// the new system comes up.
pub fn power_cuts(bench: &mut Bench<'_>) -> Outcome {
    let old = bench.base()?.facts.clone();
    let staged = bench.base()?.request("default")?;
    let kept = bench.base()?.seeds.clone();
    bench.put_request(&staged)?;
    let tpm_before = plant(bench)?;
    for words in ["restage: committed", "restage: resuming"] {
        bench.power_on()?;
        bench.line(&[words], 90)?;
        bench.line(&["wipe"], 60)?;
        bench.vm()?.qmp.limit_writes(SYSTEM_DISK, SLOW)?;
        std::thread::sleep(Duration::from_secs(8));
        bench.pull_plug();
        let files = bench.restage_files()?;
        let stem = staged.stem();
        bench.check("it is committed", files.contains_key(&format!("{stem}.JNL")))?;
        bench.check("it is not over", !files.contains_key(&format!("{stem}.RPT")))?;
    }
    bench.power_on()?;
    bench.line(&["restage: resuming"], 90)?;
    bench.off_at_reboot(150)?;
    let report = end::reset_done(bench, &staged.id, &kept)?;
    bench.equal("boots that worked on it", Report(&report).runs(), 3)?;
    let tpm_after = end::in_tpm(bench)?;
    end::tpm_cleared(bench, &tpm_before, &tpm_after)?;

    bench.power_on()?;
    let new = bench.booted(Boot::First)?;
    end::new_system(bench, &old, &new)?;
    let status = bench.status()?;
    bench.equal("outcome", status.report(&staged.id)?.outcome(), "done")
}

/// One boot: the first wipe takes 150 seconds, then restage is killed by SIGKILL,
/// and in the next wipe by SIGSEGV. The boot never goes past it, and the reset
/// ends as it should.
pub fn killed(bench: &mut Bench<'_>) -> Outcome {
    let staged = bench.base()?.request("default")?;
    let kept = bench.base()?.seeds.clone();
    bench.put_request(&staged)?;
    bench.machine.oem = faults::probe();
    bench.power_on()?;
    bench.line(&["restage: committed"], 90)?;
    let mark = bench.line(&["wipe swap"], 60)?;
    bench.vm()?.qmp.limit_writes(SYSTEM_DISK, CRAWL)?;
    let limit = bench.lab.patience(40);
    bench.vm()?.probe.ready(limit)?;

    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(150) {
        bench.never(&DEAD_ENDS, 10)?;
        not_past(bench)?;
    }
    let still =
        bench.vm()?.probe.sh("systemctl show -P ActiveState restage-reset.service", limit)?;
    bench.equal("the unit after 150 s", still.trim(), "activating")?;
    let next = bench.console()?.contains("wipe root");
    bench.check("the first wipe took 150 s", !next)?;

    kill(bench, "KILL", limit)?;
    let mark = bench.line_from(mark, &["restage: resuming"], 60)?;
    bench.vm()?.qmp.limit_writes(SYSTEM_DISK, SLOW)?;
    bench.line_from(mark, &["wipe root"], 60)?;
    std::thread::sleep(Duration::from_secs(3));
    kill(bench, "SEGV", limit)?;
    bench.line_from(mark, &["restage: resuming"], 60)?;
    not_past(bench)?;
    bench.vm()?.qmp.limit_writes(SYSTEM_DISK, 0)?;
    bench.off_at_reboot(150)?;
    let report = end::reset_done(bench, &staged.id, &kept)?;
    bench.check("each start is on record", Report(&report).runs() >= 3)
}

/// So often restage may be ended in one boot.
const CRASHES: usize = 5;

/// One boot: restage is killed again and again while it waits for the disk. In the end it sets the
/// request aside, and the boot goes on into the old system. And what its unit may do.
pub fn crashes(bench: &mut Bench<'_>) -> Outcome {
    let old = bench.base()?.facts.clone();
    let staged = bench.base()?.request("default")?;
    bench.put_request(&staged)?;
    let text = format!(
        "[Service]\nExecStart=\nExecStart=/bin/sh -c '\
         starts=; read -r starts </run/restage/reset-starts; \
         while read -r key value; do case $$key in CapBnd: | NoNewPrivs: | Seccomp:) \
         echo test-unit: $$key $$value >/dev/console ;; esac; done </proc/self/status; \
         test $${{#starts}} -lt {CRASHES} || exec /usr/bin/restage initrd reset; \
         /usr/bin/restage initrd reset & pid=$$!; sleep 0.3; kill -KILL $$pid; wait $$pid; \
         kill -KILL $$$$'\n"
    );
    bench.machine.oem = vec![faults::drop_in("restage-reset.service", &text)];
    bench.power_on()?;
    bench.line(&[&format!("restage was ended {CRASHES} times")], 120)?;
    // What the unit gives up is given up in a boot.
    let console = bench.console()?;
    bench.tells("the unit", &console, &["test-unit: CapBnd: 0000000000224202"])?;
    bench.tells("the unit", &console, &["test-unit: NoNewPrivs: 1"])?;
    let filter = console.lines().find_map(|line| line.split_once("test-unit: Seccomp:"));
    bench.note(format!("filter of system calls: {}", filter.map_or("", |(_, mode)| mode.trim())));
    bench.never(&["restage: committed"], 1)?;
    let now = bench.booted(Boot::Usual)?;
    end::same_system(bench, &old, &now)?;
    let status = bench.status()?;
    let report = status.report(&staged.id)?;
    bench.equal("outcome", report.outcome(), "refused")?;
    bench.tells("the reason", report.reason(), &["was ended 5 times"])
}

/// Kills restage in the middle of a write: the signal waits for the write to end,
/// which is why the disk gets faster. Sent until it works: Rust's own handler
/// for stack overflows swallows a first SIGSEGV that no access caused.
fn kill(bench: &mut Bench<'_>, signal: &str, limit: Duration) -> Outcome {
    bench.vm()?.qmp.limit_writes(SYSTEM_DISK, QUICK)?;
    let said = bench.vm()?.probe.sh(
        &format!(
            "pid=$(systemctl show -P MainPID restage-reset.service); sent=0; \
             while kill -{signal} $pid 2>/dev/null; do sent=$((sent+1)); sleep 0.2; done; \
             echo sent $sent"
        ),
        limit,
    )?;
    let sent = said.contains("sent") && !said.contains("sent 0");
    bench.check(&format!("SIG{signal} was sent ({})", said.trim()), sent)?;
    not_past(bench)
}

fn not_past(bench: &mut Bench<'_>) -> Outcome {
    let console = bench.console()?;
    for text in PAST {
        bench.check(&format!("the console does not say `{text}`"), !console.contains(text))?;
    }
    Ok(())
}

fn plant(bench: &Bench<'_>) -> Outcome<crate::tpm::Contents> {
    crate::tpm::plant(&bench.machine.tpm)?;
    end::in_tpm(bench)
}

pub fn kills_a(bench: &mut Bench<'_>) -> Outcome {
    kills(bench, 0)
}

pub fn kills_b(bench: &mut Bench<'_>) -> Outcome {
    kills(bench, 1)
}

/// How often in one scenario.
const ROUNDS: u32 = 8;

/// The plug is pulled at moments of chance, some of them in a resume, some before
/// the commit; each time the boots after it end like one that nobody interrupted.
fn kills(bench: &mut Bench<'_>, lane: u32) -> Outcome {
    let name = bench.name.clone();
    for round in 0..ROUNDS {
        let seed = lane * 1000 + round;
        let staged = bench.base()?.request(if round % 2 == 0 { "example" } else { "default" })?;
        fresh_machine(bench, &name)?;
        one_round(bench, &staged, seed)
            .map_err(|cause| Failure::new(format!("round {round}, seed {seed}: {cause}")))?;
    }
    bench.note(format!("{ROUNDS} rounds"));
    Ok(())
}

fn one_round(bench: &mut Bench<'_>, staged: &Staged, seed: u32) -> Outcome {
    let wanted = end::seeds_after(bench, staged)?;
    bench.put_request(staged)?;
    let before = plant(bench)?;
    let mut chance = Chance::new(u64::from(seed));
    // Everything is slowed down, so that chance meets each step.
    bench.machine.write_limit = 2 << 20;
    let cuts = 1 + chance.below(3);
    for _ in 0..cuts {
        bench.power_on()?;
        bench.line(&["restage: "], 90)?;
        let wait = Duration::from_millis(chance.below(14_000));
        let begun = Instant::now();
        while begun.elapsed() < wait && !bench.console()?.contains("restage: done") {
            std::thread::sleep(Duration::from_millis(20));
        }
        let over = bench.console()?.contains("restage: done");
        bench.pull_plug();
        if over {
            break;
        }
    }
    bench.machine.write_limit = 0;
    let over = bench.restage_files()?.contains_key(&format!("{}.RPT", staged.stem()));
    if !over {
        bench.power_on()?;
        bench.line(&["restage: committed", "restage: resuming"], 90)?;
        bench.off_at_reboot(150)?;
    }
    end::reset_done(bench, &staged.id, &wanted)?;
    let after = end::in_tpm(bench)?;
    end::tpm_cleared(bench, &before, &after)
}

/// The machine of the next round, in the same place.
pub fn fresh_machine(bench: &mut Bench<'_>, name: &str) -> Outcome {
    bench.pull_plug();
    let base = bench.base()?;
    bench.machine = Machine::at(&bench.lab.cache.join("run").join(name))?;
    base.overlay(&bench.machine.disk)?;
    std::fs::copy(&base.vars, &bench.machine.vars)?;
    swtpm::copy_state(&base.tpm, &bench.machine.tpm)
}
