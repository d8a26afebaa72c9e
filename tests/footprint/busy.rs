//! A daemon whose guest asks for as much as it can at once.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::alone;
use super::idle::{Daemon, answers};

/// VERSION_1, protocol features, indirect descriptors, MQ.
const FEATURES: u64 = 1 << 32 | 1 << 30 | 1 << 28 | 1 << 12;
const SIZE: u16 = 1024;
pub const READS: u16 = 1000;
/// What a guest may use at most (SEG_MAX), each of the usual largest size.
pub const SEGMENTS: u64 = 126;
pub const SEGMENT: u32 = 64 << 10;
/// Chunks of one read.
const CHUNKS: u64 = SEGMENTS * SEGMENT as u64 / 4096;

// The memory of a ring, and in it the parts.
const RING: u64 = 1 << 20;
const AVAIL: u64 = 0x8000;
const USED: u64 = 0x1_0000;
const HEADERS: u64 = 0x2_0000;
const STATUS: u64 = 0x3_0000;
const TABLE: u64 = 0x4_0000;
const DATA: u64 = 0x8_0000;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

pub struct Guest {
    memory: GuestMemoryMmap<()>,
    kicks: Vec<EventFd>,
    _frontend: Frontend,
    avail: Vec<u16>,
}

impl Guest {
    pub fn connect(path: &Path, queues: usize) -> Self {
        let len = queues * RING as usize;
        let fd = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let file = File::from(fd);
        file.set_len(len as u64).unwrap();
        let offset = FileOffset::new(file.try_clone().unwrap(), 0);
        let range = (GuestAddress(0), len, Some(offset));
        let memory = GuestMemoryMmap::<()>::from_ranges_with_files([range]).unwrap();
        let host = |at: u64| memory.get_host_address(GuestAddress(at)).unwrap() as u64;
        let mut f = Frontend::connect(path, 16).unwrap();
        f.set_owner().unwrap();
        f.get_features().unwrap();
        f.set_features(FEATURES).unwrap();
        f.get_protocol_features().unwrap();
        let protocol = VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::REPLY_ACK;
        f.set_protocol_features(protocol).unwrap();
        f.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        f.set_mem_table(&[VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: len as u64,
            userspace_addr: host(0),
            mmap_offset: 0,
            mmap_handle: file.as_raw_fd(),
        }])
        .unwrap();
        let kicks: Vec<_> = (0..queues)
            .map(|_| EventFd::new(EFD_NONBLOCK).unwrap())
            .collect();
        for (queue, kick) in kicks.iter().enumerate() {
            let base = queue as u64 * RING;
            f.set_vring_num(queue, SIZE).unwrap();
            f.set_vring_base(queue, 0).unwrap();
            let addresses = VringConfigData {
                queue_max_size: SIZE,
                queue_size: SIZE,
                flags: 0,
                desc_table_addr: host(base),
                avail_ring_addr: host(base + AVAIL),
                used_ring_addr: host(base + USED),
                log_addr: None,
            };
            f.set_vring_addr(queue, &addresses).unwrap();
            f.set_vring_kick(queue, kick).unwrap();
            f.set_vring_enable(queue, true).unwrap();
        }
        Self {
            memory,
            avail: vec![0; queues],
            kicks,
            _frontend: f,
        }
    }

    /// Requests of this kind at `sectors`, which share their data and their status byte.
    pub fn ask(&mut self, queue: usize, kind: u32, segments: u64, len: u32, sectors: &[u64]) {
        let base = queue as u64 * RING;
        let put = |at: u64, (address, len, flags, next)| {
            let raw = RawDescriptor::from(Descriptor::new(address, len, flags, next));
            self.memory.write_obj(raw, GuestAddress(base + at)).unwrap();
        };
        let data = if kind == 0 { WRITE } else { 0 };
        let table_bytes = 16 * (segments + 2);
        for (head, sector) in sectors.iter().enumerate() {
            let header = HEADERS + 16 * head as u64;
            let at = |offset| GuestAddress(base + header + offset);
            self.memory.write_obj(u64::from(kind), at(0)).unwrap();
            self.memory.write_obj(*sector, at(8)).unwrap();
            // Requests at the same place share a table.
            let table = TABLE + if *sector == 0 { 0 } else { 64 * head as u64 };
            put(table, (base + header, 16, NEXT, 1));
            for n in 1..=segments {
                let next = n as u16 + 1;
                put(table + 16 * n, (base + DATA, len, data | NEXT, next));
            }
            let last = table + 16 * (segments + 1);
            put(last, (base + STATUS, 1, WRITE, 0));
            let table = (base + table, table_bytes as u32, INDIRECT, 0);
            put(16 * head as u64, table);
            let index = self.avail[queue] % SIZE;
            let place = GuestAddress(base + AVAIL + 4 + 2 * u64::from(index));
            self.memory.write_obj(head as u16, place).unwrap();
            self.avail[queue] = self.avail[queue].wrapping_add(1);
        }
        let index = GuestAddress(base + AVAIL + 2);
        self.memory
            .store(self.avail[queue], index, Ordering::Release)
            .unwrap();
        fence(Ordering::SeqCst);
        self.kicks[queue].write(1).unwrap();
    }

    fn used(&self, queue: usize) -> u16 {
        let at = GuestAddress(queue as u64 * RING + USED + 2);
        self.memory.load(at, Ordering::Acquire).unwrap()
    }

    /// Waits until a queue has completed `count` requests in all.
    pub fn wait(&self, queue: usize, count: u16) {
        let start = Instant::now();
        while self.used(queue) < count {
            let patience = Duration::from_secs(120);
            assert!(start.elapsed() < patience, "queue {queue} does not go on");
            std::thread::sleep(Duration::from_millis(1));
        }
        let status = GuestAddress(queue as u64 * RING + STATUS);
        assert_eq!(self.memory.read_obj::<u8>(status).unwrap(), 0);
    }
}

/// What a guest asks for.
#[derive(Clone, Copy, Debug)]
struct Load {
    kind: u32,
    segments: u64,
    len: u32,
    /// Sectors from one request to the next.
    stride: u64,
    /// Requests of each queue that must complete before the memory is looked at.
    done: u16,
}

pub const IN: u32 = 0;
pub const OUT: u32 = 1;

/// Reads and writes of 126 times 64 KiB at the start of the disk.
const fn scattered(kind: u32) -> Load {
    Load {
        kind,
        segments: SEGMENTS,
        len: SEGMENT,
        stride: 0,
        done: 200,
    }
}

/// Bytes by which the daemon grew while a guest had `READS` requests under way in each
/// queue, of a snapshot's view in which every second chunk of 4 KiB has an exception, or
/// of one with chunks of 1 MiB and no exception.
fn growth(queues: usize, chunk: &str, load: Load) -> u64 {
    let memory = Path::new("/dev/shm");
    let folder = tempfile::tempdir_in(memory)
        .or_else(|_| tempfile::tempdir())
        .unwrap();
    let image = File::create_new(folder.path().join("disk.img")).unwrap();
    image.set_len(2 << 30).unwrap();
    let snapshot = format!("name=s,cow=s.cow,size=3G,chunk-size={chunk},socket=s.sock");
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("snapback"));
    command
        .current_dir(folder.path())
        .env("XDG_RUNTIME_DIR", folder.path())
        .args(["serve", "--origin", "disk.img", "--control", "c.sock"])
        .args(["--snapshot", &snapshot])
        .stdout(Stdio::null());
    let daemon = Daemon(command.spawn().unwrap());
    answers(folder.path());
    let mut guest = Guest::connect(&folder.path().join("s.sock"), queues);
    let mut written = 0;
    if chunk == "4K" {
        for part in 0..2 {
            let chunks = (0..CHUNKS / 4).map(|n| 2 * (n + part * CHUNKS / 4) + 1);
            let sectors: Vec<u64> = chunks.map(|chunk| 8 * chunk).collect();
            guest.ask(0, OUT, 1, 4096, &sectors);
            written += sectors.len() as u16;
            guest.wait(0, written);
        }
    }
    let resident = || Daemon::field(&daemon.proc("status"), "VmHWM:") << 10;
    // The peak is counted from now on.
    std::fs::write(format!("/proc/{}/clear_refs", daemon.0.id()), "5").unwrap();
    let before = resident();
    for queue in 0..queues {
        let first = queue as u64 * u64::from(READS);
        let sectors: Vec<u64> = (first..first + u64::from(READS))
            .map(|n| n * load.stride)
            .collect();
        guest.ask(queue, load.kind, load.segments, load.len, &sectors);
    }
    for queue in 0..queues {
        let before = if queue == 0 { written } else { 0 };
        guest.wait(queue, before + load.done);
    }
    let grown = resident() - before;
    println!("{queues} queues, {load:?}: {} KiB", grown >> 10);
    grown
}

#[test]
fn a_guest_with_a_thousand_scattered_reads_takes_at_most_64_mib_for_its_queue() {
    let _alone = alone();
    assert!(growth(1, "4K", scattered(IN)) <= 64 << 20);
}

#[test]
fn four_queues_of_scattered_reads_take_at_most_256_mib() {
    let _alone = alone();
    assert!(growth(4, "4K", scattered(IN)) <= 256 << 20);
}

#[test]
fn a_thousand_scattered_writes_take_at_most_64_mib() {
    let _alone = alone();
    assert!(growth(1, "4K", scattered(OUT)) <= 64 << 20);
}

/// Each needs the old content of its chunk.
#[test]
fn a_thousand_writes_to_parts_of_large_chunks_take_at_most_64_mib() {
    let _alone = alone();
    let load = Load {
        kind: OUT,
        segments: 1,
        len: 512,
        stride: 2049,
        done: 40,
    };
    assert!(growth(1, "1M", load) <= 64 << 20);
}
