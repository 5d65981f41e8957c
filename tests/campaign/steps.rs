//! Which step of an operation a run is in, as its log says: `step 3/7 wipe swap: …`.

use std::cell::{Cell, RefCell};
use std::sync::{Mutex, PoisonError};

use log::{Level, LevelFilter, Log, Metadata, Record};

/// Before the first step, or where there are none.
pub const NONE: u8 = 0;

/// The names of all steps that were seen; a step's number is its place here, from 1.
static NAMES: Mutex<Vec<String>> = Mutex::new(Vec::new());

thread_local! {
    static STEP: Cell<u8> = const { Cell::new(NONE) };
    static WARNED: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

struct Listener;

impl Log for Listener {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= Level::Info
    }

    fn log(&self, record: &Record<'_>) {
        if std::env::var_os("RESTAGE_CAMPAIGN_SAY").is_some() {
            eprintln!("    {}", record.args());
        }
        if record.level() <= Level::Warn {
            WARNED.with_borrow_mut(|warned| {
                if let Some(warned) = warned {
                    warned.push(record.args().to_string());
                }
            });
        }
        // Only lines that begin so are formatted at all.
        if record.args().as_str().is_none() {
            let line = record.args().to_string();
            if let Some(name) = name_in(&line) {
                STEP.set(number_of(name));
            }
        }
    }

    fn flush(&self) {}
}

/// The name in a line of the log that begins a step.
fn name_in(line: &str) -> Option<&str> {
    let (place, rest) = line.strip_prefix("step ")?.split_once(' ')?;
    place.split_once('/')?.0.parse::<u8>().ok()?;
    Some(rest.split_once(':').map_or(rest, |(name, _)| name))
}

fn number_of(name: &str) -> u8 {
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    let place = names.iter().position(|known| known == name).unwrap_or_else(|| {
        names.push(name.to_owned());
        names.len() - 1
    });
    u8::try_from(place + 1).expect("there are few steps")
}

/// What a step is called.
pub fn name(step: u8) -> String {
    let names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    let place = usize::from(step).checked_sub(1);
    place.and_then(|place| names.get(place).cloned()).unwrap_or_else(|| "outside of steps".into())
}

/// Begins to listen.
pub fn listen() {
    if log::set_logger(&Listener).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}

/// A run begins.
pub fn begin() {
    STEP.set(NONE);
}

/// The step that this thread's run is in.
pub fn now() -> u8 {
    STEP.get()
}

/// Warnings and errors that this thread logs while `run` runs.
pub fn warned<T>(run: impl FnOnce() -> T) -> (T, Vec<String>) {
    WARNED.set(Some(Vec::new()));
    let result = run();
    (result, WARNED.take().unwrap_or_default())
}
