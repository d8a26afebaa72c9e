//! Where a file holds data, and where it has a hole that reads as zeroes.

use std::ops::Range;
use std::os::fd::AsFd;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::BlockFile;

/// The granularity of holes in bytes, independent of the file system's block size.
const GRAIN: u64 = 4096;

impl BlockFile {
    /// Whether the end of the file has space that was allocated and never written, on a
    /// file system that writes such blocks in place, twice if need be.
    pub fn has_unwritten_space(&self) -> bool {
        const EXT4: u64 = 0xEF53;
        const XFS: u64 = 0x5846_5342;
        let in_place = rustix::fs::fstatfs(self.as_fd())
            .is_ok_and(|s| [EXT4, XFS].contains(&u64::try_from(s.f_type).unwrap_or(0)));
        let allocated = rustix::fs::fstat(self.as_fd()).is_ok_and(|s| {
            let blocks = u64::try_from(s.st_blocks).unwrap_or(0);
            blocks.saturating_mul(512) >= self.size()
        });
        let last = self.size().saturating_sub(1) / GRAIN * GRAIN;
        !self.is_device() && in_place && allocated && self.next_data(last).is_none()
    }

    /// The next bytes at or after `from` that may differ from zero, widened to whole
    /// 4 KiB; `None` if only zeroes follow. On devices and file systems that do not
    /// report holes, everything up to the end counts as data.
    pub fn next_data(&self, from: u64) -> Option<Range<u64>> {
        let size = self.size();
        if from >= size {
            return None;
        }
        // All reads and writes pass an offset, so moving the file's own is harmless.
        let start = match rustix::fs::seek(self.as_fd(), SeekFrom::Data(from)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return None,
            Err(_) => return Some(from..size),
        };
        let end = rustix::fs::seek(self.as_fd(), SeekFrom::Hole(start)).unwrap_or(size);
        let start = (start - start % GRAIN).max(from);
        let end = end
            .checked_next_multiple_of(GRAIN)
            .unwrap_or(size)
            .min(size);
        (start < end).then_some(start..end)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::io::OpenOptions;

    #[test]
    fn space_that_was_never_written_is_told_from_data_and_from_holes() {
        let dir = tempfile::tempdir().unwrap();
        let size = 64 << 10;
        let make = |name: &str, sparse| {
            let path = dir.path().join(name);
            let create = Some(size);
            let options = OpenOptions {
                create,
                sparse,
                ..OpenOptions::default()
            };
            BlockFile::open(&path, options).unwrap()
        };
        let allocated = make("allocated", false);
        let magic = rustix::fs::fstatfs(&allocated).unwrap().f_type;
        let known = [0xEF53, 0x5846_5342].contains(&magic);
        assert_eq!(allocated.has_unwritten_space(), known);
        assert!(!make("sparse", true).has_unwritten_space());
        let path = dir.path().join("allocated");
        drop(allocated);
        std::fs::write(&path, vec![1; 64 << 10]).unwrap();
        let written = BlockFile::open(&path, OpenOptions::read_only()).unwrap();
        assert!(!written.has_unwritten_space());
    }

    #[test]
    fn data_between_holes_is_found_and_nothing_else_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let file = std::fs::File::create(&path).unwrap();
        file.set_len(1 << 40).unwrap();
        file.write_all_at(&[1; 512], (1 << 39) + 512).unwrap();
        let file = BlockFile::open(&path, OpenOptions::read_only()).unwrap();
        let data = file.next_data(0).unwrap();
        assert!(data.contains(&((1 << 39) + 512)), "{data:?}");
        assert!(data.end - data.start <= 2 << 20, "{data:?}");
        assert_eq!(file.next_data(data.end), None);
        let inside = (1 << 39) + 512;
        assert_eq!(file.next_data(inside), Some(inside..data.end));
        assert_eq!(file.next_data(1 << 40), None);
    }
}
