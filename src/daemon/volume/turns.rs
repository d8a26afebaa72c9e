//! Waiting for the main thread to have heard the engine out.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::event_flag::EventFlag;

/// Longest wait. The main thread may be writing the state file; an answer that
/// comes before its event is better than none.
const PATIENCE: Duration = Duration::from_secs(5);

/// Turns of the main thread, asked for by the control thread.
pub struct Turns {
    wake: Arc<EventFlag>,
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
    pub fn new(wake: Arc<EventFlag>) -> Self {
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
        self.wake.set();
        let waited = self
            .answered
            .wait_timeout_while(counts, PATIENCE, |c| c.answered < ours);
        if waited.is_ok_and(|(_, timeout)| timeout.timed_out()) {
            tracing::warn!(
                "answered before the events of the change were noted: the main thread is busy"
            );
        }
        result
    }

    /// For the main thread: hears the engine out with `hear`, and answers whoever
    /// had asked before. `hear` takes back what was rung, also for a question that
    /// came too late to be answered by it: then the bell is rung again.
    pub fn take(&self, hear: impl FnOnce()) {
        let lock = || self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let asked = lock().asked;
        hear();
        let mut counts = lock();
        counts.answered = asked;
        if counts.asked != asked {
            self.wake.set();
        }
        self.answered.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    fn is_rung(wake: &EventFlag) -> bool {
        let mut fds = [PollFd::new(wake, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())).unwrap() > 0
    }

    // Verbs took the whole patience now and then: the bell that they rang was
    // taken back by a turn that did not know of them.
    #[test]
    fn a_question_that_comes_during_a_turn_brings_another_turn() {
        let wake = Arc::new(EventFlag::new().unwrap());
        let turns = Turns::new(wake.clone());
        std::thread::scope(|scope| {
            turns.take(|| {
                scope.spawn(|| turns.settle_after(()));
                while !is_rung(&wake) {
                    std::thread::yield_now();
                }
                wake.clear();
            });
            assert!(is_rung(&wake), "nobody takes the next turn");
            turns.take(|| wake.clear());
            assert!(!is_rung(&wake), "a turn that nobody asked for");
        });
    }

    #[test]
    fn nothing_that_was_told_before_is_heard_later() {
        let turns = Turns::new(Arc::new(EventFlag::new().unwrap()));
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
