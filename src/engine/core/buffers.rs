//! Bounce buffers, kept for reuse.

use crate::io::{Buffer, OwnedBuffer};

/// Largest piece that is copied at once, in bytes.
pub(super) const PIECE_BYTES: u64 = 1 << 20;
const SMALLEST_SHIFT: u32 = 12;
const CLASSES: usize = 9; // 4 KiB ..= 1 MiB
/// Bytes kept for reuse in each size class.
const KEEP_BYTES: usize = 4 << 20;

/// Free buffers by size class (powers of two from 4 KiB to 1 MiB).
#[derive(Debug, Default)]
pub(super) struct BufferPool {
    free: [Vec<OwnedBuffer>; CLASSES],
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
        if let Some(free) = self.free.get_mut(class)
            && free.len() * capacity < KEEP_BYTES
        {
            free.push(buffer);
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
