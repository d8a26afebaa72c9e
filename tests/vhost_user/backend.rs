//! A stand-in for the engine that passes requests through to simulated disks.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use snapback::engine::{Command, Patch, Request, RequestKind, Status, Wake, Weight};
use snapback::io::sim::{Fill, SimDevices, SimDisk};
use snapback::io::{Buffer, DeviceId, Disk, Done, Errno, Op, OwnedBuffer, Tag, Zeroing};
use snapback::vhost::{Backend, Requests, Start, ViewHooks};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// One device for all queues of a view.
pub struct Volume {
    pub devices: SimDevices,
    pub device: DeviceId,
    /// Operations are kept back while this is not 0.
    pub held: Arc<AtomicUsize>,
    /// Operations that were submitted.
    pub submitted: Arc<AtomicUsize>,
    /// Ports that were informed that their requests are left undone.
    pub abandoned: Arc<AtomicUsize>,
    /// Ports that exist.
    pub ports: Arc<AtomicUsize>,
    /// Durable writes seen.
    pub durable: Arc<AtomicUsize>,
    /// Parts of requests that another one was to follow.
    pub followed: Arc<AtomicUsize>,
    /// Bytes that each request counts for.
    pub weight: Arc<AtomicU64>,
    /// Disks cannot be had.
    pub broken: AtomicUsize,
    /// An event descriptor for epoll, or none as a simulated disk has it.
    pub with_event_fd: bool,
    /// The event descriptors of the disks.
    pub events: Mutex<Vec<Arc<EventFd>>>,
}

impl Volume {
    pub fn new(sectors: u64) -> Arc<Self> {
        Arc::new(Self::with(sectors, true))
    }

    pub fn with(sectors: u64, with_event_fd: bool) -> Self {
        let devices = SimDevices::new(7);
        let device = devices.add(sectors, Fill::Zeroes);
        Self {
            devices,
            device,
            held: Arc::default(),
            submitted: Arc::default(),
            abandoned: Arc::default(),
            ports: Arc::default(),
            durable: Arc::default(),
            followed: Arc::default(),
            weight: Arc::default(),
            broken: AtomicUsize::new(0),
            with_event_fd,
            events: Mutex::default(),
        }
    }
}

impl Backend for Volume {
    fn disk(&self) -> io::Result<Box<dyn Disk>> {
        if self.broken.load(Ordering::SeqCst) != 0 {
            return Err(io::Error::other("no disk today"));
        }
        let disk = self.devices.disk();
        if !self.with_event_fd {
            return Ok(Box::new(disk));
        }
        let event = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        self.events.lock().unwrap().push(event.clone());
        Ok(Box::new(EventDisk {
            disk,
            event,
            held: Arc::clone(&self.held),
            submitted: Arc::clone(&self.submitted),
        }))
    }

    fn port(&self, slots: usize, _wake: Arc<dyn Wake>) -> Box<dyn Requests> {
        self.ports.fetch_add(1, Ordering::SeqCst);
        Box::new(PassThrough {
            device: self.device,
            requests: HashMap::new(),
            following: HashSet::new(),
            followed: Arc::clone(&self.followed),
            slots,
            ports: Arc::clone(&self.ports),
            durable: Arc::clone(&self.durable),
            abandoned: Arc::clone(&self.abandoned),
            weight: Arc::clone(&self.weight),
        })
    }
}

/// A simulated disk that epoll can wait for.
struct EventDisk {
    disk: SimDisk,
    event: Arc<EventFd>,
    held: Arc<AtomicUsize>,
    submitted: Arc<AtomicUsize>,
}

impl Disk for EventDisk {
    fn submit(&mut self, op: Op) {
        self.submitted.fetch_add(1, Ordering::SeqCst);
        self.disk.submit(op);
        self.event.write(1).unwrap();
    }

    fn reap(&mut self, wait: bool, done: &mut Vec<Done>) {
        let _ = self.event.read();
        if self.held.load(Ordering::SeqCst) == 0 {
            self.disk.reap(wait, done);
        }
        if self.disk.in_flight() > 0 {
            self.event.write(1).unwrap();
            std::thread::yield_now();
        }
    }

    fn in_flight(&self) -> usize {
        self.disk.in_flight()
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: the descriptor lives as long as the borrow of self.
        Some(unsafe { BorrowedFd::borrow_raw(std::os::fd::AsRawFd::as_raw_fd(&*self.event)) })
    }
}

struct Pending {
    left: usize,
    failed: bool,
}

/// Turns every request into operations on one device: pieces of at most 8 KiB,
/// and writes of less than 4 KiB through a bounce buffer of 4 KiB when aligned.
struct PassThrough {
    device: DeviceId,
    requests: HashMap<u16, Pending>,
    /// The slots in which another part is to follow.
    following: HashSet<u16>,
    followed: Arc<AtomicUsize>,
    slots: usize,
    ports: Arc<AtomicUsize>,
    durable: Arc<AtomicUsize>,
    abandoned: Arc<AtomicUsize>,
    weight: Arc<AtomicU64>,
}

const PIECE: usize = 8192;

impl Requests for PassThrough {
    /// So that long requests have several windows.
    fn weigh(&mut self, _: RequestKind, _: u64, _: u64) -> Weight {
        Weight {
            window: 256,
            bytes: self.weight.load(Ordering::SeqCst),
        }
    }

    fn request(&mut self, request: Request, more: bool, out: &mut Vec<Command>) {
        let slot = request.slot;
        self.following.remove(&slot);
        if more {
            self.following.insert(slot);
            self.followed.fetch_add(1, Ordering::SeqCst);
        }
        assert!(
            usize::from(slot) < self.slots,
            "slot {slot} of {}",
            self.slots
        );
        let device = self.device;
        let tag = Tag::from(slot);
        let before = out.len();
        let offset = request.sector * 512;
        let len = usize::try_from(request.sectors * 512).unwrap();
        match request.kind {
            RequestKind::Flush => out.push(Command::Flush { tag, device }),
            RequestKind::Discard => out.push(Command::Zero {
                tag,
                device,
                offset,
                len: request.sectors * 512,
                how: Zeroing::Discard,
            }),
            RequestKind::Write { durable } if len < 4096 => {
                self.durable
                    .fetch_add(usize::from(durable), Ordering::SeqCst);
                let patch = Patch {
                    slot,
                    slot_offset: 0,
                    buffer_offset: 0,
                    len,
                };
                let buffer = Buffer::Owned(OwnedBuffer::zeroed(len));
                out.push(Command::Write {
                    tag,
                    device,
                    offset,
                    buffer,
                    durable,
                    patch: Some(patch),
                });
            }
            _ => {
                for start in (0..len).step_by(PIECE) {
                    let (len, slot_offset) = (PIECE.min(len - start), start);
                    let offset = offset + start as u64;
                    out.push(match request.kind {
                        RequestKind::Write { durable } => {
                            self.durable
                                .fetch_add(usize::from(durable), Ordering::SeqCst);
                            Command::GuestWrite {
                                tag,
                                device,
                                offset,
                                slot,
                                slot_offset,
                                len,
                                durable,
                            }
                        }
                        _ => Command::GuestRead {
                            tag,
                            device,
                            offset,
                            slot,
                            slot_offset,
                            len,
                        },
                    });
                }
            }
        }
        let pending = Pending {
            left: out.len() - before,
            failed: false,
        };
        assert!(
            self.requests.insert(slot, pending).is_none(),
            "slot {slot} is in use"
        );
    }

    fn io_done(
        &mut self,
        tag: Tag,
        result: Result<(), Errno>,
        _buffer: Option<Buffer>,
        out: &mut Vec<Command>,
    ) {
        let slot = u16::try_from(tag).unwrap();
        let pending = self.requests.get_mut(&slot).unwrap();
        pending.failed |= result.is_err();
        pending.left -= 1;
        if pending.left == 0 {
            let pending_failed = pending.failed;
            let status = if pending_failed {
                Status::IoError
            } else {
                Status::Ok
            };
            self.requests.remove(&slot);
            if pending_failed {
                self.following.remove(&slot);
            }
            out.push(Command::Complete { slot, status });
        }
    }

    fn give_up(&mut self, slot: u16, _out: &mut Vec<Command>) {
        assert!(self.following.remove(&slot), "nothing was to follow");
    }

    fn take_inbox(&mut self, _out: &mut Vec<Command>) {}

    fn is_idle(&self) -> bool {
        self.requests.is_empty()
    }

    fn abandon(&mut self) {
        self.abandoned.fetch_add(1, Ordering::SeqCst);
    }
}

impl Drop for PassThrough {
    fn drop(&mut self) {
        assert!(
            self.requests.is_empty(),
            "a port was dropped with requests under way"
        );
        assert!(
            self.following.is_empty(),
            "a port was dropped with parts to follow"
        );
        self.ports.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Records its calls, with the number of open ports.
#[derive(Default)]
pub struct CallLog {
    pub lines: Mutex<Vec<(&'static str, usize)>>,
    pub ports: Mutex<Arc<AtomicUsize>>,
}

impl CallLog {
    pub fn of(volume: &Volume) -> Arc<Self> {
        let call_log = Self::default();
        *call_log.ports.lock().unwrap() = Arc::clone(&volume.ports);
        Arc::new(call_log)
    }

    fn note(&self, line: &'static str) {
        let ports = self.ports.lock().unwrap().load(Ordering::SeqCst);
        self.lines.lock().unwrap().push((line, ports));
    }

    pub fn read(&self) -> Vec<&'static str> {
        self.lines
            .lock()
            .unwrap()
            .iter()
            .map(|(line, _)| *line)
            .collect()
    }
}

impl ViewHooks for CallLog {
    fn attached(&self) {
        self.note("attached");
    }
    fn detached(&self) {
        self.note("detached");
    }
    fn rings_start(&self, start: Start) {
        self.note(match start {
            Start::Resume => "resume",
            Start::Firmware => "firmware",
            Start::Boot => "boot",
            Start::DriverRestart => "driver restart",
            Start::NewGuest => "new guest",
            Start::Unclear => "unclear",
            Start::Program => "program",
        });
    }
}
