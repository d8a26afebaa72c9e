//! Requests that take long, as the status and events show them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Requests of a guest that take long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SlowIo {
    /// How many have been under way for at least 3 seconds.
    pub requests: u64,
    /// Of the oldest: for how long, what it is, and where.
    pub seconds: u64,
    pub operation: SlowOperation,
    pub sector: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SlowOperation {
    Read,
    Write,
    Flush,
    Discard,
}

impl std::fmt::Display for SlowIo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            requests,
            seconds,
            operation,
            sector,
        } = self;
        let oldest = match operation {
            SlowOperation::Read => format!("a read at sector {sector}"),
            SlowOperation::Write => format!("a write at sector {sector}"),
            SlowOperation::Flush => "a flush".to_owned(),
            SlowOperation::Discard => format!("a discard at sector {sector}"),
        };
        let these = match requests {
            1 => "1 request takes long".to_owned(),
            _ => format!("{requests} requests take long"),
        };
        write!(
            f,
            "{these}; the oldest, {oldest}, has been under way for {seconds} s"
        )
    }
}
