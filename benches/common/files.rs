//! Disk files, written in full before they are used: what a file system does when
//! blocks are written for the first time must not be measured.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::random::Random;

const PIECE: usize = 1 << 20;

/// A disk of random bytes.
pub fn disk(path: &Path, size: u64) {
    let mut random = Random::new(size);
    written(path, size, |piece| {
        for word in piece.chunks_exact_mut(8) {
            word.copy_from_slice(&random.next().to_le_bytes());
        }
    });
}

/// A file of zeroes that uses all its space.
pub fn zeroes(path: &Path, size: u64) {
    written(path, size, |_| {});
}

/// A file with space that was never written.
pub fn allocated(path: &Path, size: u64) {
    let _ = fs::remove_file(path);
    let file = File::create(path).unwrap();
    let flags = rustix::fs::FallocateFlags::empty();
    rustix::fs::fallocate(&file, flags, 0, size).unwrap();
    file.sync_all().unwrap();
}

/// Makes the first MiB of a written file zero, so that a new store can be made in it.
pub fn blank(path: &Path) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(&vec![0; PIECE], 0).unwrap();
    file.sync_all().unwrap();
}

/// Puts `small` over the beginning of `large`, which keeps its length and its space.
pub fn overlay(small: &Path, large: &Path) {
    let data = fs::read(small).unwrap();
    let file = OpenOptions::new().write(true).open(large).unwrap();
    file.write_all_at(&data, 0).unwrap();
    file.sync_all().unwrap();
}

/// Copies a file over another one of the same length, which keeps its space.
pub fn restore(from: &Path, to: &Path) {
    let source = File::open(from).unwrap();
    let size = source.metadata().unwrap().len();
    let target = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(to)
        .unwrap();
    target.set_len(size).unwrap();
    let mut piece = vec![0; PIECE];
    let mut at = 0;
    while at < size {
        let len = PIECE.min((size - at) as usize);
        source.read_exact_at(&mut piece[..len], at).unwrap();
        target.write_all_at(&piece[..len], at).unwrap();
        at += len as u64;
    }
    target.sync_all().unwrap();
}

fn written(path: &Path, size: u64, mut fill: impl FnMut(&mut [u8])) {
    let mut file = File::create(path).unwrap();
    let mut piece = vec![0; PIECE];
    let mut left = size as usize;
    while left > 0 {
        let len = PIECE.min(left);
        fill(&mut piece[..len]);
        file.write_all(&piece[..len]).unwrap();
        left -= len;
    }
    file.sync_all().unwrap();
}
