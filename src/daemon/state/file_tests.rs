use super::*;
use crate::control::api::ResetKind;
use crate::daemon::identity::device_names::DeviceNames;
use crate::daemon::identity::{OriginIdentity, StorageKind};
use crate::daemon::state::{MergeRecord, RollbackRecord, SnapshotRecord, WritePolicy};

fn blank() -> VolumeState {
    VolumeState::new(OriginIdentity {
        path: "/disk.img".into(),
        size: 1 << 20,
        kind: StorageKind::Device(DeviceNames {
            hardware: None,
            names: Vec::new(),
            boot: None,
        }),
    })
}

fn record(name: &str) -> SnapshotRecord {
    let spec = serde_json::from_str(&format!(
        r#"{{"name":"{name}","cow":"/{name}.cow","chunk_size":4096}}"#
    ));
    SnapshotRecord {
        spec: spec.unwrap(),
        valid: true,
        length: Some(1 << 20),
        id: None,
        store: None,
        unflushed: None,
    }
}

fn full() -> VolumeState {
    let mut state = blank();
    state.running = true;
    state.socket = Some("/a.sock".into());
    state.socket_access.group = Some("kvm".into());
    state.control_access.mode = Some(0o660);
    let mut second = record("s2");
    second.spec.discard_zeroes_cow = Some(true);
    second.spec.discard_passdown_origin = Some(false);
    state.snapshots = vec![record("s1"), second];
    state.merge = Some(MergeRecord {
        snapshot: "s1".into(),
        follow: true,
        writes: WritePolicy::Redirect,
        paused: true,
        rate: 1 << 20,
    });
    state.rollback_at_reset = Some(RollbackRecord {
        snapshot: "s2".into(),
        rate: 0,
        reset: ResetKind::Machine,
        qmp: None,
        keep: None,
    });
    state
}

fn reopen(path: &Path) -> Result<Option<VolumeState>, StateError> {
    let mut state = OpenedState::open(Some(path))?.recorded;
    if let Some(state) = &mut state {
        assert!(state.home.take().is_some());
    }
    Ok(state)
}

#[test]
fn everything_survives_the_process() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("deep/state.json");
    let file = OpenedState::open(Some(&path))
        .unwrap()
        .begin(full())
        .unwrap();
    drop(file);
    assert_eq!(reopen(&path).unwrap(), Some(full()));
}

/// As version 1 wrote it: all paths from the root, and no identities.
fn version_1(folder: &Path) -> serde_json::Value {
    let at = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    serde_json::json!({
        "version": 1,
        "running": false,
        "origin": {
            "path": at("disk.img"),
            "size": 1 << 20,
            "kind": { "file": {
                "inode": 7,
                "mtime": { "seconds": 5, "nanoseconds": 0 },
                "ctime": { "seconds": 5, "nanoseconds": 0 },
            } },
        },
        "socket": at("a.sock"),
        "followed_sockets": ["/run/b.sock"],
        "control": null,
        "serial": null,
        "snapshots": [{
            "spec": { "name": "s1", "cow": at("cows/s1.cow"), "chunk_size": 4096 },
            "valid": true,
        }],
        "merge": null,
        "rollback_at_reset": null,
    })
}

#[test]
fn a_file_of_version_1_is_understood_also_where_it_was_moved() {
    let directory = tempfile::tempdir().unwrap();
    let root = std::fs::canonicalize(directory.path()).unwrap();
    let path = root.join("disk.img.snapback");
    for former in [root.as_path(), Path::new("/former")] {
        std::fs::write(&path, version_1(former).to_string()).unwrap();
        let state = VolumeState::peek(&path).unwrap();
        let at = |name: &str| root.join(name).to_str().unwrap().to_owned();
        assert_eq!(state.home.as_deref(), former.to_str());
        assert_eq!(state.origin.path, at("disk.img"));
        assert_eq!(state.socket, Some(at("a.sock")));
        assert_eq!(state.followed_sockets, ["/run/b.sock"]);
        assert_eq!(state.snapshots[0].spec.cow, at("cows/s1.cow"));
        assert_eq!(state.snapshots[0].store, None);
        // It is written as the present version.
        drop(OpenedState::open(Some(&path)).unwrap().begin(state.clone()));
        let written = std::fs::read_to_string(&path).unwrap();
        assert!(written.contains("\"cow\": \"cows/s1.cow\""), "{written}");
        let again = VolumeState::peek(&path).unwrap();
        assert_eq!(again.home.as_deref(), root.to_str());
        assert_eq!(again.snapshots, state.snapshots);
    }
    // Where the user chose another place for the file nothing is known of moves.
    let path = root.join("volume");
    std::fs::write(&path, version_1(Path::new("/former")).to_string()).unwrap();
    let state = VolumeState::peek(&path).unwrap();
    assert_eq!(state.home, None);
    assert_eq!(state.snapshots[0].spec.cow, "/former/cows/s1.cow");
}

#[test]
fn an_origin_without_snapshots_gets_no_file_until_it_has_one() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state");
    let mut file = OpenedState::open(Some(&path))
        .unwrap()
        .begin(blank())
        .unwrap();
    assert!(!path.exists());
    file.update(|s| s.snapshots.push(record("s1"))).unwrap();
    assert!(path.exists());
    file.update(|s| s.drop_snapshot("s1")).unwrap();
    drop(file);
    assert!(reopen(&path).unwrap().unwrap().snapshots.is_empty());
}

#[test]
fn a_change_that_cannot_be_recorded_has_not_happened() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state");
    let mut file = OpenedState::open(Some(&path))
        .unwrap()
        .begin(full())
        .unwrap();
    // A directory in the new file's place fails its creation, even for root.
    std::fs::create_dir(directory.path().join("state.new")).unwrap();
    file.update(|s| s.drop_snapshot("s1")).unwrap_err();
    assert_eq!(file.state(), &full());
    drop(file);
    assert_eq!(reopen(&path).unwrap(), Some(full()));
}

#[test]
fn two_daemons_cannot_have_one_state_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state");
    let _file = OpenedState::open(Some(&path))
        .unwrap()
        .begin(full())
        .unwrap();
    assert!(matches!(reopen(&path), Err(StateError::InUse { .. })));
}

#[test]
fn what_is_not_understood_is_refused_with_the_way_out() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state");
    let mut newer = serde_json::to_value(full()).unwrap();
    newer["version"] = 3.into();
    newer["later"] = "field".into();
    let mut unknown = serde_json::to_value(full()).unwrap();
    unknown["later"] = "field".into();
    let mut twice = serde_json::to_value(full()).unwrap();
    twice["snapshots"][1] = twice["snapshots"][0].clone();
    let mut dangling = serde_json::to_value(full()).unwrap();
    dangling["merge"]["snapshot"] = "gone".into();
    for (content, word) in [
        (newer.to_string(), "version 3"),
        (unknown.to_string(), "later"),
        (twice.to_string(), "twice"),
        (dangling.to_string(), "gone"),
        (String::new(), "damaged"),
        ("{\"version\":1".into(), "damaged"),
        (
            serde_json::to_string(&full()).unwrap()[..200].into(),
            "damaged",
        ),
    ] {
        std::fs::write(&path, &content).unwrap();
        let error = reopen(&path).unwrap_err().to_string();
        assert!(
            error.contains(word) && error.contains("move it away"),
            "{error}"
        );
        assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
    }
}

#[test]
fn dropping_a_snapshot_drops_what_was_to_become_of_it() {
    let mut state = full();
    state.drop_snapshot("s1");
    assert_eq!(state.merge, None);
    assert!(state.rollback_at_reset.is_some());
    state.drop_snapshot("s2");
    assert_eq!(state.rollback_at_reset, None);
    state.check().unwrap();
}
