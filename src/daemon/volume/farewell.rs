//! Waiting for front ends that have just hung up.

use std::time::{Duration, Instant};

use super::live::{LiveVolume, Tables, lock};
use super::views::ServedView;

/// Longest wait for a session to end whose front end has hung up: its requests may be
/// under way on a disk that does not answer.
const PATIENCE: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(2);

impl LiveVolume {
    /// Waits until no view of the disk belongs to a front end that has hung up, so that
    /// who shuts a guest down and asks at once is not told that it still runs.
    pub fn await_leaving_guests(&self) {
        self.await_leaving(|tables| tables.origin_views.iter().any(ServedView::is_leaving));
    }

    /// The same for the view of one snapshot.
    pub fn await_leaving_guest_of(&self, snapshot: &str) {
        self.await_leaving(|tables| {
            let view = tables.snapshot(snapshot).and_then(|s| s.view.as_ref());
            view.is_some_and(ServedView::is_leaving)
        });
    }

    fn await_leaving(&self, leaves: impl Fn(&Tables) -> bool) {
        let start = Instant::now();
        while leaves(&lock(&self.tables)) && start.elapsed() < PATIENCE {
            std::thread::sleep(PAUSE);
        }
    }
}
