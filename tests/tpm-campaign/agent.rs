//! One boot, as a process of its own that can be killed: what `restage initrd reset` does offline, with
//! a deadline that a test can wait for, and with what the boot does next in its last line.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use restage::apply::reset::{self, Applied};
use restage::error::Next;
use restage::plan::facts::HostFacts;
use restage::platform::console::{self, Sink};
use restage::platform::disk::OpenDisk;
use restage::platform::esp::EspDirectory;
use restage::platform::tpm::{EsysTpm, TpmError};
use restage::platform::{Machine, TpmDoor, host};
use restage::profile::Profile;

/// What one boot is told.
#[derive(Args, Debug)]
pub struct Boot {
    #[arg(long)]
    pub disk: PathBuf,
    #[arg(long)]
    pub esp: PathBuf,
    #[arg(long)]
    pub tcti: String,
    /// How long the TPM may take for one answer.
    #[arg(long)]
    pub deadline_ms: u64,
}

/// What a boot came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Nothing,
    Done,
    Refused,
    Retry,
    Hold,
    /// An error before the commit, which no fault of a TPM should be.
    Failed,
}

const NAMES: [(Ended, &str); 6] = [
    (Ended::Nothing, "nothing"),
    (Ended::Done, "done"),
    (Ended::Refused, "refused"),
    (Ended::Retry, "retry"),
    (Ended::Hold, "hold"),
    (Ended::Failed, "failed"),
];
/// How the last line begins.
const LAST: &str = "boot-ended: ";

/// Carries it out.
pub fn boot(arguments: &Boot) {
    console::start(Sink::Terminal);
    let profile = Profile::incusos().expect("the profile");
    let mut machine = machine(arguments, &profile);
    let (ended, text) = match reset::apply(&mut machine, &profile) {
        Ok(applied) => describe(&applied),
        Err(error) => (Ended::Failed, error.chain()),
    };
    let (_, name) = NAMES.iter().find(|(known, _)| *known == ended).expect("its name");
    println!("{LAST}{name}: {text}");
}

fn describe(applied: &Applied) -> (Ended, String) {
    let retry = |text: String| (Ended::Retry, text);
    match applied {
        Applied::Nothing => (Ended::Nothing, String::new()),
        Applied::Done { .. } => (Ended::Done, String::new()),
        Applied::Refused(reasons) => (Ended::Refused, reasons.join("; ")),
        Applied::RebootFirst => retry("the firmware is asked".to_owned()),
        Applied::Unfinished(error) => match error.next() {
            Next::ContinueBoot | Next::RetryNextBoot => retry(error.chain()),
            Next::HoldForOperator => (Ended::Hold, error.chain()),
        },
    }
}

/// What a boot said in its last line.
pub fn parse(output: &str) -> Option<(Ended, &str)> {
    let line = output.lines().rev().find_map(|line| line.strip_prefix(LAST))?;
    let (name, text) = line.split_once(": ")?;
    NAMES.iter().find(|(_, known)| *known == name).map(|(ended, _)| (*ended, text))
}

/// The machine in files, with the TPM that answers at that address.
pub fn machine(arguments: &Boot, profile: &Profile) -> Machine {
    let deadline = Duration::from_millis(arguments.deadline_ms);
    Machine {
        disk: Box::new(OpenDisk::open(&arguments.disk).expect("the disk")),
        esp: Box::new(EspDirectory::open(&arguments.esp, &profile.esp.directory).expect("the ESP")),
        // As the commands do it.
        tpm: match EsysTpm::with_deadline(&arguments.tcti, deadline) {
            Ok(tpm) => TpmDoor::Open(Box::new(tpm)),
            Err(TpmError::Failed { no_device: true, .. }) => TpmDoor::None,
            Err(error) => TpmDoor::Broken(error.to_string()),
        },
        ppi: None,
        host: HostFacts { now: host::now(), ..HostFacts::default() },
        other_tpm_volumes: Vec::new(),
        loaded_credentials: Vec::new(),
    }
}
