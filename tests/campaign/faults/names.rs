//! Whether what is said names the call that failed, its object and its cause.

use std::collections::HashMap;

use crate::model::Device;
use crate::model::call::Met;

/// What the system says of an error.
pub fn cause(number: i32) -> String {
    std::io::Error::from_raw_os_error(number).to_string()
}

/// Whether this line names the call.
pub fn names(line: &str, met: &Met) -> bool {
    match met.device {
        // TPM commands have names of their own.
        Device::Tpm => line.contains(met.verb),
        Device::Slots => line.contains(met.verb) && line.contains(&met.object),
        Device::Disk | Device::Esp | Device::State | Device::Firmware => {
            line.contains(&format!("cannot {met}"))
        }
    }
}

/// Whether one of the lines names the call, and then the cause.
pub fn are_named(lines: &[String], met: &Met, number: i32) -> bool {
    lines.iter().any(|line| names(line, met) && line.contains(&cause(number)))
}

/// Errors that were seen, and what they were said of: the same text must never mean two things.
#[derive(Default)]
pub struct Texts(HashMap<String, (String, i32)>);

impl Texts {
    /// Adds one. Says what else has the same text.
    pub fn add(&mut self, why: &str, met: &Met, number: i32) -> Result<(), String> {
        let means = (met.to_string(), number);
        let before = self.0.entry(why.to_owned()).or_insert_with(|| means.clone());
        if *before == means {
            return Ok(());
        }
        Err(format!("`{why}` is said of {means:?} and of {before:?}"))
    }
}
