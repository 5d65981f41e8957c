//! The commands of the running OS: stage, cancel, look.
//! Side: OS. Touches restage's directory on the ESP, and nothing else.

use std::io::{BufRead, IsTerminal, Write};
use std::path::Path;

use serde_json::json;

use super::{Exit, Side, guarded, offline, print_json, running, systemd};
use crate::apply::journal::settle_esp;
use crate::apply::probe::{self, Scope};
use crate::apply::restore;
use crate::cli::{Cancel, FactoryReset, Place, Status};
use crate::error::{Doing, Error, Refused, Result};
use crate::plan::{check, render, reset};
use crate::platform::console::{self, Sink, clean};
use crate::platform::esp::{EspDirectory, Others};
use crate::platform::locate::Mounted;
use crate::platform::{Machine, boot_entry, efivar, host, read_bounded};
use crate::profile::Profile;
use crate::request::find;
use crate::request::stage::{self, Present};
use crate::request::stage_restore::{self, RestoreStatus};
use crate::request::systemd::{VARIABLE, Variable};
use crate::request::{ResetOptions, Staged, file_name};

/// A log is cut at its end when it is kept.
const MAX_LOG_BYTES: usize = 1024 * 1024;
/// The largest options file.
const MAX_OPTIONS_BYTES: u64 = 16 * 1024 * 1024;

/// `restage factory-reset`.
pub fn factory_reset(arguments: &FactoryReset) -> Result<Exit> {
    console::start(Sink::Terminal);
    let options = match options(arguments.data.as_deref())? {
        Ok(options) => options,
        Err(refused) => return refuse(&refused, arguments.json),
    };
    let (mut machine, mounted, profile) = open(&arguments.place, Side::Stager)?;
    if arguments.or_staged
        && let Some(id) = staged_reset(&mut machine, &profile)?
    {
        return was_staged(&id, arguments);
    }
    let has_seeds = !options.seeds.is_empty();
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
    let others = if has_seeds { Others::MayNothing } else { Others::MayRead };
    let esp = esp_of(mounted.as_ref(), &arguments.place, &profile, Side::Stager)?;
    if let Err(refused) = guarded(&esp, others)? {
        return refuse(&refused, arguments.json);
    }
    if arguments.dry_run {
        if arguments.json {
            print_json(&prepared.plan)?;
        } else {
            print(&text)?;
        }
        return Ok(Exit::Done);
    }
    let present = if arguments.replace { Present::Replace } else { Present::Keep };
    let restores_now = restores(&arguments.place, &profile)?;
    if let Err(refused) = room(&machine, restores_now.as_ref(), present)? {
        return refuse(&refused, arguments.json);
    }
    let entry = (!arguments.place.is_offline()).then(boot_entry::next);
    let entry_text = entry.as_ref().map(describe).unwrap_or_default();
    if !arguments.force
        && let Err(refused) = confirm(&format!("{text}{entry_text}"))?
    {
        return refuse(&refused, arguments.json);
    }
    // Whoever takes both locks takes the state's first.
    let mut restores = restores_now;
    if let Some(restores) = restores.as_mut().filter(|_| arguments.replace) {
        let root = arguments.place.root.as_deref().unwrap_or(Path::new("/"));
        super::state::lock(restores, root, &profile)?;
    }
    let esp = writable(mounted.as_ref(), &arguments.place, &profile, Side::Stager)?;
    if let Err(refused) = guarded(&esp, others)? {
        return refuse(&refused, arguments.json);
    }
    machine.esp = Box::new(esp);
    // Looked at again under the lock: another one may have been faster, with a restore as well, whose
    // directory may be a new one.
    if !arguments.replace {
        restores = self::restores(&arguments.place, &profile)?;
    }
    if let Err(refused) = room(&machine, restores.as_ref(), present)? {
        return refuse(&refused, arguments.json);
    }
    if let Some(restores) = restores.as_mut().filter(|_| arguments.replace) {
        stage_restore::cancel(restores, None)?;
        stage_restore::tidy_flags(restores.store.as_ref(), machine.esp.as_mut())?;
    }
    let id = stage::new_id(machine.esp.as_ref())?;
    let staged = Staged {
        command: "restage factory-reset".to_owned(),
        user: host::user(),
        restage: env!("CARGO_PKG_VERSION").to_owned(),
        at: host::now(),
    };
    stage::stage(&mut machine, &profile, &prepared, staged, &id)?;
    let said = if arguments.json {
        print_json(&json!({ "staged": id, "plan": prepared.plan, "next_boot": entry }))
    } else {
        let plan = if arguments.force { format!("{text}{entry_text}") } else { String::new() };
        print(&format!(
            "{plan}staged factory reset {id}; the next boot applies it (`restage cancel` withdraws it)\n"
        ))
    };
    // A failure would mean that nothing is staged.
    if let Err(error) = said {
        log::error!("factory reset {id} is staged, and that could not be told: {}", error.chain());
    }
    if arguments.reboot {
        reboot(arguments.place.is_offline())?;
    }
    Ok(Exit::Done)
}

/// The id of the factory reset that is staged, where there is one, and the next boot would accept it.
fn staged_reset(machine: &mut Machine, profile: &Profile) -> Result<Option<String>> {
    // What is said to be staged has to be, whoever was killed while he did it.
    settle_esp(machine.esp.as_mut());
    let found = find::look(machine.esp.as_ref())?;
    let ([stem], []) = (found.staged.as_slice(), found.committed.as_slice()) else {
        return Ok(None);
    };
    let Ok(request) = stage::read(machine.esp.as_ref(), stem) else { return Ok(None) };
    let facts = probe::facts(machine, profile, Scope::Staging)?;
    if let Err(refused) = check::request(&request, profile, &facts) {
        log::warn!("{} is staged, and the next boot would refuse it: {refused}", request.id);
        return Ok(None);
    }
    Ok(Some(request.id))
}

fn was_staged(id: &str, arguments: &FactoryReset) -> Result<Exit> {
    if arguments.json {
        print_json(&json!({ "staged": id }))?;
    } else {
        print(&format!("factory reset {id} is staged already; the next boot applies it\n"))?;
    }
    if arguments.reboot {
        reboot(arguments.place.is_offline())?;
    }
    Ok(Exit::Done)
}

/// One request at a time: neither a reset nor a restore may be there.
fn room(
    machine: &Machine,
    restores: Option<&restore::Machine>,
    present: Present,
) -> Result<std::result::Result<(), Refused>> {
    if let Some(restores) = restores {
        let found = find::look(restores.store.as_ref())?;
        let may_replace = present == Present::Replace && found.committed.is_empty();
        if !may_replace && let Err(refused) = stage_restore::room(restores.store.as_ref())? {
            return Ok(Err(refused));
        }
    }
    stage::room(machine.esp.as_ref(), present)
}

pub(super) fn describe(next: &boot_entry::Next) -> String {
    let warning = next.warning.iter().map(|warning| format!("warning: {warning}\n"));
    std::iter::once(format!("{}\n", next.says)).chain(warning).collect()
}

/// `restage status`.
pub fn status(arguments: &Status) -> Result<Exit> {
    console::start(Sink::Terminal);
    let profile = Profile::load(arguments.place.profile.as_deref())?;
    let is_only_root = arguments.place.is_only_root();
    let machine = if is_only_root { None } else { Some(open(&arguments.place, Side::Reader)?) };
    let esp = machine.as_ref().map(|(machine, _, _)| machine.esp.as_ref());
    let mut status = match esp {
        Some(esp) => stage::status(esp)?,
        None => stage::Status::default(),
    };
    let restores = restores(&arguments.place, &profile)?;
    let of_restores = restores.as_ref().map(stage_restore::status).transpose()?.unwrap_or_default();
    status.reports.extend(of_restores.reports.iter().cloned());
    status.reports.sort_by_key(|report| std::cmp::Reverse(report.finished_at));
    let variable = of_systemd(&arguments.place);
    if arguments.json {
        print_json(&json!({
            "staged": status.staged,
            "running": status.running,
            "reports": status.reports,
            "restores": of_restores,
            "systemd": variable,
        }))?;
        return Ok(Exit::Done);
    }
    let mut out = text(&status, &of_restores, variable);
    if arguments.log
        && let Some(report) = status.reports.first()
    {
        let name = file_name(&report.id, "LOG");
        let what = || format!("cannot read {name}");
        let mut log = None;
        if let Some(esp) = esp {
            log = esp.read(&name, MAX_LOG_BYTES).doing(what)?;
        }
        if let (None, Some(restores)) = (&log, &restores) {
            log = restores.store.read(&name, MAX_LOG_BYTES).doing(what)?;
        }
        out.push_str(&String::from_utf8_lossy(&log.unwrap_or_default()));
    }
    print(&out)?;
    Ok(Exit::Done)
}

/// The part of the machine that restores work on; none when the profile or the caller names no state.
fn restores(place: &Place, profile: &Profile) -> Result<Option<restore::Machine>> {
    let root = match &place.root {
        Some(root) => root.as_path(),
        None if place.is_offline() => return Ok(None),
        None => Path::new("/"),
    };
    match &profile.state {
        Some(_) => super::state::offline(root, &[], profile).map(Some),
        None => Ok(None),
    }
}

/// Whether the EFI variable asks for a factory reset of this OS: by the next boot, or by this one, whose
/// initrd has not heard it.
fn of_systemd(place: &Place) -> Option<&'static str> {
    if place.is_offline() {
        return None;
    }
    match systemd::variable() {
        Variable::Pending => Some("pending"),
        Variable::Now => Some("unheard"),
        Variable::Absent | Variable::Foreign(_) => None,
    }
}

/// What `restage status` says to a person.
fn text(status: &stage::Status, restores: &RestoreStatus, variable: Option<&str>) -> String {
    let mut lines = of_restores(restores);
    lines.extend(variable.map(|state| {
        format!("{state}: a factory reset by systemd's {VARIABLE}; `restage cancel` withdraws it")
    }));
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
    lines.iter().map(|line| clean(line)).collect::<Vec<_>>().join("\n")
}

/// What it says of restores.
fn of_restores(status: &RestoreStatus) -> Vec<String> {
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
    for open in &status.open {
        lines.push(match open.phase {
            "window" => format!(
                "not confirmed: restore {}, boot {} of {}; `restage confirm` keeps it, and it rolls itself back otherwise",
                open.id, open.boots, open.of
            ),
            phase => format!("unfinished: restore {}, {phase}", open.id),
        });
        lines.extend(open.reason.iter().map(|reason| format!("  {reason}")));
        lines.extend(open.failures.iter().map(|failure| format!("  failed: {failure}")));
    }
    for id in &status.abandoned {
        lines.push(format!(
            "an archive of {id}, which was never staged; `restage cancel` destroys it"
        ));
    }
    for keys in &status.superseded {
        lines.push(format!("keys replaced by restore {}: {}", keys.id, keys.files.join(", ")));
    }
    lines
}

/// `restage cancel`.
pub fn cancel(arguments: &Cancel) -> Result<Exit> {
    console::start(Sink::Terminal);
    let profile = Profile::load(arguments.place.profile.as_deref())?;
    // A request for this OS, whoever made it, and a marker are one.
    let by_variable = of_systemd(&arguments.place).is_some();
    if by_variable {
        efivar::remove_systemd(VARIABLE)
            .doing(|| "cannot withdraw systemd's request".to_owned())?;
        // Whatever becomes of the rest.
        if !arguments.json {
            print(&format!("cancelled systemd's request ({VARIABLE})\n"))?;
        }
    }
    let mut ids = Vec::new();
    let mut left = Ok(());
    if let Some(mut restores) = restores(&arguments.place, &profile)? {
        let found = find::look(restores.store.as_ref())?;
        if let Some(stem) = found.committed.first() {
            let reason = format!(
                "the restore {stem} is committed: `restage confirm` keeps it, and it rolls itself back otherwise"
            );
            return refuse(&Refused::because(reason), arguments.json);
        }
        if !found.staged.is_empty() || !found.leftovers.is_empty() {
            let root = arguments.place.root.as_deref().unwrap_or(Path::new("/"));
            super::state::lock(&mut restores, root, &profile)?;
            ids = stage_restore::cancel(&mut restores, None)?;
        }
    }
    if !arguments.place.is_only_root() {
        let (mut machine, mounted, profile) = open(&arguments.place, Side::Reader)?;
        let found = find::look(machine.esp.as_ref())?;
        if let Some(stem) = found.committed.first() {
            let reason =
                format!("the operation {stem} is committed and can only be finished; reboot");
            return refuse(&Refused::because(reason), arguments.json);
        }
        if !found.staged.is_empty() || !found.flags.is_empty() || !found.leftovers.is_empty() {
            let esp = writable(mounted.as_ref(), &arguments.place, &profile, Side::Reader)?;
            machine.esp = Box::new(esp);
            ids.extend(stage::cancel(machine.esp.as_mut(), host::now())?);
            // Of a staging that was cut off: seeds may be secret.
            left = stage::clear_leftovers(machine.esp.as_mut(), host::now());
        }
        if let Some(restores) = restores(&arguments.place, &profile)?
            && !found.flags.is_empty()
        {
            stage_restore::tidy_flags(restores.store.as_ref(), machine.esp.as_mut())?;
        }
    }
    if arguments.json {
        print_json(&json!({ "cancelled": ids, "systemd": by_variable }))?;
    } else if ids.is_empty() && !by_variable {
        print("nothing is staged\n")?;
    }
    for id in ids.iter().filter(|_| !arguments.json) {
        print(&format!("cancelled {id}\n"))?;
    }
    left.map(|()| Exit::Done)
}

fn open(place: &Place, side: Side) -> Result<(Machine, Option<Mounted>, Profile)> {
    let profile = Profile::load(place.profile.as_deref())?;
    if place.is_offline() {
        return Ok((offline(place, &profile, side)?, None, profile));
    }
    let (machine, mounted) = running(place, &profile, side)?;
    Ok((machine, mounted, profile))
}

fn esp_of(
    mounted: Option<&Mounted>,
    place: &Place,
    profile: &Profile,
    side: Side,
) -> Result<EspDirectory> {
    let path = mounted.map(|m| m.path.as_path()).or(place.esp.as_deref());
    super::open_esp(path.ok_or_else(|| Error::new("no ESP is known"))?, profile, side)
}

/// The ESP, which from here on may be written, and by nobody else.
pub(super) fn writable(
    mounted: Option<&Mounted>,
    place: &Place,
    profile: &Profile,
    side: Side,
) -> Result<EspDirectory> {
    let what = || "cannot write to the ESP".to_owned();
    let mut esp = esp_of(mounted, place, profile, side)?;
    // After it was looked at: that may have made it read-only.
    if let Some(mounted) = mounted {
        mounted.make_writable().doing(what)?;
    }
    esp.lock().doing(what)?;
    Ok(esp)
}

fn options(data: Option<&str>) -> Result<Result<ResetOptions, Refused>> {
    let Some(data) = data else { return Ok(Ok(ResetOptions::default())) };
    let Some(path) = data.strip_prefix('@') else { return Ok(ResetOptions::parse(data)) };
    let what = || format!("cannot read the options {path}");
    let bytes = read_bounded(Path::new(path), MAX_OPTIONS_BYTES).doing(what)?;
    Ok(ResetOptions::parse(std::str::from_utf8(&bytes).doing(what)?))
}

/// Asks on a terminal whether to stage. Without one only `--force` answers.
pub(super) fn confirm(text: &str) -> Result<Result<(), Refused>> {
    ask(text, "All of this happens at the next boot. Stage it?")
}

/// Asks on a terminal. Without one only `--force` answers.
pub(super) fn ask(text: &str, question: &str) -> Result<Result<(), Refused>> {
    let what = || "cannot ask".to_owned();
    if !std::io::stdin().is_terminal() {
        return Ok(Err(Refused::because(
            "this destroys data: --force is needed without a terminal",
        )));
    }
    print(&format!("{text}\n{question} (yes/no) "))?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).doing(what)?;
    Ok(match answer.trim() {
        "yes" => Ok(()),
        _ => Err(Refused::because("not confirmed")),
    })
}

pub(super) fn refuse(refused: &Refused, json: bool) -> Result<Exit> {
    if json {
        print_json(&json!({ "refused": refused.reason }))?;
    }
    log::error!("refused: {refused}");
    Ok(Exit::Refused)
}

pub(super) fn reboot(is_offline: bool) -> Result<()> {
    if is_offline {
        return Err(Error::new("--reboot makes no sense offline; the request is staged"));
    }
    let what = || "the request is staged, but `systemctl reboot` failed".to_owned();
    let status = std::process::Command::new("systemctl").arg("reboot").status().doing(what)?;
    if status.success() { Ok(()) } else { Err(Error::new(what()).because(status.to_string())) }
}

pub(super) fn print(text: &str) -> Result<()> {
    let lines = text.split_inclusive('\n').map(|line| match line.strip_suffix('\n') {
        Some(line) => format!("{}\n", clean(line)),
        None => clean(line).into_owned(),
    });
    let text: String = lines.collect();
    std::io::stdout().write_all(text.as_bytes()).doing(|| "cannot print".to_owned())
}
