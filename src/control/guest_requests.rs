//! Requests of guests that are worth telling: those that take long, and those that failed.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Requests of a guest that were answered with an I/O error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FailedRequests {
    /// How many, since the last such event of this view.
    pub requests: u64,
    /// Of the last one: what it is, and where.
    pub operation: GuestOperation,
    pub sector: u64,
    /// What the storage answered; `null`: it was not asked, because of the state of the snapshot
    /// or after a flush that failed.
    pub error: Option<String>,
}

impl std::fmt::Display for FailedRequests {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let last = self.operation.at(self.sector);
        match self.requests {
            1 => write!(f, "1 request failed, {last}")?,
            _ => write!(f, "{} requests failed, the last one {last}", self.requests)?,
        }
        match &self.error {
            Some(error) => write!(f, ": {error}"),
            None => f.write_str(": the state of the disk or snapshot does not permit it"),
        }
    }
}

/// Requests of a guest that take long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SlowIo {
    /// How many have been under way for at least 3 seconds.
    pub requests: u64,
    /// Of the oldest: for how long, what it is, and where.
    pub seconds: u64,
    pub operation: GuestOperation,
    pub sector: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum GuestOperation {
    Read,
    Write,
    Flush,
    Discard,
}

impl GuestOperation {
    fn at(self, sector: u64) -> String {
        match self {
            Self::Read => format!("a read at sector {sector}"),
            Self::Write => format!("a write at sector {sector}"),
            Self::Flush => "a flush".to_owned(),
            Self::Discard => format!("a discard at sector {sector}"),
        }
    }
}

impl std::fmt::Display for SlowIo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            requests,
            seconds,
            operation,
            sector,
        } = self;
        let oldest = operation.at(*sector);
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
