//! Where the volume is in relation to the state file: in place, moved, or a copy.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use super::marks::{self, Mark};
use crate::daemon::identity::StorageIdentity;
use crate::daemon::state::Home;
use crate::daemon::state::VolumeState;
use crate::io::Found;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Location {
    #[default]
    InPlace,
    /// From this folder, which does not hold the disk any more.
    Moved { from: PathBuf },
    /// The disk that the state file records is still in this folder.
    Copy { of: PathBuf },
}

/// The location of the volume, and the mark of its disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    pub location: Location,
    /// The mark of the origin.
    pub mark: Option<Mark>,
    /// The folder of the state file.
    pub home: Option<PathBuf>,
    /// The state file.
    pub place: Option<PathBuf>,
}

impl Placement {
    /// Examines the disk `origin` and the state file at `place` with the content
    /// `recorded`.
    pub fn look(origin: impl AsFd, place: Option<&Path>, recorded: Option<&VolumeState>) -> Self {
        let origin = origin.as_fd();
        let home = place.map(Home::of);
        let location = home
            .as_ref()
            .zip(recorded)
            .map(|(home, recorded)| location(origin, home, recorded));
        Self {
            location: location.unwrap_or_default(),
            mark: marks::of(origin),
            home: home.map(|h| h.path().to_path_buf()),
            place: place.map(Path::to_path_buf),
        }
    }

    /// The path of the state file, for messages.
    pub fn place(&self) -> String {
        let place = self.place.as_ref();
        place.map_or_else(String::new, |place| place.display().to_string())
    }

    pub fn is_copy(&self) -> bool {
        matches!(self.location, Location::Copy { .. })
    }

    /// This is a copy, and the path leads to a file of the original.
    pub fn is_foreign(&self, path: &str) -> bool {
        let real = std::fs::canonicalize(path).unwrap_or_else(|_| PathBuf::from(path));
        self.is_copy()
            && !self
                .home
                .as_ref()
                .is_some_and(|home| real.starts_with(home))
    }
}

fn location(origin: BorrowedFd<'_>, home: &Home, recorded: &VolumeState) -> Location {
    let Some(former) = recorded.home.as_deref().map(Home::recorded) else {
        return Location::InPlace;
    };
    if former == *home {
        return Location::InPlace;
    }
    let from = former.path().to_path_buf();
    let Ok(below) = Path::new(&recorded.origin.path).strip_prefix(home.path()) else {
        return Location::Moved { from };
    };
    let original = from.join(below);
    let stands = Found::at(&original).is_ok_and(|there| {
        number(&there) != number(origin)
            && StorageIdentity::of_descriptor(&there, &original, recorded.origin.size)
                .is_ok_and(|there| there.is(&recorded.origin.storage()))
    });
    match stands {
        true => Location::Copy { of: from },
        false => Location::Moved { from },
    }
}

/// Device and inode.
fn number(file: impl AsFd) -> Option<(u64, u64)> {
    let found = rustix::fs::fstat(file).ok()?;
    Some((found.st_dev, found.st_ino))
}

/// The contradiction between the mark of a disk or COW and the state file; it continues a
/// sentence after "it".
pub fn mark_speaks_against(recorded: &VolumeState, mark: &Mark) -> Option<String> {
    let volume = recorded.volume.as_ref()?;
    let mut known = vec![(volume, recorded.generation)];
    known.extend(recorded.marked.as_ref().map(|m| (&m.volume, m.generation)));
    if known.contains(&(&mark.volume, mark.generation)) {
        return None;
    }
    let at = |mark: &Mark| match &mark.state {
        Some(state) => format!(", whose state file is {state}"),
        None => String::new(),
    };
    let same: Vec<u64> = known
        .iter()
        .filter(|(volume, _)| **volume == mark.volume)
        .map(|(_, generation)| *generation)
        .collect();
    Some(match same.iter().max() {
        None => format!("has been served as part of another volume{}", at(mark)),
        Some(generation) if *generation < mark.generation => format!(
            "was served after the state file was written, so the state file is older than the disk (it is of start {generation} \
             of the volume, and the disk of start {})",
            mark.generation
        ),
        Some(generation) => format!(
            "is older than the state file (it is of start {} of the volume, and the state file of start {generation})",
            mark.generation
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::identity::OriginIdentity;
    use crate::daemon::state::MarkedAs;

    fn state() -> VolumeState {
        let mut state = VolumeState::new(OriginIdentity {
            path: "/disk.img".into(),
            size: 4096,
            kind: StorageIdentity::read(Path::new("/proc/self/status"), 4096)
                .unwrap()
                .kind,
        });
        state.volume = Some("a".into());
        state.generation = 5;
        state
    }

    fn mark(volume: &str, generation: u64) -> Mark {
        Mark {
            volume: volume.into(),
            generation,
            state: Some("/x.snapback".into()),
            snapshot: None,
        }
    }

    #[test]
    fn marks_reveal_older_newer_and_foreign_files() {
        let mut state = state();
        for marked in [None, Some(4), Some(5)] {
            state.marked = marked.map(|generation| MarkedAs {
                volume: "a".into(),
                generation,
            });
            assert_eq!(mark_speaks_against(&state, &mark("a", 5)), None);
            for (mark, word) in [
                (mark("a", 6), "state file is older"),
                (mark("a", 3), "is older than the state file"),
                (
                    mark("b", 5),
                    "another volume, whose state file is /x.snapback",
                ),
            ] {
                let against = mark_speaks_against(&state, &mark).unwrap();
                assert!(against.contains(word), "{against}");
            }
            // A start that was interrupted has marked none or some of the files.
            let cut_short = mark_speaks_against(&state, &mark("a", 4)).is_none();
            assert_eq!(cut_short, marked == Some(4));
        }
        // The files of a copy have the original's marks until the copy is marked.
        state.marked = Some(MarkedAs {
            volume: "original".into(),
            generation: 9,
        });
        assert_eq!(mark_speaks_against(&state, &mark("original", 9)), None);
        assert!(mark_speaks_against(&state, &mark("original", 8)).is_some());
        state.volume = None;
        assert_eq!(mark_speaks_against(&state, &mark("b", 1)), None);
    }
}
