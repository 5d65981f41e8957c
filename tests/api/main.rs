//! `restage-api` on a socket, asked by curl, with the real `restage` behind it, which works offline.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test: a panic is its verdict"
)]

mod rig;
#[path = "../support/mod.rs"]
mod support;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use rig::{Answer, Rig, Server, command};
use serde_json::json;

const BACKUP: &str = "/1.0/system/:backup";
const RESTORE: &str = "/1.0/system/:restore";
const RESET: &str = "/1.0/system/:factory-reset";
const ALLOW: &str = r#"{"allow_tpm_reset_failure":true}"#;

#[track_caller]
fn refused(answer: &Answer, status: u16, why: &str) {
    assert_eq!(answer.status, status, "{}", answer.text());
    let body = answer.json();
    assert_eq!((&body["type"], &body["error_code"]), (&json!("error"), &json!(status)));
    assert!(body["error"].as_str().unwrap().contains(why), "`{why}` is not in {body}");
}

#[track_caller]
fn staged(answer: &Answer) -> String {
    assert_eq!(answer.status, 200, "{}", answer.text());
    let body = answer.json();
    assert_eq!((&body["type"], &body["status_code"]), (&json!("sync"), &json!(200)), "{body}");
    assert_eq!((&body["status"], &body["error"]), (&json!("Success"), &json!("")), "{body}");
    body["metadata"]["staged"].as_str().unwrap().to_owned()
}

#[test]
fn a_backup_is_the_body_and_is_staged_again_in_chunks() {
    let rig = Rig::new();
    let server = rig.serve();
    let backup = server.post(BACKUP, b"{}");
    assert_eq!(backup.status, 200);
    let file = rig.file("backup.tar.gz");
    fs::write(&file, &backup.body).unwrap();
    let inspected = rig.restage(&["inspect", file.to_str().unwrap(), "--json"]);
    let inspected: serde_json::Value = serde_json::from_slice(&inspected.stdout).unwrap();
    assert_eq!(inspected["bytes"], backup.body.len());
    let answer =
        server.curl(&["--header", "Transfer-Encoding: chunked", "--data-binary"], &file, RESTORE);
    let id = staged(&answer);
    server.reboots();
    let status = server.get("/1.0/restage/status");
    assert_eq!(status.json()["metadata"]["restores"]["staged"][0]["id"], id);
    refused(&server.curl(&["--data-binary"], &file, RESTORE), 400, "staged already");
    server.does_not_reboot();
}

#[test]
fn what_is_to_be_skipped_is_restages_to_judge() {
    let rig = Rig::new();
    let server = rig.serve();
    let file = rig.file("backup.tar.gz");
    fs::write(&file, server.post(BACKUP, b"").body).unwrap();
    let with =
        |skip: &str| server.curl(&["--data-binary"], &file, &format!("{RESTORE}?skip={skip}"));
    refused(&with("everything"), 400, "`--skip everything`: not known; there are encryption-");
    refused(&with("--replace"), 400, "`--skip --replace`: not known");
    server.does_not_reboot();
    staged(&with("network-macs,encryption-recovery-keys"));
    let status = server.get("/1.0/restage/status").json();
    let skip = &status["metadata"]["restores"]["staged"][0]["request"]["skip"];
    assert_eq!(skip, &json!(["encryption-recovery-keys", "network-macs"]));
}

#[test]
fn a_bad_backup_is_refused_with_its_reason_and_nothing_is_staged() {
    let rig = Rig::new();
    let server = rig.serve();
    let before = rig.everything();
    let good = server.post(BACKUP, b"").body;
    refused(&server.post(RESTORE, b"no archive at all"), 400, "gzip: invalid gzip header");
    refused(&server.post(RESTORE, b""), 400, "it is cut short");
    refused(&server.post(RESTORE, &good[..good.len() - 1]), 400, "it is cut short");
    refused(&server.post(RESTORE, &vec![7; 32 << 20]), 400, "gzip: invalid gzip header");
    refused(
        &server.post(RESTORE, &vec![7; 90 << 20]),
        400,
        "the body has more than 83886080 bytes",
    );
    refused(
        &server.post(RESET, &vec![b' '; 17 << 20]),
        400,
        "the body has more than 16777216 bytes",
    );
    server.does_not_reboot();
    assert!(rig.everything() == before, "something has changed");
}

/// All of a good backup, and then the client goes away before it says that this is the end.
#[test]
fn a_body_that_breaks_off_is_not_even_looked_at() {
    let rig = Rig::new();
    let server = rig.serve();
    let backup = server.post(BACKUP, b"").body;
    let before = rig.everything();
    rig.script("restage", &format!("#!/bin/sh\necho run >> {}\n", rig.file("runs").display()));
    for (path, body) in [(RESTORE, backup.as_slice()), (RESET, ALLOW.as_bytes())] {
        let mut stream = UnixStream::connect(rig.socket()).unwrap();
        stream.write_all(head(path, body.len() + 1).as_bytes()).unwrap();
        stream.write_all(body).unwrap();
        std::thread::sleep(Duration::from_millis(500));
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut said = String::new();
        let _ = stream.read_to_string(&mut said);
        assert!(said.starts_with("HTTP/1.1 400") && said.contains("the body broke off"), "{said}");
    }
    server.does_not_reboot();
    assert!(!rig.file("runs").exists(), "restage was run");
    assert!(rig.everything() == before, "something has changed");
    assert_eq!(fs::read_dir(rig.file("spool")).unwrap().count(), 0);
}

fn head(path: &str, length: usize) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n")
}

/// It has said all that it wants, and that is done.
#[test]
fn a_client_that_does_not_wait_for_the_answer_gets_what_it_asked_for() {
    let rig = Rig::new();
    let server = rig.serve();
    for half in [true, false] {
        rig.script("restage", "#!/bin/sh\nsleep 2; echo '{\"staged\":\"x\"}'\n");
        let mut stream = UnixStream::connect(rig.socket()).unwrap();
        stream.write_all(head(RESET, ALLOW.len()).as_bytes()).unwrap();
        stream.write_all(ALLOW.as_bytes()).unwrap();
        std::thread::sleep(Duration::from_millis(500));
        if half {
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            let mut said = String::new();
            stream.read_to_string(&mut said).unwrap();
            assert!(said.starts_with("HTTP/1.1 200"), "{said}");
        }
        drop(stream);
        server.reboots();
    }
}

#[test]
fn a_reset_takes_the_options_of_the_body_and_reboots_once_it_is_staged() {
    let rig = Rig::new();
    let server = rig.serve();
    let before = rig.everything();
    refused(&server.post(RESET, b"{"), 400, "EOF while parsing");
    refused(&server.post(RESET, b" "), 400, "not a JSON object");
    refused(&server.post(RESET, br#"{"seed":{}}"#), 400, "unknown field `seed`");
    refused(&server.post(RESET, b"{}"), 400, "TPM");
    refused(&server.post(RESET, b""), 400, "TPM");
    server.does_not_reboot();
    assert!(rig.everything() == before, "something has changed");
    let options = r#"{"allow_tpm_reset_failure":true,"wipe_existing_seeds":true,"seeds":{"incus":{"apply_defaults":true}}}"#;
    let id = staged(&server.post(RESET, options.as_bytes()));
    server.reboots();
    let status = server.get("/1.0/restage/status").json();
    assert_eq!(status["metadata"]["staged"][0]["id"], id);
    assert_eq!(status["metadata"]["staged"][0]["request"]["wipe_existing_seeds"], true);
    refused(&server.post(RESET, ALLOW.as_bytes()), 400, "staged already");
}

#[test]
fn a_failure_is_told_as_one() {
    let rig = Rig::new();
    let server = rig.serve();
    fs::rename(rig.system.state(), rig.system.root().join("gone")).unwrap();
    refused(&server.post(BACKUP, b""), 500, "cannot");
    rig.script("restage", "#!/bin/sh\nkill -9 $$\n");
    refused(&server.get("/1.0/restage/status"), 500, "restage was killed");
    // The first half of a backup is no backup.
    rig.script("restage", "#!/bin/sh\nprintf half; exit 1\n");
    let half = server.post(BACKUP, b"");
    assert_ne!(half.curl, Some(0), "{}", half.text());
}

#[test]
fn what_is_not_there_is_answered_as_incusos_does() {
    let rig = Rig::new();
    let server = rig.serve();
    refused(&server.get("/1.0/services/ceph"), 404, "not found");
    refused(&server.get("/1.0"), 404, "not found");
    refused(&server.get(BACKUP), 501, "not implemented");
    refused(&server.post(&format!("{RESET}?a=b"), b"{}"), 400, "unknown parameter `a`");
    // Several on one connection.
    let mut stream = UnixStream::connect(rig.socket()).unwrap();
    stream.write_all("GET /1.0 HTTP/1.1\r\nHost: x\r\n\r\n".repeat(2).as_bytes()).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).unwrap();
    assert_eq!(said.matches("HTTP/1.1 404").count(), 2, "{said}");
}

#[test]
fn the_socket_is_for_root_and_the_group_of_the_profile() {
    let rig = Rig::new();
    let server = rig.serve();
    let found = fs::metadata(rig.socket()).unwrap();
    assert_eq!((found.mode() & 0o777, found.uid()), (0o600, 0));
    drop(server);
    // The socket of one that is gone is no hindrance.
    rig.set_api(&json!({ "socket": rig.socket(), "group": "daemon" }));
    let server = rig.serve();
    let found = fs::metadata(rig.socket()).unwrap();
    assert_eq!((found.mode() & 0o777, found.uid(), found.gid()), (0o660, 0, 1));
    let second = command(&rig).stderr(Stdio::piped()).output().unwrap();
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success() && said.contains("another one listens there"), "{said}");
    drop(server);
    // Whoever is in the group gets to the socket that is made.
    let below = rig.file("made/for/api.socket");
    rig.set_api(&json!({ "socket": below, "group": "daemon" }));
    let mut child = command(&rig).spawn().unwrap();
    assert!(rig::soon(|| UnixStream::connect(&below).is_ok()), "it does not listen");
    let found = fs::metadata(below.parent().unwrap()).unwrap();
    assert_eq!((found.mode() & 0o777, found.uid(), found.gid()), (0o750, 0, 1));
    child.kill().unwrap();
    child.wait().unwrap();
    // What is no socket stays.
    fs::write(rig.file("file"), "of a person").unwrap();
    rig.set_api(&json!({ "socket": rig.file("file"), "group": null }));
    fails(&mut command(&rig), "something else is there");
    assert_eq!(fs::read_to_string(rig.file("file")).unwrap(), "of a person");
    rig.set_api(&json!({ "socket": "run/api.socket", "group": null }));
    fails(&mut command(&rig), "field `api.socket`: `run/api.socket` is no absolute path");
    rig.set_api(&json!({ "socket": rig.socket(), "group": "nobody-has-this" }));
    fails(&mut command(&rig), "there is no group nobody-has-this");
    rig.set_api(&json!(null));
    fails(&mut command(&rig), "has no `api`");
}

#[track_caller]
fn fails(command: &mut Command, why: &str) {
    let output = command.stderr(Stdio::piped()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains(why), "`{why}` is not in: {said}");
}

/// As systemd passes a socket on: its number is 3, and the environment says for whom.
#[test]
fn a_passed_socket_is_served_when_it_is_as_the_profile_says() {
    let rig = Rig::new();
    let listener = UnixListener::bind(rig.socket()).unwrap();
    fs::set_permissions(rig.socket(), fs::Permissions::from_mode(0o666)).unwrap();
    fails(&mut rig.activated(&listener), "with mode 666, and has to be root's alone");
    fs::set_permissions(rig.socket(), fs::Permissions::from_mode(0o600)).unwrap();
    let server = Server::start(&rig, rig.activated(&listener));
    refused(&server.get("/1.0/services/iscsi"), 404, "not found");
    drop(server);
    // Narrower than the profile says is served, with a word.
    rig.set_api(&json!({ "socket": rig.socket(), "group": "daemon" }));
    let mut child = rig.activated(&listener).stderr(Stdio::piped()).spawn().unwrap();
    assert!(rig::soon(|| answers(&rig)), "it does not answer");
    child.kill().unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("group daemon, which the profile names, cannot connect"), "{said}");
    rig.set_api(&json!({ "socket": "/run/elsewhere.socket", "group": null }));
    fails(&mut rig.activated(&listener), "not the profile's `api.socket`");
}

fn answers(rig: &Rig) -> bool {
    let mut stream = UnixStream::connect(rig.socket()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    stream.write_all(b"GET /1.0 HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    stream.read(&mut [0]).is_ok_and(|count| count == 1)
}

/// As with `Accept=yes` in a socket unit.
#[test]
fn a_connection_is_no_socket_to_listen_on() {
    let rig = Rig::new();
    let listener = UnixListener::bind(rig.socket()).unwrap();
    fs::set_permissions(rig.socket(), fs::Permissions::from_mode(0o600)).unwrap();
    let _client = UnixStream::connect(rig.socket()).unwrap();
    let (connection, _) = listener.accept().unwrap();
    fails(&mut rig.activated(&connection), "has to have Accept=no");
}

/// Nobody takes the socket of another one away.
#[test]
fn of_those_that_are_started_at_once_one_serves() {
    for _ in 0..10 {
        let rig = Rig::new();
        // Of one that was killed.
        drop(UnixListener::bind(rig.socket()).unwrap());
        let start = || command(&rig).stderr(Stdio::piped()).spawn().unwrap();
        let mut started: Vec<_> = (0..4).map(|_| start()).collect();
        let ended = |started: &mut Vec<std::process::Child>| {
            started
                .iter_mut()
                .map(|child| usize::from(child.try_wait().unwrap().is_none()))
                .sum::<usize>()
                == 1
        };
        assert!(rig::soon(|| ended(&mut started)), "not one of four is at work");
        assert!(UnixStream::connect(rig.socket()).is_ok(), "and its socket is gone");
        for child in &mut started {
            let _ = child.kill();
            child.wait().unwrap();
        }
    }
}

/// There is a limit to how many are served at once.
#[test]
fn more_connections_than_are_served_wait() {
    let rig = Rig::new();
    let server = rig.serve();
    let ask = || {
        let mut stream = UnixStream::connect(rig.socket()).unwrap();
        stream.write_all(b"GET /1.0 HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
        stream
    };
    let mut silent: Vec<_> = (0..32).map(|_| UnixStream::connect(rig.socket()).unwrap()).collect();
    let mut late = ask();
    let mut byte = [0];
    let waits = late.read(&mut byte).unwrap_err().kind();
    assert_eq!(waits, std::io::ErrorKind::WouldBlock, "all 33 are served");
    silent.pop();
    assert_eq!(late.read(&mut byte).unwrap(), 1, "one has gone, and nobody is next");
    drop(server);
}
