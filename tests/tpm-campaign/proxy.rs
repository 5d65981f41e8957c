//! What stands between restage and the TPM: it passes commands on, counts them, and at one of them
//! does what the case wants.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, mpsc::Sender};
use std::thread;

use crate::fault::{Fault, Kind, When};
use crate::swtpm::Place;
use crate::wire::{self, CREATE_PRIMARY, ENDORSEMENT};

/// What a boot is waited for with.
#[derive(Debug)]
pub enum Event {
    /// The power is to go now: the proxy waits with the command, or with the answer, in its hand.
    CutNow,
    /// The process has ended, and this is what it said.
    Ended(String),
}

/// A port of the system's own, where no TPM listens.
const NOBODY: u16 = 1;

/// After the header of a good answer to a command that one password authorises, and that returns
/// nothing: no parameters, no nonce, continueSession, no proof.
const DONE: [u8; 9] = [0, 0, 0, 0, 0, 0, 1, 0, 0];

/// Of one bench; it serves all its boots, one after the other.
pub struct Proxy {
    port: u16,
    plan: Arc<Mutex<Plan>>,
}

/// What is to happen in this boot, and what has.
#[derive(Debug, Default)]
pub struct Plan {
    fault: Option<Fault>,
    /// Commands that the TPM was given in this boot.
    pub given: Vec<u32>,
    pub fired: Option<Fired>,
    busy: u32,
    /// The proof of the clear is complete: only the reset count is asked for yet.
    proved: bool,
    /// Restage's directory on the ESP.
    journal: PathBuf,
}

/// Where the fault met restage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fired {
    pub command: u32,
    /// The journal was there.
    pub committed: bool,
    /// The TPM had proved before that it is cleared.
    pub proved: bool,
}

/// What becomes of one command.
enum Fate {
    Pass,
    Answer(Vec<u8>),
    Do(Kind),
}

impl Proxy {
    /// Listens from here on, for as long as the program runs. `journal` is restage's directory.
    pub fn start(place: &Place, journal: PathBuf, cuts: Sender<Event>) -> Self {
        let (data, control) = listen();
        let port = data.local_addr().expect("its number").port();
        let plan = Arc::new(Mutex::new(Plan { journal, ..Plan::default() }));
        let (shared, place) = (Arc::clone(&plan), place.clone());
        let control_path = place.control.clone();
        thread::spawn(move || {
            for client in data.incoming().map_while(Result::ok) {
                // Its end, good or bad, is the end of the connection, which is all that it means.
                let _ = converse(client, &place, &shared, &cuts);
            }
        });
        thread::spawn(move || {
            for client in control.incoming().map_while(Result::ok) {
                // A control channel that cannot be forwarded shows as one that is closed.
                let _ = forward(&client, &control_path);
            }
        });
        Self { port, plan }
    }

    /// The way to the TPM in the boot that is planned; one to nowhere where there is none.
    pub fn tcti(&self) -> String {
        let absent = matches!(lock(&self.plan).fault, Some(Fault { kind: Kind::Absent, .. }));
        let port = if absent { NOBODY } else { self.port };
        format!("swtpm:host=127.0.0.1,port={port}")
    }

    /// A boot begins.
    pub fn plan(&self, fault: Option<Fault>) {
        let mut plan = lock(&self.plan);
        let journal = plan.journal.clone();
        let absent = matches!(fault, Some(Fault { kind: Kind::Absent, .. }));
        let committed = is_committed(&journal);
        let fired = absent.then_some(Fired { command: 0, committed, proved: false });
        *plan = Plan { fault, fired, journal, ..Plan::default() };
    }

    /// What has happened in it.
    pub fn seen(&self) -> (Vec<u32>, Option<Fired>) {
        let plan = lock(&self.plan);
        (plan.given.clone(), plan.fired)
    }
}

fn lock(plan: &Mutex<Plan>) -> std::sync::MutexGuard<'_, Plan> {
    plan.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Two ports in a row: the library takes the control channel to be on the next one.
fn listen() -> (TcpListener, TcpListener) {
    loop {
        let data = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = data.local_addr().expect("its number").port();
        let next = port.checked_add(1).map(|next| TcpListener::bind((Ipv4Addr::LOCALHOST, next)));
        if let Some(Ok(control)) = next {
            return (data, control);
        }
    }
}

impl Plan {
    fn fate(&mut self, command: &[u8]) -> Fate {
        let code = wire::code(command);
        if code == CREATE_PRIMARY && wire::u32_at(command, wire::HEADER_BYTES) == ENDORSEMENT {
            self.proved = true;
        }
        let Some(fault) = self.fault.filter(|fault| fault.at == self.given.len()) else {
            self.given.push(code);
            return Fate::Pass;
        };
        self.fired.get_or_insert_with(|| Fired {
            command: code,
            committed: is_committed(&self.journal),
            proved: self.proved,
        });
        if let Kind::Busy { code: busy, times } = fault.kind {
            if times.is_none_or(|times| self.busy < times) {
                self.busy += 1;
                return Fate::Answer(wire::message(wire::NO_SESSIONS, busy, &[]));
            }
            self.given.push(code);
            return Fate::Pass;
        }
        if fault.kind.is_delivered() {
            self.given.push(code);
        } else if fault.kind == Kind::Claim {
            self.fault = None;
            return Fate::Answer(wire::message(wire::SESSIONS, 0, &DONE));
        } else if let Kind::Unproved(answer) = fault.kind {
            self.fault = Some(Fault { kind: Kind::Gone(When::Before), ..fault });
            return Fate::Answer(wire::message(wire::NO_SESSIONS, answer, &[]));
        } else if let Kind::Code(answer, _) = fault.kind {
            if !fault.kind.is_for_ever() {
                self.fault = None;
            }
            return Fate::Answer(wire::message(wire::NO_SESSIONS, answer, &[]));
        }
        Fate::Do(fault.kind)
    }
}

fn is_committed(journal: &std::path::Path) -> bool {
    let Ok(entries) = std::fs::read_dir(journal) else { return false };
    entries.flatten().any(|entry| entry.file_name().to_string_lossy().ends_with(".JNL"))
}

/// One connection of restage's, until either side ends it.
fn converse(
    mut client: TcpStream,
    place: &Place,
    plan: &Mutex<Plan>,
    cuts: &Sender<Event>,
) -> io::Result<()> {
    client.set_nodelay(true)?;
    let mut chip = UnixStream::connect(&place.data)?;
    let mut exchange = |command: &[u8]| -> io::Result<Vec<u8>> {
        chip.write_all(command)?;
        wire::read(&mut chip)?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    };
    while let Some(command) = wire::read(&mut client)? {
        let fate = lock(plan).fate(&command);
        let kind = match fate {
            Fate::Pass => {
                client.write_all(&exchange(&command)?)?;
                continue;
            }
            Fate::Answer(answer) => {
                client.write_all(&answer)?;
                continue;
            }
            Fate::Do(kind) => kind,
        };
        let answer = if kind.is_delivered() { Some(exchange(&command)?) } else { None };
        match kind {
            Kind::Cut(_) => {
                let _ = cuts.send(Event::CutNow);
                return wait_for_the_end(&mut client);
            }
            Kind::Silent(_) => return wait_for_the_end(&mut client),
            Kind::Gone(_) => return client.shutdown(Shutdown::Both),
            Kind::Code(code, When::After) => {
                client.write_all(&wire::message(wire::NO_SESSIONS, code, &[]))?;
            }
            Kind::Junk(junk) => client.write_all(&junk.spoil(&answer.unwrap_or_default()))?,
            // Answered above.
            Kind::Busy { .. }
            | Kind::Code(_, When::Before)
            | Kind::Unproved(_)
            | Kind::Claim
            | Kind::Absent => {}
        }
    }
    Ok(())
}

fn wait_for_the_end(client: &mut TcpStream) -> io::Result<()> {
    let mut rest = [0; 64];
    while client.read(&mut rest)? > 0 {}
    Ok(())
}

/// Short questions and answers, a connection each.
fn forward(client: &TcpStream, control: &std::path::Path) -> io::Result<()> {
    let chip = UnixStream::connect(control)?;
    let (mut from, mut to) = (client.try_clone()?, chip.try_clone()?);
    let (mut back_from, mut back_to) = (chip.try_clone()?, client.try_clone()?);
    let there = thread::spawn(move || {
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    });
    thread::spawn(move || {
        let _ = io::copy(&mut back_from, &mut back_to);
        let _ = back_to.shutdown(Shutdown::Both);
        let _ = there.join();
    });
    Ok(())
}
