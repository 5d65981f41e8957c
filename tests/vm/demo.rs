//! A factory reset for people to watch: an IncusOS-like machine boots for the
//! first time, a reset is staged in the running system, applied in the initrd,
//! and the machine comes back as just installed.

use crate::base::factory_new;
use crate::bench::{Bench, Boot};
use crate::failure::{Failure, Outcome};
use crate::guest::Facts;
use crate::lab::{Accel, Image, Lab};
use crate::serial::Serial;
use crate::trial;
use crate::wire::from_base64;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Lines of the console that tell the story; the others are many.
const TELLING: [&str; 12] = [
    "restage: ",
    "EFI stub: Loaded",
    "Welcome to",
    "Factory Reset (restage)",
    "Repartition Root Disk",
    "Cryptography Setup for root",
    "Early TPM SRK",
    "Mounted sysroot.mount",
    "Reference OS daemon",
    " login:",
    "reboot: Restarting",
    "Kernel panic",
];

pub fn run() -> Outcome {
    let mut lab = Lab::open(Image::Stable)?;
    trial::choose(&mut lab, &|text| println!("{text}"))?;
    let how = match lab.accel {
        Accel::Kvm => "KVM",
        Accel::Tcg => "emulation: KVM does not run guests here, so all of it is slower",
    };
    let begun = Instant::now();
    heading("A machine as it leaves the factory");
    println!("QEMU, OVMF firmware, a software TPM 2.0, one disk with the reference image ({how})");
    let dir = lab.cache.join("run").join("demo");
    let mut bench = Bench::bare(&lab, "demo", factory_new(&lab, &dir)?);
    let console = Console::follow(&dir.join("serial.log"));
    let ended = story(&mut bench);
    console.stop();
    if let Err(cause) = ended {
        let kept = crate::evidence::keep(&mut bench, "demo", &cause.to_string());
        return Err(Failure::new(format!("{cause}\nsee {}", kept.display())));
    }
    bench.pull_plug();
    // Of use to nobody any more; and not being able to tidy up is no failure.
    let _ = std::fs::remove_dir_all(&dir);
    println!("\nThe demo took {} s.", begun.elapsed().as_secs());
    Ok(())
}

fn story(bench: &mut Bench<'_>) -> Outcome {
    bench.power_on()?;
    let old = bench.booted(Boot::First)?;
    bench.run(
        "echo 'not to be found again' >/var/lib/letter; \
         tpm2_createprimary -Q -C o -G ecc -c /run/key && \
         tpm2_evictcontrol -Q -C o -c /run/key 0x81010042",
    )?;
    let old_tpm = tpm_objects(bench)?;

    heading("The system has booted for the first time; a file and a TPM object are left in it");
    show(bench, "restage status")?;
    show(bench, "restage factory-reset --dry-run")?;
    heading("The reset is staged in the running system, and the machine reboots");
    println!("$ restage factory-reset --force --reboot");
    bench.start("restage factory-reset --force --reboot")?;
    bench.wait_reset(90)?;
    heading("In the initrd, before anything is unlocked");
    bench.line(&["restage: done"], 120)?;
    bench.wait_reset(60)?;
    heading("The first boot of the new system");
    let new = bench.booted(Boot::First)?;
    let letter = bench.sh("cat /var/lib/letter")?;
    let new_tpm = tpm_objects(bench)?;

    heading("What happened");
    show(bench, "restage status")?;
    table(&old, &new, &old_tpm, &new_tpm, letter.code == 0);
    let reset = old.luks_root != new.luks_root
        && old.luks_swap != new.luks_swap
        && old.key_root != new.key_root
        && old_tpm != new_tpm
        && letter.code != 0
        && new.running == "running";
    if reset { Ok(()) } else { Err(Failure::new("this is not a system as just installed")) }
}

fn table(old: &Facts, new: &Facts, old_tpm: &str, new_tpm: &str, letter: bool) {
    let key = |text: &str| {
        let bytes = from_base64(text).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        format!("{}…", text.get(..26).unwrap_or(&text))
    };
    let file = |there: bool| if there { "there" } else { "gone" }.to_owned();
    let rows = [
        ("LUKS UUID of root", old.luks_root.clone(), new.luks_root.clone()),
        ("LUKS UUID of swap", old.luks_swap.clone(), new.luks_swap.clone()),
        ("recovery key of root", key(&old.key_root), key(&new.key_root)),
        ("recovery key of swap", key(&old.key_swap), key(&new.key_swap)),
        ("objects in the TPM", old_tpm.to_owned(), new_tpm.to_owned()),
        ("/var/lib/letter", file(true), file(letter)),
        ("hostname, from the seeds", old.hostname.clone(), new.hostname.clone()),
        ("the system is", old.running.clone(), new.running.clone()),
    ];
    println!("\n{:26}{:40}after", "", "before");
    for (what, before, after) in rows {
        println!("{what:26}{before:40}{after}");
    }
}

/// Handles of what is kept in the TPM, in one line.
fn tpm_objects(bench: &mut Bench<'_>) -> Outcome<String> {
    let said = bench.run("tpm2_getcap handles-persistent | sed 's/^- //' | paste -sd' '")?;
    Ok(said.trim().to_owned())
}

fn heading(text: &str) {
    println!("\n\x1b[1m── {text}\x1b[0m");
}

fn show(bench: &mut Bench<'_>, command: &str) -> Outcome {
    println!("$ {command}");
    let ran = bench.sh(command)?;
    let said = ran.out + &ran.err;
    said.lines().for_each(|line| println!("  {line}"));
    Ok(())
}

/// Prints the telling lines of the console as they come.
struct Console {
    stop: Arc<AtomicBool>,
    printer: JoinHandle<()>,
}

impl Console {
    fn follow(log: &Path) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (mut serial, told) = (Serial::open(log), Arc::clone(&stop));
        let printer = std::thread::spawn(move || {
            let begun = Instant::now();
            let mut seen = None;
            while !told.load(Ordering::Relaxed) {
                // What cannot be read now is read next time, or not shown.
                let _ = serial.pump();
                for line in serial.lines_from(&mut seen) {
                    if TELLING.iter().any(|text| line.contains(text)) && !line.contains("Job ") {
                        println!("{:5} s │ {line}", begun.elapsed().as_secs());
                    }
                }
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        Self { stop, printer }
    }

    fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        // A printer that panicked has nothing more to say.
        let _ = self.printer.join();
    }
}
