//! Random requests on all kinds of views at once, against a shadow of each.

use std::time::Instant;

use snapback::control::api::{MergeRequest, State};

use crate::common::load::{Load, Reins};
use crate::common::random;
use crate::common::volume::Volume;
use crate::{compare_all, snapshot, turn, until};

/// 64 MiB and three sectors: no chunk size divides it.
const SECTORS: u64 = (64 << 11) + 3;

fn requests() -> u64 {
    random::number("SNAPBACK_REQUESTS").unwrap_or(100_000)
}

/// A volume whose snapshot `m` is merged under its own guest, with two other
/// snapshots of the same origin.
struct MergeSide {
    policy: &'static str,
    volume: Volume,
    merge: Load,
    /// On a snapshot's own view; the other one is not written.
    small: Load,
    large: Load,
}

impl MergeSide {
    fn start(policy: &'static str, more: [&str; 2], writer: u8, seed: u64) -> Self {
        let mut volume = Volume::new(SECTORS);
        let m = snapshot(&volume, "m", more[0]) + ",discard-zeroes-cow";
        volume.start(&[
            "--socket-path",
            "a.sock",
            "--merge-writes",
            policy,
            "--snapshot",
            &m,
            "--io-engine",
            more[1],
        ]);
        // Nearly all of m is in its store, so that there is something to merge.
        let mut origin = Load::new("fill", writer, seed, volume.first_content());
        origin.attach(&volume.path("a.sock"));
        origin.overwrite(SECTORS - 9000);
        origin.detach();
        for (name, chunk) in [("t4", "4K"), ("t64", "64K")] {
            volume.verb(&[
                "snapshot",
                name,
                "--cow",
                &format!("{name}.cow"),
                "--size",
                "80M",
                "--chunk-size",
                chunk,
                "--socket-path",
                &format!("{name}.sock"),
                "--discard-zeroes-cow",
            ]);
        }
        let load = |name: &str, writer: u8, shadow: Vec<u64>, socket: &str| {
            let load = Load::new(&format!("{policy}: {name}"), writer, seed, shadow);
            let mut load = load.with_zeroing();
            load.attach(&volume.path(socket));
            load
        };
        let merge = load("merge view", writer + 1, volume.first_content(), "m.sock");
        let small = load(
            "other snapshot",
            writer + 2,
            origin.shadow.clone(),
            "t4.sock",
        );
        let mut large = load("64K snapshot", writer + 3, origin.shadow, "t64.sock");
        large.detach();
        Self {
            policy,
            volume,
            merge,
            small,
            large,
        }
    }

    /// Runs the guests, hands `m` over in their middle, and compares everything
    /// at the end.
    fn run(mut self) {
        let (count, start) = (requests(), Instant::now());
        let (merge_reins, small_reins) = (Reins::default(), Reins::default());
        let reins = [&merge_reins, &small_reins];
        let volume = &self.volume;
        let (merge, small) = (&mut self.merge, &mut self.small);
        let under_way = std::thread::scope(|scope| {
            scope.spawn(|| merge.run(count, &merge_reins));
            scope.spawn(|| small.run(count, &small_reins));
            let at = |part: u64| {
                let done = &merge_reins;
                move || done.done() >= count * part / 100
            };
            if !until("a tenth of the requests", &reins, at(10)) {
                return 0..0;
            }
            // Writes go on to all chunks little by little, so that there are chunks
            // that are not merged for most of the run.
            merge_reins.limit_writes(SECTORS / 10);
            let request = MergeRequest {
                snapshot: "m".into(),
                follow: true,
                rate: Some(1),
                now: true,
            };
            volume.client().merge(&request).unwrap();
            let first = merge_reins.done();
            for part in 11..80 {
                let Some(status) = volume.status().merge else {
                    panic!("the merge ended at {part} % of the requests");
                };
                // Nearly done when the requests are, however fast they are.
                let late = status.chunks_left * 80
                    > (status.chunks_left + status.chunks_done) * (88 - part);
                let rate = if late { 16 << 20 } else { 1 };
                volume.client().set_merge_rate(rate).unwrap();
                merge_reins.limit_writes(SECTORS * part / 80);
                if !until("the guest goes on", &reins, at(part)) {
                    return 0..0;
                }
            }
            volume.client().set_merge_rate(0).unwrap();
            merge_reins.limit_writes(0);
            until("the merge ends", &reins, || volume.status().merge.is_none());
            first..merge_reins.done()
        });
        let ended = volume.status().last_merge.expect("a merge has ended");
        assert_eq!(ended.error, None);
        println!(
            "{}: merge of {} chunks during requests {under_way:?} of {count} ({:.1?})",
            self.policy,
            ended.chunks,
            start.elapsed()
        );
        self.compare();
    }

    fn compare(mut self) {
        self.merge.detach();
        self.small.detach();
        let volume = &mut self.volume;
        for (load, sockets) in [
            (&mut self.merge, &["m.sock", "a.sock"][..]),
            (&mut self.small, &["t4.sock"]),
            (&mut self.large, &["t64.sock"]),
        ] {
            for socket in sockets {
                compare_all(load, &volume.path(socket));
            }
            println!("{}: {}", load.name, load.counts);
        }
        let states: Vec<State> = volume.status().snapshots.iter().map(|s| s.state).collect();
        assert_eq!(states, [State::Active; 2]);
        volume.terminate();
        volume.check_origin(&self.merge.shadow);
        println!("{}: the origin's file is the merge view", self.policy);
    }
}

/// The origin view and two snapshots of different chunk sizes, all written.
fn origin_and_snapshots(seed: u64) {
    let (count, start) = (requests(), Instant::now());
    let mut volume = Volume::new(SECTORS);
    let (s1, s2) = (
        snapshot(&volume, "s1", "4K") + ",discard-zeroes-cow",
        snapshot(&volume, "s2", "64K") + ",discard-zeroes-cow=yes",
    );
    volume.start(&[
        "--socket-path",
        "a.sock",
        "--snapshot",
        &s1,
        "--snapshot",
        &s2,
    ]);
    let mut loads = [
        ("origin", 1, "a.sock", count),
        ("4K snapshot", 2, "s1.sock", count),
        ("64K snapshot", 3, "s2.sock", count),
    ]
    .map(|(name, writer, socket, count)| {
        let load = Load::new(name, writer, seed, volume.first_content());
        let mut load = load.with_zeroing();
        load.attach(&volume.path(socket));
        (load, socket, count)
    });
    std::thread::scope(|scope| {
        for (load, _, count) in &mut loads {
            scope.spawn(|| load.run(*count, &Reins::default()));
        }
    });
    println!("origin and snapshots: {:.1?}", start.elapsed());
    loads.iter_mut().for_each(|(load, ..)| load.detach());
    for (load, socket, _) in &mut loads {
        compare_all(load, &volume.path(socket));
    }
    volume.terminate();
    volume.check_origin(&loads[0].0.shadow);
    // And all of it was in the stores, too.
    volume.start(&[]);
    for (load, socket, _) in &mut loads {
        compare_all(load, &volume.path(socket));
        println!("{}: {}", load.name, load.counts);
    }
}

#[test]
fn origin_snapshot_and_merge_views_in_use_at_once_hold_what_was_written() {
    let _turn = turn();
    let (seed, start) = (random::seed(), Instant::now());
    let sides = [
        MergeSide::start("wait", ["16K", "auto"], 10, seed),
        MergeSide::start("redirect", ["4K", "threads"], 20, seed),
    ];
    std::thread::scope(|scope| {
        scope.spawn(|| origin_and_snapshots(seed));
        for side in sides {
            scope.spawn(|| side.run());
        }
    });
    let took = start.elapsed();
    println!("seed {seed}: no mismatch on 8 views of 3 volumes in {took:.1?}");
}
