//! Loop devices: a file under a second name.

use std::fs;
use std::path::{Path, PathBuf};

use super::identity::{Identity, identity_of};
use super::kernel_use::folder_of;

/// A loop device that is set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LoopDevice {
    pub(super) path: PathBuf,
    /// Major and minor number, as the kernel prints them.
    pub(super) number: String,
    pub(super) writable: bool,
}

fn line(path: PathBuf) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.trim_end_matches('\n').to_owned())
}

/// The loop devices through which the kernel uses this file or device.
pub(super) fn over(backing: Identity) -> Vec<LoopDevice> {
    let Ok(all) = fs::read_dir("/sys/block") else {
        return Vec::new();
    };
    let is_over = |folder: &Path| {
        let path = line(folder.join("loop/backing_file"));
        path.is_some_and(|path| identity_of(Path::new(&path)) == Some(backing))
    };
    let found = all.flatten().filter(|device| is_over(&device.path()));
    found
        .map(|device| LoopDevice {
            path: Path::new("/dev").join(device.file_name()),
            number: line(device.path().join("dev")).unwrap_or_default(),
            writable: line(device.path().join("ro")).as_deref() != Some("1"),
        })
        .collect()
}

/// What a block device is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Backing {
    /// It is no loop device.
    None,
    /// This file or device.
    At(PathBuf),
    /// A file that the system does not show any more, which had this name.
    Unknown(String),
}

/// What a block device or one of its partitions is made of.
pub(super) fn backing_of(number: u64) -> Backing {
    let folder = folder_of(number);
    let disk = match folder.join("partition").exists() {
        true => folder.parent().map(Path::to_path_buf),
        false => Some(folder),
    };
    let Some(name) = disk.and_then(|disk| line(disk.join("loop/backing_file"))) else {
        return Backing::None;
    };
    // The kernel appends " (deleted)" to the name of a file that has none any more.
    match Path::new(&name).exists() {
        true => Backing::At(PathBuf::from(name)),
        false => Backing::Unknown(name),
    }
}

/// The file behind a loop device at `path`.
pub(super) fn backing_of_path(path: &Path) -> Option<PathBuf> {
    match identity_of(path)? {
        Identity::File { .. } => None,
        Identity::Device { number } => match backing_of(number) {
            Backing::At(backing) => Some(backing),
            Backing::None | Backing::Unknown(_) => None,
        },
    }
}
