//! The machine, behind the same traits as the real one.
//!
//! What a program writes is volatile until it is flushed or synced. [`World::images`] tells what may
//! be on the media when the power goes: see [`disk`] and [`files`] for what is modelled, and what not.

pub mod call;
pub mod disk;
pub mod files;
pub mod slots;
pub mod tpm;
pub mod volume;

use std::cell::RefCell;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use call::{Broken, Listing, Met, Op};
use disk::Sectors;
use files::Files;
use volume::Slots;

/// What the clock says, unless it is a wrong one.
pub const NOW: u64 = 1000;

static SCATTER: AtomicU64 = AtomicU64::new(0);

/// How many random subsets of unflushed sectors are tried at each change.
pub fn scatter() -> u64 {
    SCATTER.load(Ordering::Relaxed)
}

/// Chooses how many. Before the first run.
pub fn set_scatter(subsets: u64) {
    SCATTER.store(subsets, Ordering::Relaxed);
}

/// What a fault does to the one call that it meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fault {
    /// EIO; nothing has happened. What a failed sync should have made durable is never made so by a
    /// later one: the kernel reports such an error once.
    Error,
    /// EIO, and it has happened all the same.
    ErrorAfter,
    /// ENOSPC; nothing has happened. Only for calls that take space.
    NoSpace,
    /// Half of the bytes are written, and the call says so. Only for writes to files.
    Short,
    /// The device is gone until the next boot.
    Vanish,
    /// EROFS; nothing has happened. Only for calls that change something.
    ReadOnly,
}

impl Fault {
    /// Those that the campaign tries everywhere.
    pub const ALL: [Self; 5] =
        [Self::Error, Self::ErrorAfter, Self::NoSpace, Self::Short, Self::Vanish];
}

/// What a call does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Call {
    /// Nothing.
    Read,
    /// It changes something, and takes no space.
    Change,
    /// It writes where there may be no space.
    Write,
    /// It makes durable.
    Sync,
}

/// A device of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Device {
    /// The disk, as a whole.
    Disk,
    /// The file system of the ESP.
    Esp,
    /// The state file system.
    State,
    /// The TPM.
    Tpm,
    /// The key slots of a volume.
    Slots,
    /// The firmware's variables. It does not vanish.
    Firmware,
}

/// All that there is. Cheap to copy.
#[derive(Clone)]
pub struct World {
    /// The disk.
    pub disk: Sectors,
    /// The ESP.
    pub esp: Files,
    /// The state file system.
    pub state: Files,
    /// The seed of the TPM's owner hierarchy: another one after each clear.
    pub tpm_seed: u32,
    /// The key slots of root and swap.
    pub slots: [Slots; 2],
    /// systemd's EFI variable asks for a reset.
    pub variable: bool,
    /// The kernel command line does, at every boot.
    pub argument: bool,
    /// What the clock says.
    pub clock: u64,
    /// Calls of this run so far.
    pub calls: usize,
    /// The call that meets a fault.
    pub fault: Option<(usize, Fault)>,
    /// Whether the fault has met a call to which it applies.
    pub has_faulted: bool,
    /// The step in which it did.
    pub faulted_in: u8,
    /// The calls that have failed.
    pub met: Vec<Met>,
    /// What fails at every call.
    pub broken: Option<Arc<Broken>>,
    /// Every call is written down here.
    pub listing: Option<Listing>,
    gone: Option<Device>,
    tracing: Option<Trace>,
    /// What the last change did to a name that only takes room.
    of_filler: Option<&'static str>,
}

/// The machine right after a call that changed something.
#[derive(Clone)]
pub struct Boundary {
    /// Which step of the operation it was in.
    pub step: u8,
    /// How it was.
    pub world: World,
}

/// The changes of a run.
pub type Trace = Arc<Mutex<Vec<Boundary>>>;

/// The machine, as the parts of one run share it.
pub type Shared = Rc<RefCell<World>>;

impl World {
    /// A machine at rest.
    pub fn new(disk: Sectors, esp: Files, state: Files, slots: [Slots; 2]) -> Self {
        Self {
            disk,
            esp,
            state,
            tpm_seed: 1,
            slots,
            variable: false,
            argument: false,
            clock: NOW,
            calls: 0,
            fault: None,
            has_faulted: false,
            faulted_in: 0,
            met: Vec::new(),
            broken: None,
            listing: None,
            gone: None,
            tracing: None,
            of_filler: None,
        }
    }

    /// Begins a run of its own.
    pub fn share(&self) -> Shared {
        Rc::new(RefCell::new(self.clone()))
    }

    /// From here on every change is remembered.
    pub fn trace(&mut self) -> Trace {
        let trace = Trace::default();
        self.tracing = Some(trace.clone());
        trace
    }

    /// The next call goes on with what the last one did: a boundary between them tells nothing.
    pub fn more_of_the_same(&mut self) {
        if let Some(tracing) = &self.tracing {
            tracing.lock().unwrap().pop();
        }
    }

    /// One call: counted, made to fail, remembered.
    pub fn call<T>(
        &mut self,
        op: Op<'_>,
        effect: impl FnOnce(&mut Self, bool) -> io::Result<T>,
    ) -> io::Result<T> {
        let (device, call) = (op.device, op.call);
        let this = self.calls;
        self.calls += 1;
        if let Some(listing) = &self.listing {
            listing.lock().unwrap().push(self.describe(op));
        }
        if self.gone == Some(device) {
            self.met.push(self.describe(op));
            return Err(io::Error::from_raw_os_error(19)); // ENODEV
        }
        if let Some(broken) = self.broken.clone().filter(|broken| broken.meets(self, this, op)) {
            self.has_faulted = true;
            self.met.push(self.describe(op));
            if call == Call::Sync {
                self.lose(device);
            }
            return Err(io::Error::from_raw_os_error(broken.error));
        }
        let fault = self.fault.filter(|(at, _)| *at == this).map(|(_, fault)| fault);
        let applies = match fault {
            Some(Fault::NoSpace | Fault::Short) => call == Call::Write,
            Some(Fault::ReadOnly) => matches!(call, Call::Write | Call::Change),
            Some(Fault::ErrorAfter) => call != Call::Read,
            Some(Fault::Vanish) => device != Device::Firmware,
            Some(Fault::Error) => true,
            None => false,
        };
        if applies {
            self.has_faulted = true;
            self.faulted_in = crate::steps::now();
            self.met.push(self.describe(op));
        }
        let error = || Err(io::Error::from_raw_os_error(5)); // EIO
        let result = match fault.filter(|_| applies) {
            None => effect(self, false),
            Some(Fault::Short) => effect(self, true),
            Some(Fault::NoSpace) => return Err(io::Error::from_raw_os_error(28)),
            Some(Fault::ReadOnly) => return Err(io::Error::from_raw_os_error(30)),
            Some(Fault::Vanish) => {
                self.gone = Some(device);
                return Err(io::Error::from_raw_os_error(19));
            }
            Some(Fault::ErrorAfter) => effect(self, false).and_then(|_| error()),
            Some(Fault::Error) => {
                if call == Call::Sync {
                    self.lose(device);
                }
                error()
            }
        };
        if call != Call::Read {
            // How many of them there are makes no machine another one.
            let of_filler = op.of_filler();
            if of_filler.is_some() && self.of_filler == of_filler {
                self.more_of_the_same();
            }
            self.of_filler = of_filler;
        }
        if call != Call::Read
            && let Some(tracing) = &self.tracing
        {
            let world = Self { tracing: None, listing: None, ..self.clone() };
            tracing.lock().unwrap().push(Boundary { step: crate::steps::now(), world });
        }
        result
    }

    /// A sync has failed: what it should have made durable is never made so by a later one.
    fn lose(&mut self, device: Device) {
        match device {
            Device::Disk => self.disk.lose(),
            Device::Esp => self.esp.lose(),
            Device::State => self.state.lose(),
            Device::Tpm | Device::Slots | Device::Firmware => {}
        }
    }

    /// What may be on the media if the power goes now: each a machine at rest, before its next boot.
    pub fn images(&self) -> Vec<World> {
        let (disks, esps, states) = (self.disk.images(), self.esp.images(), self.state.images());
        let mut images = Vec::new();
        let mut add = |disk: &Sectors, esp: &Files, state: &Files| {
            let (disk, esp, state) = (disk.clone(), esp.clone(), state.clone());
            let mut world = Self::new(disk, esp, state, self.slots);
            world.tpm_seed = self.tpm_seed;
            (world.variable, world.argument) = (self.variable, self.argument);
            images.push(world);
        };
        // The first of each is that nothing unsynced has survived, the last that all of it has.
        let ends = |count: usize| if count == 1 { vec![0] } else { vec![0, count - 1] };
        for (d, disk) in disks.iter().enumerate() {
            for (e, esp) in esps.iter().enumerate() {
                for (s, state) in states.iter().enumerate() {
                    let is_end = [
                        ends(disks.len()).contains(&d),
                        ends(esps.len()).contains(&e),
                        ends(states.len()).contains(&s),
                    ];
                    if is_end.iter().filter(|end| !**end).count() <= 1 {
                        add(disk, esp, state);
                    }
                }
            }
        }
        images
    }

    /// The machine after it was switched off in order: everything has survived.
    pub fn settled(&self) -> World {
        let mut images = self.images();
        images.pop().unwrap_or_else(|| self.clone())
    }

    /// Whether all that was done may be done, also where no machine at rest shows it.
    pub fn check_done(&self) -> Result<(), String> {
        self.esp.wrong.or(self.state.wrong).map_or(Ok(()), |what| Err(what.to_owned()))
    }

    /// What tells it from every other machine at rest.
    pub fn digest(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.disk.digest().hash(&mut hasher);
        self.esp.digest().hash(&mut hasher);
        self.state.digest().hash(&mut hasher);
        (self.tpm_seed, self.slots, self.variable, self.argument).hash(&mut hasher);
        hasher.finish()
    }
}
