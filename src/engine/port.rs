//! A thread's access to the engine.

use std::sync::Arc;

use super::Engine;
use super::api::*;
use super::core::Event;
use super::failure::{FailedDevice, Failure};
use super::fast_path::{self, Decision, FastRequest};
use super::shared::{PortShared, lock};
use super::tags::{self, Owner};
use super::views::{SharedSnapshot, ViewMode};
use super::weight::{Rates, Weight};
use crate::io::{Buffer, Errno, Tag};
use crate::mutation::{self, Mutation};
use crate::sync::atomic::Ordering;

/// A fast request whose I/O is under way.
#[derive(Clone, Debug, Default)]
struct Issued {
    /// I/O commands whose end is not reported yet.
    remaining: u32,
    failed: bool,
    /// It is a write of which another part follows.
    more: bool,
    flush: bool,
    /// The store whose device a flush covers.
    store: Option<Arc<SharedSnapshot>>,
}

/// One thread's access to the engine. Drop it idle: no request under way, no I/O
/// command unreported.
pub struct Port {
    engine: Arc<Engine>,
    index: usize,
    shared: Arc<PortShared>,
    view: ViewId,
    /// The view's mode in the configuration of `epoch`.
    mode: Arc<ViewMode>,
    epoch: u64,
    /// What requests take in that mode.
    rates: Rates,
    /// By slot.
    issued: Vec<Issued>,
    /// Requests under way.
    busy: usize,
}

impl Port {
    pub(super) fn open(
        engine: &Arc<Engine>,
        role: PortRole,
        slots: usize,
        wake: Arc<dyn Wake>,
    ) -> Self {
        let changes = engine.shared.changes.clone();
        let shared = Arc::new(PortShared::new(role, slots, wake, changes));
        let index = lock(&engine.core).add_port(shared.clone());
        let config = lock(&engine.shared.config).clone();
        let view = match role {
            PortRole::View(view) => view,
            PortRole::Merger | PortRole::Control | PortRole::Notices => ViewId(u32::MAX),
        };
        let mode = config.mode(view).clone();
        Self {
            engine: engine.clone(),
            index,
            shared,
            view,
            rates: Rates::of(&mode),
            mode,
            epoch: config.epoch,
            issued: vec![Issued::default(); slots],
            busy: 0,
        }
    }

    /// Hands in a guest request.
    pub fn request(&mut self, request: Request, out: &mut Vec<Command>) {
        self.request_part(request, false, out);
    }

    /// Hands in a part of a guest request. `more`: if it succeeds, another part follows in
    /// its slot, or [`give_up`](Self::give_up). All parts of a write are on the same side of
    /// a new snapshot and of a handover.
    pub fn request_part(&mut self, request: Request, more: bool, out: &mut Vec<Command>) {
        self.busy += 1;
        let slot = request.slot;
        let end = request.sector.saturating_add(request.sectors);
        let slots = self.issued.len();
        let part = self.part(request, more);
        if end > self.engine.shared.origin_sectors() || usize::from(slot) >= slots {
            self.end_registration(slot, false, out);
            return self.complete(slot, Status::IoError, out);
        }
        let first = out.len();
        match self.decide(request, end, out) {
            Decision::NeedsCore => {
                self.shared.registrations.clear(slot);
                self.enter(out, Event::Request(request, part));
            }
            Decision::Issued { touches } => {
                let touches = touches & fast_path::may_touch(request.kind);
                self.shared.registrations.narrow(slot, touches);
                self.count_issued(request, part.more, out.len() - first);
            }
            Decision::Done(status) => {
                let more = part.more && status == Status::Ok;
                self.end_registration(slot, more, out);
                self.complete(slot, status, out);
            }
        }
    }

    /// Marked as unfinished before it is registered, so that a change sees both or none.
    fn part(&self, request: Request, more: bool) -> Part {
        let registrations = &self.shared.registrations;
        let part = Part {
            continues: registrations.is_unfinished(request.slot),
            more: more && matches!(request.kind, RequestKind::Write { .. }),
        };
        if part.more {
            registrations.begin(request.slot);
        }
        part
    }

    /// The part that would follow the one that has ended in this slot does not.
    pub fn give_up(&mut self, slot: Slot, out: &mut Vec<Command>) {
        if self.shared.registrations.is_unfinished(slot) {
            self.end_registration(slot, false, out);
        }
    }

    /// Order, for the rule in `registrations.rs`: 1 registered, with everything that
    /// the request may touch → 2 the configuration looked up → 3 its chunks.
    fn decide(&mut self, request: Request, end: u64, out: &mut Vec<Command>) -> Decision {
        let Request {
            slot, kind, sector, ..
        } = request;
        let late = mutation::is(Mutation::RegisteredAfterLookUp);
        let touches = if late { 0 } else { fast_path::may_touch(kind) };
        self.shared
            .registrations
            .register(slot, touches, sector, end);
        if !mutation::is(Mutation::StaleConfiguration) {
            self.look_for_changes();
        }
        let shared = &self.engine.shared;
        let fast = FastRequest {
            slot,
            sector,
            end,
            shared,
        };
        fast_path::decide(&self.mode, kind, fast, out)
    }

    /// Fetches the configuration again if it has changed.
    fn look_for_changes(&mut self) {
        let shared = &self.engine.shared;
        if shared.epoch.load(Ordering::Acquire) != self.epoch {
            let config = lock(&shared.config).clone();
            self.epoch = config.epoch;
            self.mode = config.mode(self.view).clone();
            self.rates = Rates::of(&self.mode);
        }
    }

    /// How much of a request to hand in at once, and what that may take.
    pub fn weigh(&mut self, kind: RequestKind, sector: u64, sectors: u64) -> Weight {
        self.look_for_changes();
        self.rates.weigh(kind, sector, sectors)
    }

    /// Notes that `count` I/O commands of a fast request were handed out.
    fn count_issued(&mut self, request: Request, more: bool, count: usize) {
        self.shared.ios.fetch_add(count, Ordering::Relaxed);
        let flush = request.kind == RequestKind::Flush;
        if let Some(issued) = self.issued.get_mut(usize::from(request.slot)) {
            *issued = Issued {
                remaining: u32::try_from(count).unwrap_or(u32::MAX),
                failed: false,
                more,
                flush,
                store: self.mode.store().filter(|_| flush).cloned(),
            };
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
        match tags::owner(tag) {
            Some(Owner::Core(number)) => {
                let event = Event::IoDone {
                    number,
                    result,
                    buffer,
                };
                self.enter(out, event);
            }
            Some(Owner::Fast { slot, cow_flush }) => {
                self.fast_io_done(slot, cow_flush, result, out)
            }
            None => {}
        }
    }

    fn fast_io_done(
        &mut self,
        slot: Slot,
        cow_flush: bool,
        result: Result<(), Errno>,
        out: &mut Vec<Command>,
    ) {
        let Some(issued) = self.issued.get_mut(usize::from(slot)) else {
            return;
        };
        issued.remaining = issued.remaining.saturating_sub(1);
        let ended = issued.remaining == 0;
        issued.failed |= result.is_err();
        let mut failed = issued.failed;
        if issued.flush {
            let store = issued.store.clone().filter(|_| cow_flush);
            failed |= self.is_flush_lost(store, result, out);
            if let Some(issued) = self.issued.get_mut(usize::from(slot)) {
                issued.failed = failed;
            }
        }
        if ended {
            let status = if failed { Status::IoError } else { Status::Ok };
            let more = self.issued.get(usize::from(slot)).is_some_and(|i| i.more);
            self.end_registration(slot, more && !failed, out);
            self.complete(slot, status, out);
        }
    }

    /// Whether a flush that has ended must fail. A failed flush also fails all flushes
    /// of the device that are under way, because they cover the data that it lost.
    fn is_flush_lost(
        &mut self,
        store: Option<Arc<SharedSnapshot>>,
        result: Result<(), Errno>,
        out: &mut Vec<Command>,
    ) -> bool {
        if let Err(errno) = result {
            let device = match store {
                None => FailedDevice::Origin,
                Some(_) => FailedDevice::Cow,
            };
            let failure = Failure::flush(device, errno);
            let store = store.as_ref().map(|s| s.id);
            self.enter(out, Event::FlushFailed { store, failure });
        }
        self.engine.shared.is_flush_lost(store.as_deref())
            && !mutation::is(Mutation::FlushBesideFailedOne)
    }

    /// Ends a registration, and the request with it, unless another part follows. If a state
    /// change waits for requests to end, it is checked again.
    fn end_registration(&mut self, slot: Slot, more: bool, out: &mut Vec<Command>) {
        if !more {
            self.shared.registrations.finish(slot);
        }
        self.shared.registrations.clear(slot);
        if self.engine.shared.drains.load(Ordering::Acquire) != 0
            && !mutation::is(Mutation::EndNotTold)
        {
            self.enter(out, Event::RegistrationEnded { slot });
        }
    }

    fn complete(&mut self, slot: Slot, status: Status, out: &mut Vec<Command>) {
        self.busy = self.busy.saturating_sub(1);
        out.push(Command::Complete { slot, status });
    }

    /// Takes the commands that events of other ports left for this one.
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
        self.enter(out, Event::Control { id, request });
    }

    /// Starts the next merge batch. It takes up to `urgent` bytes of the chunks that
    /// guest writes wait for, in the order in which they began to wait, and then other
    /// chunks until it has `background` bytes. A limit of 0 excludes that kind; any
    /// other limit admits at least one chunk.
    pub fn merge_step(
        &mut self,
        background: u64,
        urgent: u64,
        out: &mut Vec<Command>,
    ) -> MergeStep {
        let step = self.enter(out, Event::MergeStep { background, urgent });
        step.unwrap_or(MergeStep::Idle)
    }

    /// From now on a request that waits for something ends with an error when the
    /// wait is over. For a port that ends while requests are under way.
    pub fn abandon(&mut self) {
        self.shared.abandoned.store(true, Ordering::Release);
    }

    /// Whether only its request depends on the transfer with this tag: if it fails,
    /// the request fails, and nothing else changes. (A failed flush has consequences.)
    pub const fn is_abandonable(tag: Tag) -> bool {
        tags::is_fast_transfer(tag)
    }

    /// No request under way, no I/O command unreported, nothing in the inbox.
    pub fn is_idle(&self) -> bool {
        self.busy == 0
            && self.shared.ios.load(Ordering::Acquire) == 0
            && !self.shared.inbox_full.load(Ordering::Acquire)
    }

    /// Applies `event` in the critical section and hands out the commands. Returns the
    /// answer to [`Event::MergeStep`].
    fn enter(&mut self, out: &mut Vec<Command>, event: Event) -> Option<MergeStep> {
        let engine = self.engine.clone();
        let mut core = lock(&engine.core);
        let step = core.apply(self.index, event);
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
        step
    }
}

/// For the seeded bugs between the engine and the disk.
#[cfg(test)]
impl Port {
    /// What an I/O command of the critical section is for.
    pub(super) fn io_purpose(&self, tag: Tag) -> Option<super::core::IoPurpose> {
        lock(&self.engine.core).io_purpose(tag)
    }

    pub(super) fn shows_merge(&self) -> bool {
        matches!(*self.mode, ViewMode::Merge { .. })
    }

    pub(super) fn is_origin_flush(&self, op: &crate::io::Op) -> bool {
        let origin = self.engine.shared.origin;
        op.device == origin && matches!(op.kind, crate::io::OpKind::Flush)
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
