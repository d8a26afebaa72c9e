//! A status is consistent: all that it says holds at one moment.

use std::sync::atomic::{AtomicBool, Ordering};

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
