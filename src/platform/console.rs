//! Where log lines go: the journal, with their priority and the request id; the kernel log when
//! there is no journal; the console in the initrd; and a copy in memory for the operation's log file.
//! Side: both.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::sync::Mutex;
use std::time::Instant;

use log::{Level, LevelFilter, Log, Metadata, Record};

/// The copy in memory; older lines go first.
const MAX_RECORDED_BYTES: usize = 128 * 1024;

/// Where lines go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sink {
    /// A person reads standard error, or the journal does where a service is what runs.
    Terminal,
    /// The journal reads standard error, a person reads the console.
    Boot,
}

struct Logger {
    sink: Sink,
    journal: bool,
    begin: Instant,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    id: Option<String>,
    recorded: String,
}

static LOGGER: std::sync::OnceLock<Logger> = std::sync::OnceLock::new();

/// Whether standard error goes to the journal: systemd says which file that is, and what a service
/// starts may have another one (`systemd.exec(5)`, `$JOURNAL_STREAM`).
#[must_use]
pub fn is_journal() -> bool {
    let Ok(found) = rustix::fs::fstat(std::io::stderr()) else { return false };
    let said = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    said == format!("{}:{}", found.st_dev, found.st_ino)
}

/// What a program says at its end when it has failed: an error, where the journal reads it.
pub fn last_words(program: &str, error: &str) {
    let begin = if is_journal() { "<3>".to_owned() } else { format!("{program}: ") };
    eprintln!("{begin}{}", clean(error));
}

/// Chooses the sink, once.
pub fn start(sink: Sink) {
    let journal = is_journal();
    let state = Mutex::new(State::default());
    let logger = LOGGER.get_or_init(|| Logger { sink, journal, begin: Instant::now(), state });
    if log::set_logger(logger).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}

/// All further lines carry this request id.
pub fn set_id(id: &str) {
    if let Some(mut state) = LOGGER.get().and_then(|logger| logger.state.lock().ok()) {
        state.id = Some(id.to_owned());
    }
}

/// The lines so far.
#[must_use]
pub fn recorded() -> String {
    let state = LOGGER.get().and_then(|logger| logger.state.lock().ok());
    state.map(|state| state.recorded.clone()).unwrap_or_default()
}

/// Tells systemd in one line what is going on (`systemctl status`).
pub fn status(text: &str) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let message = format!("STATUS={text}");
    // Nobody depends on this line.
    let _ = UnixDatagram::unbound().and_then(|s| s.send_to(message.as_bytes(), socket));
}

/// A line as it may reach a terminal or a log: what a file says of itself must not move the cursor,
/// nor begin a line of its own.
#[must_use]
pub fn clean(line: &str) -> Cow<'_, str> {
    if !line.chars().any(char::is_control) {
        return Cow::Borrowed(line);
    }
    let escaped = |c: char| if c.is_control() { c.escape_debug().to_string() } else { c.into() };
    Cow::Owned(line.chars().map(escaped).collect())
}

fn priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // The TPM library logs each error that it also returns.
        metadata.level() <= Level::Info && !metadata.target().starts_with("tss_esapi")
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let text = record.args().to_string();
        let text = clean(&text);
        let level = priority(record.level());
        let Ok(mut state) = self.state.lock() else { return };
        let id = state.id.as_deref().map(|id| format!(" [{id}]")).unwrap_or_default();
        let seconds = self.begin.elapsed().as_secs_f64();
        // Writing to a String cannot fail.
        let _ = writeln!(state.recorded, "<{level}> {seconds:8.3}{id} {text}");
        let excess = state.recorded.len().saturating_sub(MAX_RECORDED_BYTES);
        if excess > 0 {
            let cut = state.recorded.get(excess..).and_then(|rest| rest.find('\n'));
            state.recorded.drain(..excess + cut.map_or(0, |at| at + 1));
        }
        // A log line that cannot be written must not stop a reset: errors are passed over below.
        match self.sink {
            Sink::Terminal if self.journal => {
                let _ = writeln!(std::io::stderr(), "<{level}>{text}{id}");
            }
            Sink::Terminal => {
                let _ = writeln!(std::io::stderr(), "restage: {text}");
            }
            Sink::Boot => {
                if self.journal {
                    let _ = writeln!(std::io::stderr(), "<{level}>{text}{id}");
                } else if let Ok(mut kernel) = OpenOptions::new().write(true).open("/dev/kmsg") {
                    let _ = kernel.write_all(format!("<{level}>restage: {text}{id}\n").as_bytes());
                }
                // A serial line that nobody reads must not stop a reset.
                let mut console = OpenOptions::new();
                console.write(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
                if let Ok(mut console) = console.open("/dev/console") {
                    let _ = console.write_all(format!("restage: {text}\r\n").as_bytes());
                }
                status(&text);
            }
        }
    }

    fn flush(&self) {}
}

#[cfg(test)]
mod tests {
    use super::clean;

    #[test]
    fn what_a_file_says_stays_in_its_line() {
        assert_eq!(clean("field `ü`"), "field `ü`");
        assert_eq!(clean("a\n<3>b\r\u{1b}[2J\u{9b}\t"), "a\\n<3>b\\r\\u{1b}[2J\\u{9b}\\t");
    }
}
