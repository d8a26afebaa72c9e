//! The thread that serves one started queue.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use tracing::{debug, error, info, warn};
use virtio_queue::Queue;
use vm_memory::{Bytes, GuestAddress};

use super::guest::{GuestData, MemoryHold};
use super::inflight::InflightQueue;
use super::memory::GuestMap;
use super::notify::{Call, Notifier};
use super::ring::{Ring, Taken};
use super::ring_fault::RingFault;
use super::slots::{InFlight, RequestData, Slots};
use super::{Backend, Requests};
use crate::engine::{Command, Execution, Request, RequestKind, Slot, Status};
use crate::event_flag::EventFlag;
use crate::io::{Disk, Done, Errno, Op, OpKind};
use crate::mutation::{self, Mutation};
use crate::sync::thread::{self, JoinHandle};
use crate::sync::{self, mpsc};
use crate::units::SECTOR_SHIFT;
use crate::virtio_blk::{Action, BlkDevice, BlkRequest, BlkStatus, ConfigSpace, Refused, parse};

const KICK: u64 = 0;
const DISK: u64 = 1;
const WAKE: u64 = 2;
const STOP: u64 = 3;
const LEAVE: u64 = 4;

/// How long the requests under way may take when the daemon ends; what is not done
/// then is left to the next one.
const GRACE: Duration = Duration::from_millis(300);

/// A drain that takes this long is worth a line in the log.
const SLOW_DRAIN_SECONDS: i64 = 5;

/// All that a worker needs.
pub struct Start {
    /// View and queue, for messages.
    pub name: String,
    pub queue: Queue,
    pub memory: Arc<GuestMap>,
    pub kick: Arc<File>,
    pub call: Arc<Call>,
    pub err: Option<Arc<Notifier>>,
    pub space: Arc<ConfigSpace>,
    /// Writes must be durable when they complete.
    pub write_through: Arc<AtomicBool>,
    pub backend: Arc<dyn Backend>,
    /// The queue's part of the front end's in-flight region.
    pub inflight: Option<InflightQueue>,
    /// Set when the view ends.
    pub leave: Arc<EventFlag>,
}

/// A started queue.
pub struct QueueWorker {
    stop: Arc<EventFlag>,
    hung_up: Arc<AtomicBool>,
    thread: JoinHandle<Stopped>,
}

/// How a worker ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// The available index to go on at.
    pub position: u16,
    /// Requests were taken that the driver was not told the end of: whoever serves
    /// the ring next has to do them.
    pub undone: bool,
}

impl QueueWorker {
    /// Starts the thread and waits until it has its disk and its port.
    pub fn start(start: Start) -> io::Result<Self> {
        let stop = Arc::new(EventFlag::new()?);
        let hung_up = Arc::new(AtomicBool::new(false));
        let (ready, started) = mpsc::sync_channel(1);
        let theirs = (Arc::clone(&stop), Arc::clone(&hung_up));
        let builder = thread::Builder::new().name("queue".into());
        let thread = builder.spawn(move || {
            let (stop, hung_up) = theirs;
            let position = start.queue_position();
            match Worker::new(start, stop, hung_up) {
                Ok(worker) => {
                    let _ = ready.send(Ok(()));
                    worker.run()
                }
                Err(e) => {
                    let _ = ready.send(Err(e));
                    Stopped {
                        position,
                        undone: false,
                    }
                }
            }
        })?;
        match started.recv() {
            Ok(Ok(())) => Ok(Self {
                stop,
                hung_up,
                thread,
            }),
            Ok(Err(e)) => Err(e),
            Err(_) => Err(io::Error::other("the queue's thread died")),
        }
    }

    /// Takes no new requests from now on; what was taken is finished.
    pub fn request_stop(&self) {
        self.stop.set();
    }

    /// The front end has gone: from now on the driver is told nothing more, because
    /// whoever resumes the ring has looked at it already. What need not be finished
    /// is left undone.
    pub fn hang_up(&self) {
        self.hung_up.store(true, Ordering::Release);
        self.request_stop();
    }

    /// Waits until all is finished and on the used ring (or left, see [`Stopped`]).
    pub fn stop(self) -> io::Result<Stopped> {
        self.request_stop();
        self.thread
            .join()
            .map_err(|_| io::Error::other("the queue's thread died"))
    }
}

impl Start {
    fn queue_position(&self) -> u16 {
        use virtio_queue::QueueT;
        self.queue.next_avail()
    }
}

struct Worker {
    name: String,
    ring: Ring,
    broken: bool,
    slots: Slots,
    port: Box<dyn Requests>,
    disk: Box<dyn Disk>,
    space: Arc<ConfigSpace>,
    write_through: Arc<AtomicBool>,
    err: Option<Arc<Notifier>>,
    epoll: OwnedFd,
    wake: Arc<EventFlag>,
    // Kept open: epoll forgets a descriptor when it is closed.
    _kick: Arc<File>,
    stop: Arc<EventFlag>,
    leave: Arc<EventFlag>,
    hung_up: Arc<AtomicBool>,
    /// Heads that a worker before this one took and did not give back.
    replay: Vec<u16>,
    stopping: bool,
    /// When `leave` was first seen.
    leaving_since: Option<Instant>,
    /// What only its request depends on is not carried out any more.
    abandoning: bool,
    /// The driver is told nothing any more.
    silent: bool,
    undone: bool,
    /// The wake event was readable; its flag may have been cleared before.
    woken: bool,
    /// The disk was given something since the last reap.
    submitted: bool,
    // Kept to be used again.
    commands: Vec<Command>,
    done: Vec<Done>,
    taken: Vec<(Taken, Result<BlkRequest, Refused>)>,
    events: Vec<Event>,
}

impl Worker {
    fn new(start: Start, stop: Arc<EventFlag>, hung_up: Arc<AtomicBool>) -> io::Result<Self> {
        let hold = Arc::new(MemoryHold { map: start.memory });
        let (ring, replay) = Ring::new(start.queue, hold, start.call, start.inflight)
            .inspect_err(|_| start.err.iter().for_each(|err| err.notify()))
            .map_err(io::Error::other)?;
        let wake = Arc::new(EventFlag::new()?);
        let disk = start.backend.disk()?;
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        // Edge-triggered: the counter need not be read back at every kick.
        let edge = EventFlags::IN | EventFlags::ET;
        epoll::add(&epoll, &start.kick, EventData::new_u64(KICK), edge)?;
        epoll::add(&epoll, &wake, EventData::new_u64(WAKE), EventFlags::IN)?;
        epoll::add(&epoll, &stop, EventData::new_u64(STOP), edge)?;
        epoll::add(&epoll, &start.leave, EventData::new_u64(LEAVE), edge)?;
        if let Some(fd) = disk.event_fd() {
            epoll::add(&epoll, fd, EventData::new_u64(DISK), EventFlags::IN)?;
        }
        let slots = Slots::new(ring.size());
        let count = usize::from(ring.size());
        // Last, since nothing may fail once a port is open.
        let port = start.backend.port(count, wake.clone());
        Ok(Self {
            name: start.name,
            broken: false,
            slots,
            port,
            disk,
            space: start.space,
            write_through: start.write_through,
            err: start.err,
            epoll,
            wake,
            _kick: start.kick,
            stop,
            leave: start.leave,
            hung_up,
            replay,
            stopping: false,
            leaving_since: None,
            abandoning: false,
            silent: false,
            undone: false,
            woken: false,
            submitted: false,
            commands: Vec::with_capacity(count),
            done: Vec::with_capacity(count),
            taken: Vec::with_capacity(count),
            events: Vec::with_capacity(4),
            ring,
        })
    }

    fn run(mut self) -> Stopped {
        self.replay();
        // An interrupt may have got lost with the back end that served before,
        // and a kick with it: the ring is looked at unasked.
        self.ring.signal();
        loop {
            if self.step() {
                continue;
            }
            if self.stopping && (self.is_drained() || mutation::is(Mutation::StopNotDrained)) {
                return Stopped {
                    position: self.ring.next_avail(),
                    undone: self.undone,
                };
            }
            if !self.stopping && !self.broken {
                match self.ring.arm() {
                    Ok(false) => {}
                    Ok(true) => {
                        let disarmed = self.ring.disarm();
                        self.check(disarmed);
                        continue;
                    }
                    Err(fault) => self.fault(&fault),
                }
            }
            self.wait();
        }
    }

    /// One round; false if there was nothing to do.
    ///
    /// 1. take all available heads, 2. carry out commands, 3. hand operations to
    ///    the kernel and feed completions back, 4. publish all at once.
    fn step(&mut self) -> bool {
        self.look_for_stop();
        let mut progress = !self.stopping && !self.broken && self.take_heads() > 0;
        // Looked at in every round: a busy queue never waits for events.
        if std::mem::take(&mut self.woken) || self.wake.is_set() {
            if mutation::is(Mutation::WakeClearedLate) {
                self.port.take_inbox(&mut self.commands);
                self.wake.clear();
            } else {
                self.wake.clear();
                self.port.take_inbox(&mut self.commands);
            }
        }
        progress |= !self.commands.is_empty();
        self.execute();
        while self.submitted || self.disk.in_flight() > 0 || !self.done.is_empty() {
            self.submitted = false;
            self.disk.reap(false, &mut self.done);
            if self.done.is_empty() {
                break;
            }
            progress = true;
            for done in self.done.drain(..) {
                self.port
                    .io_done(done.tag, done.result, done.buffer, &mut self.commands);
            }
            self.execute();
            if !self.submitted {
                break;
            }
        }
        if !self.silent {
            let published = self.ring.publish();
            self.check(published);
        }
        progress
    }

    /// A stop: no new requests, all that was taken is finished. The end of the
    /// view: the same, but after [`GRACE`] what need not be finished is abandoned. A
    /// hang-up: the same at once, and in silence.
    fn look_for_stop(&mut self) {
        let leaving = self.leave.is_set();
        self.stopping = leaving || self.stop.is_set();
        if !self.stopping || self.abandoning {
            return;
        }
        let hung_up = self.hung_up.load(Ordering::Acquire);
        self.silent = hung_up;
        let late = leaving && self.grace_left().is_zero();
        if hung_up || late {
            self.abandoning = true;
            self.port.abandon();
            self.disk.abandon(self.port.abandonable());
        }
    }

    fn grace_left(&mut self) -> Duration {
        let since = *self.leaving_since.get_or_insert_with(Instant::now);
        GRACE.saturating_sub(since.elapsed())
    }

    fn is_drained(&self) -> bool {
        self.slots.is_empty()
            && self.disk.in_flight() == 0
            && self.commands.is_empty()
            && self.done.is_empty()
            && self.port.is_idle()
    }

    /// Sleeps until a kick, a completion, the engine or a stop.
    fn wait(&mut self) {
        if self.disk.in_flight() > 0 && self.disk.event_fd().is_none() {
            // A disk driven by its test: it completes when asked.
            self.disk.reap(true, &mut self.done);
        }
        let timeout = if !self.done.is_empty() {
            Some(Timespec::default())
        } else if self.leaving_since.is_some() && !self.abandoning {
            Timespec::try_from(self.grace_left()).ok()
        } else if self.stopping {
            Some(Timespec {
                tv_sec: SLOW_DRAIN_SECONDS,
                tv_nsec: 0,
            })
        } else {
            None
        };
        self.events.clear();
        let waited = sync::wait(timeout, |timeout| {
            epoll::wait(&self.epoll, spare_capacity(&mut self.events), timeout)
        });
        match waited {
            Ok(0) if self.leaving_since.is_some() && !self.abandoning => {}
            Ok(0) if self.stopping && self.done.is_empty() => warn!(
                "{}: stopping takes long: {} requests are under way, {} operations of them on disks",
                self.name,
                self.slots.taken(),
                self.disk.in_flight()
            ),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => error!("{}: epoll: {e}", self.name),
        }
        let mut kicked = false;
        for event in &self.events {
            match event.data.u64() {
                KICK => kicked = true,
                WAKE => self.woken = true,
                // Also with nothing in flight: the descriptor can be set after its
                // completion was taken, and only reaping clears it.
                DISK => self.submitted = true,
                // The next round looks at the stop flag.
                _ => {}
            }
        }
        if kicked && !self.broken {
            let disarmed = self.ring.disarm();
            self.check(disarmed);
        }
    }

    /// Does what a worker before this one left undone, before anything new.
    fn replay(&mut self) {
        let heads = std::mem::take(&mut self.replay);
        if heads.is_empty() {
            return;
        }
        info!(
            "{}: {} requests go on that were under way when the last back end ended",
            self.name,
            heads.len()
        );
        let device: &BlkDevice = self.space.device();
        let taken = &mut self.taken;
        let result = self.ring.replay(&heads, |head, chain| {
            taken.push((head, parse(chain, device)));
        });
        self.accept_taken(result);
    }

    /// Takes what is available; the number of heads.
    fn take_heads(&mut self) -> usize {
        let device: &BlkDevice = self.space.device();
        let taken = &mut self.taken;
        let result = self.ring.take_available(|head, chain| {
            taken.push((head, parse(chain, device)));
        });
        self.accept_taken(result.map(drop))
    }

    fn accept_taken(&mut self, result: Result<(), RingFault>) -> usize {
        let mut taken = std::mem::take(&mut self.taken);
        let count = taken.len();
        for (head, parsed) in taken.drain(..) {
            match parsed {
                Ok(request) => self.accept(head, request),
                Err(refused) => {
                    debug!("{}: refused: {}", self.name, refused.reason);
                    self.answer(head, refused.status, refused.code, 1);
                }
            }
        }
        self.taken = taken;
        if let Err(fault) = result {
            self.fault(&fault);
        }
        count
    }

    /// Hands a valid request to the engine, or answers it here.
    fn accept(&mut self, head: Taken, request: BlkRequest) {
        let status = Some(request.status);
        let Some(data) = GuestData::map(self.ring.hold(), &request.data) else {
            debug!("{}: refused: data outside guest memory", self.name);
            return self.answer(head, status, BlkStatus::IoErr, 1);
        };
        let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let through = self.write_through.load(Ordering::Relaxed);
        let mut zeroes = None;
        let (kind, sector, sectors, written) = match request.action {
            Action::Read { sector, sectors } => {
                (RequestKind::Read, sector, sectors, len.saturating_add(1))
            }
            Action::Write { sector, sectors } => {
                let durable = through;
                (RequestKind::Write { durable }, sector, sectors, 1)
            }
            Action::WriteZeroes {
                sector,
                sectors,
                unmap,
            } => {
                let durable = through;
                zeroes = Some((sectors, unmap));
                (RequestKind::Write { durable }, sector, sectors, 1)
            }
            Action::Discard { sector, sectors } => (RequestKind::Discard, sector, sectors, 1),
            Action::Flush => (RequestKind::Flush, 0, 0, 1),
            Action::GetId => {
                let copied = data.copy_in(&self.space.device().id());
                let written = u32::try_from(copied).unwrap_or(0).saturating_add(1);
                return self.answer(head, status, BlkStatus::Ok, written);
            }
        };
        let data = match zeroes {
            Some((sectors, unmap)) => RequestData::Zeroes {
                len: usize::try_from(sectors << SECTOR_SHIFT).unwrap_or(usize::MAX),
                unmap,
            },
            None => RequestData::Guest(data),
        };
        let in_flight = InFlight {
            head,
            status: request.status,
            data,
            written,
        };
        match self.slots.insert(in_flight) {
            Ok(slot) => {
                let request = Request {
                    slot,
                    kind,
                    sector,
                    sectors,
                };
                self.port.request(request, &mut self.commands);
            }
            // The ring was asked for no more than there are slots.
            Err(request) => self.answer(request.head, Some(request.status), BlkStatus::IoErr, 1),
        }
    }

    /// Carries out the engine's commands.
    fn execute(&mut self) {
        let mut commands = std::mem::take(&mut self.commands);
        for command in commands.drain(..) {
            match command.execution(&mut self.slots) {
                Execution::Submit(op) => self.submit(op),
                Execution::Refuse(done) => self.refuse(done),
                Execution::Complete { slot, status } => self.complete(slot, status),
                Execution::ControlDone { id, .. } => {
                    debug!("{}: a queue has no control request {id}", self.name);
                }
                Execution::Notice(notice) => debug!("{}: not for a queue: {notice:?}", self.name),
            }
        }
        // Executing never makes commands, so none was added meanwhile.
        self.commands = commands;
    }

    fn submit(&mut self, op: Op) {
        let flush = matches!(op.kind, OpKind::Flush);
        if self.abandoning && !flush && self.port.abandonable()(op.tag) {
            self.done.push(Done {
                tag: op.tag,
                result: Err(Errno::ECANCELED),
                buffer: None,
            });
            return;
        }
        self.disk.submit(op);
        self.submitted = true;
    }

    /// A command names data that its request does not have. The engine still gets the
    /// end of the operation.
    fn refuse(&mut self, done: Done) {
        error!(
            "{}: operation {} names data that its request does not have",
            self.name, done.tag
        );
        self.done.push(done);
    }

    fn complete(&mut self, slot: Slot, status: Status) {
        let Some(request) = self.slots.remove(slot) else {
            error!("{}: slot {slot} ended without a request", self.name);
            return;
        };
        let (code, len) = match status {
            Status::Ok => (BlkStatus::Ok, request.written),
            // It may have failed for no other reason than that it was abandoned.
            Status::IoError if self.abandoning => {
                self.undone = true;
                return;
            }
            Status::IoError => (BlkStatus::IoErr, 1),
        };
        self.answer(request.head, Some(request.status), code, len);
    }

    /// The only place where a head goes back: status byte, then used ring. A
    /// status byte that cannot be written means that nothing was.
    fn answer(&mut self, head: Taken, status: Option<GuestAddress>, code: BlkStatus, len: u32) {
        if self.silent {
            self.undone = true;
            return;
        }
        let map = &*self.ring.hold().map;
        let told = status.is_some_and(|address| map.write_obj(code.byte(), address).is_ok());
        let pushed = self.ring.give_back(head, if told { len } else { 0 });
        self.check(pushed);
    }

    fn check(&mut self, result: Result<(), RingFault>) {
        if let Err(fault) = result {
            self.fault(&fault);
        }
    }

    /// Gives the ring up until the front end starts it anew.
    fn fault(&mut self, fault: &RingFault) {
        if std::mem::replace(&mut self.broken, true) {
            return;
        }
        error!(
            "{}: the guest's ring is malformed and has been stopped: {fault}",
            self.name
        );
        if let Some(err) = &self.err {
            err.notify();
        }
    }
}
