//! A process gives up all that it could do to a system: no new privileges, limits, Landlock, and a
//! filter of system calls. What has been taken over in there has two pipes, and may end.
//! Side: both. Works on the calling process, for good.

use std::collections::BTreeMap;
use std::env::consts::ARCH;
use std::fs::OpenOptions;
use std::io::{self, Read, Write};

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr,
    RulesetCreatedAttr, Scope,
};
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit,
};
use rustix::stdio::{stdin, stdout};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, apply_filter,
};

use crate::format::archive::Limits;

/// The program itself, its buffers, an entry with its attributes.
const OWN_BYTES: u64 = 256 << 20;
/// What is kept of an entry: its name, twice.
const ENTRY_BYTES: u64 = 1 << 10;
/// The newest that the crate knows; an older kernel enforces as much as it has.
const LANDLOCK: ABI = ABI::V6;
const PROT_EXEC: u64 = 4;
const MAP_ANONYMOUS: u64 = 0x20;

/// Standard input, without a lock, a buffer, or a look at what it is.
pub(super) struct Input;

impl Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(stdin(), buffer)?)
    }
}

/// Standard output, likewise.
pub(super) struct Output;

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::io::write(stdout(), bytes)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Gives everything up. There is no way back.
pub(super) fn enter(limits: &Limits) -> io::Result<()> {
    // When memory runs out, nobody else has to go for it. Not every system lets it say so.
    let _ = OpenOptions::new()
        .write(true)
        .open("/proc/self/oom_score_adj")
        .and_then(|mut file| file.write_all(b"1000"));
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    let memory = OWN_BYTES.saturating_add(limits.files.saturating_mul(ENTRY_BYTES));
    for (resource, most) in [
        (Resource::As, memory),
        (Resource::Core, 0),
        (Resource::Fsize, 0),
        (Resource::Nproc, 0),
        (Resource::Memlock, 0),
    ] {
        // A limit that is lower already stays: to raise it is a right of its own.
        let most = getrlimit(resource).maximum.map_or(most, |there| there.min(most));
        setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })?;
    }
    // The filter alone suffices, so a kernel without Landlock, or one where it is used up, is no reason
    // to refuse.
    let _ = confine();
    filter()
}

/// No file, no network, no signal to anybody: what the kernel has of that.
pub(super) fn confine() -> io::Result<()> {
    Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(LANDLOCK))
        .and_then(|rules| rules.handle_access(AccessNet::from_all(LANDLOCK)))
        .and_then(|rules| rules.scope(Scope::from_all(LANDLOCK)))
        .and_then(Ruleset::create)
        .and_then(|rules| rules.no_new_privs(true).restrict_self())
        .map(|_| ())
        .map_err(io::Error::other)
}

/// Whatever is not listed ends the process.
fn filter() -> io::Result<()> {
    let program = || -> Result<BpfProgram, BackendError> {
        let (otherwise, listed) = (SeccompAction::KillProcess, SeccompAction::Allow);
        SeccompFilter::new(allowed()?, otherwise, listed, ARCH.try_into()?)?.try_into()
    };
    apply_filter(&program().map_err(io::Error::other)?).map_err(io::Error::other)
}

/// System calls, and on which terms.
fn allowed() -> Result<BTreeMap<i64, Vec<SeccompRule>>, BackendError> {
    let is =
        |argument, op, value| SeccompCondition::new(argument, SeccompCmpArgLen::Qword, op, value);
    let when = |terms| Ok(vec![SeccompRule::new(terms)?]);
    let any = Vec::new;
    Ok(BTreeMap::from([
        (libc::SYS_read, when(vec![is(0, SeccompCmpOp::Eq, 0)?])?),
        (libc::SYS_write, when(vec![is(0, SeccompCmpOp::Eq, 1)?])?),
        // Memory that is neither a program nor a file.
        (
            libc::SYS_mmap,
            when(vec![
                is(2, SeccompCmpOp::MaskedEq(PROT_EXEC), 0)?,
                is(3, SeccompCmpOp::MaskedEq(MAP_ANONYMOUS), MAP_ANONYMOUS)?,
            ])?,
        ),
        (libc::SYS_mremap, any()),
        (libc::SYS_munmap, any()),
        (libc::SYS_madvise, any()),
        (libc::SYS_brk, any()),
        // Where a table of hashes begins.
        (libc::SYS_getrandom, any()),
        (libc::SYS_futex, any()),
        // The end.
        (libc::SYS_sigaltstack, any()),
        (libc::SYS_rt_sigreturn, any()),
        (libc::SYS_exit, any()),
        (libc::SYS_exit_group, any()),
    ]))
}
