//! A front end and driver that can misbehave: raw messages, raw rings.
#![allow(dead_code)] // No test needs all of it.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::os::fd::BorrowedFd;
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub const MEMORY: usize = 4 << 20;
pub const SIZE: u16 = 16;

pub const VERSION_1: u64 = 1 << 32;
pub const EVENT_IDX: u64 = 1 << 29;
pub const INDIRECT: u64 = 1 << 28;
pub const FLUSH: u64 = 1 << 9;
pub const CONFIG_WCE: u64 = 1 << 11;
pub const PROTOCOL: u64 = 1 << 30;

/// Each ring of up to 1,024 entries has 64 KiB of guest memory, with its parts at these
/// offsets.
pub const AVAIL: u64 = 0x4000;
pub const USED: u64 = 0x5000;
/// Then headers and status bytes, one of 32 bytes for each head.
const HEADERS: u64 = 0x8000;
/// The data of all rings and heads.
pub const DATA: u64 = 0x10_0000;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;

pub struct Ring {
    pub index: usize,
    /// Entries; a power of two.
    pub size: u16,
    pub kick: EventFd,
    pub call: EventFd,
    pub err: EventFd,
    /// Where its memory begins.
    pub base: u64,
    /// The available index, as the driver counts.
    pub avail: u16,
}

pub struct Raw {
    pub frontend: Frontend,
    pub memory: GuestMemoryMmap<()>,
    pub file: File,
    /// The memory's parts, with their lengths; one behind the other in the file.
    parts: Vec<(u64, usize)>,
}

impl Raw {
    /// A connection on which features are set.
    fn open(path: &Path, features: u64) -> Frontend {
        let mut frontend = Frontend::connect(path, 16).unwrap();
        frontend.set_owner().unwrap();
        let offered = frontend.get_features().unwrap();
        assert_eq!(features & !offered, 0, "not offered");
        if features & PROTOCOL != 0 {
            frontend.set_features(features).unwrap();
            set_protocol_features(&mut frontend, VhostUserProtocolFeatures::empty());
            frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        frontend.set_features(features).unwrap();
        frontend
    }

    /// Ends the connection; the guest's memory stays.
    pub fn hang_up(&mut self) {
        let (stream, _) = std::os::unix::net::UnixStream::pair().unwrap();
        self.frontend = Frontend::from_stream(stream, 16);
    }

    /// A new connection for the same guest.
    pub fn reconnect(&mut self, path: &Path, features: u64) {
        self.frontend = Self::open(path, features);
        self.set_memory();
    }

    /// Connected, with features and memory set.
    pub fn connect(path: &Path, features: u64) -> Self {
        let mut raw = Self::connect_only(path, features);
        raw.set_memory();
        raw
    }

    /// Acknowledges more protocol features than others do.
    pub fn negotiate(&mut self, more: VhostUserProtocolFeatures) {
        set_protocol_features(&mut self.frontend, more);
    }

    pub fn connect_only(path: &Path, features: u64) -> Self {
        Self::with_memory(path, features, &[(0, MEMORY)])
    }

    /// The guest's memory has these parts: first address and length in bytes. The first
    /// begins at 0 and holds the rings.
    pub fn with_memory(path: &Path, features: u64, parts: &[(u64, usize)]) -> Self {
        Self::of(Self::open(path, features), parts)
    }

    /// The same, connected without a message.
    pub fn bare(path: &Path, parts: &[(u64, usize)]) -> Self {
        Self::of(Frontend::connect(path, 16).unwrap(), parts)
    }

    fn of(frontend: Frontend, parts: &[(u64, usize)]) -> Self {
        let file =
            File::from(rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
        let all: usize = parts.iter().map(|(_, len)| len).sum();
        file.set_len(all as u64).unwrap();
        let mut at = 0;
        let ranges = parts.iter().map(|(guest, len)| {
            let offset = FileOffset::new(file.try_clone().unwrap(), at);
            at += *len as u64;
            (GuestAddress(*guest), *len, Some(offset))
        });
        let memory = GuestMemoryMmap::from_ranges_with_files(ranges).unwrap();
        Self {
            frontend,
            memory,
            file,
            parts: parts.to_vec(),
        }
    }

    pub fn host(&self, guest: u64) -> u64 {
        self.memory.get_host_address(GuestAddress(guest)).unwrap() as u64
    }

    /// The first part of the memory.
    pub fn region(&self) -> VhostUserMemoryRegionInfo {
        self.regions().swap_remove(0)
    }

    pub fn regions(&self) -> Vec<VhostUserMemoryRegionInfo> {
        let mut mmap_offset = 0;
        let regions = self.parts.iter().map(|(guest, len)| {
            let region = VhostUserMemoryRegionInfo {
                guest_phys_addr: *guest,
                memory_size: *len as u64,
                userspace_addr: self.host(*guest),
                mmap_offset,
                mmap_handle: self.file.as_raw_fd(),
            };
            mmap_offset += *len as u64;
            region
        });
        regions.collect()
    }

    pub fn set_memory(&mut self) {
        self.frontend.set_mem_table(&self.regions()).unwrap();
    }

    /// Sends a message by hand, with a request for an acknowledgement.
    pub fn send(&self, request: u32, payload: &[u8]) {
        const VERSION: u32 = 1;
        const NEED_REPLY: u32 = 1 << 3;
        let words = [request, VERSION | NEED_REPLY, payload.len() as u32];
        let mut bytes = words.map(u32::to_ne_bytes).concat();
        bytes.extend(payload);
        self.send_bytes(&bytes);
    }

    pub fn send_bytes(&self, bytes: &[u8]) {
        assert_eq!(rustix::io::write(self.socket(), bytes), Ok(bytes.len()));
    }

    /// Sends a message by hand and returns what is acknowledged: 0 for success. `None`: the
    /// back end hangs up instead.
    pub fn message(&self, request: u32, payload: &[u8]) -> Option<u64> {
        self.send(request, payload);
        self.acknowledged()
    }

    /// What is acknowledged of a message that was sent, as [`Self::message`].
    pub fn acknowledged(&self) -> Option<u64> {
        let mut answer = [0; 20];
        match rustix::io::read(self.socket(), &mut answer) {
            Ok(0) | Err(rustix::io::Errno::CONNRESET) => None,
            read => {
                assert_eq!(read, Ok(answer.len()), "no acknowledgement");
                Some(u64::from_ne_bytes(answer[12..].try_into().unwrap()))
            }
        }
    }

    fn socket(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor lives as long as the front end.
        unsafe { BorrowedFd::borrow_raw(self.frontend.as_raw_fd()) }
    }

    /// Everything up to the kick descriptor; not enabled.
    pub fn set_up(&mut self, index: usize, base: u16) -> Ring {
        let ring = self.ring(index);
        self.set_up_again(&ring, base);
        ring
    }

    /// A ring with empty memory, of which the back end knows nothing yet.
    pub fn ring(&self, index: usize) -> Ring {
        self.ring_of(index, SIZE)
    }

    /// The same, of `size` entries: a power of two up to 1,024.
    pub fn ring_of(&self, index: usize, size: u16) -> Ring {
        let base = index as u64 * 0x1_0000;
        self.memory
            .write_slice(&[0; HEADERS as usize], GuestAddress(base))
            .unwrap();
        let event = || EventFd::new(EFD_NONBLOCK).unwrap();
        Ring {
            index,
            size,
            kick: event(),
            call: event(),
            err: event(),
            base,
            avail: 0,
        }
    }

    pub fn set_up_again(&mut self, ring: &Ring, base: u16) {
        let index = ring.index;
        self.frontend.set_vring_num(index, ring.size).unwrap();
        self.frontend.set_vring_base(index, base).unwrap();
        self.frontend
            .set_vring_addr(index, &self.addresses(ring))
            .unwrap();
        self.frontend.set_vring_call(index, &ring.call).unwrap();
        self.frontend.set_vring_err(index, &ring.err).unwrap();
        self.frontend.set_vring_kick(index, &ring.kick).unwrap();
    }

    pub fn addresses(&self, ring: &Ring) -> VringConfigData {
        VringConfigData {
            queue_max_size: ring.size,
            queue_size: ring.size,
            flags: 0,
            desc_table_addr: self.host(ring.base),
            avail_ring_addr: self.host(ring.base + AVAIL),
            used_ring_addr: self.host(ring.base + USED),
            log_addr: None,
        }
    }

    /// A started ring.
    pub fn start(&mut self, index: usize) -> Ring {
        self.start_of(index, SIZE)
    }

    /// The same, with `size` entries.
    pub fn start_of(&mut self, index: usize, size: u16) -> Ring {
        let ring = self.ring_of(index, size);
        self.set_up_again(&ring, 0);
        self.enable(&ring, true);
        ring
    }

    /// A started ring of a driver whose indices stand at `at`.
    pub fn start_at(&mut self, index: usize, at: u16) -> Ring {
        let mut ring = self.ring(index);
        ring.avail = at;
        self.set_avail(&ring, at);
        let used = GuestAddress(ring.base + USED + 2);
        self.memory.write_obj(at, used).unwrap();
        self.set_up_again(&ring, at);
        self.enable(&ring, true);
        ring
    }

    /// The same ring for a second thread, which only looks at it and sends its messages.
    pub fn ring_like(&self, ring: &Ring) -> Ring {
        let clone = |event: &EventFd| event.try_clone().unwrap();
        Ring {
            index: ring.index,
            size: ring.size,
            kick: clone(&ring.kick),
            call: clone(&ring.call),
            err: clone(&ring.err),
            base: ring.base,
            avail: 0,
        }
    }

    /// Stops a ring; returns its available index.
    pub fn stop(&self, index: usize) -> u32 {
        self.frontend.get_vring_base(index).unwrap()
    }

    /// Starts a ring again where it has stopped.
    pub fn go_on(&self, ring: &Ring) {
        let mut frontend = self.frontend.clone();
        frontend
            .set_vring_base(ring.index, self.used_index(ring))
            .unwrap();
        frontend.set_vring_call(ring.index, &ring.call).unwrap();
        frontend.set_vring_kick(ring.index, &ring.kick).unwrap();
        frontend.set_vring_enable(ring.index, true).unwrap();
    }

    pub fn enable(&mut self, ring: &Ring, enable: bool) {
        self.frontend.set_vring_enable(ring.index, enable).unwrap();
    }

    /// Address, length, flags and next.
    pub fn descriptor(&self, ring: &Ring, index: u16, descriptor: (u64, u32, u16, u16)) {
        self.descriptor_at(ring.base + 16 * u64::from(index), descriptor);
    }

    /// A descriptor anywhere in memory.
    pub fn descriptor_at(&self, place: u64, (address, len, flags, next): (u64, u32, u16, u16)) {
        let raw = RawDescriptor::from(Descriptor::new(address, len, flags, next));
        self.memory.write_obj(raw, GuestAddress(place)).unwrap();
    }

    /// Writes a chain from `head` on into the descriptors that follow: address, length and
    /// flags of each; those before the last get [`NEXT`] beside.
    pub fn chain(&self, ring: &Ring, head: u16, parts: &[(u64, u32, u16)]) {
        self.write_chain(ring.base, head, parts);
    }

    /// The same into a table anywhere in memory, from its first descriptor on.
    pub fn chain_at(&self, table: u64, parts: &[(u64, u32, u16)]) {
        self.write_chain(table, 0, parts);
    }

    fn write_chain(&self, table: u64, first: u16, parts: &[(u64, u32, u16)]) {
        for (at, (address, len, flags)) in (first..).zip(parts) {
            let is_last = usize::from(at - first) + 1 == parts.len();
            let more = if is_last { 0 } else { NEXT };
            let descriptor = (*address, *len, flags | more, at.wrapping_add(1));
            self.descriptor_at(table + 16 * u64::from(at), descriptor);
        }
    }

    /// Writes the descriptors of a request at `head` and the two after it.
    pub fn request(&self, ring: &Ring, head: u16, kind: u32, sector: u64, len: u32) {
        let header = self.header(ring, head);
        self.memory.write_obj(kind, GuestAddress(header)).unwrap();
        self.memory
            .write_obj(sector, GuestAddress(header + 8))
            .unwrap();
        self.memory
            .write_obj(0xff_u8, GuestAddress(header + 16))
            .unwrap();
        let device_writes = if kind == 1 { 0 } else { WRITE };
        self.descriptor(ring, head, (header, 16, NEXT, head + 1));
        self.descriptor(
            ring,
            head + 1,
            (self.data(ring, head), len, NEXT | device_writes, head + 2),
        );
        self.descriptor(ring, head + 2, (header + 16, 1, WRITE, 0));
    }

    pub fn header(&self, ring: &Ring, head: u16) -> u64 {
        ring.base + HEADERS + 32 * u64::from(head)
    }

    pub fn data(&self, ring: &Ring, head: u16) -> u64 {
        DATA + ring.index as u64 * 0x8_0000 + u64::from(head) * 0x2000
    }

    pub fn status(&self, ring: &Ring, head: u16) -> u8 {
        self.memory
            .read_obj(GuestAddress(self.header(ring, head) + 16))
            .unwrap()
    }

    /// Makes heads available, without a kick.
    pub fn offer(&self, ring: &mut Ring, heads: &[u16]) {
        for head in heads {
            let place = ring.base + AVAIL + 4 + 2 * u64::from(ring.avail % ring.size);
            self.memory.write_obj(*head, GuestAddress(place)).unwrap();
            ring.avail = ring.avail.wrapping_add(1);
        }
        self.set_avail(ring, ring.avail);
    }

    pub fn set_avail(&self, ring: &Ring, index: u16) {
        let place = GuestAddress(ring.base + AVAIL + 2);
        self.memory
            .store(index, place, std::sync::atomic::Ordering::SeqCst)
            .unwrap();
    }

    pub fn set_avail_flags(&self, ring: &Ring, flags: u16) {
        self.memory
            .write_obj(flags, GuestAddress(ring.base + AVAIL))
            .unwrap();
    }

    pub fn set_used_event(&self, ring: &Ring, event: u16) {
        let place = ring.base + AVAIL + 4 + 2 * u64::from(ring.size);
        self.memory.write_obj(event, GuestAddress(place)).unwrap();
    }

    /// The available index at which the device wants a kick.
    pub fn avail_event(&self, ring: &Ring) -> u16 {
        let place = ring.base + USED + 4 + 8 * u64::from(ring.size);
        self.memory
            .load(GuestAddress(place), std::sync::atomic::Ordering::SeqCst)
            .unwrap()
    }

    pub fn used_index(&self, ring: &Ring) -> u16 {
        let place = GuestAddress(ring.base + USED + 2);
        self.memory
            .load(place, std::sync::atomic::Ordering::SeqCst)
            .unwrap()
    }

    /// The used ring's entry `at`: head and length.
    pub fn used(&self, ring: &Ring, at: u16) -> (u32, u32) {
        let place = ring.base + USED + 4 + 8 * u64::from(at % ring.size);
        let head = self.memory.read_obj(GuestAddress(place)).unwrap();
        (head, self.memory.read_obj(GuestAddress(place + 4)).unwrap())
    }

    /// Offers heads, kicks, and waits until that many are back.
    pub fn run(&self, ring: &mut Ring, heads: &[u16]) {
        let want = self.used_index(ring).wrapping_add(heads.len() as u16);
        self.offer(ring, heads);
        ring.kick.write(1).unwrap();
        self.wait_used(ring, want);
    }

    pub fn wait_used(&self, ring: &Ring, index: u16) {
        crate::eventually("requests come back", || self.used_index(ring) == index);
    }
}

fn set_protocol_features(frontend: &mut Frontend, more: VhostUserProtocolFeatures) {
    let protocol = VhostUserProtocolFeatures::MQ
        | VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::CONFIG
        | VhostUserProtocolFeatures::INFLIGHT_SHMFD
        | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
        | more;
    assert!(frontend.get_protocol_features().unwrap().contains(protocol));
    frontend.set_protocol_features(protocol).unwrap();
}

/// Whether the event is set within `millis`; takes it.
pub fn signalled(event: &EventFd, millis: i64) -> bool {
    // SAFETY: the descriptor lives as long as `event`.
    let fd = unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) };
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    let timeout = Timespec {
        tv_sec: millis / 1000,
        tv_nsec: millis % 1000 * 1_000_000,
    };
    poll(&mut fds, Some(&timeout)).unwrap() == 1 && event.read().is_ok()
}
