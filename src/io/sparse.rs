//! Where a file holds data, and where it has a hole that reads as zeroes.

use std::ops::Range;
use std::os::fd::AsFd;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::BlockFile;

/// The granularity of holes in bytes, independent of the file system's block size.
const GRAIN: u64 = 4096;

impl BlockFile {
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
