//! Requests of a guest that failed, to be reported now and then: a guest may repeat a request
//! that fails as often as it likes.

use std::time::{Duration, Instant};

use crate::engine::RequestKind;
use crate::io::Errno;

/// The interval between two reports of a view.
const INTERVAL: Duration = Duration::from_secs(10);

/// Requests that were answered with an I/O error since the last report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailedRequests {
    pub count: u64,
    /// Of the last one: what it was, and where.
    pub kind: RequestKind,
    pub sector: u64,
    /// What the storage answered last; `None`: it was not asked, because of the state of the
    /// snapshot or after a flush that failed.
    pub error: Option<Errno>,
}

/// See the module documentation.
#[derive(Debug, Default)]
pub struct Failures {
    since: Option<FailedRequests>,
    reported: Option<Instant>,
}

impl Failures {
    pub fn note(&mut self, kind: RequestKind, sector: u64, error: Option<Errno>) {
        let count = self.since.map_or(0, |failed| failed.count);
        self.since = Some(FailedRequests {
            count: count.saturating_add(1),
            kind,
            sector,
            error,
        });
    }

    /// What is to be reported at `now`, if anything is.
    pub fn due(&mut self, now: Instant) -> Option<FailedRequests> {
        let waits = self
            .reported
            .is_some_and(|last| now.saturating_duration_since(last) < INTERVAL);
        if waits || self.since.is_none() {
            return None;
        }
        self.reported = Some(now);
        self.since.take()
    }

    /// Something is left to be reported.
    pub const fn is_waiting(&self) -> bool {
        self.since.is_some()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn each_failure_is_in_one_report_and_reports_are_rare() {
        let mut failures = Failures::default();
        let start = Instant::now();
        let mut at = |seconds, failed: u64| {
            for sector in 0..failed {
                failures.note(RequestKind::Read, sector, Some(Errno::EIO));
            }
            let due = failures.due(start + Duration::from_secs(seconds));
            (due.map(|f| (f.count, f.sector)), failures.is_waiting())
        };
        assert_eq!(at(0, 0), (None, false));
        assert_eq!(at(1, 1), (Some((1, 0)), false));
        assert_eq!(at(2, 1000), (None, true));
        assert_eq!(at(10, 0), (None, true));
        assert_eq!(at(11, 5), (Some((1005, 4)), false));
        assert_eq!(at(30, 0), (None, false));
    }
}
