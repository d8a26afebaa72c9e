//! What the battery runs on: a disk of any kind with one device, and memory
//! that plays the guest's.
#![allow(unsafe_code)] // Test code: makes guest memory out of a Vec.
#![allow(clippy::cast_possible_truncation)]

use std::sync::{Arc, Mutex};

use crate::io::sim::{Fill, Rng, SimDevices};
use crate::io::*;

pub(super) const SECTORS: u64 = 2048;
pub(super) const LEN: usize = SECTORS as usize * 512;
pub(super) const DEPTH: u32 = 16;

/// A disk with one device, and ways around the disk.
pub(super) struct Rig {
    // First, so that it is dropped first.
    pub(super) disk: Box<dyn Disk>,
    pub(super) device: DeviceId,
    pub(super) content: Box<dyn Fn() -> Vec<u8>>,
    pub(super) remove: Box<dyn Fn()>,
    pub(super) dir: Option<tempfile::TempDir>,
}

pub(super) fn image() -> Vec<u8> {
    let mut image = vec![0; LEN];
    Rng::new(1).fill(&mut image);
    image
}

pub(super) fn sim() -> Rig {
    let world = SimDevices::new(1);
    let device = world.add(SECTORS, Fill::Image(image()));
    let (one, two) = (world.clone(), world.clone());
    Rig {
        disk: Box::new(world.disk()),
        device,
        content: Box::new(move || one.current(device)),
        remove: Box::new(move || two.remove(device)),
        dir: None,
    }
}

pub(super) fn real(engine: IoEngine, direct: Direct) -> Rig {
    let open = OpenOptions {
        direct,
        ..OpenOptions::default()
    };
    let (rig, _) = real_with(engine, open, tempfile::tempdir().unwrap());
    rig
}

/// With the file itself, for what a test wants to tell it.
pub(super) fn real_with(
    engine: IoEngine,
    open: OpenOptions,
    dir: tempfile::TempDir,
) -> (Rig, Arc<BlockFile>) {
    let path = dir.path().join("image");
    std::fs::write(&path, image()).unwrap();
    let devices = Devices::new();
    let device = devices.add(BlockFile::open(&path, open).unwrap());
    let file = devices.get(device).unwrap();
    let rig = Rig {
        disk: open_disk(engine, Arc::clone(&devices), DEPTH).unwrap(),
        device,
        content: Box::new(move || std::fs::read(&path).unwrap()),
        remove: Box::new(move || drop(devices.remove(device))),
        dir: Some(dir),
    };
    (rig, file)
}

impl Rig {
    pub(super) fn submit(&mut self, tag: Tag, kind: OpKind) {
        self.disk.submit(Op {
            tag,
            device: self.device,
            kind,
        });
    }

    pub(super) fn drain(&mut self) -> Vec<Done> {
        let mut done = Vec::new();
        while self.disk.in_flight() > 0 {
            self.disk.reap(true, &mut done);
        }
        done
    }

    pub(super) fn run(&mut self, kind: OpKind) -> Done {
        self.submit(7, kind);
        let mut done = self.drain();
        assert_eq!(done.len(), 1);
        done.pop().unwrap()
    }
}

pub(super) fn owned(byte: u8, len: usize) -> Buffer {
    let mut buffer = OwnedBuffer::zeroed(len);
    buffer.as_mut_slice().fill(byte);
    Buffer::Owned(buffer)
}

pub(super) fn bytes(buffer: &Buffer) -> Vec<u8> {
    let mut out = vec![0; buffer.len()];
    assert!(buffer.read_at(0, &mut out));
    out
}

pub(super) const fn read(offset: u64, buffer: Buffer) -> OpKind {
    OpKind::Read { offset, buffer }
}

pub(super) const fn write(offset: u64, buffer: Buffer) -> OpKind {
    OpKind::Write {
        offset,
        buffer,
        durable: false,
    }
}

pub(super) const fn zero(how: Zeroing, offset: u64, len: u64) -> OpKind {
    OpKind::Zero { offset, len, how }
}

/// "Guest memory" of which a test can see whether somebody still holds it.
pub(super) struct Guest {
    pub(super) memory: Arc<Mutex<Vec<u8>>>,
}

impl Guest {
    pub(super) fn new(len: usize) -> Self {
        Self {
            memory: Arc::new(Mutex::new(vec![0; len])),
        }
    }

    /// Pieces as (offset from a page-aligned start, length).
    pub(super) fn buffer(&self, pieces: &[(usize, usize)]) -> Buffer {
        let mut memory = self.memory.lock().unwrap();
        let start = memory.as_ptr().align_offset(4096);
        let pointer = memory.as_mut_ptr();
        let slices = pieces.iter().map(|(at, len)| {
            assert!(start + at + len <= memory.len());
            GuestSlice {
                pointer: pointer.wrapping_add(start + at),
                len: *len,
            }
        });
        let owner = Arc::clone(&self.memory);
        // SAFETY: the vector is never resized, lives as long as the owner, and
        // the pieces lie inside (checked above).
        Buffer::Guest(unsafe { GuestBuffer::new(slices.collect(), owner) })
    }
}
