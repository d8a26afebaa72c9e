//! How long a worker polls before it sleeps.
//!
//! A sleep and a wake-up cost several microseconds and, for the driver, a kick; polling
//! costs processor time. The length follows what was seen: it grows while the next event
//! comes soon enough for a longer poll to meet it, and shrinks while it comes too late for
//! any. If events keep coming just after polling has ended, the poller is what keeps the
//! driver from running (they share a core), and polling rests for a while.

use std::time::Duration;

/// The first length.
const FIRST: Duration = Duration::from_micros(4);
/// Polls in a row that ended shortly before their event, until polling rests.
const STARVED: u32 = 4;
/// How many sleeps polling rests for; doubled each time up to the second number.
const REST: (u32, u32) = (64, 8192);

#[derive(Debug)]
pub struct Polling {
    most: Duration,
    now: Duration,
    /// Polls in a row that ended shortly before their event.
    starved: u32,
    /// Sleeps until polling is tried again.
    resting: u32,
    /// The length of the next rest.
    rest: u32,
}

impl Polling {
    /// `most`: the limit of one poll; zero turns polling off.
    pub const fn new(most: Duration) -> Self {
        Self {
            most,
            now: Duration::ZERO,
            starved: 0,
            resting: 0,
            rest: REST.0,
        }
    }

    /// Polling is not turned off.
    pub const fn is_possible(&self) -> bool {
        !self.most.is_zero()
    }

    /// How long to poll before the next sleep.
    pub const fn budget(&self) -> Duration {
        self.now
    }

    /// A poll has met an event.
    pub const fn hit(&mut self) {
        self.starved = 0;
        self.rest = REST.0;
    }

    /// The worker slept for `slept` after it had polled for `polled` in vain.
    pub fn slept(&mut self, polled: Duration, slept: Duration) {
        if self.resting > 0 {
            self.resting -= 1;
            return;
        }
        if slept >= polled {
            self.starved = 0;
        } else {
            self.starved += 1;
        }
        if self.starved == STARVED {
            self.starved = 0;
            self.now = Duration::ZERO;
            self.resting = self.rest;
            self.rest = (self.rest * 2).min(REST.1);
        } else if polled + slept <= self.most {
            self.now = (self.now * 2).max(FIRST).min(self.most);
        } else {
            self.now /= 2;
            if self.now < FIRST {
                self.now = Duration::ZERO;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Duration = Duration::from_micros(50);
    /// What it takes to wake a thread.
    const WAKE: Duration = Duration::from_micros(3);

    fn micros(n: u64) -> Duration {
        Duration::from_micros(n)
    }

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
                polling.slept(budget, gap - budget + WAKE);
            }
        }
        (spent, hits)
    }

    #[test]
    fn polling_grows_until_it_meets_what_comes_soon() {
        for gap in [1, 5, 20, 40] {
            let mut polling = Polling::new(MOST);
            let (_, hits) = run(&mut polling, 100, micros(gap));
            assert!(hits >= 90, "{hits} of 100 at {gap} us");
        }
    }

    #[test]
    fn polling_ends_when_events_come_rarely() {
        let mut polling = Polling::new(MOST);
        run(&mut polling, 100, micros(10));
        assert!(!polling.budget().is_zero());
        let (spent, hits) = run(&mut polling, 1000, micros(200));
        assert!(hits == 0 && spent <= MOST * 2, "{spent:?}");
        assert!(polling.budget().is_zero());
    }

    /// The driver runs only while the worker sleeps.
    #[test]
    fn polling_rests_while_it_keeps_the_driver_from_running() {
        let mut polling = Polling::new(MOST);
        let mut spent = Duration::ZERO;
        for _ in 0..10_000 {
            let budget = polling.budget();
            spent += budget;
            polling.slept(budget, WAKE);
        }
        // Of about 30 ms that the driver and the wake-ups take.
        assert!(spent < Duration::from_millis(1), "{spent:?}");
        // Alone on its core again, it gets back to polling.
        let (_, hits) = run(&mut polling, 20_000, micros(5));
        assert!(hits > 10_000, "{hits}");
    }

    #[test]
    fn a_limit_of_zero_turns_polling_off() {
        let mut polling = Polling::new(Duration::ZERO);
        assert!(!polling.is_possible());
        assert_eq!(run(&mut polling, 100, micros(1)), (Duration::ZERO, 0));
    }
}
