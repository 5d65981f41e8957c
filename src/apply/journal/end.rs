//! The end of an operation: its report, and what is left of it.
//! Side: both. Touches a directory of restage's own.

use super::{MAX_LOG_BYTES, MAX_REPORTS, read_or_tell};
use crate::error::{Doing, Result};
use crate::format::envelope::{self, REPORT};
use crate::platform::Store;
use crate::report::Report;
use crate::request::{file_name, stem};

/// **The end of an operation.** The report's appearance ends it; what else there is of it is removed
/// after that, secrets overwritten first, and again at the next boot if the power goes meanwhile.
pub fn finish(store: &mut dyn Store, report: &Report, log: &str) -> Result<()> {
    let what = || "cannot leave the report".to_owned();
    let stem = stem(&report.id);
    let file = |extension| format!("{stem}.{extension}");
    store.remove(&file("RSV")).doing(what)?;
    let names = store.names().doing(what)?;
    if !log.is_empty() && !names.contains(&file("RPT")) {
        store.remove(&file("LOG")).doing(what)?;
        let start = log.len().saturating_sub(MAX_LOG_BYTES);
        let start = (start..=log.len()).find(|at| log.is_char_boundary(*at)).unwrap_or_default();
        store.create(&file("LOG"), log.get(start..).unwrap_or_default().as_bytes()).doing(what)?;
    }
    if !names.contains(&file("RPT")) {
        let bytes = envelope::encode(report, REPORT).doing(what)?;
        store.create(&file("RPT"), &bytes).doing(what)?;
    }
    // The operation is over; what cannot be tidied up now is tidied up at the next boot.
    if let Err(error) = clear_away(store, &stem).and_then(|()| prune(store, &report.id)) {
        log::warn!("{}", error.chain());
    }
    Ok(())
}

/// Removes a file of an operation, secrets overwritten first.
pub(super) fn remove_file(store: &mut dyn Store, name: &str) -> std::io::Result<()> {
    match name.split_once('.') {
        Some((_, "SED" | "TAR" | "ARC")) => store.shred(name),
        _ => store.remove(name),
    }
}

/// A report that can be read and is of the operation that the file is called after: what is done about
/// old reports goes by what they say.
pub(super) fn read_report(store: &dyn Store, name: &str) -> Option<Report> {
    let bytes = read_or_tell(store, name)?;
    let report = envelope::parse::<Report>(&bytes, REPORT).map_err(|error| error.to_string());
    let report = report.and_then(|report| {
        let is_its_own = file_name(&report.id, "RPT") == name;
        is_its_own.then_some(report).ok_or("field `id` does not fit the file's name".to_owned())
    });
    report.inspect_err(|why| log::warn!("{name} is no report: {why}")).ok()
}

/// Removes what is left of a finished operation, or of one that never became a request.
pub fn clear_away(store: &mut dyn Store, stem: &str) -> Result<()> {
    let what = || format!("cannot remove what is left of {stem}");
    // The request first: it is the one that could be taken for a wish.
    store.remove(&format!("{stem}.REQ")).doing(what)?;
    let names = store.names().doing(what)?;
    let is_reported = names.contains(&format!("{stem}.RPT"));
    for name in names {
        let Some(extension) = name.strip_prefix(stem).and_then(|rest| rest.strip_prefix('.'))
        else {
            continue;
        };
        match extension {
            "RPT" | "LOG" | "BAD" if is_reported => {}
            _ => remove_file(store, &name).doing(what)?,
        }
    }
    Ok(())
}

/// Keeps the newest reports only, and the one just written whatever the clock says.
fn prune(store: &mut dyn Store, newest: &str) -> Result<()> {
    let reports = reports(store)?;
    for old in reports.iter().filter(|report| report.id != newest).skip(MAX_REPORTS - 1) {
        let stem = stem(&old.id);
        let what = || format!("cannot remove the old report {stem}.RPT");
        // The report goes last: as long as it is there, nothing of its operation can come back.
        clear_away(store, &stem)?;
        for extension in ["BAD", "LOG", "RPT"] {
            store.remove(&format!("{stem}.{extension}")).doing(what)?;
        }
    }
    Ok(())
}

/// The readable reports, newest first.
pub fn reports(store: &dyn Store) -> Result<Vec<Report>> {
    let what = || "cannot read the reports".to_owned();
    let mut reports = Vec::new();
    for name in store.names().doing(what)? {
        if name.split_once('.').is_some_and(|(_, extension)| extension == "RPT")
            && let Some(report) = read_report(store, &name)
        {
            reports.push(report);
        }
    }
    reports.sort_by_key(|report| std::cmp::Reverse(report.finished_at));
    Ok(reports)
}
