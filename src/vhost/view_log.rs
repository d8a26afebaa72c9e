//! The log lines of one view. A guest and its front end can cause any number of them, so
//! they have one limit together; what is held back is counted.

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::Level;

use super::backing::UNSHARED;

/// Lines that may follow one another at once.
const BURST: u32 = 32;
/// The interval at which one more is permitted.
const INTERVAL: Duration = Duration::from_secs(10);

/// See the module documentation.
#[derive(Debug)]
pub struct ViewLog {
    /// Of the view, as a field of each line.
    view: String,
    limit: Mutex<Limit>,
    /// What is known of the memory of the front end that is connected, or was last.
    memory: AtomicU8,
}

/// Nothing.
const UNKNOWN: u8 = 0;
/// A request was found there, so it is the guest's.
const SHARED: u8 = 1;
/// It does not seem to be the guest's, which was said.
const DOUBTED: u8 = 2;

#[derive(Debug)]
struct Limit {
    /// Lines that are permitted now.
    left: u32,
    /// When `left` last grew.
    grown: Option<Instant>,
    held_back: u64,
    /// Lines that were held back since the view began.
    total: u64,
}

impl Default for ViewLog {
    fn default() -> Self {
        Self::of("")
    }
}

impl Limit {
    /// Whether a line is permitted at `now`; if so, the lines that were held back before
    /// it.
    fn admit(&mut self, now: Instant) -> Option<u64> {
        let grown = *self.grown.get_or_insert(now);
        let intervals = now.saturating_duration_since(grown).as_secs() / INTERVAL.as_secs();
        let intervals = u32::try_from(intervals).unwrap_or(u32::MAX);
        if intervals > 0 {
            self.left = self.left.saturating_add(intervals).min(BURST);
            self.grown = Some(now);
        }
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                Some(std::mem::take(&mut self.held_back))
            }
            None => {
                self.held_back += 1;
                self.total += 1;
                None
            }
        }
    }
}

impl ViewLog {
    /// The log of the view with this name.
    pub fn of(view: &str) -> Self {
        Self {
            view: view.to_owned(),
            limit: Mutex::new(Limit {
                left: BURST,
                grown: None,
                held_back: 0,
                total: 0,
            }),
            memory: AtomicU8::new(UNKNOWN),
        }
    }

    /// A front end connects, of whose memory nothing is known.
    pub fn begin_session(&self) {
        self.memory.store(UNKNOWN, Ordering::Release);
    }

    /// A request was found in the guest's memory.
    pub fn memory_is_shared(&self) {
        self.memory.store(SHARED, Ordering::Release);
    }

    /// The memory that is here does not seem to be the guest's, for the reason in `line`. This is
    /// said once for each front end, and never after one of its requests was found.
    pub fn doubt_memory(&self, line: fmt::Arguments<'_>) {
        let doubted =
            self.memory
                .compare_exchange(UNKNOWN, DOUBTED, Ordering::AcqRel, Ordering::Acquire);
        if doubted.is_ok() {
            self.warn(format_args!("{line}: {UNSHARED}"));
        }
    }

    /// What was said by [`Self::doubt_memory`] still looks true.
    pub fn is_memory_doubted(&self) -> bool {
        self.memory.load(Ordering::Acquire) == DOUBTED
    }

    pub fn error(&self, line: fmt::Arguments<'_>) {
        self.write(Level::ERROR, line);
    }

    pub fn warn(&self, line: fmt::Arguments<'_>) {
        self.write(Level::WARN, line);
    }

    pub fn info(&self, line: fmt::Arguments<'_>) {
        self.write(Level::INFO, line);
    }

    /// Lines that were held back until now.
    pub fn held_back(&self) -> u64 {
        let limit = self.limit.lock().unwrap_or_else(PoisonError::into_inner);
        limit.total
    }

    fn write(&self, level: Level, line: fmt::Arguments<'_>) {
        let admitted = {
            let mut limit = self.limit.lock().unwrap_or_else(PoisonError::into_inner);
            limit.admit(Instant::now())
        };
        let Some(held_back) = admitted else { return };
        if held_back > 0 {
            tracing::warn!(view = %self.view, "{held_back} lines about this view were held back before the next one");
        }
        match level {
            Level::ERROR => tracing::error!(view = %self.view, "{line}"),
            Level::WARN => tracing::warn!(view = %self.view, "{line}"),
            _ => tracing::info!(view = %self.view, "{line}"),
        }
    }
}

impl Drop for ViewLog {
    /// The view has ended, so no line follows that could say it.
    fn drop(&mut self) {
        let limit = self.limit.get_mut().unwrap_or_else(PoisonError::into_inner);
        if limit.held_back > 0 {
            tracing::warn!("{} more lines about a view were held back", limit.held_back);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_beyond_the_limit_are_counted_and_not_written() {
        let mut limit = Limit {
            left: BURST,
            grown: None,
            held_back: 0,
            total: 0,
        };
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let admitted = (0..38_400).filter(|_| limit.admit(at(0)).is_some());
        assert_eq!(admitted.count(), 32);
        // The next one that is written says how many were not.
        assert_eq!(limit.admit(at(10)), Some(38_400 - 32));
        assert_eq!(limit.admit(at(10)), None);
        assert_eq!(limit.total, 38_400 - 31);
        // A quiet view may write as many at once as at first, and no more.
        let admitted = (0..100).filter(|_| limit.admit(at(100_000)).is_some());
        assert_eq!(admitted.count(), 32);
    }
}
