//! The hunt for secrets: every byte of a machine that is off, and what a running one shows, searched for
//! everything that is secret in a scenario, in whatever form it may have been written.

use crate::bench::Bench;
use crate::command::run;
use crate::disk::{Access, Disk};
use crate::failure::{Doing, Outcome};
use crate::wire::to_base64;
use serde_json::Value;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// So much is read at once.
const BLOCK: u64 = 8 << 20;
/// By so many bytes a place is looked up where one of them may begin.
const INDEX_BYTES: usize = 4;
/// A shorter one is found by chance, and is none.
const MIN_BYTES: usize = 12;

/// One form of one secret.
#[derive(Debug)]
struct Form {
    what: String,
    bytes: Vec<u8>,
}

/// What is looked for.
#[derive(Debug, Default)]
pub struct Hunt {
    forms: Vec<Form>,
    /// Forms by what they begin with.
    index: HashMap<[u8; INDEX_BYTES], Vec<usize>>,
    /// What they have in common: the first two bytes, one bit for each.
    first: Vec<bool>,
}

impl Hunt {
    /// Adds a secret: as it is, in hexadecimal digits, as UTF-16, and within base64 of anything.
    pub fn add(&mut self, what: &str, secret: &[u8]) -> Outcome {
        if secret.len() < MIN_BYTES {
            return Err(crate::failure::Failure::new(format!("{what} is too short to look for")));
        }
        let mut hex = String::new();
        for byte in secret {
            // Writing to a String cannot fail.
            let _ = write!(hex, "{byte:02x}");
        }
        let wide = secret.iter().flat_map(|byte| [*byte, 0]).collect();
        self.form(what, "as it is", secret.to_vec());
        self.form(what, "in hexadecimal digits", hex.clone().into_bytes());
        self.form(what, "in hexadecimal digits", hex.to_uppercase().into_bytes());
        self.form(what, "in UTF-16", wide);
        for before in 0..3 {
            // The digits that nothing but the secret itself decides.
            let shifted = [&vec![0; before], secret].concat();
            let whole = shifted.len() - shifted.len() % 3;
            let digits = to_base64(shifted.get(..whole).unwrap_or_default());
            let skip = [0, 2, 3][before];
            let inner = digits.get(skip..).unwrap_or_default();
            self.form(what, "in base64", inner.as_bytes().to_vec());
        }
        Ok(())
    }

    fn form(&mut self, what: &str, how: &str, bytes: Vec<u8>) {
        let Some(begin) = bytes.first_chunk::<INDEX_BYTES>() else { return };
        self.first.resize(1 << 16, false);
        if let Some(bit) = self.first.get_mut(usize::from(u16::from_le_bytes([begin[0], begin[1]])))
        {
            *bit = true;
        }
        self.index.entry(*begin).or_default().push(self.forms.len());
        self.forms.push(Form { what: format!("{what} {how}"), bytes });
    }

    /// The longest form, less one byte: so much of two blocks belongs together.
    fn overlap(&self) -> usize {
        self.forms.iter().map(|form| form.bytes.len()).max().unwrap_or(1) - 1
    }

    /// What is in these bytes, and where it begins.
    pub fn in_bytes(&self, bytes: &[u8]) -> Vec<(&str, u64)> {
        let mut found = Vec::new();
        for (at, begin) in bytes.windows(INDEX_BYTES).enumerate() {
            let pair = usize::from(u16::from_le_bytes([begin[0], begin[1]]));
            if !self.first.get(pair).copied().unwrap_or_default() {
                continue;
            }
            let Some(begin) = begin.first_chunk::<INDEX_BYTES>() else { continue };
            for index in self.index.get(begin).into_iter().flatten() {
                let Some(form) = self.forms.get(*index) else { continue };
                if bytes.get(at..).unwrap_or_default().starts_with(&form.bytes) {
                    found.push((form.what.as_str(), at as u64));
                }
            }
        }
        found
    }

    /// What is on a disk, and where it begins: all of it that holds data.
    pub fn on_disk(&self, path: &Path) -> Outcome<Vec<(&str, u64)>> {
        let disk = Disk::open(path, Access::Read)?;
        let mut found = Vec::new();
        for extent in data(path)? {
            let mut at = extent.start;
            while at < extent.end {
                // What begins here may end in the next block, or in the next extent.
                let count = (BLOCK + self.overlap() as u64).min(disk.size() - at);
                let bytes = disk.read(at, count)?;
                let begun = self.in_bytes(&bytes).into_iter();
                let step = BLOCK.min(extent.end - at);
                let here = begun.filter(|(_, within)| *within < step);
                found.extend(here.map(|(what, within)| (what, at + within)));
                at += step;
            }
        }
        disk.close()?;
        Ok(found)
    }
}

/// Where a disk holds more than zeros.
fn data(path: &Path) -> Outcome<Vec<Range<u64>>> {
    let path = path.display().to_string();
    let said = run("qemu-img", &["map", "--output=json", &path])?;
    let extents: Vec<Value> = serde_json::from_str(&said).doing("reading what qemu-img said")?;
    let used = extents.iter().filter(|extent| extent["data"] == true && extent["zero"] == false);
    let range = |extent: &Value| {
        let number = |name: &str| extent[name].as_u64();
        Some(number("start")?..number("start")? + number("length")?)
    };
    Ok(used.filter_map(range).collect())
}

/// The machine is off: no secret is on its disk but within `allowed`, nor in its TPM, in the variables
/// of its firmware, or in what it has said. Then one of them is planted where files are no more, and
/// must be found there: else this has proved nothing.
pub fn outside(bench: &mut Bench<'_>, hunt: &Hunt, allowed: &[Range<u64>]) -> Outcome {
    let disk = bench.machine.disk.clone();
    let is_elsewhere = |at: u64| !allowed.iter().any(|range| range.contains(&at));
    let found = hunt.on_disk(&disk)?;
    for range in allowed {
        let is_there = found.iter().any(|(_, at)| range.contains(at));
        bench.check(&format!("a secret is at {range:?}, where it belongs"), is_there)?;
    }
    let elsewhere: Vec<_> = found.into_iter().filter(|(_, at)| is_elsewhere(*at)).collect();
    bench.equal("secrets on the disk", elsewhere, vec![])?;
    for other in bench.machine.others.clone() {
        let what = format!("secrets on {}", other.display());
        bench.equal(&what, hunt.on_disk(&other)?, vec![])?;
    }
    let logs = ["serial.log", "qemu.log"].map(|name| bench.machine.dir.join(name));
    let mut files = vec![bench.machine.vars.clone()];
    files.extend(logs);
    files.extend(files_in(&bench.machine.tpm)?);
    for file in files {
        let bytes = std::fs::read(&file).doing("reading what the machine has left")?;
        bench.equal(&format!("secrets in {}", file.display()), hunt.in_bytes(&bytes), vec![])?;
    }
    plant(bench, hunt, &disk)
}

fn files_in(directory: &Path) -> Outcome<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).doing("listing a directory")? {
        let path = entry?.path();
        if path.is_file() {
            files.push(path);
        }
    }
    Ok(files)
}

/// A file on the ESP that is removed, and not overwritten; and the end of the seed partition.
fn plant(bench: &mut Bench<'_>, hunt: &Hunt, disk: &Path) -> Outcome {
    let first = hunt.forms.first().doing("something to look for")?;
    bench.on_esp(|esp| esp.write("EFI/planted", &first.bytes))?;
    bench.on_esp(|esp| esp.remove("EFI/planted"))?;
    let opened = Disk::open(disk, Access::Write)?;
    let (esp, seeds) = (opened.part("esp")?, opened.part(crate::seeds::PARTITION)?);
    let last = seeds.start + seeds.length - 512;
    opened.write(last, &first.bytes)?;
    opened.close()?;
    let found = hunt.on_disk(disk)?;
    let within = |range: Range<u64>| found.iter().any(|(_, at)| range.contains(at));
    bench.check("what is in free clusters is found", within(esp.start..esp.start + esp.length))?;
    bench.check("what is behind the seeds is found", within(last..last + 512))?;
    // As before, for what comes next.
    let opened = Disk::open(disk, Access::Write)?;
    for (_, at) in found
        .iter()
        .filter(|(_, at)| *at == last || (esp.start..esp.start + esp.length).contains(at))
    {
        opened.zero(*at, first.bytes.len() as u64)?;
    }
    opened.close()
}

/// The system is up: nothing secret is in its memory file systems (what the initrd has left in /run
/// among it), in restage's reports and logs or in others, in any journal, or in the arguments and the
/// environment of any process.
/// `texts` must not be known to whoever asks, and so they travel otherwise.
pub fn inside(bench: &mut Bench<'_>, texts: &[&str]) -> Outcome {
    let turned = texts.iter().map(|text| turn(text)).collect::<Vec<_>>().join("\n");
    // In the encrypted root, which is not searched.
    bench.run(&format!(
        "umask 077; tr 'A-Za-z' 'N-ZA-Mn-za-m' >/root/.hunt <<'HUNT'\n{turned}\nHUNT"
    ))?;
    let found = bench.run(SEARCH)?;
    bench.equal("secrets in the running system", found.trim(), "")?;
    // Planted, to be found: in a file, in the journal, and in a process.
    bench.run(
        "umask 077; head -n1 /root/.hunt >/run/hunt-planted; logger -t hunt -f /run/hunt-planted; \
         HUNTED=$(cat /run/hunt-planted) sleep 100 >/dev/null 2>&1 & echo $! >/root/.hunted; \
         sleep 2; journalctl --sync",
    )?;
    let found = bench.run(SEARCH)?;
    bench.tells("what was planted", &found, &["/run/hunt-planted", "journal: 1", "/environ"])?;
    bench.run("kill $(cat /root/.hunted); rm /run/hunt-planted /root/.hunt /root/.hunted").map(drop)
}

const SEARCH: &str = "\
grep -rlaFf /root/.hunt /run /tmp /dev/shm --exclude-dir=journal -D skip 2>/dev/null; \
grep -rlaFf /root/.hunt /var/lib/restage /var/log --exclude-dir=journal -D skip 2>/dev/null; \
count=$(journalctl -o export | grep -acFf /root/.hunt); \
test \"$count\" = 0 || echo \"journal: $count\"; \
grep -laFf /root/.hunt /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null; true";

/// Letters moved by half of the alphabet; done twice, they are what they were.
fn turn(text: &str) -> String {
    let moved = |byte: u8, from: u8| char::from((byte - from + 13) % 26 + from);
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' => moved(byte, b'a'),
            b'A'..=b'Z' => moved(byte, b'A'),
            _ => char::from(byte),
        })
        .collect()
}
