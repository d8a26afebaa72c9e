//! One step of the merge, independent of the thread that runs it.

use std::time::{Duration, Instant};

use super::limit::{Permit, RateLimiter};
use crate::engine::{MergeStep, Notice};
use crate::executor::{Executor, Report};

/// The longest time between two checks of a batch under way. It is only a safeguard: the
/// engine wakes the merger when the batch has ended.
const GUARD: Duration = Duration::from_millis(200);

/// A merger port with the state of its merge loop.
pub struct MergeWork {
    executor: Executor,
    limiter: RateLimiter,
    /// The engine may have a batch to merge.
    wanted: bool,
    /// A batch was started, and its end was not seen yet.
    running: bool,
    reports: Vec<Report>,
}

/// What [`MergeWork::step`] did, and when it must be called again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stepped {
    /// Bytes of the batch that was started, 0 for none.
    pub started_bytes: u64,
    /// Call again when woken, or after this time.
    pub again: Option<Duration>,
}

impl MergeWork {
    /// `executor` has the merger's role. The first step looks for work, so that a merge
    /// that began earlier continues.
    pub fn new(executor: Executor, limiter: RateLimiter) -> Self {
        Self {
            executor,
            limiter,
            wanted: true,
            running: false,
            reports: Vec::new(),
        }
    }

    pub fn executor(&mut self) -> &mut Executor {
        &mut self.executor
    }

    pub fn limiter(&mut self) -> &mut RateLimiter {
        &mut self.limiter
    }

    /// Does what can be done now. With `stopping`, no background batch is started, but
    /// chunks that guest writes wait for are still merged.
    pub fn step(&mut self, now: Instant, stopping: bool) -> Stepped {
        self.executor.turn(&mut self.reports);
        for report in self.reports.drain(..) {
            match report {
                Report::Notice(Notice::MergeWork { .. }) => self.wanted = true,
                other @ (Report::Notice(_) | Report::ControlDone { .. }) => {
                    tracing::debug!(?other, "not for the merger");
                }
            }
        }
        let mut started_bytes = 0;
        let mut again = None;
        if self.wanted || self.running {
            let permit = if stopping {
                Permit::After(GUARD)
            } else {
                self.limiter.permit(now)
            };
            let background = match permit {
                Permit::Now { max_bytes } => max_bytes,
                Permit::After(_) => 0,
            };
            // Chunks that guest writes wait for are merged in any case, as many as one
            // batch holds: the limit must not make the writes wait for several batches.
            let urgent = self.limiter.batch_max();
            match self.executor.merge_step(background, urgent) {
                MergeStep::Started { bytes } => {
                    if background > 0 {
                        self.limiter.charge(now, bytes);
                    }
                    (started_bytes, self.running) = (bytes, true);
                    again = Some(GUARD);
                }
                MergeStep::Running => {
                    self.running = true;
                    again = Some(GUARD);
                }
                MergeStep::Idle => {
                    self.running = false;
                    // If the limit delayed the batch, there is still work to do.
                    match permit {
                        Permit::After(wait) => again = Some(wait),
                        Permit::Now { .. } => self.wanted = false,
                    }
                }
            }
            self.executor.turn(&mut self.reports);
            if self
                .reports
                .iter()
                .any(|r| matches!(r, Report::Notice(Notice::MergeWork { .. })))
            {
                again = Some(Duration::ZERO);
            }
        }
        Stepped {
            started_bytes,
            again,
        }
    }

    /// No batch under way, no I/O.
    pub fn is_at_rest(&self) -> bool {
        !self.running && self.executor.is_idle()
    }
}

#[cfg(test)]
#[path = "work_tests.rs"]
#[allow(
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    clippy::indexing_slicing
)]
mod tests;
