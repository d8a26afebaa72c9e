//! What the service manager is told while the volume is served, and what it asks for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::control::ControlServer;
use crate::daemon::volume::{LiveVolume, lock};
use crate::supervisor;

/// Reads the configuration again and applies what can change in a running daemon.
pub type Reload = Box<dyn FnMut()>;

/// How often the progress of a merge is told.
const PROGRESS: Duration = Duration::from_secs(1);
/// How often it is looked at what the daemon does, at most.
const LOOK: Duration = Duration::from_millis(250);

/// The main thread's part in the talk with the service manager.
pub struct Manager {
    reload: Option<Reload>,
    /// What was told last; `None`: there is no manager.
    told: Option<String>,
    /// Not before this.
    next_look: Instant,
    watchdog: Option<Watchdog>,
}

/// Proof that the daemon is alive: the main thread sends it, and only after the control thread has
/// shown that it is able to answer.
struct Watchdog {
    interval: Duration,
    next: Instant,
    /// Of the control thread, with its last value; `None`: there is none.
    pulse: Option<(Arc<AtomicU64>, u64)>,
}

impl Manager {
    /// `reload`: what a reload does, if the daemon has a configuration to read.
    pub fn new(reload: Option<Reload>) -> Self {
        Self {
            reload,
            told: supervisor::is_notified().then(String::new),
            next_look: Instant::now(),
            watchdog: None,
        }
    }

    /// Front ends can connect to `volume`, and clients to `control`.
    pub fn ready(&mut self, volume: &LiveVolume, control: Option<&ControlServer>) {
        if let Some(told) = &mut self.told {
            *told = describe(volume);
            supervisor::ready(told);
        }
        self.watchdog = supervisor::watchdog_interval().map(|limit| {
            // As systemd recommends: half of the time after which it acts.
            let interval = limit / 2;
            let pulse = control.map(|control| control.pulse(interval / 2));
            Watchdog {
                interval,
                next: Instant::now(),
                pulse: pulse.map(|pulse| (pulse, 0)),
            }
        });
    }

    /// Reads the configuration again, if there is one.
    pub fn reload(&mut self) {
        if let Some(reload) = &mut self.reload {
            supervisor::reloading();
            reload();
            if let Some(told) = &self.told {
                supervisor::ready(told);
            }
        }
    }

    /// The daemon begins to stop, and its control thread ends.
    pub fn stopping(&mut self) {
        if self.told.take().is_some() {
            supervisor::stopping();
        }
        if let Some(watchdog) = &mut self.watchdog {
            watchdog.pulse = None;
        }
    }

    /// Tells what is new. Returns when to call this again at the latest.
    pub fn tell(&mut self, volume: &LiveVolume) -> Option<Duration> {
        let mut next = self.watchdog.as_mut().map(Watchdog::send);
        if let Some(told) = &mut self.told {
            let wait = self.next_look.saturating_duration_since(Instant::now());
            let mut look = Some(wait);
            if wait.is_zero() {
                let text = describe(volume);
                if *told != text {
                    supervisor::status(&text);
                    *told = text;
                }
                self.next_look = Instant::now() + LOOK;
                look = lock(&volume.tables).merging.as_ref().map(|_| PROGRESS);
            }
            next = next.into_iter().chain(look).min();
        }
        next
    }
}

impl Watchdog {
    /// Sends the proof if it is time for it and it can be given.
    fn send(&mut self) -> Duration {
        let now = Instant::now();
        if now >= self.next {
            self.next = now + self.interval;
            if self.is_alive() {
                supervisor::watchdog();
            }
        }
        self.next.saturating_duration_since(now)
    }

    fn is_alive(&mut self) -> bool {
        let Some((pulse, last)) = &mut self.pulse else {
            return true;
        };
        let before = std::mem::replace(last, pulse.load(Ordering::Relaxed));
        // The first proof is that of the start.
        before == 0 || *last != before
    }
}

/// What the daemon does, in one line.
fn describe(volume: &LiveVolume) -> String {
    let path = &volume.facts.path;
    let snapshots = lock(&volume.tables).snapshots.len();
    match volume.merge_progress() {
        Some(merge) => {
            let all = merge.chunks_done.saturating_add(merge.chunks_left).max(1);
            let percent = merge.chunks_done.saturating_mul(100) / all;
            let state = match (&merge.error, merge.paused) {
                (Some(_), _) => ", which has stopped after an error",
                (None, true) => ", which is paused",
                (None, false) => "",
            };
            format!(
                "serving {path}, merging {}: {percent} %{state}",
                merge.snapshot
            )
        }
        None if snapshots == 1 => format!("serving {path} with 1 snapshot"),
        None => format!("serving {path} with {snapshots} snapshots"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_control_thread_that_does_not_answer_is_no_proof_of_life() {
        let pulse = Arc::<AtomicU64>::default();
        let mut watchdog = Watchdog {
            interval: Duration::from_secs(1),
            next: Instant::now(),
            pulse: Some((Arc::clone(&pulse), 0)),
        };
        assert!(watchdog.is_alive());
        pulse.store(1, Ordering::Relaxed);
        assert!(watchdog.is_alive());
        pulse.store(2, Ordering::Relaxed);
        assert!(watchdog.is_alive());
        assert!(!watchdog.is_alive());
        pulse.store(3, Ordering::Relaxed);
        assert!(watchdog.is_alive());
        watchdog.pulse = None;
        assert!(watchdog.is_alive());
    }
}
