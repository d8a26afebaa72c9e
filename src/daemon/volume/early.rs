//! Views whose front ends may connect before the volume is there: those of a daemon that
//! waits for another one to let go of it. QEMU wants to know the disk when it starts, long
//! before a guest that is migrated to it uses the disk.
//!
//! Everything is answered but the start of a ring, which waits in the view's thread until the
//! main thread has the volume.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Once, OnceLock, PoisonError};
use std::time::Duration;

use crate::engine::{Command, Request, Status, Wake};
use crate::event_flag::EventFlag;
use crate::io::{Buffer, Disk, Errno, Tag};
use crate::sandbox;
use crate::size::in_words;
use crate::units::SECTOR_SIZE;
use crate::vhost::{
    Backend, FailedRequests, Requests, SlowRequests, Start, ViewConfig, ViewHooks, ViewServer,
    ViewSocket,
};
use crate::virtio_blk::BlkDevice;

/// Where the threads of early views wait for the volume.
pub struct Gate {
    state: Mutex<Wish>,
    changed: Condvar,
    /// Set when a ring is to start.
    pub wanted: EventFlag,
}

#[derive(Default)]
struct Wish {
    /// Rings that are to start wait for the next answer.
    waiting: u32,
    /// Answers so far that were refusals.
    refusals: u64,
    /// The last one.
    reason: String,
}

impl Gate {
    /// # Errors
    /// The process has no descriptor left.
    pub fn new() -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            state: Mutex::default(),
            changed: Condvar::new(),
            wanted: EventFlag::new()?,
        }))
    }

    /// A ring is to start.
    pub fn is_wanted(&self) -> bool {
        lock(&self.state).waiting > 0
    }

    /// The rings that are to start are refused; the next one is a new wish.
    pub fn refuse(&self, reason: &str) {
        let mut state = lock(&self.state);
        state.refusals += 1;
        reason.clone_into(&mut state.reason);
        self.changed.notify_all();
    }

    fn look_again(&self) {
        // With the lock, so that nobody is between a look and a wait.
        drop(lock(&self.state));
        self.changed.notify_all();
    }

    /// Waits until `ended`, or for a refusal.
    fn wait(&self, ended: impl Fn() -> bool) {
        let mut state = lock(&self.state);
        let before = state.refusals;
        state.waiting += 1;
        self.wanted.set();
        while !ended() && state.refusals == before {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.waiting -= 1;
    }

    fn refusal(&self) -> io::Error {
        let state = lock(&self.state);
        io::Error::other(match state.reason.as_str() {
            "" => "the daemon ends before it has the disk".to_owned(),
            reason => reason.to_owned(),
        })
    }
}

/// A view that front ends can connect to. Dropping it stops it.
pub struct EarlyView {
    /// `None`: the disk itself.
    pub snapshot: Option<String>,
    /// Where the front end listens, if it does.
    pub connects_to: Option<PathBuf>,
    config: ViewConfig,
    awaited: Arc<Awaited>,
    // Dropped before the server, whose thread may wait for the volume.
    _end: GiveUp,
    server: ViewServer,
}

/// Dropping it ends the wait for the volume.
struct GiveUp(Arc<Awaited>);

impl Drop for GiveUp {
    fn drop(&mut self) {
        self.0.is_given_up.store(true, Ordering::SeqCst);
        self.0.gate.look_again();
    }
}

impl EarlyView {
    /// Serves `config` at `socket` until the volume is there.
    pub fn start(
        gate: &Arc<Gate>,
        snapshot: Option<String>,
        config: ViewConfig,
        socket: ViewSocket,
    ) -> io::Result<Self> {
        let awaited = Arc::new(Awaited {
            gate: Arc::clone(gate),
            attached: Mutex::new(false),
            volume: OnceLock::new(),
            is_given_up: AtomicBool::new(false),
            limited: Once::new(),
        });
        let (backend, hooks) = (awaited.clone(), awaited.clone());
        let connects_to = socket.connects_to().map(Path::to_owned);
        let server = ViewServer::start(socket, config.clone(), backend, hooks)?;
        Ok(Self {
            snapshot,
            connects_to,
            config,
            _end: GiveUp(awaited.clone()),
            awaited,
            server,
        })
    }

    /// The volume is there: rings may start. A size that has changed is shown.
    ///
    /// # Errors
    /// The front end was told of another disk than `now`.
    pub fn open(
        self,
        now: &ViewConfig,
        backend: Arc<dyn Backend>,
        hooks: Arc<dyn ViewHooks>,
    ) -> io::Result<ViewServer> {
        let (told, device) = (&self.config.device, &now.device);
        if describe(told) != describe(device) {
            return Err(io::Error::other(format!(
                "view {}: its front end was told of {}, and it is {}: start again, with the \
                 options of the other daemon",
                now.name,
                describe(told),
                describe(device)
            )));
        }
        let sectors = device.capacity.sectors();
        if sectors != told.capacity.sectors() {
            self.server.resize(sectors);
        }
        self.server.set_write_through(now.write_through);
        let attached = lock(&self.awaited.attached);
        if *attached {
            hooks.attached();
        }
        let _ = self.awaited.volume.set(Volume { backend, hooks });
        drop(attached);
        self.awaited.gate.look_again();
        Ok(self.server)
    }
}

/// Stands for the volume in the view's thread.
struct Awaited {
    gate: Arc<Gate>,
    /// A front end is connected.
    attached: Mutex<bool>,
    volume: OnceLock<Volume>,
    /// There will be none.
    is_given_up: AtomicBool,
    limited: Once,
}

struct Volume {
    backend: Arc<dyn Backend>,
    hooks: Arc<dyn ViewHooks>,
}

impl Awaited {
    fn attach(&self, now: bool, tell: fn(&dyn ViewHooks)) {
        let mut attached = lock(&self.attached);
        *attached = now;
        if let Some(volume) = self.volume.get() {
            tell(&*volume.hooks);
        }
    }
}

impl ViewHooks for Awaited {
    fn attached(&self) {
        self.attach(true, |hooks| hooks.attached());
    }

    fn detached(&self) {
        self.attach(false, |hooks| hooks.detached());
    }

    fn rings_start(&self, start: Start) {
        if self.volume.get().is_none() {
            let given_up = || self.is_given_up.load(Ordering::SeqCst);
            self.gate.wait(|| self.volume.get().is_some() || given_up());
        }
        if let Some(volume) = self.volume.get() {
            // The thread is older than the limits that the process has by now.
            self.limited.call_once(|| {
                if let Err(error) = sandbox::catch_up() {
                    tracing::error!("{error}");
                }
            });
            volume.hooks.rings_start(start);
        }
    }

    fn ring_started(&self) {
        if let Some(volume) = self.volume.get() {
            volume.hooks.ring_started();
        }
    }

    fn ring_stopped(&self, migrating: bool) {
        if let Some(volume) = self.volume.get() {
            volume.hooks.ring_stopped(migrating);
        }
    }

    fn front_end_waits(&self) {
        if let Some(volume) = self.volume.get() {
            volume.hooks.front_end_waits();
        }
    }

    fn write_cache(&self, on: bool) -> Result<(), String> {
        match self.volume.get() {
            Some(volume) => volume.hooks.write_cache(on),
            None => Err("another daemon still has the disk".to_owned()),
        }
    }

    fn slow(&self, slow: SlowRequests) {
        if let Some(volume) = self.volume.get() {
            volume.hooks.slow(slow);
        }
    }

    fn failed(&self, failed: FailedRequests) {
        if let Some(volume) = self.volume.get() {
            volume.hooks.failed(failed);
        }
    }

    fn slow_ended(&self, lasted: Duration) {
        if let Some(volume) = self.volume.get() {
            volume.hooks.slow_ended(lasted);
        }
    }
}

impl Backend for Awaited {
    fn disk(&self) -> io::Result<Box<dyn Disk>> {
        match self.volume.get() {
            Some(volume) => volume.backend.disk(),
            None => Err(self.gate.refusal()),
        }
    }

    fn port(&self, slots: usize, wake: Arc<dyn Wake>) -> Box<dyn Requests> {
        match self.volume.get() {
            Some(volume) => volume.backend.port(slots, wake),
            // Nobody asks for a port who got no disk.
            None => Box::new(Nothing),
        }
    }

    fn polling(&self) -> Duration {
        self.volume
            .get()
            .map_or(Duration::ZERO, |volume| volume.backend.polling())
    }
}

/// Fails every request.
struct Nothing;

impl Requests for Nothing {
    fn request(&mut self, request: Request, _: bool, out: &mut Vec<Command>) {
        out.push(Command::Complete {
            slot: request.slot,
            status: Status::IoError,
        });
    }

    fn io_done(&mut self, _: Tag, _: Result<(), Errno>, _: Option<Buffer>, _: &mut Vec<Command>) {}

    fn take_inbox(&mut self, _: &mut Vec<Command>) {}

    fn is_idle(&self) -> bool {
        true
    }
}

/// What a guest does not expect to change, in words.
fn describe(device: &BlkDevice) -> String {
    format!(
        "a {} disk with blocks of {}, discards of up to {} and the serial {}",
        if device.read_only {
            "read-only"
        } else {
            "writable"
        },
        in_words(device.topology.logical),
        in_words(u64::from(device.max_discard_sectors) * SECTOR_SIZE),
        device.serial
    )
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
