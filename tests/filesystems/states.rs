//! What a power cut may leave of a recorded run: every prefix in order, torn at 512 bytes (but for
//! what the case says is written whole); and of what
//! is written between two flushes all subsets while they are few, else each write alone and each missing.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use crate::image::{CHUNK, Image};
use crate::ioctl::SECTOR;
use crate::medium::{Beside, Entry, Recording};

/// All subsets of so many writes are tried.
const MAX_SUBSETS: usize = 8;

/// What is left.
pub struct State<'a> {
    /// Its number among those of the recording.
    pub number: usize,
    /// The disk.
    pub image: &'a Image,
    /// And what is beside it.
    pub beside: Beside,
}

type Each<'a> = &'a mut dyn FnMut(State<'_>) -> ControlFlow<()>;
type Pending = Vec<(usize, Arc<[u8]>)>;

struct Walk<'a> {
    number: usize,
    /// What is durable for sure.
    durable: Image,
    /// What is there when nothing is lost.
    current: Image,
    pending: Pending,
    beside: Beside,
    whole: Range<usize>,
    each: Each<'a>,
}

/// Hands out every state, until told to stop. In this part of the disk blocks are written whole.
pub fn of(recording: &Recording, whole: Range<usize>, each: Each<'_>) -> ControlFlow<()> {
    let mut walk = Walk {
        number: 0,
        durable: recording.start.clone(),
        current: recording.start.clone(),
        pending: Vec::new(),
        beside: recording.beside,
        whole,
        each,
    };
    walk.hand_out(None)?;
    for entry in &recording.entries {
        match entry {
            Entry::Write { offset, bytes, is_durable } => {
                walk.write(*offset, bytes, *is_durable)?;
            }
            Entry::Flush => {
                walk.subsets()?;
                walk.pending.clear();
                walk.durable = walk.current.clone();
            }
            Entry::Beside(beside) => {
                walk.subsets()?;
                walk.beside = *beside;
                walk.subsets()?;
                walk.hand_out(None)?;
            }
        }
    }
    walk.subsets()
}

impl Walk<'_> {
    /// This one, or the one where nothing is lost.
    fn hand_out(&mut self, image: Option<&Image>) -> ControlFlow<()> {
        let number = self.number;
        self.number += 1;
        let image = image.unwrap_or(&self.current);
        (self.each)(State { number, image, beside: self.beside })
    }

    fn write(&mut self, offset: usize, bytes: &Arc<[u8]>, is_durable: bool) -> ControlFlow<()> {
        let unit = if self.whole.contains(&offset) { CHUNK } else { SECTOR };
        for (index, part) in bytes.chunks(unit).enumerate() {
            self.current.write(offset + index * unit, part);
            self.hand_out(None)?;
        }
        self.pending.push((offset, bytes.clone()));
        if is_durable {
            self.subsets()?;
            self.pending.pop();
            let end = offset + bytes.len();
            // What it covers does not come back.
            self.pending.retain(|(at, older)| *at >= end || at + older.len() <= offset);
            self.durable.write(offset, bytes);
        }
        ControlFlow::Continue(())
    }

    fn subsets(&mut self) -> ControlFlow<()> {
        let pending = std::mem::take(&mut self.pending);
        let count = pending.len();
        let mut one = |is_in: &dyn Fn(usize) -> bool| {
            let mut image = self.durable.clone();
            for (index, (offset, bytes)) in pending.iter().enumerate() {
                if is_in(index) {
                    image.write(*offset, bytes);
                }
            }
            self.hand_out(Some(&image))
        };
        if count <= MAX_SUBSETS {
            for mask in 0..1_u32 << count {
                one(&|index| mask & (1 << index) != 0)?;
            }
        } else {
            for lonely in 0..count {
                one(&|index| index == lonely)?;
                one(&|index| index != lonely)?;
            }
        }
        self.pending = pending;
        ControlFlow::Continue(())
    }
}
