//! The state file: what a volume remembers from one daemon to the next.
//!
//! It is made durable before a change takes effect, and replaced as a whole. A
//! file that cannot be understood stops the start: going on without it could
//! leave a snapshot out of the origin's writes, silently.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::home::Home;
use super::place::SUFFIX;
use super::replace::{FileError, LockedFile};
use crate::control::api::{ResetKind, SnapshotSpec};
use crate::daemon::identity::{OriginIdentity, StorageIdentity};
use crate::engine::MergeWrites;

/// Version that this program writes. It reads [`OLDEST`] and what came between.
const VERSION: u32 = 2;
/// Keeps all paths from the root, and no identities but the origin's.
const OLDEST: u32 = 1;

/// The whole content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeState {
    version: u32,
    /// What no other volume has, not even a copy of this one, once it was served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<String>,
    /// Counts the starts of daemons.
    #[serde(default)]
    pub generation: u64,
    /// What the marks on the origin and the COWs were known to say when this was
    /// written; they may say what this file says, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub marked: Option<MarkedAs>,
    /// The folder in which this file was written. Paths below it are kept relative
    /// to it; in memory all paths are absolute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub home: Option<String>,
    /// A daemon is (or was, until it was killed) serving the volume.
    pub running: bool,
    /// A guest may have been attached to the origin when the last daemon ended, and
    /// none has come since: it may come back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub guest_attached: bool,
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
    /// The monitor socket (QMP) of the QEMU that serves the origin's guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qmp: Option<String>,
    /// A guest that was stopped for a rollback and does not run again yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped_guest: Option<StoppedGuest>,
    /// What GET_ID answers, if it was given.
    pub serial: Option<String>,
    /// In the order of their creation.
    pub snapshots: Vec<SnapshotRecord>,
    pub merge: Option<MergeRecord>,
    pub rollback_at_reset: Option<RollbackRecord>,
}

/// The part of a [`Mark`](crate::daemon::provenance::marks::Mark) that is compared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MarkedAs {
    pub volume: String,
    pub generation: u64,
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
    /// What no other snapshot has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Its COW, as of the same moment as the origin's identity, or of its creation
    /// if that was later. Older files lack it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<StorageIdentity>,
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
    /// What counts as that reset.
    #[serde(default, skip_serializing_if = "ResetKind::is_machine")]
    pub reset: ResetKind,
    /// The monitor that tells of resets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qmp: Option<String>,
    /// A snapshot to be taken at that reset, of what the guest has come to. It is
    /// recorded together with the handover: while this is here, it is not taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<SnapshotSpec>,
}

/// A guest that its VMM was told to stop, so that its disk could be rolled back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoppedGuest {
    pub qmp: String,
    pub snapshot: String,
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
            volume: None,
            generation: 0,
            marked: None,
            home: None,
            running: false,
            guest_attached: false,
            origin,
            socket: None,
            followed_sockets: Vec::new(),
            read_only_sockets: Vec::new(),
            control: None,
            qmp: None,
            stopped_guest: None,
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

    /// A guest can reach the origin.
    pub fn serves_origin(&self) -> bool {
        self.socket.is_some() || !self.followed_sockets.is_empty()
    }

    /// Nothing in it that a later start could miss.
    pub fn is_blank(&self) -> bool {
        self.snapshots.is_empty() && self.merge.is_none() && self.followed_sockets.is_empty()
    }

    /// As [`Self::read`], `None` if there is no file that can be understood.
    pub fn peek(path: &Path) -> Option<Self> {
        Self::read(path).ok()
    }

    /// Reads the file at `path` without its lock, for who only wants to know; it
    /// is replaced as a whole.
    pub fn read(path: &Path) -> Result<Self, StateError> {
        let content = super::replace::read_small(path).map_err(|source| FileError::Io {
            what: "read",
            path: path.to_owned(),
            source,
        })?;
        Self::decode(path, &content)
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
        if !(OLDEST..=VERSION).contains(&version) {
            return Err(StateError::Version {
                path: path.to_path_buf(),
                version,
            });
        }
        let mut state: Self =
            serde_json::from_slice(content).map_err(|e| damaged(e.to_string()))?;
        state.check().map_err(damaged)?;
        state.settle_in(path);
        Ok(state)
    }

    /// Makes all paths absolute, as they are meant for the state file at `path`.
    fn settle_in(&mut self, path: &Path) {
        let home = Home::of(path);
        if self.version > OLDEST {
            home.find_all(self);
        } else if let Some(former) = self.former_home(path) {
            // It was moved or copied together with what is beside it.
            if former != home.path() {
                home.take_over(&former, self);
            }
            self.home = Some(former.to_string_lossy().into_owned());
        }
        self.version = VERSION;
    }

    /// Of a file of the oldest version: the folder of the origin, if the file was
    /// in its usual place.
    fn former_home(&self, path: &Path) -> Option<PathBuf> {
        let origin = Path::new(&self.origin.path);
        let mut usual = origin.file_name()?.to_owned();
        usual.push(SUFFIX);
        if path.file_name()? != usual {
            return None;
        }
        let former = origin.parent()?;
        Some(std::fs::canonicalize(former).unwrap_or_else(|_| former.to_path_buf()))
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
        "state file {path} has version {version}, this snapback knows {OLDEST} to {VERSION}: use the snapback that wrote it. \
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
    /// Which of the next writes fail.
    #[cfg(test)]
    pub failures: std::collections::VecDeque<bool>,
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

    /// Where it is or would be; `None`: nothing will be remembered.
    pub fn path(&self) -> Option<&Path> {
        self.file.as_ref().map(LockedFile::path)
    }

    /// Records `state` as the one that takes effect now.
    pub fn begin(self, state: VolumeState) -> Result<StateFile, StateError> {
        let mut file = StateFile {
            file: self.file,
            state,
            #[cfg(test)]
            failures: Default::default(),
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

    /// The file exists: there was something to remember.
    pub fn is_written(&self) -> bool {
        self.file.as_ref().is_some_and(|f| f.content().is_some())
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
        #[cfg(test)]
        if self.failures.pop_front() == Some(true) {
            return Err(StateError::File(FileError::Io {
                what: "write",
                path: PathBuf::from("state"),
                source: std::io::Error::other("injected"),
            }));
        }
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        // An origin without snapshots needs no file beside it.
        if state.is_blank() && file.content().is_none() {
            return Ok(());
        }
        if let Some(directory) = file.path().parent()
            && !directory.as_os_str().is_empty()
            // Later it is there, or was moved together with the file.
            && file.content().is_none()
        {
            std::fs::create_dir_all(directory).map_err(|source| FileError::Io {
                what: "create",
                path: directory.to_path_buf(),
                source,
            })?;
        }
        let home = Home::of(file.path());
        let mut kept = state.clone();
        home.keep_all(&mut kept);
        kept.home = Some(home.path().to_string_lossy().into_owned());
        let mut content = serde_json::to_vec_pretty(&kept).map_err(|e| StateError::Damaged {
            path: file.path().to_path_buf(),
            reason: e.to_string(),
        })?;
        content.push(b'\n');
        Ok(file.replace(content)?)
    }
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
