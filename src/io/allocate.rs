//! Zeroing with fallocate, and which of its forms a file does not support.

use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::FallocateFlags;

/// A form of fallocate that zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Allocate {
    Punch,
    ZeroRange,
}

impl Allocate {
    /// The file keeps its size.
    pub(super) fn flags(self) -> FallocateFlags {
        let what = match self {
            Self::Punch => FallocateFlags::PUNCH_HOLE,
            Self::ZeroRange => FallocateFlags::ZERO_RANGE,
        };
        what | FallocateFlags::KEEP_SIZE
    }
}

/// The forms that have failed on a file and are not tried again.
#[derive(Debug, Default)]
pub(super) struct Abilities {
    cannot_punch: AtomicBool,
    cannot_zero_range: AtomicBool,
}

impl Abilities {
    /// Whether `how` is worth trying.
    pub(super) fn can(&self, how: Allocate) -> bool {
        !self.known_to_fail(how).load(Ordering::Relaxed)
    }

    pub(super) fn cannot(&self, how: Allocate) {
        self.known_to_fail(how).store(true, Ordering::Relaxed);
    }

    const fn known_to_fail(&self, how: Allocate) -> &AtomicBool {
        match how {
            Allocate::Punch => &self.cannot_punch,
            Allocate::ZeroRange => &self.cannot_zero_range,
        }
    }
}
