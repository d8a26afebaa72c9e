//! Disk over io_uring: one ring, used by one thread.
//!
//! The ring defers the kernel's completion work to system calls of the owner, which is
//! the cheapest mode if one thread handles many operations at once. In this mode nothing
//! completes until the owner enters the ring, but a flag in shared memory shows (and the
//! event descriptor becomes readable) as soon as there is something to complete.
//!
//! In this mode the owner can also sleep in the ring: one call then submits, waits for
//! completions and for other threads' events, and takes them (`watch.rs`).
#![allow(unsafe_code)] // Named file: hands pointers to the kernel.

mod build;
mod pieces;
mod watch;

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use io_uring::{IoUring, opcode, types};

use super::devices::{DeviceTable, Devices, Place};
use super::sqe::{allocate_sqe, flush_sqe, transfer_sqe};
use super::transfer::{Direction, Iovecs, Next, Transfer};
use super::zeroing::{Call, ZeroWork};
use super::{BlockFile, Buffer, DeviceId, Disk, Done, Errno, Op, OpKind, Tag, Watched, Zeroing};
use crate::event_flag::EventFlag;
use watch::Watches;

/// Bytes that one call of `reap` submits before it returns: the kernel copies what is in
/// the page cache during the call, and the caller must check for a stop in between.
const WINDOW: usize = 64 << 20;

/// What an operation does.
enum Action {
    Transfer(Transfer),
    /// The flush of a durable write whose data is written.
    Sync(Transfer),
    Flush,
    Zero(Box<ZeroWork>),
}

impl Action {
    /// Whether it may go to the kernel now.
    fn check(&self, file: &BlockFile) -> Result<(), Errno> {
        let end = match self {
            Self::Transfer(transfer) if transfer.direction() != Direction::Read => transfer.end(),
            Self::Zero(zero) => {
                let (offset, len) = zero.range();
                offset.saturating_add(len)
            }
            Self::Transfer(_) | Self::Sync(_) | Self::Flush => return Ok(()),
        };
        file.check_write(end)
    }
}

/// An accepted operation. It stays at its index until its completion is taken, so that
/// the memory that the kernel uses does not move.
struct Entry {
    tag: Tag,
    place: Place,
    work: Action,
}

/// See the module documentation. The thread that reaps first owns the disk from
/// then on; it may be moved to that thread before, not afterwards.
pub struct UringDisk {
    ring: IoUring,
    /// The ring was created disabled, so that it belongs to the thread that uses it.
    enabled: bool,
    depth: usize,
    devices: DeviceTable,
    entries: Vec<Option<Entry>>,
    free: Vec<usize>,
    /// Accepted and not submitted to the kernel: new, or to be continued.
    ready: VecDeque<usize>,
    in_kernel: usize,
    /// Ended without a submission to the kernel.
    ended: Vec<Done>,
    iovecs: Vec<Iovecs>,
    notify: EventFlag,
    /// The owner sleeps in the ring, and `notify` is not used.
    watches: Option<Watches>,
    abandoned: Option<fn(Tag) -> bool>,
}

impl UringDisk {
    /// `depth`: operations that the kernel works on at once, 1 ..= 4096; further ones
    /// wait in a queue. Fails where io_uring is missing or forbidden.
    pub fn new(devices: Arc<Devices>, depth: u32) -> io::Result<Self> {
        let depth = depth.clamp(1, 4096);
        let ring = build::ring(depth)?;
        let notify = EventFlag::new()?;
        ring.submitter()
            .register_eventfd(notify.as_fd().as_raw_fd())?;
        Ok(Self {
            ring,
            enabled: false,
            depth: usize::try_from(depth).unwrap_or(1),
            devices: DeviceTable::new(devices),
            entries: Vec::new(),
            free: Vec::new(),
            ready: VecDeque::new(),
            in_kernel: 0,
            ended: Vec::new(),
            iovecs: Vec::new(),
            notify,
            watches: None,
            abandoned: None,
        })
    }

    /// The owner must call [`Disk::reap`], although no completion will come.
    fn wake_owner(&self) {
        // An owner that sleeps in the ring looks by itself.
        if self.watches.is_none() {
            self.notify.set();
        }
    }

    /// Ends an operation that is not submitted to the kernel.
    fn end(&mut self, tag: Tag, result: Result<(), Errno>, buffer: Option<Buffer>) {
        if self.ended.is_empty() {
            self.wake_owner();
        }
        self.ended.push(Done {
            tag,
            result,
            buffer,
        });
    }

    fn submit_transfer(
        &mut self,
        tag: Tag,
        device: DeviceId,
        direction: Direction,
        offset: u64,
        buffer: Buffer,
    ) {
        let (place, file) = match self.devices.acquire(device) {
            Ok(found) => found,
            Err(errno) => return self.end(tag, Err(errno), Some(buffer)),
        };
        let iovecs = self.iovecs.pop().unwrap_or_default();
        match Transfer::new(file, direction, offset, buffer, iovecs) {
            Ok(transfer) if !transfer.is_empty() => {
                self.accept(tag, place, Action::Transfer(transfer));
            }
            Ok(transfer) => {
                self.devices.release(place);
                self.end(tag, Ok(()), Some(transfer.into_parts().0));
            }
            Err((errno, buffer)) => {
                self.devices.release(place);
                self.end(tag, Err(errno), Some(buffer));
            }
        }
    }

    fn submit_zero(&mut self, tag: Tag, device: DeviceId, offset: u64, len: u64, how: Zeroing) {
        let (place, file) = match self.devices.acquire(device) {
            Ok(found) => found,
            Err(errno) => return self.end(tag, Err(errno), None),
        };
        match ZeroWork::new(file, offset, len, how) {
            Ok(zero) if !zero.is_nothing() => {
                self.accept(tag, place, Action::Zero(Box::new(zero)));
            }
            ended => {
                self.devices.release(place);
                self.end(tag, ended.map(drop), None);
            }
        }
    }

    fn accept(&mut self, tag: Tag, place: Place, work: Action) {
        let entry = Some(Entry { tag, place, work });
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                self.entries.push(None);
                self.entries.len() - 1
            }
        };
        if let Some(slot) = self.entries.get_mut(index) {
            *slot = entry;
        }
        self.ready.push_back(index);
    }

    /// Moves what is ready into the submission queue, as far as it has room and `window`
    /// bytes allow. Abandoned operations end instead.
    fn fill_queue(&mut self, window: &mut usize, done: &mut Vec<Done>) {
        while self.in_kernel < self.depth
            && *window > 0
            && let Some(index) = self.ready.front().copied()
        {
            let Some(Some(entry)) = self.entries.get_mut(index) else {
                break;
            };
            if !matches!(entry.work, Action::Flush)
                && self.abandoned.is_some_and(|which| which(entry.tag))
            {
                self.ready.pop_front();
                self.finish(index, Err(Errno::ECANCELED), done);
                continue;
            }
            let Some(file) = self.devices.file(entry.place) else {
                break;
            };
            let fd = types::Fd(file.as_fd().as_raw_fd());
            if let Err(errno) = entry.work.check(file) {
                self.ready.pop_front();
                self.finish(index, Err(errno), done);
                continue;
            }
            let sqe = match &mut entry.work {
                Action::Transfer(transfer) => {
                    transfer.prepare(file);
                    *window = window.saturating_sub(transfer.prepared());
                    transfer_sqe(fd, transfer, !file.flushes_apart())
                }
                Action::Sync(_) | Action::Flush => flush_sqe(fd),
                Action::Zero(zero) => {
                    let (offset, len) = zero.range();
                    match zero.prepare(file) {
                        Some(Call::Write(transfer)) => transfer_sqe(fd, transfer, true),
                        Some(Call::Allocate(how)) => allocate_sqe(fd, how, offset, len),
                        // `submit` does not accept such an operation.
                        None => opcode::Nop::new().build(),
                    }
                }
            };
            let sqe = sqe.user_data(u64::try_from(index).unwrap_or(u64::MAX));
            // SAFETY: everything the entry points at is owned by `entries[index]`
            // (buffer, bounce buffer, iovecs on the heap) or, for the descriptor,
            // held open by `devices` until `release`. Both last until the
            // completion is taken: `Drop` waits for it.
            if unsafe { self.ring.submission().push(&sqe) }.is_err() {
                break;
            }
            let transfer = match &entry.work {
                Action::Transfer(transfer) if file.waits_for_device() => {
                    Some((entry.place, transfer.direction(), transfer.end()))
                }
                _ => None,
            };
            self.ready.pop_front();
            self.in_kernel += 1;
            if let Some((place, direction, end)) = transfer
                && self.next_is_apart(place, direction, end)
            {
                self.submit_piece();
            }
        }
    }

    fn enable(&mut self) {
        if !self.enabled {
            self.ring
                .submitter()
                .register_enable_rings()
                .expect("an io_uring that was just created can be enabled");
            self.enabled = true;
        }
    }

    /// Enters the kernel if that is needed; with `wait`, until there is a completion or
    /// that time has passed. False: the kernel could not take the submissions; try again
    /// later.
    fn enter(&mut self, wait: Wait) -> bool {
        self.enable();
        let submission = self.ring.submission();
        let needed = !submission.is_empty() || submission.taskrun() || submission.cq_overflow();
        drop(submission);
        let submitter = self.ring.submitter();
        let entered = match wait {
            Wait::No if !needed => return true,
            Wait::No => submitter.submit_and_wait(0),
            Wait::Ever => submitter.submit_and_wait(1),
            Wait::AtMost(time) => {
                let time = types::Timespec::from(time);
                submitter.submit_with_args(1, &types::SubmitArgs::new().timespec(&time))
            }
        };
        match entered {
            Ok(_) => true,
            Err(e) => match e.raw_os_error() {
                Some(libc::EINTR | libc::ETIME) => true,
                // Out of memory, or completions have to be taken first.
                Some(libc::EAGAIN | libc::EBUSY | libc::ENOMEM) => false,
                // Only a defect of this program leads here (EEXIST: a thread that is not
                // the owner), and to continue could lose guest data.
                _ => panic!("io_uring_enter: {e}"),
            },
        }
    }

    /// Takes all completions; returns whether there were any.
    fn take_completions(&mut self, done: &mut Vec<Done>) -> bool {
        let mut any = false;
        loop {
            let cqe = self.ring.completion().next();
            let Some(cqe) = cqe else { return any };
            let watches = self.watches.as_mut();
            if watches.is_some_and(|w| w.take(&cqe)) {
                continue;
            }
            any = true;
            self.in_kernel -= 1;
            let index = usize::try_from(cqe.user_data()).unwrap_or(usize::MAX);
            let result =
                usize::try_from(cqe.result()).map_err(|_| Errno(cqe.result().saturating_neg()));
            self.take(index, result, done);
        }
    }

    fn take(&mut self, index: usize, result: Result<usize, Errno>, done: &mut Vec<Done>) {
        let Some(slot) = self.entries.get_mut(index) else {
            return;
        };
        let Some(mut entry) = slot.take() else { return };
        let next = match (&mut entry.work, self.devices.file(entry.place)) {
            (Action::Transfer(transfer), Some(file)) => transfer.advance(file, result),
            (Action::Zero(zero), Some(file)) => zero.advance(file, result),
            (Action::Flush | Action::Sync(_), _)
                if matches!(result, Err(Errno(libc::EINTR | libc::EAGAIN))) =>
            {
                Next::Again
            }
            (Action::Flush | Action::Sync(_), Some(file)) => {
                Next::Finished(result.and_then(|_| file.check_flush()))
            }
            (Action::Transfer(_) | Action::Sync(_) | Action::Flush | Action::Zero(_), None) => {
                Next::Finished(result.map(drop))
            }
        };
        let (entry, next) = self.sync_after(entry, next);
        let Some(slot) = self.entries.get_mut(index) else {
            return;
        };
        match next {
            Next::Again => {
                *slot = Some(entry);
                // At the front of the queue, because it has begun.
                self.ready.push_front(index);
            }
            Next::Finished(result) => {
                *slot = Some(entry);
                self.finish(index, result, done);
            }
        }
    }

    /// A durable write that has ended well goes on with its flush, if its file needs one.
    fn sync_after(&self, entry: Entry, next: Next) -> (Entry, Next) {
        let Entry { tag, place, work } = entry;
        let file = self.devices.file(place);
        match (work, next) {
            (Action::Transfer(transfer), Next::Finished(Ok(())))
                if transfer.direction() == (Direction::Write { durable: true })
                    && file.is_some_and(|file| file.flushes_apart()) =>
            {
                let work = Action::Sync(transfer);
                (Entry { tag, place, work }, Next::Again)
            }
            (work, next) => (Entry { tag, place, work }, next),
        }
    }

    /// Ends an operation that the kernel does not work on.
    fn finish(&mut self, index: usize, result: Result<(), Errno>, done: &mut Vec<Done>) {
        let Some(entry) = self.entries.get_mut(index).and_then(Option::take) else {
            return;
        };
        self.free.push(index);
        self.devices.release(entry.place);
        let buffer = match entry.work {
            Action::Transfer(transfer) | Action::Sync(transfer) => {
                let (buffer, iovecs) = transfer.into_parts();
                // More would stay at the size of the longest request they ever served.
                if self.iovecs.len() < self.depth {
                    self.iovecs.push(iovecs);
                }
                Some(buffer)
            }
            Action::Flush | Action::Zero(_) => None,
        };
        done.push(Done {
            tag: entry.tag,
            result,
            buffer,
        });
    }

    /// Submits operations and takes completions until there is nothing to do without
    /// waiting; waits for completions while `until` returns false.
    fn run(&mut self, done: &mut Vec<Done>, until: impl Fn(&Self, &[Done]) -> bool) {
        let mut window = WINDOW;
        loop {
            self.fill_queue(&mut window, done);
            let wait = !until(self, done);
            let entered = self.enter(if wait { Wait::Ever } else { Wait::No });
            let any = self.take_completions(done);
            if !entered && !any {
                if !wait {
                    // No completion will come for what stays in the queue.
                    self.wake_owner();
                    return;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            if window == 0 {
                if until(self, done) {
                    self.wake_owner();
                    return;
                }
                window = WINDOW;
            }
            let more = !self.ready.is_empty() && self.in_kernel < self.depth;
            if !more && !any && until(self, done) {
                return;
            }
        }
    }
}

/// How long a call may sleep.
#[derive(Clone, Copy)]
enum Wait {
    No,
    AtMost(Duration),
    Ever,
}

/// The cheapest kind of ring that this kernel supports.
impl Disk for UringDisk {
    fn submit(&mut self, op: Op) {
        let Op { tag, device, kind } = op;
        match kind {
            OpKind::Read { offset, buffer } => {
                self.submit_transfer(tag, device, Direction::Read, offset, buffer);
            }
            OpKind::Write {
                offset,
                buffer,
                durable,
            } => {
                let direction = Direction::Write { durable };
                self.submit_transfer(tag, device, direction, offset, buffer);
            }
            OpKind::Flush => match self.devices.acquire(device) {
                Ok((place, _)) => self.accept(tag, place, Action::Flush),
                Err(errno) => self.end(tag, Err(errno), None),
            },
            OpKind::Zero { offset, len, how } => self.submit_zero(tag, device, offset, len, how),
        }
    }

    fn reap(&mut self, wait: bool, done: &mut Vec<Done>) {
        let before = done.len();
        done.append(&mut self.ended);
        self.run(done, |disk, done| {
            !wait || done.len() > before || disk.in_flight() == 0
        });
        if !wait && self.watches.is_none() {
            // 1 Clear → 2 look again. The kernel makes a completion (or the request to be
            // entered) visible before it writes to the descriptor, so step 2 sees the
            // reason of a write before step 1, and a later write sets it again.
            self.notify.clear();
            self.run(done, |_, _| true);
        }
    }

    fn abandon(&mut self, which: fn(Tag) -> bool) {
        self.abandoned = Some(which);
        // Operations that wait in the queue end without the kernel.
        self.wake_owner();
    }

    fn in_flight(&self) -> usize {
        self.entries.len() - self.free.len() + self.ended.len()
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.notify.as_fd())
    }

    fn watch(&mut self, events: Vec<Watched>) -> bool {
        // Before Linux 6.1 not all that it needs is there.
        if !self.ring.params().is_setup_single_issuer()
            || self.ring.submitter().unregister_eventfd().is_err()
        {
            return false;
        }
        self.watches = Some(Watches::new(events));
        true
    }

    fn wait(&mut self, timeout: Option<Duration>, done: &mut Vec<Done>) -> u32 {
        done.append(&mut self.ended);
        let mut window = WINDOW;
        self.fill_queue(&mut window, done);
        let Self { watches, ring, .. } = self;
        let armed = watches.as_mut().is_some_and(|w| w.arm(ring));
        let sleep = match timeout {
            // What is ready and has no room yet is submitted at the next call.
            _ if !done.is_empty() || window == 0 || !armed => Wait::No,
            Some(time) => Wait::AtMost(time),
            None => Wait::Ever,
        };
        let entered = self.enter(sleep);
        if !self.take_completions(done) && !entered {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.watches.as_mut().map_or(0, Watches::happened)
    }

    fn has_news(&mut self) -> bool {
        !self.ended.is_empty() || watch::has_news(&mut self.ring)
    }

    fn signal(&mut self, event: &Arc<File>) -> bool {
        let Self { watches, ring, .. } = self;
        watches.as_mut().is_some_and(|w| w.signal(ring, event))
    }
}

impl Drop for UringDisk {
    /// The kernel goes on using the operations' memory after the ring is closed, so this
    /// waits until it has finished.
    fn drop(&mut self) {
        // What was not submitted to the kernel need not begin.
        self.ready.clear();
        let mut done = Vec::new();
        while self.in_kernel > 0 {
            self.enter(Wait::Ever);
            self.take_completions(&mut done);
            self.ready.clear();
            done.clear();
        }
    }
}

#[cfg(test)]
#[path = "uring_tests.rs"]
mod tests;
