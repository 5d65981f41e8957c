//! What changed from one version of the state file to the next, one rule set for each.

use std::fmt::Write as _;

use zeroize::Zeroizing;

use super::{BadState, StateFile, entry};

type Line = Zeroizing<String>;

/// One version further. Changes the lines only.
pub(super) fn step(file: &mut StateFile) -> Result<(), BadState> {
    match file.version {
        0 => rename(file, encryption_becomes_security),
        1 => proxies(file)?,
        2 => rename(file, application_state),
        3 => {
            rename(file, update_fields);
            append(file, "System.Update.Config.Channel: stable");
        }
        4 => check_frequency(file)?,
        5 => rename(file, time_servers),
        6 => append(file, "System.Storage.Config.ScrubSchedule: 0 4 * * 0"),
        7 => rename(file, application_fields),
        version => return Err(BadState(format!("nothing is known about version {}", version + 1))),
    }
    Ok(())
}

/// Gives each entry the key that `rule` says; the others keep every byte.
fn rename(file: &mut StateFile, rule: impl Fn(&str) -> Option<String>) {
    for line in &mut file.lines {
        if let Some((key, value)) = entry(line)
            && let Some(key) = rule(key)
        {
            *line = Zeroizing::new(format!("{key}: {value}"));
        }
    }
}

fn append(file: &mut StateFile, line: &str) {
    file.lines.push(Zeroizing::new(line.to_owned()));
    file.is_ended = true;
}

/// `key` with the beginning `from` replaced, where it ends there or goes on with `.` or `[`.
fn moved(key: &str, from: &str, to: &str) -> Option<String> {
    let rest = key.strip_prefix(from)?;
    (rest.is_empty() || rest.starts_with(['.', '['])).then(|| format!("{to}{rest}"))
}

/// 0 to 1.
fn encryption_becomes_security(key: &str) -> Option<String> {
    let rest = key.strip_prefix("System.Encryption.")?;
    let rest = moved(rest, "Config.RecoveryKeys", "Config.EncryptionRecoveryKeys")
        .or_else(|| {
            moved(rest, "State.RecoveryKeysRetrieved", "State.EncryptionRecoveryKeysRetrieved")
        })
        .unwrap_or_else(|| rest.to_owned());
    Some(format!("System.Security.{rest}"))
}

const PROXY: &str = "System.Network.Config.Proxy.";

/// 1 to 2: one proxy a protocol becomes named servers and rules.
fn proxies(file: &mut StateFile) -> Result<(), BadState> {
    let mut lines: Vec<Line> = Vec::with_capacity(file.lines.len());
    let mut known: Vec<(String, String)> = Vec::new();
    let mut rules = 0;
    let mut rule = |lines: &mut Vec<Line>, destination: &str, target: &str| {
        lines.push(Zeroizing::new(format!("{PROXY}Rules[{rules}].Destination: {destination}")));
        lines.push(Zeroizing::new(format!("{PROXY}Rules[{rules}].Target: {target}")));
        rules += 1;
    };
    for (index, line) in file.lines.iter().enumerate() {
        let proxy = entry(line).and_then(|(key, value)| Some((key.strip_prefix(PROXY)?, value)));
        match proxy {
            Some(("HTTPProxy" | "HTTPSProxy" | "NoProxy", "")) => {}
            Some((name @ ("HTTPProxy" | "HTTPSProxy"), value)) => {
                let server = Server::parse(value).ok_or_else(|| {
                    BadState(format!("line {}: `{PROXY}{name}` names no host", index + 2))
                })?;
                match known.iter().find(|(key, _)| *key == server.key) {
                    None => {
                        lines.extend(server.lines());
                        known.push((server.key.clone(), value.to_owned()));
                    }
                    Some((_, same)) if same == value => {}
                    Some(_) => {
                        return Err(BadState(format!(
                            "line {}: two different proxies would both be named `{}`",
                            index + 2,
                            server.key
                        )));
                    }
                }
                let destination = if name == "HTTPProxy" { "http://*" } else { "https://*" };
                rule(&mut lines, destination, &server.key);
            }
            Some(("NoProxy", value)) => {
                let hosts: Vec<_> =
                    value.split(',').map(str::trim).filter(|host| !host.is_empty()).collect();
                rule(&mut lines, &hosts.join("|"), "direct");
            }
            _ => lines.push(line.clone()),
        }
    }
    file.lines = lines;
    Ok(())
}

/// `[http://][user:pass@]host[:port]`.
struct Server {
    key: String,
    host: String,
    user: Option<(String, Zeroizing<String>)>,
}

impl Server {
    fn parse(value: &str) -> Option<Self> {
        let rest = value.strip_prefix("http://").or_else(|| value.strip_prefix("https://"));
        let rest = rest.unwrap_or(value).trim_end_matches('/');
        let (user, host) = match rest.rsplit_once('@') {
            Some((user, host)) => (Some(user), host),
            None => (None, rest),
        };
        let user = user.map(|user| {
            let (name, password) = user.split_once(':').unwrap_or((user, ""));
            (name.to_owned(), Zeroizing::new(password.to_owned()))
        });
        let (name, port) = match host.rsplit_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, None),
        };
        if name.is_empty() {
            return None;
        }
        let mut key = name.replace('.', "_");
        if let Some(port) = port {
            let _ = write!(key, "_{port}"); // writing to a String cannot fail
        }
        Some(Self { key, host: host.to_owned(), user })
    }

    fn lines(&self) -> Vec<Line> {
        let line = |field: &str, value: &str| {
            Zeroizing::new(format!("{PROXY}Servers[{}].{field}: {value}", self.key))
        };
        let mut lines = vec![line("Host", &self.host)];
        match &self.user {
            None => lines.push(line("Auth", "anonymous")),
            Some((name, password)) => {
                lines.push(line("Auth", "basic"));
                lines.push(line("Username", name));
                lines.push(line("Password", password));
            }
        }
        lines
    }
}

/// 2 to 3.
fn application_state(key: &str) -> Option<String> {
    let (name, field) = key.strip_prefix("Applications[")?.split_once("].")?;
    matches!(field, "Initialized" | "Version")
        .then(|| format!("Applications[{name}].State.{field}"))
}

/// 3 to 4.
fn update_fields(key: &str) -> Option<String> {
    match key {
        "System.Update.Config.UpdateFrequency" => {
            Some("System.Update.Config.CheckFrequency".to_owned())
        }
        "System.Update.State.UpdateStatus" => Some("System.Update.State.Status".to_owned()),
        _ => None,
    }
}

/// 4 to 5: nanoseconds become the text of a duration.
fn check_frequency(file: &mut StateFile) -> Result<(), BadState> {
    const KEY: &str = "System.Update.Config.CheckFrequency";
    for (index, line) in file.lines.iter_mut().enumerate() {
        let Some((KEY, value)) = entry(line) else { continue };
        let nanoseconds = value.parse().map_err(|_| {
            BadState(format!("line {}: `{KEY}` is no number of nanoseconds", index + 2))
        })?;
        *line = Zeroizing::new(format!("{KEY}: {}", duration(nanoseconds)));
    }
    Ok(())
}

/// A duration as Go writes it: `6h0m0s`, `1.5s`, `2ms`.
fn duration(nanoseconds: i64) -> String {
    let sign = if nanoseconds < 0 { "-" } else { "" };
    let rest = nanoseconds.unsigned_abs();
    let small = |unit: u64, name: &str| format!("{sign}{}{name}", decimal(rest, unit));
    match rest {
        0 => "0s".to_owned(),
        1..1_000 => small(1, "ns"),
        1_000..1_000_000 => small(1_000, "µs"),
        1_000_000..1_000_000_000 => small(1_000_000, "ms"),
        _ => {
            let minutes = rest / 60_000_000_000;
            let seconds = decimal(rest % 60_000_000_000, 1_000_000_000);
            match (minutes / 60, minutes % 60) {
                (0, 0) => format!("{sign}{seconds}s"),
                (0, minutes) => format!("{sign}{minutes}m{seconds}s"),
                (hours, minutes) => format!("{sign}{hours}h{minutes}m{seconds}s"),
            }
        }
    }
}

/// `value / unit` without trailing zeros; `unit` is a power of ten.
fn decimal(value: u64, unit: u64) -> String {
    let (whole, fraction) = (value / unit, value % unit);
    if fraction == 0 {
        return whole.to_string();
    }
    let width = usize::try_from(unit.ilog10()).unwrap_or(0);
    format!("{whole}.{}", format!("{fraction:0width$}").trim_end_matches('0'))
}

/// 5 to 6.
fn time_servers(key: &str) -> Option<String> {
    moved(key, "System.Network.Config.NTP.Timeservers", "System.Network.Config.Time.NTPServers")
}

/// 7 to 8: known applications become fields of their own.
fn application_fields(key: &str) -> Option<String> {
    let (name, rest) = key.strip_prefix("Applications[")?.split_once(']')?;
    Some(format!("Applications.{}{rest}", application(name)?))
}

/// The names of applications, before version 8 and since.
const APPLICATIONS: [(&str, &str); 7] = [
    ("debug", "Debug"),
    ("gpu-support", "GPUSupport"),
    ("incus", "Incus"),
    ("incus-ceph", "IncusCeph"),
    ("incus-linstor", "IncusLinstor"),
    ("migration-manager", "MigrationManager"),
    ("operations-center", "OperationsCenter"),
];

/// The name of an application since version 8.
pub(super) fn application(name: &str) -> Option<&'static str> {
    APPLICATIONS.iter().find(|(before, _)| *before == name).map(|(_, since)| *since)
}

/// Whether an application has this name since version 8; before, it was the name of none.
pub(super) fn is_since_8(name: &str) -> bool {
    APPLICATIONS.iter().any(|(_, since)| *since == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_go_writes_them() {
        for (nanoseconds, text) in [
            (21_600_000_000_000, "6h0m0s"),
            (0, "0s"),
            (1, "1ns"),
            (1_500, "1.5µs"),
            (2_000_000, "2ms"),
            (1_500_000_000, "1.5s"),
            (60_000_000_000, "1m0s"),
            (3_661_000_000_000, "1h1m1s"),
            (90_061_000_000_001, "25h1m1.000000001s"),
            (-300_000_000_000, "-5m0s"),
            (i64::MAX, "2562047h47m16.854775807s"),
            (i64::MIN, "-2562047h47m16.854775808s"),
        ] {
            assert_eq!(duration(nanoseconds), text);
        }
    }
}
