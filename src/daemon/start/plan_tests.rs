//! Starts that agree with the state file, and starts that must not happen.

use std::path::PathBuf;
use std::time::Duration;

use super::*;
use crate::control::api::ResetKind;
use crate::daemon::identity::storage::FileFacts;
use crate::daemon::identity::{StorageKind, Timestamp};
use crate::daemon::state::{RollbackRecord, WritePolicy};

fn origin(written_at: i64) -> OriginIdentity {
    let time = Timestamp {
        seconds: written_at,
        nanoseconds: 0,
    };
    OriginIdentity {
        path: "/disk.img".into(),
        size: 1 << 20,
        kind: StorageKind::File(FileFacts {
            inode: 1,
            mtime: time,
            ctime: time,
            birth: None,
            file_system: None,
        }),
    }
}

/// In its place, as most starts are.
fn plan(
    options: &ServeOptions,
    recorded: Option<VolumeState>,
    now: &OriginIdentity,
) -> Result<Plan, PlanError> {
    super::plan(options, recorded, now, &Placement::default())
}

fn spec(name: &str) -> SnapshotSpec {
    SnapshotSpec {
        name: name.into(),
        cow: format!("/cows/{name}.cow"),
        store_type: StoreType::P,
        chunk_size: Some(4096),
        size: None,
        socket: None,
        discard_zeroes_cow: None,
        defer_entries: None,
        discard_passdown_origin: None,
        read_only: None,
    }
}

fn options() -> ServeOptions {
    ServeOptions {
        origin: PathBuf::from("/disk.img"),
        endpoint: Some(Endpoint::Path(PathBuf::from("/a.sock"))),
        num_queues: 1,
        polling: Duration::ZERO,
        ..ServeOptions::default()
    }
}

/// A cleanly stopped volume with snapshots s1 and s2.
fn stopped() -> VolumeState {
    let mut state = VolumeState::new(origin(100));
    state.snapshots = ["s1", "s2"]
        .map(|n| SnapshotRecord {
            spec: spec(n),
            valid: true,
            length: Some(1 << 20),
            id: None,
            store: None,
            unflushed: None,
        })
        .into();
    state
}

fn merging(mut state: VolumeState, name: &str) -> VolumeState {
    state.merge = Some(MergeRecord {
        snapshot: name.into(),
        follow: false,
        writes: WritePolicy::Wait,
        paused: false,
        rate: 7,
    });
    state
}

fn names(plan: &Plan) -> Vec<(&str, Source)> {
    plan.snapshots
        .iter()
        .map(|s| (s.spec.name.as_str(), s.source))
        .collect()
}

/// N17 of `docs/checklist.md`.
#[test]
fn discard_options_are_kept_until_they_are_given_anew() {
    let mut known = spec("s1");
    known.discard_zeroes_cow = Some(true);
    known.discard_passdown_origin = Some(true);
    let start = |known: &SnapshotSpec, zeroes, passdown| {
        let mut state = VolumeState::new(origin(100));
        state.snapshots = vec![SnapshotRecord {
            spec: known.clone(),
            valid: true,
            length: None,
            id: None,
            store: None,
            unflushed: None,
        }];
        let mut asked = options();
        asked.snapshots = vec![SnapshotSpec {
            discard_zeroes_cow: zeroes,
            discard_passdown_origin: passdown,
            ..spec("s1")
        }];
        let plan = plan(&asked, Some(state), &origin(100)).unwrap();
        let spec = &plan.snapshots[0].spec;
        assert_eq!(*spec, plan.state.snapshots[0].spec, "and recorded");
        (spec.discard_zeroes_cow, spec.discard_passdown_origin)
    };
    let (on, off) = (Some(true), Some(false));
    assert_eq!(start(&known, None, None), (on, on));
    assert_eq!(start(&known, None, off), (on, off));
    assert_eq!(start(&known, off, off), (off, off));
    assert_eq!(start(&spec("s1"), on, None), (on, None));
}

#[test]
fn the_state_file_alone_brings_everything_back() {
    let mut state = merging(stopped(), "s1");
    state.socket = Some("/old.sock".into());
    state.control = Some("/c.sock".into());
    state.running = true;
    let plan = plan(
        &ServeOptions {
            endpoint: None,
            ..options()
        },
        Some(state.clone()),
        &origin(999),
    )
    .unwrap();
    assert_eq!(
        names(&plan),
        [("s1", Source::Recorded), ("s2", Source::Recorded)]
    );
    state.origin = origin(999);
    // The last daemon was killed: nobody knows whether a guest was attached.
    state.guest_attached = true;
    assert_eq!(plan.state, state);
}

#[test]
fn options_add_to_what_is_known() {
    let mut asked = options();
    asked.snapshots = vec![
        spec("s3"),
        SnapshotSpec {
            socket: Some("/s1.sock".into()),
            ..spec("s1")
        },
    ];
    let plan = plan(&asked, Some(stopped()), &origin(100)).unwrap();
    assert_eq!(
        names(&plan),
        [
            ("s1", Source::Recorded),
            ("s2", Source::Recorded),
            ("s3", Source::Options)
        ]
    );
    assert_eq!(
        plan.state.snapshot("s1").unwrap().spec.socket.as_deref(),
        Some("/s1.sock")
    );
}

/// Nothing is said of it by most options; only what is said counts.
#[test]
fn read_only_is_remembered_and_can_be_taken_back() {
    let mut state = stopped();
    for (asked, remembered) in [
        (None, None),
        (Some(true), Some(true)),
        (None, Some(true)),
        (Some(false), Some(false)),
    ] {
        let mut options = options();
        options.snapshots = vec![SnapshotSpec {
            read_only: asked,
            ..spec("s1")
        }];
        state = plan(&options, Some(state), &origin(100)).unwrap().state;
        assert_eq!(state.snapshot("s1").unwrap().spec.read_only, remembered);
        state.running = false;
    }
}

fn sized(size: u64) -> OriginIdentity {
    OriginIdentity {
        size,
        ..origin(100)
    }
}

#[test]
fn a_snapshot_keeps_its_length_when_its_origin_grew() {
    let mut state = stopped();
    // Of an older version: it is as long as the origin that is recorded.
    state.snapshot_mut("s1").unwrap().length = None;
    let mut grown = options();
    grown.accept_changes = true;
    grown.snapshots = vec![spec("s3")];
    let planned = plan(&grown, Some(state), &sized((2 << 20) + 100)).unwrap();
    let lengths = planned.state.snapshots.iter().map(|s| s.length);
    let lengths: Vec<_> = lengths.map(Option::unwrap).collect();
    assert_eq!(lengths, [1 << 20, 1 << 20, 2 << 20]);
}

#[test]
fn an_origin_shorter_than_a_snapshot_is_refused_whatever_is_accepted() {
    let mut asked = options();
    for accept in [false, true] {
        asked.accept_changes = accept;
        let error = plan(&asked, Some(stopped()), &sized(1 << 19)).unwrap_err();
        let text = error.to_string();
        for words in ["512 KiB", "s1 has 1 MiB", "--forget s1"] {
            assert!(text.contains(words), "{text}");
        }
    }
    // What it had beyond the snapshots may go.
    let mut short = stopped();
    short.origin.size = 2 << 20;
    plan(&asked, Some(short), &origin(100)).unwrap();
    // And nothing is lost of those that are given up or invalid.
    let mut invalid = stopped();
    invalid.snapshot_mut("s2").unwrap().valid = false;
    asked.forget = vec!["s1".into()];
    plan(&asked, Some(invalid), &sized(1 << 19)).unwrap();
}

#[test]
fn options_that_contradict_are_refused_with_both_values() {
    for (asked, words) in [
        (
            SnapshotSpec {
                cow: "/other.cow".into(),
                ..spec("s1")
            },
            ["/cows/s1.cow", "/other.cow"],
        ),
        (
            SnapshotSpec {
                store_type: StoreType::PO,
                ..spec("s1")
            },
            ["type is P ", "PO"],
        ),
        (
            SnapshotSpec {
                chunk_size: Some(8192),
                ..spec("s1")
            },
            ["4 KiB", "8 KiB"],
        ),
    ] {
        let error = plan(
            &ServeOptions {
                snapshots: vec![asked],
                ..options()
            },
            Some(stopped()),
            &origin(100),
        );
        let error = error.unwrap_err().to_string();
        assert!(words.iter().all(|w| error.contains(w)), "{error}");
    }
}

#[test]
fn names_must_be_good_and_unique() {
    let twice = ServeOptions {
        snapshots: vec![spec("a"), spec("a")],
        ..options()
    };
    assert_eq!(
        plan(&twice, None, &origin(1)).unwrap_err(),
        PlanError::Twice("a".into())
    );
    let slash = ServeOptions {
        snapshots: vec![spec("a/b")],
        ..options()
    };
    assert!(matches!(
        plan(&slash, None, &origin(1)).unwrap_err(),
        PlanError::Name(_)
    ));
}

#[test]
fn an_origin_changed_after_a_clean_stop_is_refused_until_accepted() {
    let error = plan(&options(), Some(stopped()), &origin(160)).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("s1, s2")
            && text.contains("--accept-changes")
            && text.contains("at 1970-01-01T00:02:40.000Z"),
        "{text}"
    );
    let accept = ServeOptions {
        accept_changes: true,
        ..options()
    };
    let plan = plan(&accept, Some(stopped()), &origin(160)).unwrap();
    assert!(plan.snapshots.iter().all(|s| s.valid));
    assert_eq!(plan.state.origin, origin(160));
}

#[test]
fn a_changed_origin_matters_only_to_snapshots_that_could_be_right() {
    let mut state = stopped();
    for record in &mut state.snapshots {
        record.valid = false;
    }
    plan(&options(), Some(state), &origin(160)).unwrap();
    let forget = ServeOptions {
        forget: vec!["s1".into(), "s2".into()],
        ..options()
    };
    plan(&forget, Some(stopped()), &origin(160)).unwrap();
}

#[test]
fn after_a_kill_the_times_of_the_origin_do_not_count() {
    let mut killed = stopped();
    killed.running = true;
    plan(&options(), Some(killed), &origin(160)).unwrap();
}

#[test]
fn forgetting_drops_the_snapshot_and_its_merge_and_says_so() {
    let forget = ServeOptions {
        forget: vec!["s1".into()],
        ..options()
    };
    let plan = plan(&forget, Some(merging(stopped(), "s1")), &origin(100)).unwrap();
    assert_eq!(plan.forget.len(), 1);
    assert_eq!(names(&plan), [("s2", Source::Recorded)]);
    assert_eq!(plan.state.merge, None);
    assert!(plan.remarks.concat().contains("mixture"));
}

#[test]
fn what_is_not_known_cannot_be_forgotten_or_merged() {
    for asked in [
        ServeOptions {
            forget: vec!["x".into()],
            ..options()
        },
        ServeOptions {
            merge: Some("x".into()),
            ..options()
        },
    ] {
        let error = plan(&asked, Some(stopped()), &origin(100))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("x: no such snapshot; known are: s1, s2"),
            "{error}"
        );
    }
}

#[test]
fn a_merge_starts_only_where_it_can() {
    let merge = |name: &str| ServeOptions {
        merge: Some(name.into()),
        ..options()
    };
    let started = plan(&merge("s1"), Some(stopped()), &origin(100)).unwrap();
    assert_eq!(started.state.merge.unwrap().snapshot, "s1");
    // The one under way goes on as it was.
    let same = plan(&merge("s1"), Some(merging(stopped(), "s1")), &origin(100)).unwrap();
    assert_eq!(same.state.merge.unwrap().rate, 7);
    let other = plan(&merge("s2"), Some(merging(stopped(), "s1")), &origin(100)).unwrap_err();
    assert!(matches!(other, PlanError::OtherMerge { .. }));
    let mut invalid = stopped();
    invalid.snapshot_mut("s1").unwrap().valid = false;
    assert_eq!(
        plan(&merge("s1"), Some(invalid), &origin(100)).unwrap_err(),
        PlanError::Invalid("s1".into())
    );
    let mut transient = merge("t");
    transient.snapshots = vec![SnapshotSpec {
        store_type: StoreType::N,
        ..spec("t")
    }];
    assert_eq!(
        plan(&transient, None, &origin(1)).unwrap_err(),
        PlanError::Transient("t".into())
    );
}

#[test]
fn a_pending_rollback_stays_pending_or_becomes_the_merge_asked_for() {
    let mut state = stopped();
    state.rollback_at_reset = Some(RollbackRecord {
        snapshot: "s1".into(),
        rate: 5,
        reset: ResetKind::Machine,
        qmp: None,
        keep: None,
    });
    let waits = plan(&options(), Some(state.clone()), &origin(100)).unwrap();
    assert_eq!(waits.state.rollback_at_reset, state.rollback_at_reset);
    let merge = |name: &str| ServeOptions {
        merge: Some(name.into()),
        ..options()
    };
    let now = plan(&merge("s1"), Some(state.clone()), &origin(100)).unwrap();
    assert_eq!(
        (now.state.rollback_at_reset, now.state.merge.unwrap().rate),
        (None, 5)
    );
    assert!(matches!(
        plan(&merge("s2"), Some(state), &origin(100)),
        Err(PlanError::OtherRollback { .. })
    ));
}

#[test]
fn a_read_only_origin_is_not_merged_into() {
    let read_only = ServeOptions {
        read_only: true,
        ..options()
    };
    let error = plan(&read_only, Some(merging(stopped(), "s1")), &origin(100)).unwrap_err();
    assert_eq!(error, PlanError::MergeReadOnly("s1".into()));
}

#[test]
fn transient_snapshots_end_with_their_daemon() {
    let mut state = stopped();
    state.snapshots.push(SnapshotRecord {
        spec: SnapshotSpec {
            store_type: StoreType::N,
            ..spec("t")
        },
        valid: true,
        length: Some(1 << 20),
        id: None,
        store: None,
        unflushed: None,
    });
    let gone = plan(&options(), Some(state.clone()), &origin(100)).unwrap();
    assert_eq!(gone.snapshots.len(), 2);
    assert!(gone.remarks.concat().contains("t was transient"));
    let mut again = options();
    again.snapshots = vec![SnapshotSpec {
        store_type: StoreType::N,
        ..spec("t")
    }];
    let afresh = plan(&again, Some(state), &origin(100)).unwrap();
    assert_eq!(names(&afresh).last(), Some(&("t", Source::Options)));
    assert!(afresh.snapshots.iter().any(|s| s.scratch));
}

#[test]
fn a_start_that_nobody_could_reach_is_refused() {
    let unreachable = ServeOptions {
        endpoint: None,
        ..options()
    };
    let planned = plan(&unreachable, None, &origin(1)).unwrap();
    assert_eq!(
        check_served(&unreachable, &planned),
        Err(PlanError::Nothing)
    );
}

#[test]
fn two_things_at_one_socket_are_refused_by_name() {
    let mut state = stopped();
    state.followed_sockets.push("/s1.sock".into());
    let mut asked = options();
    asked.snapshots = vec![SnapshotSpec {
        socket: Some("/s1.sock".into()),
        ..spec("s3")
    }];
    let error = plan(&asked, Some(state.clone()), &origin(100))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("live commit") && error.contains("snapshot s3"),
        "{error}"
    );
    // The user may give the origin the socket that its guest went over to.
    let moved = ServeOptions {
        endpoint: Some(Endpoint::Path(PathBuf::from("/s1.sock"))),
        ..options()
    };
    plan(&moved, Some(state), &origin(100)).unwrap();
}
