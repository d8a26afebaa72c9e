//! Operations as the events tell them.

use super::*;
use crate::control::api::ErrorKind;
use crate::control::events::{EventLog, FailedDevice, FailedIo, FailedOperation};

const HANDOVER: EventKind = EventKind::Handover {
    follow: false,
    chunks: 9,
    at_start: false,
};
const ROOT: Peer = Peer { uid: 0, pid: None };

fn failed() -> EventKind {
    EventKind::MergeFailed {
        reason: "the disk is gone".to_owned(),
        retry: Retry::Resume,
        failed: FailedIo {
            device: FailedDevice::Cow,
            operation: FailedOperation::Read,
            offset: Some(0),
        },
    }
}

fn states(log: &EventLog) -> Vec<(OperationKind, OperationState)> {
    let all = log.operations().all();
    all.iter().map(|one| (one.kind, one.state)).collect()
}

#[test]
fn a_merge_is_told_from_its_beginning_to_its_end() {
    use OperationState::{Failed, Running, Succeeded, Waiting};
    let log = EventLog::default();
    for (event, state) in [
        (HANDOVER, Running),
        (EventKind::MergePaused, Waiting),
        (EventKind::MergeResumed, Running),
        (failed(), Failed),
        (EventKind::MergeResumed, Running),
        (EventKind::MergeDone { chunks: 9 }, Succeeded),
        // Nothing is running.
        (EventKind::MergePaused, Succeeded),
    ] {
        log.publish(Some("a"), event);
        assert_eq!(states(&log), [(OperationKind::Merge, state)]);
        let all = log.operations().all();
        assert_eq!(all[0].ended.is_some(), state.is_end());
        assert_eq!(all[0].error.is_some(), state == Failed);
        assert_eq!(all[0].retry.is_some(), state == Failed);
    }
    let all = log.operations().all();
    assert_eq!(all[0].progress, Some(left(9, 0)));
    assert!(all[0].id.starts_with(log.instance()), "{}", all[0].id);
}

#[test]
fn a_rollback_waits_and_becomes_its_merge_or_ends() {
    use OperationState::{Cancelled, Failed, Running, Waiting};
    let rollback = OperationKind::Rollback;
    let log = EventLog::default();
    log.publish(Some("a"), EventKind::RollbackPending);
    let error = "no space".to_owned();
    log.publish(Some("a"), EventKind::RollbackFailed { error });
    assert_eq!(states(&log), [(rollback, Waiting)]);
    assert_eq!(log.operations().all()[0].error.as_deref(), Some("no space"));
    log.publish(Some("a"), HANDOVER);
    assert_eq!(states(&log), [(rollback, Running)]);
    log.publish(Some("a"), EventKind::MergeDone { chunks: 9 });
    for (reason, state) in [
        (CancelCause::Asked, Cancelled),
        (CancelCause::Failed, Failed),
    ] {
        log.publish(Some("b"), EventKind::RollbackPending);
        log.publish(Some("b"), EventKind::RollbackCancelled { reason });
        assert_eq!(states(&log).last(), Some(&(rollback, state)));
    }
}

#[test]
fn an_immediate_rollback_is_one_because_it_was_asked_for() {
    let log = EventLog::default();
    log.publish(Some("a"), HANDOVER);
    let id = log.operations().asked("a", OperationKind::Rollback, ROOT);
    let found = log.operations().find(&id.unwrap()).unwrap();
    assert_eq!(found.kind, OperationKind::Rollback);
    assert_eq!((found.what.as_str(), found.uid), ("rollback a", Some(0)));
    assert_eq!(
        log.operations().asked("b", OperationKind::Merge, ROOT),
        None
    );
}

#[test]
fn the_last_ones_are_kept_and_those_that_go_on_are_never_dropped() {
    let log = EventLog::default();
    log.publish(Some("pending"), EventKind::RollbackPending);
    for _ in 0..2 * KEPT_MAX {
        log.publish(Some("a"), HANDOVER);
        log.publish(Some("a"), EventKind::MergeDone { chunks: 1 });
    }
    let all = log.operations().all();
    assert_eq!(all.len(), KEPT_MAX);
    assert_eq!(all[0].snapshot.as_deref(), Some("pending"));
    let newest = all.last().unwrap().id.clone();
    assert!(
        newest.ends_with(&format!("-{}", 1 + 2 * KEPT_MAX)),
        "{newest}"
    );
}

#[test]
fn a_change_that_takes_long_ends_with_its_result() {
    let operations = Operations::new("x");
    let mut seen = operations.watch();
    let good = operations.begin_change("grow a", SystemTime::UNIX_EPOCH, ROOT);
    let bad = operations.begin_change("grow b", SystemTime::UNIX_EPOCH, ROOT);
    operations.end_change(&good, Ok(()));
    let error = ApiError::new(ErrorKind::Io, "the disk is gone");
    operations.end_change(&bad, Err(error));
    assert!(seen.has_changed().unwrap());
    seen.mark_unchanged();
    let state = |id: &str| operations.find(id).map(|one| (one.state, one.error));
    assert_eq!(state(&good), Some((OperationState::Succeeded, None)));
    let reason = Some("the disk is gone".to_owned());
    assert_eq!(state(&bad), Some((OperationState::Failed, reason)));
    assert_eq!(operations.find(&bad).unwrap().what, "grow b");
}
