//! What the guests of a view have done, as the status shows it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Sums since the daemon started to serve the view, of all its front ends. They only grow,
/// except for `in_flight`. A request counts when it has been answered, also with an error.
/// Latencies are from when a request was taken from the ring to its answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct ViewIo {
    /// Requests that have been answered.
    pub reads: u64,
    pub writes: u64,
    pub write_zeroes: u64,
    pub discards: u64,
    pub flushes: u64,
    /// Requests for the disk's identifier, and those that were refused as malformed.
    pub others: u64,
    /// Bytes of the requests that succeeded.
    pub read_bytes: u64,
    pub write_bytes: u64,
    pub write_zeroes_bytes: u64,
    pub discard_bytes: u64,
    /// Requests that were answered with an error.
    pub errors: u64,
    /// Requests that were taken and are not answered.
    pub in_flight: u64,
    /// The latencies of all answered requests together, in microseconds.
    pub latency_us_sum: u64,
    /// Of the reads, of the writes and of the flushes among them.
    pub read_latency_us_sum: u64,
    pub write_latency_us_sum: u64,
    pub flush_latency_us_sum: u64,
}
