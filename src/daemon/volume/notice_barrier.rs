//! Waiting until the main thread has processed all pending notices.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::event_flag::EventFlag;

/// Longest wait. The main thread may be busy with the state file; an answer that
/// precedes its event is better than no answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Lets other threads wait until the main thread has processed all notices that
/// the engine had sent before.
pub struct NoticeBarrier {
    wake: Arc<EventFlag>,
    counts: Mutex<Counts>,
    answered: Condvar,
}

/// Numbers of waits: the newest that was requested, and the newest that is over.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    requested: u64,
    answered: u64,
}

impl NoticeBarrier {
    /// `wake` ends the main thread's wait.
    pub fn new(wake: Arc<EventFlag>) -> Self {
        Self {
            wake,
            counts: Mutex::default(),
            answered: Condvar::new(),
        }
    }

    /// Waits until the main thread has processed all notices that the engine has
    /// sent so far. Must not be called by the main thread, nor while holding a lock
    /// that the main thread takes.
    pub fn wait(&self) {
        let mut counts = self.lock();
        counts.requested += 1;
        let ours = counts.requested;
        self.wake.set();
        let waited = self
            .answered
            .wait_timeout_while(counts, PATIENCE, |c| c.answered < ours);
        if waited.is_ok_and(|(_, timeout)| timeout.timed_out()) {
            tracing::warn!(
                "the main thread is busy: not waiting any longer until it has processed all notices"
            );
        }
    }

    /// Runs `process` on the main thread, and ends the waits that began before.
    /// `process` also clears the wake-up of a wait that began too late to be covered
    /// by it; in this case the main thread is woken up again.
    pub fn process(&self, process: impl FnOnce()) {
        let requested = self.lock().requested;
        process();
        let mut counts = self.lock();
        counts.answered = requested;
        if counts.requested != requested {
            self.wake.set();
        }
        self.answered.notify_all();
    }

    /// A thread waits.
    #[cfg(test)]
    pub fn is_awaited(&self) -> bool {
        let counts = self.lock();
        counts.requested > counts.answered
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
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

    // Regression: verbs sometimes took the whole PATIENCE, because processing that did
    // not cover their wait had cleared their wake-up.
    #[test]
    fn a_wait_that_begins_during_processing_wakes_the_main_thread_again() {
        let wake = Arc::new(EventFlag::new().unwrap());
        let barrier = NoticeBarrier::new(wake.clone());
        std::thread::scope(|scope| {
            barrier.process(|| {
                scope.spawn(|| barrier.wait());
                while !is_rung(&wake) {
                    std::thread::yield_now();
                }
                wake.clear();
            });
            assert!(is_rung(&wake), "nobody processes for the late wait");
            barrier.process(|| wake.clear());
            assert!(!is_rung(&wake), "a wake-up that nobody requested");
        });
    }

    #[test]
    fn a_wait_ends_only_after_everything_sent_before_it_is_processed() {
        let barrier = NoticeBarrier::new(Arc::new(EventFlag::new().unwrap()));
        let (sent, processed) = (AtomicU32::new(0), AtomicU32::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while processed.load(Ordering::Acquire) < 1000 {
                    barrier.process(|| {
                        processed.store(sent.load(Ordering::Acquire), Ordering::Release)
                    });
                }
            });
            for number in 1..=1000 {
                sent.store(number, Ordering::Release);
                barrier.wait();
                assert!(processed.load(Ordering::Acquire) >= number);
            }
        });
    }
}
