//! Of a restore, its confirmation and its roll-back: what the OS may have done in between, and who else.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::io::{self, BufRead};

use restage::apply::restore::probe::Trial;
use restage::apply::restore::{Restored, at_boot};
use restage::format::archive::{self, Layout};
use restage::request::stage_restore;
use restage_campaign::cases::restore::{All, Lab, OWN_DIRECTORY, STATE, part, state_text};
use restage_campaign::model::files::Found;
use restage_campaign::model::slots::Slots;
use restage_campaign::model::{Device, World};

use crate::{after, put, text};

const SIBLING: &str = "var/lib/.incus-os.restage/";
/// Neither of the two that the backup and the machine have.
const ANOTHER: &str = "made-in-the-window-01";
const CONFIRMED: Slots = Slots { there: [true, false, true], ..Slots::BEFORE };
const BOTH: Slots = Slots { there: [true, true, true], ..Slots::BEFORE };

/// One boot, and the machine at rest after it.
fn boot_after(lab: &Lab, world: &World, crashes: usize) -> (Restored, World) {
    let world = world.share();
    let mut machine = lab.machine(&world).unwrap();
    machine.crashes = crashes;
    let restored = at_boot(&mut machine, &lab.profile).unwrap();
    let world = world.borrow();
    (restored, world.settled())
}

fn boot(lab: &Lab, world: &World) -> (Restored, World) {
    boot_after(lab, world, 0)
}

fn confirm(lab: &Lab, world: &World) -> (Restored, World) {
    let world = world.share();
    let confirmed = lab.confirm(&world).unwrap();
    let world = world.borrow();
    (confirmed, world.settled())
}

/// Boots until the restore is over; the last answer.
fn until_over(lab: &Lab, world: &World) -> (Restored, World) {
    let mut world = world.clone();
    for _ in 0..12 {
        let (restored, next) = boot(lab, &world);
        if next.state.all().contains_key(&own("01234567.RPT")) {
            return (restored, next);
        }
        world = next;
    }
    panic!("it never ends: {:?}", world.state.all().keys());
}

fn own(name: &str) -> String {
    format!("{OWN_DIRECTORY}{name}")
}

fn state(world: &World) -> All {
    part(&world.state.all(), STATE)
}

fn sibling(world: &World) -> All {
    part(&world.state.all(), SIBLING)
}

#[test]
fn after_a_confirmation_nothing_rolls_back_and_a_second_run_changes_nothing() {
    let lab = Lab::new("");
    let (restored, world) = confirm(&lab, &lab.window);
    assert!(matches!(restored, Restored::Confirmed), "{restored:?}");
    assert_eq!(world.slots, [CONFIRMED; 2]);
    let mut now = world.clone();
    for _ in 0..5 {
        for next in [boot(&lab, &now), confirm(&lab, &now)] {
            assert!(matches!(next.0, Restored::Nothing), "{:?}", next.0);
            now = next.1;
        }
    }
    assert_eq!(now.digest(), world.digest());
}

#[test]
fn whatever_the_os_does_in_the_window_the_old_state_comes_back() {
    let lab = Lab::new("");
    let changed = |name: &str, bytes: Option<&[u8]>| {
        after(&lab.window, Device::State, STATE, |state| match bytes {
            Some(bytes) => put(state, name, bytes),
            None => assert!(state.remove_file(name.as_ref()).unwrap()),
        })
    };
    let mut made_anew = lab.window.clone();
    made_anew.slots[1] = Slots::OTHER;
    let directory = after(&lab.window, Device::State, STATE, |state| {
        state.new_directory("subdirectory".as_ref()).unwrap();
    });
    let another = state_text("there", ANOTHER);
    for (what, world) in [
        ("the state file is damaged", changed("state.txt", Some(b"hello"))),
        ("the state file is gone", changed("state.txt", None)),
        ("another passphrase", changed("state.txt", Some(another.as_bytes()))),
        ("a directory", directory),
        ("a volume was made anew", made_anew),
        ("the machine's key is gone", changed("recovery.root.key", None)),
    ] {
        let (ended, end) = until_over(&lab, &world);
        assert!(matches!(ended, Restored::RolledBack(_)), "{what}: {ended:?}");
        assert_eq!(state(&end), state(&lab.clean), "{what}");
        assert_eq!(sibling(&end), All::new(), "{what}");
        assert_eq!(end.slots[0], Slots::BEFORE, "{what}");
        let wanted = if world.slots[1].is_other { Slots::OTHER } else { Slots::BEFORE };
        assert_eq!(end.slots[1], wanted, "{what}");
    }
}

#[test]
fn what_looks_like_a_key_and_is_no_file_is_never_destroyed() {
    let lab = Lab::new("");
    let odd = "zpool.odd.key";
    let mut world = after(&lab.window, Device::State, STATE, |state| {
        state.new_directory(odd.as_ref()).unwrap();
    });
    for _ in 0..2 {
        let (restored, next) = boot(&lab, &world);
        assert!(matches!(restored, Restored::Window { .. }), "{restored:?}");
        world = next;
    }
    // The boot goes on, with the old state; the other one stays as long as that lies there.
    for _ in 0..8 {
        let (restored, next) = boot(&lab, &world);
        let Restored::Later(error) = restored else { panic!("{restored:?}") };
        assert!(error.chain().contains(odd), "{}", error.chain());
        assert_eq!(state(&next), state(&lab.clean));
        assert_eq!(sibling(&next).get(odd), Some(&Found::Directory));
        world = next;
    }
    let world = after(&world, Device::State, SIBLING, |sibling| {
        assert!(sibling.remove_directory(odd.as_ref()).unwrap());
    });
    let (restored, _) = boot(&lab, &world);
    assert!(matches!(restored, Restored::RolledBack(_)), "{restored:?}");
}

#[test]
fn no_old_passphrase_goes_before_one_that_the_state_lists_is_known_to_work() {
    let lab = Lab::new("");
    let world = after(&lab.window, Device::State, STATE, |state| {
        put(state, "state.txt", state_text("there", ANOTHER).as_bytes());
    });
    let (restored, world) = confirm(&lab, &world);
    assert!(matches!(restored, Restored::Confirmed), "{restored:?}");
    assert_eq!(world.slots, [BOTH; 2]);
    let report = text(&world, Device::State, &own("01234567.RPT"));
    assert!(report.contains("no passphrase of `state.txt` opens another key slot of `root`"));
}

#[test]
fn a_volume_that_is_another_one_does_not_keep_a_confirmation_open() {
    let lab = Lab::new("");
    let mut world = lab.window.clone();
    world.slots[1] = Slots::OTHER;
    let (restored, world) = confirm(&lab, &world);
    assert!(matches!(restored, Restored::Confirmed), "{restored:?}");
    assert_eq!(world.slots, [CONFIRMED, Slots::OTHER]);
}

#[test]
fn a_crash_at_each_start_does_not_repeat_for_ever() {
    let lab = Lab::new("");
    // Before the commit: refused.
    let (restored, world) = boot_after(&lab, &lab.staged, 3);
    let Restored::Refused(why) = restored else { panic!("{restored:?}") };
    assert!(why[0].contains("ended 3 times"), "{why:?}");
    assert_eq!(state(&world), state(&lab.clean));
    // After it: rolled back.
    let (restored, _) = boot_after(&lab, &lab.window, 2);
    assert!(matches!(restored, Restored::Window { .. }), "{restored:?}");
    let (restored, world) = boot_after(&lab, &lab.window, 3);
    assert!(matches!(restored, Restored::RolledBack(_)), "{restored:?}");
    assert_eq!((state(&world), world.slots), (state(&lab.clean), [Slots::BEFORE; 2]));
    // While it is rolled back: held, in the end.
    let world = after(&lab.window, Device::State, OWN_DIRECTORY, |directory| {
        put(directory, "01234567.B00", b"");
    });
    let (restored, _) = boot_after(&lab, &world, 6);
    assert!(matches!(restored, Restored::Unfinished(_)), "{restored:?}");
}

#[test]
fn without_space_nothing_is_committed() {
    let lab = Lab::new("");
    let mut world = lab.staged.clone();
    // Room for a report, and not for another state.
    world.state.clusters = Some(world.state.used_clusters() + 8);
    let shared = world.share();
    let mut machine = lab.machine(&shared).unwrap();
    let none = BTreeSet::new();
    let source = &mut lab.archive.as_slice();
    let checked = stage_restore::check(&mut machine, &lab.profile, &none, source, Trial::Make);
    let why = checked.unwrap().err().unwrap().reason;
    assert!(why.contains("bytes are free"), "{why}");
    let (restored, world) = boot(&lab, &world);
    let Restored::Refused(why) = restored else { panic!("{restored:?}") };
    assert!(why[0].contains("bytes are free"), "{why:?}");
    assert_eq!((state(&world), sibling(&world)), (state(&lab.clean), All::new()));
}

thread_local! {
    /// So many times more who parses an archive fails at its end.
    static FAILURES: Cell<usize> = const { Cell::new(0) };
}

fn sometimes(
    source: &mut dyn BufRead,
    layout: Layout,
    limits: archive::Limits,
    visit: &mut archive::Visit<'_>,
) -> Result<(), archive::ReadError> {
    let read = archive::read(source, layout, limits, visit);
    let left = FAILURES.get();
    FAILURES.set(left.saturating_sub(1));
    let killed = || archive::ReadError::Parser(io::Error::other("killed"));
    if left == 0 { read } else { Err(killed()) }
}

/// What became of the process that parses the archive says nothing of the archive.
#[test]
fn a_parser_that_fails_is_asked_once_more() {
    let lab = Lab::new("");
    for failures in [0, 1, 2] {
        let world = lab.staged.share();
        let mut machine = lab.machine(&world).unwrap();
        machine.parse = sometimes;
        FAILURES.set(failures);
        match at_boot(&mut machine, &lab.profile).unwrap() {
            Restored::Window { .. } => assert!(failures < 2),
            Restored::Refused(why) => {
                assert_eq!(failures, 2);
                assert!(why[0].contains("killed"), "{why:?}");
                let world = world.borrow();
                assert_eq!((state(&world), sibling(&world)), (state(&lab.clean), All::new()));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn the_other_state_without_a_journal_is_left_alone() {
    let lab = Lab::new("");
    let staged = part(&lab.staged.state.all(), OWN_DIRECTORY);
    // As if restage's directory had come back from before the boot.
    let world = after(&lab.window, Device::State, OWN_DIRECTORY, |directory| {
        for name in directory.names().unwrap() {
            let _ = directory.remove_file(&name);
        }
        for (name, found) in &staged {
            let Found::File(bytes) = found else { continue };
            put(directory, name, bytes);
        }
    });
    let before = sibling(&world);
    assert_eq!(before, state(&lab.clean));
    let (restored, world) = boot(&lab, &world);
    let Restored::Refused(why) = restored else { panic!("{restored:?}") };
    assert!(why[0].contains("no journal says why"), "{why:?}");
    assert_eq!(sibling(&world), before);
}

#[test]
fn a_journal_that_this_profile_could_not_have_made_holds() {
    let lab = Lab::new("");
    let journal = text(&lab.window, Device::State, &own("01234567.JNL"));
    for (field, value) in [("IncusOS", "OtherOS"), ("\"name\":\"swap\"", "\"name\":\"sweep\"")] {
        let (head, body) = journal.trim_end().split_once("\"body\":").unwrap();
        let body = body.strip_suffix('}').unwrap().replace(field, value);
        let digest = restage::format::sha256_hex(body.as_bytes());
        let start = head.find("\"sha256\":\"").unwrap() + 10;
        let head = format!("{}{digest}{}", &head[..start], &head[start + 64..]);
        let forged = format!("{head}\"body\":{body}}}\n");
        assert_ne!(forged, journal);
        let world = after(&lab.window, Device::State, OWN_DIRECTORY, |directory| {
            put(directory, "01234567.JNL", forged.as_bytes());
        });
        let (restored, end) = boot(&lab, &world);
        let Restored::Unfinished(error) = restored else { panic!("{restored:?}") };
        assert!(error.chain().contains("nothing was touched"), "{}", error.chain());
        assert_eq!(end.digest(), world.digest());
    }
}
