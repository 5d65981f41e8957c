//! The one disk of the machine, served to the kernel as `/dev/nbd0` from this process's memory: every
//! request is seen in the order in which the kernel sends it, and another disk is there at once.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use restage_campaign::model::slots::Slots;

use crate::image::Image;
use crate::ioctl;

/// The device.
pub const DISK: &str = "/dev/nbd0";
/// The kernel is waited for so many times, this long each.
const ATTEMPTS: u32 = 5000;
const PAUSE: Duration = Duration::from_millis(1);

/// What is durable beside the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Beside {
    /// The seed of the TPM's owner hierarchy: another one after each clear.
    pub tpm_seed: u32,
    /// The key slots of root and swap.
    pub slots: [Slots; 2],
    /// The operation has returned, and what it has promised must be so.
    pub has_returned: bool,
}

impl Beside {
    /// Before anything.
    pub const BEFORE: Self = Self { tpm_seed: 1, slots: [Slots::BEFORE; 2], has_returned: false };
}

/// What has happened to the disk, and beside it.
#[derive(Clone)]
pub enum Entry {
    /// A write; `is_durable` when it is answered, if it has the FUA bit.
    Write { offset: usize, bytes: Arc<[u8]>, is_durable: bool },
    /// Everything written before is durable.
    Flush,
    /// What is beside the disk is now so, at once and durably.
    Beside(Beside),
}

/// What a run of an operation has done, and what was there before.
#[derive(Clone)]
pub struct Recording {
    /// The disk before.
    pub start: Image,
    /// And what was beside it.
    pub beside: Beside,
    /// What happened, in order.
    pub entries: Vec<Entry>,
}

/// A request that the disk has failed.
#[derive(Clone, Copy, Debug)]
pub struct Failed {
    command: u8,
    offset: usize,
    length: usize,
}

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let what = match self.command {
            0 => "read",
            1 => "write",
            _ => return f.write_str("a flush has failed"),
        };
        write!(f, "a {what} of {} bytes at byte {} has failed", self.length, self.offset)
    }
}

struct Inner {
    image: Image,
    beside: Beside,
    log: Option<Vec<Entry>>,
    writes: u64,
    /// Where writes may go; everywhere when there is none.
    allowed: Vec<Range<usize>>,
    stray: Option<usize>,
    /// The request that fails, counted down.
    failing: Option<usize>,
    failed: Option<Failed>,
}

/// The disk, and what is beside it.
#[derive(Clone)]
pub struct Medium(Arc<Mutex<Inner>>);

impl Medium {
    /// A disk that is not attached to anything yet.
    pub fn new(image: Image) -> Self {
        let inner = Inner {
            image,
            beside: Beside::BEFORE,
            log: None,
            writes: 0,
            allowed: Vec::new(),
            stray: None,
            failing: None,
            failed: None,
        };
        Self(Arc::new(Mutex::new(inner)))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    /// Attaches it, once and for all.
    pub fn attach(&self) -> io::Result<()> {
        let (ours, kernels) = UnixStream::pair()?;
        let device = File::options().read(true).write(true).open(DISK)?;
        ioctl::nbd_attach(&device, kernels.as_fd(), self.lock().image.len())?;
        let medium = self.clone();
        std::thread::spawn(move || {
            let why = medium.serve(ours);
            panic!("the disk's server has ended: {why:?}");
        });
        std::thread::spawn(move || {
            let why = ioctl::nbd_serve(&device);
            drop(kernels);
            panic!("the kernel has given up the disk: {why:?}");
        });
        // Until it is served it is empty, and who asks for its table then is told that there is none.
        for _ in 0..ATTEMPTS {
            if File::open(DISK)?.read(&mut [0; ioctl::SECTOR])? > 0 {
                return Ok(());
            }
            std::thread::sleep(PAUSE);
        }
        Err(io::Error::new(io::ErrorKind::TimedOut, "the kernel does not serve the disk"))
    }

    fn serve(&self, stream: UnixStream) -> io::Result<()> {
        const REQUEST: [u8; 4] = 0x2560_9513_u32.to_be_bytes();
        const EIO: u32 = 5;
        const REPLY: [u8; 4] = 0x6744_6698_u32.to_be_bytes();
        let mut replies = BufWriter::with_capacity(1 << 17, stream.try_clone()?);
        let mut requests = BufReader::with_capacity(1 << 17, stream);
        let mut reply = Vec::new();
        loop {
            let mut header = [0; 28];
            requests.read_exact(&mut header)?;
            assert_eq!(header[..4], REQUEST, "no request of the kernel");
            let (is_durable, command) = (header[5] & 1 != 0, header[7]);
            let offset = u64::from_be_bytes(header[16..24].try_into().unwrap());
            let offset = usize::try_from(offset).unwrap();
            let length = u32::from_be_bytes(header[24..].try_into().unwrap());
            let length = usize::try_from(length).unwrap();
            let fails = self.lock().fails(Failed { command, offset, length });
            reply.clear();
            reply.extend(REPLY);
            reply.extend(if fails { EIO } else { 0 }.to_be_bytes());
            reply.extend(&header[8..16]);
            match command {
                0 | 3 if fails => {}
                1 if fails => {
                    requests.read_exact(&mut vec![0; length])?;
                }
                0 => {
                    reply.resize(16 + length, 0);
                    self.lock().image.read(offset, &mut reply[16..]);
                }
                1 => {
                    let mut bytes = vec![0; length];
                    requests.read_exact(&mut bytes)?;
                    self.lock().write(offset, bytes.into(), is_durable);
                }
                3 => self.lock().push(|| Entry::Flush),
                other => panic!("the kernel asks for {other}"),
            }
            replies.write_all(&reply)?;
            // One call for as many as have come at once.
            if requests.buffer().is_empty() {
                replies.flush()?;
            }
        }
    }

    /// Another disk is there now. Nothing of the old one may be cached any more.
    pub fn load(&self, image: &Image, beside: Beside) {
        let mut inner = self.lock();
        inner.image = image.clone();
        inner.beside = beside;
        inner.log = None;
        inner.stray = None;
        inner.failing = None;
        inner.failed = None;
    }

    /// The request with this number from now on, a read, a write or a flush, fails once, and does nothing.
    pub fn fail(&self, number: usize) {
        self.lock().failing = Some(number);
    }

    /// Which one it was.
    pub fn failed(&self) -> Option<Failed> {
        self.lock().failed
    }

    /// What is on it.
    pub fn image(&self) -> Image {
        self.lock().image.clone()
    }

    /// What is beside it.
    pub fn beside(&self) -> Beside {
        self.lock().beside
    }

    /// Changes what is beside it, durably.
    pub fn change(&self, change: impl FnOnce(&mut Beside)) {
        let mut inner = self.lock();
        change(&mut inner.beside);
        let beside = inner.beside;
        inner.push(|| Entry::Beside(beside));
    }

    /// From here on everything is recorded.
    pub fn record(&self) {
        self.lock().log = Some(Vec::new());
    }

    /// Ends the recording.
    pub fn recorded(&self) -> Vec<Entry> {
        self.lock().log.take().unwrap_or_default()
    }

    /// How many writes there were.
    pub fn writes(&self) -> u64 {
        self.lock().writes
    }

    /// From here on writes may go there only.
    pub fn allow(&self, places: &[Range<usize>]) {
        self.lock().allowed = places.to_vec();
    }

    /// The first write that has gone elsewhere.
    pub fn stray(&self) -> Option<usize> {
        self.lock().stray
    }
}

impl Inner {
    fn push(&mut self, entry: impl FnOnce() -> Entry) {
        if let Some(log) = &mut self.log {
            log.push(entry());
        }
    }

    fn fails(&mut self, request: Failed) -> bool {
        let is_it = self.failing == Some(0);
        self.failing = self.failing.and_then(|number| number.checked_sub(1));
        if is_it {
            self.failed = Some(request);
        }
        is_it
    }

    fn write(&mut self, offset: usize, bytes: Arc<[u8]>, is_durable: bool) {
        let end = offset + bytes.len();
        let is_within = |place: &Range<usize>| place.start <= offset && end <= place.end;
        if !self.allowed.is_empty() && !self.allowed.iter().any(is_within) {
            self.stray.get_or_insert(offset);
        }
        self.writes += 1;
        self.image.write(offset, &bytes);
        self.push(|| Entry::Write { offset, bytes, is_durable });
    }
}

impl Recording {
    /// Writes it to a file.
    pub fn save(&self, file: &mut impl Write) -> io::Result<()> {
        self.start.save(file)?;
        let mut number = |number: usize| file.write_all(&(number as u64).to_le_bytes());
        number(self.entries.len())?;
        save_beside(self.beside, file)?;
        for entry in &self.entries {
            match entry {
                Entry::Flush => file.write_all(&[0])?,
                Entry::Beside(beside) => {
                    file.write_all(&[1])?;
                    save_beside(*beside, file)?;
                }
                Entry::Write { offset, bytes, is_durable } => {
                    file.write_all(&[2 + u8::from(*is_durable)])?;
                    file.write_all(&(*offset as u64).to_le_bytes())?;
                    file.write_all(&(bytes.len() as u64).to_le_bytes())?;
                    file.write_all(bytes)?;
                }
            }
        }
        Ok(())
    }

    /// Reads what [`Recording::save`] has written.
    pub fn load(file: &mut impl Read) -> io::Result<Self> {
        let start = Image::load(file)?;
        let count = crate::image::read_number(file)?;
        let beside = load_beside(file)?;
        let mut entries = Vec::with_capacity(count);
        for _ in 0..count {
            let mut kind = [0];
            file.read_exact(&mut kind)?;
            entries.push(match kind[0] {
                0 => Entry::Flush,
                1 => Entry::Beside(load_beside(file)?),
                kind => {
                    let offset = crate::image::read_number(file)?;
                    let mut bytes = vec![0; crate::image::read_number(file)?];
                    file.read_exact(&mut bytes)?;
                    Entry::Write { offset, bytes: bytes.into(), is_durable: kind == 3 }
                }
            });
        }
        Ok(Self { start, beside, entries })
    }
}

/// As a tuple in JSON.
pub fn save_beside(beside: Beside, file: &mut impl Write) -> io::Result<()> {
    let slots = beside.slots.map(|slots| (slots.there, slots.wiped));
    let text = serde_json::to_vec(&(beside.tpm_seed, slots, beside.has_returned))?;
    file.write_all(&(text.len() as u64).to_le_bytes())?;
    file.write_all(&text)
}

/// Reads what [`save_beside`] has written.
pub fn load_beside(file: &mut impl Read) -> io::Result<Beside> {
    let mut text = vec![0; crate::image::read_number(file)?];
    file.read_exact(&mut text)?;
    let (tpm_seed, slots, has_returned): (_, [_; 2], _) = serde_json::from_slice(&text)?;
    let slots = slots.map(|(there, wiped)| Slots { there, wiped, is_other: false });
    Ok(Beside { tpm_seed, slots, has_returned })
}
