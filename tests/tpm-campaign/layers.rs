//! Which cases there are: every state undisturbed, each command cut, and each fault at each place
//! where another thing is to come of it.

use std::cmp::Ordering;

use crate::bench::Bench;
use crate::case::Case;
use crate::fault::{Fault, Junk, Kind, Random, When};
use crate::follow::follow;
use crate::state::State;
use crate::wire::{CLEAR, CREATE_PRIMARY, FLUSH_CONTEXT, GET_CAPABILITY};

/// The commands that an undisturbed reset gives a TPM in each state.
pub struct Measured(Vec<(State, bool, Vec<u32>)>);

pub type Layer = (&'static str, Vec<Case>);

/// A row of cuts has so many.
const ROW: usize = 40;
/// The one of them that comes after the clear.
const ROW_CLEARS: usize = 32;
/// The commands of a resume until it knows whether the TPM is cleared.
const IDENTITY: usize = 4;
const WHENS: [When; 2] = [When::Before, When::After];

/// States beside the combinations.
fn special() -> Vec<State> {
    ["b", "ob", "tb", "u", "ou", "tu", "oetu"]
        .map(|letters| letters.parse().expect("a state"))
        .to_vec()
}

/// Goes through each state once, undisturbed, to see which commands there are to be cut.
pub fn measure(bench: &Bench) -> Result<Measured, (Case, String)> {
    let mut measured = Vec::new();
    for state in State::all().chain(special()) {
        for allow in [false, true] {
            let case = Case::new(state, allow, &[]);
            match follow(bench, &case) {
                Ok(told) => {
                    let given = told.given.into_iter().next().unwrap_or_default();
                    measured.push((state, allow, given));
                }
                Err(what) => return Err((case, what)),
            }
        }
    }
    Ok(Measured(measured))
}

impl Measured {
    fn of(&self, state: State, allow: bool) -> &[u32] {
        let found = self.0.iter().find(|(known, allowed, _)| (*known, *allowed) == (state, allow));
        &found.expect("it was measured").2
    }

    /// Every interruption of every combination: the state, the request, and the cut.
    fn cuts(&self) -> impl Iterator<Item = (State, bool, Fault)> {
        self.0.iter().flat_map(|(state, allow, given)| {
            let cuts = (0..given.len()).flat_map(|at| WHENS.map(|when| cut(at, when)));
            cuts.map(|fault| (*state, *allow, fault))
        })
    }
}

fn cut(at: usize, when: When) -> Fault {
    Fault { at, kind: Kind::Cut(when) }
}

pub fn all(measured: &Measured, long: bool) -> Vec<Layer> {
    vec![
        ("undisturbed", undisturbed(measured)),
        ("cut", once(measured, long)),
        ("cut twice", twice(measured, if long { 150 } else { 6 })),
        ("40 cuts", rows(measured, if long { 3 } else { 1 }, long)),
        ("busy", busy(measured, long)),
        ("never answers", silent(measured, long)),
        ("other faults", others(measured, long)),
        ("junk", junk(measured, if long { 60 } else { 2 }, long)),
        ("three times", three_times(measured, long)),
    ]
}

fn undisturbed(measured: &Measured) -> Vec<Case> {
    let all = measured.0.iter();
    all.map(|(state, allow, _)| Case::new(*state, *allow, &[])).collect()
}

/// One cut: the ordinary run has every one of a plain TPM, and a few of each other state.
fn once(measured: &Measured, long: bool) -> Vec<Case> {
    let mut random = Random::new(1);
    let plain = State::default();
    let chosen = measured
        .cuts()
        .filter(|(state, allow, _)| long || (*state == plain && !allow) || random.below(24) == 0);
    chosen.map(|(state, allow, fault)| Case::new(state, allow, &[fault])).collect()
}

/// A cut, and another one in the resume.
fn twice(measured: &Measured, count: usize) -> Vec<Case> {
    let mut random = Random::new(2);
    let all: Vec<_> = measured.cuts().collect();
    let mut cases = Vec::new();
    for _ in 0..count {
        let (state, allow, first) = all[random.below(all.len())];
        // However the first one went, a boot after it begins with these.
        let second = cut(random.below(2), WHENS[random.below(2)]);
        cases.push(Case::new(state, allow, &[first, second]));
    }
    cases
}

/// Forty cuts in a row, each at another command, and a TPM that counts them as wrong passwords.
fn rows(measured: &Measured, seeds: u64, long: bool) -> Vec<Case> {
    let states = if long {
        &["u", "ou", "tu", "oetu", "plain", "oe", "d", "l", "dltu"][..]
    } else {
        &["u", "otu", "d"]
    };
    let mut cases = Vec::new();
    for state in states {
        let state: State = state.parse().expect("a state");
        for seed in 0..seeds {
            for allow in [false, true] {
                let mut random = Random::new(seed);
                cases.push(row(measured, state, allow, &mut random));
            }
        }
    }
    cases
}

/// Most of them come before the clear, because a TPM that is cleared is asked little.
fn row(measured: &Measured, state: State, allow: bool, random: &mut Random) -> Case {
    let plain = State { in_use: false, in_lockout: false, ..state };
    let given = measured.of(plain, allow);
    // With a password of the owner there is no key to be made.
    let first_of_step = if state.owner_auth { 4 } else { 2 + IDENTITY };
    // One that must not be cleared is asked less, and the next boot asks it from the beginning.
    let clear = given.iter().position(|code| *code == CLEAR);
    let Some(clear) = clear else {
        let cuts = (0..ROW).map(|_| cut(random.below(given.len()), WHENS[random.below(2)]));
        return Case::new(state, allow, &cuts.collect::<Vec<_>>());
    };
    let mut boots = Vec::new();
    let mut committed = false;
    for index in 0..ROW {
        // Once it is committed the preflight is not made again.
        let skipped = if committed { first_of_step } else { 0 };
        let when = WHENS[random.below(2)];
        let fault = match index.cmp(&ROW_CLEARS) {
            Ordering::Less => cut(random.below(clear - skipped), when),
            Ordering::Equal => cut(clear - skipped, When::After),
            Ordering::Greater => cut(random.below(IDENTITY), when),
        };
        // After the last command of the preflight comes the commit, and then the next command.
        committed |= fault.at + skipped >= first_of_step;
        boots.push(fault);
    }
    Case::new(state, allow, &boots)
}

/// Commands of a reset of a plain TPM that differ in what is to come of a fault: in the preflight, in
/// the step before the clear, the clear, its proof, and after the proof.
struct Places {
    preflight: Vec<usize>,
    step: Vec<usize>,
    clear: usize,
    proof: Vec<usize>,
    late: Vec<usize>,
}

impl Places {
    fn new(given: &[u32]) -> Self {
        let clear = given.iter().position(|code| *code == CLEAR).expect("it is cleared");
        let keys: Vec<usize> = (0..given.len()).filter(|at| given[*at] == CREATE_PRIMARY).collect();
        let flush = |from: usize| {
            let found = given[from..].iter().position(|code| *code == FLUSH_CONTEXT);
            from + found.expect("a key goes")
        };
        let [first, second, third, fourth] = keys[..] else { panic!("not four keys: {keys:?}") };
        Self {
            preflight: vec![0, 1, first, flush(first)],
            step: vec![flush(first) + 1, second, flush(second), clear - 1],
            clear,
            proof: vec![clear + 1, third, flush(third)],
            late: vec![fourth, fourth + 1, flush(fourth)],
        }
    }

    fn all(&self) -> Vec<usize> {
        let clear = [self.clear];
        [&self.preflight[..], &self.step, &clear, &self.proof, &self.late].concat()
    }

    /// One of each kind.
    fn few(&self) -> Vec<usize> {
        vec![self.preflight[2], self.step[1], self.clear, self.proof[1], self.late[0]]
    }

    fn some(&self, long: bool) -> Vec<usize> {
        if long { self.all() } else { self.few() }
    }
}

fn plain(measured: &Measured) -> Places {
    Places::new(measured.of(State::default(), false))
}

fn busy(measured: &Measured, long: bool) -> Vec<Case> {
    let places = plain(measured);
    let mut cases = Vec::new();
    // To be rid of a key is one of them: nothing is to be left behind in the TPM.
    let key_goes = places.preflight[3];
    let fault = Fault { at: key_goes, kind: Kind::Busy { code: 0x922, times: Some(25) } };
    cases.push(Case::new(State::default(), false, &[fault]));
    for (code, all_times) in [
        (0x922, &[1, 7, 25][..]),
        (0x908, &[1, 25]),
        (0x90a, &[1, 25]),
        (0x920, &[1, 15]),
        (0x923, &[1, 15]),
    ] {
        if !long && code != 0x922 {
            let fault = Fault { at: places.clear, kind: Kind::Busy { code, times: Some(7) } };
            cases.push(Case::new(State::default(), false, &[fault]));
            continue;
        }
        for times in all_times {
            for at in places.some(long) {
                let fault = Fault { at, kind: Kind::Busy { code, times: Some(*times) } };
                cases.push(Case::new(State::default(), false, &[fault]));
            }
        }
    }
    for code in if long { &[0x922, 0x920][..] } else { &[0x922] } {
        for at in places.some(long) {
            for allow in [false, true] {
                let fault = Fault { at, kind: Kind::Busy { code: *code, times: None } };
                cases.push(Case::new(State::default(), allow, &[fault]));
            }
        }
    }
    cases
}

fn silent(measured: &Measured, long: bool) -> Vec<Case> {
    let places = plain(measured);
    let mut cases = Vec::new();
    for at in places.some(long) {
        for when in WHENS {
            for allow in if long { &[false, true][..] } else { &[false] } {
                let fault = Fault { at, kind: Kind::Silent(when) };
                cases.push(Case::new(State::default(), *allow, &[fault]));
            }
        }
    }
    cases
}

/// A broken connection, a TPM that is gone or in failure mode, and refusals that no flag has announced.
fn others(measured: &Measured, long: bool) -> Vec<Case> {
    let places = plain(measured);
    let mut cases = Vec::new();
    let kinds = [
        Kind::Gone(When::Before),
        Kind::Gone(When::After),
        Kind::Code(0x101, When::Before),
        Kind::Code(0x100, When::Before),
        Kind::Code(0x101, When::After),
        // Bits that no code of a TPM has: no refusal, though it ends like one.
        Kind::Code(0x8800_098e, When::Before),
    ];
    for kind in kinds {
        for at in places.some(long) {
            for allow in [false, true] {
                cases.push(Case::new(State::default(), allow, &[Fault { at, kind }]));
            }
        }
    }
    let claim = Fault { at: places.clear, kind: Kind::Claim };
    cases.push(Case::new(State::default(), false, &[claim]));
    cases.push(Case::new(State::default(), true, &[claim]));
    let absent = Fault { at: 0, kind: Kind::Absent };
    for allow in [false, true] {
        cases.push(Case::new(State::default(), allow, &[absent]));
        for at in [places.step[0], places.clear] {
            cases.push(Case::new(State::default(), allow, &[cut(at, When::Before), absent]));
        }
        let cleared = cut(places.clear, When::After);
        cases.push(Case::new(State::default(), allow, &[cleared, absent]));
    }
    for code in [0x98e, 0x120, 0x921] {
        for allow in [false, true] {
            let unproved = Fault { at: places.clear, kind: Kind::Unproved(code) };
            cases.push(Case::new(State::default(), allow, &[unproved]));
            for when in WHENS {
                let fault = Fault { at: places.clear, kind: Kind::Code(code, when) };
                cases.push(Case::new(State::default(), allow, &[fault]));
                // The same to a second attempt, which may not end as refused.
                let second = Fault { at: places.clear - 2 - IDENTITY, ..fault };
                let first = cut(places.clear, When::Before);
                cases.push(Case::new(State::default(), allow, &[first, second]));
            }
        }
    }
    cases
}

fn junk(measured: &Measured, seeds: u64, long: bool) -> Vec<Case> {
    let places = plain(measured);
    let given = measured.of(State::default(), false);
    let mut cases = Vec::new();
    let mut add = |at: usize, junk: Junk, allow: bool| {
        cases.push(Case::new(State::default(), allow, &[Fault { at, kind: Kind::Junk(junk) }]));
    };
    for junk in [Junk::Tag, Junk::Empty, Junk::Short, Junk::Tiny, Junk::Huge, Junk::Body(1)] {
        for at in if long { (0..given.len()).collect() } else { places.few() } {
            for allow in if long { &[false, true][..] } else { &[false] } {
                add(at, junk, *allow);
            }
        }
    }
    let mut random = Random::new(3);
    for seed in 0..seeds {
        // A flag or a counter that is another one cannot be told from a true one.
        let at = loop {
            let at = random.below(given.len());
            if given[at] != GET_CAPABILITY {
                break at;
            }
        };
        add(at, Junk::Flip(seed), seed % 2 == 0);
        add(random.below(given.len()), Junk::Body(seed), seed % 2 == 1);
    }
    cases
}

/// Three boots fail, the third holds, and a TPM that is well again finishes it.
fn three_times(measured: &Measured, long: bool) -> Vec<Case> {
    let places = plain(measured);
    let mut cases = Vec::new();
    let kinds = [
        Kind::Silent(When::Before),
        Kind::Busy { code: 0x922, times: None },
        Kind::Gone(When::Before),
        Kind::Code(0x101, When::Before),
        Kind::Junk(Junk::Tag),
        Kind::Absent,
    ];
    for kind in kinds {
        let later = Fault { at: 0, kind };
        for first in if long { &places.step[..] } else { &places.step[..1] } {
            // A TPM that is absent is not committed to.
            let first = match kind {
                Kind::Absent => cut(*first, When::Before),
                _ => Fault { at: *first, kind },
            };
            cases.push(Case::new(State::default(), false, &[first, later, later, later]));
            // A fourth failure holds as well; and cuts in between count for nothing.
            let between = cut(2, When::After);
            let boots = [first, between, later, between, later, later];
            cases.push(Case::new(State::default(), false, &boots));
        }
        if kind == Kind::Absent {
            continue;
        }
        // After the clear nothing of it is needed any more but to be seen.
        let first = Fault { at: places.proof[1], kind };
        cases.push(Case::new(State::default(), false, &[first, later, later]));
    }
    // A lockout hierarchy that was locked meanwhile, until it recovers.
    let locked: State = "s".parse().expect("a state");
    let mut boots = Case::new(locked, false, &[cut(places.clear, When::Before)]);
    boots.boots.extend([None, None, None]);
    cases.push(boots);
    cases
}
