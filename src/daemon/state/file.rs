//! The state file: what is recorded of a volume from one daemon to the next.
//!
//! It is replaced as a whole, durably, before a change takes effect. A file that cannot be
//! decoded stops the start: without it, the daemon could write the origin without the
//! copy-outs for a snapshot.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::home::Home;
use super::record::{OLDEST, VERSION, VolumeState};
use super::replace::{FileError, LockedFile};

/// Appended to the path of an origin that is a file.
pub const SUFFIX: &str = ".snapback";

impl VolumeState {
    /// As [`Self::read`]; `None` if there is no file or it cannot be decoded.
    pub fn peek(path: &Path) -> Option<Self> {
        Self::read(path).ok()
    }

    /// Reads the file at `path` without locking it, for callers that only read. This is
    /// safe because the file is replaced as a whole.
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
        // The version is decoded first, because a newer file has unknown fields.
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
        state.resolve_paths(path);
        Ok(state)
    }

    /// Makes all paths absolute, for the state file at `path`.
    fn resolve_paths(&mut self, path: &Path) {
        let home = Home::of(path);
        if self.version > OLDEST {
            home.find_all(self);
        } else if let Some(former) = self.former_home(path) {
            // The file was moved or copied together with the files in its folder.
            if former != home.path() {
                home.take_over(&former, self);
            }
            self.home = Some(former.to_string_lossy().into_owned());
        }
        self.version = VERSION;
    }

    /// For a file of the oldest version: the folder of the origin, if the file was in its
    /// default place.
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
                return Err(format!("it lists snapshot {name} twice"));
            }
        }
        for name in self
            .merge
            .iter()
            .map(|m| &m.snapshot)
            .chain(self.rollback_at_reset.iter().map(|r| &r.snapshot))
        {
            if self.snapshot(name).is_none() {
                return Err(format!(
                    "it refers to a snapshot {name} that it does not list"
                ));
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
        "state file {path} has version {version}, but this snapback reads versions {OLDEST} to {VERSION}: use the snapback that \
         wrote it. To start without it, move it away; its snapshots cannot be trusted then"
    )]
    Version { path: PathBuf, version: u32 },
    #[error(
        "state file {path} is damaged ({reason}): restore it from a copy. To start without it, move it away; \
         its snapshots cannot be trusted then"
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

/// The state of one volume, in memory and on disk. Both are equal whenever a call has
/// returned.
#[derive(Debug)]
pub struct StateFile {
    /// `None`: nothing is recorded of this volume (read-only origin, no `--state`).
    file: Option<LockedFile>,
    state: VolumeState,
    /// Which of the next writes fail, in order.
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
    /// Opens the file at `path`; with `None` nothing will be recorded.
    pub fn open(path: Option<&Path>) -> Result<Self, StateError> {
        Self::read(path.map(LockedFile::open).transpose()?)
    }

    /// The same without a lock, for callers that record nothing.
    pub fn look(path: Option<&Path>) -> Result<Self, StateError> {
        Self::read(path.map(LockedFile::look).transpose()?)
    }

    fn read(file: Option<LockedFile>) -> Result<Self, StateError> {
        let recorded = match file.as_ref().and_then(|f| Some((f.path(), f.content()?))) {
            Some((path, content)) => Some(VolumeState::decode(path, content)?),
            None => None,
        };
        Ok(Self { file, recorded })
    }

    /// Where it is or would be; `None`: nothing will be recorded.
    pub fn path(&self) -> Option<&Path> {
        self.file.as_ref().map(LockedFile::path)
    }

    /// Records `state` as the one that is in effect from now on.
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

    /// The file exists, because there was something to record.
    pub fn is_written(&self) -> bool {
        self.file.as_ref().is_some_and(|f| f.content().is_some())
    }

    /// Changes the state. When this returns, the change is durable, or it has not happened.
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
            // A folder that existed before may have been moved, with the file in it.
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
