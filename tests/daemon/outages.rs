//! A disk that does not answer: nothing else waits for it, and everybody is told.

use super::failing::Failing;
use super::inject::{Call, Injector, filtered};
use super::*;

const ANYWHERE: std::ops::Range<u64> = 0..u64::MAX;

/// A daemon with the snapshot `s`, whose calls can be held.
fn failing() -> Failing {
    let mut world = World::new();
    world.start(&["--socket-path", "a.sock"]);
    world.client().add_snapshot(&world.snapshot("s")).unwrap();
    world.terminate();
    Failing::start(world)
}

#[test]
fn the_status_answers_while_a_verb_waits_for_a_disk() {
    let failing = failing();
    failing.faults.hold(Call::Write, "/s.cow", ANYWHERE);
    std::thread::scope(|scope| {
        let removed = scope.spawn(|| failing.verb(&["remove", "s"]));
        failing.faults.until_held();
        // Each answer comes while the verb is held.
        for _ in 0..3 {
            assert_eq!(failing.world.client().status().unwrap().snapshots.len(), 1);
        }
        assert!(!removed.is_finished());
        failing.faults.release();
        assert!(removed.join().unwrap().status.success());
    });
    assert!(
        failing
            .world
            .client()
            .status()
            .unwrap()
            .snapshots
            .is_empty()
    );
}

#[test]
fn the_status_answers_while_the_state_file_cannot_be_written() {
    let failing = failing();
    failing.faults.hold(Call::Sync, "", ANYWHERE);
    std::thread::scope(|scope| {
        let removed = scope.spawn(|| failing.verb(&["remove", "s"]));
        failing.faults.until_held();
        assert_eq!(failing.world.client().status().unwrap().snapshots.len(), 1);
        assert!(!removed.is_finished());
        failing.faults.release();
        assert!(removed.join().unwrap().status.success());
    });
}

#[test]
fn requests_that_take_long_are_shown_until_they_end() {
    let failing = failing();
    let slow = |w: &World| w.client().status().unwrap().views[0].slow_io;
    let mut guest = Guest::connect(&failing.world.path("a.sock"));
    failing.faults.hold(Call::Read, "/disk.img", ANYWHERE);
    std::thread::scope(|scope| {
        let read = scope.spawn(|| guest.read(77, 512));
        failing.faults.until_held();
        let event = failing.until_event("io-slow");
        assert!(event["socket"].as_str().unwrap().ends_with("a.sock"));
        assert_eq!(
            (&event["operation"], &event["sector"]),
            (&"read".into(), &77.into())
        );
        let shown = slow(&failing.world).unwrap();
        assert_eq!((shown.requests, shown.sector), (1, 77));
        assert!(shown.seconds >= 3);
        assert!(text_of(&failing.verb(&["status"])).contains("a read at sector 77"));
        assert!(failing.events("io-slow-ended").is_empty());
        failing.faults.release();
        read.join().unwrap().unwrap();
    });
    failing.until_event("io-slow-ended");
    assert_eq!(slow(&failing.world), None);
    assert_eq!(failing.events("io-slow").len(), 1);
}

fn text_of(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn a_stop_during_an_outage_says_whose_requests_it_leaves() {
    let mut failing = failing();
    let mut guest = Guest::connect(&failing.world.path("a.sock"));
    failing.faults.hold(Call::Read, "/disk.img", ANYWHERE);
    // Its chunk is read for the snapshot first.
    guest.begin_write(0, &[1; 512]);
    failing.faults.until_held();
    failing.world.terminate();
    let log = failing.log();
    assert!(log.contains("requests of guests take more than"), "{log}");
    assert!(log.contains("a.sock; they are left"), "{log}");
}

/// A new snapshot waits for the writes before it.
#[test]
fn a_verb_that_waits_for_a_guests_request_says_whose_it_is_and_holds_up_no_stop() {
    let mut failing = failing();
    let mut guest = Guest::connect(&failing.world.path("a.sock"));
    failing.faults.hold(Call::Write, "/disk.img", ANYWHERE);
    guest.begin_write(0, &[1; 512]);
    failing.faults.until_held();
    let taken = failing
        .world
        .client()
        .add_snapshot(&failing.world.snapshot("t"));
    let late = taken.unwrap_err().to_string();
    for words in [
        "snapshot t: it has not ended in 20 s and goes on",
        "view origin: 1 request takes long; the oldest, a write at sector 0",
    ] {
        assert!(late.contains(words), "{late}");
    }
    failing.world.terminate();
    let log = failing.log();
    assert!(
        log.contains("does not wait for a call of a client (snapshot t, under way"),
        "{log}"
    );
}

#[test]
fn a_stop_that_waits_for_a_disk_says_so() {
    let mut failing = failing();
    failing.faults.hold(Call::Flush, "/disk.img", ANYWHERE);
    let pid = rustix::process::Pid::from_child(failing.world.daemon.as_ref().unwrap());
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    failing.faults.until_held();
    failing.world.until("the log says it", |_| {
        let log = failing.log();
        log.contains("s for ") && log.contains("disk.img and the COWs to be flushed")
    });
    failing.faults.release();
    let mut daemon = failing.world.daemon.take().unwrap();
    assert!(daemon.wait().unwrap().success());
    assert!(failing.log().contains("which has ended now"));
}

#[test]
fn a_start_on_a_disk_that_does_not_answer_says_so() {
    let mut failing = failing();
    failing.world.terminate();
    let Failing { mut world, faults } = failing;
    drop(faults);
    let log = fs::File::create(world.path("log")).unwrap();
    let mut command = world.command(&["--socket-path", "a.sock", "--control", "c.sock"]);
    command.stdout(Stdio::null()).stderr(log);
    // Nobody answers its calls yet, so the first read waits.
    let daemon = filtered(&mut command).spawn().unwrap();
    let said = || fs::read_to_string(world.path("log")).unwrap();
    world.until("the log says it", |_| {
        said().contains("s.cow to be opened and read")
    });
    let _faults = Injector::attach(&daemon, &[]);
    world.daemon = Some(daemon);
    world.until("the daemon answers", |w| w.client().status().is_ok());
}
