//! How fast something advances, and how long it will take.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The speed is the mean over this time.
const WINDOW: Duration = Duration::from_secs(10);
/// Samples closer together than this are one, which bounds the list.
const SAMPLE: Duration = Duration::from_millis(250);
/// No speed is known before this much history.
const HISTORY_MIN: Duration = Duration::from_secs(1);

/// The mean speed over the last seconds.
#[derive(Debug, Default)]
pub struct Speed {
    samples: VecDeque<(Instant, u64)>,
}

impl Speed {
    /// At `now`, `done` bytes are done in all.
    pub fn note(&mut self, now: Instant, done: u64) {
        let recent = |at: &Instant| now.saturating_duration_since(*at) < SAMPLE;
        if self.samples.back().is_some_and(|(at, _)| recent(at)) {
            return;
        }
        self.samples.push_back((now, done));
        // One sample from before the window remains: the speed is counted from it.
        while let Some((at, _)) = self.samples.get(1)
            && now.saturating_duration_since(*at) > WINDOW
        {
            self.samples.pop_front();
        }
    }

    /// Bytes per second until `now`, when `done` bytes are done; `None` while unknown.
    pub fn per_second(&self, now: Instant, done: u64) -> Option<u64> {
        let (from, before) = self.samples.front()?;
        let span = now.saturating_duration_since(*from);
        if span < HISTORY_MIN {
            return None;
        }
        let bytes = u128::from(done.saturating_sub(*before));
        u64::try_from(bytes * 1000 / span.as_millis().max(1)).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_speed_is_that_of_the_last_seconds_and_takes_little_memory() {
        let start = Instant::now();
        let mut speed = Speed::default();
        assert_eq!(speed.per_second(start, 0), None);
        // Slow for a minute, then ten times as fast.
        let mut done = 0;
        for tick in 0..1200_u64 {
            let at = start + Duration::from_millis(tick * 100);
            done += if tick < 600 { 100 } else { 1000 };
            speed.note(at, done);
        }
        let end = start + Duration::from_millis(119_900);
        assert!(speed.samples.len() < 50, "{}", speed.samples.len());
        let rate = speed.per_second(end, done).unwrap();
        assert!((9_900..=10_100).contains(&rate), "{rate}");
        // Nothing happens any more.
        let later = end + Duration::from_secs(3600);
        assert!(speed.per_second(later, done).unwrap() < 100);
    }

    #[test]
    fn no_speed_is_claimed_in_the_first_second() {
        let start = Instant::now();
        let mut speed = Speed::default();
        speed.note(start, 0);
        let soon = start + Duration::from_millis(900);
        assert_eq!(speed.per_second(soon, 1 << 30), None);
    }
}
