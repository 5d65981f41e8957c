//! The binary of `scripts/build` needs nothing but a kernel: no interpreter, no shared library. And
//! the process of it that parses archives may do nothing else.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test: a panic is its verdict")]

use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use object::Endianness;
use object::elf::{DT_NEEDED, FileHeader64, PT_DYNAMIC, PT_INTERP};
use object::read::elf::{Dyn, FileHeader, ProgramHeader};

fn binary() -> String {
    std::env::var("RESTAGE_BIN").expect("RESTAGE_BIN names the static binary")
}

#[test]
fn there_is_no_interpreter_and_no_needed_library() {
    let path = binary();
    let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let header = FileHeader64::<Endianness>::parse(&*bytes).unwrap();
    let endian = header.endian().unwrap();
    let segments = header.program_headers(endian, &*bytes).unwrap();
    let mut entries = 0;
    for segment in segments {
        assert_ne!(segment.p_type(endian), PT_INTERP, "{path} has an interpreter");
        if segment.p_type(endian) == PT_DYNAMIC {
            for entry in segment.dynamic(endian, &*bytes).unwrap().unwrap_or_default() {
                entries += 1;
                assert_ne!(entry.tag32(endian), Some(DT_NEEDED), "{path} needs a shared library");
            }
        }
    }
    assert!(
        entries > 0,
        "{path}: a static-pie has a dynamic section; this looked at the wrong thing"
    );
}

#[test]
fn who_parses_archives_has_no_rights() {
    let mut reader = Command::new(binary())
        .args(["archive-reader", "flat", "10", "1000"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let about = |file: &str| std::fs::read_to_string(format!("/proc/{}/{file}", reader.id()));
    let begin = Instant::now();
    let status = loop {
        let status = about("status").unwrap();
        if status.contains("Seccomp:\t2") {
            break status;
        }
        assert!(begin.elapsed() < Duration::from_secs(60), "no filter:\n{status}");
        std::thread::sleep(Duration::from_millis(5));
    };
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    let limits = about("limits").unwrap();
    for limit in ["core file size", "file size", "processes", "locked memory"] {
        let line = limits.lines().find(|line| line.starts_with(&format!("Max {limit} "))).unwrap();
        let fields: Vec<_> = line.split_whitespace().collect();
        assert!(fields.windows(2).any(|pair| pair == ["0", "0"]), "{line}");
    }
    assert!(limits.contains("Max address space         268445696"), "{limits}");
    reader.stdin.take().unwrap().write_all(b"no archive").unwrap();
    let mut said = Vec::new();
    reader.stdout.take().unwrap().read_to_end(&mut said).unwrap();
    assert_eq!(said.first(), Some(&b'B'), "{said:?}");
    assert!(reader.wait().unwrap().success());
}

/// What `strace` sees of a restage that looks at a backup.
#[test]
fn a_backup_is_parsed_by_that_process() {
    let directory = tempfile::tempdir().unwrap();
    let (backup, trace) = (directory.path().join("backup"), directory.path().join("trace"));
    let mut file = std::fs::File::create(&backup).unwrap();
    file.write_all(b"no archive").unwrap();
    let status = Command::new("strace")
        .args([
            "-f",
            "-qqq",
            "-e",
            "signal=none",
            "-e",
            "trace=execve,seccomp,landlock_restrict_self",
            "-o",
        ])
        .arg(&trace)
        .arg(binary())
        .arg("inspect")
        .arg(&backup)
        .status()
        .expect("strace");
    assert_eq!(status.code(), Some(3));
    let trace = std::fs::read_to_string(&trace).unwrap();
    let calls: Vec<_> = trace
        .lines()
        .filter(|line| !line.contains("+++"))
        .filter_map(|line| line.split_once(' '))
        .map(|(process, call)| (process, call.trim().split('(').next().unwrap_or_default()))
        .collect();
    let [
        (parent, "execve"),
        (child, "execve"),
        (landlocked, "landlock_restrict_self"),
        (filtered, "seccomp"),
    ] = calls[..]
    else {
        panic!("{trace}");
    };
    assert!(parent != child && child == landlocked && child == filtered, "{trace}");
}
