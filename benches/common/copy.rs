//! The limit of a merge: a plain copy of the same bytes with O_DIRECT and io_uring,
//! without metadata, and one flush at its end.
// An io_uring takes raw pointers to buffers.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use io_uring::{IoUring, opcode, types};
use vm_memory::MmapRegion;

const DEPTH: usize = 32;

/// A piece of a copy: offset in the source, offset in the target.
pub type Piece = (u64, u64);

/// Copies pieces of `len` bytes, 32 at a time, and makes the target durable.
pub fn run(from: &Path, to: &Path, len: u32, pieces: &[Piece]) {
    let flags = rustix::fs::OFlags::DIRECT.bits().cast_signed();
    let source = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(from)
        .unwrap();
    let target = OpenOptions::new()
        .write(true)
        .custom_flags(flags)
        .open(to)
        .unwrap();
    // A mapping begins at a page, as O_DIRECT demands.
    let memory: MmapRegion<()> = MmapRegion::new(DEPTH * len as usize).unwrap();
    let mut copy = Copy {
        ring: IoUring::new(DEPTH as u32).unwrap(),
        source,
        target,
        memory,
        len,
        at: vec![(0, 0); DEPTH],
    };
    copy.run(pieces);
    copy.target.sync_data().unwrap();
}

struct Copy {
    ring: IoUring,
    source: File,
    target: File,
    memory: MmapRegion<()>,
    len: u32,
    /// The piece of each slot.
    at: Vec<Piece>,
}

impl Copy {
    fn run(&mut self, pieces: &[Piece]) {
        let mut left = pieces.iter();
        let mut busy = 0;
        for slot in 0..DEPTH {
            busy += usize::from(self.read(slot, left.next()));
        }
        while busy > 0 {
            self.ring.submit_and_wait(1).unwrap();
            let done: Vec<(u64, i32)> = self
                .ring
                .completion()
                .map(|entry| (entry.user_data(), entry.result()))
                .collect();
            for (tag, result) in done {
                assert_eq!(result, self.len.cast_signed(), "a copy failed");
                let slot = (tag / 2) as usize;
                if tag.is_multiple_of(2) {
                    self.write(slot);
                } else if !self.read(slot, left.next()) {
                    busy -= 1;
                }
            }
        }
    }

    fn read(&mut self, slot: usize, piece: Option<&Piece>) -> bool {
        let Some(piece) = piece else {
            return false;
        };
        self.at[slot] = *piece;
        let buffer = self.memory.as_ptr().wrapping_add(slot * self.len as usize);
        let fd = types::Fd(self.source.as_raw_fd());
        let entry = opcode::Read::new(fd, buffer, self.len)
            .offset(piece.0)
            .build();
        self.push(entry.user_data(slot as u64 * 2));
        true
    }

    fn write(&mut self, slot: usize) {
        let buffer = self.memory.as_ptr().wrapping_add(slot * self.len as usize);
        let fd = types::Fd(self.target.as_raw_fd());
        let entry = opcode::Write::new(fd, buffer, self.len)
            .offset(self.at[slot].1)
            .build();
        self.push(entry.user_data(slot as u64 * 2 + 1));
    }

    fn push(&mut self, entry: io_uring::squeue::Entry) {
        // SAFETY: the buffer is a slot of `memory`, which outlives the ring's use of it
        // because `run` waits for all operations; a slot has one operation at a time.
        unsafe { self.ring.submission().push(&entry).unwrap() };
    }
}
