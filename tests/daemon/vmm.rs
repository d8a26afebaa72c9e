//! `rollback --qmp`: the guest is stopped, its disk rolled back, the guest reset
//! and let go; and every step of that may fail.

use super::machine::{FIRMWARE, Machine, SYSTEM};
use super::monitor::{Fault, Monitor};
use super::*;

const SPOILT: [u8; 512] = [0xee; 512];
const ALL: [&str; 4] = ["query-status", "stop", "system_reset", "cont"];

/// A guest that runs on an overwritten disk, its monitor, and what the first sector was.
fn running(arguments: &[&str]) -> (World, Monitor, Vec<u8>) {
    let mut world = World::new();
    let before = world.spoilt(arguments);
    let mut machine = Machine::power_on(&world.path("a.sock"), FIRMWARE);
    machine.begin(SYSTEM);
    assert_eq!(machine.read(), SPOILT);
    let monitor = Monitor::of(machine, world.folder.path());
    (world, monitor, before)
}

fn request(monitor: &Monitor) -> RollbackRequest {
    RollbackRequest {
        snapshot: "before".into(),
        when: RollbackWhen::Vmm,
        qmp: Some(monitor.text()),
        ..Default::default()
    }
}

/// The guest runs on the disk as it was, and nothing of the attempt is left.
fn goes_on_as_before(world: &World, monitor: &Monitor) {
    assert!(!monitor.paused());
    assert_eq!(monitor.with(Machine::read), SPOILT);
    let state = world.state();
    for gone in ["merge", "rollback_at_reset", "stopped_guest"] {
        assert!(state[gone].is_null(), "{gone}: {state}");
    }
    assert_eq!(state["snapshots"].as_array().unwrap().len(), 1, "{state}");
    assert!(!world.path("undo.cow").exists());
}

#[test]
fn one_command_stops_rolls_back_resets_and_goes_on() {
    let (world, monitor, before) = running(&[]);
    let mut request = request(&monitor);
    request.keep = Some(world.snapshot("undo"));
    let reply = world.client().rollback(&request).unwrap();
    assert_eq!(reply.outcome, RollbackOutcome::GuestReset);
    assert_eq!(monitor.log(), ALL);
    assert_eq!(
        monitor.with(Machine::read),
        before,
        "what the firmware reads"
    );
    assert_eq!(
        Guest::connect(&world.path("undo.sock"))
            .read(0, 512)
            .unwrap(),
        SPOILT,
        "what was kept"
    );
    monitor.with(|m| m.begin(SYSTEM));
    world.merged();
    assert_eq!(monitor.with(Machine::read), before);
    assert!(world.state()["stopped_guest"].is_null());
}

#[test]
fn a_guest_that_was_paused_before_stays_paused() {
    let (world, monitor, before) = running(&[]);
    monitor.with(Machine::stop);
    monitor.inside.lock().unwrap().paused = Some("paused");
    let reply = world.client().rollback(&request(&monitor)).unwrap();
    assert_eq!(reply.outcome, RollbackOutcome::GuestResetPaused);
    assert_eq!(monitor.log(), ["query-status", "system_reset"]);
    assert!(monitor.paused());
    monitor.with(|m| m.begin(FIRMWARE));
    assert_eq!(monitor.with(Machine::read), before);
}

#[test]
fn a_monitor_that_the_daemon_knows_is_used_by_a_plain_rollback_also_after_a_restart() {
    let (mut world, monitor, before) = running(&["--qmp", "qmp.sock"]);
    let plain = RollbackRequest {
        snapshot: "before".into(),
        ..Default::default()
    };
    world.terminate();
    world.start(&[]);
    monitor.with(|m| {
        m.reconnect();
        m.read()
    });
    let reply = world.client().rollback(&plain).unwrap();
    assert_eq!(reply.outcome, RollbackOutcome::GuestReset);
    assert_eq!(monitor.with(Machine::read), before);
    world.terminate();
    world.start(&["--no-qmp"]);
    assert!(world.state()["qmp"].is_null());
}

/// Whatever fails before the handover, the guest goes on as if nothing had been.
#[test]
fn a_failure_before_the_handover_lets_the_guest_go_on() {
    let faults = [
        ("greeting", Fault::Hang, "one client at a time", &[][..]),
        ("qmp_capabilities", Fault::Refuse, "not today", &[]),
        (
            "query-status",
            Fault::Close,
            "closed the connection",
            &ALL[..1],
        ),
        ("query-status", Fault::Hang, "did not answer", &ALL[..1]),
        (
            "stop",
            Fault::Refuse,
            "not today",
            &["query-status", "stop", "cont"],
        ),
        // Whether it stopped is not known: it is let go in any case.
        (
            "stop",
            Fault::Hang,
            "did not answer",
            &["query-status", "stop", "cont"],
        ),
        (
            "stop",
            Fault::DoneUnheard,
            "did not answer",
            &["query-status", "stop", "cont"],
        ),
    ];
    let (world, monitor, before) = running(&[]);
    for (command, fault, word, log) in faults {
        monitor.fail(command, fault);
        let mut request = request(&monitor);
        request.keep = Some(world.snapshot("undo"));
        let error = world.client().rollback(&request).unwrap_err().to_string();
        assert!(error.contains(word), "{command} {fault:?}: {error}");
        assert_eq!(monitor.log(), log, "{command} {fault:?}");
        goes_on_as_before(&world, &monitor);
    }
    // The handover itself.
    monitor.inside.lock().unwrap().fault = None;
    let in_the_way = world.path("disk.img.snapback.new");
    let mut keeping = request(&monitor);
    keeping.keep = Some(world.snapshot("undo"));
    for place in ["undo.sock", "disk.img.snapback.new"] {
        fs::create_dir(world.path(place)).unwrap();
        let error = world.client().rollback(&keeping).unwrap_err().to_string();
        let before_the_stop = place == "disk.img.snapback.new";
        if !before_the_stop {
            assert!(error.contains("the guest continues as before"), "{error}");
            assert_eq!(monitor.log(), ["query-status", "stop", "cont"]);
        }
        goes_on_as_before(&world, &monitor);
        fs::remove_dir(world.path(place)).unwrap();
    }
    assert!(!in_the_way.exists());
    monitor.log();
    // Nothing of all that is in the way of a good one.
    let reply = world.client().rollback(&keeping).unwrap();
    assert_eq!(reply.outcome, RollbackOutcome::GuestReset);
    assert_eq!(monitor.log(), ALL);
    assert_eq!(monitor.with(Machine::read), before);
}

#[test]
fn a_monitor_that_dies_after_the_stop_is_told_with_what_to_do() {
    let (world, monitor, _) = running(&[]);
    monitor.fail("stop", Fault::Close);
    let error = world.client().rollback(&request(&monitor)).unwrap_err();
    let error = error.to_string();
    assert!(error.contains("was not rolled back"), "{error}");
    assert!(
        error.contains("MAY STILL BE STOPPED") && error.contains("`cont`"),
        "{error}"
    );
    assert_eq!(monitor.with(Machine::read), SPOILT);
}

/// What fails after the handover leaves the guest standing on a disk that is not
/// the one it remembers: it must not be let go, and the answer says how it is.
#[test]
fn a_failure_after_the_handover_says_how_the_guest_is_left() {
    for (command, fault, words) in [
        (
            "system_reset",
            Fault::Refuse,
            ["not today", "OLD DISK IN MEMORY"],
        ),
        (
            "system_reset",
            Fault::Hang,
            ["did not answer", "OLD DISK IN MEMORY"],
        ),
        (
            "system_reset",
            Fault::Silent,
            ["report RESET", "OLD DISK IN MEMORY"],
        ),
        (
            "system_reset",
            Fault::Close,
            ["closed", "OLD DISK IN MEMORY"],
        ),
        ("cont", Fault::Refuse, ["not today", "with `cont`"]),
        ("cont", Fault::Hang, ["did not answer", "with `cont`"]),
    ] {
        let (world, monitor, before) = running(&[]);
        monitor.fail(command, fault);
        let error = world.client().rollback(&request(&monitor)).unwrap_err();
        let error = error.to_string();
        for word in ["the disk is rolled back to before", words[0], words[1]] {
            assert!(error.contains(word), "{command} {fault:?}: {error}");
        }
        assert!(monitor.paused(), "{command} {fault:?}");
        let log = monitor.log();
        let last = log.last().unwrap();
        assert_eq!(last, command, "nothing follows what failed: {log:?}");
        let events = world.client().events(0, None).unwrap().events;
        let held = events.iter().find(|e| e["kind"] == "guest-held").unwrap();
        assert_eq!(held["note"], error.as_str());
        // What the answer advises.
        monitor.with(|m| m.begin(FIRMWARE));
        assert_eq!(monitor.with(Machine::read), before, "{command} {fault:?}");
    }
}

#[test]
fn a_machine_that_ends_at_a_reset_is_told() {
    let (world, monitor, before) = running(&[]);
    monitor.fail("system_reset", Fault::Shutdown);
    let reply = world.client().rollback(&request(&monitor)).unwrap();
    assert_eq!(reply.outcome, RollbackOutcome::Started);
    assert!(
        reply.notes[0].contains("start it again"),
        "{:?}",
        reply.notes
    );
    monitor.inside.lock().unwrap().machine = None;
    world.until("it has left", |w| !w.attached());
    let mut machine = Machine::power_on(&world.path("a.sock"), FIRMWARE);
    assert_eq!(machine.read(), before);
}

#[test]
fn the_monitor_of_another_machine_is_found_out_before_anything_happens() {
    let (world, monitor, _) = running(&[]);
    monitor.inside.lock().unwrap().another = true;
    let error = world.client().rollback(&request(&monitor)).unwrap_err();
    let error = error.to_string();
    assert!(
        error.contains("another machine") && error.contains("a.sock"),
        "{error}"
    );
    assert_eq!(monitor.log(), ["query-status", "stop", "cont"]);
    goes_on_as_before(&world, &monitor);
}

#[test]
fn with_no_guest_attached_no_machine_is_stopped() {
    let (world, monitor, _) = running(&[]);
    monitor.inside.lock().unwrap().machine = None;
    world.until("it has left", |w| !w.attached());
    let error = world.client().rollback(&request(&monitor)).unwrap_err();
    assert!(
        error.to_string().contains("rollback before --now"),
        "{error}"
    );
    assert_eq!(monitor.log(), [""; 0]);
    assert_eq!(
        world.rollback("before", RollbackWhen::Now),
        RollbackOutcome::Started
    );
}

/// With the monitor listened to, only what it tells is a reset, with firmware or
/// without.
#[test]
fn a_rollback_that_waits_takes_the_monitors_word_for_the_reset() {
    let (world, monitor, before) = running(&[]);
    let mut request = request(&monitor);
    request.when = RollbackWhen::AtReset;
    let reply = world.client().rollback(&request).unwrap();
    assert!(
        reply.notes.concat().contains("monitor reports the reset"),
        "{reply:?}"
    );
    for features in [SYSTEM, FIRMWARE, SYSTEM] {
        monitor.with(|m| m.begin(features));
        assert_eq!(monitor.with(Machine::read), SPOILT, "no reset was told");
    }
    let note = world
        .client()
        .status()
        .unwrap()
        .rollback
        .unwrap()
        .note
        .unwrap();
    assert!(note.contains("reported no reset"), "{note}");
    monitor.with(Machine::stop);
    monitor.tell("RESET");
    monitor.with(|m| m.begin(SYSTEM));
    assert_eq!(monitor.with(Machine::read), before);
    // It is not listened to any longer.
    world.until("the monitor is free", |_| monitor.is_free());
}

#[test]
fn while_the_monitor_is_not_heard_the_rings_tell_what_they_can() {
    let (mut world, monitor, before) = running(&[]);
    let mut waits = request(&monitor);
    waits.when = RollbackWhen::AtReset;
    world.client().rollback(&waits).unwrap();
    // The machine is reset while no daemon is connected to the monitor.
    monitor.hang_up();
    monitor.with(|m| m.begin(SYSTEM));
    assert_eq!(monitor.with(Machine::read), SPOILT);
    let note = world
        .client()
        .status()
        .unwrap()
        .rollback
        .unwrap()
        .note
        .unwrap();
    assert!(!note.contains("reported no reset"), "{note}");
    world.terminate();
    fs::remove_file(&monitor.path).unwrap();
    world.start(&[]);
    monitor.with(Machine::reconnect);
    monitor.with(|m| m.begin(SYSTEM));
    assert_eq!(monitor.with(Machine::read), SPOILT);
    monitor.with(|m| m.begin(FIRMWARE));
    assert_eq!(monitor.with(Machine::read), before);
}

#[test]
fn a_monitor_that_cannot_be_heard_is_refused_when_it_is_named() {
    let (world, monitor, _) = running(&[]);
    let mut request = request(&monitor);
    request.when = RollbackWhen::AtReset;
    request.qmp = Some(world.path("nothing").to_str().unwrap().into());
    let error = world.client().rollback(&request).unwrap_err().to_string();
    assert!(
        error.contains("nothing was changed") && error.contains("-qmp unix:"),
        "{error}"
    );
    assert!(world.client().status().unwrap().rollback.is_none());
    request.qmp = Some("relative".into());
    let error = world.client().rollback(&request).unwrap_err().to_string();
    assert!(error.contains("absolute"), "{error}");
    request.when = RollbackWhen::Vmm;
    request.qmp = None;
    let error = world.client().rollback(&request).unwrap_err().to_string();
    assert!(error.contains("serve --qmp"), "{error}");
}

/// A daemon that dies with the guest stopped cannot let it go; the next one says
/// so, and what it says is right.
#[test]
fn a_guest_that_a_killed_daemon_had_stopped_is_told_by_the_next() {
    for (command, advice) in [
        ("stop", "let it continue with `cont`"),
        ("system_reset", "reset"),
    ] {
        let (mut world, monitor, before) = running(&[]);
        monitor.fail(command, Fault::DoneUnheard);
        let (client, ask) = (world.client(), request(&monitor));
        let asking = std::thread::spawn(move || client.rollback(&ask));
        world.until("it is asked", |_| {
            let inside = monitor.inside.lock().unwrap();
            inside.log.last().is_some_and(|last| last == command)
        });
        world.kill();
        asking.join().unwrap().unwrap_err();
        world.start(&[]);
        let events = world.client().events(0, None).unwrap().events;
        let held = events.iter().find(|e| e["kind"] == "guest-held").unwrap();
        let note = held["note"].as_str().unwrap();
        assert!(
            note.contains(advice) && note.contains(&monitor.text()),
            "{note}"
        );
        assert!(world.state()["stopped_guest"].is_null(), "told once");
        // What it advises.
        let handed = command == "system_reset";
        monitor.with(Machine::reconnect);
        if handed {
            monitor.with(|m| m.begin(FIRMWARE));
        }
        let expected = if handed { &before[..] } else { &SPOILT };
        assert_eq!(monitor.with(Machine::read), expected, "{command}");
    }
}
