use std::sync::mpsc::{Sender, channel};
use std::time::Instant;

use serde_json::json;

use super::*;
use crate::daemon::monitor::qmp::tests::{Monitor, calm};

/// A monitor that says what it is sent, and leaves when nothing more can come.
fn talking(monitor: &Monitor) -> Sender<&'static str> {
    talking_of(monitor, "running")
}

/// The same, of a guest with this status.
fn talking_of(monitor: &Monitor, status: &'static str) -> Sender<&'static str> {
    let (say, said) = channel::<&str>();
    monitor.serve(move |client| {
        client.greet();
        let (name, id) = client.command().unwrap();
        assert_eq!(name, "query-status");
        client.answer(&id, json!({ "status": status }));
        while let Ok(event) = said.recv() {
            client.say(&json!({ "event": event }).to_string());
        }
    });
    say
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_reset_is_told_once_and_its_absence_too() {
    let monitor = Monitor::new();
    let say = talking(&monitor);
    let watch = Watch::start(
        &monitor.path(),
        Some(Qmp::connect_and_look(&monitor.path(), &calm()).unwrap()),
        &calm(),
    )
    .unwrap();
    assert_eq!(watch.take_report(), ResetReport::NoReset);
    say.send("STOP").unwrap();
    say.send("RESET").unwrap();
    until("the reset is told", || {
        watch.take_report() == ResetReport::Reset
    });
    assert_eq!(watch.take_report(), ResetReport::NoReset);
    // What came right before a monitor left is heard, and then nothing is known.
    say.send("RESET").unwrap();
    drop(say);
    drop(monitor);
    let mut heard = Vec::new();
    until("the end", || {
        heard.push(watch.take_report());
        heard.last() == Some(&ResetReport::Unknown)
    });
    assert!(heard.contains(&ResetReport::Reset), "{heard:?}");
    assert_eq!(
        watch.take_report(),
        ResetReport::Unknown,
        "as long as it is away"
    );
}

#[test]
fn a_reset_of_a_guest_that_sleeps_is_its_wake_up() {
    let monitor = Monitor::new();
    let say = talking(&monitor);
    let qmp = Qmp::connect_and_look(&monitor.path(), &calm()).unwrap();
    let watch = Watch::start(&monitor.path(), Some(qmp), &calm()).unwrap();
    let mut resets = 0;
    let mut count = |events: &[&'static str]| {
        for event in events {
            say.send(event).unwrap();
        }
        // The last one is a reset of a guest that is awake.
        until("a reset is told", || {
            watch.take_report() == ResetReport::Reset
        });
        resets += 1;
        assert_eq!(watch.take_report(), ResetReport::NoReset, "after {resets}");
    };
    count(&["SUSPEND", "WAKEUP", "RESET"]);
    count(&["SUSPEND", "RESET", "RESET"]);
    say.send("SUSPEND").unwrap();
    say.send("RESET").unwrap();
    drop(say);
    let mut heard = Vec::new();
    until("the end", || {
        heard.push(watch.take_report());
        heard.last() == Some(&ResetReport::Unknown)
    });
    assert!(!heard.contains(&ResetReport::Reset), "{heard:?}");
}

/// A daemon that was started while the guest slept believed the reset that only
/// wakes it up.
#[test]
fn a_guest_that_sleeps_when_it_is_first_heard_of_is_woken_up_by_its_reset() {
    for early in [true, false] {
        let monitor = Monitor::new();
        let say = talking_of(&monitor, "suspended");
        let qmp = early.then(|| Qmp::connect_and_look(&monitor.path(), &calm()).unwrap());
        let watch = Watch::start(&monitor.path(), qmp, &calm()).unwrap();
        until("it is heard all the time", || {
            watch.take_report() == ResetReport::NoReset
        });
        say.send("RESET").unwrap();
        say.send("RESUME").unwrap();
        drop(say);
        let mut heard = Vec::new();
        until("the end", || {
            heard.push(watch.take_report());
            heard.last() == Some(&ResetReport::Unknown)
        });
        assert!(!heard.contains(&ResetReport::Reset), "{heard:?}");
    }
}

#[test]
fn a_monitor_that_comes_later_is_listened_to_from_then_on() {
    let monitor = Monitor::new();
    let watch = Watch::start(&monitor.path(), None, &calm()).unwrap();
    assert_eq!(watch.take_report(), ResetReport::Unknown);
    let say = talking(&monitor);
    // Unknown once more: there was a gap since it was last asked.
    until("it is heard all the time", || {
        watch.take_report() == ResetReport::NoReset
    });
    say.send("RESET").unwrap();
    until("the reset is told", || {
        watch.take_report() == ResetReport::Reset
    });
}

#[test]
fn a_watch_that_ends_leaves_the_monitor_to_others() {
    let monitor = Monitor::new();
    let _say = talking(&monitor);
    let watch = Watch::start(
        &monitor.path(),
        Some(Qmp::connect_and_look(&monitor.path(), &calm()).unwrap()),
        &calm(),
    )
    .unwrap();
    let thread = monitor.serve(|client| client.greet());
    drop(watch);
    Qmp::connect(&monitor.path(), &calm()).unwrap();
    thread.join().unwrap();
}
