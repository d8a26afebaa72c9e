//! The loop that drives a merge, on a thread of its own. The engine decides what is copied
//! and in which order it becomes durable; this module has the clock and the rate limit.

mod limit;
mod thread;
mod work;

pub use limit::{Permit, RateLimiter, RateMeter};
pub use thread::{Merger, MergerSettings};
pub use work::MergeWork;

/// The default for the most bytes that one batch copies.
pub const BATCH_BYTES: u64 = 16 * 1024 * 1024;
