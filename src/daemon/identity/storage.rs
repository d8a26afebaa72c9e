//! The identity of a disk or a COW and of its content, as far as the system shows it. It is
//! compared at a start, because a snapshot is worthless if the origin was written without
//! it.

use std::fs::{File, Metadata};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::device_names::DeviceNames;
use crate::control::rfc3339;
use crate::io::{BlockFile, Found};
use crate::size::in_words;

/// A file time as `stat` returns it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Timestamp {
    pub seconds: i64,
    pub nanoseconds: i64,
}

impl Timestamp {
    /// As in RFC 3339, in UTC with milliseconds.
    fn text(&self) -> String {
        let since = Duration::from_secs(u64::try_from(self.seconds).unwrap_or(0))
            + Duration::from_nanos(u64::try_from(self.nanoseconds).unwrap_or(0));
        let time = UNIX_EPOCH.checked_add(since).unwrap_or(UNIX_EPOCH);
        rfc3339(time)
    }

    /// The same moment, or the moment as an archive restores it that stores whole seconds or
    /// microseconds.
    fn survived_as(&self, now: &Self) -> bool {
        let coarse = match now.nanoseconds {
            0 => 0,
            n if n % 1000 == 0 => self.nanoseconds / 1000 * 1000,
            _ => self.nanoseconds,
        };
        self.seconds == now.seconds && coarse == now.nanoseconds
    }
}

/// A file at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileFacts {
    pub inode: u64,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
    /// When the inode was created; older state files and some file systems lack it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub birth: Option<Timestamp>,
    /// The file system's identifier in `statfs`. Some file systems derive it from the device
    /// number, so it is compared only where there is no birth time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_system: Option<String>,
}

impl FileFacts {
    /// Both are the same file, whatever happened to its content, name and owner.
    pub fn is_file(&self, other: &Self) -> bool {
        let same = |a: &Option<_>, b: &Option<_>| a.is_none() || b.is_none() || a == b;
        self.inode == other.inode
            && match (&self.birth, &other.birth) {
                (Some(a), Some(b)) => a == b,
                _ => same(&self.file_system, &other.file_system),
            }
    }
}

/// What identifies a file or device, and the times of its last changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum StorageKind {
    File(FileFacts),
    Device(DeviceNames),
}

/// A file or device at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StorageIdentity {
    /// Bytes.
    pub size: u64,
    pub kind: StorageKind,
}

/// A record of unflushed writes: a file in memory, which power loss takes away together with what it is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnflushedRecord {
    pub path: String,
    /// The boot of the system.
    pub boot: String,
}

/// An origin at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OriginIdentity {
    /// The path that the user gave, made absolute.
    pub path: String,
    /// Bytes.
    pub size: u64,
    pub kind: StorageKind,
}

/// How a file or device relates to what was recorded of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Relation {
    /// The same file or device, unchanged.
    Same,
    /// The same file, with the same content; its name, owner, mode or the like were changed.
    Touched,
    /// Another file with the same size and time of the last write: a faithful copy, or the
    /// file restored from one.
    Copied,
    /// The same file or device with another content, with the reason.
    Written(String),
    /// Another file or device, whose content may be different, with the reason.
    Other(String),
}

impl StorageIdentity {
    /// Reads the identity of the file or device at `path`, `size` bytes long.
    pub fn read(path: &Path, size: u64) -> io::Result<Self> {
        Self::of_descriptor(Found::at(path)?, path, size)
    }

    /// As [`read`](Self::read), for an open file, whatever its path leads to now.
    pub fn of_open(file: &BlockFile) -> io::Result<Self> {
        Self::of_descriptor(file, file.path(), file.size())
    }

    /// As [`read`](Self::read), for a descriptor of what `path` led to.
    pub fn of_descriptor(file: impl AsFd, path: &Path, size: u64) -> io::Result<Self> {
        let open = File::from(file.as_fd().try_clone_to_owned()?);
        let file_system = rustix::fs::fstatvfs(&open).ok().map(|s| s.f_fsid);
        Ok(Self::new(path, size, &open.metadata()?, file_system))
    }

    fn new(path: &Path, size: u64, meta: &Metadata, file_system: Option<u64>) -> Self {
        let kind = if meta.file_type().is_block_device() {
            StorageKind::Device(DeviceNames::read(path, meta.rdev()))
        } else {
            let birth = meta.created().ok();
            let birth = birth.and_then(|t| t.duration_since(UNIX_EPOCH).ok());
            StorageKind::File(FileFacts {
                inode: meta.ino(),
                mtime: Timestamp {
                    seconds: meta.mtime(),
                    nanoseconds: meta.mtime_nsec(),
                },
                ctime: Timestamp {
                    seconds: meta.ctime(),
                    nanoseconds: meta.ctime_nsec(),
                },
                birth: birth.and_then(|t| {
                    Some(Timestamp {
                        seconds: i64::try_from(t.as_secs()).ok()?,
                        nanoseconds: t.subsec_nanos().into(),
                    })
                }),
                file_system: file_system
                    .filter(|id| *id != 0)
                    .map(|id| format!("{id:x}")),
            })
        };
        Self { size, kind }
    }

    /// Both are certainly the same file or device.
    pub fn is(&self, other: &Self) -> bool {
        match (&self.kind, &other.kind) {
            (StorageKind::File(a), StorageKind::File(b)) => a.is_file(b),
            (StorageKind::Device(a), StorageKind::Device(b)) => a.is(b) == Some(true),
            (StorageKind::File(_), StorageKind::Device(_))
            | (StorageKind::Device(_), StorageKind::File(_)) => false,
        }
    }

    /// How the file or device as it is `now` relates to this record. Times are compared only
    /// if `stopped_cleanly`, because a daemon that was killed could not record them.
    pub fn relation(&self, now: &Self, stopped_cleanly: bool) -> Relation {
        match (&self.kind, &now.kind) {
            (StorageKind::File(was), StorageKind::File(is)) if was.is_file(is) => {
                if self.size != now.size {
                    Relation::Written(self.sizes(now))
                } else if stopped_cleanly && was.mtime != is.mtime {
                    Relation::Written(written(was.mtime, is.mtime))
                } else if stopped_cleanly && was.ctime != is.ctime {
                    Relation::Touched
                } else {
                    Relation::Same
                }
            }
            (StorageKind::File(was), StorageKind::File(is)) => {
                let times = was.mtime.survived_as(&is.mtime);
                if stopped_cleanly && times && self.size == now.size {
                    return Relation::Copied;
                }
                let mut why = format!(
                    "it is another file (its inode was {}, and is {} now)",
                    was.inode, is.inode
                );
                if was.inode == is.inode {
                    why = "it is another file, created in the place of the former one".into();
                }
                if self.size != now.size {
                    why = format!("{why}; {}", self.sizes(now));
                } else if stopped_cleanly && !times {
                    why = format!("{why}; {}", written(was.mtime, is.mtime));
                }
                Relation::Other(why)
            }
            (StorageKind::Device(was), StorageKind::Device(is)) => match was.is(is) {
                Some(true) if self.size != now.size => Relation::Written(self.sizes(now)),
                Some(true) => Relation::Same,
                Some(false) => Relation::Other(format!(
                    "it is another device (it was {}, and is {} now)",
                    was.strongest(),
                    is.strongest()
                )),
                None => Relation::Other(
                    "the system has no name for it that shows whether it is the same device".into(),
                ),
            },
            (StorageKind::File(_), StorageKind::Device(_)) => {
                Relation::Other("it was a file and is a device".into())
            }
            (StorageKind::Device(_), StorageKind::File(_)) => {
                Relation::Other("it was a device and is a file".into())
            }
        }
    }

    fn sizes(&self, now: &Self) -> String {
        format!(
            "its size was {} and is {}",
            in_words(self.size),
            in_words(now.size)
        )
    }
}

/// The times are given, because the last write before the stop may be long before it.
fn written(was: Timestamp, now: Timestamp) -> String {
    let (before, last) = (was.text(), now.text());
    match (now.seconds, now.nanoseconds) >= (was.seconds, was.nanoseconds) {
        true => format!(
            "it was written after the stop, at {last} (the last write before the stop was at {before})"
        ),
        false => format!(
            "it has an older content, last written at {last} (the last write before the stop was at {before})"
        ),
    }
}

impl OriginIdentity {
    /// The identity of an open origin, whatever its path leads to now.
    ///
    /// # Errors
    /// The file system does not answer.
    pub fn of_open(file: &BlockFile) -> io::Result<Self> {
        Self::of_descriptor(file, file.path(), file.size())
    }

    /// As [`of_open`](Self::of_open), for a descriptor of what `path` led to, `size` bytes long.
    ///
    /// # Errors
    /// The file system does not answer.
    pub fn of_descriptor(file: impl AsFd, path: &Path, size: u64) -> io::Result<Self> {
        let StorageIdentity { size, kind } = StorageIdentity::of_descriptor(file, path, size)?;
        Ok(Self {
            path: std::path::absolute(path)?.to_string_lossy().into_owned(),
            size,
            kind,
        })
    }

    pub fn storage(&self) -> StorageIdentity {
        StorageIdentity {
            size: self.size,
            kind: self.kind.clone(),
        }
    }

    /// As [`StorageIdentity::relation`]; a device for which the system has no persistent name
    /// is taken for the same one if the operator gave the same persistent path.
    pub fn relation(&self, now: &Self, stopped_cleanly: bool) -> Relation {
        if let (StorageKind::Device(was), StorageKind::Device(is)) = (&self.kind, &now.kind)
            && was.is(is).is_none()
            && self.path == now.path
            && DeviceNames::is_lasting_path(&self.path)
        {
            return if self.size == now.size {
                Relation::Same
            } else {
                Relation::Written(self.storage().sizes(&now.storage()))
            };
        }
        self.storage().relation(&now.storage(), stopped_cleanly)
    }
}

/// Whether both paths lead to one file, or are equal if there is no file.
pub fn same_path(a: &str, b: &str) -> bool {
    let real = |p: &str| std::fs::canonicalize(p).ok();
    a == b || real(a).is_some_and(|a| Some(a) == real(b))
}

#[cfg(test)]
#[path = "storage_tests.rs"]
mod tests;
