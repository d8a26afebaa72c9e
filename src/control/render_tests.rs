use super::super::view_io::ViewIo;
use super::*;
use crate::control::api::StoreType;
use crate::control::api::{MergeOutcome, OriginStatus};

fn snapshot(name: &str, state: State) -> SnapshotStatus {
    SnapshotStatus {
        name: name.to_owned(),
        cow: format!("/vm/{name}.cow"),
        store_type: StoreType::P,
        cow_device: "253:3".to_owned(),
        state,
        sectors: 2_097_152,
        read_only: false,
        chunk_sectors: 8,
        allocated_sectors: 2480,
        total_sectors: 131_072,
        metadata_sectors: 24,
        discard_zeroes_cow: false,
        discard_passdown_origin: false,
        defer_entries: false,
    }
}

fn view(snapshot: Option<&str>, kind: ViewKind, socket: &str, attached: bool) -> ViewStatus {
    ViewStatus {
        snapshot: snapshot.map(str::to_owned),
        kind,
        socket: Some(socket.to_owned()),
        connects: None,
        attached,
        waiting: 0,
        read_only: false,
        slow_io: None,
        hint: None,
        io: ViewIo::default(),
    }
}

fn volume(snapshots: Vec<SnapshotStatus>) -> VolumeStatus {
    VolumeStatus {
        origin: OriginStatus {
            path: "/vm/disk.img".to_owned(),
            sectors: 2_097_152,
            read_only: false,
            device: "253:2".to_owned(),
        },
        views: Vec::new(),
        snapshots,
        merge: None,
        rollback_at_reset: None,
        rollback: None,
        sandbox: None,
        last_merge: None,
        pid: None,
        access: Default::default(),
    }
}

fn merge() -> MergeStatus {
    MergeStatus {
        snapshot: "before".to_owned(),
        chunks_done: 453,
        chunks_left: 547,
        bytes_per_second: 220_200_960,
        rate_limit: None,
        seconds_left: Some(75),
        paused: false,
        error: None,
        retry: None,
    }
}

#[test]
fn dm_status_is_what_dmsetup_prints() {
    let mut fresh = snapshot("fresh", State::Active);
    (fresh.allocated_sectors, fresh.metadata_sectors) = (16, 16);
    let status = volume(vec![
        fresh,
        snapshot("s1", State::Active),
        snapshot("s2", State::Invalid),
        snapshot("s3", State::Overflow),
    ]);
    assert_eq!(
        dm_status(&status, None),
        "disk: 0 2097152 snapshot-origin \n\
         fresh: 0 2097152 snapshot 16/131072 16\n\
         s1: 0 2097152 snapshot 2480/131072 24\n\
         s2: 0 2097152 snapshot Invalid\n\
         s3: 0 2097152 snapshot Overflow\n"
    );
    assert_eq!(
        dm_status(&status, Some("s3")),
        "s3: 0 2097152 snapshot Overflow\n"
    );
}

#[test]
fn during_a_merge_the_origin_line_is_the_merge_and_the_snapshot_is_invalid() {
    let status = volume(vec![snapshot("s1", State::Merging)]);
    assert_eq!(
        dm_status(&status, None),
        "disk: 0 2097152 snapshot-merge 2480/131072 24\n\
         s1: 0 2097152 snapshot Invalid\n"
    );
    let status = volume(vec![snapshot("s1", State::MergeFailed)]);
    assert_eq!(
        dm_status(&status, None),
        "disk: 0 2097152 snapshot-merge Merge failed\n\
         s1: 0 2097152 snapshot Invalid\n"
    );
}

#[test]
fn a_snapshot_that_follows_its_merge_is_shown_as_the_merge() {
    let mut status = volume(vec![snapshot("s1", State::MergePaused)]);
    status.views = vec![
        view(None, ViewKind::Merge, "/run/a.sock", true),
        view(Some("s1"), ViewKind::Merge, "/run/s1.sock", true),
    ];
    assert_eq!(
        dm_status(&status, None),
        "disk: 0 2097152 snapshot-merge 2480/131072 24\n\
         s1: 0 2097152 snapshot-merge 2480/131072 24\n"
    );
}

#[test]
fn table_is_what_dmsetup_prints() {
    let mut transient = snapshot("t", State::Active);
    transient.store_type = StoreType::N;
    let mut status = volume(vec![snapshot("s1", State::Active), transient]);
    assert_eq!(
        table(&status),
        "disk: 0 2097152 snapshot-origin 253:2\n\
         s1: 0 2097152 snapshot 253:2 253:3 P 8\n\
         t: 0 2097152 snapshot 253:2 253:3 N 8\n"
    );
    status.snapshots = vec![snapshot("s1", State::Merging)];
    if let Some(s1) = status.snapshots.first_mut() {
        s1.store_type = StoreType::PO;
    }
    assert_eq!(
        table(&status),
        "disk: 0 2097152 snapshot-merge 253:2 253:3 PO 8\n\
         s1: 0 2097152 snapshot 253:2 253:3 PO 8\n"
    );
}

/// N17 of `docs/checklist.md`: the feature group, in the kernel's order.
#[test]
fn table_names_the_discard_features_that_are_on() {
    let with = |zeroes, passdown| {
        let mut s = snapshot("s1", State::Active);
        (s.discard_zeroes_cow, s.discard_passdown_origin) = (zeroes, passdown);
        let text = table(&volume(vec![s]));
        let line = text.lines().nth(1).unwrap();
        line.strip_prefix("s1: 0 2097152 snapshot 253:2 253:3 P 8")
            .unwrap()
            .to_owned()
    };
    assert_eq!(with(false, false), "");
    assert_eq!(with(true, false), " 1 discard_zeroes_cow");
    assert_eq!(
        with(true, true),
        " 2 discard_zeroes_cow discard_passdown_origin"
    );
}

/// The origin grew since they were taken.
#[test]
fn a_snapshot_shorter_than_its_origin_has_its_own_length() {
    let mut status = volume(vec![
        snapshot("s1", State::Active),
        snapshot("s2", State::Merging),
        snapshot("old", State::Active),
    ]);
    for (s, sectors) in status.snapshots.iter_mut().zip([1_048_576, 4096, 0]) {
        s.sectors = sectors;
    }
    assert_eq!(
        dm_status(&status, None),
        "disk: 0 2097152 snapshot-merge 2480/131072 24\n\
         s1: 0 1048576 snapshot 2480/131072 24\n\
         s2: 0 4096 snapshot Invalid\n\
         old: 0 2097152 snapshot 2480/131072 24\n"
    );
    assert_eq!(
        table(&status),
        "disk: 0 2097152 snapshot-merge 253:2 253:3 P 8\n\
         s1: 0 1048576 snapshot 253:2 253:3 P 8\n\
         s2: 0 4096 snapshot 253:2 253:3 P 8\n\
         old: 0 2097152 snapshot 253:2 253:3 P 8\n"
    );
}

#[test]
fn human_status_shows_views_snapshots_merge_and_pending_rollback() {
    let mut status = volume(vec![
        snapshot("before", State::Merging),
        snapshot("other", State::Active),
    ]);
    status.views = vec![
        view(None, ViewKind::Merge, "/run/a.sock", true),
        ViewStatus {
            read_only: true,
            ..view(Some("other"), ViewKind::Snapshot, "/run/o.sock", false)
        },
    ];
    status.merge = Some(merge());
    status.rollback_at_reset = Some("other".to_owned());
    assert_eq!(
        human(&status),
        "\
origin /vm/disk.img, 1 GiB, read-write

VIEW    SHOWS                FRONT END  SOCKET
origin  merge                attached   /run/a.sock
other   snapshot, read-only  -          /run/o.sock

NAME    STATE    USED     OF      USE%   CHUNK  TYPE  COW
before  merging  1.2 MiB  64 MiB  1.8 %  4K     P     /vm/before.cow
other   active   1.2 MiB  64 MiB  1.8 %  4K     P     /vm/other.cow

merge of before: 45.3 % done, 453 of 1000 chunks, 210 MiB/s, 1 min 15 s left
rollback to other: at the guest's next reset
"
    );
}

#[test]
fn human_status_of_a_bare_volume_is_one_line() {
    assert_eq!(
        human(&volume(Vec::new())),
        "origin /vm/disk.img, 1 GiB, read-write\n"
    );
}

#[test]
fn the_end_of_the_last_merge_is_told() {
    let mut status = volume(Vec::new());
    let outcome = MergeOutcome {
        snapshot: "s".to_owned(),
        chunks: 7,
        error: None,
        cow: None,
    };
    status.last_merge = Some(outcome.clone());
    assert!(human(&status).ends_with("\nmerge of s: done, 7 chunks\n"));
    status.last_merge = Some(MergeOutcome {
        cow: Some("/vm/s\n.cow".to_owned()),
        ..outcome.clone()
    });
    assert!(human(&status).ends_with(
        "\nmerge of s: done, 7 chunks\n/vm/s\\n.cow can be removed: all that it kept is in the disk\n"
    ));
    status.last_merge = Some(MergeOutcome {
        error: Some("I/O error 5".to_owned()),
        ..outcome
    });
    assert!(human(&status).ends_with("\nmerge of s: failed: I/O error 5\n"));
}

#[test]
fn a_merge_line_tells_pause_and_failure_instead_of_speed() {
    let paused = MergeStatus {
        paused: true,
        ..merge()
    };
    assert_eq!(
        merge_line(&paused),
        "merge of before: 45.3 % done, 453 of 1000 chunks, paused"
    );
    let limited = MergeStatus {
        rate_limit: Some(314_572_800),
        ..merge()
    };
    assert_eq!(
        merge_line(&limited),
        "merge of before: 45.3 % done, 453 of 1000 chunks, 210 MiB/s of at most 300 MiB/s, 1 min 15 s left"
    );
    let failed = MergeStatus {
        error: Some("reading the COW: I/O error".to_owned()),
        ..merge()
    };
    assert_eq!(
        merge_line(&failed),
        "merge of before: 45.3 % done, 453 of 1000 chunks, failed: reading the COW: I/O error"
    );
    let empty = MergeStatus {
        chunks_done: 0,
        chunks_left: 0,
        seconds_left: None,
        ..merge()
    };
    assert_eq!(
        merge_line(&empty),
        "merge of before: 100.0 % done, 0 of 0 chunks, 210 MiB/s"
    );
}

#[test]
fn a_store_with_metadata_alone_is_shown_empty() {
    let mut s = snapshot("s", State::Active);
    (s.allocated_sectors, s.metadata_sectors) = (16, 16);
    assert!(snapshots(&[s]).contains("  0.0 %"));
}

#[test]
fn percent_never_rounds_up_to_all() {
    assert_eq!(percent(999_999, 1_000_000), "99.9 %");
    assert_eq!(percent(u64::MAX, u64::MAX), "100.0 %");
    assert_eq!(percent(5, 0), "500.0 %");
}

#[test]
fn durations_keep_two_units() {
    assert_eq!(duration(0), "0 s");
    assert_eq!(duration(59), "59 s");
    assert_eq!(duration(75), "1 min 15 s");
    assert_eq!(duration(7 * 3600 + 61), "7 h 1 min");
}

#[test]
fn a_file_name_cannot_act_on_the_terminal() {
    let mut status = volume(Vec::new());
    status.origin.path = "/vm/\u{1b}[2Jdisk\n.img".to_owned();
    let text = human(&status) + &dm_status(&status, None) + &table(&status);
    assert!(!text.contains('\u{1b}'));
    assert_eq!(text.lines().count(), 3);
}

#[test]
fn deferred_entries_are_shown_beside_the_type() {
    let mut deferred = snapshot("after", State::Active);
    deferred.defer_entries = true;
    let text = snapshots(&[snapshot("before", State::Active), deferred]);
    let types: Vec<&str> = text
        .lines()
        .skip(1)
        .map(|row| &row[row.find(" P").unwrap()..])
        .collect();
    assert!(types[0].starts_with(" P           /vm"), "{text}");
    assert!(types[1].starts_with(" P deferred  /vm"), "{text}");
}
