//! Disks that do not answer, and disks that fail.

use super::exposition::Exposition;
use super::failing::Failing;
use super::guest::Guest;
use super::inject::{Call, Rule};
use super::scraper::scrape;
use super::world::World;

const ANYWHERE: std::ops::Range<u64> = 0..u64::MAX;
const ORIGIN: [(&str, &str); 1] = [("view", "origin")];

/// A daemon with the snapshot `s`, whose calls can be held or fail.
fn failing() -> Failing {
    let mut world = World::new();
    world.start(&["--socket-path", "a.sock"]);
    world.client().add_snapshot(&world.snapshot("s")).unwrap();
    world.terminate();
    Failing::start(world)
}

fn errors(e: &Exposition, labels: &[(&str, &str)]) -> f64 {
    e.all("snapback_view_errors_total", labels).iter().sum()
}

#[test]
fn a_scrape_answers_while_a_disk_does_not_and_shows_what_waits() {
    let failing = failing();
    let world = &failing.world;
    let in_flight = |e: &Exposition| e.value("snapback_view_requests_in_flight", &ORIGIN);
    let slow = |e: &Exposition| e.value("snapback_view_slow_requests", &ORIGIN);
    let mut guest = Guest::connect(&world.path("a.sock"));
    failing.faults.hold(Call::Read, "/disk.img", ANYWHERE);
    std::thread::scope(|scope| {
        let read = scope.spawn(|| guest.read(77, 512));
        failing.faults.until_held();
        // It is noted after all that were taken with it have been handed in.
        world.until("the request", |w| in_flight(&scrape(w)) == 1.0);
        world.until("a slow request", |w| slow(&scrape(w)) == 1.0);
        let now = scrape(world);
        assert!(now.value("snapback_view_slow_oldest_seconds", &ORIGIN) >= 3.0);
        let reads = [("view", "origin"), ("operation", "read")];
        assert_eq!(now.value("snapback_view_requests_total", &reads), 0.0);
        failing.faults.release();
        read.join().unwrap().unwrap();
        let now = scrape(world);
        assert_eq!(in_flight(&now), 0.0);
        let latency = now.value("snapback_view_latency_seconds_sum", &reads);
        assert!(latency >= 3.0, "{latency}");
        let mut fast = reads.to_vec();
        fast.push(("le", "1.073741824"));
        assert_eq!(
            now.value("snapback_view_latency_seconds_bucket", &fast),
            0.0
        );
    });
    world.until("the end is seen", |w| slow(&scrape(w)) == 0.0);
}

#[test]
fn errors_are_counted_where_they_hurt() {
    let failing = failing();
    let world = &failing.world;
    let mut guest = Guest::connect(&world.path("a.sock"));
    failing.faults.fail(Rule {
        call: Call::Read,
        file: "/disk.img",
        bytes: ANYWHERE,
        errno: libc::EIO,
    });
    let before = scrape(world);
    assert!(guest.read(0, 512).is_err());
    let now = scrape(world);
    let io = [("view", "origin"), ("operation", "read"), ("cause", "io")];
    assert_eq!(now.value("snapback_view_errors_total", &io), 1.0);
    assert_eq!(errors(&now, &ORIGIN), 1.0);
    let reads = [("device", "origin"), ("operation", "read")];
    let disk = |e: &Exposition| e.value("snapback_disk_errors_total", &reads);
    // That was the guest's own read; a copy-out is the daemon's.
    assert_eq!((disk(&before), disk(&now)), (0.0, 0.0));
    assert_eq!(guest.write(0, &[1; 512]), 0);
    let now = scrape(world);
    assert_eq!(disk(&now), 1.0);
    let invalid = [("reason", "error")];
    assert_eq!(now.value("snapback_invalidations_total", &invalid), 1.0);
    assert_eq!(errors(&now, &ORIGIN), 1.0);
    failing.faults.mend();
}
