//! Finds requests that take long, whatever they wait for, and although the thread that
//! serves them may hang itself.
//!
//! A worker marks the slots of its requests, which is two stores for each. A thread looks
//! at all slots once a second while requests are under way: a slot whose mark has not
//! changed for [`SLOW`] holds a request that takes long. The thread sleeps while nothing is
//! under way. It also reports the requests that failed, so that no worker waits for a report.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};

use super::ViewHooks;
use super::failures::Failures;
use super::requests::SlowRequests;
use crate::engine::{Request, RequestKind, Slot};
use crate::event_flag::EventFlag;
use crate::io::Errno;
use crate::sandbox::{self, Kind};

/// From when on a request takes long.
pub const SLOW: Duration = Duration::from_secs(3);
/// The interval of looks.
const INTERVAL: Duration = Duration::from_secs(1);
/// Looks that find nothing under way until the thread sleeps.
const IDLE_LOOKS: u32 = 3;

/// A view, as the watching thread knows it.
pub struct WatchedView {
    hooks: Arc<dyn ViewHooks>,
    slow: Mutex<Option<SlowRequests>>,
    failures: Mutex<Failures>,
}

impl WatchedView {
    pub fn new(hooks: Arc<dyn ViewHooks>) -> Self {
        Self {
            hooks,
            slow: Mutex::new(None),
            failures: Mutex::default(),
        }
    }

    /// The requests that take long, as of the last look.
    pub fn slow(&self) -> Option<SlowRequests> {
        *lock(&self.slow)
    }

    /// Reports the requests that failed, if it is time; returns whether some are left.
    fn report_failures(&self, now: Instant) -> bool {
        let (due, waits) = {
            let mut failures = lock(&self.failures);
            (failures.due(now), failures.is_waiting())
        };
        if let Some(failed) = due {
            self.hooks.failed(failed);
        }
        waits
    }

    /// Notes what the last look has found, and reports the begin and the end.
    fn found(&self, now: Option<SlowRequests>) {
        let before = std::mem::replace(&mut *lock(&self.slow), now);
        match (before, now) {
            (None, Some(slow)) => self.hooks.slow(slow),
            (Some(slow), None) => self.hooks.slow_ended(slow.oldest),
            (None, None) | (Some(_), Some(_)) => {}
        }
    }
}

/// A slot: its mark is odd while a request is under way, and changes with each.
#[derive(Debug, Default)]
struct Mark {
    turn: AtomicU64,
    /// [`RequestKind`] in the lowest bits, then the sector.
    what: AtomicU64,
}

/// The slots of one queue. Only its worker writes to them.
pub struct Marks {
    view: Arc<WatchedView>,
    slots: Box<[Mark]>,
}

impl Marks {
    /// The request in this slot, or its next window, begins.
    pub fn begin(&self, slot: Slot, request: &Request) {
        if let Some(mark) = self.slots.get(usize::from(slot)) {
            let kind = match request.kind {
                RequestKind::Read => 0,
                RequestKind::Write { .. } => 1,
                RequestKind::Flush => 2,
                RequestKind::Discard => 3,
            };
            mark.what
                .store(request.sector << 2 | kind, Ordering::Relaxed);
            let turn = mark.turn.load(Ordering::Relaxed);
            mark.turn.store((turn + 1) | 1, Ordering::Release);
        }
    }

    /// A request of the view fails, as `failures.rs` describes it.
    pub fn failed(&self, kind: RequestKind, sector: u64, error: Option<Errno>) {
        lock(&self.view.failures).note(kind, sector, error);
    }

    pub fn end(&self, slot: Slot) {
        if let Some(mark) = self.slots.get(usize::from(slot)) {
            let turn = mark.turn.load(Ordering::Relaxed);
            mark.turn.store((turn | 1) + 1, Ordering::Release);
        }
    }
}

/// The marks of a queue, with what the thread saw there.
struct Watched {
    marks: Weak<Marks>,
    view: Arc<WatchedView>,
    seen: Vec<(u64, Instant)>,
}

impl Watched {
    /// Looks at all slots. `None`: the queue has ended. Returns whether something is under
    /// way, and what takes long.
    fn look(&mut self, now: Instant) -> Option<(Arc<Marks>, bool, Option<SlowRequests>)> {
        let marks = self.marks.upgrade()?;
        let mut busy = false;
        let mut slow: Option<SlowRequests> = None;
        for (mark, (seen, since)) in marks.slots.iter().zip(&mut self.seen) {
            let turn = mark.turn.load(Ordering::Acquire);
            if turn != *seen {
                (*seen, *since) = (turn, now);
            }
            if turn & 1 == 0 {
                continue;
            }
            busy = true;
            let age = now.saturating_duration_since(*since);
            if age >= SLOW {
                let what = mark.what.load(Ordering::Relaxed);
                let this = SlowRequests {
                    count: 1,
                    oldest: age,
                    kind: match what & 3 {
                        0 => RequestKind::Read,
                        1 => RequestKind::Write { durable: false },
                        2 => RequestKind::Flush,
                        _ => RequestKind::Discard,
                    },
                    sector: what >> 2,
                };
                slow = Some(joined(slow, this));
            }
        }
        Some((marks, busy, slow))
    }
}

fn joined(one: Option<SlowRequests>, other: SlowRequests) -> SlowRequests {
    match one {
        None => other,
        Some(one) => SlowRequests {
            count: one.count + other.count,
            ..if one.oldest >= other.oldest {
                one
            } else {
                other
            }
        },
    }
}

/// The thread that looks, and what it looks at.
pub struct Watcher {
    awake: AtomicBool,
    /// Wakes the thread; `None`: there is no thread.
    news: OnceLock<Option<Arc<EventFlag>>>,
    watched: Mutex<Vec<Watched>>,
}

impl Watcher {
    /// That of this process; the first call starts its thread.
    pub fn get() -> &'static Self {
        static WATCHER: Watcher = Watcher {
            awake: AtomicBool::new(false),
            news: OnceLock::new(),
            watched: Mutex::new(Vec::new()),
        };
        WATCHER.news.get_or_init(|| {
            let started = EventFlag::new().and_then(|news| {
                let news = Arc::new(news);
                let theirs = Arc::clone(&news);
                let builder = std::thread::Builder::new().name("watcher".into());
                builder.spawn(move || {
                    sandbox::thread(Kind::Idler);
                    WATCHER.run(&theirs);
                })?;
                Ok(news)
            });
            started
                .inspect_err(|e| {
                    tracing::warn!("requests that take long will not be shown: {e}");
                })
                .ok()
        });
        &WATCHER
    }

    /// Watches a queue of a view until what this returns is dropped.
    pub fn watch(&self, view: Arc<WatchedView>, slots: u16) -> Arc<Marks> {
        let marks = Arc::new(Marks {
            view,
            slots: (0..slots).map(|_| Mark::default()).collect(),
        });
        lock(&self.watched).push(Watched {
            marks: Arc::downgrade(&marks),
            view: Arc::clone(&marks.view),
            seen: vec![(0, Instant::now()); usize::from(slots)],
        });
        marks
    }

    /// Requests have begun. Costs a load if the thread is awake.
    ///
    /// Order: 1 the slot is marked → 2 a fence (the registration of a request has one) → 3
    /// this looks whether the thread is awake. The thread: 1 it says that it sleeps → 2 a
    /// fence → 3 it looks at all slots once more. So one of them sees the other.
    pub fn wake(&self) {
        if !self.awake.load(Ordering::Relaxed) {
            self.awake.store(true, Ordering::SeqCst);
            if let Some(Some(news)) = self.news.get() {
                news.set();
            }
        }
    }

    fn run(&self, news: &EventFlag) {
        let mut slow: Vec<Arc<WatchedView>> = Vec::new();
        let mut idle = 0;
        loop {
            let busy = self.look(&mut slow) || !slow.is_empty();
            idle = if busy { 0 } else { idle + 1 };
            if idle < IDLE_LOOKS {
                std::thread::sleep(INTERVAL);
                continue;
            }
            idle = 0;
            self.awake.store(false, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            if self.look(&mut slow) {
                self.awake.store(true, Ordering::SeqCst);
            }
            while !self.awake.load(Ordering::SeqCst) {
                // An interrupted wait merely ends early.
                let _ = poll(&mut [PollFd::new(news, PollFlags::IN)], None);
                news.clear();
            }
        }
    }

    /// Looks at everything once; `slow` are the views with requests that take long. Returns
    /// whether something is under way.
    fn look(&self, slow: &mut Vec<Arc<WatchedView>>) -> bool {
        let now = Instant::now();
        let mut busy = false;
        let mut found: Vec<(Arc<WatchedView>, SlowRequests)> = Vec::new();
        lock(&self.watched).retain_mut(|watched| {
            let failed = watched.view.report_failures(now);
            busy |= failed;
            let Some((marks, is_busy, requests)) = watched.look(now) else {
                return failed;
            };
            busy |= is_busy;
            if let Some(requests) = requests {
                let same = found
                    .iter_mut()
                    .find(|(view, _)| Arc::ptr_eq(view, &marks.view));
                match same {
                    Some((_, all)) => *all = joined(Some(*all), requests),
                    None => found.push((Arc::clone(&marks.view), requests)),
                }
            }
            true
        });
        for view in slow.drain(..) {
            if !found.iter().any(|(other, _)| Arc::ptr_eq(other, &view)) {
                view.found(None);
            }
        }
        for (view, requests) in found {
            view.found(Some(requests));
            slow.push(view);
        }
        busy
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    struct Hooks(Mutex<Vec<String>>);

    impl ViewHooks for Hooks {
        fn attached(&self) {}
        fn detached(&self) {}
        fn rings_start(&self, _: crate::vhost::Start) {}

        fn slow(&self, slow: SlowRequests) {
            lock(&self.0).push(format!("{} {:?} {}", slow.count, slow.kind, slow.sector));
        }

        fn slow_ended(&self, lasted: Duration) {
            lock(&self.0).push(format!("{} s", lasted.as_secs()));
        }
    }

    fn request(slot: Slot, sector: u64) -> Request {
        Request {
            slot,
            kind: RequestKind::Read,
            sector,
            sectors: 8,
        }
    }

    #[test]
    fn a_request_takes_long_if_its_slot_holds_it_and_no_other_one() {
        let hooks = Arc::new(Hooks(Mutex::default()));
        let view = Arc::new(WatchedView::new(hooks.clone()));
        let slots: Box<[Mark]> = (0..4).map(|_| Mark::default()).collect();
        let marks = Arc::new(Marks {
            view: Arc::clone(&view),
            slots,
        });
        let start = Instant::now();
        let mut watched = Watched {
            marks: Arc::downgrade(&marks),
            view: Arc::clone(&view),
            seen: vec![(0, start); 4],
        };
        let mut at = |seconds| {
            let (_, busy, slow) = watched.look(start + Duration::from_secs(seconds)).unwrap();
            view.found(slow);
            (busy, slow.map(|slow| (slow.count, slow.oldest.as_secs())))
        };
        assert_eq!(at(0), (false, None));
        marks.begin(1, &request(1, 77));
        marks.begin(2, &request(2, 5));
        assert_eq!(at(1), (true, None));
        // Another one of the same kind, in the same place.
        marks.end(2);
        marks.begin(2, &request(2, 5));
        assert_eq!(at(3), (true, None));
        assert_eq!(at(4), (true, Some((1, 3))));
        // A window that follows another one is progress.
        marks.begin(2, &request(2, 13));
        assert_eq!(at(6), (true, Some((1, 5))));
        assert_eq!(at(9), (true, Some((2, 8))));
        marks.end(1);
        marks.end(2);
        assert_eq!(at(10), (false, None));
        assert_eq!(*lock(&hooks.0), ["1 Read 77", "8 s"]);
        drop(marks);
        assert!(watched.look(start).is_none());
    }
}
