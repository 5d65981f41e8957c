//! The TPM edge against a real TPM in software.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test: a panic is its verdict")]

mod support;

use std::time::{Duration, Instant};

use restage::platform::tpm::{EsysTpm, Refusal, Tpm as _, TpmError, TpmProperties};
use support::swtpm::Swtpm;

const PLAIN: TpmProperties = TpmProperties {
    owner_auth_set: false,
    endorsement_auth_set: false,
    lockout_auth_set: false,
    disable_clear: false,
    in_lockout: false,
    lockout_counter: 0,
};

fn open(swtpm: &Swtpm) -> EsysTpm {
    EsysTpm::open(&swtpm.tcti()).expect("swtpm is running")
}

fn refusal(error: &TpmError) -> Option<Refusal> {
    match error {
        TpmError::Refused { reason, .. } => Some(*reason),
        TpmError::Failed { .. } => None,
    }
}

#[test]
fn a_clear_makes_another_primary_and_zeroes_the_reset_count() {
    let mut swtpm = Swtpm::start();
    swtpm.power_cycle();
    let mut tpm = open(&swtpm);
    assert_eq!(tpm.properties(), Ok(PLAIN));
    assert_ne!(tpm.reset_count(), Ok(0), "a power cycle counts");
    let before = tpm.owner_primary_name().unwrap();
    assert!(before.starts_with("000b") && before.len() == 68, "SHA-256 and its digest: {before}");
    assert_eq!(tpm.owner_primary_name().unwrap(), before, "the same key each time");

    tpm.clear().unwrap();
    let after = tpm.owner_primary_name().unwrap();
    assert_ne!(after, before);
    assert_eq!(tpm.reset_count(), Ok(0));

    // Durable, and it counts the boots from there.
    drop(tpm);
    swtpm.power_cycle();
    let mut tpm = open(&swtpm);
    assert_eq!(tpm.owner_primary_name().unwrap(), after);
    assert_eq!(tpm.reset_count(), Ok(1));

    // Safe to repeat.
    tpm.clear().unwrap();
    tpm.clear().unwrap();
    assert_ne!(tpm.owner_primary_name().unwrap(), after);
}

#[test]
fn nothing_is_left_in_the_tpm() {
    // Three objects fit into swtpm.
    let swtpm = Swtpm::start();
    let mut tpm = open(&swtpm);
    for _ in 0..5 {
        tpm.owner_primary_name().unwrap();
        tpm.reset_count().unwrap();
    }
}

#[test]
fn a_lockout_password_is_seen_and_refuses_the_clear() {
    let swtpm = Swtpm::start();
    swtpm.tool("tpm2_changeauth", &["-c", "lockout", "secret"]);
    let mut tpm = open(&swtpm);
    let properties = tpm.properties().unwrap();
    assert_eq!(properties, TpmProperties { lockout_auth_set: true, ..PLAIN });
    assert_eq!(properties.foreseen_refusal(), Some(Refusal::LockoutAuthSet));
    let name = tpm.owner_primary_name().unwrap();

    let error = tpm.clear().unwrap_err();
    assert_eq!(refusal(&error), Some(Refusal::LockoutAuthSet), "{error}");
    assert_eq!(tpm.owner_primary_name().unwrap(), name, "nothing was cleared");

    // Why it must not be tried: the one attempt has locked the hierarchy.
    let error = tpm.clear().unwrap_err();
    assert_eq!(refusal(&error), Some(Refusal::Lockout), "{error}");
}

#[test]
fn the_way_out_of_a_lockout_password_works() {
    let swtpm = Swtpm::start();
    swtpm.tool("tpm2_changeauth", &["-c", "lockout", "secret"]);
    swtpm.tool("tpm2_changeauth", &["-c", "lockout", "-p", "secret"]);
    let mut tpm = open(&swtpm);
    assert_eq!(tpm.properties(), Ok(PLAIN));
    tpm.clear().unwrap();
}

#[test]
fn a_disabled_clear_is_seen_and_refused() {
    let swtpm = Swtpm::start();
    swtpm.tool("tpm2_clearcontrol", &["-C", "lockout", "s"]);
    let mut tpm = open(&swtpm);
    let properties = tpm.properties().unwrap();
    assert_eq!(properties, TpmProperties { disable_clear: true, ..PLAIN });
    assert_eq!(properties.foreseen_refusal(), Some(Refusal::ClearDisabled));
    let error = tpm.clear().unwrap_err();
    assert_eq!(refusal(&error), Some(Refusal::ClearDisabled), "{error}");
}

#[test]
fn a_tpm_in_lockout_is_seen_and_cleared_all_the_same() {
    let swtpm = Swtpm::start();
    // One wrong password for a protected object is too many.
    swtpm.tool("tpm2_dictionarylockout", &["-s", "-n", "1", "-t", "1000", "-l", "1000"]);
    swtpm.tool("tpm2_nvdefine", &["0x1500001", "-C", "o", "-s", "8", "-p", "secret"]);
    swtpm.tool_fails("tpm2_nvwrite", &["0x1500001", "-P", "wrong", "-i", "/dev/null"]);
    swtpm.tool_fails("tpm2_nvread", &["0x1500001", "-P", "wrong"]);
    let mut tpm = open(&swtpm);
    let properties = tpm.properties().unwrap();
    assert_eq!(properties, TpmProperties { in_lockout: true, lockout_counter: 1, ..PLAIN });
    assert_eq!(properties.foreseen_refusal(), None);
    let name = tpm.owner_primary_name().unwrap();
    tpm.clear().unwrap();
    assert_ne!(tpm.owner_primary_name().unwrap(), name);
    assert_eq!(tpm.properties(), Ok(PLAIN));
}

#[test]
fn an_owner_password_hides_the_primary_until_the_clear() {
    let swtpm = Swtpm::start();
    swtpm.tool("tpm2_changeauth", &["-c", "owner", "secret"]);
    swtpm.tool("tpm2_changeauth", &["-c", "endorsement", "secret"]);
    let mut tpm = open(&swtpm);
    let properties = tpm.properties().unwrap();
    assert_eq!(
        properties,
        TpmProperties { owner_auth_set: true, endorsement_auth_set: true, ..PLAIN }
    );
    assert_eq!(properties.foreseen_refusal(), None);
    let error = tpm.owner_primary_name().unwrap_err();
    assert_eq!(refusal(&error), Some(Refusal::Other), "{error}");
    tpm.clear().unwrap();
    assert_eq!(tpm.properties(), Ok(PLAIN));
    tpm.owner_primary_name().unwrap();
}

#[test]
fn where_nothing_listens_there_is_no_device() {
    let mut swtpm = Swtpm::start();
    swtpm.power_off();
    let error = EsysTpm::open(&swtpm.tcti()).unwrap_err();
    assert!(matches!(error, TpmError::Failed { no_device: true, .. }), "{error}");
}

#[test]
fn a_tpm_that_goes_away_is_a_failure_and_no_refusal() {
    let mut swtpm = Swtpm::start();
    let mut tpm = open(&swtpm);
    tpm.properties().unwrap();
    swtpm.power_off();
    let error = tpm.clear().unwrap_err();
    assert!(matches!(error, TpmError::Failed { no_device: false, .. }), "{error}");
}

#[test]
fn a_tpm_that_never_answers_ends_at_the_deadline() {
    const DEADLINE: Duration = Duration::from_millis(500);
    let swtpm = Swtpm::start();
    let start = Instant::now();
    let mut tpm = EsysTpm::with_deadline(&swtpm.tcti(), DEADLINE).unwrap();
    tpm.properties().unwrap();

    swtpm.freeze();
    let error = tpm.clear().unwrap_err();
    assert!(matches!(error, TpmError::Failed { no_device: false, .. }), "{error}");
    assert!(error.to_string().contains("nothing within"), "{error}");
    let next = tpm.properties().unwrap_err();
    assert!(next.to_string().contains("unanswered"), "{next}");
    drop(tpm);

    let error = EsysTpm::with_deadline(&swtpm.tcti(), DEADLINE).unwrap_err();
    assert!(matches!(error, TpmError::Failed { no_device: false, .. }), "{error}");
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}
