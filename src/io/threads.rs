//! Disk over a few blocking threads, where io_uring is missing or forbidden.
#![allow(unsafe_code)] // Named file: hands pointers to the kernel.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};

use super::devices::{DeviceTable, Devices};
use super::transfer::{Direction, Iovecs, Next, Transfer};
use super::zeroing::{Call, ZeroWork};
use super::{BlockFile, Disk, Done, Errno, Op, OpKind, Tag};
use crate::event_flag::EventFlag;
use crate::sandbox::{self, Kind};

/// Most threads of one disk.
const THREADS_MAX: u32 = 8;

enum Action {
    Transfer(Transfer),
    Flush,
    Zero(ZeroWork),
}

struct Job {
    tag: Tag,
    file: Arc<BlockFile>,
    work: Action,
}

#[derive(Default)]
struct Queues {
    jobs: VecDeque<Job>,
    done: Vec<Done>,
    closed: bool,
    /// Threads that wait for a job and were not woken for one; more, if some woke by
    /// themselves.
    idle: usize,
    /// The owner waits for the end of an operation.
    awaited: bool,
}

struct Shared {
    queues: Mutex<Queues>,
    /// Wakes the threads: there are jobs, or the disk is closed.
    work: Condvar,
    /// Wakes the owner: an operation has ended.
    ended: Condvar,
    notify: EventFlag,
    abandoned: OnceLock<fn(Tag) -> bool>,
}

impl Shared {
    fn is_abandoned(&self, tag: Tag) -> bool {
        self.abandoned.get().is_some_and(|which| which(tag))
    }

    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, done: Done) {
        let mut queues = self.lock();
        if queues.done.is_empty() {
            self.notify.set();
        }
        queues.done.push(done);
        if std::mem::take(&mut queues.awaited) {
            self.ended.notify_one();
        }
    }

    /// The loop of each thread.
    fn work(&self) {
        let mut queues = self.lock();
        loop {
            if let Some(job) = queues.jobs.pop_front() {
                drop(queues);
                let done = self.carry_out(job);
                self.end(done);
                queues = self.lock();
            } else if queues.closed {
                return;
            } else {
                queues.idle += 1;
                queues = self
                    .work
                    .wait(queues)
                    .unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    fn carry_out(&self, job: Job) -> Done {
        let Job { tag, file, work } = job;
        match work {
            Action::Flush => {
                let result = loop {
                    match rustix::fs::fdatasync(&*file) {
                        Err(rustix::io::Errno::INTR) => {}
                        other => break other.map_err(|e| Errno(e.raw_os_error())),
                    }
                };
                let result = result.and_then(|()| file.check_flush());
                Done {
                    tag,
                    result,
                    buffer: None,
                }
            }
            Action::Zero(mut zero) => {
                let (offset, len) = zero.range();
                let result = loop {
                    if self.is_abandoned(tag) {
                        break Err(Errno::ECANCELED);
                    }
                    let called = match zero.prepare(&file) {
                        Some(Call::Write(transfer)) => call(&file, transfer),
                        Some(Call::Allocate(how)) => {
                            file.check_write(offset.saturating_add(len)).and_then(|()| {
                                rustix::fs::fallocate(&*file, how.flags(), offset, len)
                                    .map(|()| 0)
                                    .map_err(|e| Errno(e.raw_os_error()))
                            })
                        }
                        None => Ok(0),
                    };
                    if let Next::Finished(result) = zero.advance(&file, called) {
                        break result;
                    }
                };
                Done {
                    tag,
                    result,
                    buffer: None,
                }
            }
            Action::Transfer(mut transfer) => {
                let result = loop {
                    if self.is_abandoned(tag) {
                        break Err(Errno::ECANCELED);
                    }
                    transfer.prepare(&file);
                    let moved = call(&file, &transfer);
                    if let Next::Finished(result) = transfer.advance(&file, moved) {
                        break result;
                    }
                };
                Done {
                    tag,
                    result,
                    buffer: Some(transfer.into_parts().0),
                }
            }
        }
    }
}

/// See the module documentation.
pub struct ThreadDisk {
    devices: DeviceTable,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    most_threads: usize,
    in_flight: usize,
}

impl ThreadDisk {
    /// `depth`: operations that the kernel works on at once, 1 ..= 8; more can be
    /// submitted and wait inside. Threads start as they are needed.
    pub fn new(devices: Arc<Devices>, depth: u32) -> io::Result<Self> {
        let shared = Shared {
            queues: Mutex::default(),
            work: Condvar::new(),
            ended: Condvar::new(),
            notify: EventFlag::new()?,
            abandoned: OnceLock::new(),
        };
        let mut disk = Self {
            devices: DeviceTable::new(devices),
            shared: Arc::new(shared),
            threads: Vec::new(),
            most_threads: usize::try_from(depth.clamp(1, THREADS_MAX)).unwrap_or(1),
            in_flight: 0,
        };
        // With one thread everything works; so a later shortage does no harm.
        disk.start_thread()?;
        Ok(disk)
    }

    fn start_thread(&mut self) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let builder = thread::Builder::new().name("snapback-io".to_owned());
        let thread = builder.spawn(move || {
            sandbox::thread(Kind::Disk);
            shared.work();
        })?;
        self.threads.push(thread);
        Ok(())
    }

    fn end(&self, tag: Tag, result: Result<(), Errno>, buffer: Option<super::Buffer>) {
        self.shared.end(Done {
            tag,
            result,
            buffer,
        });
    }

    fn start(&mut self, job: Job) {
        let mut queues = self.shared.lock();
        queues.jobs.push_back(job);
        // A thread that does not wait looks for jobs before it does.
        if queues.idle > 0 {
            queues.idle -= 1;
            self.shared.work.notify_one();
        }
        drop(queues);
        if self.in_flight > self.threads.len() && self.threads.len() < self.most_threads {
            // One is there already.
            let _ = self.start_thread();
        }
    }
}

/// The system call for the prepared part.
fn call(file: &BlockFile, transfer: &Transfer) -> Result<usize, Errno> {
    let fd = file.as_fd().as_raw_fd();
    let iovecs = transfer.iovecs();
    let count = i32::try_from(iovecs.len()).map_err(|_| Errno::EINVAL)?;
    let offset = i64::try_from(transfer.position()).map_err(|_| Errno::EINVAL)?;
    if transfer.direction() != Direction::Read {
        file.check_write(transfer.end())?;
    }
    let moved = match transfer.direction() {
        Direction::Read => {
            // SAFETY: the iovecs name memory that `transfer` owns or keeps mapped,
            // writable when read into, for longer than this call.
            unsafe { libc::preadv(fd, iovecs.as_ptr(), count, offset) }
        }
        Direction::Write { durable } => {
            let flags = if durable { libc::RWF_DSYNC } else { 0 };
            // SAFETY: as above; the kernel only reads here.
            unsafe { libc::pwritev2(fd, iovecs.as_ptr(), count, offset, flags) }
        }
    };
    usize::try_from(moved).map_err(|_| {
        Errno(
            io::Error::last_os_error()
                .raw_os_error()
                .unwrap_or(libc::EIO),
        )
    })
}

impl Disk for ThreadDisk {
    fn submit(&mut self, op: Op) {
        let Op { tag, device, kind } = op;
        self.in_flight += 1;
        let (place, file) = match self.devices.acquire(device) {
            Ok((place, _)) => (place, self.devices.file(place).cloned()),
            Err(errno) => {
                let buffer = match kind {
                    OpKind::Read { buffer, .. } | OpKind::Write { buffer, .. } => Some(buffer),
                    OpKind::Flush | OpKind::Zero { .. } => None,
                };
                return self.end(tag, Err(errno), buffer);
            }
        };
        // The job keeps the file open by itself.
        self.devices.release(place);
        let Some(file) = file else {
            return self.end(tag, Err(Errno::ENODEV), None);
        };
        let (direction, offset, buffer) = match kind {
            OpKind::Read { offset, buffer } => (Direction::Read, offset, buffer),
            OpKind::Write {
                offset,
                buffer,
                durable,
            } => (Direction::Write { durable }, offset, buffer),
            OpKind::Flush => {
                return self.start(Job {
                    tag,
                    file,
                    work: Action::Flush,
                });
            }
            OpKind::Zero { offset, len, how } => {
                return match ZeroWork::new(&file, offset, len, how) {
                    Ok(zero) if !zero.is_nothing() => self.start(Job {
                        tag,
                        file,
                        work: Action::Zero(zero),
                    }),
                    ended => self.end(tag, ended.map(drop), None),
                };
            }
        };
        match Transfer::new(&file, direction, offset, buffer, Iovecs::default()) {
            Ok(transfer) if transfer.is_empty() => {
                self.end(tag, Ok(()), Some(transfer.into_parts().0))
            }
            Ok(transfer) => self.start(Job {
                tag,
                file,
                work: Action::Transfer(transfer),
            }),
            Err((errno, buffer)) => self.end(tag, Err(errno), Some(buffer)),
        }
    }

    fn reap(&mut self, wait: bool, done: &mut Vec<Done>) {
        let mut queues = self.shared.lock();
        while wait && self.in_flight > 0 && queues.done.is_empty() {
            queues.awaited = true;
            queues = self
                .shared
                .ended
                .wait(queues)
                .unwrap_or_else(PoisonError::into_inner);
        }
        self.in_flight -= queues.done.len();
        done.append(&mut queues.done);
        // Under the lock, so that it does not clear the flag of a later completion. All who
        // set it hold the lock, so the descriptor is readable if and only if it is set.
        if self.shared.notify.is_set() {
            self.shared.notify.clear();
        }
    }

    fn abandon(&mut self, which: fn(Tag) -> bool) {
        // Only the first call counts: nothing withdraws it.
        let _ = self.shared.abandoned.set(which);
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.shared.notify.as_fd())
    }

    fn has_news(&mut self) -> bool {
        self.shared.notify.is_set()
    }
}

impl Drop for ThreadDisk {
    fn drop(&mut self) {
        let dropped = {
            let mut queues = self.shared.lock();
            queues.closed = true;
            // Jobs that no thread has begun need not begin.
            std::mem::take(&mut queues.jobs)
        };
        drop(dropped);
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            // The panic of a thread was already reported.
            let _ = thread.join();
        }
    }
}
