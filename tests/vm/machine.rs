//! A test machine: what it is made of, as long as a scenario lasts; and one
//! power-on of it.

use crate::agent::Line as AgentLine;
use crate::command::{Background, run};
use crate::disk::{Access, Disk};
use crate::failure::{Doing, Failure, Outcome};
use crate::faults::{Oem, Probe};
use crate::lab::{Accel, Lab};
use crate::nbd::Nbd;
use crate::qmp::Qmp;
use crate::serial::{Mark, Serial};
use crate::swtpm;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How the system disk is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bus {
    Virtio,
    Nvme,
}

/// Where QEMU keeps the block device of the system disk on virtio, for I/O limits.
pub const SYSTEM_DISK: &str = "/machine/peripheral/system/virtio-backend";

/// A kernel that QEMU itself starts. Its first reboot is the machine's end.
#[derive(Debug, Clone)]
pub struct Direct {
    pub kernel: PathBuf,
    pub initrd: PathBuf,
    pub command_line: String,
}

/// What stays when the power is off.
#[derive(Debug)]
pub struct Machine {
    pub dir: PathBuf,
    pub disk: PathBuf,
    pub vars: PathBuf,
    pub tpm: PathBuf,
    pub has_tpm: bool,
    pub bus: Bus,
    /// More disks, attached in this order.
    pub others: Vec<PathBuf>,
    /// They come before the system disk on the bus, and get its device name.
    pub others_first: bool,
    /// SMBIOS strings of the next power-on.
    pub oem: Vec<Oem>,
    /// More of the kernel command line.
    pub kernel_arguments: String,
    /// Whether its disks give back what the guest discards.
    pub discards: bool,
    /// Bytes a second written to the system disk from the start; 0: no limit.
    pub write_limit: u64,
    /// Where the next power-on logs what it writes to the system disk.
    pub record: Option<PathBuf>,
    /// Instead of the firmware and the boot loader.
    pub direct: Option<Direct>,
    pub serial: Serial,
}

/// What an emulated processor need not do: detours at indirect jumps, drivers of what
/// no disk here hangs on, a process for each of several devices at once.
const UNDER_EMULATION: &str = "mitigations=off \
    udev.children_max=2 modprobe.blacklist=ahci,i2c_i801,lpc_ich,iTCO_wdt,psmouse,serio_raw,evdev,button";

impl Machine {
    /// A machine without anything in its directory yet.
    pub fn at(dir: &Path) -> Outcome<Self> {
        if dir.exists() {
            std::fs::remove_dir_all(dir).doing("clearing a machine's directory")?;
        }
        std::fs::create_dir_all(dir).doing("making a machine's directory")?;
        Ok(Self {
            dir: dir.to_owned(),
            disk: dir.join("disk.qcow2"),
            vars: dir.join("vars.fd"),
            tpm: dir.join("tpm"),
            has_tpm: true,
            bus: Bus::Virtio,
            others: Vec::new(),
            others_first: false,
            oem: Vec::new(),
            kernel_arguments: String::new(),
            discards: true,
            write_limit: 0,
            record: None,
            direct: None,
            serial: Serial::open(&dir.join("serial.log")),
        })
    }

    /// The system disk from outside; the power must be off.
    pub fn open_disk(&self, access: Access) -> Outcome<Disk> {
        Disk::open(&self.disk, access)
    }

    pub fn add_disk(&mut self, name: &str, mib: u64) -> Outcome<PathBuf> {
        let path = self.dir.join(format!("{name}.qcow2"));
        let text = path.display().to_string();
        run("qemu-img", &["create", "-q", "-f", "qcow2", &text, &format!("{mib}M")])?;
        self.others.push(path.clone());
        Ok(path)
    }

    pub fn power_on(&mut self, lab: &Lab) -> Outcome<Vm> {
        let sockets = tempfile::tempdir().doing("making a directory for sockets")?;
        let socket = |name: &str| sockets.path().join(name);
        let log = self.dir.join("qemu.log");
        let swtpm =
            if self.has_tpm { Some(swtpm::serve(&self.tpm, &socket("tpm"), &log)?) } else { None };
        let from = self.serial.mark()?;
        let args = self.arguments(lab, sockets.path())?;
        let qemu = Background::start(&lab.qemu, &args, &log)?;
        let mut qmp = Qmp::connect(&socket("qmp")).map_err(|cause| {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            let last = said.trim().lines().last().unwrap_or_default().to_owned();
            Failure::new(format!("starting QEMU: {cause}: {last}"))
        })?;
        if self.write_limit != 0 {
            qmp.limit_writes(SYSTEM_DISK, self.write_limit)?;
        }
        let probe = Probe::connect(&socket("probe"))?;
        let agent = AgentLine::new(socket("agent"));
        Ok(Vm { qemu, _swtpm: swtpm, qmp, agent, probe, from, sockets })
    }

    fn arguments(&self, lab: &Lab, sockets: &Path) -> Outcome<Vec<String>> {
        let mut args: Vec<String> = Vec::new();
        let mut add = |words: &[&str]| args.extend(words.iter().map(|word| (*word).to_owned()));
        add(&["-nodefaults", "-no-user-config", "-display", "none", "-vga", "none"]);
        match lab.accel {
            Accel::Kvm => add(&["-accel", "kvm", "-cpu", "host"]),
            Accel::Tcg => {
                // la57 costs a level in every page walk. More translated code than
                // this makes the emulator slower, and after a reset most of all.
                add(&["-accel", "tcg,thread=multi,tb-size=80", "-cpu", "max,la57=off"]);
            }
        }
        // With two machines on two cores one each runs best; more stall under emulation.
        add(&["-smp", "1", "-m", "1536"]);
        if lab.is_secure {
            // Only SMM writes to the flash, or the system could write what it likes to the variables.
            add(&["-machine", "q35,smm=on"]);
            add(&["-global", "driver=cfi.pflash01,property=secure,value=on"]);
        } else {
            add(&["-machine", "q35,smm=off"]);
        }
        // A request is bound to this: the same machine at every power-on.
        add(&["-uuid", "7b1f3a52-6d0e-4c59-9a41-2f6a8d3c5e10"]);
        add(&["-rtc", "base=utc", "-device", "virtio-rng-pci"]);
        add(&self.start(lab).iter().map(String::as_str).collect::<Vec<_>>());
        let mut others = Vec::new();
        for (index, path) in self.others.iter().enumerate() {
            let node = format!("disk{}", index + 1);
            others.extend([
                "-blockdev".to_owned(),
                blockdev(&node, path, self.discards),
                "-device".to_owned(),
            ]);
            others.push(format!("virtio-blk-pci,drive={node},id={node}"));
        }
        let others: Vec<&str> = others.iter().map(String::as_str).collect();
        if self.others_first {
            add(&others);
        }
        add(&self.system_disk()?.iter().map(String::as_str).collect::<Vec<_>>());
        match self.bus {
            Bus::Virtio => add(&["-device", "virtio-blk-pci,drive=disk0,id=system,bootindex=1"]),
            Bus::Nvme => add(&["-device", "nvme,drive=disk0,id=system,serial=system,bootindex=1"]),
        }
        if !self.others_first {
            add(&others);
        }
        let serial = self.dir.join("serial.log");
        add(&["-chardev", &format!("file,id=console,append=on,path={}", escaped(&serial))]);
        add(&["-serial", "chardev:console"]);
        let mut chardev = |id: &str| {
            let path = escaped(&sockets.join(id));
            add(&["-chardev", &format!("socket,id={id},server=on,wait=off,path={path}")]);
        };
        ["probe", "agent", "qmp"].into_iter().for_each(&mut chardev);
        add(&["-serial", "chardev:probe", "-mon", "chardev=qmp,mode=control"]);
        add(&["-device", "virtio-serial-pci"]);
        add(&["-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"]);
        if self.has_tpm {
            let path = escaped(&sockets.join("tpm"));
            add(&["-chardev", &format!("socket,id=tpm,path={path}")]);
            add(&["-tpmdev", "emulator,id=tpm0,chardev=tpm", "-device", "tpm-crb,tpmdev=tpm0"]);
        }
        let emulated = if lab.accel == Accel::Tcg { UNDER_EMULATION } else { "" };
        let arguments = format!("{emulated} {}", self.kernel_arguments);
        let arguments = format!("io.systemd.stub.kernel-cmdline-extra={}", arguments.trim());
        for (index, text) in std::iter::once(&arguments).chain(&self.oem).enumerate() {
            // From a file: the strings hold commas and may be long.
            let path = sockets.join(format!("oem{index}"));
            std::fs::write(&path, text).doing("writing an SMBIOS string")?;
            add(&["-smbios", &format!("type=11,path={}", escaped(&path))]);
        }
        Ok(args)
    }

    /// What runs first.
    fn start(&self, lab: &Lab) -> Vec<String> {
        if let Some(direct) = &self.direct {
            let path = |path: &Path| path.display().to_string();
            let pairs = [
                ("-kernel", path(&direct.kernel)),
                ("-initrd", path(&direct.initrd)),
                ("-append", direct.command_line.clone()),
            ];
            let words = pairs.into_iter().flat_map(|(option, value)| [option.to_owned(), value]);
            return words.chain(["-no-reboot".to_owned()]).collect();
        }
        let flash = |unit: u8, rest: &str, file: &Path| {
            let file = escaped(file);
            ["-drive".to_owned(), format!("if=pflash,format=raw,unit={unit}{rest},file={file}")]
        };
        [flash(0, ",readonly=on", &lab.ovmf_code), flash(1, "", &self.vars)].concat()
    }

    /// The system disk; what is written to it is logged on its way when that is wanted.
    fn system_disk(&self) -> Outcome<Vec<String>> {
        let Some(log) = &self.record else {
            return Ok(vec!["-blockdev".to_owned(), blockdev("disk0", &self.disk, self.discards)]);
        };
        std::fs::File::create(log).doing("making a log of writes")?;
        // The count of entries is brought up to date with each: a machine may be killed.
        let logger = json!({ "driver": "blklogwrites", "node-name": "disk0", "discard": "unmap",
            "file": "disk0-file", "log-super-update-interval": 1,
            "log": { "driver": "file", "filename": log.display().to_string(),
                     "cache": { "no-flush": true } } });
        let nodes = [blockdev("disk0-file", &self.disk, self.discards), logger.to_string()];
        Ok(nodes.into_iter().flat_map(|node| ["-blockdev".to_owned(), node]).collect())
    }
}

/// In QEMU's option lists a comma is doubled.
fn escaped(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

fn blockdev(node: &str, path: &Path, discards: bool) -> String {
    // no-flush: what the guest flushed is in the host's page cache, which
    // outlives a killed QEMU; waiting for the host's disk would prove nothing.
    let discard = if discards { "unmap" } else { "ignore" };
    json!({ "driver": "qcow2", "node-name": node, "discard": discard,
            "cache": { "no-flush": true },
            "file": { "driver": "file", "filename": path.display().to_string(),
                      "cache": { "no-flush": true } } })
    .to_string()
}

/// The machine while it is on. Dropping it is pulling the plug.
#[derive(Debug)]
pub struct Vm {
    qemu: Background,
    _swtpm: Option<Background>,
    pub qmp: Qmp,
    pub agent: AgentLine,
    pub probe: Probe,
    /// Where on the console this power-on, or the last reset, begins.
    pub from: Mark,
    sockets: tempfile::TempDir,
}

impl Vm {
    /// Fails when the machine is gone, and says how it went.
    pub fn alive(&mut self) -> Outcome {
        match self.qemu.ended() {
            None => Ok(()),
            Some(how) => Err(Failure::new(how)),
        }
    }

    /// Pulls the plug.
    pub fn kill(mut self) {
        self.qemu.kill();
    }

    /// A guest's reboot from now on ends QEMU, everything written out.
    pub fn end_at_reboot(&mut self) -> Outcome {
        self.qmp.call("set-action", json!({ "reboot": "shutdown", "shutdown": "poweroff" }))?;
        Ok(())
    }

    pub fn wait_off(&mut self, limit: Duration) -> Outcome {
        self.qemu.wait(limit).doing("waiting for the machine to go off")
    }

    /// Stops the machine where it is, and shows its disk.
    pub fn freeze(&mut self) -> Outcome<Disk> {
        self.qmp.call("stop", json!({}))?;
        let socket = self.sockets.path().join("nbd");
        let address = json!({ "type": "unix", "data": { "path": socket.display().to_string() } });
        self.qmp.call("nbd-server-start", json!({ "addr": address }))?;
        self.qmp.call(
            "block-export-add",
            json!({ "type": "nbd", "id": "look", "node-name": "disk0", "name": "disk",
                    "writable": false }),
        )?;
        Ok(Disk::exported(Nbd::connect(&socket, "disk")?))
    }

    pub fn thaw(&mut self, disk: Disk) -> Outcome {
        disk.close()?;
        self.qmp.call("nbd-server-stop", json!({}))?;
        self.qmp.call("cont", json!({}))?;
        Ok(())
    }

    /// Waits for a line of the console that holds one of the texts, and returns the
    /// place after it. What nobody
    /// waits for ends the wait at once: a panic, a machine that is gone.
    pub fn wait_line(
        &mut self,
        serial: &mut Serial,
        from: Mark,
        texts: &[&str],
        limit: Duration,
    ) -> Outcome<Mark> {
        let until = Instant::now() + limit;
        let what = || format!("waiting for {} on the console", quoted(texts));
        loop {
            let gone = self.alive();
            serial.pump()?;
            if let Some(after) = serial.find(from, texts) {
                return Ok(after);
            }
            if serial.find(from, &["Kernel panic"]).is_some() {
                return Err(Failure::new(format!("{}: the kernel panicked", what())));
            }
            gone.doing(what())?;
            if Instant::now() > until {
                let limit_s = limit.as_secs();
                return Err(Failure::new(format!("{}: not within {limit_s} s", what())));
            }
            std::thread::sleep(Duration::from_millis(60));
        }
    }

    /// The guest has been reset: the agent is another one, the console goes on.
    pub fn wait_reset(&mut self, serial: &mut Serial, limit: Duration) -> Outcome {
        let until = Instant::now() + limit;
        while self.qmp.take_event("RESET", Duration::from_millis(200))?.is_none() {
            self.alive().doing("waiting for a reboot")?;
            if Instant::now() > until {
                let limit_s = limit.as_secs();
                return Err(Failure::new(format!("waiting for a reboot: none within {limit_s} s")));
            }
        }
        self.agent.hang_up();
        self.from = serial.mark()?;
        Ok(())
    }
}

fn quoted(texts: &[&str]) -> String {
    let quoted: Vec<String> = texts.iter().map(|text| format!("`{text}`")).collect();
    quoted.join(" or ")
}
