//! What is kept of a scenario that failed: the console, QEMU's own words, the
//! guest's journal and `restage status` when it still answers, restage's
//! directory on the ESP. Best effort: a guest that hangs must not hide a failure.

use crate::bench::Bench;
use crate::failure::Outcome;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Asked of a guest that may be half dead.
const SHORT: Duration = Duration::from_secs(20);

/// Gathers the evidence; returns where it is.
pub fn keep(bench: &mut Bench<'_>, name: &str, failure: &str) -> PathBuf {
    let dir = bench.lab.cache.join("failed").join(name);
    // Not there is fine, and what cannot be removed shows when it is written.
    let _ = fs::remove_dir_all(&dir);
    if fs::create_dir_all(&dir).is_err() {
        return dir;
    }
    put(&dir, "failure", failure.as_bytes());
    from_guest(bench, &dir);
    bench.pull_plug();
    for file in ["serial.log", "qemu.log", "facts"] {
        let _ = fs::copy(bench.machine.dir.join(file), dir.join(file));
    }
    if let Ok(files) = bench.restage_files() {
        let esp = dir.join("esp-restage");
        let _ = fs::create_dir_all(&esp);
        for (file, bytes) in files {
            put(&esp, &file, &bytes);
        }
    }
    dir
}

fn from_guest(bench: &mut Bench<'_>, dir: &Path) {
    let asked = [
        ("journal.log", "journalctl -b -o short-monotonic --no-pager"),
        ("status.json", "restage status --json"),
        ("units.txt", "systemctl list-units --all --no-pager; systemctl list-jobs --no-pager"),
    ];
    for (file, script) in asked {
        match ask(bench, script) {
            Ok(text) => put(dir, file, text.as_bytes()),
            Err(_) => return, // it does not answer, and waiting again is no use
        }
    }
}

fn ask(bench: &mut Bench<'_>, script: &str) -> Outcome<String> {
    let ran = bench.vm()?.agent.agent(SHORT)?.sh(script, SHORT)?;
    Ok(ran.out + &ran.err)
}

fn put(dir: &Path, name: &str, bytes: &[u8]) {
    let _ = fs::write(dir.join(name), bytes);
}
