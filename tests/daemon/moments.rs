//! What the status says holds at one moment, and a merge that is followed is
//! followed over a restart.

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;
use snapback::control::api::VolumeStatus;

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

/// The connection events of a socket that came after event `since`: their snapshots.
fn connections(world: &World, socket: &str, since: u64) -> Vec<Value> {
    let socket = Value::from(world.path(socket).to_str().unwrap());
    let events = world.client().events(since, None).unwrap().events;
    let connected = events
        .into_iter()
        .filter(|e| e["kind"] == "front-end-connected" && e["socket"] == socket);
    connected.map(|e| e["snapshot"].clone()).collect()
}

#[test]
fn a_followers_guest_is_the_origins_also_after_a_restart_in_the_middle() {
    let mut world = World::new();
    world.start(&["--socket-path", "a.sock"]);
    world
        .client()
        .add_snapshot(&world.snapshot("work"))
        .unwrap();
    let mut guest = Guest::connect(&world.path("work.sock"));
    wreck(&mut guest, 5);
    let work = guest.read_all(BYTES);
    let request = MergeRequest {
        snapshot: "work".into(),
        follow: true,
        rate: Some(1), // a batch, and then it waits
        now: true,
    };
    world.client().merge(&request).unwrap();
    drop(guest);
    world.kill();
    world.start(&[]);
    assert!(
        world.client().status().unwrap().merge.is_some(),
        "in the middle"
    );

    let mut guest = Guest::connect(&world.path("work.sock"));
    assert_same(&guest.read_all(BYTES), &work, "in the middle of the merge");
    assert_eq!(connections(&world, "work.sock", 0), [Value::Null]);
    world.client().set_merge_rate(0).unwrap();
    world.merged();
    assert_same(&guest.read_all(BYTES), &work, "after the merge");
}

#[test]
fn a_merge_that_was_paused_goes_on_offline() {
    let mut world = World::new();
    let before = world.origin();
    world.start(&["--socket-path", "a.sock"]);
    world.client().add_snapshot(&world.snapshot("s")).unwrap();
    let mut guest = Guest::connect(&world.path("a.sock"));
    wreck(&mut guest, 3);
    drop(guest);
    let request = MergeRequest {
        snapshot: "s".into(),
        follow: false,
        rate: Some(1), // a batch, and then it waits
        now: true,
    };
    world.client().merge(&request).unwrap();
    world.client().pause_merge().unwrap();
    world.terminate();
    assert_eq!(world.state()["merge"]["paused"], true);
    let mut child = Command::new(assert_cmd::cargo::cargo_bin!("snapback"))
        .current_dir(world.folder.path())
        .args(["merge", "--origin", "disk.img", "--cow", "s.cow"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let start = Instant::now();
    let ended = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None if start.elapsed() > Duration::from_secs(60) => {
                child.kill().unwrap();
                panic!("it waits without a word");
            }
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    assert!(ended.success(), "{ended}");
    assert_same(&world.origin(), &before, "merged offline");
}
