//! A ring's worker that the front end's messages stop and start while requests are
//! under way: the real handler, worker and event descriptors over guest memory.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use shuttle::thread;
use vhost::vhost_user::VhostUserBackendReqHandlerMut;
use vhost::vhost_user::message::{
    VhostUserInflight, VhostUserMemoryRegion, VhostUserVringAddrFlags,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;

use super::guest::sector;
use super::oracle::Oracle;
use super::volumes::{Volume, pick};
use super::{Kept, prove};
use crate::engine::*;
use crate::event_flag::EventFlag;
use crate::io::sim::{SimDevices, SimDisk};
use crate::io::{Buffer, Disk, Done, Errno, Op, Tag};
use crate::mutation::Mutation;
use crate::sync;
use crate::vhost::parts::{Handler, ViewContext};
use crate::vhost::{Backend, Requests, Start, ViewConfig, ViewHooks};
use crate::virtio_blk::{BlkDevice, Capacity, ConfigSpace, Topology};

const SIZE: u16 = 32;
const MEMORY: u64 = 0x10000;
/// Address of the guest's memory in the front end's process.
const USER: u64 = 0x7000_0000;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
/// Requests: header, status and data, a page each.
const REQUESTS: u64 = 0x4000;
const WRITES: u64 = 4;
const COUNT: u64 = WRITES + 2;

struct KeptPort(Kept<Port>);

impl Requests for KeptPort {
    fn request(&mut self, request: Request, more: bool, out: &mut Vec<Command>) {
        self.0.get().request_part(request, more, out);
    }

    fn io_done(
        &mut self,
        tag: Tag,
        result: Result<(), Errno>,
        buffer: Option<Buffer>,
        out: &mut Vec<Command>,
    ) {
        self.0.get().io_done(tag, result, buffer, out);
    }

    fn take_inbox(&mut self, out: &mut Vec<Command>) {
        self.0.get().take_inbox(out);
        // Another thread may have more for it before the worker goes on.
        (0..pick(40)).for_each(|_| thread::yield_now());
    }

    fn is_idle(&self) -> bool {
        self.0.0.as_ref().unwrap().is_idle()
    }
}

/// Must have nothing in flight when it is dropped, because guest memory is unmapped
/// then.
struct Emptied(SimDisk);

impl Disk for Emptied {
    fn submit(&mut self, op: Op) {
        self.0.submit(op);
    }

    fn reap(&mut self, wait: bool, done: &mut Vec<Done>) {
        self.0.reap(wait, done);
    }

    fn in_flight(&self) -> usize {
        self.0.in_flight()
    }

    fn event_fd(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        None
    }
}

impl Drop for Emptied {
    fn drop(&mut self) {
        assert!(std::thread::panicking() || self.0.in_flight() == 0);
    }
}

struct Means {
    engine: Arc<Engine>,
    devices: SimDevices,
}

impl Backend for Means {
    fn disk(&self) -> std::io::Result<Box<dyn Disk>> {
        Ok(Box::new(Emptied(self.devices.disk())))
    }

    fn port(&self, slots: usize, wake: Arc<dyn Wake>) -> Box<dyn Requests> {
        let role = PortRole::View(ViewId::ORIGIN);
        let port = self.engine.open_port(role, slots, wake);
        Box::new(KeptPort(Kept::new(port)))
    }
}

struct NoHooks;

impl ViewHooks for NoHooks {
    fn attached(&self) {}
    fn detached(&self) {}
    fn rings_start(&self, _start: Start) {}
}

fn event() -> File {
    File::from(eventfd(0, EventfdFlags::NONBLOCK).unwrap())
}

/// The guest's driver. It has its memory and two event descriptors, nothing else.
struct Driver {
    memory: File,
    kick: File,
    call: File,
    oracle: Oracle,
    stamps: Vec<u64>,
    ended: BTreeSet<u64>,
}

fn load(memory: &File, at: u64) -> u16 {
    let mut bytes = [0; 2];
    memory.read_exact_at(&mut bytes, at).unwrap();
    u16::from_le_bytes(bytes)
}

impl Driver {
    fn store(&self, at: u64, bytes: &[u8]) {
        self.memory.write_all_at(bytes, at).unwrap();
    }

    fn descriptor(&self, number: u64, at: u64, len: u32, flags: u16, next: u64) {
        let place = 16 * number;
        self.store(place, &at.to_le_bytes());
        self.store(place + 8, &len.to_le_bytes());
        self.store(place + 12, &flags.to_le_bytes());
        self.store(place + 14, &(next as u16).to_le_bytes());
    }

    /// The n-th request: a write of sector 2n, then a flush, then a read of sector 0.
    fn offer(&mut self, n: u64) {
        const NEXT: u16 = 1;
        const WRITABLE: u16 = 2;
        let (page, head) = (REQUESTS + n * 0x1000, 3 * n);
        let (kind, first, data) = match n {
            n if n < WRITES => (1_u32, 2 * n, NEXT),
            WRITES => (4, 0, NEXT),
            _ => (0, 0, NEXT | WRITABLE),
        };
        self.store(page, &kind.to_le_bytes());
        self.store(page + 8, &first.to_le_bytes());
        self.store(page + 16, &[0xff]);
        if n < WRITES {
            let stamp = self.oracle.next();
            self.stamps.push(stamp);
            let at = 2 * n as usize;
            self.store(page + 512, &sector(at, stamp));
            self.oracle.begin_write(ViewId::ORIGIN, stamp, at..at + 1);
        }
        let status = head + 2;
        if kind == 4 {
            self.descriptor(head, page, 16, NEXT, status);
        } else {
            self.descriptor(head, page, 16, NEXT, head + 1);
            self.descriptor(head + 1, page + 512, 512, data, status);
        }
        self.descriptor(status, page + 16, 1, WRITABLE, 0);
        self.store(AVAILABLE + 4 + 2 * n, &(head as u16).to_le_bytes());
        self.store(AVAILABLE + 2, &(n as u16 + 1).to_le_bytes());
        if load(&self.memory, USED) & 1 == 0 {
            rustix::io::write(&self.kick, &1_u64.to_ne_bytes()).unwrap();
        }
    }

    /// Offers all requests, and sleeps until the device's interrupts have reported all
    /// of them.
    fn run(mut self) {
        let mut seen = 0;
        for n in 0..COUNT {
            self.offer(n);
            if pick(2) == 0 {
                self.take(&mut seen);
            }
        }
        while self.take(&mut seen) < COUNT as u16 {
            let mut fds = [PollFd::new(&self.call, PollFlags::IN)];
            sync::wait(None, |timeout| poll(&mut fds, timeout)).unwrap();
            let _ = rustix::io::read(&self.call, &mut [0; 8]);
        }
    }

    /// Takes the heads on the used ring. Each request must be there once.
    fn take(&mut self, seen: &mut u16) -> u16 {
        while *seen != load(&self.memory, USED + 2) {
            let head = load(&self.memory, USED + 4 + 8 * u64::from(*seen));
            let n = u64::from(head) / 3;
            assert!(self.ended.insert(n), "request {n} ends twice");
            let mut status = [0xff];
            let at = REQUESTS + n * 0x1000 + 16;
            self.memory.read_exact_at(&mut status, at).unwrap();
            assert_eq!(status, [0], "request {n} fails");
            if n < WRITES {
                let (stamp, at) = (self.stamps[n as usize], 2 * n as usize);
                self.oracle.end_write(ViewId::ORIGIN, stamp, at..at + 1);
            }
            *seen += 1;
        }
        *seen
    }
}

fn handler(volume: &Volume, memory: &File) -> Handler {
    let device = BlkDevice {
        capacity: Capacity::new(8),
        topology: Topology::of_blocks(512),
        read_only: false,
        max_discard_sectors: 0,
        serial: String::new(),
        num_queues: 1,
    };
    let config = ViewConfig {
        name: "origin".into(),
        device: device.clone(),
        max_queues: 1,
        write_through: false,
        any_memory: false,
    };
    let mut handler = Handler::new(ViewContext {
        config: Arc::new(config),
        space: Arc::new(ConfigSpace::new(device)),
        backend: Arc::new(Means {
            engine: volume.engine.clone(),
            devices: volume.devices.clone(),
        }),
        hooks: Arc::new(NoHooks),
        back_channel: Arc::default(),
        leave: Arc::new(EventFlag::new().unwrap()),
        log: Arc::default(),
        watched: None,
        counters: Arc::default(),
        last_left: false,
    })
    .unwrap();
    handler.set_features(1 << VIRTIO_F_VERSION_1).unwrap();
    let region = VhostUserMemoryRegion {
        guest_phys_addr: 0,
        memory_size: MEMORY,
        user_addr: USER,
        mmap_offset: 0,
    };
    let files = vec![memory.try_clone().unwrap()];
    handler.set_mem_table(&[region], files, None).unwrap();
    handler.set_vring_num(0, u32::from(SIZE)).unwrap();
    let flags = VhostUserVringAddrFlags::empty();
    let (used, available) = (USER + USED, USER + AVAILABLE);
    handler
        .set_vring_addr(0, flags, USER, used, available, 0)
        .unwrap();
    handler
}

/// The front end stops the ring while requests are under way, and starts it again.
/// Meanwhile a snapshot is taken, and guests of other queues write to the same chunks.
fn ring_stops() {
    let mut volume = Volume::new();
    volume.snapshot(ViewId(1), 2);
    let memory = File::from(memfd_create("guest", MemfdFlags::CLOEXEC).unwrap());
    ftruncate(&memory, MEMORY).unwrap();
    let mut handler = Kept::new(handler(&volume, &memory));
    let (kick, call) = (event(), event());
    let driver = Driver {
        memory: memory.try_clone().unwrap(),
        kick: kick.try_clone().unwrap(),
        call: call.try_clone().unwrap(),
        oracle: volume.oracle.clone(),
        stamps: Vec::new(),
        ended: BTreeSet::new(),
    };
    let mut driver = Some(thread::spawn(move || driver.run()));
    let neighbours = [1, 3, 5, 7].map(|own| volume.guest(ViewId::ORIGIN, own..own + 1, 4));
    let front_end = thread::spawn(move || {
        let mut base = 0;
        for last in [false, true] {
            let handler = handler.get();
            handler.set_vring_base(0, base).unwrap();
            let call = Some(call.try_clone().unwrap());
            handler.set_vring_call(0, call).unwrap();
            let kick = Some(kick.try_clone().unwrap());
            handler.set_vring_kick(0, kick).unwrap();
            if last {
                driver.take().unwrap().join().unwrap();
            } else {
                (0..pick(40)).for_each(|_| thread::yield_now());
            }
            base = handler.get_vring_base(0).unwrap().num;
            let used = u32::from(load(&memory, USED + 2));
            assert_eq!(used, base, "taken and not given back");
        }
        assert_eq!(base, COUNT as u32);
        drop(handler);
    });
    volume.snapshot(ViewId(2), 8);
    front_end.join().unwrap();
    neighbours.into_iter().for_each(|n| n.join().unwrap());
    assert_eq!(volume.look(ViewId(1)), (0..8).collect::<Vec<_>>());
    volume.oracle.assert_one_moment(&volume.look(ViewId(2)));
    volume.look(ViewId::ORIGIN);
    volume.at_rest();
}

/// The front end loses the back end while requests are under way, and the next back
/// end takes them over: by the in-flight region, or by the used index. The front end
/// passes the used or the available index.
fn back_end_lost(with_region: bool) {
    let mut volume = Volume::new();
    volume.snapshot(ViewId(1), 2);
    let memory = File::from(memfd_create("guest", MemfdFlags::CLOEXEC).unwrap());
    ftruncate(&memory, MEMORY).unwrap();
    let (kick, call) = (event(), event());
    let driver = Driver {
        memory: memory.try_clone().unwrap(),
        kick: kick.try_clone().unwrap(),
        call: call.try_clone().unwrap(),
        oracle: volume.oracle.clone(),
        stamps: Vec::new(),
        ended: BTreeSet::new(),
    };
    let handlers = [(); 3].map(|()| handler(&volume, &memory));
    let driver = thread::spawn(move || driver.run());
    let neighbour = volume.guest(ViewId::ORIGIN, 1..2, 3);
    let front_end = thread::spawn(move || {
        let mut driver = Some(driver);
        let mut region = None;
        for (life, handler) in handlers.into_iter().enumerate() {
            let mut handler = Kept::new(handler);
            let handler = handler.get();
            if with_region {
                let wish = VhostUserInflight::new(0, 0, 1, SIZE);
                let (message, file) =
                    region.get_or_insert_with(|| handler.get_inflight_fd(&wish).unwrap());
                let file = file.try_clone().unwrap();
                handler.set_inflight_fd(message, file).unwrap();
            }
            let index = if pick(2) == 0 { USED } else { AVAILABLE };
            let told = u32::from(load(&memory, index + 2));
            handler.set_vring_base(0, told).unwrap();
            let call = Some(call.try_clone().unwrap());
            handler.set_vring_call(0, call).unwrap();
            let kick = Some(kick.try_clone().unwrap());
            handler.set_vring_kick(0, kick).unwrap();
            if life == 2 {
                driver.take().unwrap().join().unwrap();
            } else {
                (0..pick(40)).for_each(|_| thread::yield_now());
                handler.hang_up();
            }
        }
    });
    volume.snapshot(ViewId(2), 8);
    front_end.join().unwrap();
    neighbour.join().unwrap();
    assert_eq!(volume.look(ViewId(1)), (0..8).collect::<Vec<_>>());
    volume.oracle.assert_one_moment(&volume.look(ViewId(2)));
    volume.look(ViewId::ORIGIN);
    volume.at_rest();
}

#[test]
fn shuttle_a_lost_back_ends_requests_are_done_once_with_a_region() {
    // Death between two stores: `vhost/inflight_tests.rs`.
    let bugs = [Mutation::TakenNotRecorded, Mutation::ReplayCountForgotten];
    prove("lost back end, region", || back_end_lost(true), &bugs);
}

#[test]
fn shuttle_a_lost_back_ends_requests_are_done_once_without_a_region() {
    let bugs = [Mutation::PublishedOutOfOrder, Mutation::ResumedAtTheTold];
    prove("lost back end, no region", || back_end_lost(false), &bugs);
}

#[test]
fn shuttle_a_stopped_ring_has_given_back_all_that_it_took() {
    let bugs = [
        Mutation::StopNotDrained,
        Mutation::WakeClearedLate,
        Mutation::EndNotTold,
    ];
    prove("ring's stop", ring_stops, &bugs);
}
