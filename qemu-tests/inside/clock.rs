//! The clock of the day is set while a daemon waits, measures and limits.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::field::{DISK, Field, assert_same, pattern};
use super::mapper::Mapped;
use super::{inside, run};

const YEAR: i64 = 365 * 24 * 3600;

/// Sets the clock by so many seconds.
fn set(by: i64) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let then = i64::try_from(now.as_secs()).unwrap() + by;
    run("date", &["-s", &format!("@{then}")]);
}

/// The year in the time of an event.
fn year(event: &serde_json::Value) -> i64 {
    event["time"].as_str().unwrap()[..4].parse().unwrap()
}

#[test]
fn a_clock_that_is_set_by_years_changes_the_times_of_events_and_nothing_else() {
    let name = "clock::a_clock_that_is_set_by_years_changes_the_times_of_events_and_nothing_else";
    inside(name, &[8], || {
        let disk = Mapped::linear("disk", DISK as u64 / 512, Path::new("/dev/vda"), 0);
        disk.fill(&pattern(0, DISK));
        let mut field = Field::on(disk.path());
        field.start(&["--state", "state"]);
        let spec = field.spec("s", field.here.path());
        field.client().add_snapshot(&spec).unwrap();
        slow_requests(&field, &disk);
        reports_of_errors(&field, &disk);
        a_merge_with_a_rate(&field);
        a_stop(&mut field, &disk);
    });
}

/// Seconds are counted by a clock that goes on.
fn slow_requests(field: &Field, disk: &Mapped) {
    let mut guest = field.guest("a.sock");
    for by in [10 * YEAR, -11 * YEAR] {
        disk.suspend();
        let start = Instant::now();
        guest.begin_write(800, &pattern(9, 65536));
        set(by);
        let before = field.events("io-slow-ended").len();
        field.until("a slow request", |f| {
            f.events("io-slow").len() == before + 1
        });
        let took = start.elapsed().as_secs();
        let shown = field.status().views[0].slow_io.unwrap();
        assert!(
            (3..=took + 1).contains(&shown.seconds),
            "{shown:?}, not {took} s"
        );
        assert!(!guest.has_ended());
        disk.resume();
        assert_eq!(guest.wait(), 0);
        field.until("its end", |f| f.events("io-slow-ended").len() == before + 1);
        let ended = field.events("io-slow-ended").remove(before);
        let (seconds, took) = (
            ended["seconds"].as_u64().unwrap(),
            start.elapsed().as_secs(),
        );
        assert!((3..=took).contains(&seconds), "{ended}, not {took} s");
    }
    let slow = field.events("io-slow");
    assert_eq!(year(&slow[0]) - year(&slow[1]), 11, "{slow:?}");
}

/// At most every 10 s, whatever the clock says.
fn reports_of_errors(field: &Field, disk: &Mapped) {
    let mut guest = field.guest("a.sock");
    disk.fail();
    let start = Instant::now();
    assert!(guest.read(0, 4096).is_err());
    field.event("io-failed");
    set(YEAR);
    for _ in 0..3 {
        assert!(guest.read(0, 4096).is_err());
    }
    let told = field.events("io-failed").len();
    assert!(
        told == 1 || start.elapsed() > Duration::from_secs(10),
        "{told}"
    );
    set(-2 * YEAR);
    field.until("the next report", |f| f.events("io-failed").len() > told);
    assert!(
        start.elapsed() >= Duration::from_secs(9),
        "{:?}",
        start.elapsed()
    );
    disk.mend();
    assert_same(&guest.read(0, 4096).unwrap(), &pattern(0, 4096), "the disk");
}

/// It goes on at its rate.
fn a_merge_with_a_rate(field: &Field) {
    let mut guest = field.guest("a.sock");
    for at in 0..6 {
        assert_eq!(guest.write(at * 128, &pattern(9, 65536)), 0);
    }
    drop(guest);
    let start = Instant::now();
    let (done, said) = field.verb(&["rollback", "s", "--now", "--rate", "64K"]);
    assert!(done, "{said}");
    set(-5 * YEAR);
    let running = |field: &Field| field.status().merge.is_some();
    assert!(running(field) || start.elapsed() > Duration::from_secs(4));
    set(9 * YEAR);
    field.merged();
    // 384 KiB were merged, a part of them at once.
    let took = start.elapsed();
    assert!(took >= Duration::from_secs(4), "{took:?}");
    assert_same(&field.shows("a.sock"), &pattern(0, DISK), "the disk");
}

/// It waits 800 ms for requests, and not for years.
fn a_stop(field: &mut Field, disk: &Mapped) {
    let mut guest = field.guest("a.sock");
    disk.suspend();
    guest.begin_write(800, &pattern(3, 4096));
    let (start, log) = (Instant::now(), field.path("log"));
    let said = |words: &str| std::fs::read_to_string(&log).unwrap().contains(words);
    let wait = |words: &str| {
        while !said(words) {
            assert!(start.elapsed() < Duration::from_secs(60), "{words}");
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    std::thread::scope(|scope| {
        let stop = scope.spawn(|| field.stop());
        wait("stopping");
        set(-20 * YEAR);
        wait("requests of guests take more than 800 ms");
        // The kernel keeps the process until its request has ended.
        disk.resume();
        assert!(stop.join().unwrap().success());
    });
}
