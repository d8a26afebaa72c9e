//! One turn of the merge, for whoever has a thread to run it on.

use std::time::{Duration, Instant};

use super::limit::{Permit, RateLimiter};
use crate::engine::{MergeStep, Notice};
use crate::executor::{Executor, Output};

/// How long nobody may look whether a batch under way has ended: only a guard,
/// the engine rings when it has.
const GUARD: Duration = Duration::from_millis(200);

/// A merger port with the state of its merge loop.
pub struct MergeWork {
    executor: Executor,
    limiter: RateLimiter,
    /// The engine may have a batch for us.
    wanted: bool,
    /// A batch was started and not seen to end.
    running: bool,
    outputs: Vec<Output>,
}

/// What [`MergeWork::step`] did and wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stepped {
    /// Bytes of the batch that was started, 0 for none.
    pub started_bytes: u64,
    /// Call again when woken, or after this time.
    pub again: Option<Duration>,
}

impl MergeWork {
    /// `executor` has the merger's role. Looks for work at the first step, so a
    /// merge that began before is taken up.
    pub fn new(executor: Executor, limiter: RateLimiter) -> Self {
        Self {
            executor,
            limiter,
            wanted: true,
            running: false,
            outputs: Vec::new(),
        }
    }

    pub fn executor(&mut self) -> &mut Executor {
        &mut self.executor
    }

    pub fn limiter(&mut self) -> &mut RateLimiter {
        &mut self.limiter
    }

    /// Does what can be done now. With `stopping`, no background batch is
    /// started; chunks that guest writes wait for still are.
    pub fn step(&mut self, now: Instant, stopping: bool) -> Stepped {
        self.executor.turn(&mut self.outputs);
        for output in self.outputs.drain(..) {
            match output {
                Output::Notice(Notice::MergeWork { .. }) => self.wanted = true,
                other @ (Output::Notice(_) | Output::ControlDone { .. }) => {
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
            // What guest writes wait for is merged in any case, and as much of it
            // as a batch can hold: the limit must not make them wait for several.
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
                    // Held back by the limit, there is work left to come back to.
                    match permit {
                        Permit::After(wait) => again = Some(wait),
                        Permit::Now { .. } => self.wanted = false,
                    }
                }
            }
            self.executor.turn(&mut self.outputs);
            if self
                .outputs
                .iter()
                .any(|r| matches!(r, Output::Notice(Notice::MergeWork { .. })))
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
