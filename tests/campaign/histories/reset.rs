//! Of a factory reset.

use std::sync::Arc;

use restage::apply::journal::reports;
use restage::apply::reset::Applied;
use restage::error::Next;
use restage::report::{Outcome, Report};
use restage_campaign::cases::reset::USUAL;
use restage_campaign::cases::reset::disk::with_another;
use restage_campaign::cases::reset::lab::Lab;
use restage_campaign::model::call::{Broken, Listing, Place};
use restage_campaign::model::{Call, Device, Shared, World};
use restage_campaign::steps;
use uuid::Uuid;

fn report(lab: &Lab, world: &Shared) -> Report {
    reports(lab.machine(world).unwrap().esp.as_ref()).unwrap().remove(0)
}

/// Right after the first change of this step.
fn in_step(lab: &Lab, name: &str) -> World {
    steps::listen();
    steps::begin();
    let world = lab.staged.share();
    let trace = world.borrow_mut().trace();
    lab.apply(&world).unwrap();
    let changes = trace.lock().unwrap();
    let change = changes.iter().find(|change| steps::name(change.step) == name).unwrap();
    change.world.settled()
}

#[test]
fn an_esp_from_before_does_nothing_to_the_new_system() {
    let lab = Lab::new(USUAL);
    let new = lab.recover(&lab.staged.share()).unwrap();
    let mut world = new.clone();
    world.esp = lab.staged.esp.clone();
    let calls = Listing::default();
    world.listing = Some(calls.clone());
    let world = world.share();
    assert!(matches!(lab.apply(&world).unwrap(), Applied::Refused(_)));
    let calls = std::mem::take(&mut *calls.lock().unwrap());
    let of_disk = || calls.iter().filter(|call| call.device == Device::Disk);
    assert!(of_disk().any(|call| call.verb == "read"));
    // The boot goes on with this disk: closing one that was open for writing has it looked at anew.
    assert!(of_disk().all(|call| call.call == Call::Read && call.verb != "open"));
    assert_eq!(report(&lab, &world).outcome, Outcome::Refused);
    let world = world.borrow().settled();
    assert_eq!((world.disk.digest(), world.tpm_seed), (new.disk.digest(), new.tpm_seed));
}

#[test]
fn three_failures_hold_and_the_next_power_cycle_tries_once_more() {
    let lab = Lab::new(USUAL);
    // A disk that has gone read-only, as worn-out flash does.
    let (calls, place) = (&[Call::Change], Place::Everywhere);
    let worn = Broken { device: Device::Disk, calls, place, error: 30, from: 0 };
    let mut world = lab.staged.clone();
    for next in
        [Next::RetryNextBoot, Next::RetryNextBoot, Next::HoldForOperator, Next::HoldForOperator]
    {
        let boot = world.share();
        boot.borrow_mut().broken = Some(Arc::new(worn.clone()));
        match lab.apply(&boot).unwrap() {
            Applied::Unfinished(error) => assert_eq!(error.next(), next, "{error:?}"),
            other => panic!("{other:?}"),
        }
        world = boot.borrow().settled();
    }
    let boot = world.share();
    assert!(matches!(lab.apply(&boot).unwrap(), Applied::Done { .. }));
    let report = report(&lab, &boot);
    assert_eq!((report.runs, report.failures.len()), (5, 4));
    assert!(report.failures[0].contains("cannot write the seeds"), "{:?}", report.failures);
}

#[test]
fn a_journal_for_something_else_holds_and_touches_nothing() {
    let lab = Lab::new(USUAL);
    let mut world = in_step(&lab, "wipe swap");
    // Root was made anew by somebody.
    world.disk = with_another(&world.disk, 5, |root| root.part_guid = Uuid::from_u128(5));
    let boot = world.share();
    match lab.apply(&boot).unwrap() {
        Applied::Unfinished(error) => {
            assert_eq!(error.next(), Next::HoldForOperator);
            assert!(error.chain().contains("is another one now"), "{}", error.chain());
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(boot.borrow().settled().digest(), world.digest());
}
