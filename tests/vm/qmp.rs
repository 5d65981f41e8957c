//! QMP: how the harness handles the machine itself (stop, reset, keys, I/O
//! limits, a look at a disk in use).

use crate::failure::{Failure, Outcome};
use crate::wire::Wire;
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};

/// QEMU answers from its main loop: slow only when the host is.
const ANSWER: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub struct Qmp {
    wire: Wire,
    events: Vec<Value>,
}

impl Qmp {
    pub fn connect(path: &Path) -> Outcome<Self> {
        let mut qmp = Self { wire: Wire::connect(path, ANSWER)?, events: Vec::new() };
        qmp.call("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    pub fn call(&mut self, command: &str, arguments: Value) -> Outcome<Value> {
        let message = json!({ "execute": command, "arguments": arguments });
        self.wire.send(format!("{message}\n").as_bytes())?;
        let until = Instant::now() + ANSWER;
        while let Some(mut answer) = self.wire.value(until)? {
            if answer.get("event").is_some() {
                self.events.push(answer);
            } else if let Some(error) = answer.get("error") {
                return Err(Failure::new(format!("QMP {command}: {}", error["desc"])));
            } else if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
        }
        Err(Failure::new(format!("QMP {command}: no answer within {} s", ANSWER.as_secs())))
    }

    /// Waits a little for events, and takes the first one of that name that has
    /// come since the last look at it.
    pub fn take_event(&mut self, name: &str, wait: Duration) -> Outcome<Option<Value>> {
        let until = Instant::now() + wait;
        loop {
            if let Some(at) = self.events.iter().position(|event| event["event"] == name) {
                return Ok(Some(self.events.remove(at)));
            }
            match self.wire.value(until)? {
                Some(event) if event.get("event").is_some() => self.events.push(event),
                Some(_) => {}
                None => return Ok(None),
            }
        }
    }

    /// Forgets the events so far: what is waited for next must be new.
    pub fn forget_events(&mut self) -> Outcome {
        while let Some(event) = self.wire.value(Instant::now() + Duration::from_millis(5))? {
            drop(event);
        }
        self.events.clear();
        Ok(())
    }

    /// Limits what is written to a disk, in bytes a second; 0 lifts the limit.
    pub fn limit_writes(&mut self, device: &str, bytes_per_s: u64) -> Outcome {
        self.call(
            "block_set_io_throttle",
            json!({ "id": device, "bps": 0, "bps_rd": 0, "bps_wr": bytes_per_s,
                    "iops": 0, "iops_rd": 0, "iops_wr": 0 }),
        )?;
        Ok(())
    }
}
