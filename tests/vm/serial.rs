//! The console: what the guest printed on its first serial port, as text
//! without colours, searched from a mark on.

use crate::failure::{Doing, Outcome};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// A place in the console's text: what comes after it is new.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Mark(usize);

#[derive(Debug)]
pub struct Serial {
    path: PathBuf,
    read: u64,
    text: String,
    escape: Escape,
}

/// Where in a terminal control sequence the reader is; they may be cut by a
/// read anywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Escape {
    None,
    Begun,
    Within,
}

impl Serial {
    pub fn open(path: &Path) -> Self {
        Self { path: path.to_owned(), read: 0, text: String::new(), escape: Escape::None }
    }

    /// Takes in what has been printed since.
    pub fn pump(&mut self) -> Outcome {
        let Ok(mut file) = File::open(&self.path) else {
            return Ok(()); // QEMU has not made it yet
        };
        file.seek(SeekFrom::Start(self.read))?;
        let mut new = Vec::new();
        file.read_to_end(&mut new).doing("reading the serial log")?;
        self.read += new.len() as u64;
        let plain: Vec<u8> = new.into_iter().filter(|byte| self.keep(*byte)).collect();
        self.text.push_str(&String::from_utf8_lossy(&plain));
        Ok(())
    }

    fn keep(&mut self, byte: u8) -> bool {
        match (self.escape, byte) {
            (_, 0x1B) => self.escape = Escape::Begun,
            (Escape::Begun, b'[') => self.escape = Escape::Within,
            (Escape::Begun, _) | (Escape::Within, 0x40..=0x7E) => self.escape = Escape::None,
            (Escape::Within, _) | (Escape::None, b'\r' | 0) => {}
            (Escape::None, _) => return true,
        }
        false
    }

    pub fn mark(&mut self) -> Outcome<Mark> {
        self.pump()?;
        Ok(Mark(self.text.len()))
    }

    /// Everything since a mark.
    pub fn since(&self, mark: Mark) -> &str {
        self.text.get(mark.0..).unwrap_or_default()
    }

    /// The complete lines since the last call, for whoever shows them.
    pub fn lines_from(&self, seen: &mut Option<Mark>) -> Vec<String> {
        let from = seen.unwrap_or(Mark(0));
        let new = self.since(from);
        let end = new.rfind('\n').map_or(0, |at| at + 1);
        *seen = Some(Mark(from.0 + end));
        new.get(..end).unwrap_or_default().lines().map(|line| line.trim().to_owned()).collect()
    }

    /// The place after the first complete line since the mark that holds one of
    /// the texts.
    pub fn find(&self, mark: Mark, texts: &[&str]) -> Option<Mark> {
        let new = self.since(mark);
        let at = texts.iter().filter_map(|text| new.find(text)).min()?;
        let end = at + new.get(at..)?.find('\n')?;
        Some(Mark(mark.0 + end + 1))
    }
}
