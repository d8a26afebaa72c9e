//! Says what a thread waits for, if it waits for long.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::sandbox::{self, Kind};

/// The time after which a wait is reported, and the interval of further reports.
const FIRST: Duration = Duration::from_secs(2);
const NEXT: Duration = Duration::from_secs(10);

/// A wait; it ends when this is dropped.
#[derive(Debug)]
pub struct Waiting {
    /// Closed at the end.
    _end: Option<mpsc::Sender<()>>,
}

/// Reports from now on that `what` is waited for.
pub fn on(what: String) -> Waiting {
    let (end, ended) = mpsc::channel();
    let report = move || {
        sandbox::thread(Kind::Idler);
        let start = Instant::now();
        let mut pause = FIRST;
        while ended.recv_timeout(pause) == Err(mpsc::RecvTimeoutError::Timeout) {
            let seconds = start.elapsed().as_secs();
            tracing::warn!("waiting for {seconds} s for {what}");
            pause = NEXT;
        }
        if pause == NEXT {
            let seconds = start.elapsed().as_secs();
            tracing::warn!("waited {seconds} s for {what}, which has ended now");
        }
    };
    let thread = std::thread::Builder::new().name("waiting".into());
    // Without the thread the wait is silent.
    let started = thread.spawn(report).is_ok();
    Waiting {
        _end: started.then_some(end),
    }
}
