//! The commands of the running OS: stage, cancel, look.
//! Side: OS. Touches restage's directory on the ESP, and nothing else.

use std::io::{BufRead, IsTerminal, Write};
use std::path::Path;

use serde_json::json;

use super::{Exit, offline, print_json, running};
use crate::cli::{Cancel, FactoryReset, Place, Status};
use crate::error::{Doing, Error, Refused, Result};
use crate::plan::{render, reset};
use crate::platform::console::{self, Sink};
use crate::platform::locate::Mounted;
use crate::platform::{Machine, boot_entry, host, read_bounded};
use crate::profile::Profile;
use crate::request::stage::{self, Present};
use crate::request::{ResetOptions, Staged, file_name};

/// The largest options file.
const MAX_OPTIONS_BYTES: u64 = 16 * 1024 * 1024;

/// `restage factory-reset`.
pub fn factory_reset(arguments: &FactoryReset) -> Result<Exit> {
    console::start(Sink::Terminal);
    let options = match options(arguments.data.as_deref())? {
        Ok(options) => options,
        Err(refused) => return refuse(&refused, arguments.json),
    };
    let (mut machine, mounted, profile) = open(&arguments.place)?;
    let ask = reset::Ask {
        allow_tpm_reset_failure: options.allow_tpm_reset_failure,
        wipe_existing_seeds: options.wipe_existing_seeds,
        seeds: options.seeds,
    };
    let prepared = match stage::prepare(&mut machine, &profile, ask)? {
        Ok(prepared) => prepared,
        Err(refused) => return refuse(&refused, arguments.json),
    };
    let text = render::text(&prepared.plan, &prepared.facts);
    if arguments.dry_run {
        if arguments.json {
            print_json(&prepared.plan)?;
        } else {
            print(&text)?;
        }
        return Ok(Exit::Done);
    }
    let present = if arguments.replace { Present::Replace } else { Present::Keep };
    if let Err(refused) = stage::room(machine.esp.as_ref(), present)? {
        return refuse(&refused, arguments.json);
    }
    let entry = (!arguments.place.is_offline()).then(boot_entry::next);
    let entry_text = entry.as_ref().map(describe).unwrap_or_default();
    if !arguments.force
        && let Err(refused) = confirm(&format!("{text}{entry_text}"))?
    {
        return refuse(&refused, arguments.json);
    }
    writable(&mut machine, mounted.as_ref(), &arguments.place, &profile)?;
    // Looked at again under the lock: another one may have been faster.
    if let Err(refused) = stage::room(machine.esp.as_ref(), present)? {
        return refuse(&refused, arguments.json);
    }
    let id = stage::new_id(machine.esp.as_ref())?;
    let staged = Staged {
        command: "restage factory-reset".to_owned(),
        user: host::user(),
        restage: env!("CARGO_PKG_VERSION").to_owned(),
        at: host::now(),
    };
    stage::stage(&mut machine, &profile, &prepared, staged, &id)?;
    if arguments.json {
        print_json(&json!({ "staged": id, "plan": prepared.plan, "next_boot": entry }))?;
    } else {
        if arguments.force {
            print(&format!("{text}{entry_text}"))?;
        }
        print(&format!(
            "staged factory reset {id}; the next boot applies it (`restage cancel` withdraws it)\n"
        ))?;
    }
    if arguments.reboot {
        reboot(&arguments.place)?;
    }
    Ok(Exit::Done)
}

fn describe(next: &boot_entry::Next) -> String {
    let warning = next.warning.iter().map(|warning| format!("warning: {warning}\n"));
    std::iter::once(format!("{}\n", next.says)).chain(warning).collect()
}

/// `restage status`.
pub fn status(arguments: &Status) -> Result<Exit> {
    console::start(Sink::Terminal);
    let (machine, _mounted, _profile) = open(&arguments.place)?;
    let status = stage::status(machine.esp.as_ref())?;
    if arguments.json {
        print_json(&status)?;
        return Ok(Exit::Done);
    }
    let mut out = text(&status);
    if arguments.log
        && let Some(report) = status.reports.first()
    {
        let name = file_name(&report.id, "LOG");
        let log = machine.esp.read(&name, 1024 * 1024).doing(|| format!("cannot read {name}"))?;
        out.push_str(&String::from_utf8_lossy(&log.unwrap_or_default()));
    }
    print(&out)?;
    Ok(Exit::Done)
}

/// What `restage status` says to a person.
fn text(status: &stage::Status) -> String {
    let mut lines = Vec::new();
    for staged in &status.staged {
        lines.push(match (&staged.request, &staged.damaged) {
            (Some(request), _) => format!(
                "staged: {} {} by {} ({})",
                request.operation, staged.id, request.staged.user, request.staged.command
            ),
            (None, damaged) => format!(
                "staged: {}, which the next boot will set aside: {}",
                staged.id,
                damaged.as_deref().unwrap_or("unreadable")
            ),
        });
    }
    for running in &status.running {
        let (over, steps) = (running.steps_over, running.steps);
        lines.push(format!("unfinished: {}, {over} of {steps} steps over", running.id));
        lines.extend(running.damaged.iter().map(|damaged| format!("  {damaged}")));
        lines.extend(running.failures.iter().map(|failure| format!("  failed: {failure}")));
    }
    for report in &status.reports {
        let operation = report.operation.map_or_else(|| "request".to_owned(), |o| o.to_string());
        let boots =
            if report.runs > 1 { format!(", in {} boots", report.runs) } else { String::new() };
        lines.push(format!("{}: {operation} {}{boots}", report.outcome, report.id));
        lines.extend(report.reason.iter().map(|reason| format!("  {reason}")));
        for step in &report.steps {
            lines.push(format!("  {}", step.what));
            lines.extend(step.passed_over.iter().map(|why| format!("    passed over: {why}")));
        }
        lines.extend(report.failures.iter().map(|why| format!("  failed on the way: {why}")));
    }
    if lines.is_empty() {
        lines.push("nothing is staged, and nothing is on record".to_owned());
    }
    lines.push(String::new());
    lines.join("\n")
}

/// `restage cancel`.
pub fn cancel(arguments: &Cancel) -> Result<Exit> {
    console::start(Sink::Terminal);
    let (mut machine, mounted, profile) = open(&arguments.place)?;
    let found = crate::request::find::look(machine.esp.as_ref())?;
    if let Some(stem) = found.committed.first() {
        let reason = format!("the operation {stem} is committed and can only be finished; reboot");
        return refuse(&Refused::because(reason), arguments.json);
    }
    let mut ids = Vec::new();
    if !found.staged.is_empty() {
        writable(&mut machine, mounted.as_ref(), &arguments.place, &profile)?;
        ids = stage::cancel(machine.esp.as_mut(), host::now())?;
    }
    if arguments.json {
        print_json(&json!({ "cancelled": ids }))?;
    } else if ids.is_empty() {
        print("nothing is staged\n")?;
    }
    for id in ids.iter().filter(|_| !arguments.json) {
        print(&format!("cancelled {id}\n"))?;
    }
    Ok(Exit::Done)
}

fn open(place: &Place) -> Result<(Machine, Option<Mounted>, Profile)> {
    let profile = Profile::load(place.profile.as_deref())?;
    if place.is_offline() {
        return Ok((offline(place, &profile)?, None, profile));
    }
    let (machine, mounted) = running(place, &profile)?;
    Ok((machine, mounted, profile))
}

/// From here on the ESP may be written, and by nobody else.
fn writable(
    machine: &mut Machine,
    mounted: Option<&Mounted>,
    place: &Place,
    profile: &Profile,
) -> Result<()> {
    let what = || "cannot write to the ESP".to_owned();
    if let Some(mounted) = mounted {
        mounted.make_writable().doing(what)?;
    }
    let path = mounted.map(|m| m.path.as_path()).or(place.esp.as_deref());
    let path = path.ok_or_else(|| Error::new(what()))?;
    let mut esp = super::open_esp(path, profile)?;
    esp.lock().doing(what)?;
    machine.esp = Box::new(esp);
    Ok(())
}

fn options(data: Option<&str>) -> Result<Result<ResetOptions, Refused>> {
    let Some(data) = data else { return Ok(Ok(ResetOptions::default())) };
    let Some(path) = data.strip_prefix('@') else { return Ok(ResetOptions::parse(data)) };
    let what = || format!("cannot read the options {path}");
    let bytes = read_bounded(Path::new(path), MAX_OPTIONS_BYTES).doing(what)?;
    Ok(ResetOptions::parse(std::str::from_utf8(&bytes).doing(what)?))
}

/// Asks on a terminal. Without one only `--force` answers.
fn confirm(text: &str) -> Result<Result<(), Refused>> {
    let what = || "cannot ask".to_owned();
    if !std::io::stdin().is_terminal() {
        return Ok(Err(Refused::because(
            "this destroys data: --force is needed without a terminal",
        )));
    }
    print(&format!("{text}\nAll of this happens at the next boot. Stage it? (yes/no) "))?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).doing(what)?;
    Ok(match answer.trim() {
        "yes" => Ok(()),
        _ => Err(Refused::because("not confirmed")),
    })
}

fn refuse(refused: &Refused, json: bool) -> Result<Exit> {
    if json {
        print_json(&json!({ "refused": refused.reason }))?;
    }
    log::error!("refused: {refused}");
    Ok(Exit::Refused)
}

fn reboot(place: &Place) -> Result<()> {
    if place.is_offline() {
        return Err(Error::new("--reboot makes no sense offline; the request is staged"));
    }
    let what = || "the request is staged, but `systemctl reboot` failed".to_owned();
    let status = std::process::Command::new("systemctl").arg("reboot").status().doing(what)?;
    if status.success() { Ok(()) } else { Err(Error::new(what()).because(status.to_string())) }
}

fn print(text: &str) -> Result<()> {
    std::io::stdout().write_all(text.as_bytes()).doing(|| "cannot print".to_owned())
}
