//! The numbers of a scrape are those of what guests did.

use std::fs;

use snapback::control::api::{MergeRequest, RollbackOutcome, RollbackWhen};

use super::exposition::Exposition;
use super::guest::Guest;
use super::scraper::scrape;
use super::world::{BYTES, World};

const CHUNK: usize = 4096;

fn requests(e: &Exposition, view: &str, operation: &str) -> f64 {
    let labels = [("view", view), ("operation", operation)];
    let requests = e.value("snapback_view_requests_total", &labels);
    if ["get_id", "other"].contains(&operation) {
        return requests;
    }
    let timed = e.value("snapback_view_latency_seconds_count", &labels);
    assert_eq!(requests, timed, "{labels:?}");
    requests
}

fn bytes(e: &Exposition, view: &str, operation: &str) -> f64 {
    let labels = [("view", view), ("operation", operation)];
    e.value("snapback_view_transferred_bytes_total", &labels)
}

fn of_snapshot(e: &Exposition, metric: &str, snapshot: &str) -> f64 {
    let name = format!("snapback_snapshot_{metric}");
    e.value(&name, &[("snapshot", snapshot)])
}

fn merge(e: &Exposition, metric: &str) -> f64 {
    e.value(&format!("snapback_merge_{metric}"), &[])
}

/// Guests of both views come twice, and do the same.
fn two_rounds(world: &World, before: Exposition) -> Exposition {
    let mut last = before;
    for round in 1_u8..=2 {
        let n = f64::from(round);
        let mut guest = Guest::connect(&world.path("a.sock"));
        // Three chunks that are new in each round, and one that is not in the second.
        let sector = u64::from(round) * 256;
        assert_eq!(guest.write(sector, &[round; 3 * CHUNK]), 0);
        assert_eq!(guest.write(256, &[round; CHUNK]), 0);
        guest.read(0, 1024).unwrap();
        assert_eq!(guest.flush(), 0);
        assert_eq!(guest.write_zeroes(256, 8), 0);
        assert_eq!(guest.discard(256, 16), 0);
        assert!(guest.read(BYTES as u64 / 512, 512).is_err());
        let now = scrape(world);
        now.assert_not_behind(&last);
        assert_eq!(requests(&now, "origin", "write"), 2.0 * n);
        assert_eq!(bytes(&now, "origin", "write"), 4.0 * 4096.0 * n);
        assert_eq!(requests(&now, "origin", "read"), n);
        assert_eq!(bytes(&now, "origin", "read"), 1024.0 * n);
        assert_eq!(requests(&now, "origin", "flush"), n);
        assert_eq!(bytes(&now, "origin", "write_zeroes"), 4096.0 * n);
        assert_eq!(bytes(&now, "origin", "discard"), 8192.0 * n);
        assert_eq!(requests(&now, "origin", "other"), n);
        let refused = [
            ("view", "origin"),
            ("cause", "invalid"),
            ("operation", "other"),
        ];
        assert_eq!(now.value("snapback_view_errors_total", &refused), n);
        let errors = now.all("snapback_view_errors_total", &[]);
        assert_eq!(errors.iter().sum::<f64>(), n);
        assert_eq!(
            now.value("snapback_view_attached", &[("view", "origin")]),
            1.0
        );
        assert_eq!(
            now.value("snapback_view_sessions_total", &[("view", "origin")]),
            n
        );
        let in_flight = now.all("snapback_view_requests_in_flight", &[]);
        assert_eq!(in_flight, [0.0, 0.0]);
        assert_eq!(of_snapshot(&now, "copied_chunks_total", "s"), 3.0 * n);
        assert!(of_snapshot(&now, "commits_total", "s") >= n);
        assert!(of_snapshot(&now, "flushes_total", "s") >= n);
        drop(guest);
        // The snapshot's own guest writes a whole chunk, which needs no copy.
        let mut guest = Guest::connect(&world.path("s.sock"));
        assert_eq!(guest.write(8192 + sector, &[round; CHUNK]), 0);
        guest.read(0, 512).unwrap();
        let now = scrape(world);
        assert_eq!(requests(&now, "s", "write"), n);
        assert_eq!(bytes(&now, "s", "read"), 512.0 * n);
        assert_eq!(requests(&now, "origin", "write"), 2.0 * n);
        assert_eq!(of_snapshot(&now, "exceptions", "s"), 4.0 * n);
        last = now;
    }
    last
}

#[test]
fn numbers_are_what_guests_did_over_a_merge_and_a_rollback() {
    let mut world = World::new();
    world.start(&["--socket-path", "a.sock"]);
    let client = world.client();
    client.add_snapshot(&world.snapshot("s")).unwrap();
    let before = scrape(&world);
    assert_eq!(of_snapshot(&before, "copied_chunks_total", "s"), 0.0);
    assert_eq!(of_snapshot(&before, "size_bytes", "s"), f64::from(32 << 20));
    assert_eq!(of_snapshot(&before, "chunk_bytes", "s"), 4096.0);
    let last = two_rounds(&world, before);
    let status = client.status().unwrap();
    let allocated = status.snapshots[0].allocated_sectors as f64 * 512.0;
    assert_eq!(of_snapshot(&last, "allocated_bytes", "s"), allocated);

    // The view that follows its merge keeps its numbers and its name.
    world.until("guests have left", |w| !w.attached());
    let request = MergeRequest {
        snapshot: "s".into(),
        follow: true,
        ..Default::default()
    };
    client.merge(&request).unwrap();
    world.merged();
    let merged = scrape(&world);
    merged.assert_not_behind(&last);
    assert_eq!(merge(&merged, "merged_chunks_total"), 8.0);
    assert_eq!(merge(&merged, "merged_bytes_total"), 8.0 * 4096.0);
    assert!(merge(&merged, "batches_total") >= 1.0);
    assert_eq!(merge(&merged, "running"), 0.0);
    assert!(merged.all("snapback_snapshot_exceptions", &[]).is_empty());
    assert_eq!(requests(&merged, "s", "write"), 2.0);
    let shows = [("view", "s"), ("shows", "origin")];
    merged.value("snapback_view_info", &shows);

    // A rollback is a merge, too.
    client.add_snapshot(&world.snapshot("t")).unwrap();
    let mut guest = Guest::connect(&world.path("a.sock"));
    assert_eq!(guest.write(0, &[9; 2 * CHUNK]), 0);
    drop(guest);
    world.until("the guest has left", |w| !w.attached());
    assert_eq!(
        world.rollback("t", RollbackWhen::Auto),
        RollbackOutcome::Started
    );
    world.merged();
    let rolled = scrape(&world);
    rolled.assert_not_behind(&merged);
    assert_eq!(merge(&rolled, "merged_chunks_total"), 10.0);
    assert_eq!(requests(&rolled, "origin", "write"), 5.0);
    assert_eq!(
        rolled.value("snapback_origin_size_bytes", &[]),
        BYTES as f64
    );
    let open = rolled.value("process_open_fds", &[]);
    assert!(open > 5.0 && open < rolled.value("process_max_fds", &[]));
    assert!(rolled.value("process_resident_memory_bytes", &[]) > f64::from(1 << 20));
    assert!(rolled.value("process_cpu_seconds_total", &[]) > 0.0);
}

#[test]
fn a_paused_merge_and_the_writes_that_wait_for_it_are_seen() {
    let mut world = World::new();
    world.start(&["--socket-path", "a.sock"]);
    let client = world.client();
    client.add_snapshot(&world.snapshot("s")).unwrap();
    let mut guest = Guest::connect(&world.path("a.sock"));
    assert_eq!(guest.write(0, &[1; 64 * CHUNK]), 0);
    drop(guest);
    world.until("the guest has left", |w| !w.attached());
    let request = MergeRequest {
        snapshot: "s".into(),
        // A batch of 16 chunks, and then it waits.
        rate: Some(1),
        ..Default::default()
    };
    client.merge(&request).unwrap();
    world.until("the batch", |w| merge(&scrape(w), "chunks_done") == 16.0);
    client.pause_merge().unwrap();
    let paused = scrape(&world);
    let state = [("snapshot", "s"), ("state", "merge-paused")];
    assert_eq!(paused.value("snapback_snapshot_state", &state), 1.0);
    assert_eq!(
        paused
            .all("snapback_snapshot_state", &[])
            .iter()
            .sum::<f64>(),
        1.0
    );
    assert_eq!(
        (merge(&paused, "running"), merge(&paused, "paused")),
        (1.0, 1.0)
    );
    assert_eq!(merge(&paused, "chunks_left"), 48.0);
    // A write merges its own chunk, also while the merge is paused: the chunk that is merged
    // last in the background is the first one.
    let mut guest = Guest::connect(&world.path("a.sock"));
    assert_eq!(guest.write(0, &[2; CHUNK]), 0);
    let now = scrape(&world);
    now.assert_not_behind(&paused);
    assert_eq!(merge(&now, "chunks_left"), 47.0);
    assert!(merge(&now, "write_waits_total") > merge(&paused, "write_waits_total"));
}

#[test]
fn a_snapshot_that_becomes_invalid_is_seen() {
    let mut world = World::new();
    let tiny = "name=tiny,cow=tiny.cow,size=64K,chunk-size=4K,socket=tiny.sock";
    world.start(&["--socket-path", "a.sock", "--snapshot", tiny]);
    let before = scrape(&world);
    let invalid = |e: &Exposition, reason: &str| {
        e.value("snapback_invalidations_total", &[("reason", reason)])
    };
    assert_eq!(
        (invalid(&before, "full"), invalid(&before, "error")),
        (0.0, 0.0)
    );
    let mut guest = Guest::connect(&world.path("a.sock"));
    assert_eq!(guest.write(0, &[1; 64 * CHUNK]), 0);
    let after = scrape(&world);
    after.assert_not_behind(&before);
    assert_eq!(
        (invalid(&after, "full"), invalid(&after, "error")),
        (1.0, 0.0)
    );
    let state = [("snapshot", "tiny"), ("state", "invalid")];
    assert_eq!(after.value("snapback_snapshot_state", &state), 1.0);
    drop(guest);
    // Its own guest gets errors, which are not the guest's fault.
    let mut guest = Guest::connect(&world.path("tiny.sock"));
    assert!(guest.read(0, 512).is_err());
    let failed = [("view", "tiny"), ("operation", "read"), ("cause", "io")];
    assert_eq!(
        scrape(&world).value("snapback_view_errors_total", &failed),
        1.0
    );
}

#[test]
fn many_snapshots_that_come_and_go_leave_no_series_behind() {
    let mut world = World::new();
    world.start(&["--socket-path", "a.sock"]);
    let client = world.client();
    let names = |e: &Exposition| e.samples.keys().cloned().collect::<Vec<_>>();
    let before = scrape(&world);
    for n in 0..12 {
        let name = format!("s{n}");
        client.add_snapshot(&world.snapshot(&name)).unwrap();
        let mut guest = Guest::connect(&world.path(&format!("{name}.sock")));
        guest.read(0, 512).unwrap();
        assert_eq!(requests(&scrape(&world), &name, "read"), 1.0);
        drop(guest);
        world.until("the guest has left", |w| !w.attached());
        client.remove_snapshot(&name).unwrap();
        fs::remove_file(world.path(&format!("{name}.cow"))).unwrap();
    }
    let after = scrape(&world);
    assert_eq!(names(&after), names(&before));
    after.assert_not_behind(&before);
}
