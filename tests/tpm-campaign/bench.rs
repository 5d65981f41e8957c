//! A machine in a directory: disk, ESP, TPM, the proxy before it, and the process that is a boot.

use std::collections::HashMap;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use restage::plan::reset::Ask;
use restage::profile::Profile;
use restage::request::{Staged, stage};
use tempfile::TempDir;

use crate::agent::{self, Boot, Ended};
use crate::chip::{Chip, Seen};
use crate::disk;
use crate::fault::Fault;
use crate::proxy::{Event, Fired, Proxy};
use crate::state::State;
use crate::swtpm::{Place, Swtpm};

const ID: &str = "7a11c0de7a11c0de7a11c0de7a11c0de";
/// No boot takes longer, whatever is wrong with the TPM.
const LIMIT: Duration = Duration::from_secs(120);

/// The files below a directory, by their paths.
type Files = Vec<(PathBuf, Vec<u8>)>;

/// What all benches begin with.
pub struct Masters {
    pub image: Vec<u8>,
    /// An ESP with a request, and one whose request allows a failure of the TPM.
    staged: [Files; 2],
    states: Mutex<HashMap<State, (Files, Seen)>>,
    /// The shipped program, for boots that are only cut.
    binary: Option<PathBuf>,
}

pub struct Bench {
    directory: TempDir,
    place: Place,
    proxy: Proxy,
    events: Receiver<Event>,
    sender: Sender<Event>,
    masters: Arc<Masters>,
}

/// What became of a boot.
pub struct Booted {
    /// None when the power was cut.
    pub ended: Option<Ended>,
    /// Its last line, or all that the program said.
    pub text: String,
    pub output: String,
    /// The commands that the TPM was given.
    pub given: Vec<u32>,
    pub fired: Option<Fired>,
    pub took: Duration,
    /// The TPM; none when the power was cut.
    pub tpm: Option<Swtpm>,
}

impl Masters {
    pub fn new(binary: Option<PathBuf>) -> Arc<Self> {
        let empty = Self {
            image: disk::image(),
            staged: [Files::new(), Files::new()],
            states: Mutex::default(),
            binary,
        };
        let empty = Arc::new(empty);
        let bench = Bench::new(&empty);
        let staged = [false, true].map(|allow| bench.stage(allow));
        drop(bench);
        let mut made = Arc::into_inner(empty).expect("the only one");
        made.staged = staged;
        Arc::new(made)
    }
}

impl Bench {
    pub fn new(masters: &Arc<Masters>) -> Self {
        let directory = directory();
        let place = Place::below(directory.path());
        let (sender, events) = mpsc::channel();
        let journal = directory.path().join("esp/restage");
        let proxy = Proxy::start(&place, journal, sender.clone());
        Self { directory, place, proxy, events, sender, masters: Arc::clone(masters) }
    }

    fn disk(&self) -> PathBuf {
        self.directory.path().join("disk.img")
    }

    fn esp(&self) -> PathBuf {
        self.directory.path().join("esp")
    }

    pub fn image(&self) -> &[u8] {
        &self.masters.image
    }

    pub fn disk_bytes(&self) -> Vec<u8> {
        fs::read(self.disk()).expect("the disk")
    }

    /// What lies in restage's directory, by the ends of the names.
    pub fn files(&self) -> HashMap<String, Vec<u8>> {
        let files = load(&self.esp().join("restage"));
        let end = |path: &Path| path.extension().unwrap_or_default().to_string_lossy().into_owned();
        files.into_iter().map(|(path, bytes)| (end(&path), bytes)).collect()
    }

    /// What the running OS does: a TPM in good order, and a request for the next boot.
    fn stage(&self, allow_tpm_reset_failure: bool) -> Files {
        fs::write(self.disk(), &self.masters.image).expect("the disk");
        store(&self.esp(), &Files::new());
        disk::make_esp(&self.esp());
        store(&self.place.state, &Files::new());
        let tpm = Swtpm::power_on(&self.place);
        self.proxy.plan(None);
        let profile = Profile::incusos().expect("the profile");
        let mut machine = agent::machine(&self.arguments(LIMIT), &profile);
        let json = serde_json::value::RawValue::from_string("{\"a\":1}".to_owned());
        let ask = Ask {
            seeds: [("incus".to_owned(), json.expect("JSON"))].into(),
            allow_tpm_reset_failure,
            ..Ask::default()
        };
        let prepared = stage::prepare(&mut machine, &profile, ask).expect("facts");
        let prepared = prepared.map_err(|refused| refused.reason).expect("a plan");
        let by = Staged {
            command: "factory-reset".into(),
            user: "root".into(),
            restage: "0".into(),
            at: machine.host.now,
        };
        stage::stage(&mut machine, &profile, &prepared, by, ID).expect("it is staged");
        drop(machine);
        tpm.cut();
        load(&self.esp())
    }

    /// The machine before the reset. Returns how its TPM is.
    pub fn lay_out(&self, state: State, allow: bool) -> Seen {
        fs::write(self.disk(), &self.masters.image).expect("the disk");
        store(&self.esp(), &self.masters.staged[usize::from(allow)]);
        let known = self.states().get(&state).cloned();
        let (files, seen) = known.unwrap_or_else(|| {
            let made = self.make(state);
            self.states().entry(state).or_insert(made).clone()
        });
        store(&self.place.state, &files);
        seen
    }

    fn states(&self) -> std::sync::MutexGuard<'_, HashMap<State, (Files, Seen)>> {
        self.masters.states.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn make(&self, state: State) -> (Files, Seen) {
        store(&self.place.state, &Files::new());
        let tpm = self.power_on();
        let mut chip = self.chip();
        state.make(&mut chip);
        let seen = chip.see();
        chip.shut_down();
        tpm.cut();
        (load(&self.place.state), seen)
    }

    pub fn power_on(&self) -> Swtpm {
        Swtpm::power_on(&self.place)
    }

    /// The harness's own way to the TPM, which takes one client at a time.
    pub fn chip(&self) -> Chip {
        Chip(self.place.connect())
    }

    fn arguments(&self, deadline: Duration) -> Boot {
        Boot {
            disk: self.disk(),
            esp: self.esp(),
            tcti: self.proxy.tcti(),
            deadline_ms: u64::try_from(deadline.as_millis()).expect("a short time"),
        }
    }

    /// One boot, from power on to its end or to the cut.
    pub fn boot(
        &self,
        tpm: Swtpm,
        fault: Option<Fault>,
        deadline: Duration,
        shipped: bool,
    ) -> Result<Booted, String> {
        self.proxy.plan(fault);
        let begin = Instant::now();
        let binary = self.masters.binary.as_deref().filter(|_| shipped);
        let mut process = self.start(binary, deadline);
        let first = self.events.recv_timeout(LIMIT);
        let cut = matches!(first, Ok(Event::CutNow));
        let hangs = matches!(first, Err(RecvTimeoutError::Timeout));
        if !matches!(first, Ok(Event::Ended(_))) {
            // Nothing of it goes on after the cut; the TPM still has its answer to give.
            process.kill().expect("it runs");
        }
        let status = process.wait().expect("its status");
        let output = match first {
            Ok(Event::Ended(output)) => output,
            Ok(Event::CutNow) | Err(_) => match self.events.recv_timeout(LIMIT) {
                Ok(Event::Ended(output)) => output,
                Ok(Event::CutNow) | Err(_) => return Err("two cuts in a boot".to_owned()),
            },
        };
        if hangs {
            return Err(format!("it hangs: {output}"));
        }
        let (given, fired) = self.proxy.seen();
        let mut booted = Booted {
            ended: None,
            text: String::new(),
            output,
            given,
            fired,
            took: begin.elapsed(),
            tpm: None,
        };
        if cut {
            tpm.cut();
            return Ok(booted);
        }
        let (ended, text) = match binary {
            None => agent::parse(&booted.output).map(|(ended, text)| (ended, text.to_owned())),
            Some(_) => by_status(status.code()).map(|ended| (ended, booted.output.clone())),
        }
        .ok_or_else(|| format!("it crashes: {status}: {}", booted.output))?;
        booted.ended = Some(ended);
        booted.text = text;
        booted.tpm = Some(tpm);
        Ok(booted)
    }

    /// The process, and a thread that waits for all that it says.
    fn start(&self, binary: Option<&Path>, deadline: Duration) -> Child {
        let arguments = self.arguments(deadline);
        let mut command = if let Some(binary) = binary {
            let mut command = Command::new(binary);
            command.args(["initrd", "reset"]);
            command
        } else {
            let mut command = Command::new(std::env::current_exe().expect("this program"));
            command.args(["boot", "--deadline-ms", &arguments.deadline_ms.to_string()]);
            command
        };
        let (mut reader, writer) = std::io::pipe().expect("a pipe");
        command.arg("--disk").arg(&arguments.disk).arg("--esp").arg(&arguments.esp);
        command.arg("--tcti").arg(&arguments.tcti).env("TSS2_LOG", "all+NONE");
        let twin = writer.try_clone().expect("a second end");
        let process = command
            .stdin(Stdio::null())
            .stdout(writer)
            .stderr(twin)
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        // It holds this side's ends of the pipe, which then would never end.
        drop(command);
        let sender = self.sender.clone();
        thread::spawn(move || {
            let mut output = Vec::new();
            // What cannot be read is missed by whoever looks at the output.
            let _ = reader.read_to_end(&mut output);
            let _ = sender.send(Event::Ended(String::from_utf8_lossy(&output).into_owned()));
        });
        process
    }
}

/// In memory where there is such a place: killing a process loses nothing of what it has written,
/// wherever that is, so a medium would only make it slow.
fn directory() -> TempDir {
    let made = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
    made.expect("a directory")
}

/// What the shipped program says by its exit status.
fn by_status(status: Option<i32>) -> Option<Ended> {
    match status? {
        0 | 5 => Some(Ended::Done),
        1 => Some(Ended::Failed),
        3 => Some(Ended::Refused),
        4 => Some(Ended::Retry),
        _ => None,
    }
}

fn load(directory: &Path) -> Files {
    let mut files = Files::new();
    let mut left = vec![PathBuf::new()];
    while let Some(below) = left.pop() {
        let Ok(entries) = fs::read_dir(directory.join(&below)) else { continue };
        for entry in entries.flatten() {
            let path = below.join(entry.file_name());
            if entry.path().is_dir() {
                left.push(path);
            } else {
                files.push((path, fs::read(entry.path()).expect("a file")));
            }
        }
    }
    files
}

/// These files, and nothing else.
fn store(directory: &Path, files: &Files) {
    if directory.exists() {
        fs::remove_dir_all(directory).expect("it goes");
    }
    fs::create_dir_all(directory).expect("a directory");
    for (path, bytes) in files {
        let path = directory.join(path);
        fs::create_dir_all(path.parent().expect("below a directory")).expect("a directory");
        fs::write(path, bytes).expect("a file");
    }
}
