//! A thread's access to the engine, and the fast path.

use std::sync::{Arc, PoisonError};

use super::api::*;
use super::core::Core;
use super::discard;
use super::failure::{FailedDevice, Failure};
use super::trace::{COW, OTHER, READ_ORIGIN, Trace, WRITE, fence_change};
use super::views::{Config, Extent, SharedSnapshot, ViewMode, is_settled, resolve_read};
use crate::io::{Buffer, DeviceId, Errno, Tag};
use crate::mutation::{self, Mutation};
use crate::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use crate::sync::{Mutex, MutexGuard};
use crate::units::{SECTOR_SHIFT, SECTOR_SIZE};

/// Marks the tags of I/O that the critical section keeps account of.
pub(super) const CORE_TAG: Tag = 1 << 63;
/// Marks the fast path's flush of a COW device (the low bits are the slot).
const COW_FLUSH_TAG: Tag = 1 << 32;

/// What all threads share.
#[derive(Debug)]
pub(super) struct Shared {
    pub origin: OriginParams,
    /// Epoch of `config`; a port whose copy is older fetches it anew.
    pub epoch: AtomicU64,
    pub config: Mutex<Arc<Config>>,
    /// How many changes wait for requests to end.
    pub drains: AtomicUsize,
    /// A flush of the origin failed: no flush that ends later is believed.
    pub origin_flush_failed: AtomicBool,
}

impl Shared {
    /// Whether a flush of the origin (`None`) or a store must not be believed,
    /// though it may end well: one before it, or beside it, lost data.
    pub fn is_flush_lost(&self, store: Option<&SharedSnapshot>) -> bool {
        let failed = store.map_or(&self.origin_flush_failed, |s| &s.flush_failed);
        failed.load(Ordering::Acquire)
    }
}

/// The side of a port that others may touch.
pub(super) struct PortShared {
    pub role: PortRole,
    pub trace: Trace,
    inbox: Mutex<Vec<Command>>,
    inbox_full: AtomicBool,
    /// I/O commands given out and not reported yet.
    pub ios: AtomicUsize,
    /// Requests that wait may end with an error.
    pub abandoned: AtomicBool,
    wake: Arc<dyn Wake>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic in the daemon aborts; in tests the poisoned state must not hide it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One volume.
pub struct Engine {
    pub(super) shared: Arc<Shared>,
    core: Mutex<Core>,
}

impl Engine {
    pub fn new(origin: OriginParams) -> Arc<Self> {
        let config = Arc::new(Config::new(0, Default::default()));
        let shared = Arc::new(Shared {
            origin,
            epoch: AtomicU64::new(0),
            config: Mutex::new(config),
            drains: AtomicUsize::new(0),
            origin_flush_failed: AtomicBool::new(false),
        });
        let core = Core::new(shared.clone());
        Arc::new(Self {
            shared,
            core: Mutex::new(core),
        })
    }

    /// `slots`: how many requests the port may have under way (at most 65,536).
    pub fn open_port(self: &Arc<Self>, role: PortRole, slots: usize, wake: Arc<dyn Wake>) -> Port {
        let shared = Arc::new(PortShared {
            role,
            trace: Trace::new(slots),
            inbox: Mutex::new(Vec::new()),
            inbox_full: AtomicBool::new(false),
            ios: AtomicUsize::new(0),
            abandoned: AtomicBool::new(false),
            wake,
        });
        let index = lock(&self.core).add_port(shared.clone());
        let config = lock(&self.shared.config).clone();
        let view = match role {
            PortRole::View(view) => view,
            _ => ViewId(u32::MAX),
        };
        let mode = config.mode(view).clone();
        Port {
            engine: self.clone(),
            index,
            shared,
            view,
            mode,
            epoch: config.epoch,
            local: vec![Local::default(); slots],
            busy: 0,
        }
    }

    pub fn status(&self) -> EngineStatus {
        lock(&self.core).status()
    }

    /// Walks every invariant of the engine's state; for tests.
    pub fn check(&self) -> Result<(), String> {
        lock(&self.core).check()
    }
}

/// A fast request under way.
#[derive(Clone, Debug, Default)]
struct Local {
    remaining: u32,
    failed: bool,
    flush: bool,
    /// The store that a flush goes to.
    store: Option<Arc<SharedSnapshot>>,
}

/// One thread's access to the engine. Drop it idle: no request under way, no I/O
/// command unreported.
pub struct Port {
    engine: Arc<Engine>,
    index: usize,
    shared: Arc<PortShared>,
    view: ViewId,
    mode: Arc<ViewMode>,
    epoch: u64,
    local: Vec<Local>,
    busy: usize,
}

impl Port {
    /// Hands in a guest request.
    pub fn request(&mut self, request: Request, out: &mut Vec<Command>) {
        self.busy += 1;
        let end = request.sector.saturating_add(request.sectors);
        if end > self.engine.shared.origin.sectors || usize::from(request.slot) >= self.local.len()
        {
            self.complete(request.slot, Status::IoError, out);
            return;
        }
        if let Some(status) = self.fast(request, end, out) {
            if let Some(status) = status {
                self.end_registration(request.slot, out);
                self.complete(request.slot, status, out);
            }
            return;
        }
        self.shared.trace.clear(request.slot);
        self.enter(out, |core, port| core.request(port, request));
    }

    /// `None`: not settled. `Some(None)`: commands are out. `Some(Some(_))`: ended.
    fn fast(
        &mut self,
        request: Request,
        end: u64,
        out: &mut Vec<Command>,
    ) -> Option<Option<Status>> {
        let Request {
            slot, kind, sector, ..
        } = request;
        let touches = match kind {
            RequestKind::Read => READ_ORIGIN | COW,
            RequestKind::Write { .. } => WRITE | COW,
            RequestKind::Flush => OTHER | COW,
            RequestKind::Discard => discard::TOUCHES,
        };
        let late = mutation::is(Mutation::RegisteredAfterLookUp);
        let skipped = kind == RequestKind::Discard && mutation::is(Mutation::DiscardNotRegistered);
        if !late && !skipped && !mutation::is(Mutation::RegistrationSkipped) {
            self.shared.trace.register(slot, touches, sector, end);
        }
        // Registered before the epoch is read: a change made after this reading
        // finds the registration.
        if self.engine.shared.epoch.load(Ordering::Acquire) != self.epoch
            && !mutation::is(Mutation::StaleConfiguration)
        {
            let config = lock(&self.engine.shared.config).clone();
            self.epoch = config.epoch;
            self.mode = config.mode(self.view).clone();
        }
        let first = out.len();
        let mut store = None;
        let origin = self.engine.shared.origin.device;
        match (&*self.mode, kind) {
            (ViewMode::Gated, _) => return None,
            (ViewMode::Failed, _) => return Some(Some(Status::IoError)),
            (ViewMode::Snapshot { snapshot, .. }, _) if end > snapshot.sectors => {
                return Some(Some(Status::IoError));
            }
            (mode, RequestKind::Read) => {
                let touches = resolve_read(mode, sector, end, |e| {
                    out.push(Command::GuestRead {
                        tag: Tag::from(slot),
                        device: e.device.unwrap_or(origin),
                        offset: e.device_sector << SECTOR_SHIFT,
                        slot,
                        slot_offset: byte_count(e.sector - sector),
                        len: byte_count(e.sectors),
                    });
                })?;
                self.shared.trace.narrow(slot, touches);
            }
            (
                ViewMode::Origin {
                    write_gate: true, ..
                },
                RequestKind::Write { .. } | RequestKind::Discard,
            ) => return None,
            (ViewMode::Origin { preserve, .. }, RequestKind::Write { durable }) => {
                if !is_settled(preserve, sector, end) {
                    return None;
                }
                self.shared.trace.narrow(slot, WRITE);
                let all = Extent {
                    device: None,
                    device_sector: sector,
                    sector,
                    sectors: request.sectors,
                };
                out.push(Self::guest_write(slot, origin, sector, all, durable));
            }
            (
                ViewMode::Snapshot { overflow: true, .. },
                RequestKind::Write { .. } | RequestKind::Discard,
            ) => return Some(Some(Status::IoError)),
            (mode, RequestKind::Discard) => {
                let touches = discard::resolve(mode, sector, end, |e, how| {
                    out.push(discard::command(Tag::from(slot), origin, e, how));
                })?;
                if out.len() == first {
                    return Some(Some(Status::Ok));
                }
                if !skipped {
                    self.shared.trace.narrow(slot, touches);
                }
            }
            (ViewMode::Snapshot { snapshot, .. }, RequestKind::Write { durable }) => {
                // An unsettled exception may still be volatile; the critical section knows.
                if !snapshot.chunks(sector, end).all(|c| {
                    let e = snapshot.table.get(c);
                    e.is_some()
                        && (e.is_settled()
                            || !durable
                            || mutation::is(Mutation::WriteThroughBeforeEntry))
                }) {
                    return None;
                }
                snapshot.resolve(sector, end, |e| {
                    out.push(Self::guest_write(slot, origin, sector, e, durable));
                });
            }
            (
                ViewMode::Merge {
                    snapshot,
                    writes: MergeWrites::Redirect,
                    ..
                },
                RequestKind::Write { durable },
            ) if end <= snapshot.sectors
                && snapshot.chunks(sector, end).all(|c| {
                    let e = snapshot.table.get(c);
                    e.is_some() && !e.is_fenced()
                }) =>
            {
                snapshot.resolve(sector, end, |e| {
                    out.push(Self::guest_write(slot, origin, sector, e, durable));
                });
            }
            (
                ViewMode::Merge {
                    snapshot, preserve, ..
                },
                RequestKind::Write { durable },
            ) => {
                if snapshot
                    .chunks(sector, end)
                    .any(|c| snapshot.table.get(c).is_some())
                    || !is_settled(preserve, sector, end)
                {
                    return None;
                }
                self.shared.trace.narrow(slot, WRITE);
                let all = Extent {
                    device: None,
                    device_sector: sector,
                    sector,
                    sectors: request.sectors,
                };
                out.push(Self::guest_write(slot, origin, sector, all, durable));
            }
            (ViewMode::Origin { .. }, RequestKind::Flush) => {
                self.shared.trace.narrow(slot, OTHER);
                if self.engine.shared.is_flush_lost(None) {
                    return Some(Some(Status::IoError));
                }
                out.push(Command::Flush {
                    tag: Tag::from(slot),
                    device: origin,
                });
            }
            (ViewMode::Snapshot { snapshot, .. }, RequestKind::Flush) => {
                if mutation::is(Mutation::FlushCompletedEarly) {
                    return Some(Some(Status::Ok));
                }
                if snapshot.defer_commits {
                    return None; // entries first
                }
                store = Some(snapshot.clone());
                out.push(Command::Flush {
                    tag: Tag::from(slot) | COW_FLUSH_TAG,
                    device: snapshot.device,
                });
            }
            (ViewMode::Merge { snapshot, .. }, RequestKind::Flush) => {
                let shared = &self.engine.shared;
                if shared.is_flush_lost(None) || shared.is_flush_lost(Some(snapshot)) {
                    return Some(Some(Status::IoError));
                }
                store = Some(snapshot.clone());
                out.push(Command::Flush {
                    tag: Tag::from(slot),
                    device: origin,
                });
                if !mutation::is(Mutation::FlushForgetsStore) {
                    out.push(Command::Flush {
                        tag: Tag::from(slot) | COW_FLUSH_TAG,
                        device: snapshot.device,
                    });
                }
            }
        }
        if late {
            self.shared.trace.register(slot, touches, sector, end);
        }
        let count = out.len() - first;
        self.shared.ios.fetch_add(count, Ordering::Relaxed);
        if let Some(local) = self.local.get_mut(usize::from(slot)) {
            *local = Local {
                remaining: u32::try_from(count).unwrap_or(u32::MAX),
                failed: false,
                flush: kind == RequestKind::Flush,
                store,
            };
        }
        Some(None)
    }

    fn guest_write(slot: Slot, origin: DeviceId, first: u64, e: Extent, durable: bool) -> Command {
        Command::GuestWrite {
            tag: Tag::from(slot),
            device: e.device.unwrap_or(origin),
            offset: e.device_sector << SECTOR_SHIFT,
            slot,
            slot_offset: byte_count(e.sector - first),
            len: byte_count(e.sectors),
            durable,
        }
    }

    /// Reports the end of an I/O command, with the buffer it carried.
    pub fn io_done(
        &mut self,
        tag: Tag,
        result: Result<(), Errno>,
        buffer: Option<Buffer>,
        out: &mut Vec<Command>,
    ) {
        self.shared.ios.fetch_sub(1, Ordering::Relaxed);
        if tag & CORE_TAG != 0 {
            self.enter(out, |core, port| {
                core.io_done(port, tag & !CORE_TAG, result, buffer)
            });
            return;
        }
        drop(buffer);
        let Ok(slot) = Slot::try_from(tag & !COW_FLUSH_TAG) else {
            return;
        };
        let failed = self.has_failed(tag, slot, result, out);
        let Some(local) = self.local.get_mut(usize::from(slot)) else {
            return;
        };
        local.failed |= failed && !mutation::is(Mutation::FailedIoReportedOk);
        local.remaining = local.remaining.saturating_sub(1);
        if local.remaining == 0 {
            let status = if local.failed {
                Status::IoError
            } else {
                Status::Ok
            };
            self.end_registration(slot, out);
            self.complete(slot, status, out);
        }
    }

    /// Whether an I/O of a fast request failed. Of a flush all learn that it did,
    /// also those that are under way: they cover what it lost.
    fn has_failed(
        &mut self,
        tag: Tag,
        slot: Slot,
        result: Result<(), Errno>,
        out: &mut Vec<Command>,
    ) -> bool {
        let failed = result.is_err();
        let Some(local) = self.local.get(usize::from(slot)).filter(|l| l.flush) else {
            return failed;
        };
        let store = local.store.clone().filter(|_| tag & COW_FLUSH_TAG != 0);
        if let Err(errno) = result {
            let device = match store {
                None => FailedDevice::Origin,
                Some(_) => FailedDevice::Cow,
            };
            let failure = Failure::flush(device, errno);
            self.enter(out, |core, _| {
                core.flush_failed(store.as_ref().map(|s| s.id), failure)
            });
        }
        failed
            || self.engine.shared.is_flush_lost(store.as_deref())
                && !mutation::is(Mutation::FlushBesideFailedOne)
    }

    /// Ends a registration; whoever drains is told.
    fn end_registration(&mut self, slot: Slot, out: &mut Vec<Command>) {
        self.shared.trace.clear(slot);
        if self.engine.shared.drains.load(Ordering::Acquire) != 0
            && !mutation::is(Mutation::EndNotTold)
        {
            self.enter(out, |core, _| core.recheck());
        }
    }

    fn complete(&mut self, slot: Slot, status: Status, out: &mut Vec<Command>) {
        self.busy = self.busy.saturating_sub(1);
        out.push(Command::Complete { slot, status });
    }

    /// Takes what other ports' events left here.
    pub fn take_inbox(&mut self, out: &mut Vec<Command>) {
        let late = mutation::is(Mutation::InboxFlagClearedLate);
        if late || self.shared.inbox_full.swap(false, Ordering::AcqRel) {
            let commands = std::mem::take(&mut *lock(&self.shared.inbox));
            if late {
                self.shared.inbox_full.store(false, Ordering::Release);
            }
            self.busy = self.busy.saturating_sub(completions(&commands));
            out.extend(commands);
        }
    }

    /// Starts a control request; [`Command::ControlDone`] with `id` ends it.
    pub fn control(&mut self, id: u64, request: ControlRequest, out: &mut Vec<Command>) {
        self.enter(out, |core, port| core.control(port, id, request));
    }

    /// Starts the next merge batch: of chunks that guest writes wait for up to
    /// `urgent` bytes, those that came first, and others until it has `background`
    /// bytes; with 0 of these none. At least one chunk of a kind that is wanted.
    pub fn merge_step(
        &mut self,
        background: u64,
        urgent: u64,
        out: &mut Vec<Command>,
    ) -> MergeStep {
        let mut step = MergeStep::Idle;
        self.enter(out, |core, port| {
            step = core.merge_step(port, background, urgent)
        });
        step
    }

    /// From now on a request that waits for something ends with an error when the
    /// wait is over. For the end of a port whose requests are left undone.
    pub fn abandon(&mut self) {
        self.shared.abandoned.store(true, Ordering::Release);
    }

    /// Whether the transfer with this tag matters to nothing but its request: if it
    /// fails, the request does. (A flush that fails is remembered.)
    pub const fn is_abandonable(tag: Tag) -> bool {
        tag & (CORE_TAG | COW_FLUSH_TAG) == 0
    }

    /// No request under way, no I/O command unreported, nothing in the inbox.
    pub fn is_idle(&self) -> bool {
        self.busy == 0
            && self.shared.ios.load(Ordering::Acquire) == 0
            && !self.shared.inbox_full.load(Ordering::Acquire)
    }

    /// Runs `event` in the critical section and hands out what it asks for.
    fn enter(&mut self, out: &mut Vec<Command>, event: impl FnOnce(&mut Core, usize)) {
        let engine = self.engine.clone();
        let mut core = lock(&engine.core);
        core.begin(self.index);
        event(&mut core, self.index);
        core.run();
        let first = out.len();
        let mut wakes: Vec<Arc<dyn Wake>> = Vec::new();
        for (index, command) in core.commands() {
            let Some(port) = core.port(index) else {
                continue;
            };
            if is_io(&command) {
                port.ios.fetch_add(1, Ordering::Relaxed);
            }
            if index == self.index {
                out.push(command);
            } else {
                lock(&port.inbox).push(command);
                if !port.inbox_full.swap(true, Ordering::AcqRel) {
                    wakes.push(port.wake.clone());
                }
            }
        }
        drop(core);
        let ended = out.get(first..).map_or(0, completions);
        self.busy = self.busy.saturating_sub(ended);
        for wake in wakes {
            wake.wake();
        }
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        lock(&self.engine.core).remove_port(self.index);
    }
}

fn completions(commands: &[Command]) -> usize {
    commands
        .iter()
        .filter(|c| matches!(c, Command::Complete { .. }))
        .count()
}

fn is_io(command: &Command) -> bool {
    !matches!(
        command,
        Command::Complete { .. } | Command::ControlDone { .. } | Command::Notice(_)
    )
}

/// Sectors of one request in bytes; a request is far smaller than memory.
pub(super) fn byte_count(sectors: u64) -> usize {
    usize::try_from(sectors.saturating_mul(SECTOR_SIZE)).unwrap_or(usize::MAX)
}

/// Publishes a configuration and makes later scans see every older request.
pub(super) fn publish(shared: &Shared, config: Config) {
    let epoch = config.epoch;
    *lock(&shared.config) = Arc::new(config);
    shared.epoch.store(epoch, Ordering::Release);
    fence_change();
}
