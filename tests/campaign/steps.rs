//! Which step of an operation a run is in, as its log says: `step 3/7 …`.

use std::cell::Cell;

use log::{Level, LevelFilter, Log, Metadata, Record};

/// Before the first step, or where there are none.
pub const NONE: u8 = 0;

thread_local! {
    static STEP: Cell<u8> = const { Cell::new(NONE) };
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
        // Only lines that begin so are formatted at all.
        if record.args().as_str().is_none() {
            let line = record.args().to_string();
            let number = line.strip_prefix("step ").and_then(|rest| rest.split('/').next());
            if let Some(number) = number.and_then(|number| number.parse().ok()) {
                STEP.set(number);
            }
        }
    }

    fn flush(&self) {}
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
