//! The requests that a port has under way, and what each of them touches.
//!
//! The fast path takes no lock, so a state change must be able to find the
//! requests that were decided before it. Both sides follow one rule:
//!
//! - a request *registers, fences, then looks up* the state that it depends on;
//! - a change *stores the new state, fences, then scans* the registrations.
//!
//! So either the request sees the new state or the change sees the request.
//!
//! A long write is handed in window by window. From the first window that is decided to the
//! end of the last one it is marked as *unfinished*, also while none of them is under way: a
//! change that must not come in the middle of a write waits for it.
//!
//! A change that waits for requests also gets a number after its state is stored, and a
//! request that registers notes the number of the last change before. Those that note the
//! change's number, or a later one, see its state: the change does not wait for them, so
//! that nobody can hold it up with ever new requests.

use std::sync::Arc;

use super::api::Slot;
use crate::mutation::{self, Mutation};
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

/// A change's half of the rule: between its stores and its scan.
pub(super) fn fence_change() {
    if !mutation::is(Mutation::ChangeUnfenced) {
        fence(Ordering::SeqCst);
    }
}

/// Reads the origin.
pub(super) const READ_ORIGIN: u64 = 1;
/// Reads or writes a COW device.
pub(super) const COW: u64 = 2;
/// Writes, wherever it goes.
pub(super) const WRITE: u64 = 4;
/// Flushes (with [`COW`], if a COW device is among what it flushes).
pub(super) const OTHER: u64 = 8;
/// Discards the origin through a snapshot's view.
pub(super) const PASSDOWN: u64 = 16;

/// The number of the last change that waits for requests, or did.
#[derive(Debug, Default)]
pub(super) struct Changes(AtomicU64);

impl Changes {
    /// Numbers a change whose state is stored. By one thread at a time.
    pub fn number(&self) -> u64 {
        let number = self.0.load(Ordering::Relaxed) + 1;
        self.0.store(number, Ordering::Release);
        number
    }

    /// The state of this change, and of those before, is seen by what comes after.
    fn last(&self) -> u64 {
        let later = mutation::is(Mutation::NextChangeTakenForSeen);
        self.0.load(Ordering::Acquire) + u64::from(later)
    }
}

#[derive(Debug, Default)]
struct Registration {
    /// 0: the slot is free.
    touches: AtomicU64,
    /// The last change before the request.
    change: AtomicU64,
    start: AtomicU64,
    end: AtomicU64,
    /// A part of a write is done, or may be, and another one follows.
    unfinished: AtomicBool,
}

impl Registration {
    fn matches(&self, mask: u64, hit: impl Fn(u64, u64) -> bool) -> bool {
        #[cfg(test)]
        count_look();
        self.touches.load(Ordering::Acquire) & mask != 0
            && hit(
                self.start.load(Ordering::Relaxed),
                self.end.load(Ordering::Relaxed),
            )
    }
}

/// One port's registrations, one for each slot.
#[derive(Debug)]
pub(super) struct Registrations {
    slots: Box<[Registration]>,
    changes: Arc<Changes>,
}

impl Registrations {
    pub fn new(slots: usize, changes: Arc<Changes>) -> Self {
        Self {
            slots: (0..slots).map(|_| Registration::default()).collect(),
            changes,
        }
    }

    /// Registers sectors `start .. end`; the caller may look up state afterwards.
    pub fn register(&self, slot: Slot, touches: u64, start: u64, end: u64) {
        if let Some(r) = self.slots.get(usize::from(slot)) {
            r.change.store(self.changes.last(), Ordering::Release);
            r.start.store(start, Ordering::Relaxed);
            r.end.store(end, Ordering::Relaxed);
            r.touches.store(touches, Ordering::Release);
            if !mutation::is(Mutation::RegistrationUnfenced) {
                fence(Ordering::SeqCst);
            }
        }
    }

    /// Narrows what a registered request touches.
    pub fn narrow(&self, slot: Slot, touches: u64) {
        if let Some(r) = self.slots.get(usize::from(slot)) {
            r.touches.store(touches, Ordering::Release);
        }
    }

    /// Ends a registration. The caller must then check whether a change waits for it.
    pub fn clear(&self, slot: Slot) {
        if let Some(r) = self.slots.get(usize::from(slot)) {
            r.touches.store(0, Ordering::Release);
            if !mutation::is(Mutation::EndUnfenced) {
                fence(Ordering::SeqCst);
            }
        }
    }

    /// Marks a write as unfinished. The caller registers or decides it afterwards.
    pub fn begin(&self, slot: Slot) {
        if let Some(r) = self.slots.get(usize::from(slot)) {
            r.unfinished.store(true, Ordering::Relaxed);
        }
    }

    /// Nothing follows any more. The caller must then check whether a change waits for it,
    /// after [`clear`](Self::clear).
    pub fn finish(&self, slot: Slot) {
        if let Some(r) = self.slots.get(usize::from(slot)) {
            r.unfinished.store(false, Ordering::Release);
        }
    }

    pub fn is_unfinished(&self, slot: Slot) -> bool {
        let registration = self.slots.get(usize::from(slot));
        registration.is_some_and(|r| r.unfinished.load(Ordering::Acquire))
    }

    /// Whether any write is unfinished. The caller has fenced after its state change.
    pub fn any_unfinished(&self) -> bool {
        self.slots
            .iter()
            .any(|r| r.unfinished.load(Ordering::Acquire))
    }

    /// Whether a registration with any of `mask` covers a range for which `hit` is
    /// true. The caller has fenced after its state change.
    pub fn any(&self, mask: u64, hit: impl Fn(u64, u64) -> bool) -> bool {
        self.slots.iter().any(|r| r.matches(mask, &hit))
    }

    /// As [`any`](Self::any), among the requests before the change of this number: the first
    /// slot from `from` on.
    pub fn first_before(
        &self,
        number: u64,
        from: usize,
        mask: u64,
        hit: impl Fn(u64, u64) -> bool,
    ) -> Option<usize> {
        let mut slots = self.slots.iter().enumerate().skip(from);
        let found =
            slots.find(|(_, r)| r.matches(mask, &hit) && r.change.load(Ordering::Acquire) < number);
        found.map(|(slot, _)| slot)
    }
}

#[cfg(test)]
thread_local!(static LOOKS: std::cell::Cell<u64> = const { std::cell::Cell::new(0) });

#[cfg(test)]
fn count_look() {
    LOOKS.set(LOOKS.get() + 1);
}

/// How many registrations this thread has looked at for changes.
#[cfg(test)]
pub(super) fn looks() -> u64 {
    LOOKS.get()
}
