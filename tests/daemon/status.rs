//! A status is consistent: all that it says holds at one moment.

use std::sync::atomic::{AtomicBool, Ordering};

use snapback::control::api::VolumeStatus;
use snapback::control::view_io::ViewIo;

use super::*;

/// Merges during which the status is polled.
const MERGES: usize = 40;

/// Whatever the status names it describes.
#[track_caller]
fn assert_one_moment(status: &VolumeStatus) {
    let listed = |name: &String| status.snapshots.iter().any(|s| s.name == *name);
    if let Some(merge) = &status.merge {
        assert!(listed(&merge.snapshot), "{status:?}");
        let merged = status.snapshots.iter().find(|s| s.name == merge.snapshot);
        let before = merge.chunks_done == 0;
        assert!(
            before || merged.unwrap().state == State::Merging,
            "{status:?}"
        );
    }
    for view in &status.views {
        assert!(view.snapshot.as_ref().is_none_or(listed), "{status:?}");
    }
    assert!(
        status.rollback_at_reset.as_ref().is_none_or(listed),
        "{status:?}"
    );
}

#[test]
fn the_status_names_nothing_that_it_does_not_list() {
    let mut world = World::new();
    world.start(&["--socket-path", "a.sock"]);
    let client = world.client();
    let (over, polls) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let client = world.client();
            while !over.load(Ordering::Acquire) {
                let status = client.status().unwrap();
                polls.store(true, Ordering::Release);
                let judged = std::panic::catch_unwind(|| assert_one_moment(&status));
                if judged.is_err() {
                    over.store(true, Ordering::Release);
                    panic!("not one moment");
                }
            }
        });
        for round in 0..MERGES {
            if over.load(Ordering::Acquire) {
                break;
            }
            client.add_snapshot(&world.snapshot("s")).unwrap();
            let mut guest = Guest::connect(&world.path("a.sock"));
            assert_eq!(guest.write(round as u64 * 8, &[7; 4096]), 0);
            drop(guest);
            let request = MergeRequest {
                snapshot: "s".into(),
                follow: false,
                rate: None,
                now: true,
            };
            client.merge(&request).unwrap();
            world.merged();
            fs::remove_file(world.path("s.cow")).unwrap();
        }
        over.store(true, Ordering::Release);
    });
    assert!(polls.load(Ordering::Acquire));
}

#[test]
fn the_status_counts_what_the_guests_of_each_view_have_done() {
    let mut world = World::new();
    let snapshot = "name=s,cow=s.cow,size=16M,socket=s.sock";
    world.start(&["--socket-path", "a.sock", "--snapshot", snapshot]);
    let io = |view: usize| world.client().status().unwrap().views[view].io;
    let nothing = io(0);
    assert_eq!(nothing, ViewIo::default());
    let mut last = nothing;
    for round in 1..=3 {
        let mut guest = Guest::connect(&world.path("a.sock"));
        assert_eq!(guest.write(8, &[round; 8192]), 0);
        guest.read(0, 4096).unwrap();
        guest.read(0, 512).unwrap();
        assert_eq!(guest.flush(), 0);
        assert_eq!(guest.discard(64, 16), 0);
        assert_eq!(guest.write_zeroes(128, 24), 0);
        assert!(guest.read(BYTES as u64 / 512, 512).is_err());
        let now = io(0);
        let n = u64::from(round);
        let sums = ViewIo {
            reads: 2 * n,
            writes: n,
            write_zeroes: n,
            discards: n,
            flushes: n,
            others: n,
            read_bytes: 4608 * n,
            write_bytes: 8192 * n,
            write_zeroes_bytes: 12288 * n,
            discard_bytes: 8192 * n,
            errors: n,
            in_flight: 0,
            ..now
        };
        assert_eq!(now, sums);
        // A copy-out has written a file, and every request took some time.
        assert!(now.write_latency_us_sum > last.write_latency_us_sum);
        let parts = now.read_latency_us_sum + now.write_latency_us_sum + now.flush_latency_us_sum;
        assert!(now.latency_us_sum >= parts, "{now:?}");
        last = now;
    }
    let mut guest = Guest::connect(&world.path("s.sock"));
    guest.read(0, 1024).unwrap();
    let snapshots = io(1);
    assert_eq!((snapshots.reads, snapshots.read_bytes), (1, 1024));
    assert_eq!(snapshots.writes, 0);
    assert_eq!(io(0), last);
}
