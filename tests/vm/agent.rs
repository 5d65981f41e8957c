//! The QEMU guest agent: how the harness runs commands in the booted system.

use crate::failure::{Doing, Failure, Outcome};
use crate::wire::{Wire, from_base64};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What a command in the guest came to.
#[derive(Debug, Clone)]
pub struct Ran {
    pub code: i64,
    pub out: String,
    pub err: String,
}

impl Ran {
    /// For messages: the exit status and the last thing said.
    pub fn summary(&self) -> String {
        let words = if self.err.trim().is_empty() { &self.out } else { &self.err };
        format!("exit {}: {}", self.code, words.trim().lines().last().unwrap_or_default())
    }
}

#[derive(Debug)]
pub struct Agent {
    wire: Wire,
}

impl Agent {
    /// One try: connects, and makes sure that the agent answers *this*
    /// question and not one asked before a reboot.
    pub fn reach(socket: &Path, limit: Duration) -> Outcome<Self> {
        let mut wire = Wire::connect(socket, limit)?;
        let id = u64::from(std::process::id()) << 20 | fresh();
        // 0xFF first: it flushes what a former client left half said.
        let mut hello = vec![0xFF];
        hello.extend(
            format!(
                "{}\n",
                json!({ "execute": "guest-sync-delimited",
            "arguments": { "id": id } })
            )
            .into_bytes(),
        );
        wire.send(&hello)?;
        let until = Instant::now() + limit;
        while let Some(answer) = wire.value(until)? {
            if answer["return"] == id {
                return Ok(Self { wire });
            }
        }
        Err(Failure::new(format!("the guest agent is silent after {} s", limit.as_secs())))
    }

    /// Runs a shell script to its end.
    pub fn sh(&mut self, script: &str, limit: Duration) -> Outcome<Ran> {
        let what = || format!("running in the guest: {}", first_line(script));
        let until = Instant::now() + limit;
        let pid = self.spawn(script, true, until).doing(what())?;
        loop {
            let state =
                self.ask("guest-exec-status", &json!({ "pid": pid }), until).doing(what())?;
            if state["exited"] == true {
                return Ok(Ran {
                    // A signal has no exit code; -1 then compares to nothing.
                    code: state["exitcode"].as_i64().unwrap_or(-1),
                    out: text(&state["out-data"])?,
                    err: text(&state["err-data"])?,
                });
            }
            std::thread::sleep(Duration::from_millis(150));
        }
    }

    /// Starts a script that takes the agent down with it (a reboot).
    pub fn start(&mut self, script: &str, limit: Duration) -> Outcome {
        self.spawn(script, false, Instant::now() + limit)?;
        Ok(())
    }

    fn spawn(&mut self, script: &str, capture: bool, until: Instant) -> Outcome<Value> {
        let arguments = json!({ "path": "/bin/sh", "arg": ["-c", script],
            "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8"],
            "capture-output": capture });
        Ok(self.ask("guest-exec", &arguments, until)?["pid"].take())
    }

    fn ask(&mut self, command: &str, arguments: &Value, until: Instant) -> Outcome<Value> {
        let message = json!({ "execute": command, "arguments": arguments });
        self.wire.send(format!("{message}\n").as_bytes())?;
        while let Some(mut answer) = self.wire.value(until)? {
            if let Some(error) = answer.get("error") {
                return Err(Failure::new(error["desc"].as_str().unwrap_or("error").to_owned()));
            }
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
        }
        Err(Failure::new(format!("{command} was not answered in time")))
    }
}

/// The agent of the machine, connected to again whenever it went away.
#[derive(Debug)]
pub struct Line {
    socket: PathBuf,
    agent: Option<Agent>,
}

impl Line {
    pub fn new(socket: PathBuf) -> Self {
        Self { socket, agent: None }
    }

    pub fn agent(&mut self, limit: Duration) -> Outcome<&mut Agent> {
        if self.agent.is_none() {
            self.agent = Some(Agent::reach(&self.socket, limit)?);
        }
        self.agent.as_mut().doing("the guest agent")
    }

    /// The guest has rebooted, or did not answer: the next use connects anew.
    pub fn hang_up(&mut self) {
        self.agent = None;
    }
}

/// Numbers that no other connection of this run has used.
fn fresh() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

fn text(value: &Value) -> Outcome<String> {
    let bytes = from_base64(value.as_str().unwrap_or_default())?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn first_line(script: &str) -> &str {
    script.trim().lines().next().unwrap_or_default()
}
