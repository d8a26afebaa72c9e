//! The rate limit of a merge, and the measurement of its rate. Both take the time as an
//! argument; only the merger's loop reads the clock.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The smallest batch in bytes that a limit leads to.
const BATCH_MIN: u64 = 64 * 1024;
/// A limited merge copies at most this fraction of its rate at once, so that the rate
/// holds over any second.
const BATCHES_PER_SECOND: u64 = 8;
/// Window of the displayed rate.
const METER_WINDOW: Duration = Duration::from_secs(5);

/// Whether the next batch may start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permit {
    /// Now, with at most this many bytes.
    Now { max_bytes: u64 },
    /// Not before this time has passed.
    After(Duration),
}

/// A token bucket in bytes. A batch may overdraw it (a chunk cannot be halved);
/// the next one waits until the debt is paid.
#[derive(Debug)]
pub struct RateLimiter {
    /// Bytes per second; 0: no limit.
    rate: u64,
    batch_max: u64,
    /// When the bucket is (or was) level.
    level_at: Option<Instant>,
}

impl RateLimiter {
    /// `rate` in bytes per second, 0 for no limit; `batch_max` in bytes.
    pub fn new(rate: u64, batch_max: u64) -> Self {
        Self {
            rate,
            batch_max,
            level_at: None,
        }
    }

    /// A new rate forgives the debt made at the old one.
    pub fn set_rate(&mut self, rate: u64) {
        if rate != self.rate {
            self.rate = rate;
            self.level_at = None;
        }
    }

    /// Bytes of a batch without a limit.
    pub const fn batch_max(&self) -> u64 {
        self.batch_max
    }

    pub fn permit(&self, now: Instant) -> Permit {
        if self.rate == 0 {
            return Permit::Now {
                max_bytes: self.batch_max,
            };
        }
        match self
            .level_at
            .map(|level| level.saturating_duration_since(now))
        {
            Some(debt) if !debt.is_zero() => Permit::After(debt),
            _ => {
                let share = self.rate.div_euclid(BATCHES_PER_SECOND).max(BATCH_MIN);
                Permit::Now {
                    max_bytes: share.min(self.batch_max),
                }
            }
        }
    }

    /// Charges a batch. Idle time earns nothing: the bucket holds no savings, so
    /// that a pause is not followed by a burst.
    pub fn charge(&mut self, now: Instant, bytes: u64) {
        if self.rate == 0 {
            return;
        }
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.rate);
        let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let from = self.level_at.map_or(now, |level| level.max(now));
        // A sum beyond the clock's range is centuries away: any far time will do.
        self.level_at = from.checked_add(cost).or(Some(from));
    }
}

/// Bytes per second over the last seconds.
#[derive(Debug, Default)]
pub struct RateMeter {
    samples: VecDeque<(Instant, u64)>,
    started: Option<Instant>,
}

impl RateMeter {
    /// Records closer together than this are one sample, which bounds the list.
    const SAMPLE: Duration = Duration::from_millis(50);

    /// `bytes` were copied just now.
    pub fn record(&mut self, now: Instant, bytes: u64) {
        self.started.get_or_insert(now);
        self.forget(now);
        match self.samples.back_mut() {
            Some((at, sum)) if now.saturating_duration_since(*at) < Self::SAMPLE => {
                *sum = sum.saturating_add(bytes);
            }
            _ => self.samples.push_back((now, bytes)),
        }
    }

    /// The mean rate over the window, or since the first record if that is less
    /// far back; 0 before a quarter of a second of history.
    pub fn rate(&mut self, now: Instant) -> u64 {
        self.forget(now);
        let Some(started) = self.started else {
            return 0;
        };
        let span = now.saturating_duration_since(started).min(METER_WINDOW);
        if span < Duration::from_millis(250) {
            return 0;
        }
        let bytes: u128 = self.samples.iter().map(|&(_, b)| u128::from(b)).sum();
        u64::try_from(bytes * 1000 / span.as_millis().max(1)).unwrap_or(u64::MAX)
    }

    fn forget(&mut self, now: Instant) {
        while self
            .samples
            .front()
            .is_some_and(|&(at, _)| now.saturating_duration_since(at) > METER_WINDOW)
        {
            self.samples.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// Runs the limiter as the loop would, for `span`, with batches of `batch`
    /// bytes or less; returns the bytes copied.
    fn run(limiter: &mut RateLimiter, span: Duration, batch: Option<u64>) -> u64 {
        let start = Instant::now();
        let (mut at, mut copied) = (start, 0);
        while at < start + span {
            match limiter.permit(at) {
                Permit::Now { max_bytes } => {
                    let bytes = batch.unwrap_or(max_bytes);
                    limiter.charge(at, bytes);
                    copied += bytes;
                }
                Permit::After(wait) => at += wait,
            }
        }
        copied
    }

    #[test]
    fn the_rate_holds_over_every_second() {
        let mut limiter = RateLimiter::new(10 * MIB, 16 * MIB);
        for _ in 0..3 {
            let mut fresh = RateLimiter::new(10 * MIB, 16 * MIB);
            let copied = run(&mut fresh, Duration::from_secs(1), None);
            assert!((9 * MIB..=12 * MIB).contains(&copied), "{copied}");
        }
        let copied = run(&mut limiter, Duration::from_secs(100), None);
        assert!((990 * MIB..=1010 * MIB).contains(&copied), "{copied}");
    }

    #[test]
    fn a_chunk_larger_than_the_rate_is_paid_off_before_the_next() {
        let mut limiter = RateLimiter::new(MIB, 16 * MIB);
        let now = Instant::now();
        limiter.charge(now, 32 * MIB);
        assert_eq!(limiter.permit(now), Permit::After(Duration::from_secs(32)));
        assert!(matches!(
            limiter.permit(now + Duration::from_secs(32)),
            Permit::Now { .. }
        ));
    }

    #[test]
    fn idle_time_earns_no_burst() {
        let mut limiter = RateLimiter::new(MIB, 16 * MIB);
        let now = Instant::now();
        limiter.charge(now, MIB);
        let later = now + Duration::from_secs(3600);
        limiter.charge(later, MIB);
        assert_eq!(limiter.permit(later), Permit::After(Duration::from_secs(1)));
    }

    #[test]
    fn without_a_limit_batches_are_full_and_never_wait() {
        let mut limiter = RateLimiter::new(0, 16 * MIB);
        let now = Instant::now();
        limiter.charge(now, u64::MAX);
        assert_eq!(
            limiter.permit(now),
            Permit::Now {
                max_bytes: 16 * MIB
            }
        );
    }

    #[test]
    fn a_new_rate_takes_effect_at_once() {
        let mut limiter = RateLimiter::new(1, 16 * MIB);
        let now = Instant::now();
        limiter.charge(now, 1 << 30);
        limiter.set_rate(100 * MIB);
        assert!(matches!(limiter.permit(now), Permit::Now { .. }));
    }

    #[test]
    fn absurd_charges_do_not_overflow() {
        let mut limiter = RateLimiter::new(1, 16 * MIB);
        let now = Instant::now();
        for _ in 0..4 {
            limiter.charge(now, u64::MAX);
        }
        assert!(matches!(limiter.permit(now), Permit::After(_)));
    }

    #[test]
    fn the_meter_shows_the_last_seconds_and_stays_small() {
        let mut meter = RateMeter::default();
        let start = Instant::now();
        assert_eq!(meter.rate(start), 0);
        for ms in 0..10_000u64 {
            meter.record(start + Duration::from_millis(ms), MIB / 100);
        }
        let end = start + Duration::from_secs(10);
        let rate = meter.rate(end);
        assert!(meter.samples.len() <= 101);
        assert!(rate.abs_diff(10 * MIB) < MIB, "{rate}");
        assert_eq!(meter.rate(end + Duration::from_secs(6)), 0);
    }
}
