//! Waiting for the main thread to have heard the engine out.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::executor::WakeFd;

/// Longest wait. The main thread may be writing the state file; an answer that
/// comes before its event is better than none.
const PATIENCE: Duration = Duration::from_secs(5);

/// Turns of the main thread, asked for by the control thread.
pub struct Turns {
    wake: Arc<WakeFd>,
    counts: Mutex<Counts>,
    answered: Condvar,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    asked: u64,
    answered: u64,
}

impl Turns {
    /// `wake` ends the main thread's wait.
    pub fn new(wake: Arc<WakeFd>) -> Self {
        Self {
            wake,
            counts: Mutex::default(),
            answered: Condvar::new(),
        }
    }

    /// Passes `result` on after all that the engine has told until now was heard.
    /// Not for the main thread, nor under a lock that it takes.
    pub fn settle_after<T>(&self, result: T) -> T {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.asked += 1;
        let ours = counts.asked;
        self.wake.ring();
        let waited = self
            .answered
            .wait_timeout_while(counts, PATIENCE, |c| c.answered < ours);
        drop(waited);
        result
    }

    /// For the main thread: hears the engine out with `hear`, and answers whoever
    /// had asked before.
    pub fn take(&self, hear: impl FnOnce()) {
        let lock = || self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let asked = lock().asked;
        hear();
        lock().answered = asked;
        self.answered.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn nothing_that_was_told_before_is_heard_later() {
        let turns = Turns::new(Arc::new(WakeFd::new().unwrap()));
        let (told, heard) = (AtomicU32::new(0), AtomicU32::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while heard.load(Ordering::Acquire) < 1000 {
                    turns.take(|| heard.store(told.load(Ordering::Acquire), Ordering::Release));
                }
            });
            for number in 1..=1000 {
                told.store(number, Ordering::Release);
                turns.settle_after(());
                assert!(heard.load(Ordering::Acquire) >= number);
            }
        });
    }
}
