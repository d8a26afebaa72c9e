//! The log of dirty pages that a migration needs.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;

use rustix::fs::MemfdFlags;
use snapback::io::Errno;
use snapback::io::sim::{Fault, FaultOn};
use vhost::vhost_user::message::{VhostUserInflight, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserDirtyLogRegion, VringConfigData};
use vm_memory::{Bytes, FileOffset, GuestAddress, MmapRegion, VolatileMemory};

use crate::raw::{
    AVAIL, EVENT_IDX, FLUSH, MEMORY, NEXT, PROTOCOL, Raw, Ring, SIZE, USED, VERSION_1, WRITE,
};
use crate::{SECTORS, Served, eventually, serve};

pub const PLAIN: u64 = VERSION_1 | PROTOCOL | FLUSH;
pub const LOG_ALL: u64 = 1 << 26;
pub const PAGE: u64 = 4096;
/// Bytes of a log for the guest's memory.
pub const ENOUGH: u64 = MEMORY as u64 / PAGE / 8;

pub const IN: u32 = 0;
const OUT: u32 = 1;
const GET_ID: u32 = 8;

/// A log of a front end.
pub struct Log {
    pub file: File,
    bits: MmapRegion<()>,
}

impl Log {
    pub fn new(len: u64) -> Self {
        Self::named("log", len)
    }

    fn named(name: &str, len: u64) -> Self {
        let file = File::from(rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC).unwrap());
        file.set_len(len).unwrap();
        let offset = FileOffset::new(file.try_clone().unwrap(), 0);
        let bits = MmapRegion::from_file(offset, len as usize).unwrap();
        Self { file, bits }
    }

    pub fn region(&self) -> VhostUserDirtyLogRegion {
        VhostUserDirtyLogRegion {
            mmap_size: self.bits.size() as u64,
            mmap_offset: 0,
            mmap_handle: self.file.as_raw_fd(),
        }
    }

    /// The pages that are marked; they are not any more.
    pub fn take(&self) -> BTreeSet<u64> {
        let bytes = (0..self.bits.size()).map(|at| {
            let byte = self.bits.get_atomic_ref::<AtomicU8>(at).unwrap();
            (at as u64, byte.swap(0, Ordering::SeqCst))
        });
        bytes
            .flat_map(|(at, byte)| {
                let set = (0..8).filter(move |bit| byte >> bit & 1 != 0);
                set.map(move |bit| at * 8 + bit)
            })
            .collect()
    }
}

pub fn connect(served: &Served, features: u64) -> Raw {
    let mut raw = Raw::connect(&served.path, features);
    raw.negotiate(VhostUserProtocolFeatures::LOG_SHMFD);
    raw
}

pub fn addresses(raw: &Raw, ring: &Ring, log: Option<u64>) -> VringConfigData {
    VringConfigData {
        flags: u32::from(log.is_some()),
        log_addr: log,
        ..raw.addresses(ring)
    }
}

pub fn used_page(ring: &Ring) -> u64 {
    (ring.base + USED) / PAGE
}

/// As QEMU does when a migration begins; the used rings are logged where they are.
pub fn log_on(frontend: &Frontend, raw: &Raw, rings: &[&Ring], log: &Log, features: u64) {
    frontend.set_log_base(0, Some(log.region())).unwrap();
    frontend.set_features(features | LOG_ALL).unwrap();
    for ring in rings {
        let data = addresses(raw, ring, Some(used_page(ring) * PAGE));
        frontend.set_vring_addr(ring.index, &data).unwrap();
    }
}

/// As QEMU does when a migration has failed.
fn log_off(frontend: &Frontend, raw: &Raw, rings: &[&Ring], features: u64) {
    frontend.set_features(features).unwrap();
    for ring in rings {
        let data = addresses(raw, ring, None);
        frontend.set_vring_addr(ring.index, &data).unwrap();
    }
}

fn memory(raw: &Raw) -> Vec<u8> {
    let mut bytes = vec![0; MEMORY];
    raw.memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
    bytes
}

/// Pages that differ.
fn changed(before: &[u8], after: &[u8]) -> BTreeSet<u64> {
    let pages = before
        .chunks(PAGE as usize)
        .zip(after.chunks(PAGE as usize));
    (0..)
        .zip(pages)
        .filter(|(_, (before, after))| before != after)
        .map(|(page, _)| page)
        .collect()
}

/// Fails if the messages have to wait for requests.
fn at_once(served: &Served, act: impl FnOnce() + Send) {
    let done = AtomicBool::new(false);
    let in_time = std::thread::scope(|scope| {
        scope.spawn(|| {
            act();
            done.store(true, Ordering::SeqCst);
        });
        for _ in 0..1000 {
            if done.load(Ordering::SeqCst) {
                return true;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        served.volume.held.store(0, Ordering::SeqCst);
        false
    });
    assert!(in_time, "a message waited for requests");
}

fn fill_disk(served: &Served) {
    let bytes: Vec<u8> = (0..SECTORS * 512)
        .map(|at| (at / 7 % 251) as u8 | 1)
        .collect();
    served
        .volume
        .devices
        .write_now(served.volume.device, 0, &bytes);
}

/// A request with one descriptor of data, anywhere. Its header is driver's memory in
/// another page than its status.
fn place(
    raw: &Raw,
    ring: &Ring,
    head: u16,
    (kind, sector): (u32, u64),
    data: (u64, u32),
    status: u64,
) {
    raw.request(ring, head, kind, sector, 512);
    let device_writes = if kind == OUT { 0 } else { WRITE };
    raw.descriptor(
        ring,
        head + 1,
        (data.0, data.1, NEXT | device_writes, head + 2),
    );
    raw.descriptor(ring, head + 2, (status, 1, WRITE, 0));
    raw.memory.write_obj(0xee_u8, GuestAddress(status)).unwrap();
}

/// Kind, sector, place and length of the data, the pages of it that are written, status.
type Case = (u32, u64, u64, u32, std::ops::Range<u64>, u8);

#[test]
fn every_page_that_the_device_writes_is_logged_and_no_other() {
    const STATUS: u64 = 0x30_0ffe;
    for features in [PLAIN, PLAIN | EVENT_IDX] {
        let served = serve();
        fill_disk(&served);
        let volume = &served.volume;
        let fault = Fault::new(FaultOn::Read, Errno::EIO).device(volume.device);
        volume.devices.fail(fault.range(8000 * 512..8001 * 512));
        let mut raw = connect(&served, features);
        let mut ring = raw.start(0);
        let log = Log::new(ENOUGH);
        log_on(&raw.frontend.clone(), &raw, &[&ring], &log, features);
        let data = 0x20_0000;
        let cases: [Case; 12] = [
            (IN, 0, data, 4096, 0..1, 0),
            (IN, 8, data + 0xfff, 512, 0..2, 0),
            (IN, 8, data + 4096 - 512, 512, 0..1, 0),
            (IN, 16, data + 0x123, 20 * 512, 0..3, 0),
            // Several windows.
            (IN, 100, data + 0x10, 600 * 512, 0..76, 0),
            (OUT, 16, data, 4096, 0..0, 0),
            (4, 0, data, 512, 0..0, 0),
            (GET_ID, 0, data + 4090, 20, 0..2, 0),
            // Only what is written, not all that may be.
            (GET_ID, 0, data, 8192, 0..1, 0),
            (99, 0, data, 512, 0..0, 2),
            (IN, SECTORS, data, 512, 0..0, 1),
            // A part of what failed may have been written.
            (IN, 7990, data, 20 * 512, 0..3, 1),
        ];
        for (number, case) in (0..).zip(cases) {
            let (kind, sector, at, len, pages, status) = case;
            let place_of_status = STATUS - number * PAGE;
            place(&raw, &ring, 0, (kind, sector), (at, len), place_of_status);
            let driver = memory(&raw);
            log.take();
            raw.run(&mut ring, &[0]);
            let told: u8 = raw.memory.read_obj(GuestAddress(place_of_status)).unwrap();
            assert_eq!(told, status, "case {number}");
            let mut want: BTreeSet<u64> = pages.map(|page| data / PAGE + page).collect();
            want.extend([place_of_status / PAGE, used_page(&ring)]);
            let mut logged = BTreeSet::new();
            eventually("all is logged", || {
                logged.extend(log.take());
                logged.is_superset(&want)
            });
            assert_eq!(logged, want, "case {number}");
            // The driver has written the index of the available ring.
            let mut after = changed(&driver, &memory(&raw));
            after.remove(&(AVAIL / PAGE));
            assert!(after.is_subset(&logged), "case {number}: {after:?}");
        }
        raw.frontend.get_vring_base(0).unwrap();
        assert!(log.take().is_subset(&[used_page(&ring)].into()));
    }
}

/// Each kind of write to the used ring, told apart by where its pages begin.
#[test]
fn the_used_ring_is_logged_at_its_own_address_and_without_the_flag_not_at_all() {
    // Element 0 ends a page, element 1 begins the next one.
    const AT: u64 = MEMORY as u64 + 3 * PAGE - 12;
    const FIRST: u64 = AT / PAGE;
    for features in [PLAIN, PLAIN | EVENT_IDX] {
        let served = serve();
        fill_disk(&served);
        let mut raw = connect(&served, features);
        let mut ring = raw.start(0);
        let frontend = raw.frontend.clone();
        let log = Log::new(ENOUGH + 1);
        frontend.set_log_base(0, Some(log.region())).unwrap();
        for head in [0, 3] {
            raw.request(&ring, head, IN, u64::from(head), 4096);
        }
        raw.run(&mut ring, &[0]);
        assert!(log.take().is_empty(), "nothing is to be logged");
        let mut data = addresses(&raw, &ring, Some(AT));
        frontend.set_vring_addr(0, &data).unwrap();
        log.take();
        // The used ring's second element.
        raw.run(&mut ring, &[3]);
        let mut logged = BTreeSet::new();
        eventually("element and index are logged", || {
            logged.extend(log.take());
            logged.len() == 2
        });
        assert_eq!(logged, [FIRST, FIRST + 1].into(), "and no data");

        // An event index is behind the elements, the flags are before them.
        frontend.get_vring_base(0).unwrap();
        raw.enable(&ring, false);
        raw.set_up_again(&ring, 2);
        data.log_addr = Some(AT);
        frontend.set_vring_addr(0, &data).unwrap();
        // Without a use for it, the log was unmapped.
        frontend.set_log_base(0, Some(log.region())).unwrap();
        log.take();
        raw.enable(&ring, true);
        let asked = FIRST + u64::from(features & EVENT_IDX != 0);
        eventually("the wish for kicks is logged", || {
            log.take() == [asked].into()
        });

        frontend.set_vring_addr(0, &raw.addresses(&ring)).unwrap();
        frontend.set_features(features | LOG_ALL).unwrap();
        frontend.set_log_base(0, Some(log.region())).unwrap();
        log.take();
        raw.run(&mut ring, &[0]);
        frontend.get_vring_base(0).unwrap();
        assert!(!log.take().contains(&FIRST), "the ring's flag is off");
    }
}

/// QEMU turns the log on and off while rings run, with a message for each queue.
#[test]
fn the_log_goes_on_off_and_is_replaced_without_a_wait_for_requests() {
    let served = serve();
    fill_disk(&served);
    let mut raw = connect(&served, PLAIN);
    let mut rings = [raw.start(0), raw.start(1)];
    let frontend = raw.frontend.clone();
    let under_way = |raw: &Raw, rings: &mut [Ring; 2], round: u64| {
        served.volume.held.store(1, Ordering::SeqCst);
        let before = served.volume.submitted.load(Ordering::SeqCst);
        for ring in &mut *rings {
            raw.request(ring, 0, IN, 16 * round, 4096);
            raw.offer(ring, &[0]);
            ring.kick.write(1).unwrap();
        }
        eventually("both are under way", || {
            served.volume.submitted.load(Ordering::SeqCst) == before + 2
        });
    };
    let end = |raw: &Raw, rings: &[Ring; 2], used: u16| {
        served.volume.held.store(0, Ordering::SeqCst);
        rings.iter().for_each(|ring| raw.wait_used(ring, used));
    };
    let both = |raw: &Raw, rings: &[Ring; 2]| -> BTreeSet<u64> {
        let pages = rings.iter().flat_map(|ring| {
            let (data, status) = (raw.data(ring, 0), raw.header(ring, 0) + 16);
            [data / PAGE, status / PAGE, used_page(ring)]
        });
        pages.collect()
    };

    under_way(&raw, &mut rings, 0);
    let first = Log::named("snapback-first-log", ENOUGH);
    let shown = [&rings[0], &rings[1]];
    at_once(&served, || log_on(&frontend, &raw, &shown, &first, PLAIN));
    end(&raw, &rings, 1);
    let want = both(&raw, &rings);
    let mut logged = BTreeSet::new();
    eventually("what began before is logged", || {
        logged.extend(first.take());
        logged == want
    });

    under_way(&raw, &mut rings, 1);
    let second = Log::named("snapback-second-log", ENOUGH + 5);
    at_once(&served, || {
        frontend.set_log_base(0, Some(second.region())).unwrap();
    });
    first.take();
    end(&raw, &rings, 2);
    logged.clear();
    eventually("the new log has everything", || {
        logged.extend(second.take());
        logged == want
    });
    assert!(first.take().is_empty(), "after the answer");
    let maps = || std::fs::read_to_string("/proc/self/maps").unwrap();
    // Once by this test.
    assert_eq!(maps().matches("snapback-first-log").count(), 1);
    assert_eq!(maps().matches("snapback-second-log").count(), 2);

    under_way(&raw, &mut rings, 2);
    let shown = [&rings[0], &rings[1]];
    at_once(&served, || log_off(&frontend, &raw, &shown, PLAIN));
    second.take();
    end(&raw, &rings, 3);
    assert_eq!(raw.frontend.get_vring_base(0).unwrap(), 3);
    assert!(second.take().is_empty(), "after the answer");
    assert_eq!(
        maps().matches("snapback-second-log").count(),
        1,
        "it is unmapped"
    );
    assert_eq!(
        served.call_log.read(),
        ["attached", "firmware"],
        "the guest did not notice"
    );
}

/// What a front end does: pages are copied while the guest runs, then those that the log
/// names, and after the rings have stopped once more. Guest and device write meanwhile, and
/// the log goes off and on. At the end the copy has all that the device wrote.
#[test]
fn a_copy_that_follows_the_log_is_complete_when_the_rings_have_stopped() {
    let served = serve();
    fill_disk(&served);
    let features = PLAIN | EVENT_IDX;
    let mut raw = connect(&served, features);
    let mut rings = [raw.start(0), raw.start(1)];
    let frontend = raw.frontend.clone();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _end = SetAtEnd(&stop);
        let [first, second] = &mut rings;
        let (raw, stop, frontend) = (&raw, &stop, &frontend);
        let shown = [raw.ring_like(first), raw.ring_like(second)];
        let shown = [&shown[0], &shown[1]];
        for ring in [first, second] {
            scope.spawn(move || {
                for round in 0_u64.. {
                    if stop.load(Ordering::SeqCst) {
                        break;
                    }
                    let sector = round * 16 % (SECTORS - 64);
                    for head in [0, 3, 6, 9] {
                        raw.request(ring, head, IN, sector + u64::from(head), 8192);
                    }
                    raw.run(ring, &[0, 3, 6, 9]);
                }
            });
        }
        for _ in 0..20 {
            let log = Log::new(ENOUGH);
            log_on(frontend, raw, &shown, &log, features);
            let mut copy = memory(raw);
            for _ in 0..5 {
                std::thread::sleep(Duration::from_millis(1));
                follow(raw, &mut copy, &log.take());
            }
            // A larger one, as when memory is added.
            let larger = Log::new(ENOUGH + 8);
            frontend.set_log_base(0, Some(larger.region())).unwrap();
            follow(raw, &mut copy, &log.take());
            let stopped: Vec<u32> = (0..2).map(|i| raw.stop(i)).collect();
            follow(raw, &mut copy, &larger.take());
            let now = memory(raw);
            for (ring, stopped) in shown.iter().zip(stopped) {
                assert_eq!(u32::from(raw.used_index(ring)), stopped, "it is drained");
                for page in device_pages(ring) {
                    let bytes = page as usize * 4096..(page as usize + 1) * 4096;
                    assert!(copy[bytes.clone()] == now[bytes], "page {page:#x}");
                }
            }
            log_off(frontend, raw, &shown, features);
            for ring in &shown {
                raw.go_on(ring);
            }
        }
    });
}

/// Ends the load, also after a failure.
struct SetAtEnd<'a>(&'a AtomicBool);

impl Drop for SetAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Pages that only the device writes, while the load above runs.
fn device_pages(ring: &Ring) -> Vec<u64> {
    let data = (crate::raw::DATA + ring.index as u64 * 0x8_0000) / PAGE;
    (data..data + 20).chain([used_page(ring)]).collect()
}

fn follow(raw: &Raw, copy: &mut [u8], pages: &BTreeSet<u64>) {
    for page in pages {
        let at = *page as usize * 4096;
        let bytes = &mut copy[at..at + 4096];
        raw.memory
            .read_slice(bytes, GuestAddress(page * PAGE))
            .unwrap();
    }
}

/// A log that is there before the ring starts: QEMU reconnects, or the guest resets its
/// disk, in the middle of a migration. The requests of the last session are done again.
#[test]
fn requests_that_are_replayed_are_logged() {
    let served = serve();
    fill_disk(&served);
    let mut raw = connect(&served, PLAIN);
    let wish = VhostUserInflight::new(0, 0, 1, SIZE);
    let (message, region) = raw.frontend.get_inflight_fd(&wish).unwrap();
    let region = region.as_fd().try_clone_to_owned().unwrap();
    raw.frontend
        .set_inflight_fd(&message, region.as_raw_fd())
        .unwrap();
    let mut ring = raw.start(0);
    served.volume.held.store(1, Ordering::SeqCst);
    raw.request(&ring, 0, IN, 0, 4096);
    raw.offer(&mut ring, &[0]);
    ring.kick.write(1).unwrap();
    eventually("it is under way", || {
        served.volume.submitted.load(Ordering::SeqCst) == 1
    });
    raw.hang_up();
    eventually("the queue has noticed", || {
        served.volume.abandoned.load(Ordering::SeqCst) == 1
    });
    served.volume.held.store(0, Ordering::SeqCst);

    raw.reconnect(&served.path, PLAIN);
    raw.negotiate(VhostUserProtocolFeatures::LOG_SHMFD);
    raw.frontend.set_features(PLAIN | LOG_ALL).unwrap();
    raw.set_up_again(&ring, 1);
    let data = addresses(&raw, &ring, Some(used_page(&ring) * PAGE));
    raw.frontend.set_vring_addr(0, &data).unwrap();
    raw.frontend
        .set_inflight_fd(&message, region.as_raw_fd())
        .unwrap();
    let log = Log::new(ENOUGH);
    raw.frontend.set_log_base(0, Some(log.region())).unwrap();
    raw.enable(&ring, true);
    raw.wait_used(&ring, 1);
    raw.frontend.get_vring_base(0).unwrap();
    let status = (raw.header(&ring, 0) + 16) / PAGE;
    let want = [raw.data(&ring, 0) / PAGE, status, used_page(&ring)].into();
    assert_eq!(log.take(), want);
}
