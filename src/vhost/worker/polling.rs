//! Whether a worker polls before it sleeps.
//!
//! A sleep and a wake-up cost several microseconds (many more on a virtual machine) and,
//! for the driver, a kick; polling costs processor time. A worker polls while polls meet
//! events. After several in vain it rests: first for a few sleeps, then, while single
//! attempts stay in vain, for more and more. So a poll costs next to nothing where it
//! cannot succeed: if events come rarely, or if the driver needs this core to make them.
//!
//! The time that a sleep took is no measure of when its event came: the wake-up takes a
//! part of it that may be longer than any poll.

use std::time::Duration;

/// Polls in vain, one after the other, until polling rests.
const IN_VAIN: u32 = 4;
/// Sleeps without a poll: after the first attempts, and at most.
const REST: u32 = 64;
const REST_MAX: u32 = 8192;

#[derive(Debug)]
pub struct Polling {
    most: Duration,
    /// Polls in vain that remain until the next rest.
    left: u32,
    /// Sleeps until the next poll.
    resting: u32,
    /// The length of the next rest.
    rest: u32,
}

impl Polling {
    /// `most`: the limit of one poll; zero turns polling off.
    pub const fn new(most: Duration) -> Self {
        Self {
            most,
            left: IN_VAIN,
            resting: 0,
            rest: REST,
        }
    }

    /// How long to poll before the next sleep.
    pub const fn budget(&self) -> Duration {
        if self.resting == 0 {
            self.most
        } else {
            Duration::ZERO
        }
    }

    /// A poll has met an event.
    pub const fn hit(&mut self) {
        self.left = IN_VAIN;
        self.rest = REST;
    }

    /// The worker sleeps; if it may poll, it did so in vain.
    pub fn sleeps(&mut self) {
        if self.resting > 0 {
            self.resting -= 1;
            return;
        }
        self.left -= 1;
        if self.left == 0 {
            // One attempt after the rest.
            self.left = 1;
            self.resting = self.rest;
            self.rest = (self.rest * 2).min(REST_MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Duration = Duration::from_micros(50);

    /// `rounds` waits for an event that comes after `gap`. Returns the time spent on
    /// polling, and the number of polls that met the event.
    fn run(polling: &mut Polling, rounds: u32, gap: Duration) -> (Duration, u32) {
        let (mut spent, mut hits) = (Duration::ZERO, 0);
        for _ in 0..rounds {
            let budget = polling.budget();
            assert!(budget <= MOST);
            spent += budget.min(gap);
            if budget > gap {
                polling.hit();
                hits += 1;
            } else {
                polling.sleeps();
            }
        }
        (spent, hits)
    }

    #[test]
    fn polls_meet_what_comes_soon() {
        for gap in [1, 5, 20, 40] {
            let mut polling = Polling::new(MOST);
            let gap = Duration::from_micros(gap);
            assert_eq!(run(&mut polling, 100, gap).1, 100);
            // Also after single events that came late.
            for _ in 0..100 {
                run(&mut polling, 3, MOST);
                assert_eq!(run(&mut polling, 1, gap).1, 1);
            }
        }
    }

    /// Events come rarely, or only once the poll has ended: the driver needs the core.
    #[test]
    fn polls_in_vain_cost_next_to_nothing() {
        let mut polling = Polling::new(MOST);
        run(&mut polling, 100, Duration::ZERO);
        let (spent, hits) = run(&mut polling, 100_000, MOST);
        assert_eq!(hits, 0);
        // The sleeps take a second if each takes ten microseconds.
        assert!(spent < Duration::from_millis(2), "{spent:?}");
        // When events come soon again, polling comes back, and stays.
        let (_, hits) = run(&mut polling, 20_000, Duration::ZERO);
        assert!(hits > 20_000 - 8200, "{hits}");
    }

    #[test]
    fn a_limit_of_zero_turns_polling_off() {
        let mut polling = Polling::new(Duration::ZERO);
        assert_eq!(run(&mut polling, 1000, Duration::ZERO), (Duration::ZERO, 0));
    }
}
