//! From an operation to all its interruptions, each followed to its end.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Mutex;

use restage::report::Outcome;

use crate::model::{Fault, Shared, World};
use crate::steps;
use crate::told::Told;

/// An operation on a machine, and what has to be so whenever it is interrupted.
pub trait Case: Sync {
    /// Its name.
    fn name(&self) -> &'static str;
    /// The machine before it.
    fn start(&self) -> World;
    /// The operation, once: what comes of it.
    fn tell(&self, world: &Shared) -> Told;
    /// The operation, whatever comes of it.
    fn run(&self, world: &Shared) {
        // Nobody is there to hear what it says.
        drop(self.tell(world));
    }
    /// What must be so at any instant, on the media.
    fn check_image(&self, image: &World) -> Result<(), String>;
    /// Boots until nothing is left to do; the machine at rest after that.
    fn recover(&self, world: &Shared) -> Result<World, String>;
    /// What must be so in the end, on this way. A fault may have led to a refusal; a cut may not.
    /// Returns the end in a word.
    fn check_end(&self, end: &World, path: &[Cut]) -> Result<&'static str, String>;
}

/// How a run was interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cut {
    /// The power went after this change; this of the possible images was left.
    Power {
        /// Number of the change.
        change: usize,
        /// Number of the image.
        image: usize,
    },
    /// The power went right after the operation had returned; this of the possible images was left.
    /// What it has promised must be so.
    Returned {
        /// Number of the image.
        image: usize,
    },
    /// This call met a fault, and then the machine was switched off, in order or not.
    Fault {
        /// Number of the call.
        call: usize,
        /// What happened to it.
        fault: Fault,
        /// Whether what was unsynced survived.
        in_order: bool,
    },
    /// After that the operation was started again, beside what it had not made durable, and then the power
    /// went.
    Again,
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Power { change, image } => write!(f, "c{change}.{image}"),
            Self::Returned { image } => write!(f, "r0.{image}"),
            Self::Again => write!(f, "again"),
            Self::Fault { call, fault, in_order } => {
                let kind = Fault::ALL.iter().position(|one| one == fault).unwrap_or(0);
                write!(f, "{}{call}.{kind}", if *in_order { 'f' } else { 'g' })
            }
        }
    }
}

impl std::str::FromStr for Cut {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no interruption: c12.3, r0.3, f12.3, g12.3");
        let kind = text.chars().next().ok_or_else(wrong)?;
        let (first, second) = text[1..].split_once('.').ok_or_else(wrong)?;
        let first = first.parse().map_err(|_| wrong())?;
        let second: usize = second.parse().map_err(|_| wrong())?;
        match kind {
            'c' => Ok(Self::Power { change: first, image: second }),
            'r' => Ok(Self::Returned { image: second }),
            'f' | 'g' => {
                let fault = *Fault::ALL.get(second).ok_or_else(wrong)?;
                Ok(Self::Fault { call: first, fault, in_order: kind == 'f' })
            }
            _ => Err(wrong()),
        }
    }
}

/// A violation, and the way to it.
#[derive(Clone, Debug)]
pub struct Violation {
    /// The case, then one interruption after the other.
    pub path: String,
    /// What is not as it must be.
    pub what: String,
}

/// How far to go.
#[derive(Clone, Copy, Debug)]
pub struct Reach {
    /// Of the interruptions in a resume, one in so many is followed.
    pub second: u64,
    /// Of those in a resume's resume, one in so many of the followed.
    pub third: u64,
    /// Of the calls of a resume, one in so many meets each fault.
    pub faults: u64,
    /// Give up after so many violations.
    pub violations: usize,
}

/// What was seen.
#[derive(Debug, Default)]
pub struct Figures {
    /// Distinct interrupted runs, by step of the operation and depth.
    pub by_step: BTreeMap<(u8, usize), usize>,
    /// Of these, with a fault.
    pub faults: usize,
    /// How they ended.
    pub outcomes: BTreeMap<&'static str, usize>,
    /// What is not as it must be.
    pub violations: Vec<Violation>,
}

impl Figures {
    /// Runs that were interrupted so often.
    pub fn at_depth(&self, wanted: usize) -> usize {
        let at = self.by_step.iter().filter(|((_, depth), _)| *depth == wanted);
        at.map(|(_, runs)| runs).sum()
    }

    /// Each step, and how many runs were interrupted in it last.
    pub fn steps(&self) -> impl Iterator<Item = (u8, usize)> {
        let mut steps = BTreeMap::new();
        for ((step, _), runs) in &self.by_step {
            *steps.entry(*step).or_default() += *runs;
        }
        steps.into_iter()
    }

    /// All distinct interrupted runs.
    pub fn runs(&self) -> usize {
        self.by_step.values().sum()
    }
}

struct Search<'a> {
    case: &'a dyn Case,
    reach: Reach,
    seen: Vec<Mutex<HashMap<u64, usize>>>,
    figures: Mutex<Figures>,
}

const SHARDS: usize = 64;
/// Whoever waits is told after so many runs that this is alive.
const SAY_EVERY: usize = 100_000;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Seen {
    New,
    Farther,
    Before,
}

#[derive(Clone)]
struct Item {
    path: Vec<Cut>,
    step: u8,
    image: World,
}

/// An outcome in a word.
pub fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Done => "done",
        Outcome::Refused => "refused",
        Outcome::Cancelled => "cancelled",
        Outcome::RolledBack => "rolled back",
    }
}

/// Whether the operation had returned.
pub fn has_returned(path: &[Cut]) -> bool {
    matches!(path, [Cut::Returned { .. }])
}

/// Whether it was started twice.
pub fn was_started_again(path: &[Cut]) -> bool {
    path.contains(&Cut::Again)
}

/// Whether something but the power has failed on this way.
pub fn had_fault(path: &[Cut]) -> bool {
    path.iter().any(|cut| matches!(cut, Cut::Fault { .. }))
}

/// On this way something was broken for longer than one call.
pub const BROKEN: [Cut; 1] = [Cut::Fault { call: usize::MAX, fault: Fault::Error, in_order: true }];

/// Whether it was.
pub fn was_broken(path: &[Cut]) -> bool {
    path == BROKEN
}

/// What there is to do, in pieces that are small: each change of the operation has as many images as it
/// has, and one thread alone would be long over the last of them.
struct Work<'a> {
    changes: &'a [(u8, World)],
    calls: usize,
    next: usize,
    images: std::vec::IntoIter<Item>,
}

enum Piece {
    Image(Box<Item>),
    Call(usize),
}

impl Work<'_> {
    /// First the cuts, then the faults.
    fn take(&mut self) -> Option<Piece> {
        loop {
            if let Some(item) = self.images.next() {
                return Some(Piece::Image(Box::new(item)));
            }
            let index = self.next;
            self.next += 1;
            let Some((step, world)) = self.changes.get(index) else {
                let call = index - self.changes.len();
                return (call < self.calls).then_some(Piece::Call(call));
            };
            self.images = images(&[], index, *step, world).into_iter();
        }
    }
}

/// Interrupts one operation everywhere.
pub fn explore(case: &dyn Case, reach: Reach, threads: usize) -> Figures {
    let seen = (0..SHARDS).map(|_| Mutex::default()).collect();
    let search = Search { case, reach, seen, figures: Mutex::default() };
    let (changes, calls, returned) = search.base();
    // A step in which nothing is interrupted has none, instead of not being there.
    for (step, _) in &changes {
        search.figures.lock().unwrap().by_step.insert((*step, 1), 0);
    }
    for (image, world) in returned.into_iter().enumerate() {
        search.follow(&Item {
            path: vec![Cut::Returned { image }],
            step: steps::NONE,
            image: world,
        });
    }
    let work =
        Mutex::new(Work { changes: &changes, calls, next: 0, images: Vec::new().into_iter() });
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !search.is_enough() {
                    let piece = work.lock().unwrap().take();
                    match piece {
                        Some(Piece::Image(item)) => search.follow(&item),
                        Some(Piece::Call(call)) => search.faults(call),
                        None => return,
                    }
                }
            });
        }
    });
    search.figures.into_inner().unwrap()
}

/// Goes one way again, as a violation names it: `CASE:c12.3/c4.0`. Says what comes of it.
pub fn replay(case: &dyn Case, path: &str, is_told: bool) -> Result<&'static str, String> {
    let tell = |what: String| {
        if is_told {
            println!("{what}");
        }
    };
    let (_, cuts) = path.split_once(':').ok_or("not CASE:CUT/CUT")?;
    let path = cuts.split('/').map(str::parse).collect::<Result<Vec<Cut>, _>>()?;
    let mut image = case.start();
    for (depth, cut) in path.iter().enumerate() {
        let run = |world: &Shared| {
            steps::begin();
            if depth == 0 {
                case.run(world);
            } else if let Err(why) = case.recover(world) {
                tell(format!("the interrupted recovery: {why}"));
            }
        };
        image = match *cut {
            Cut::Power { change, image: number } => {
                let world = image.share();
                let trace = world.borrow_mut().trace();
                run(&world);
                let boundary = trace.lock().unwrap().get(change).cloned();
                let boundary = boundary.ok_or_else(|| format!("there is no change {change}"))?;
                let images = boundary.world.images();
                let (of, step) = (images.len(), steps::name(boundary.step));
                tell(format!("{cut}: image {number} of {of}, in {step}"));
                images.get(number).cloned().ok_or_else(|| format!("there is no image {number}"))?
            }
            Cut::Again => return Err("this is one of --faults-only --row".to_owned()),
            Cut::Returned { image: number } => {
                let world = image.share();
                run(&world);
                let images = world.borrow().images();
                images.get(number).cloned().ok_or_else(|| format!("there is no image {number}"))?
            }
            Cut::Fault { call, fault, in_order } => {
                let world = image.share();
                world.borrow_mut().fault = Some((call, fault));
                run(&world);
                let world = world.borrow();
                if in_order { world.settled() } else { world.images().remove(0) }
            }
        };
        tell(format!("the ESP: {:#?}", short(&image.esp)));
        tell(format!("the state: {:#?}", short(&image.state)));
    }
    case.check_image(&image)?;
    steps::begin();
    let end = case.recover(&image.share())?;
    tell(format!("the end, on the ESP: {:#?}", short(&end.esp)));
    case.check_end(&end, &path)
}

fn short(files: &crate::model::files::Files) -> BTreeMap<String, String> {
    let told = |found| match found {
        crate::model::files::Found::File(bytes) => {
            let text = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).into_owned();
            format!("{} bytes: {}", bytes.len(), text.escape_debug())
        }
        other => format!("{other:?}"),
    };
    files.all().into_iter().map(|(path, found)| (path, told(found))).collect()
}

fn images(path: &[Cut], change: usize, step: u8, world: &World) -> Vec<Item> {
    let images = world.images().into_iter().enumerate();
    let item = |(image, world)| Item {
        path: [path, &[Cut::Power { change, image }]].concat(),
        step,
        image: world,
    };
    images.map(item).collect()
}

impl Search<'_> {
    /// The uninterrupted run: its changes, how many calls it makes, and what is left when the power goes
    /// after it.
    fn base(&self) -> (Vec<(u8, World)>, usize, Vec<World>) {
        let world = self.case.start().share();
        let trace = world.borrow_mut().trace();
        steps::begin();
        self.case.run(&world);
        let changes = trace.lock().unwrap().iter().map(|b| (b.step, b.world.clone())).collect();
        let world = world.borrow();
        (changes, world.calls, world.images())
    }

    fn is_enough(&self) -> bool {
        self.figures.lock().unwrap().violations.len() >= self.reach.violations
    }

    /// Whether this interrupted run is a new one, or was only seen farther from the start, where less of
    /// it is followed: so a thread that is faster takes nothing away. Of two machines with one digest the
    /// first is followed, and that one may depend on it: a run or two in some thousands.
    fn look(&self, item: &Item, digest: u64) -> Seen {
        let fault = match item.path.last() {
            Some(Cut::Fault { fault, .. }) => Some(*fault),
            _ => None,
        };
        let mut hasher = DefaultHasher::new();
        (digest, item.step, fault, has_returned(&item.path)).hash(&mut hasher);
        let key = hasher.finish();
        let shard = usize::try_from(key % SHARDS as u64).unwrap();
        let depth = item.path.len();
        let mut seen = self.seen[shard].lock().unwrap();
        let nearest = seen.entry(key).or_insert(usize::MAX);
        match *nearest {
            usize::MAX => {
                *nearest = depth;
                Seen::New
            }
            before if before > depth => {
                *nearest = depth;
                Seen::Farther
            }
            _ => Seen::Before,
        }
    }

    /// One call of the operation, with every fault that can meet it.
    fn faults(&self, call: usize) {
        for fault in Fault::ALL {
            let world = self.case.start().share();
            world.borrow_mut().fault = Some((call, fault));
            steps::begin();
            self.case.run(&world);
            let world = world.borrow();
            if !world.has_faulted {
                continue;
            }
            for in_order in [true, false] {
                let image = if in_order { world.settled() } else { world.images().remove(0) };
                let path = vec![Cut::Fault { call, fault, in_order }];
                self.follow(&Item { path, step: world.faulted_in, image });
            }
        }
    }

    /// The same in the first boot of a resume, for some of its calls.
    fn faults_in_resume(&self, item: &Item, digest: u64, calls: usize) {
        for call in 0..calls {
            let mut hasher = DefaultHasher::new();
            (digest, call).hash(&mut hasher);
            if !hasher.finish().is_multiple_of(self.reach.faults) {
                continue;
            }
            for fault in Fault::ALL {
                let world = item.image.share();
                world.borrow_mut().fault = Some((call, fault));
                steps::begin();
                // Its further boots are another way; here the first is followed by a cut.
                let _ = self.case.recover(&world);
                let world = world.borrow();
                if !world.has_faulted {
                    continue;
                }
                for in_order in [true, false] {
                    let image = if in_order { world.settled() } else { world.images().remove(0) };
                    let cut = Cut::Fault { call, fault, in_order };
                    let path = [item.path.as_slice(), &[cut]].concat();
                    self.follow(&Item { path, step: world.faulted_in, image });
                }
            }
        }
    }

    /// Follows an interrupted run to its end, and interrupts the resume.
    fn follow(&self, item: &Item) {
        let digest = item.image.digest();
        let seen = self.look(item, digest);
        let depth = item.path.len();
        if seen == Seen::Before {
            return;
        }
        if seen == Seen::New {
            let mut figures = self.figures.lock().unwrap();
            *figures.by_step.entry((item.step, depth)).or_default() += 1;
            figures.faults += usize::from(had_fault(&item.path));
            let runs = figures.runs();
            if runs.is_multiple_of(SAY_EVERY) {
                println!("{}: {runs} interrupted runs so far", self.case.name());
            }
        }
        let is_followed = match depth {
            1 => digest.is_multiple_of(self.reach.second),
            2 => (digest / self.reach.second).is_multiple_of(self.reach.third),
            _ => false,
        };
        let world = item.image.share();
        let trace = is_followed.then(|| world.borrow_mut().trace());
        steps::begin();
        let ended = self
            .case
            .check_image(&item.image)
            .and_then(|()| self.case.recover(&world))
            .and_then(|end| self.case.check_end(&end, &item.path));
        match ended {
            Ok(outcome) if seen == Seen::New => {
                *self.figures.lock().unwrap().outcomes.entry(outcome).or_default() += 1;
            }
            Ok(_) => {}
            Err(what) => {
                let path: Vec<String> = item.path.iter().map(ToString::to_string).collect();
                let path = format!("{}:{}", self.case.name(), path.join("/"));
                self.figures.lock().unwrap().violations.push(Violation { path, what });
                return;
            }
        }
        let Some(trace) = trace else { return };
        if depth == 1 {
            self.faults_in_resume(item, digest, world.borrow().calls);
        }
        for (change, boundary) in trace.lock().unwrap().iter().enumerate() {
            for next in images(&item.path, change, boundary.step, &boundary.world) {
                if self.is_enough() {
                    return;
                }
                self.follow(&next);
            }
        }
    }
}
