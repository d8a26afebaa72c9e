//! The order of the steps of a stop.

use super::*;
use crate::control::api::MergeRequest;
use crate::daemon::test_volume;

/// The engine has finished the merge, and its notice is pending. A stop that did not wait
/// until the notice is processed would leave the merge in the state file.
#[test]
fn a_merge_that_ends_just_before_the_stop_is_recorded_as_ended() {
    let folder = tempfile::tempdir().unwrap();
    let (volume, mut notices) = test_volume::serve(folder.path());
    let spec = test_volume::spec(folder.path(), "before");
    volume.create_snapshot(spec, None).unwrap();
    let request = MergeRequest {
        snapshot: "before".into(),
        ..MergeRequest::default()
    };
    volume.merge_now(&request).unwrap();
    while volume.engine.status().merge.is_some() {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(lock(&volume.state).state().merge.is_some());

    let ended = std::thread::scope(|scope| {
        let stopper = scope.spawn(|| stop(&volume, None));
        while !stopper.is_finished() {
            if volume.notice_barrier.is_awaited() {
                notices.process(&volume);
            }
            std::thread::yield_now();
        }
        stopper.join().unwrap()
    });
    assert_eq!(ended, Ok(Ended::Drained));
    let state = lock(&volume.state).state().clone();
    assert_eq!(state.merge, None);
    assert!(state.snapshot("before").is_none());
}
