//! Atomics, locks and threads for whatever the races' tests model.
//!
//! In the program and in ordinary tests they are those of `std`. In tests with the
//! feature `loom` or `shuttle` they are that library's, so that it decides who
//! runs next (and, with `loom`, what a load may see) while production code runs:
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

/// A model in which every cell of a large array counts wants small arrays.
pub const TINY: bool = cfg!(all(test, feature = "loom"));

/// Waits for events in `block`, which waits for as long as it is told (`None`: for
/// ever) and returns their number.
pub fn wait<E>(
    timeout: Option<Timespec>,
    mut block: impl FnMut(Option<&Timespec>) -> Result<usize, E>,
) -> Result<usize, E> {
    if cfg!(not(all(test, any(feature = "loom", feature = "shuttle")))) {
        return block(timeout.as_ref());
    }
    // A modelled thread must not stop the others: it looks, and lets them run. No
    // time passes, so whoever is only saved by a timeout is found out.
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

    /// What both libraries lack. The value comes into sight with a flag that the
    /// model knows of; as in the code that it stands in for, one thread sets it.
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
