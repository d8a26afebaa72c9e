//! Buffers that an operation can own.
#![allow(unsafe_code)] // Named file: GuestBuffer carries pointers into guest memory across threads.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use smallvec::SmallVec;

/// Alignment of every [`OwnedBuffer`]: enough for O_DIRECT on any device.
pub const BUFFER_ALIGN: usize = 4096;

/// Zeroed, page-aligned memory of a fixed length.
pub struct OwnedBuffer {
    // Over-allocated so that an aligned window fits. A Vec that does not grow keeps its
    // address.
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl OwnedBuffer {
    /// A zeroed buffer of `len` bytes.
    pub fn zeroed(len: usize) -> Self {
        let memory = vec![0u8; len.saturating_add(BUFFER_ALIGN)];
        let start = memory.as_ptr().align_offset(BUFFER_ALIGN).min(BUFFER_ALIGN);
        Self { memory, start, len }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Changes the length within what was allocated; panics beyond it.
    pub fn set_len(&mut self, len: usize) {
        assert!(
            len <= self.capacity(),
            "buffer of {} bytes cannot hold {len}",
            self.capacity()
        );
        self.len = len;
    }

    /// The largest length that [`Self::set_len`] takes.
    pub fn capacity(&self) -> usize {
        self.memory.len() - BUFFER_ALIGN
    }

    pub fn as_slice(&self) -> &[u8] {
        self.memory
            .get(self.start..self.start + self.len)
            .unwrap_or_default()
    }

    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        self.memory
            .get_mut(self.start..self.start + self.len)
            .unwrap_or_default()
    }
}

impl fmt::Debug for OwnedBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OwnedBuffer({} bytes)", self.len)
    }
}

/// One piece of guest memory.
#[derive(Clone, Copy, Debug)]
pub struct GuestSlice {
    pub pointer: *mut u8,
    pub len: usize,
}

/// Guest memory as a request described it, kept mapped until dropped.
#[derive(Clone)]
pub struct GuestBuffer {
    slices: SmallVec<[GuestSlice; 4]>,
    len: usize,
    // Keeps the guest's memory mapped.
    _owner: Arc<dyn Any + Send + Sync>,
}

// SAFETY: the pointers stay valid on any thread for as long as `_owner` lives
// (contract of `GuestBuffer::new`); the memory behind them is shared with the
// guest anyway, and nothing here makes references to it.
unsafe impl Send for GuestBuffer {}

impl GuestBuffer {
    /// # Safety
    /// Every slice must be readable and writable memory, shared with the guest,
    /// that stays mapped for as long as `owner` lives.
    pub unsafe fn new(
        slices: SmallVec<[GuestSlice; 4]>,
        owner: Arc<dyn Any + Send + Sync>,
    ) -> Self {
        let len = slices.iter().map(|s| s.len).sum();
        Self {
            slices,
            len,
            _owner: owner,
        }
    }

    /// The bytes `offset .. offset + len` of this buffer, with the same owner;
    /// `None` if they are not all inside.
    pub fn slice(&self, offset: usize, len: usize) -> Option<Self> {
        if offset.checked_add(len)? > self.len {
            return None;
        }
        let (mut skip, mut left) = (offset, len);
        let mut slices = SmallVec::new();
        for slice in &self.slices {
            let start = skip.min(slice.len);
            skip -= start;
            let take = left.min(slice.len - start);
            if take > 0 {
                left -= take;
                slices.push(GuestSlice {
                    pointer: slice.pointer.wrapping_add(start),
                    len: take,
                });
            }
        }
        Some(Self {
            slices,
            len,
            _owner: Arc::clone(&self._owner),
        })
    }

    /// Copies bytes from `offset` on into `target`; false if there are too few.
    pub fn read_at(&self, offset: usize, target: &mut [u8]) -> bool {
        let Some(part) = self.slice(offset, target.len()) else {
            return false;
        };
        let mut rest = target;
        for slice in &part.slices {
            let (now, later) = rest.split_at_mut(slice.len);
            // SAFETY: `slice` is mapped memory of `slice.len` bytes (contract of
            // `new`) and `now` is ours, equally long, and cannot overlap it. The
            // guest may write meanwhile; then the bytes are any mix, and plain
            // bytes have no invalid values.
            unsafe {
                std::ptr::copy_nonoverlapping(
                    slice.pointer.cast_const(),
                    now.as_mut_ptr(),
                    now.len(),
                )
            };
            rest = later;
        }
        true
    }

    /// Copies `source` over the bytes from `offset` on; false if it does not fit.
    pub fn write_at(&self, offset: usize, source: &[u8]) -> bool {
        let Some(part) = self.slice(offset, source.len()) else {
            return false;
        };
        let mut rest = source;
        for slice in &part.slices {
            let (now, later) = rest.split_at(slice.len);
            // SAFETY: as in `read_at`, with the directions exchanged.
            unsafe { std::ptr::copy_nonoverlapping(now.as_ptr(), slice.pointer, now.len()) };
            rest = later;
        }
        true
    }

    pub fn slices(&self) -> &[GuestSlice] {
        &self.slices
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl fmt::Debug for GuestBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "GuestBuffer({} bytes in {} slices)",
            self.len,
            self.slices.len()
        )
    }
}

/// What an operation reads into or writes from.
#[derive(Debug)]
pub enum Buffer {
    /// Memory of this process that only this buffer uses.
    Owned(OwnedBuffer),
    /// One source for several writes: `offset` and `len` in bytes within it.
    Shared {
        memory: Arc<OwnedBuffer>,
        offset: usize,
        len: usize,
    },
    /// Guest memory.
    Guest(GuestBuffer),
    /// `len` bytes of zero that take no memory, to write from.
    Zeroes { len: usize },
}

/// The memory of [`Buffer::Zeroes`], used as often as its length requires. Aligned for
/// O_DIRECT on any device.
#[repr(align(4096))]
struct ZeroPages([u8; 64 * 1024]);
static ZERO_PAGES: ZeroPages = ZeroPages([0; 64 * 1024]);

/// The memory of the next piece of zeroes. It is only read.
pub(super) fn zero_pages() -> &'static [u8] {
    &ZERO_PAGES.0
}

impl Buffer {
    pub fn len(&self) -> usize {
        match self {
            Self::Owned(b) => b.len(),
            Self::Shared { len, .. } => *len,
            Self::Guest(b) => b.len(),
            Self::Zeroes { len } => *len,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies the bytes from `offset` on into `target`; false if there are too few.
    pub fn read_at(&self, offset: usize, target: &mut [u8]) -> bool {
        let from = match self {
            Self::Owned(b) => b.as_slice(),
            Self::Shared { .. } => self.shared_slice().unwrap_or_default(),
            Self::Guest(b) => return b.read_at(offset, target),
            Self::Zeroes { len } => {
                let end = offset.checked_add(target.len());
                let inside = end.is_some_and(|end| end <= *len);
                if inside {
                    target.fill(0);
                }
                return inside;
            }
        };
        let part = offset
            .checked_add(target.len())
            .and_then(|end| from.get(offset..end));
        part.map(|part| target.copy_from_slice(part)).is_some()
    }

    /// Copies `source` over the bytes from `offset` on; false if it does not fit
    /// or the buffer is read-only (shared, or zeroes).
    pub fn write_at(&mut self, offset: usize, source: &[u8]) -> bool {
        match self {
            Self::Owned(b) => {
                let end = offset.checked_add(source.len());
                let part = end.and_then(|end| b.as_mut_slice().get_mut(offset..end));
                part.map(|part| part.copy_from_slice(source)).is_some()
            }
            Self::Shared { .. } | Self::Zeroes { .. } => false,
            Self::Guest(b) => b.write_at(offset, source),
        }
    }

    /// Whether an operation can use it: a shared one must lie inside its memory,
    /// and it and zeroes cannot be read into.
    pub(super) fn fits(&self, read: bool) -> bool {
        match self {
            Self::Owned(_) | Self::Guest(_) => true,
            Self::Shared { .. } => !read && self.shared_slice().is_some(),
            Self::Zeroes { .. } => !read,
        }
    }

    /// The bytes of a `Shared` buffer; `None` for others or if its range is not
    /// inside its memory.
    pub(super) fn shared_slice(&self) -> Option<&[u8]> {
        match self {
            Self::Shared {
                memory,
                offset,
                len,
            } => memory.as_slice().get(*offset..offset.checked_add(*len)?),
            Self::Owned(_) | Self::Guest(_) | Self::Zeroes { .. } => None,
        }
    }
}
