//! What a scenario works with: its machine, the power-on of the moment, and the
//! count of what it has checked. The bench outlives the scenario, so that the
//! runner can still ask the guest what happened.

use crate::agent::Ran;
use crate::base::Base;
use crate::disk::Access;
use crate::esp::{Esp, Files, RESTAGE};
use crate::failure::{Doing, Failure, Outcome};
use crate::guest::{self, Facts, Status};
use crate::lab::Lab;
use crate::machine::{Machine, Vm};
use crate::request::Staged;
use crate::serial::Mark;
use crate::swtpm;
use std::fmt::Debug;
use std::time::{Duration, Instant};

/// A boot of the OS, with everything it starts.
const BOOT_S: u64 = 100;
/// A first boot: formats, and derives keys on purpose slowly.
const FIRST_BOOT_S: u64 = 160;
/// A command in the guest.
const COMMAND_S: u64 = 40;

/// After these words on the console no system comes up any more.
pub const DEAD_ENDS: [&str; 3] = ["You are in emergency mode", "Kernel panic", "restage: HOLD"];

/// Which boot is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Boot {
    Usual,
    First,
}

pub struct Bench<'a> {
    pub lab: &'a Lab,
    pub base: Option<&'a Base>,
    pub name: String,
    pub machine: Machine,
    vm: Option<Vm>,
    checks: u32,
    /// What a reader wants to know although it is no verdict.
    pub notes: Vec<String>,
    last_boot: String,
    /// Where on the console the last power-on begins.
    last_from: Mark,
}

impl<'a> Bench<'a> {
    /// A machine of its own on a copy-on-write overlay of the base's disk, with
    /// copies of the base's TPM and firmware variables.
    pub fn on(lab: &'a Lab, base: &'a Base, name: &str) -> Outcome<Self> {
        let machine = Machine::at(&lab.cache.join("run").join(name))?;
        base.overlay(&machine.disk)?;
        std::fs::copy(&base.vars, &machine.vars).doing("copying the firmware's variables")?;
        swtpm::copy_state(&base.tpm, &machine.tpm)?;
        Ok(Self { base: Some(base), ..Self::bare(lab, name, machine) })
    }

    /// A bench around a machine that is made otherwise.
    pub fn bare(lab: &'a Lab, name: &str, machine: Machine) -> Self {
        Self {
            lab,
            base: None,
            name: name.to_owned(),
            machine,
            vm: None,
            checks: 0,
            notes: Vec::new(),
            last_boot: String::new(),
            last_from: Mark::default(),
        }
    }

    pub fn base(&self) -> Outcome<&'a Base> {
        self.base.doing("the base")
    }

    pub fn checks(&self) -> u32 {
        self.checks
    }

    /// One thing that must be so.
    pub fn check(&mut self, what: &str, so: bool) -> Outcome {
        self.checks += 1;
        if so { Ok(()) } else { Err(Failure::new(format!("not so: {what}"))) }
    }

    pub fn equal<A, B>(&mut self, what: &str, is: A, wanted: B) -> Outcome
    where
        A: PartialEq<B> + Debug,
        B: Debug,
    {
        self.checks += 1;
        if is.eq(&wanted) {
            return Ok(());
        }
        Err(Failure::new(format!("{what}: is {is:?}, wanted {wanted:?}")))
    }

    pub fn differ<T: PartialEq + Debug>(&mut self, what: &str, old: T, new: T) -> Outcome {
        self.checks += 1;
        if old == new {
            return Err(Failure::new(format!("{what}: still {old:?}")));
        }
        Ok(())
    }

    /// A text that must hold each of these.
    pub fn tells(&mut self, what: &str, text: &str, words: &[&str]) -> Outcome {
        let lower = text.to_lowercase();
        for word in words {
            self.checks += 1;
            if !lower.contains(&word.to_lowercase()) {
                return Err(Failure::new(format!("{what} does not say `{word}`: {text:?}")));
            }
        }
        Ok(())
    }

    pub fn note(&mut self, text: String) {
        self.notes.push(text);
    }

    // --- power -------------------------------------------------------------

    pub fn power_on(&mut self) -> Outcome {
        self.pull_plug();
        let vm = self.machine.power_on(self.lab)?;
        self.last_from = vm.from;
        self.vm = Some(vm);
        Ok(())
    }

    /// The hard way; QEMU gets a SIGKILL.
    pub fn pull_plug(&mut self) {
        if let Some(vm) = self.vm.take() {
            vm.kill();
        }
    }

    pub fn vm(&mut self) -> Outcome<&mut Vm> {
        self.vm.as_mut().doing("the machine is off")
    }

    /// The machine goes off in order.
    pub fn power_off(&mut self) -> Outcome {
        let limit = self.lab.patience(60);
        self.start("systemctl poweroff")?;
        self.vm()?.wait_off(limit)?;
        self.vm = None;
        Ok(())
    }

    /// A guest's reboot ends this power-on, with everything on the disk as it was
    /// at that moment.
    pub fn off_at_reboot(&mut self, native_s: u64) -> Outcome {
        let limit = self.lab.patience(native_s);
        let vm = self.vm()?;
        vm.end_at_reboot()?;
        vm.wait_off(limit).doing("waiting for the guest to reboot")?;
        self.vm = None;
        Ok(())
    }

    pub fn wait_reset(&mut self, native_s: u64) -> Outcome {
        let limit = self.lab.patience(native_s);
        let vm = self.vm.as_mut().doing("the machine is off")?;
        vm.wait_reset(&mut self.machine.serial, limit)
    }

    // --- the console ---------------------------------------------------------

    /// Waits for a line since the last power-on or reset.
    pub fn line(&mut self, texts: &[&str], native_s: u64) -> Outcome<Mark> {
        let from = self.vm()?.from;
        self.line_from(from, texts, native_s)
    }

    pub fn line_from(&mut self, from: Mark, texts: &[&str], native_s: u64) -> Outcome<Mark> {
        let limit = self.lab.patience(native_s);
        let vm = self.vm.as_mut().doing("the machine is off")?;
        vm.wait_line(&mut self.machine.serial, from, texts, limit)
    }

    /// What the console has said since the last power-on or reset.
    pub fn console(&mut self) -> Outcome<String> {
        let from = self.vm()?.from;
        self.machine.serial.pump()?;
        Ok(self.machine.serial.since(from).to_owned())
    }

    /// What the console has said since the last power-on, even when the machine is off again.
    pub fn last_console(&mut self) -> Outcome<String> {
        self.machine.serial.pump()?;
        Ok(self.machine.serial.since(self.last_from).to_owned())
    }

    /// Whether the console has said this since the last power-on, even when the machine is off again.
    pub fn console_ever_said(&mut self, text: &str) -> Outcome<bool> {
        self.machine.serial.pump()?;
        Ok(self.machine.serial.find(self.last_from, &[text]).is_some())
    }

    /// Watches the console for so long (not scaled: it is the guest's clock that
    /// time-outs run on) and fails when one of these texts appears.
    pub fn never(&mut self, texts: &[&str], seconds: u64) -> Outcome {
        let end = Instant::now() + Duration::from_secs(seconds);
        loop {
            let console = self.console()?;
            self.vm()?.alive()?;
            if let Some(text) = texts.iter().find(|text| console.contains(**text)) {
                return Err(Failure::new(format!("the console says `{text}`")));
            }
            if Instant::now() > end {
                self.checks += 1;
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(250));
        }
    }

    // --- the booted system -----------------------------------------------------

    /// Waits until the OS has finished starting, and gathers the facts.
    pub fn booted(&mut self, boot: Boot) -> Outcome<Facts> {
        let seconds = if boot == Boot::First { FIRST_BOOT_S } else { BOOT_S };
        let end = Instant::now() + self.lab.patience(seconds);
        let mut last = String::from("no agent yet");
        while Instant::now() < end {
            self.vm()?.alive().doing("waiting for the system")?;
            let console = self.console()?;
            if let Some(end) = DEAD_ENDS.iter().find(|end| console.contains(**end)) {
                return Err(Failure::new(format!(
                    "waiting for the system: `{end}` on the console"
                )));
            }
            last = match self.facts() {
                Ok(facts) if facts.boot_id == self.last_boot => {
                    "it has not rebooted yet".to_owned()
                }
                Ok(facts) if matches!(facts.running.as_str(), "running" | "degraded") => {
                    self.last_boot.clone_from(&facts.boot_id);
                    self.secured(&facts)?;
                    return Ok(facts);
                }
                Ok(facts) => format!("it is {}", facts.running),
                Err(cause) => {
                    self.vm()?.agent.hang_up();
                    cause.to_string()
                }
            };
            std::thread::sleep(Duration::from_millis(500));
        }
        Err(Failure::new(format!("waiting for the system: {last}")))
    }

    /// Secure Boot and lockdown are on where this firmware has them, and nowhere else.
    fn secured(&self, facts: &Facts) -> Outcome {
        let (secure_boot, lockdown) = (facts.secure_boot == "1", &facts.lockdown);
        let is_locked = lockdown.contains("[integrity]") || lockdown.contains("[confidentiality]");
        if (secure_boot, is_locked) == (self.lab.is_secure, self.lab.is_secure) {
            return Ok(());
        }
        Err(Failure::new(format!(
            "Secure Boot `{}`, lockdown `{lockdown}`: not as this firmware has it",
            facts.secure_boot
        )))
    }

    fn facts(&mut self) -> Outcome<Facts> {
        let limit = self.lab.patience(COMMAND_S);
        // A short try: the agent may not have started, and the loop is patient.
        let agent = self.vm()?.agent.agent(Duration::from_secs(4))?;
        let (facts, lines) = guest::facts(agent, limit)?;
        // The cache and the evidence keep them beside the disk.
        std::fs::write(self.machine.dir.join("facts"), lines)?;
        Ok(facts)
    }

    pub fn sh(&mut self, script: &str) -> Outcome<Ran> {
        let limit = self.lab.patience(COMMAND_S);
        self.vm()?.agent.agent(limit)?.sh(script, limit)
    }

    /// A command that must succeed; what it printed.
    pub fn run(&mut self, script: &str) -> Outcome<String> {
        let ran = self.sh(script)?;
        if ran.code == 0 {
            return Ok(ran.out);
        }
        Err(Failure::new(format!("{script}: {}", ran.summary())))
    }

    /// A command that must end with this exit status.
    pub fn exits(&mut self, script: &str, code: i64) -> Outcome<Ran> {
        let ran = self.sh(script)?;
        self.checks += 1;
        if ran.code == code {
            return Ok(ran);
        }
        Err(Failure::new(format!("{script}: {}, wanted exit {code}", ran.summary())))
    }

    /// Starts what takes the agent down with it.
    pub fn start(&mut self, script: &str) -> Outcome {
        let limit = self.lab.patience(COMMAND_S);
        let vm = self.vm()?;
        vm.qmp.forget_events()?;
        vm.agent.agent(limit)?.start(script, limit)?;
        vm.agent.hang_up();
        Ok(())
    }

    pub fn status(&mut self) -> Outcome<Status> {
        let limit = self.lab.patience(COMMAND_S);
        guest::status(self.vm()?.agent.agent(limit)?, limit)
    }

    // --- from outside, the power off ---------------------------------------------

    /// Puts a request on the ESP as the running OS would have.
    pub fn put_request(&mut self, staged: &Staged) -> Outcome {
        self.on_esp(|esp| esp.put(RESTAGE, &staged.files))
    }

    /// Changes the ESP of a machine that is off.
    pub fn on_esp<T>(&mut self, work: impl FnOnce(&Esp) -> Outcome<T>) -> Outcome<T> {
        let disk = self.machine.open_disk(Access::Write)?;
        let esp = Esp::open(&disk)?;
        let value = work(&esp)?;
        esp.close()?;
        disk.close()?;
        Ok(value)
    }

    /// restage's directory on the ESP.
    pub fn restage_files(&mut self) -> Outcome<Files> {
        let disk = self.machine.open_disk(Access::Read)?;
        let files = Esp::open(&disk)?.files_in(RESTAGE)?;
        disk.close()?;
        Ok(files)
    }
}
