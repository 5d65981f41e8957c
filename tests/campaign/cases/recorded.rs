//! What the journal of a restore says is done, is done: at any instant.

use restage::apply::journal::{Decision, Journal};
use restage::apply::restore::steps::{self, Phase, Step};
use restage::apply::restore::{Committed, Machine};
use restage::platform::state_fs::Place;

use super::restore::{All, STATE};
use crate::model::World;
use crate::model::files::Found;

/// Where the state lies that is not in place.
const SIBLING: &str = "var/lib/.incus-os.restage/";
/// What the directories for keys begin with.
const SUPERSEDED: &str = "var/lib/restage/superseded";
/// The key slots with the passphrase of the old state, and with that of the backup.
const OLD_SLOT: usize = 1;
const NEW_SLOT: usize = 2;

/// What has to be known of a restore.
pub struct Known<'a> {
    /// The keys of the old state, by name.
    pub old: &'a All,
    /// The name of a key that the restored system has made.
    pub made: &'a str,
}

/// The instant that is looked at.
struct Instant<'a> {
    machine: &'a Machine,
    image: &'a World,
    all: All,
    journal: Journal<Committed>,
    known: &'a Known<'a>,
}

/// Looks at each step that is recorded as done.
pub fn check(
    machine: &Machine,
    image: &World,
    stem: &str,
    known: &Known<'_>,
) -> Result<(), String> {
    let Ok(journal) = Journal::load(machine.store.as_ref(), stem) else { return Ok(()) };
    let now = Instant { machine, image, all: image.state.all(), journal, known };
    // Which of an earlier phase still hold when a later one has begun.
    let is_rolled_back = matches!(now.journal.progress.decision, Some(Decision::RollBack(_)));
    let is_confirmed = now.journal.progress.decision == Some(Decision::Confirm);
    for phase in [Phase::Apply, Phase::Confirm, Phase::RollBack] {
        for (index, step) in steps::of(&now.journal.committed, phase).iter().enumerate() {
            let is_undone = phase == Phase::Apply && is_rolled_back && *step != Step::Supersede;
            // From its removal on it is gone.
            let is_moved = *step == Step::Promote && is_confirmed;
            let number = phase.first_number() + index;
            if now.journal.progress.done.contains(&number)
                && !is_undone
                && !is_moved
                && !now.is_done(step)?
            {
                return Err(format!("`{}` is recorded and not done", step.name()));
            }
        }
    }
    Ok(())
}

impl Instant<'_> {
    fn is_done(&self, step: &Step) -> Result<bool, String> {
        let committed = &self.journal.committed;
        let (old, new) = (Some(committed.old_state), Some(committed.new_state));
        let (state, sibling) = (self.at(Place::State)?, self.at(Place::Sibling)?);
        let slots = |name: &str| {
            let number = self.machine.volumes.iter().position(|volume| volume.name() == name);
            number.map(|number| self.image.slots[number])
        };
        let opens = |name: &str, slot| slots(name).is_some_and(|slots| slots.opens(slot));
        Ok(match step {
            Step::Promote => sibling == new || state == new,
            Step::Supersede => {
                let mut names = committed.plan.superseded.iter();
                names.all(|name| self.is_below(&[SUPERSEDED], name))
            }
            Step::Enroll(volume) => opens(&volume.name, NEW_SLOT),
            Step::Exchange => state == new,
            Step::KeepOldKeys => {
                let mut names = self.known.old.keys();
                names.all(|name| self.is_below(&[STATE, SUPERSEDED], name))
            }
            Step::RemoveOld(volume) => !opens(&volume.name, OLD_SLOT),
            Step::KeepNewKeys => {
                let is_made = |path: &&String| path.ends_with(self.known.made);
                let there = if state == new { STATE } else { SIBLING };
                let mut paths = self.all.keys().filter(is_made);
                paths.clone().next().is_none() || paths.any(|path| !path.starts_with(there))
            }
            Step::ExchangeBack => state == old,
            Step::RemoveNew(volume) => !opens(&volume.name, NEW_SLOT),
            Step::RemoveOther => sibling.is_none(),
        })
    }

    fn at(&self, place: Place<'_>) -> Result<Option<u64>, String> {
        self.machine.state.identity(place).map_err(|error| error.to_string())
    }

    /// Whether a key of the old state is in one of these directories.
    fn is_below(&self, directories: &[&str], name: &str) -> bool {
        let Some(key) = self.known.old.get(name) else { return true };
        let is_it = |(path, found): (&String, &Found)| {
            found == key && directories.iter().any(|directory| path.starts_with(directory))
        };
        self.all.iter().any(is_it)
    }
}
