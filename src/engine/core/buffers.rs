//! Bounce buffers, kept for reuse.

use crate::io::{Buffer, OwnedBuffer};

/// Largest piece that is copied at once, in bytes.
pub(super) const PIECE_BYTES: u64 = 1 << 20;
const SMALLEST_SHIFT: u32 = 12;
const CLASSES: usize = 9; // 4 KiB ..= 1 MiB
/// Bytes kept for reuse in each size class.
const KEEP_BYTES: usize = 4 << 20;
/// Bytes kept besides while a merge runs, in whichever classes it uses: as much as its
/// background has in flight. Fresh memory costs it a page fault for every 4 KiB.
const KEEP_FOR_MERGE: usize = 32 << 20;

/// Free buffers by size class (powers of two from 4 KiB to 1 MiB).
#[derive(Debug, Default)]
pub(super) struct BufferPool {
    free: [Vec<OwnedBuffer>; CLASSES],
    merging: bool,
}

fn class_of(len: usize) -> usize {
    let shift = len.max(1).next_power_of_two().trailing_zeros();
    usize::try_from(shift.saturating_sub(SMALLEST_SHIFT)).unwrap_or(usize::MAX)
}

impl BufferPool {
    /// A buffer of `len` bytes with any content. Lengths above 1 MiB are not kept.
    pub(super) fn take(&mut self, len: usize) -> OwnedBuffer {
        let class = class_of(len);
        if let Some(mut buffer) = self.free.get_mut(class).and_then(Vec::pop) {
            buffer.set_len(len);
            return buffer;
        }
        let capacity = if class < CLASSES {
            1usize << (class + 12)
        } else {
            len
        };
        let mut buffer = OwnedBuffer::zeroed(capacity);
        buffer.set_len(len);
        buffer
    }

    pub(super) fn put(&mut self, buffer: OwnedBuffer) {
        let capacity = buffer.capacity();
        let class = class_of(capacity);
        let spare = self.spare();
        if let Some(free) = self.free.get_mut(class)
            && (free.len() * capacity < KEEP_BYTES || capacity <= spare)
        {
            free.push(buffer);
        }
    }

    /// Bytes that may be kept beyond [`KEEP_BYTES`] of a class.
    fn spare(&self) -> usize {
        if !self.merging {
            return 0;
        }
        let sizes = (0..CLASSES).map(|class| 1usize << (class + 12));
        let beyond = self.free.iter().zip(sizes).map(|(free, size)| {
            let bytes = free.len().saturating_mul(size);
            bytes.saturating_sub(KEEP_BYTES)
        });
        KEEP_FOR_MERGE.saturating_sub(beyond.sum())
    }

    /// A merge begins or ends: afterwards less is kept.
    pub(super) fn set_merging(&mut self, merging: bool) {
        self.merging = merging;
        if !merging {
            for (class, free) in self.free.iter_mut().enumerate() {
                free.truncate(KEEP_BYTES >> (class + 12));
                free.shrink_to_fit();
            }
        }
    }

    pub(super) fn put_back(&mut self, buffer: Option<Buffer>) {
        match buffer {
            Some(Buffer::Owned(b)) => self.put(b),
            Some(Buffer::Shared { memory, .. }) => {
                if let Some(b) = std::sync::Arc::into_inner(memory) {
                    self.put(b);
                }
            }
            Some(Buffer::Guest(_) | Buffer::Zeroes { .. }) | None => {}
        }
    }
}
