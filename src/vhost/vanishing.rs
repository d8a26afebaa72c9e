//! Guest memory that its front end takes away while it is mapped: a file that is made
//! shorter has no pages behind its new end, and an access to one raises SIGBUS, whose
//! default is the end of the process with all its views.
//!
//! A handler of SIGBUS looks up the address. In guest memory it maps pages of zeroes in
//! the region's place, so that the access succeeds, and tells the region's front end,
//! whose session then ends. Every other SIGBUS keeps its default.
//!
//! Why this is sound: no Rust reference to guest memory exists, only volatile, atomic and
//! raw accesses, and any value may be found there at any time. The new pages have the
//! same addresses, and are unmapped with the region. A region is watched exactly while it
//! is mapped, so no other memory is ever replaced. The handler uses only atomics in a
//! static table and system calls, which may be made at any point of the program.
//!
//! The kernel's own accesses do not raise the signal but fail with EFAULT; such a transfer
//! is repeated through this process's memory (`io/transfer.rs`), and so ends the same way.
#![allow(unsafe_code)] // Named file: a signal handler, and a mapping at a fixed address.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Once};

use crate::event_flag::EventFlag;
use crate::size::in_words;

/// Regions that all front ends may have mapped at a time.
const REGIONS_MAX: usize = 4096;
/// Address space that all front ends may map: half of what a process has.
const BYTES_MAX: u64 = 64 << 40;
/// A mapping ends at a multiple of this, or of a large page.
const PAGE: usize = 4096;

/// A mapped region, as the handler sees it.
struct Entry {
    taken: AtomicBool,
    start: AtomicUsize,
    /// 0: not watched.
    end: AtomicUsize,
    /// The descriptor of the front end's event.
    event: AtomicI32,
    is_gone: AtomicBool,
}

impl Entry {
    const fn new() -> Self {
        Self {
            taken: AtomicBool::new(false),
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
            event: AtomicI32::new(-1),
            is_gone: AtomicBool::new(false),
        }
    }
}

static ENTRIES: [Entry; REGIONS_MAX] = [const { Entry::new() }; REGIONS_MAX];
static BYTES: AtomicU64 = AtomicU64::new(0);
static FAULTS: AtomicUsize = AtomicUsize::new(0);
static HANDLER: Once = Once::new();

/// How many accesses have met memory that was gone, in all regions.
pub fn faults() -> usize {
    FAULTS.load(Ordering::SeqCst)
}

/// Address space that is reserved for a region before it is mapped.
#[derive(Debug)]
pub struct Reserved(u64);

impl Reserved {
    /// # Errors
    /// All front ends together would map too much.
    pub fn new(bytes: u64) -> io::Result<Self> {
        let room = BYTES_MAX.saturating_sub(bytes);
        let taken = BYTES.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| {
            (now <= room).then_some(now + bytes)
        });
        match taken {
            Ok(_) => Ok(Self(bytes)),
            Err(now) => Err(io::Error::other(format!(
                "a memory region of {}: all front ends together may map {}, and {} are mapped",
                in_words(bytes),
                in_words(BYTES_MAX),
                in_words(now)
            ))),
        }
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        BYTES.fetch_sub(self.0, Ordering::Relaxed);
    }
}

/// A region that is watched. It must be dropped before the region is unmapped.
#[derive(Debug)]
pub struct Watch {
    entry: usize,
    // Kept open while the handler may write to it.
    _event: Arc<EventFlag>,
    _reserved: Reserved,
}

impl Watch {
    /// Watches the mapping of `len` bytes at `start`, whose file has pages of `page` bytes.
    /// `event` becomes readable when an access finds that memory is gone.
    ///
    /// # Errors
    /// All front ends together have too many regions.
    pub fn new(
        start: usize,
        len: usize,
        page: usize,
        event: Arc<EventFlag>,
        reserved: Reserved,
    ) -> io::Result<Self> {
        HANDLER.call_once(install);
        let free = |entry: &Entry| !entry.taken.swap(true, Ordering::SeqCst);
        let Some((number, entry)) = ENTRIES.iter().enumerate().find(|(_, e)| free(e)) else {
            return Err(io::Error::other(format!(
                "all front ends together have {REGIONS_MAX} memory regions, which is the most"
            )));
        };
        let end = start.saturating_add(len.next_multiple_of(page.max(PAGE)));
        entry.start.store(start, Ordering::SeqCst);
        entry
            .event
            .store(event.as_fd().as_raw_fd(), Ordering::SeqCst);
        entry.is_gone.store(false, Ordering::SeqCst);
        entry.end.store(end, Ordering::SeqCst);
        Ok(Self {
            entry: number,
            _event: event,
            _reserved: reserved,
        })
    }

    /// An access has found that memory is gone.
    pub fn is_gone(&self) -> bool {
        let entry = ENTRIES.get(self.entry);
        entry.is_some_and(|entry| entry.is_gone.load(Ordering::SeqCst))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(entry) = ENTRIES.get(self.entry) {
            entry.end.store(0, Ordering::SeqCst);
            entry.taken.store(false, Ordering::SeqCst);
        }
    }
}

fn install() {
    // SAFETY: all-zero is a valid `sigaction`; the handler has the signature that
    // SA_SIGINFO asks for.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        let handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) = on_sigbus;
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigemptyset(&raw mut action.sa_mask);
        libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut());
    }
}

/// Order: 1 the region is marked → 2 it is replaced → 3 its front end's thread is told. So
/// whoever reads a zero of 2 and then looks at the mark sees it.
extern "C" fn on_sigbus(signal: i32, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid `siginfo_t`; for a fault it has an address.
    // `__errno_location` is this thread's, and is restored.
    unsafe {
        let errno = *libc::__errno_location();
        let is_fault = (*info).si_code == libc::BUS_ADRERR;
        if !is_fault || !replace((*info).si_addr().addr()) {
            // The default from now on: the access is repeated, and ends the process.
            libc::signal(signal, libc::SIG_DFL);
            libc::raise(signal);
        }
        *libc::__errno_location() = errno;
    }
}

/// False if the address is not in guest memory.
fn replace(address: usize) -> bool {
    for entry in &ENTRIES {
        let end = entry.end.load(Ordering::SeqCst);
        let start = entry.start.load(Ordering::SeqCst);
        if end == 0 || !(start..end).contains(&address) {
            continue;
        }
        entry.is_gone.store(true, Ordering::SeqCst);
        FAULTS.fetch_add(1, Ordering::SeqCst);
        let flags = libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: the range is a mapping of guest memory, which stays until its watch is
        // dropped, and the access under way shows that it is in use. See the module
        // documentation for those who have pointers into it.
        let mapped = unsafe {
            libc::mmap(
                std::ptr::with_exposed_provenance_mut(start),
                end - start,
                libc::PROT_READ | libc::PROT_WRITE,
                flags,
                -1,
                0,
            )
        };
        if mapped == libc::MAP_FAILED {
            return false;
        }
        let one = 1_u64.to_ne_bytes();
        // SAFETY: the buffer is valid; the watch keeps the descriptor open.
        unsafe {
            libc::write(
                entry.event.load(Ordering::SeqCst),
                one.as_ptr().cast(),
                one.len(),
            );
        }
        return true;
    }
    false
}
