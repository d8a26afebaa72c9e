//! What a view does, from two of its statuses.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Latencies that are remembered: those of the last intervals.
const HISTORY: usize = 240;

/// Sums since the daemon began to serve a view; only `in_flight` can become less.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub reads: u64,
    /// Also zeroing and discards.
    pub writes: u64,
    pub read_bytes: u64,
    pub write_bytes: u64,
    /// Of all requests together, in microseconds.
    pub latency_us: u64,
    /// All requests that were answered.
    pub requests: u64,
    pub in_flight: u64,
}

/// What happened in an interval, per second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    pub reads: u64,
    pub writes: u64,
    pub read_bytes: u64,
    pub write_bytes: u64,
    /// Mean of a request in microseconds; `None` if none was answered.
    pub latency_us: Option<u64>,
}

impl Rates {
    /// From `before` to `now`, `span` later. `None` if another daemon has begun to count, or
    /// without a span.
    pub fn between(before: &Counters, now: &Counters, span: Duration) -> Option<Self> {
        let millis = span.as_millis();
        if millis == 0 {
            return None;
        }
        let per_second = |before: u64, now: u64| {
            let more = u128::from(now.checked_sub(before)?);
            u64::try_from(more * 1000 / millis).ok()
        };
        let requests = now.requests.checked_sub(before.requests)?;
        let latency = now.latency_us.checked_sub(before.latency_us)?;
        Some(Self {
            reads: per_second(before.reads, now.reads)?,
            writes: per_second(before.writes, now.writes)?,
            read_bytes: per_second(before.read_bytes, now.read_bytes)?,
            write_bytes: per_second(before.write_bytes, now.write_bytes)?,
            latency_us: latency.checked_div(requests),
        })
    }
}

/// What is known of a view over time.
#[derive(Debug, Default)]
pub struct History {
    last: Option<(Instant, Counters)>,
    rates: Option<Rates>,
    /// Mean latencies in microseconds, the newest last; `None` for an interval without requests.
    latencies: VecDeque<Option<u64>>,
}

impl History {
    /// The counters are `now` at `at`.
    pub fn note(&mut self, at: Instant, now: Counters) {
        self.rates = self.last.as_ref().and_then(|(then, before)| {
            Rates::between(before, &now, at.saturating_duration_since(*then))
        });
        if self.last.is_some() {
            let latency = self.rates.and_then(|rates| rates.latency_us);
            self.latencies.push_back(latency);
        }
        while self.latencies.len() > HISTORY {
            self.latencies.pop_front();
        }
        self.last = Some((at, now));
    }

    /// Of the last interval; `None` before there is one.
    pub const fn rates(&self) -> Option<&Rates> {
        self.rates.as_ref()
    }

    /// Requests under way.
    pub fn in_flight(&self) -> u64 {
        self.last.map_or(0, |(_, counters)| counters.in_flight)
    }

    /// The last `count` latencies.
    pub fn latencies(&self, count: usize) -> Vec<Option<u64>> {
        let skip = self.latencies.len().saturating_sub(count);
        self.latencies.iter().skip(skip).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters(requests: u64) -> Counters {
        Counters {
            reads: requests,
            writes: requests * 2,
            read_bytes: requests * 4096,
            write_bytes: requests * 8192,
            latency_us: requests * 3 * 500,
            requests: requests * 3,
            in_flight: 7,
        }
    }

    #[test]
    fn rates_are_per_second_whatever_the_interval() {
        for (span, requests) in [(500, 100), (1000, 200), (2000, 400)] {
            let before = counters(1_000_000);
            let now = counters(1_000_000 + requests);
            assert_eq!(
                Rates::between(&before, &now, Duration::from_millis(span)),
                Some(Rates {
                    reads: 200,
                    writes: 400,
                    read_bytes: 200 * 4096,
                    write_bytes: 200 * 8192,
                    latency_us: Some(500),
                })
            );
        }
    }

    #[test]
    fn another_daemon_or_no_time_gives_no_rates_and_no_requests_no_latency() {
        let second = Duration::from_secs(1);
        let (few, many) = (counters(3), counters(1000));
        assert_eq!(Rates::between(&many, &few, second), None);
        assert_eq!(Rates::between(&few, &many, Duration::ZERO), None);
        let idle = Rates::between(&many, &many, second);
        assert_eq!(idle, Some(Rates::default()));
        let all = Counters {
            read_bytes: u64::MAX,
            ..many
        };
        assert!(Rates::between(&few, &all, second).is_some());
    }

    #[test]
    fn a_history_begins_with_the_second_status_and_stays_bounded() {
        let start = Instant::now();
        let mut history = History::default();
        history.note(start, counters(5));
        assert!(history.rates().is_none() && history.latencies(9).is_empty());
        for second in 1..1000_u64 {
            let sum = if second == 999 { 0 } else { second };
            history.note(start + Duration::from_secs(second), counters(5 + sum));
        }
        assert_eq!(history.latencies.len(), HISTORY);
        // The last one was another daemon's.
        assert_eq!(history.latencies(2), [Some(500), None]);
        assert_eq!((history.rates(), history.in_flight()), (None, 7));
    }
}
