//! What the system says about the sizes of I/O that suit a file or device.

use std::fs;
use std::path::Path;

use super::{BlockFile, Identity};

/// The largest physical block that a file is said to have: file systems report much larger
/// ones for the sake of throughput.
const FILE_BLOCK_MAX: u64 = 4096;

/// Sizes in bytes; 0: unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// The unit that is written without reading its old content first.
    pub physical_block: u32,
    /// Where the first such unit begins.
    pub alignment_offset: u32,
    pub minimum_io: u32,
    pub optimal_io: u32,
    /// The unit in which space is given back.
    pub discard_granularity: u32,
}

impl BlockFile {
    /// What the system says; a failed look-up leaves a size unknown.
    pub fn limits(&self) -> Limits {
        match self.identity() {
            Identity::File { .. } => self.limits_of_file(),
            Identity::Device { number } => Limits {
                physical_block: rustix::fs::ioctl_blkpbszget(self).unwrap_or(0),
                ..Limits::below(Path::new("/sys/dev/block"), number)
            },
        }
    }

    /// A file is stored in the blocks of its file system.
    fn limits_of_file(&self) -> Limits {
        let block = rustix::fs::fstat(self).map_or(0, |stat| stat.st_blksize);
        let block = u64::try_from(block).unwrap_or(0).min(FILE_BLOCK_MAX);
        let block = u32::try_from(block).unwrap_or(0);
        Limits {
            physical_block: block,
            discard_granularity: block,
            ..Limits::default()
        }
    }
}

impl Limits {
    /// Of the device `number`, as `sysfs` describes it.
    fn below(sysfs: &Path, number: u64) -> Self {
        let name = format!(
            "{}:{}",
            rustix::fs::major(number),
            rustix::fs::minor(number)
        );
        let device = sysfs.join(name);
        let device = fs::canonicalize(&device).unwrap_or(device);
        // A partition has the queue of its disk.
        let disk = match device.parent() {
            Some(disk) if device.join("partition").exists() => disk,
            _ => &device,
        };
        let queue = disk.join("queue");
        Self {
            physical_block: number_in(&queue.join("physical_block_size")),
            alignment_offset: number_in(&device.join("alignment_offset")),
            minimum_io: number_in(&queue.join("minimum_io_size")),
            optimal_io: number_in(&queue.join("optimal_io_size")),
            discard_granularity: number_in(&queue.join("discard_granularity")),
        }
    }
}

/// 0 for what is missing, and for the -1 of a device that is misaligned.
fn number_in(file: &Path) -> u32 {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::io::OpenOptions;

    fn put(folder: &Path, files: &[(&str, &str)]) {
        for (name, text) in files {
            let file = folder.join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
    }

    #[test]
    fn a_partition_has_the_queue_of_its_disk_and_an_alignment_of_its_own() {
        let sysfs = tempfile::tempdir().unwrap();
        let disk = sysfs.path().join("disk");
        put(
            &disk,
            &[
                ("queue/physical_block_size", "4096\n"),
                ("queue/minimum_io_size", "65536\n"),
                ("queue/optimal_io_size", "1048576\n"),
                ("queue/discard_granularity", "16384\n"),
                ("alignment_offset", "0\n"),
                ("part/partition", "1\n"),
                ("part/alignment_offset", "3584\n"),
            ],
        );
        let link = |target: &Path, name| {
            std::os::unix::fs::symlink(target, sysfs.path().join(name)).unwrap();
        };
        link(&disk, "8:0");
        link(&disk.join("part"), "8:1");
        let of_disk = Limits {
            physical_block: 4096,
            alignment_offset: 0,
            minimum_io: 65536,
            optimal_io: 1 << 20,
            discard_granularity: 16384,
        };
        let limits = |minor| Limits::below(sysfs.path(), rustix::fs::makedev(8, minor));
        assert_eq!(limits(0), of_disk);
        let of_part = Limits {
            alignment_offset: 3584,
            ..of_disk
        };
        assert_eq!(limits(1), of_part);
        // Unknown, and misaligned.
        assert_eq!(limits(2), Limits::default());
        put(&disk, &[("alignment_offset", "-1\n")]);
        assert_eq!(limits(0), of_disk);
    }

    #[test]
    fn a_file_has_the_blocks_of_its_file_system() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.img");
        fs::write(&path, [0; 8192]).unwrap();
        let file = BlockFile::open(&path, OpenOptions::default()).unwrap();
        let limits = file.limits();
        let block = rustix::fs::stat(&path).unwrap().st_blksize;
        let block = u32::try_from(block).unwrap().min(4096);
        assert_eq!(limits.physical_block, block);
        assert_eq!(limits.discard_granularity, block);
        assert_eq!((limits.minimum_io, limits.optimal_io), (0, 0));
    }
}
