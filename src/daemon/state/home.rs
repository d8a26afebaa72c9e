//! The folder of a state file. Paths below it are stored relative to it, so that the whole
//! folder can be moved, and a copy refers to its own files.

use std::path::{Path, PathBuf};

use super::record::VolumeState;
use crate::control::api::SnapshotSpec;

/// The folder of one state file, with symbolic links resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Home(PathBuf);

impl Home {
    /// Of the state file at `path`, which need not exist yet.
    pub fn of(path: &Path) -> Self {
        let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
        let folder = absolute.parent().unwrap_or(Path::new("/"));
        Self(std::fs::canonicalize(folder).unwrap_or_else(|_| folder.to_path_buf()))
    }

    /// The folder that is recorded in a state file.
    pub fn recorded(path: &str) -> Self {
        Self(PathBuf::from(path))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// `path` as it is stored: relative if it leads below the folder, also through a
    /// symbolic link, and absolute if a link leads out of the folder.
    fn keep(&self, path: &str) -> String {
        let path = Path::new(path);
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return path.to_string_lossy().into_owned();
        };
        let real = std::fs::canonicalize(parent).unwrap_or_else(|_| parent.to_path_buf());
        match real.join(name).strip_prefix(&self.0) {
            Ok(below) => below.to_string_lossy().into_owned(),
            Err(_) => path.to_string_lossy().into_owned(),
        }
    }

    /// A stored path, made absolute.
    pub fn find(&self, kept: &str) -> String {
        // An absolute path replaces what it is joined to.
        self.0.join(kept).to_string_lossy().into_owned()
    }

    /// Makes all paths of `state` as they are stored.
    pub fn keep_all(&self, state: &mut VolumeState) {
        map_paths(state, |path| self.keep(path));
    }

    /// Makes all paths of `state` absolute.
    pub fn find_all(&self, state: &mut VolumeState) {
        map_paths(state, |path| self.find(path));
    }

    /// Moves all paths below `former` to this folder, for state files whose paths are all
    /// absolute.
    pub fn take_over(&self, former: &Path, state: &mut VolumeState) {
        map_paths(state, |path| match Path::new(path).strip_prefix(former) {
            Ok(below) => self.0.join(below).to_string_lossy().into_owned(),
            Err(_) => path.to_owned(),
        });
    }
}

fn map_paths(state: &mut VolumeState, change: impl Fn(&str) -> String) {
    let spec = |spec: &mut SnapshotSpec| {
        spec.cow = change(&spec.cow);
        spec.socket = spec.socket.as_deref().map(&change);
    };
    let list = |paths: &mut Vec<String>| {
        for path in paths {
            *path = change(path);
        }
    };
    state.origin.path = change(&state.origin.path);
    state.socket = state.socket.as_deref().map(&change);
    state.control = state.control.as_deref().map(&change);
    list(&mut state.followed_sockets);
    list(&mut state.read_only_sockets);
    list(&mut state.write_through_sockets);
    for record in &mut state.snapshots {
        spec(&mut record.spec);
    }
    state.qmp = state.qmp.as_deref().map(&change);
    if let Some(stopped) = &mut state.stopped_guest {
        stopped.qmp = change(&stopped.qmp);
    }
    if let Some(rollback) = &mut state.rollback_at_reset {
        rollback.qmp = rollback.qmp.as_deref().map(&change);
    }
    if let Some(keep) = state
        .rollback_at_reset
        .as_mut()
        .and_then(|r| r.keep.as_mut())
    {
        spec(keep);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_below_the_folder_are_stored_relative_and_found_again() {
        let directory = tempfile::tempdir().unwrap();
        let root = std::fs::canonicalize(directory.path()).unwrap();
        for folder in ["vm/cows", "vmx", "big"] {
            std::fs::create_dir_all(root.join(folder)).unwrap();
        }
        std::os::unix::fs::symlink(root.join("vm"), root.join("link")).unwrap();
        std::os::unix::fs::symlink(root.join("big"), root.join("vm/out")).unwrap();
        let home = Home::of(&root.join("vm/disk.img.snapback"));
        assert_eq!(home, Home::of(&root.join("link/disk.img.snapback")));
        for (given, kept) in [
            ("vm/a.cow", Some("a.cow")),
            ("vm/cows/a.cow", Some("cows/a.cow")),
            ("link/a.cow", Some("a.cow")),
            ("vm/new/a.cow", Some("new/a.cow")),
            ("vmx/a.cow", None),
            ("a.cow", None),
            // It leads out of the folder: a copy of the folder would refer to the original's.
            ("vm/out/a.cow", None),
        ] {
            let given = root.join(given);
            let given = given.to_str().unwrap();
            assert_eq!(home.keep(given), kept.unwrap_or(given));
            let found = home.find(&home.keep(given));
            match kept {
                Some(kept) => assert_eq!(found, root.join("vm").join(kept).to_str().unwrap()),
                None => assert_eq!(found, given),
            }
        }
    }
}
