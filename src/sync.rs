//! Atomics, locks and threads for the code that the tests of races model.
//!
//! In the program and in ordinary tests they are those of `std`. In tests with the
//! feature `loom` or `shuttle` they are those of that library, so that it decides which
//! thread runs next (and, with `loom`, what a load may see) while production code runs:
//! `docs/crash-model.md`, "Races". `Arc` is `std`'s everywhere: neither library's
//! can hold a trait object, and nothing here relies on the order of its drops.

#[cfg(not(all(test, any(feature = "loom", feature = "shuttle"))))]
pub use std::{
    sync::{Mutex, MutexGuard, OnceLock, atomic, mpsc},
    thread,
};

#[cfg(all(test, feature = "loom"))]
pub use loom::{
    sync::{Mutex, MutexGuard, atomic},
    thread,
};
// Nothing that loom models sends messages.
#[cfg(all(test, feature = "loom"))]
pub use std::sync::mpsc;

#[cfg(all(test, feature = "shuttle", not(feature = "loom")))]
pub use shuttle::{
    sync::{Mutex, MutexGuard, atomic, mpsc},
    thread,
};

#[cfg(all(test, any(feature = "loom", feature = "shuttle")))]
pub use modelled::OnceLock;

use rustix::event::Timespec;

/// In a model every cell of an array costs time, so arrays are small there.
pub const TINY: bool = cfg!(all(test, feature = "loom"));

/// Waits for events in `block`, which waits for at most the time that it is given (`None`:
/// no limit) and returns their number.
pub fn wait<E>(
    timeout: Option<Timespec>,
    mut block: impl FnMut(Option<&Timespec>) -> Result<usize, E>,
) -> Result<usize, E> {
    if cfg!(not(all(test, any(feature = "loom", feature = "shuttle")))) {
        return block(timeout.as_ref());
    }
    // A modelled thread must not block the others, so it polls and lets them run. No time
    // passes in a model: a thread that would only be saved by a timeout never continues,
    // and the test fails.
    loop {
        let now = Timespec::default();
        match block(Some(&now)) {
            Ok(0) if timeout.as_ref().is_none_or(|t| *t != now) => thread::yield_now(),
            events => return events,
        }
    }
}

#[cfg(all(test, any(feature = "loom", feature = "shuttle")))]
mod modelled {
    use super::atomic::{AtomicBool, Ordering};

    /// Both libraries lack this type. A modelled flag makes the value visible; as in the
    /// production code, only one thread sets it.
    #[derive(Debug)]
    pub struct OnceLock<T> {
        value: std::sync::OnceLock<T>,
        set: AtomicBool,
    }

    impl<T> OnceLock<T> {
        pub fn new() -> Self {
            Self {
                value: std::sync::OnceLock::new(),
                set: AtomicBool::new(false),
            }
        }

        pub fn get(&self) -> Option<&T> {
            if self.set.load(Ordering::Acquire) {
                self.value.get()
            } else {
                None
            }
        }

        pub fn get_or_init(&self, init: impl FnOnce() -> T) -> &T {
            let value = self.value.get_or_init(init);
            self.set.store(true, Ordering::Release);
            value
        }
    }
}
