//! The files that restage leaves for itself, and the profile.

use std::fmt::Debug;
use std::sync::OnceLock;

use restage::apply::{journal, restore};
use restage::error::chain;
use restage::format::envelope::{
    self, ADDED_SLOTS, JOURNAL, Kind, NOTE, REPORT, REQUEST, RESTORE_JOURNAL, RESTORE_REQUEST,
};
use restage::plan::facts::Facts;
use restage::plan::reset::Ask;
use restage::plan::restore::{RecordedSlot, check_resumed};
use restage::plan::{check, render, reset};
use restage::profile::Profile;
use restage::report::Report;
use restage::request::restore::RestoreRequest;
use restage::request::{Request, is_valid_id};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::seed::incusos;
use super::{machine_reset, machine_restore};
use crate::bytes::{Bytes, told};
use crate::fixtures::{enveloped, files};
use crate::{memory, seal};

pub const WORDS: &[&str] = &[
    "\"id\":\"0123456789abcdef0123456789abcdef\"",
    "18446744073709551615",
    "\"step\":\"wipe\"",
    "\"step\":\"gpt\",",
    "\"step\":\"esp\",\"paths\":[\"sb-disabled\"]",
    "\"way\":\"pass-over\",",
    "\"first_lba\":0",
    "\"last_lba\":18446744073709551615",
    "\"erase\":\"zero\"",
    "\"luks\":null",
    "null",
    "\\u001b[2J",
    "-1",
    "1e400",
];

/// The first byte: whether it gets an envelope, or comes with one. What is read is written as it was.
fn opened<T: Serialize + DeserializeOwned + PartialEq + Debug>(
    bytes: &[u8],
    kind: Kind,
) -> Option<T> {
    let mut bytes = Bytes(bytes);
    let sealed = match bytes.byte() & 1 {
        0 => bytes.0.to_vec(),
        _ => seal::envelope(bytes.0, kind),
    };
    let body: T = match envelope::parse(&sealed, kind) {
        Ok(body) => body,
        Err(why) => {
            told(&chain(&why));
            return None;
        }
    };
    let written = envelope::encode(&body, kind).unwrap();
    let again: T = envelope::parse(&written, kind).expect("what is written can be read");
    assert_eq!(again, body);
    // A cut file is none, wherever it was cut: two places at each time.
    for length in [written.len() - 2, written.len() / 2] {
        let cut: Result<T, _> = envelope::parse(&written[..length], kind);
        assert!(cut.is_err(), "cut to {length} bytes");
    }
    Some(body)
}

pub fn facts() -> &'static Facts {
    static FACTS: OnceLock<Facts> = OnceLock::new();
    memory::once(&FACTS, machine_reset::facts)
}

pub fn request(bytes: &[u8]) {
    let Some(request) = opened::<Request>(bytes, REQUEST) else { return };
    match check::request(&request, incusos(), facts()) {
        Ok(()) => {
            assert!(is_valid_id(&request.id));
            let bound = reset::binding(incusos(), facts()).unwrap();
            assert_eq!(request.machine.disk, bound.disk);
            assert!(bound.partitions.iter().all(|p| request.machine.partitions.contains(p)));
            assert!(request.machine.partitions.iter().all(|p| bound.partitions.contains(p)));
        }
        Err(refused) => told(&refused.reason),
    }
}

pub fn restore_request(bytes: &[u8]) {
    opened::<RestoreRequest>(bytes, RESTORE_REQUEST);
}

pub fn journal(bytes: &[u8]) {
    let Some(committed) = opened::<journal::Committed>(bytes, JOURNAL) else { return };
    let (plan, profile) = (&committed.plan, incusos());
    for step in &plan.steps {
        let text = render::describe(step, plan.sector_bytes);
        assert!(text.starts_with(&step.name()));
    }
    match check::journal(&committed.request, plan, profile, facts()) {
        Ok(()) => {
            assert_eq!(plan.disk, facts().disk.guid);
            let (first, last) = facts().disk.usable;
            for wiped in plan.wiped() {
                let is_listed = profile.wipe.iter().any(|w| w.label == wiped.label);
                assert!(is_listed, "`{}` would be wiped", wiped.label);
                assert!(first <= wiped.first_lba && wiped.last_lba <= last);
                let others =
                    facts().disk.partitions.iter().filter(|p| !p.bound().same_place(wiped));
                for other in others {
                    let (from, to) = (other.entry.first_lba, other.entry.last_lba);
                    assert!(wiped.last_lba < from || wiped.first_lba > to, "over another one");
                }
            }
        }
        Err(refused) => told(&refused.reason),
    }
}

pub fn restore_journal(bytes: &[u8]) {
    let Some(committed) = opened::<restore::Committed>(bytes, RESTORE_JOURNAL) else { return };
    let state = incusos().state.as_ref().unwrap();
    match check_resumed(&committed.plan, state) {
        Ok(()) => {
            let is_key = |name: &String| state.is_precious(name) && !name.contains('/');
            assert!(
                committed.plan.superseded.iter().all(is_key),
                "{:?}",
                committed.plan.superseded
            );
        }
        Err(why) => told(&why),
    }
    let lines = committed.plan.describe();
    assert!(!lines.is_empty());
}

/// As the journal has it for itself.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Note {
    reason: String,
}

/// The second byte says which of the small ones it is.
pub fn report(bytes: &[u8]) {
    let mut rest = Bytes(bytes);
    let how = rest.byte();
    let which = rest.byte();
    let bytes = [&[how], rest.0].concat();
    match which % 3 {
        0 => drop(opened::<Report>(&bytes, REPORT)),
        1 => drop(opened::<Vec<RecordedSlot>>(&bytes, ADDED_SLOTS)),
        _ => drop(opened::<Note>(&bytes, NOTE)),
    }
}

pub fn profile(bytes: &[u8]) {
    let profile = match Profile::parse(bytes) {
        Ok(profile) => profile,
        Err(error) => return told(&error.chain()),
    };
    let written = serde_json::to_vec(&profile).unwrap();
    assert_eq!(Profile::parse(&written).expect("what is written can be read"), profile);
    let leads_out = |path: &String| {
        path.starts_with('/') || path.split('/').any(|part| matches!(part, "" | "." | ".."))
    };
    assert!(!profile.esp.remove.iter().any(leads_out), "{:?}", profile.esp.remove);
    assert!(!leads_out(&profile.esp.directory) && !profile.esp.directory.contains('/'));
    if let Some(state) = &profile.state {
        assert!(![&state.directory, &state.own_directory].into_iter().any(leads_out));
    }
    // What this profile plans, it accepts in a journal.
    let mut facts = facts().clone();
    let is_asked = |path: &String| profile.esp.remove.iter().any(|rule| check::matches(rule, path));
    facts.esp_paths.retain(is_asked);
    let facts = &facts;
    let planned = match reset::plan(&Ask::default(), &profile, facts) {
        Ok(planned) => planned,
        Err(refused) => return told(&refused.reason),
    };
    let mut request = machine_reset::request();
    request.machine = reset::binding(&profile, facts).unwrap();
    request.allow_tpm_reset_failure = false;
    let checked = check::journal(&request, &planned.plan, &profile, facts);
    assert_eq!(checked, Ok(()), "{:?}", planned.plan);
    assert!(!render::text(&planned.plan, facts).is_empty());
}

/// The file as it is, and its body alone.
fn of_file(file: &[u8]) -> [Vec<u8>; 2] {
    let whole: serde_json::Value = serde_json::from_slice(file).unwrap();
    [[&[0], file].concat(), [&[1], whole["body"].to_string().as_bytes()].concat()]
}

pub fn request_seeds() -> Vec<Vec<u8>> {
    let good = machine_reset::file("REQ");
    let hostile = enveloped::requests(&good).into_iter().map(|hostile| hostile.bytes);
    let hostile = hostile.filter(|bytes| bytes.len() < 4000);
    let long = format!("{{\"{}\":1}}", "\\u0007".repeat(900));
    of_file(&good)
        .into_iter()
        .chain([[&[1], long.as_bytes()].concat()])
        .chain(hostile.map(|bytes| [&[0], bytes.as_slice()].concat()))
        .collect()
}

pub fn journal_seeds() -> Vec<Vec<u8>> {
    of_file(&machine_reset::file("JNL")).to_vec()
}

pub fn restore_request_seeds() -> Vec<Vec<u8>> {
    of_file(&machine_restore::file("REQ")).to_vec()
}

pub fn restore_journal_seeds() -> Vec<Vec<u8>> {
    of_file(&machine_restore::file("JNL")).to_vec()
}

pub fn report_seeds() -> Vec<Vec<u8>> {
    let with = |which: u8, file: &[u8]| {
        of_file(file).map(|file| [&file[..1], &[which], &file[1..]].concat())
    };
    let slots = vec![RecordedSlot { index: 2, digest: "ab".repeat(32) }];
    let slots = envelope::encode(&slots, ADDED_SLOTS).unwrap();
    let note = envelope::encode(&serde_json::json!({"reason": "it fails"}), NOTE).unwrap();
    let all = [with(0, &machine_reset::file("RPT")), with(1, &slots), with(2, &note)];
    all.into_iter().flatten().collect()
}

pub fn profile_seeds() -> Vec<Vec<u8>> {
    let good = include_str!("../../../src/profile/incusos.json");
    let short: serde_json::Value = serde_json::from_str(good).unwrap();
    let hostile = files::profiles(good).into_iter().map(|hostile| hostile.bytes);
    let hostile = hostile.filter(|bytes| bytes.len() < 5000);
    std::iter::once(short.to_string().into_bytes()).chain(hostile).collect()
}
