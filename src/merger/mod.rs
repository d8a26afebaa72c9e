//! The merge, moved forward: on a thread of its own in the daemon, on the
//! caller's thread offline. What is copied, and in which order things become
//! durable, the engine decides; here are the clock and the limits.

mod limit;
mod thread;
mod work;

pub use limit::{Permit, RateLimiter, RateMeter};
pub use thread::{Merger, MergerSettings};
pub use work::MergeWork;

/// Bytes that one batch copies at most, unless told otherwise.
pub const BATCH_BYTES: u64 = 16 * 1024 * 1024;
