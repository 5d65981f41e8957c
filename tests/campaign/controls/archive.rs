//! An archive reader that stops at the end of the tar, beside ours: each damage to an archive must be
//! refused, or change nothing that is read.

use std::collections::BTreeMap;
use std::io::{Cursor, Read};

use flate2::bufread::GzDecoder;
use restage::format::archive::{self, Entry, Layout, Limits, Writer};

type Files = BTreeMap<String, Vec<u8>>;
type Reader = dyn Fn(&[u8]) -> Result<Files, String>;
const BLOCK: usize = 512;

fn good() -> Vec<u8> {
    let mut writer = Writer::new(Vec::new(), Layout::Flat);
    for (name, text) in [("state.txt", "#Version: 8\n"), ("zpool.local.key", "a key of 32 bytes")] {
        let entry = Entry::file(name, text.len() as u64, 0);
        writer.append(&entry, &mut text.as_bytes()).unwrap();
    }
    writer.finish().unwrap()
}

/// restage's.
fn ours(bytes: &[u8]) -> Result<Files, String> {
    let mut files = Files::new();
    let limits = Limits { files: 10, bytes: 1 << 20 };
    archive::read(&mut Cursor::new(bytes), Layout::Flat, limits, &mut |entry, content| {
        let mut file = Vec::new();
        content.read_to_end(&mut file)?;
        files.insert(entry.name.clone(), file);
        Ok(())
    })
    .map_err(|error| error.to_string())?;
    Ok(files)
}

/// One that is content when the tar has ended: what gzip still has to say is never heard.
fn undrained(bytes: &[u8]) -> Result<Files, String> {
    let mut gzip = GzDecoder::new(Cursor::new(bytes));
    let mut files = Files::new();
    loop {
        let mut header = [0; BLOCK];
        gzip.read_exact(&mut header).map_err(|error| error.to_string())?;
        if header == [0; BLOCK] {
            return Ok(files);
        }
        let sum: u64 =
            header[..148].iter().chain(&header[156..]).map(|byte| u64::from(*byte)).sum();
        let number = |field: &[u8]| {
            let text = String::from_utf8_lossy(field).into_owned();
            u64::from_str_radix(text.trim_matches(['\0', ' ']), 8).map_err(|e| e.to_string())
        };
        if number(&header[148..156])? != sum + 8 * u64::from(b' ') {
            return Err("checksum".to_owned());
        }
        let length = usize::try_from(number(&header[124..136])?).unwrap();
        let mut file = vec![0; length.min(1 << 20).next_multiple_of(BLOCK)];
        gzip.read_exact(&mut file).map_err(|error| error.to_string())?;
        file.truncate(length);
        let name = header[..100].split(|byte| *byte == 0).next().unwrap_or_default();
        files.insert(String::from_utf8_lossy(name).into_owned(), file);
    }
}

/// Every damage: a bit changed anywhere, the end cut off anywhere, something after it.
fn damaged() -> Vec<(String, Vec<u8>)> {
    let good = good();
    let mut all = Vec::new();
    for at in 0..good.len() {
        for bit in 0..8 {
            let mut bytes = good.clone();
            bytes[at] ^= 1 << bit;
            all.push((format!("bit {bit} of byte {at} of {}", good.len()), bytes));
        }
        all.push((format!("cut off after {at} bytes"), good[..at].to_vec()));
    }
    all.push(("a second member".to_owned(), good.repeat(2)));
    all.push(("a byte after the end".to_owned(), [good.as_slice(), b"x"].concat()));
    all
}

/// Whether a damage may change nothing: a bit of the gzip header, such as the time, or one that another
/// way of compressing the same content has. Never one in the checksum and the length at the end.
fn may_be_nothing(what: &str) -> bool {
    let byte = what.split(" of byte ").nth(1).and_then(|rest| rest.split(' ').next());
    let trailer = good().len() - 8;
    byte.and_then(|byte| byte.parse::<usize>().ok()).is_some_and(|byte| byte < trailer)
}

/// What a reader accepts although it is damaged.
fn accepted(reader: &Reader) -> Vec<String> {
    let whole = reader(&good()).unwrap();
    let mut accepted = Vec::new();
    for (what, bytes) in damaged() {
        match reader(&bytes) {
            Err(_) => {}
            Ok(files) if files == whole && may_be_nothing(&what) => {}
            Ok(_) => accepted.push(what),
        }
    }
    accepted
}

/// Whether the check tells the two apart.
pub fn compare() -> Result<String, String> {
    let (of_ours, of_undrained) = (accepted(&ours), accepted(&undrained));
    let all = damaged().len();
    if let Some(what) = of_ours.first() {
        return Err(format!("restage's own reader accepts {} damages: {what}", of_ours.len()));
    }
    let in_trailer = of_undrained.iter().rfind(|what| what.contains("of byte"));
    match in_trailer {
        Some(what) => Ok(format!(
            "an undrained gzip accepts {} of {all} damages, and restage none: {what}",
            of_undrained.len()
        )),
        None => Err("an undrained gzip accepts no damage".to_owned()),
    }
}
