//! What the kernel itself uses a block device for, as far as it tells.

use std::fs;
use std::path::{Path, PathBuf};

/// The folder in sysfs that describes a block device.
pub(super) fn folder_of(number: u64) -> PathBuf {
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    let folder = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    fs::canonicalize(&folder).unwrap_or(folder)
}

fn line(path: PathBuf) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned())
}

/// A device's node: the name that the kernel gives it.
fn node(folder: &Path) -> Option<PathBuf> {
    let text = fs::read_to_string(folder.join("uevent")).ok()?;
    let name = text
        .lines()
        .find_map(|line| line.strip_prefix("DEVNAME="))?;
    Some(Path::new("/dev").join(name))
}

/// The folders of the partitions of a disk.
fn partitions(folder: &Path) -> Vec<PathBuf> {
    let inside = fs::read_dir(folder).into_iter().flatten().flatten();
    let inside = inside.map(|entry| entry.path());
    inside
        .filter(|path| path.join("partition").exists())
        .collect()
}

/// The nodes that lead to the same bytes: the disk of a partition, or the partitions of a disk.
pub(super) fn overlapping(number: u64) -> Vec<PathBuf> {
    let folder = folder_of(number);
    let others = match folder.join("partition").exists() {
        true => folder.parent().map(Path::to_path_buf).into_iter().collect(),
        false => partitions(&folder),
    };
    others.iter().filter_map(|folder| node(folder)).collect()
}

/// Where the device with this number (`MAJOR:MINOR`) is mounted, and whether it can be
/// written there.
pub(super) fn mounts_of(number: &str) -> Vec<(String, bool)> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mounts = table.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(2);
        if fields.next()? != number {
            return None;
        }
        let place = fields.nth(1)?;
        // The last field has the options of the file system, whatever this mount allows.
        let writable = line.rsplit(' ').next()?.split(',').any(|o| o == "rw");
        Some((place.to_owned(), writable))
    });
    mounts.collect()
}

/// What the kernel does with one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KernelUse {
    /// A clause.
    pub(super) words: String,
    pub(super) may_write: bool,
}

/// Everything for which the kernel uses a block device or one of its partitions.
pub(super) fn uses_of(number: u64) -> Vec<KernelUse> {
    let folder = folder_of(number);
    let mut found = Vec::new();
    let all = std::iter::once(folder.clone()).chain(partitions(&folder));
    for folder in all {
        let name = node(&folder).unwrap_or_else(|| folder.clone());
        let name = name.display();
        let number = line(folder.join("dev")).unwrap_or_default();
        found.extend(
            mounts_of(&number)
                .into_iter()
                .map(|(at, may_write)| KernelUse {
                    words: format!("{name} is mounted at {at}"),
                    may_write,
                }),
        );
        let holders = fs::read_dir(folder.join("holders")).into_iter().flatten();
        found.extend(holders.flatten().map(|holder| {
            let by = holder.file_name().to_string_lossy().into_owned();
            let mapped = line(holder.path().join("dm/name"));
            let by = mapped.map_or(by.clone(), |mapped| format!("{mapped} ({by})"));
            KernelUse {
                words: format!("{by} is built on {name}"),
                may_write: line(holder.path().join("ro")).as_deref() != Some("1"),
            }
        }));
        let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
        let node = name.to_string();
        let mut swaps = swaps
            .lines()
            .filter_map(|line| line.split_whitespace().next());
        if swaps.any(|swap| swap == node) {
            found.push(KernelUse {
                words: format!("{name} is swap space"),
                may_write: true,
            });
        }
    }
    found
}

/// In words, for a message; `None`: it does not tell.
pub(super) fn in_words(number: u64) -> Option<String> {
    let words: Vec<String> = uses_of(number).into_iter().map(|u| u.words).collect();
    (!words.is_empty()).then(|| words.join(", "))
}
