//! What a rollback that waits takes for the machine's reset, and what it does not:
//! one test for each row of the table in `docs/rollback.md`, with a front end that
//! sends what QEMU does.

use serde_json::Value;
use snapback::control::api::{ResetKind, Seen};

use super::machine::{FIRMWARE, Machine, SYSTEM};
use super::*;

const SPOILT: [u8; 512] = [0xee; 512];

/// A rollback to `before` that waits, and what the first sector was then.
fn waiting(reset: ResetKind) -> (World, Vec<u8>) {
    let mut world = World::new();
    let before = world.spoilt(&[]);
    ask(&world, reset);
    (world, before)
}

fn ask(world: &World, reset: ResetKind) -> Vec<String> {
    let request = RollbackRequest {
        snapshot: "before".into(),
        when: RollbackWhen::AtReset,
        reset,
        ..Default::default()
    };
    let reply = world.client().rollback(&request).unwrap();
    assert_eq!(reply.outcome, RollbackOutcome::AtNextReset);
    reply.notes
}

/// It still waits, and status and events say who was seen and what to do.
fn still_waits(world: &World, machine: &mut Machine, seen: Seen) {
    assert_eq!(machine.read(), SPOILT, "{seen:?}");
    assert_waits(world, seen);
}

fn assert_waits(world: &World, seen: Seen) {
    let status = world.client().status().unwrap();
    assert_eq!(status.rollback_at_reset.as_deref(), Some("before"));
    let pending = status.rollback.unwrap();
    assert_eq!(pending.seen, Some(seen));
    let note = pending.note.unwrap();
    assert!(note.contains("eset the") && note.contains("rollback before") || seen == Seen::Boot);
    let events = world.client().events(0, None).unwrap().events;
    let told = events.iter().rfind(|e| e["kind"] == "rollback-waits");
    let told = told.unwrap();
    assert_eq!(told["seen"], serde_json::to_value(seen).unwrap());
    assert_eq!(told["reason"], Value::from(note.clone()));
    // And the status for people.
    let text = snapback::control::render::human(&world.client().status().unwrap());
    assert!(text.contains(&note), "{text}");
}

/// The machine's firmware finds the old disk, and so does its system.
fn rolls_back(machine: &mut Machine, before: &[u8]) {
    machine.begin(FIRMWARE);
    assert_eq!(machine.read(), before, "what the firmware reads");
    machine.begin(SYSTEM);
    assert_eq!(machine.read(), before, "what the system reads");
}

#[test]
fn a_reset_shows_the_firmware_and_rolls_back_before_it_reads() {
    let mut world = World::new();
    let before = world.spoilt(&[]);
    let mut machine = Machine::power_on(&world.path("a.sock"), FIRMWARE);
    machine.begin(SYSTEM);
    assert_eq!(machine.read(), SPOILT);
    let notes = ask(&world, ResetKind::Machine);
    assert!(
        notes.iter().all(|n| !n.contains("boot loader")),
        "{notes:?}"
    );
    assert!(notes.concat().contains("without firmware"), "{notes:?}");
    rolls_back(&mut machine, &before);
    assert!(world.client().status().unwrap().rollback.is_none());
}

/// Suspend and resume, unbind and bind, remove and rescan, kexec, a time-out.
#[test]
fn a_driver_that_is_restarted_under_its_guest_is_no_reset() {
    let mut world = World::new();
    let before = world.spoilt(&[]);
    let mut machine = Machine::power_on(&world.path("a.sock"), FIRMWARE);
    machine.begin(SYSTEM);
    machine.read();
    ask(&world, ResetKind::Machine);
    for _ in 0..3 {
        machine.begin(SYSTEM);
        still_waits(&world, &mut machine, Seen::DriverRestart);
    }
    // A pause says nothing at all.
    machine.stop();
    machine.go_on();
    assert_eq!(machine.read(), SPOILT);
    rolls_back(&mut machine, &before);
}

#[test]
fn any_drivers_start_is_a_reset_if_the_operator_says_so_and_the_answer_warns() {
    let mut world = World::new();
    let before = world.spoilt(&[]);
    let mut machine = Machine::power_on(&world.path("a.sock"), SYSTEM);
    machine.read();
    let notes = ask(&world, ResetKind::Any).concat();
    assert!(
        notes.contains("suspend") && notes.contains("corrupted"),
        "{notes}"
    );
    machine.stop();
    machine.go_on();
    assert_eq!(machine.read(), SPOILT, "a pause is none");
    machine.begin(SYSTEM);
    assert_eq!(machine.read(), before);
}

#[test]
fn asked_for_in_the_boot_loader_it_waits_for_the_reset_after_it_and_says_so() {
    let mut world = World::new();
    let before = world.spoilt(&[]);
    let mut machine = Machine::power_on(&world.path("a.sock"), FIRMWARE);
    assert_eq!(machine.read(), SPOILT);
    let notes = ask(&world, ResetKind::Machine);
    assert!(notes.concat().contains("boot loader"), "{notes:?}");
    machine.begin(SYSTEM);
    still_waits(&world, &mut machine, Seen::Boot);
    rolls_back(&mut machine, &before);
}

#[test]
fn a_reset_in_the_boot_loader_rolls_back() {
    let mut world = World::new();
    let before = world.spoilt(&[]);
    let mut machine = Machine::power_on(&world.path("a.sock"), FIRMWARE);
    machine.read();
    ask(&world, ResetKind::Machine);
    rolls_back(&mut machine, &before);
}

/// QEMU's tools open the socket of a disk that no guest uses.
#[test]
fn a_program_that_looks_at_the_disk_is_no_guest() {
    let (world, before) = waiting(ResetKind::Machine);
    for _ in 0..2 {
        let mut look = Guest::connect(&world.path("a.sock"));
        assert_eq!(look.read(0, 512).unwrap(), SPOILT);
        assert_waits(&world, Seen::Program);
        drop(look);
        world.until("it has left", |w| !w.attached());
    }
    let mut machine = Machine::power_on(&world.path("a.sock"), FIRMWARE);
    assert_eq!(machine.read(), before, "the guest that starts then");
}

#[test]
fn a_machine_that_is_started_again_rolls_back_with_firmware_and_without() {
    for features in [FIRMWARE, SYSTEM] {
        let (world, before) = waiting(ResetKind::Machine);
        let mut machine = Machine::power_on(&world.path("a.sock"), features);
        assert_eq!(machine.read(), before, "{features:#x}");
    }
}

/// The daemon does not know how the last guest's connection ended, so a system
/// without a firmware before it may be an old guest whose driver was restarted.
#[test]
fn after_a_restart_of_the_daemon_only_a_firmware_is_known_to_be_a_reset() {
    let (mut world, before) = waiting(ResetKind::Machine);
    world.terminate();
    world.start(&[]);
    let mut machine = Machine::power_on(&world.path("a.sock"), SYSTEM);
    still_waits(&world, &mut machine, Seen::Unclear);
    drop(machine);
    world.until("it has left", |w| !w.attached());
    // That one is known to have left.
    let mut machine = Machine::power_on(&world.path("a.sock"), SYSTEM);
    assert_eq!(machine.read(), before);
}

#[test]
fn a_guest_that_goes_on_after_a_restart_of_the_daemon_is_rolled_back_at_its_reset() {
    for kill in [false, true] {
        let mut world = World::new();
        let before = world.spoilt(&[]);
        let mut machine = Machine::power_on(&world.path("a.sock"), FIRMWARE);
        machine.begin(SYSTEM);
        machine.read();
        ask(&world, ResetKind::Machine);
        if kill {
            world.kill();
        } else {
            world.terminate();
        }
        world.start(&[]);
        machine.reconnect();
        assert_eq!(machine.read(), SPOILT);
        let pending = world.client().status().unwrap().rollback.unwrap();
        assert_eq!(pending.seen, None, "going on is no news");
        machine.begin(SYSTEM);
        still_waits(&world, &mut machine, Seen::DriverRestart);
        rolls_back(&mut machine, &before);
    }
}

/// The guest of a daemon that was restarted is there, though it is not attached yet.
#[test]
fn a_guest_that_has_not_come_back_yet_is_not_rolled_back_under() {
    for kill in [false, true] {
        let mut world = World::new();
        let before = world.spoilt(&[]);
        let mut machine = Machine::power_on(&world.path("a.sock"), FIRMWARE);
        machine.begin(SYSTEM);
        machine.read();
        if kill {
            world.kill();
        } else {
            world.terminate();
        }
        // A second restart, and a look, change nothing about that.
        world.start(&[]);
        world.terminate();
        world.start(&[]);
        drop(Guest::connect(&world.path("a.sock")));
        world.until("it has left", |w| !w.attached());
        let request = RollbackRequest {
            snapshot: "before".into(),
            ..Default::default()
        };
        let reply = world.client().rollback(&request).unwrap();
        assert_eq!(reply.outcome, RollbackOutcome::AtNextReset);
        assert!(reply.notes[0].contains("before --now"), "{reply:?}");
        machine.reconnect();
        assert_eq!(machine.read(), SPOILT);
        rolls_back(&mut machine, &before);
    }
}

#[test]
fn with_the_guest_known_to_be_off_a_rollback_happens_now_also_after_a_restart() {
    let mut world = World::new();
    let before = world.spoilt(&[]);
    world.terminate();
    world.start(&[]);
    assert_eq!(
        world.rollback("before", RollbackWhen::Auto),
        RollbackOutcome::Started
    );
    world.merged();
    assert_eq!(world.origin()[..512], before);
    // After a kill nobody knows. What the answer advises then:
    world
        .client()
        .add_snapshot(&world.snapshot("again"))
        .unwrap();
    world.kill();
    world.start(&[]);
    assert_eq!(
        world.rollback("again", RollbackWhen::Auto),
        RollbackOutcome::AtNextReset
    );
    assert_eq!(
        world.rollback("again", RollbackWhen::Now),
        RollbackOutcome::Started
    );
}

#[test]
fn a_merge_under_an_attached_guest_is_refused_with_the_right_verb() {
    let mut world = World::new();
    let before = world.spoilt(&[]);
    let mut machine = Machine::power_on(&world.path("a.sock"), SYSTEM);
    machine.read();
    let mut request = MergeRequest {
        snapshot: "before".into(),
        ..Default::default()
    };
    for follow in [false, true] {
        request.follow = follow;
        let error = world.client().merge(&request).unwrap_err().to_string();
        let verb = if follow {
            "merge before --follow --now"
        } else {
            "rollback before,"
        };
        assert!(error.contains(verb) && error.contains("--now"), "{error}");
        assert!(error.contains("a.sock"), "{error}");
        assert_eq!(machine.read(), SPOILT);
        assert!(world.state()["merge"].is_null());
    }
    // What the first refusal advises.
    assert_eq!(
        world.rollback("before", RollbackWhen::Auto),
        RollbackOutcome::AtNextReset
    );
    rolls_back(&mut machine, &before);
    world.merged();
    // What the second one does: the guest has to leave.
    world
        .client()
        .add_snapshot(&world.snapshot("fork"))
        .unwrap();
    let mut request = MergeRequest {
        snapshot: "fork".into(),
        follow: true,
        ..Default::default()
    };
    world.client().merge(&request).unwrap_err();
    drop(machine);
    world.until("it has left", |w| !w.attached());
    world.client().merge(&request).unwrap();
    world.merged();
    // And insisting works.
    let machine = Machine::power_on(&world.path("a.sock"), SYSTEM);
    world
        .client()
        .add_snapshot(&world.snapshot("last"))
        .unwrap();
    request.snapshot = "last".into();
    request.now = true;
    world.client().merge(&request).unwrap();
    world.merged();
    drop(machine);
}
