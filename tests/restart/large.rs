//! A stop is quick whatever a guest asked for: requests whose data would take long are
//! left undone, and are there for the next back end.

use std::collections::HashSet;
use std::fs::File;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::common::random;
use crate::disk::Disk;
use crate::guest::{Guest, Resume};
use crate::ring::{MAX_DEPTH, Shape};
use crate::server::{Server, compares};
use crate::yardstick::Yardstick;

/// Of the origin, which is a hole.
const BYTES: u64 = 1 << 30;
/// A read of 511 MiB into the same half MiB again and again.
const SEGMENTS: u64 = 1022;
const SEGMENT: u32 = 512 << 10;

/// Far more than a stop takes, and far less than all of the data. Not of the time in which the
/// machine is busy.
const PATIENCE: Duration = Duration::from_secs(5);

fn a_stop_with_large_reads_under_way(region: bool) {
    let reads = random::number("SNAPBACK_LARGE_READS").map_or(MAX_DEPTH, |reads| reads as usize);
    let mut server = Server::new(2048, &["--socket-path", "origin.sock"]);
    let image = File::options()
        .write(true)
        .open(server.volume.path("disk.img"));
    image.unwrap().set_len(BYTES).unwrap();
    let shape = Shape {
        queues: 1,
        depth: reads,
        indirect: true,
        event_idx: false,
    };
    let disk = Disk::new(1, 0, vec![0; (BYTES / 512) as usize]);
    let mut guest = Guest::new(
        "reader",
        &server.socket("origin"),
        shape,
        Resume::Used,
        disk,
    );
    guest.with_region = region;
    server.start(&[]);
    guest.connect(|| ()).unwrap();
    let under_way: HashSet<usize> = (0..reads).collect();
    for slot in 0..reads {
        guest.rings[0].submit_large(slot, SEGMENTS, SEGMENT);
    }
    guest.rings[0].notify();
    let mut done = HashSet::new();
    for (stop, pause) in [500, 50, 0].into_iter().enumerate() {
        std::thread::sleep(Duration::from_millis(pause));
        let yardstick = Yardstick::start();
        let begin = Instant::now();
        server.signal(Signal::TERM);
        let status = loop {
            if let Some(status) = server.ended() {
                break status;
            }
            guest.look();
            std::thread::sleep(Duration::from_millis(1));
            assert!(begin.elapsed() < Duration::from_secs(300), "it hangs");
        };
        let took = begin.elapsed();
        let busy = yardstick.end().between(begin, begin + took);
        guest.look();
        let used = guest.rings[0].used_index();
        println!(
            "stop {stop}, region: {region}: {reads} reads of {} MiB, SIGTERM took {} ms, {used} reads were done",
            (SEGMENTS * u64::from(SEGMENT)) >> 20,
            took.as_millis(),
        );
        while let Some((head, _)) = guest.rings[0].take_used() {
            let slot = shape.slot(head).unwrap();
            assert!(done.insert(slot), "head {head} was done twice");
            assert_eq!(guest.rings[0].status(slot), 0);
        }
        if compares() {
            return;
        }
        assert!(status.success(), "{status}");
        assert!(took < PATIENCE + busy, "a stop took {took:?}");
        let left: HashSet<usize> = under_way.difference(&done).copied().collect();
        assert!(!left.is_empty(), "all of the data was waited for");
        let offered = guest.offered(0, &left);
        assert_eq!(offered.completed, 0, "they would be done again");
        assert_eq!(offered.under_way, left, "what was left undone is there");
        server.start(&[]);
        guest.connect(|| ()).unwrap();
    }
}

#[test]
fn a_stop_is_quick_without_a_region() {
    a_stop_with_large_reads_under_way(false);
}

#[test]
fn a_stop_is_quick_with_a_region() {
    a_stop_with_large_reads_under_way(true);
}
