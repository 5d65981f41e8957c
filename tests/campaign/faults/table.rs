//! The table: a fault, an operation, what boot does next, and what is said.
//!
//! What is expected stands here as it has to be by the specification; the program is compared with it.

use restage::error::Next::{self, ContinueBoot, HoldForOperator, RetryNextBoot};

use crate::model::{Device, NOW};
use crate::told::State::{self, Done, Failed, Refused, RolledBack, Unfinished, Window};

/// What is not as usual.
#[derive(Clone, Copy, Debug)]
pub enum What {
    /// Every change of this file system gives EROFS; before the operation, or after its commit.
    ReadOnly(Device, When),
    /// No sync of it succeeds.
    Unsynced(Device, When),
    /// No cluster of it is free.
    Full(Device, When),
    /// Tables of the disk.
    Tables(Damage, When),
    /// What the clock says at the staging, and in the operation.
    Clock(u64, u64, When),
}

/// Since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    Start,
    Committed,
    /// All steps are recorded as done, and there is no report.
    Recorded,
    /// The state that stays is in place, and what remains only tidies up.
    Decided,
}

/// What became of the partition table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    Primary,
    Backup,
    Both,
    /// Both are valid, and say different things.
    Differ,
    /// Both are as they were before: a firmware has brought back what it knew.
    Returned,
}

/// So long after the staging a request is surely old.
const LATER: u64 = NOW + 3600 * 24 * 365 * 50;

/// One line of it.
pub struct Row {
    pub name: &'static str,
    pub case: &'static str,
    pub what: What,
    /// Of each boot with the fault: how it ends, what the boot does next, the exit status.
    pub boots: &'static [(State, Next, u8)],
    /// How the first of them is explained.
    pub why: &'static str,
}

const RETRY: (State, Next, u8) = (Unfinished, RetryNextBoot, 4);
const HOLD: (State, Next, u8) = (Unfinished, HoldForOperator, 4);
const REFUSED: (State, Next, u8) = (Refused, ContinueBoot, 3);
const FAILED: (State, Next, u8) = (Failed, ContinueBoot, 1);
/// The profile asks for a reboot after a reset.
const DONE: (State, Next, u8) = (Done, RetryNextBoot, 5);
const OPEN: (State, Next, u8) = (Window, ContinueBoot, 0);
const LATER_BOOT: (State, Next, u8) = (State::Later, ContinueBoot, 0);

/// All of them.
pub const ROWS: &[Row] = &[
    Row {
        name: "read-only ESP, staging",
        case: "stage",
        what: What::ReadOnly(Device::Esp, When::Start),
        boots: &[FAILED],
        why: "cannot stage the request on the ESP: cannot make the directory /esp/restage: \
              Read-only file system (os error 30)",
    },
    Row {
        // The refusal cannot be written down either; the boot goes on into the untouched system.
        name: "read-only ESP, before the commit",
        case: "reset",
        what: What::ReadOnly(Device::Esp, When::Start),
        boots: &[FAILED],
        why: "cannot remove 01234567.TAR: cannot remove /esp/restage/01234567.TAR: Read-only file \
              system (os error 30)",
    },
    Row {
        // A failure that cannot be counted holds at once.
        name: "read-only ESP, after the commit",
        case: "reset",
        what: What::ReadOnly(Device::Esp, When::Committed),
        boots: &[HOLD, HOLD],
        why: "cannot record progress: cannot open or make /esp/restage/01234567.R00: Read-only file \
              system (os error 30)",
    },
    Row {
        name: "full ESP, staging",
        case: "stage",
        what: What::Full(Device::Esp, When::Start),
        boots: &[FAILED],
        why: "cannot stage the request on the ESP: cannot make the directory /esp/restage: No space \
              left on device (os error 28)",
    },
    Row {
        name: "full ESP, before the commit",
        case: "reset",
        what: What::Full(Device::Esp, When::Start),
        boots: &[REFUSED],
        why: "cannot commit the operation: cannot make /esp/restage/01234567.TAR: No space left on \
              device (os error 28)",
    },
    Row {
        // The reserve is there for it.
        name: "full ESP, after the commit",
        case: "reset",
        what: What::Full(Device::Esp, When::Committed),
        boots: &[DONE],
        why: "",
    },
    Row {
        name: "corrupt primary table, staging",
        case: "stage",
        what: What::Tables(Damage::Primary, When::Start),
        boots: &[(Done, ContinueBoot, 0)],
        why: "",
    },
    Row {
        name: "corrupt backup table, staging",
        case: "stage",
        what: What::Tables(Damage::Backup, When::Start),
        boots: &[(Done, ContinueBoot, 0)],
        why: "",
    },
    Row {
        name: "corrupt primary table, before the commit",
        case: "reset",
        what: What::Tables(Damage::Primary, When::Start),
        boots: &[DONE],
        why: "",
    },
    Row {
        name: "corrupt backup table, before the commit",
        case: "reset",
        what: What::Tables(Damage::Backup, When::Start),
        boots: &[DONE],
        why: "",
    },
    Row {
        name: "corrupt primary table, after the commit",
        case: "reset",
        what: What::Tables(Damage::Primary, When::Committed),
        boots: &[DONE],
        why: "",
    },
    Row {
        name: "corrupt backup table, after the commit",
        case: "reset",
        what: What::Tables(Damage::Backup, When::Committed),
        boots: &[DONE],
        why: "",
    },
    Row {
        name: "both tables corrupt, staging",
        case: "stage",
        what: What::Tables(Damage::Both, When::Start),
        boots: &[FAILED],
        why: "the disk has no valid partition table: primary: ",
    },
    Row {
        name: "both tables corrupt, before the commit",
        case: "reset",
        what: What::Tables(Damage::Both, When::Start),
        boots: &[REFUSED],
        why: "the disk has no valid partition table: primary: ",
    },
    Row {
        name: "both tables corrupt, after the commit",
        case: "reset",
        what: What::Tables(Damage::Both, When::Committed),
        boots: &[RETRY, RETRY, HOLD, HOLD],
        why: "the disk has no valid partition table: primary: ",
    },
    Row {
        name: "both tables valid and different, staging",
        case: "stage",
        what: What::Tables(Damage::Differ, When::Start),
        boots: &[REFUSED],
        why: "the disk: both copies of the partition table are valid and differ; ",
    },
    Row {
        name: "both tables valid and different, before the commit",
        case: "reset",
        what: What::Tables(Damage::Differ, When::Start),
        boots: &[REFUSED],
        why: "the disk: both copies of the partition table are valid and differ; ",
    },
    Row {
        // The last step runs again, whatever is recorded.
        name: "both tables come back, after the last record",
        case: "reset",
        what: What::Tables(Damage::Returned, When::Recorded),
        boots: &[DONE],
        why: "",
    },
    Row {
        // A clock that runs behind is no reason.
        name: "a clock in 1970, reset",
        case: "reset",
        what: What::Clock(LATER, 0, When::Start),
        boots: &[DONE],
        why: "",
    },
    Row {
        name: "a clock in 1970 all the time, reset",
        case: "reset",
        what: What::Clock(0, 0, When::Start),
        boots: &[DONE],
        why: "",
    },
    Row {
        name: "a clock far ahead, reset",
        case: "reset",
        what: What::Clock(NOW, LATER, When::Start),
        boots: &[REFUSED],
        why: "field `staged.at`: the request is 438000 hours old, more than the 168 ",
    },
    Row {
        // The limit ends at the commit.
        name: "a clock far ahead, after the commit",
        case: "reset",
        what: What::Clock(NOW, LATER, When::Committed),
        boots: &[DONE],
        why: "",
    },
    Row {
        name: "a clock in 1970, restore",
        case: "restore",
        what: What::Clock(LATER, 0, When::Start),
        boots: &[OPEN],
        why: "",
    },
    Row {
        name: "a clock far ahead, restore",
        case: "restore",
        what: What::Clock(NOW, LATER, When::Start),
        boots: &[REFUSED],
        why: "field `staged.at`: the request is 1576800000 s old, and 604800 s is the limit",
    },
    Row {
        name: "read-only state, staging a restore",
        case: "restore-stage",
        what: What::ReadOnly(Device::State, When::Start),
        boots: &[FAILED],
        why: "cannot stage the backup: cannot make the directory /state/var/lib/restage: Read-only \
              file system (os error 30)",
    },
    Row {
        name: "full state, staging a restore",
        case: "restore-stage",
        what: What::Full(Device::State, When::Start),
        boots: &[FAILED],
        why: "cannot stage the backup: cannot make the directory /state/var/lib/restage: No space \
              left on device (os error 28)",
    },
    Row {
        name: "full state, before a restore's commit",
        case: "restore",
        what: What::Full(Device::State, When::Start),
        boots: &[FAILED],
        why: "cannot leave the report: cannot make /state/var/lib/restage/01234567.RPT: No space \
              left on device (os error 28)",
    },
    Row {
        name: "read-only ESP, cancelling",
        case: "cancel",
        what: What::ReadOnly(Device::Esp, When::Start),
        boots: &[FAILED],
        why: "cannot leave the report: cannot remove /esp/restage/01234567.RSV: Read-only file \
              system (os error 30)",
    },
    Row {
        name: "full ESP, cancelling",
        case: "cancel",
        what: What::Full(Device::Esp, When::Start),
        boots: &[(Done, ContinueBoot, 0)],
        why: "",
    },
    Row {
        name: "read-only ESP, staging a restore",
        case: "restore-stage",
        what: What::ReadOnly(Device::Esp, When::Start),
        boots: &[FAILED],
        why: "cannot stage the restore: cannot make the directory /esp/restage: Read-only file \
              system (os error 30)",
    },
    Row {
        name: "full ESP, staging a restore",
        case: "restore-stage",
        what: What::Full(Device::Esp, When::Start),
        boots: &[FAILED],
        why: "cannot stage the restore: cannot make the directory /esp/restage: No space left on \
              device (os error 28)",
    },
    Row {
        name: "read-only ESP, cancelling a restore",
        case: "restore-cancel",
        what: What::ReadOnly(Device::Esp, When::Start),
        boots: &[FAILED],
        why: "cannot remove a restore's flag from the ESP: cannot remove \
              /esp/restage/01234567.FLG: Read-only file system (os error 30)",
    },
    Row {
        name: "read-only state, cancelling a restore",
        case: "restore-cancel",
        what: What::ReadOnly(Device::State, When::Start),
        boots: &[FAILED],
        why: "cannot leave the report: cannot remove /state/var/lib/restage/01234567.RSV: \
              Read-only file system (os error 30)",
    },
    Row {
        name: "full state, cancelling a restore",
        case: "restore-cancel",
        what: What::Full(Device::State, When::Start),
        boots: &[(Done, ContinueBoot, 0)],
        why: "",
    },
    Row {
        // The flag has done its part.
        name: "read-only ESP, a restore",
        case: "restore",
        what: What::ReadOnly(Device::Esp, When::Start),
        boots: &[OPEN],
        why: "",
    },
    Row {
        name: "read-only state, after a restore's commit",
        case: "restore",
        what: What::ReadOnly(Device::State, When::Committed),
        boots: &[HOLD, HOLD],
        why: "the roll-back cannot begin (it could not be applied: cannot record progress: \
              cannot open or make /state/var/lib/restage/01234567.R00: Read-only file system (os \
              error 30)): cannot record progress: cannot make \
              /state/var/lib/restage/01234567.B00: Read-only file system (os error 30)",
    },
    Row {
        name: "full state, after a restore's commit",
        case: "restore",
        what: What::Full(Device::State, When::Committed),
        boots: &[OPEN],
        why: "",
    },
    Row {
        name: "read-only state, confirming",
        case: "confirm",
        what: What::ReadOnly(Device::State, When::Start),
        boots: &[FAILED],
        why: "cannot record progress: cannot open or make /state/var/lib/restage/01234567.C00: \
              Read-only file system (os error 30)",
    },
    Row {
        name: "full state, confirming",
        case: "confirm",
        what: What::Full(Device::State, When::Start),
        boots: &[(Done, ContinueBoot, 0)],
        why: "",
    },
    Row {
        // It is confirmed, and its flag is taken away by the next boot.
        name: "read-only ESP, confirming",
        case: "confirm",
        what: What::ReadOnly(Device::Esp, When::Start),
        boots: &[FAILED],
        why: "cannot remove a restore's flag from the ESP: cannot remove \
              /esp/restage/01234567.FLG: Read-only file system (os error 30)",
    },
    Row {
        name: "read-only state, a roll-back",
        case: "roll-back",
        what: What::ReadOnly(Device::State, When::Start),
        boots: &[HOLD, HOLD],
        why: "the roll-back cannot begin (it could not be applied: cannot record progress: \
              cannot open or make /state/var/lib/restage/01234567.R03: Read-only file system (os \
              error 30)): cannot record progress: cannot make \
              /state/var/lib/restage/01234567.B00: Read-only file system (os error 30)",
    },
    Row {
        name: "full state, a roll-back",
        case: "roll-back",
        what: What::Full(Device::State, When::Start),
        boots: &[(RolledBack, ContinueBoot, 0)],
        why: "it was not confirmed in 3 boots",
    },
    Row {
        // Nothing could be counted.
        name: "state that cannot be synced, before a roll-back",
        case: "roll-back",
        what: What::Unsynced(Device::State, When::Start),
        boots: &[HOLD, HOLD],
        why: "cannot make durable what lies there: cannot sync the file system of \
              /state/var/lib/restage: Input/output error (os error 5)",
    },
    Row {
        // The old state is in place, and stays: nothing is there to wait for.
        name: "state that cannot be synced, after a roll-back's exchange",
        case: "roll-back",
        what: What::Unsynced(Device::State, When::Decided),
        boots: &[LATER_BOOT, LATER_BOOT],
        why: "cannot make durable what lies there: cannot sync the file system of \
              /state/var/lib/restage: Input/output error (os error 5)",
    },
];
