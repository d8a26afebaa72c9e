//! Tests of the whole module: stores that Linux wrote, crashes, corrupt stores.
#![allow(clippy::cast_possible_truncation)]

mod crash;
mod golden;
mod hostile;
mod linux_merge;
mod loading;
mod record;

use std::os::fd::BorrowedFd;

use super::{Entry, LoadParams, Loaded, StoreError, ValidStore, load};
use crate::io::{Buffer, DeviceId, Disk, Done, Errno, Op, OpKind};
use crate::units::SECTOR_SIZE;

pub const DEVICE: DeviceId = DeviceId(0);

/// A change that a [`MemoryDisk`] recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Write {
        offset: u64,
        data: Vec<u8>,
        durable: bool,
    },
    Flush,
}

/// One device in memory that records what happens to it.
#[derive(Default)]
pub struct MemoryDisk {
    pub image: Vec<u8>,
    pub events: Vec<Event>,
    pub bytes_read: usize,
    pub largest: usize,
    /// Fails the operation with this number, counted from 0.
    pub fail_at: Option<usize>,
    operations: usize,
    waiting: Vec<Op>,
}

impl MemoryDisk {
    pub fn new(image: Vec<u8>) -> Self {
        Self {
            image,
            ..Self::default()
        }
    }

    fn transfer(&mut self, op: Op) -> Done {
        let fails = self.fail_at == Some(self.operations);
        self.operations += 1;
        let (mut result, buffer) = match op.kind {
            OpKind::Flush => {
                self.events.push(Event::Flush);
                (Ok(()), None)
            }
            OpKind::Read {
                offset,
                buffer: Buffer::Owned(mut buffer),
            } => {
                let range = offset as usize..offset as usize + buffer.len();
                self.bytes_read += range.len();
                self.largest = self.largest.max(range.len());
                let source = self.image.get(range).ok_or(Errno::EIO);
                (
                    source.map(|bytes| buffer.as_mut_slice().copy_from_slice(bytes)),
                    Some(buffer),
                )
            }
            OpKind::Write {
                offset,
                buffer: Buffer::Owned(buffer),
                durable,
            } => {
                let data = buffer.as_slice().to_vec();
                self.largest = self.largest.max(data.len());
                let range = offset as usize..offset as usize + data.len();
                let target = self.image.get_mut(range).ok_or(Errno::ENOSPC);
                let result = target.map(|bytes| bytes.copy_from_slice(&data));
                self.events.push(Event::Write {
                    offset,
                    data,
                    durable,
                });
                (result, Some(buffer))
            }
            other => panic!("unexpected {other:?}"),
        };
        if fails {
            result = Err(Errno::EIO);
        }
        Done {
            tag: op.tag,
            result,
            buffer: buffer.map(Buffer::Owned),
        }
    }
}

impl Disk for MemoryDisk {
    fn submit(&mut self, op: Op) {
        self.waiting.push(op);
    }

    fn reap(&mut self, _wait: bool, done: &mut Vec<Done>) {
        for op in std::mem::take(&mut self.waiting) {
            done.push(self.transfer(op));
        }
    }

    fn in_flight(&self) -> usize {
        self.waiting.len()
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

pub fn params(image: &[u8], unit: usize, origin_sectors: Option<u64>) -> LoadParams {
    let cow_sectors = image.len() as u64 / SECTOR_SIZE;
    LoadParams {
        cow_sectors,
        origin_sectors,
        unit,
        block_bytes: 512,
    }
}

/// Loads an image with 512-byte units and no origin at hand.
pub fn load_image(image: &[u8]) -> Result<Loaded, StoreError> {
    load(
        &mut MemoryDisk::new(image.to_vec()),
        DEVICE,
        &params(image, 512, None),
    )
}

pub fn load_valid(image: &[u8]) -> Box<ValidStore> {
    match load_image(image) {
        Ok(Loaded::Valid(store)) => store,
        other => panic!("expected a valid store, got {other:?}"),
    }
}

pub fn apply(image: &mut [u8], offset: u64, data: &[u8]) {
    image[offset as usize..offset as usize + data.len()].copy_from_slice(data);
}

/// What a store holds by the description of the format, decoded without the code under
/// test.
#[derive(Debug, PartialEq, Eq)]
pub struct Decoded {
    pub entries: Vec<Entry>,
    /// Something is not zero between the terminator and the end of its area.
    pub junk: bool,
}

pub fn decode(image: &[u8]) -> Decoded {
    let chunk = u32::from_le_bytes(image[12..16].try_into().unwrap()) as usize * 512;
    decode_as(image, chunk / 16)
}

/// As [`decode`], with areas that end after `per_area` entries; the rest of their
/// chunks counts as after the terminator.
pub fn decode_as(image: &[u8], per_area: usize) -> Decoded {
    let word = |at: usize| u64::from_le_bytes(image[at..at + 8].try_into().unwrap());
    assert_eq!(&image[..4], b"SnAp");
    let chunk = u32::from_le_bytes(image[12..16].try_into().unwrap()) as usize * 512;
    let mut entries = Vec::new();
    let used = |bytes: &[u8]| bytes.iter().any(|&byte| byte != 0);
    let mut rests = false;
    for area in 0.. {
        let start = (1 + area * (per_area + 1)) * chunk;
        rests |= used(&image[start + per_area * 16..start + chunk]);
        for index in 0..per_area {
            let at = start + index * 16;
            let (old, new) = (word(at), word(at + 8));
            if new == 0 {
                let junk = rests || used(&image[at..start + chunk]);
                return Decoded { entries, junk };
            }
            entries.push(Entry { old, new });
        }
    }
    unreachable!()
}
