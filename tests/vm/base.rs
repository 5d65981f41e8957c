//! What every scenario starts from: one disk that was booted for the first time
//! and shut down in order, its TPM, the firmware's variables, and requests that
//! the system on it staged. Made once for an image and kept in the cache.

use crate::bench::{Bench, Boot};
use crate::command::run;
use crate::disk::Access;
use crate::esp::Files;
use crate::failure::{Doing, Failure, Outcome};
use crate::guest::Facts;
use crate::lab::Lab;
use crate::machine::Machine;
use crate::request::Staged;
use crate::seeds::{self, Seeds};
use crate::tpm;
use crate::wire::from_base64;
use rustix::fs::{FlockOperation, flock};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Changes when what is done below changes.
const RECIPE: &str = "4";
/// Requests grow old (the profile's limit is a week), and so does the base.
const KEPT: Duration = Duration::from_secs(3 * 24 * 3600);

/// The contract's own example.
pub const EXAMPLE: &str = r#"{"allow_tpm_reset_failure":true,"wipe_existing_seeds":true,"seeds":{"incus":{"apply_defaults":true}}}"#;

/// What is staged in the base's first boot: its name, and `-d`.
const REQUESTS: [(&str, &str); 3] =
    [("default", "{}"), ("allow", r#"{"allow_tpm_reset_failure":true}"#), ("example", EXAMPLE)];

/// In the seeds of every base: what a wipe must leave no byte of.
pub const SECRET: &str = "restage-test-secret-4f1d9c2a7be0";

#[derive(Debug)]
pub struct Base {
    pub dir: PathBuf,
    disk: PathBuf,
    pub vars: PathBuf,
    pub tpm: PathBuf,
    /// Of the system as it was shut down.
    pub facts: Facts,
    /// What was on the seed partition at the first boot.
    pub seeds: Seeds,
    requests: BTreeMap<String, Staged>,
    /// A backup of its state.
    backup: Option<Vec<u8>>,
    /// Why there are none.
    requests_failed: Option<String>,
}

impl Base {
    /// A request that the base's own system staged.
    pub fn request(&self, name: &str) -> Outcome<Staged> {
        self.requests.get(name).cloned().ok_or_else(|| {
            let why = self.requests_failed.as_deref().unwrap_or("no such request");
            Failure::new(format!("the base has no request `{name}`: {why}"))
        })
    }

    /// The backup that the base's own system made.
    pub fn backup(&self) -> Outcome<Vec<u8>> {
        self.backup.clone().ok_or_else(|| {
            let why = self.requests_failed.as_deref().unwrap_or("none was made");
            Failure::new(format!("the base has no backup: {why}"))
        })
    }

    /// A new disk that begins as a copy of the base's.
    pub fn overlay(&self, path: &Path) -> Outcome {
        let (base, path) = (self.disk.display().to_string(), path.display().to_string());
        run("qemu-img", &["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", &base, &path])
            .map(drop)
    }

    /// The base's own disk, for comparing.
    pub fn open_disk(&self) -> Outcome<crate::disk::Disk> {
        crate::disk::Disk::open(&self.disk, Access::Read)
    }
}

/// Takes the base from the cache, or makes it. Two harnesses take turns.
pub fn prepare(lab: &Lab, tell: &dyn Fn(&str)) -> Outcome<Base> {
    let lock = File::create(lab.cache.join("lock")).doing("opening the cache's lock")?;
    flock(&lock, FlockOperation::LockExclusive).doing("locking the cache")?;
    let key = key(lab)?;
    let dir = lab.cache.join(format!("base-{key}"));
    if !dir.exists() || older(&dir) {
        forget_others(lab)?;
        tell("first boot of the base disk (kept for later runs)");
        let new = lab.cache.join("base.new");
        make(lab, &new)?;
        fs::rename(&new, &dir).doing("keeping the base")?;
    }
    load(&dir)
}

/// Of the image's content and of what is done with it.
fn key(lab: &Lab) -> Outcome<String> {
    let about = fs::metadata(&lab.image).doing("looking at the image")?;
    let stamp = format!("{} {:?} {}", about.len(), about.modified()?, lab.image.display());
    let memo = lab.cache.join("image-hash");
    let known = fs::read_to_string(&memo).unwrap_or_default();
    let hash = match known.split_once('\n') {
        Some((of, hash)) if of == stamp => hash.to_owned(),
        _ => {
            // Through tar, which passes over the holes of a sparse file.
            let line = "tar --sparse --mtime=@0 -C \"$1\" -cf - \"$2\" | sha256sum";
            let dir = lab.image.parent().doing("the image's directory")?;
            let name = lab.image.file_name().doing("the image's name")?;
            let args = ["-c".as_ref(), line.as_ref(), "sh".as_ref(), dir.as_os_str(), name];
            let said = run("sh", &args)?;
            let hash: String = said.chars().take(16).collect();
            fs::write(&memo, format!("{stamp}\n{hash}")).doing("remembering the image's hash")?;
            hash
        }
    };
    Ok(format!("{hash}-{RECIPE}"))
}

fn older(dir: &Path) -> bool {
    let made = fs::metadata(dir).and_then(|about| about.modified());
    let age = made.ok().and_then(|made| SystemTime::now().duration_since(made).ok());
    age.is_some_and(|age| age > KEPT)
}

fn forget_others(lab: &Lab) -> Outcome {
    for entry in fs::read_dir(&lab.cache).doing("listing the cache")? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("base") {
            fs::remove_dir_all(entry.path()).doing("removing an old base")?;
        }
    }
    Ok(())
}

/// A machine with the image as its disk and everything else new.
pub fn factory_new(lab: &Lab, dir: &Path) -> Outcome<Machine> {
    let machine = Machine::at(dir)?;
    let (image, disk) = (lab.image.display().to_string(), machine.disk.display().to_string());
    // A copy: the image may be rebuilt while machines run on it.
    run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &image, &disk])
        .doing("copying the image")?;
    fs::copy(&lab.ovmf_vars, &machine.vars).doing("copying the firmware's variables")?;
    tpm::make(&machine.tpm)?;
    Ok(machine)
}

/// The seeds of every base: the image's own, and one that holds a secret.
fn with_secret(mut seeds: Seeds) -> Seeds {
    let extra = format!("{{\"note\":\"{SECRET}\"}}");
    seeds.insert("operations-center.yaml".to_owned(), extra.into_bytes());
    seeds
}

fn make(lab: &Lab, dir: &Path) -> Outcome {
    let machine = factory_new(lab, dir)?;
    let disk = machine.open_disk(Access::Write)?;
    let (image_seeds, _) = seeds::read(&disk)?;
    seeds::write(&disk, &with_secret(image_seeds))?;
    disk.close()?;
    let mut bench = Bench::bare(lab, "base", machine);
    let made = first_boot(&mut bench);
    if let Err(cause) = made {
        bench.pull_plug();
        crate::evidence::keep(&mut bench, "base", &cause.to_string());
        return Err(cause).doing("the base's first boot");
    }
    Ok(())
}

fn first_boot(bench: &mut Bench<'_>) -> Outcome {
    bench.power_on()?;
    let facts = bench.booted(Boot::First)?;
    if facts.luks_root.is_empty() || facts.key_root.is_empty() || facts.running != "running" {
        return Err(Failure::new(format!("not the system that was expected: {facts:?}")));
    }
    // The binary may be what does not work: then only the scenarios that need
    // its requests fail.
    if let Err(cause) = stage_requests(bench) {
        fs::write(bench.machine.dir.join("requests-failed"), cause.to_string())?;
    }
    bench.run("rm -rf /boot/restage && sync")?;
    bench.power_off()
}

fn stage_requests(bench: &mut Bench<'_>) -> Outcome {
    for (name, options) in REQUESTS {
        bench.run(&format!("restage factory-reset --force -d '{options}'"))?;
        let status = bench.status()?;
        let staged = status.staged();
        let id = staged.first().doing("looking for the staged request")?;
        let dir = bench.machine.dir.join("requests").join(name);
        fs::create_dir_all(&dir).doing("keeping a request")?;
        fs::write(dir.join("id"), id)?;
        let listed = bench.run("cd /boot/restage && ls")?;
        let stem = crate::request::stem(id);
        for file in listed.lines().filter(|file| file.starts_with(&stem)) {
            let text = bench.run(&format!("base64 /boot/restage/{file}"))?;
            fs::write(dir.join(file), from_base64(&text)?)?;
        }
        bench.run("restage cancel")?;
    }
    let backup = bench.run("restage backup - | base64 -w0")?;
    fs::write(bench.machine.dir.join("backup"), from_base64(&backup)?)?;
    Ok(())
}

fn load(dir: &Path) -> Outcome<Base> {
    let mut requests = BTreeMap::new();
    for (name, _) in REQUESTS {
        let from = dir.join("requests").join(name);
        let Ok(id) = fs::read_to_string(from.join("id")) else {
            continue;
        };
        let mut files = Files::new();
        for entry in fs::read_dir(&from)? {
            let entry = entry?;
            let file = entry.file_name().to_string_lossy().into_owned();
            if file != "id" {
                files.insert(file, fs::read(entry.path())?);
            }
        }
        requests.insert(name.to_owned(), Staged { id, files });
    }
    let facts = fs::read_to_string(dir.join("facts")).doing("reading the base's facts")?;
    let disk = dir.join("disk.qcow2");
    let (seeds, _) = {
        let open = crate::disk::Disk::open(&disk, Access::Read)?;
        let seeds = seeds::read(&open)?;
        open.close()?;
        seeds
    };
    Ok(Base {
        dir: dir.to_owned(),
        disk,
        vars: dir.join("vars.fd"),
        tpm: dir.join("tpm"),
        facts: Facts::from_lines(&facts),
        seeds,
        requests,
        backup: fs::read(dir.join("backup")).ok(),
        requests_failed: fs::read_to_string(dir.join("requests-failed")).ok(),
    })
}
