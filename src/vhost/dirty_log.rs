//! The log of dirty pages, into which the front end looks during a migration: one bit for
//! each page of 4096 bytes of the guest's memory, from address 0 on. A bit is set, with an
//! atomic operation, after its page was written.
//!
//! `vhost-user-backend` has such a log too, but only its own message handler can map it. Its
//! traits are used, so that every write that goes through `vm-memory` is logged by itself.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use vhost::vhost_user::message::VhostUserLog;
use vhost_user_backend::bitmap::{BitmapReplace, MemRegionBitmap, MmapLogReg};
use vm_memory::bitmap::{Bitmap, RefSlice, WithBitmapSlice};
use vm_memory::mmap::NewBitmap;
use vm_memory::{Address, FileOffset, GuestMemoryRegion, MmapRegion, VolatileMemory};

use super::backing::{Backing, invalid};
use super::descriptors;
use super::vanishing::{Reserved, Watch};
use crate::event_flag::EventFlag;
use crate::size::in_words;

/// Bytes of guest memory for which there is a bit.
const LOG_PAGE: u64 = 4096;
/// Pages of a byte of the log.
const PAGES: u64 = 8;
/// Largest log in bytes: it covers 52 bits, more than any guest's address has.
const BYTES_MAX: u64 = 1 << 37;

/// A log that is mapped.
#[derive(Debug)]
pub struct DirtyLog {
    // Dropped first: a mapping is watched only while it exists.
    _watch: Watch,
    mapping: MmapRegion<()>,
}

impl DirtyLog {
    /// Maps the log that a front end passes. Its file is checked as that of guest memory is;
    /// `gone` becomes readable when an access finds that the file was shortened.
    ///
    /// # Errors
    /// The message says what is wrong with the log.
    pub fn map(
        log: &VhostUserLog,
        file: File,
        any_memory: bool,
        gone: &Arc<EventFlag>,
    ) -> io::Result<Self> {
        // The message's layout is packed: fields are copied out.
        let (len, offset) = (log.mmap_size, log.mmap_offset);
        let named = |e: io::Error| io::Error::new(e.kind(), format!("the dirty log: {e}"));
        if len > BYTES_MAX {
            return Err(invalid(format!(
                "the dirty log has {}; {} are enough for every guest",
                in_words(len),
                in_words(BYTES_MAX)
            )));
        }
        descriptors::check(&file).map_err(named)?;
        let backing = Backing {
            what: "the dirty log",
            len,
            offset,
        };
        backing.check_size(&file)?;
        let page = backing.check_kind(&file, any_memory)?;
        let reserved = Reserved::new(len).map_err(named)?;
        let size = usize::try_from(len).map_err(io::Error::other)?;
        let mapping = MmapRegion::<()>::from_file(FileOffset::new(file, offset), size)
            .map_err(|e| invalid(format!("the dirty log at offset {offset}: {e}")))?;
        let start = mapping.as_ptr().expose_provenance();
        let watch = Watch::new(start, size, page, Arc::clone(gone), reserved).map_err(named)?;
        Ok(Self {
            _watch: watch,
            mapping,
        })
    }

    /// Bytes of the log.
    pub fn len(&self) -> u64 {
        u64::try_from(self.mapping.size()).unwrap_or(u64::MAX)
    }

    /// The log has a bit for the page of this address.
    pub fn covers(&self, address: u64) -> bool {
        address / LOG_PAGE / PAGES < self.len()
    }

    /// `len` bytes from `address` on were written. Pages behind the end of the log, which
    /// are refused when the log or the memory comes, are left out.
    ///
    /// The bit is set even if it is set already: the front end may be about to clear it,
    /// and to copy the page as it was before.
    pub fn mark(&self, address: u64, len: u64) {
        let Some(last) = len.checked_sub(1).and_then(|l| address.checked_add(l)) else {
            return;
        };
        let (first, last) = (address / LOG_PAGE, last / LOG_PAGE);
        for place in first / PAGES..=last / PAGES {
            let begin = first.saturating_sub(place * PAGES).min(PAGES - 1);
            let end = (last - place * PAGES).min(PAGES - 1);
            let bits = u8::MAX >> (PAGES - 1 - end) & u8::MAX << begin;
            let Ok(place) = usize::try_from(place) else {
                return;
            };
            let Ok(byte) = self.mapping.get_atomic_ref::<AtomicU8>(place) else {
                return;
            };
            // Whoever sees the bit sees the page.
            byte.fetch_or(bits, Ordering::SeqCst);
        }
    }
}

/// Where the writes to one used ring are logged.
#[derive(Clone, Debug)]
pub struct UsedLog {
    pub log: Arc<DirtyLog>,
    /// The address in the log of the ring's first byte.
    pub address: u64,
}

impl UsedLog {
    /// `len` bytes from `offset` of the ring on were written.
    pub fn mark(&self, offset: u64, len: u64) {
        self.log.mark(self.address.saturating_add(offset), len);
    }
}

/// The part of a log that belongs to one region of guest memory.
#[derive(Debug)]
pub struct LogPart {
    log: Arc<DirtyLog>,
    /// The region's guest address.
    start: u64,
}

impl LogPart {
    pub fn of(region: &impl GuestMemoryRegion, log: &Arc<DirtyLog>) -> Self {
        Self {
            log: Arc::clone(log),
            start: region.start_addr().raw_value(),
        }
    }
}

impl MemRegionBitmap for LogPart {
    /// Never called: only the library's own handler makes such a mapping.
    fn new<R: GuestMemoryRegion>(_region: &R, _log: Arc<MmapLogReg>) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// A region's bits in the log, if there is one. Without one, a write costs one load.
#[derive(Debug, Default)]
pub struct DirtyBitmap {
    on: AtomicBool,
    part: RwLock<Option<LogPart>>,
}

impl DirtyBitmap {
    /// When this returns, nothing is marked any more.
    pub fn clear(&self) {
        self.set(None);
    }

    fn set(&self, part: Option<LogPart>) {
        // With the lock, so that no mark in the old log is under way afterwards.
        let mut now = self.part.write().unwrap_or_else(PoisonError::into_inner);
        self.on.store(part.is_some(), Ordering::SeqCst);
        *now = part;
    }
}

impl BitmapReplace for DirtyBitmap {
    type InnerBitmap = LogPart;

    fn replace(&self, part: LogPart) {
        self.set(Some(part));
    }
}

impl<'a> WithBitmapSlice<'a> for DirtyBitmap {
    type S = RefSlice<'a, Self>;
}

impl Bitmap for DirtyBitmap {
    fn mark_dirty(&self, offset: usize, len: usize) {
        if !self.on.load(Ordering::Relaxed) {
            return;
        }
        let part = self.part.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(part) = &*part
            && let (Ok(offset), Ok(len)) = (u64::try_from(offset), u64::try_from(len))
        {
            part.log.mark(part.start.saturating_add(offset), len);
        }
    }

    /// Only the front end reads the log.
    fn dirty_at(&self, _offset: usize) -> bool {
        false
    }

    fn slice_at(&self, offset: usize) -> RefSlice<'_, Self> {
        RefSlice::new(self, offset)
    }
}

impl NewBitmap for DirtyBitmap {
    fn with_len(_len: usize) -> Self {
        Self::default()
    }
}

#[cfg(test)]
#[path = "dirty_log_tests.rs"]
mod tests;
