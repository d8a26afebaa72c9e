//! The state file: what a volume remembers from one daemon to the next.
//!
//! It is made durable before a change takes effect, and replaced as a whole. A
//! file that cannot be understood stops the start: going on without it could
//! leave a snapshot out of the origin's writes, silently.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::identity::OriginIdentity;
use super::replace::{FileError, LockedFile};
use crate::control::api::SnapshotSpec;
use crate::engine::MergeWrites;

/// Version that this program writes; it reads no other.
const VERSION: u32 = 1;

/// The whole content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeState {
    version: u32,
    /// A daemon is (or was, until it was killed) serving the volume.
    pub running: bool,
    /// As of the last clean stop, or of the start if there was none since.
    pub origin: OriginIdentity,
    /// Socket of the origin view.
    pub socket: Option<String>,
    /// Sockets of former snapshot views that went over to the origin by a live
    /// commit: their guests find the origin there.
    pub followed_sockets: Vec<String>,
    /// Those of them whose snapshots were read-only: they stay so.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub read_only_sockets: Vec<String>,
    pub control: Option<String>,
    /// What GET_ID answers, if it was given.
    pub serial: Option<String>,
    /// In the order of their creation.
    pub snapshots: Vec<SnapshotRecord>,
    pub merge: Option<MergeRecord>,
    pub rollback_at_reset: Option<RollbackRecord>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotRecord {
    pub spec: SnapshotSpec,
    /// False once it missed a copy-out; never true again.
    pub valid: bool,
    /// Bytes that it shows: the origin's size when it was taken. Older files lack
    /// it; then it is as long as the origin that they know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<u64>,
}

/// A merge under way: the origin's content is incomplete without the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MergeRecord {
    pub snapshot: String,
    pub follow: bool,
    pub writes: WritePolicy,
    pub paused: bool,
    /// Bytes per second, 0: no limit.
    pub rate: u64,
}

/// A rollback that waits for the guest's next reset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RollbackRecord {
    pub snapshot: String,
    /// Of the merge that follows, in bytes per second, 0: no limit.
    pub rate: u64,
    /// A snapshot to be taken at that reset, of what the guest has come to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<SnapshotSpec>,
}

/// [`MergeWrites`] as it is spelled in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WritePolicy {
    Wait,
    Redirect,
}

impl From<MergeWrites> for WritePolicy {
    fn from(writes: MergeWrites) -> Self {
        match writes {
            MergeWrites::Wait => Self::Wait,
            MergeWrites::Redirect => Self::Redirect,
        }
    }
}

impl From<WritePolicy> for MergeWrites {
    fn from(policy: WritePolicy) -> Self {
        match policy {
            WritePolicy::Wait => Self::Wait,
            WritePolicy::Redirect => Self::Redirect,
        }
    }
}

impl VolumeState {
    /// A volume that was never served.
    pub fn new(origin: OriginIdentity) -> Self {
        Self {
            version: VERSION,
            running: false,
            origin,
            socket: None,
            followed_sockets: Vec::new(),
            read_only_sockets: Vec::new(),
            control: None,
            serial: None,
            snapshots: Vec::new(),
            merge: None,
            rollback_at_reset: None,
        }
    }

    pub fn snapshot(&self, name: &str) -> Option<&SnapshotRecord> {
        self.snapshots.iter().find(|s| s.spec.name == name)
    }

    pub fn snapshot_mut(&mut self, name: &str) -> Option<&mut SnapshotRecord> {
        self.snapshots.iter_mut().find(|s| s.spec.name == name)
    }

    /// Drops a snapshot and everything that was to become of it.
    pub fn drop_snapshot(&mut self, name: &str) {
        self.snapshots.retain(|s| s.spec.name != name);
        self.merge.take_if(|m| m.snapshot == name);
        self.rollback_at_reset.take_if(|r| r.snapshot == name);
    }

    /// Nothing in it that a later start could miss.
    pub fn is_blank(&self) -> bool {
        self.snapshots.is_empty() && self.merge.is_none() && self.followed_sockets.is_empty()
    }

    /// Reads the file at `path` without its lock, for who only wants to know; it
    /// is replaced as a whole. `None` if there is none that can be understood.
    pub fn peek(path: &Path) -> Option<Self> {
        let content = super::replace::read_small(path).ok()?;
        Self::decode(path, &content).ok()
    }

    fn decode(path: &Path, content: &[u8]) -> Result<Self, StateError> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let damaged = |reason: String| StateError::Damaged {
            path: path.to_path_buf(),
            reason,
        };
        // The version first: a newer file has fields that are unknown here.
        let Versioned { version } =
            serde_json::from_slice(content).map_err(|e| damaged(e.to_string()))?;
        if version != VERSION {
            return Err(StateError::Version {
                path: path.to_path_buf(),
                version,
            });
        }
        let state: Self = serde_json::from_slice(content).map_err(|e| damaged(e.to_string()))?;
        state.check().map_err(damaged)?;
        Ok(state)
    }

    fn check(&self) -> Result<(), String> {
        for (index, record) in self.snapshots.iter().enumerate() {
            let name = &record.spec.name;
            if self
                .snapshots
                .iter()
                .take(index)
                .any(|s| s.spec.name == *name)
            {
                return Err(format!("snapshot {name} is in it twice"));
            }
        }
        for name in self
            .merge
            .iter()
            .map(|m| &m.snapshot)
            .chain(self.rollback_at_reset.iter().map(|r| &r.snapshot))
        {
            if self.snapshot(name).is_none() {
                return Err(format!("it speaks of a snapshot {name} that is not in it"));
            }
        }
        Ok(())
    }
}

#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error(
        "state file {path} is in use: another snapback serves this volume. Stop it first, or choose another --state FILE"
    )]
    InUse { path: PathBuf },
    #[error(
        "state file {path} has version {version}, this snapback knows only {VERSION}: use the snapback that wrote it. \
         To go on without it, move it away; its snapshots must then not be trusted any more"
    )]
    Version { path: PathBuf, version: u32 },
    #[error(
        "state file {path} is damaged ({reason}): bring it back from a copy. To go on without it, move it away; \
         its snapshots must then not be trusted any more"
    )]
    Damaged { path: PathBuf, reason: String },
    #[error("{0}; choose another place with --state FILE if this one cannot be written")]
    File(FileError),
}

impl From<FileError> for StateError {
    fn from(error: FileError) -> Self {
        match error {
            FileError::InUse { path } => Self::InUse { path },
            other => Self::File(other),
        }
    }
}

/// The state of one volume, in memory and on disk; the two never differ after a
/// call has returned.
#[derive(Debug)]
pub struct StateFile {
    /// `None`: this volume is not remembered (read-only origin, no `--state`).
    file: Option<LockedFile>,
    state: VolumeState,
}

/// A state file that was read (if it exists) and locked; nothing is written.
#[derive(Debug)]
pub struct OpenedState {
    file: Option<LockedFile>,
    pub recorded: Option<VolumeState>,
}

impl OpenedState {
    /// Opens the file at `path`; with `None` nothing will be remembered.
    pub fn open(path: Option<&Path>) -> Result<Self, StateError> {
        let file = path.map(LockedFile::open).transpose()?;
        let recorded = match file.as_ref().and_then(|f| Some((f.path(), f.content()?))) {
            Some((path, content)) => Some(VolumeState::decode(path, content)?),
            None => None,
        };
        Ok(Self { file, recorded })
    }

    /// Records `state` as the one that takes effect now.
    pub fn begin(self, state: VolumeState) -> Result<StateFile, StateError> {
        let mut file = StateFile {
            file: self.file,
            state,
        };
        file.write(&file.state.clone())?;
        Ok(file)
    }
}

impl StateFile {
    pub fn state(&self) -> &VolumeState {
        &self.state
    }

    pub fn path(&self) -> Option<&Path> {
        self.file.as_ref().map(LockedFile::path)
    }

    /// Changes the state; the change is durable when this returns, or has not
    /// happened at all.
    pub fn update(&mut self, change: impl FnOnce(&mut VolumeState)) -> Result<(), StateError> {
        let mut state = self.state.clone();
        change(&mut state);
        if state != self.state {
            self.write(&state)?;
            self.state = state;
        }
        Ok(())
    }

    fn write(&mut self, state: &VolumeState) -> Result<(), StateError> {
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        // An origin without snapshots needs no file beside it.
        if state.is_blank() && file.content().is_none() {
            return Ok(());
        }
        if let Some(directory) = file.path().parent()
            && !directory.as_os_str().is_empty()
        {
            std::fs::create_dir_all(directory).map_err(|source| FileError::Io {
                what: "create",
                path: directory.to_path_buf(),
                source,
            })?;
        }
        let mut content = serde_json::to_vec_pretty(state).map_err(|e| StateError::Damaged {
            path: file.path().to_path_buf(),
            reason: e.to_string(),
        })?;
        content.push(b'\n');
        Ok(file.replace(content)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::identity::OriginKind;

    fn blank() -> VolumeState {
        VolumeState::new(OriginIdentity {
            path: "/disk.img".into(),
            size: 1 << 20,
            kind: OriginKind::Device { hardware: None },
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
        }
    }

    fn full() -> VolumeState {
        let mut state = blank();
        state.running = true;
        state.socket = Some("/a.sock".into());
        state.snapshots = vec![record("s1"), record("s2")];
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
            keep: None,
        });
        state
    }

    fn reopen(path: &Path) -> Result<Option<VolumeState>, StateError> {
        Ok(OpenedState::open(Some(path))?.recorded)
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

    /// Fields that came later are left out where they say nothing.
    #[test]
    fn a_file_of_an_older_version_is_understood() {
        let mut older = full();
        for record in &mut older.snapshots {
            record.length = None;
        }
        let written = serde_json::to_string(&older).unwrap();
        for later in ["length", "read_only"] {
            assert!(!written.contains(later), "{written}");
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        std::fs::write(&path, written).unwrap();
        assert_eq!(VolumeState::peek(&path), Some(older.clone()));
        assert_eq!(reopen(&path).unwrap(), Some(older));
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
        newer["version"] = 2.into();
        newer["later"] = "field".into();
        let mut unknown = serde_json::to_value(full()).unwrap();
        unknown["later"] = "field".into();
        let mut twice = serde_json::to_value(full()).unwrap();
        twice["snapshots"][1] = twice["snapshots"][0].clone();
        let mut dangling = serde_json::to_value(full()).unwrap();
        dangling["merge"]["snapshot"] = "gone".into();
        for (content, word) in [
            (newer.to_string(), "version 2"),
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
}
