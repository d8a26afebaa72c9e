//! What tells an origin, and its content, from another: as far as the system
//! says. A snapshot is worthless if the origin was written without it.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Where the state of volumes on devices is kept.
const DEVICE_STATE_DIRECTORY: &str = "/var/lib/snapback";

/// A file time as `stat` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Timestamp {
    pub seconds: i64,
    pub nanoseconds: i64,
}

/// An origin at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OriginIdentity {
    /// As the user gave it, made absolute; not compared (files may be moved).
    pub path: String,
    /// Bytes.
    pub size: u64,
    pub kind: OriginKind,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum OriginKind {
    File {
        inode: u64,
        mtime: Timestamp,
        ctime: Timestamp,
    },
    Device {
        /// The device-mapper UUID, WWID, serial or backing file; device numbers
        /// and kernel names change from boot to boot.
        hardware: Option<String>,
    },
}

impl OriginIdentity {
    /// Reads the identity of the open origin at `path`, `size` bytes long.
    pub fn read(path: &Path, size: u64) -> io::Result<Self> {
        let meta = fs::metadata(path)?;
        let kind = if meta.file_type().is_block_device() {
            let (major, minor) = (
                rustix::fs::major(meta.rdev()),
                rustix::fs::minor(meta.rdev()),
            );
            let sysfs = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
            OriginKind::Device {
                hardware: hardware_name(&sysfs),
            }
        } else {
            OriginKind::File {
                inode: meta.ino(),
                mtime: Timestamp {
                    seconds: meta.mtime(),
                    nanoseconds: meta.mtime_nsec(),
                },
                ctime: Timestamp {
                    seconds: meta.ctime(),
                    nanoseconds: meta.ctime_nsec(),
                },
            }
        };
        Ok(Self {
            path: std::path::absolute(path)?.to_string_lossy().into_owned(),
            size,
            kind,
        })
    }

    /// What is different now, in words; empty if nothing is. Times count only if
    /// `stopped_cleanly`: a daemon that was killed could not note them.
    pub fn changes(&self, now: &Self, stopped_cleanly: bool) -> Vec<String> {
        let mut changes = Vec::new();
        if self.size != now.size {
            changes.push(format!(
                "its size was {} bytes and is {}",
                self.size, now.size
            ));
        }
        match (&self.kind, &now.kind) {
            (
                OriginKind::File {
                    inode,
                    mtime,
                    ctime,
                },
                OriginKind::File {
                    inode: i,
                    mtime: m,
                    ctime: c,
                },
            ) => {
                if inode != i {
                    changes.push(format!("it is another file (inode {inode} then, {i} now)"));
                } else if stopped_cleanly && mtime != m {
                    changes.push(format!(
                        "it was written {} s after the stop",
                        m.seconds.saturating_sub(mtime.seconds)
                    ));
                } else if stopped_cleanly && ctime != c {
                    changes
                        .push("its owner, mode, name or times were changed after the stop".into());
                }
            }
            (OriginKind::Device { hardware: was }, OriginKind::Device { hardware: is }) => {
                if was != is {
                    let name = |h: &Option<String>| h.clone().unwrap_or_else(|| "unnamed".into());
                    changes.push(format!(
                        "it is another device ({} then, {} now)",
                        name(was),
                        name(is)
                    ));
                }
            }
            _ => changes.push("it was a file and is a device, or the other way round".into()),
        }
        changes
    }
}

/// The first lasting name that the kernel has for a device.
fn hardware_name(sysfs: &Path) -> Option<String> {
    [
        "dm/uuid",
        "wwid",
        "device/wwid",
        "device/serial",
        "loop/backing_file",
    ]
    .iter()
    .find_map(|name| {
        let text = fs::read_to_string(sysfs.join(name)).ok()?;
        let text = text.trim();
        (!text.is_empty()).then(|| format!("{name} {text}"))
    })
}

/// Where the volume on `origin` is remembered unless the user chose a place:
/// `ORIGIN.snapback` beside a file, under `/var/lib/snapback` for a device.
/// Links are followed, so that every name of an origin leads to the same file.
pub fn default_state_path(origin: &Path) -> io::Result<PathBuf> {
    let real = fs::canonicalize(origin)?;
    if fs::metadata(&real)?.file_type().is_block_device() {
        let name = device_name(&real, Path::new("/sys/class/block"));
        return Ok(Path::new(DEVICE_STATE_DIRECTORY).join(format!("{}.json", escape(&name))));
    }
    let mut name = real.into_os_string();
    name.push(".snapback");
    Ok(PathBuf::from(name))
}

/// A device's name below `/dev`; for device-mapper the mapped name, because
/// `dm-3` is another device after the next boot.
fn device_name(real: &Path, class: &Path) -> String {
    let below = real
        .strip_prefix("/dev")
        .unwrap_or(real)
        .to_string_lossy()
        .into_owned();
    match fs::read_to_string(class.join(&below).join("dm/name")) {
        Ok(mapped) => format!("mapper/{}", mapped.trim()),
        Err(_) => below,
    }
}

/// Percent-escapes what cannot stand in a file name; no two names collide.
fn escape(name: &str) -> String {
    name.bytes()
        .map(|b| match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' | b'+' => {
                char::from(b).to_string()
            }
            _ => format!("%{b:02x}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(size: u64, inode: u64, mtime: i64, ctime: i64) -> OriginIdentity {
        let at = |seconds| Timestamp {
            seconds,
            nanoseconds: 0,
        };
        OriginIdentity {
            path: "/disk.img".into(),
            size,
            kind: OriginKind::File {
                inode,
                mtime: at(mtime),
                ctime: at(ctime),
            },
        }
    }

    #[test]
    fn every_kind_of_change_is_named() {
        let was = file(4096, 7, 100, 100);
        assert!(was.changes(&was, true).is_empty());
        for (now, word) in [
            (file(8192, 7, 100, 100), "size was 4096 bytes and is 8192"),
            (file(4096, 8, 100, 100), "inode 7 then, 8 now"),
            (file(4096, 7, 160, 160), "written 60 s after"),
            (file(4096, 7, 100, 160), "owner, mode, name"),
        ] {
            let changes = was.changes(&now, true);
            assert_eq!(changes.len(), 1);
            assert!(changes.concat().contains(word), "{changes:?}");
        }
    }

    #[test]
    fn after_a_kill_times_do_not_count_but_the_file_does() {
        let was = file(4096, 7, 100, 100);
        assert!(was.changes(&file(4096, 7, 160, 160), false).is_empty());
        assert_eq!(was.changes(&file(4096, 8, 160, 160), false).len(), 1);
    }

    #[test]
    fn writing_the_origin_changes_its_identity() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk.img");
        fs::write(&path, [0; 4096]).unwrap();
        let was = OriginIdentity::read(&path, 4096).unwrap();
        assert!(
            was.changes(&OriginIdentity::read(&path, 4096).unwrap(), true)
                .is_empty()
        );
        std::thread::sleep(std::time::Duration::from_millis(20));
        fs::write(&path, [1; 4096]).unwrap();
        assert_eq!(
            was.changes(&OriginIdentity::read(&path, 4096).unwrap(), true)
                .len(),
            1
        );
    }

    #[test]
    fn every_name_of_a_file_leads_to_the_same_state() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk.img");
        fs::write(&path, [0; 512]).unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let state = default_state_path(&link).unwrap();
        assert_eq!(state, default_state_path(&path).unwrap());
        assert!(state.to_string_lossy().ends_with("disk.img.snapback"));
    }

    #[test]
    fn device_names_do_not_depend_on_the_boot_and_do_not_collide() {
        let class = tempfile::tempdir().unwrap();
        fs::create_dir_all(class.path().join("dm-3/dm")).unwrap();
        fs::write(class.path().join("dm-3/dm/name"), "vg-lv\n").unwrap();
        assert_eq!(
            device_name(Path::new("/dev/dm-3"), class.path()),
            "mapper/vg-lv"
        );
        assert_eq!(device_name(Path::new("/dev/sdb"), class.path()), "sdb");
        assert_ne!(escape("a/b"), escape("a%2fb"));
        assert_eq!(escape("mapper/vg-lv"), "mapper%2fvg-lv");
    }
}
