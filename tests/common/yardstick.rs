//! How long the machine kept a thread waiting that had work to do. A time that is promised
//! is the program's; on a machine that is shared this part of what was measured is not.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// Of work, and then of sleep, in turn: as a program that waits for this and that.
const STEP: Duration = Duration::from_millis(1);
/// Delays up to here are those of a timer on a machine that is free, and do not count.
const USUAL: Duration = Duration::from_millis(2);

/// A delay of a thread, which ended then.
type Delay = (Instant, Duration);

/// A thread that works and sleeps, and notes when it had to wait for a processor.
pub struct Yardstick {
    ends: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Delay>>,
}

impl Yardstick {
    pub fn start() -> Self {
        let ends = Arc::<AtomicBool>::default();
        let theirs = Arc::clone(&ends);
        let thread = std::thread::spawn(move || {
            let mut delays = Vec::new();
            while !theirs.load(Ordering::Acquire) {
                let (start, before) = (Instant::now(), worked());
                while worked() - before < STEP {}
                std::thread::sleep(STEP);
                let (end, work) = (Instant::now(), worked() - before);
                let delay = (end - start).saturating_sub(work + STEP);
                if delay > USUAL {
                    delays.push((end, delay));
                }
            }
            delays
        });
        Self { ends, thread }
    }

    pub fn end(self) -> Delays {
        self.ends.store(true, Ordering::Release);
        Delays(self.thread.join().unwrap())
    }
}

/// When the machine kept a thread waiting.
pub struct Delays(Vec<Delay>);

impl Delays {
    /// How long it did so between two moments.
    pub fn between(&self, start: Instant, end: Instant) -> Duration {
        let within = |(until, delay): &Delay| {
            let from = until.checked_sub(*delay).unwrap_or(start).max(start);
            (*until).min(end).saturating_duration_since(from)
        };
        self.0.iter().map(within).sum()
    }
}

/// Processor time of the calling thread.
fn worked() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.try_into().unwrap())
}

#[test]
fn delays_count_where_they_overlap_what_is_measured() {
    let start = Instant::now();
    let ms = Duration::from_millis;
    let delays = Delays(vec![(start + ms(100), ms(50)), (start + ms(300), ms(100))]);
    let between = |from, to| delays.between(start + ms(from), start + ms(to));
    assert_eq!(between(0, 1000), ms(150));
    assert_eq!(between(80, 250), ms(70));
    assert_eq!(between(101, 199), ms(0));
}
