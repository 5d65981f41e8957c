//! A copy of the sources, that is broken, and looked at by the programs of the tests.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::looks::{self, Look};
use crate::mutation::Mutation;

/// What a program of the tests says of a copy.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Seen,
    NotSeen,
    NotBuilt,
    /// The campaign failed, and not by what it is there for.
    NotRun,
}

impl Verdict {
    pub fn word(self) -> &'static str {
        match self {
            Self::Seen => "seen",
            Self::NotSeen => "NOT SEEN",
            Self::NotBuilt => "NOT BUILT",
            Self::NotRun => "NOT RUN",
        }
    }
}

/// The copy of the sources.
pub struct Copy {
    root: PathBuf,
}

impl Copy {
    pub fn make(from: &Path) -> Self {
        let root = from.join("target/mutations/sources");
        let _ = fs::remove_dir_all(&root);
        let listed = Command::new("git")
            .args(["ls-files", "--cached", "--others", "--exclude-standard"])
            .current_dir(from)
            .output()
            .unwrap();
        for path in String::from_utf8(listed.stdout).unwrap().lines() {
            let to = root.join(path);
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            if from.join(path).is_file() {
                fs::copy(from.join(path), &to).unwrap();
            }
        }
        // What the set-up has made is used from where it is.
        std::os::unix::fs::symlink(from.join(".cache"), root.join(".cache")).unwrap();
        Self { root }
    }

    /// Breaks it, looks until it is seen, and mends it; by which look.
    pub fn judge(&self, mutation: &Mutation) -> (Verdict, Option<Look>) {
        let path = self.root.join(mutation.file);
        let before = fs::read_to_string(&path).unwrap();
        let (at, _) = before.match_indices(&mutation.from).nth(mutation.place).unwrap();
        let after = [&before[..at], &mutation.to, &before[at + mutation.from.len()..]].concat();
        fs::write(&path, after).unwrap();
        let verdicts = looks::of(mutation).into_iter().map(|look| (self.look(&look), Some(look)));
        let not_seen = (Verdict::NotSeen, None);
        let verdict = { verdicts }.find(|(one, _)| *one != Verdict::NotSeen).unwrap_or(not_seen);
        fs::write(&path, before).unwrap();
        verdict
    }

    /// Whether a program of the tests, which is also the name of its package, sees it.
    pub fn look(&self, (program, reach): &Look) -> Verdict {
        let target = self.root.join("../target");
        let cargo = |arguments: &[&str]| {
            let mut command = Command::new("cargo");
            command.args(arguments).args(["--quiet", "--locked", "--package", program]);
            command.args(["--bin", program]);
            command.current_dir(&self.root).env("CARGO_TARGET_DIR", &target);
            command.env("RUSTFLAGS", "-Awarnings").env("CARGO_PROFILE_DEV_DEBUG", "0");
            command.stdin(Stdio::null()).stdout(Stdio::null());
            command
        };
        if !cargo(&["build"]).stderr(Stdio::inherit()).status().unwrap().success() {
            return Verdict::NotBuilt;
        }
        let mut campaign = cargo(&["run"]);
        campaign.arg("--").args(reach);
        let output = campaign.stdout(Stdio::piped()).output().unwrap();
        if output.status.success() {
            return Verdict::NotSeen;
        }
        let told = [output.stdout, output.stderr].concat();
        let told = String::from_utf8_lossy(&told).into_owned();
        let is_it = |line: &&str| line.starts_with("VIOLATION") || line.contains("panicked at");
        let Some(line) = told.lines().find(is_it) else {
            println!("{told}");
            return Verdict::NotRun;
        };
        println!("{line}");
        Verdict::Seen
    }
}
