//! Disk files on the host, and comparing whole disks.

use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::Path;

use crate::content;

pub const MIB: u64 = 1 << 20;

/// Makes a disk file in which every block has a content of its own, the same as
/// `disktool fill` gives it in a guest.
pub fn make_filled(path: &Path, size: u64, seed: u64) {
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path).unwrap());
    let mut block = [0; content::BLOCK];
    for number in 0..size / content::BLOCK as u64 {
        content::put(&mut block, seed, number, 0);
        file.write_all(&block).unwrap();
    }
    file.flush().unwrap();
}

/// The content of a whole disk, as one checksum for each 256 KiB.
#[derive(Clone, PartialEq, Eq)]
pub struct Sums(Vec<u64>);

impl Sums {
    pub fn of_file(path: &Path) -> Self {
        let mut file = File::open(path).unwrap();
        let mut bytes = vec![0; content::SUM_BLOCK];
        let mut sums = Vec::new();
        loop {
            let mut filled = 0;
            while filled < bytes.len() {
                match file.read(&mut bytes[filled..]).unwrap() {
                    0 => break,
                    count => filled += count,
                }
            }
            if filled == 0 {
                return Self(sums);
            }
            sums.push(content::checksum(&bytes[..filled]));
        }
    }

    /// What `disktool sums` printed in a guest.
    pub fn parse(text: &str) -> Self {
        let parse = |line| {
            u64::from_str_radix(line, 16).unwrap_or_else(|_| panic!("not a checksum: {line}"))
        };
        Self(text.lines().map(parse).collect())
    }

    /// Blocks in which the two differ; a missing block counts.
    pub fn differences(&self, other: &Self) -> Vec<usize> {
        let blocks = self.0.len().max(other.0.len());
        (0..blocks)
            .filter(|block| self.0.get(*block) != other.0.get(*block))
            .collect()
    }

    /// Says what was compared; panics with the first places if anything differs.
    pub fn assert_same(&self, expected: &Self, what: &str) {
        let different = self.differences(expected);
        println!(
            "compared {what}: {} of {} blocks of 256 KiB differ",
            different.len(),
            self.0.len()
        );
        assert!(
            !self.0.is_empty() && different.is_empty(),
            "{what}: {} of {} blocks of 256 KiB differ, the first are {:?}",
            different.len(),
            self.0.len(),
            &different[..different.len().min(8)]
        );
    }

    /// For the other way round: a test that shows nothing unless something changed.
    pub fn assert_differs(&self, other: &Self, what: &str) {
        let different = self.differences(other);
        println!(
            "compared {what}: {} of {} blocks of 256 KiB differ, as they should",
            different.len(),
            self.0.len()
        );
        assert!(!different.is_empty(), "{what}: nothing differs");
    }
}
