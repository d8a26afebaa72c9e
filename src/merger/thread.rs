//! The merger's thread: one per volume, asleep while no merge runs.

use std::io;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::limit::{RateLimiter, RateMeter};
use super::work::MergeWork;
use crate::engine::{Engine, PortRole};
use crate::event_flag::EventFlag;
use crate::executor::Executor;
use crate::io::Disk;
use crate::mutation::{self, Mutation};
use crate::sandbox::{self, Kind};
use crate::sync::thread::{self, JoinHandle};
use crate::sync::{Mutex, MutexGuard, mpsc};

/// The settings of a merge.
#[derive(Clone, Copy, Debug)]
pub struct MergerSettings {
    /// Bytes per second, 0: no limit.
    pub rate: u64,
    /// Most bytes in a batch (at least one chunk).
    pub batch_bytes: u64,
}

impl Default for MergerSettings {
    fn default() -> Self {
        Self {
            rate: 0,
            batch_bytes: super::BATCH_BYTES,
        }
    }
}

/// The requests of other threads to the merger, and its rate for them.
struct Shared {
    rate: u64,
    stop: bool,
    meter: RateMeter,
}

/// A handle to the running thread.
pub struct Merger {
    shared: Arc<Mutex<Shared>>,
    wake: Arc<EventFlag>,
    thread: Option<JoinHandle<()>>,
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    // Nothing under this lock can panic half-way.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Merger {
    /// Starts the thread. `open_disk` runs on it, because an io_uring belongs to
    /// the thread that made it; its failure is returned here.
    pub fn start(
        engine: &Arc<Engine>,
        open_disk: impl FnOnce() -> io::Result<Box<dyn Disk + Send>> + Send + 'static,
        settings: MergerSettings,
    ) -> io::Result<Self> {
        let shared = Arc::new(Mutex::new(Shared {
            rate: settings.rate,
            stop: false,
            meter: RateMeter::default(),
        }));
        let (ready, started) = mpsc::sync_channel(1);
        let (engine, theirs) = (engine.clone(), shared.clone());
        let builder = thread::Builder::new().name("merger".into());
        let thread = builder.spawn(move || {
            match open_disk().and_then(|disk| Executor::new(&engine, PortRole::Merger, disk)) {
                Ok(executor) => {
                    sandbox::thread(Kind::Merger);
                    let _ = ready.send(Ok(executor.waker()));
                    let limiter = RateLimiter::new(settings.rate, settings.batch_bytes);
                    run(MergeWork::new(executor, limiter), &theirs);
                }
                Err(error) => {
                    let _ = ready.send(Err(error));
                }
            }
        })?;
        match started
            .recv()
            .map_err(|_| io::Error::other("the merger thread ended at its start"))
            .flatten()
        {
            Ok(wake) => Ok(Self {
                shared,
                wake,
                thread: Some(thread),
            }),
            Err(error) => {
                let _ = thread.join();
                Err(error)
            }
        }
    }

    /// Bytes per second from now on, 0: no limit.
    pub fn set_rate(&self, rate: u64) {
        lock(&self.shared).rate = rate;
        self.wake.set();
    }

    /// Bytes per second over the last seconds.
    pub fn bytes_per_second(&self) -> u64 {
        lock(&self.shared).meter.rate(Instant::now())
    }

    /// Ends the thread after the running batch.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        if let Some(thread) = self.thread.take() {
            lock(&self.shared).stop = true;
            self.wake.set();
            let _ = thread.join();
        }
    }
}

impl Drop for Merger {
    fn drop(&mut self) {
        self.end();
    }
}

fn run(mut work: MergeWork, shared: &Mutex<Shared>) {
    loop {
        let (rate, stop) = {
            let shared = lock(shared);
            (shared.rate, shared.stop)
        };
        work.limiter().set_rate(rate);
        let now = Instant::now();
        let stepped = work.step(now, stop);
        if stepped.started_bytes > 0 {
            lock(shared).meter.record(now, stepped.started_bytes);
        }
        if stop && work.is_at_rest() {
            return;
        }
        let again = if stop {
            let soon = Duration::from_millis(5);
            Some(stepped.again.map_or(soon, |again| again.min(soon)))
        } else {
            stepped.again
        };
        // The step has cleared the wake-up. A request made during the step must be seen
        // here; a later one sets the wake-up again.
        let nothing_new = {
            let shared = lock(shared);
            (shared.rate, shared.stop) == (rate, stop)
        };
        if nothing_new || mutation::is(Mutation::StopHeardOnce) {
            work.executor().wait(again);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{SyncSender, sync_channel};

    use super::*;
    use crate::engine::OriginParams;
    use crate::io::sim::{Fill, SimDevices};
    use crate::io::{Done, Op};

    /// Delays the first reap.
    struct Slow<D> {
        disk: D,
        entered: Option<SyncSender<()>>,
    }

    impl<D: Disk> Disk for Slow<D> {
        fn submit(&mut self, op: Op) {
            self.disk.submit(op);
        }

        fn reap(&mut self, wait: bool, done: &mut Vec<Done>) {
            if let Some(entered) = self.entered.take() {
                entered.send(()).unwrap();
                std::thread::sleep(Duration::from_millis(100));
            }
            self.disk.reap(wait, done);
        }

        fn in_flight(&self) -> usize {
            self.disk.in_flight()
        }

        fn event_fd(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
            self.disk.event_fd()
        }
    }

    // An offline merge that was stopped during the merger's step hung for ever: the step
    // cleared the wake-up of the stop, and no other followed.
    #[test]
    fn a_stop_during_a_step_takes_effect() {
        let devices = SimDevices::new(1);
        let device = devices.add(64, Fill::Zeroes);
        let engine = Engine::new(OriginParams {
            device,
            sectors: 64,
        });
        let (entered, is_in_step) = sync_channel(1);
        let disk = Slow {
            disk: devices.disk(),
            entered: Some(entered),
        };
        let open = move || Ok(Box::new(disk) as Box<dyn Disk + Send>);
        let merger = Merger::start(&engine, open, MergerSettings::default()).unwrap();
        is_in_step.recv().unwrap();
        let (ended, has_ended) = sync_channel(1);
        std::thread::spawn(move || {
            merger.stop();
            ended.send(()).unwrap();
        });
        has_ended
            .recv_timeout(Duration::from_secs(10))
            .expect("the merger did not stop");
    }
}
