//! A driver that sends batches, with the event descriptors that QEMU uses.

use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use crate::ring::{IN, OUT, RING_BYTES, Ring, Shape};

/// VERSION_1, protocol features, EVENT_IDX, MQ.
const FEATURES: u64 = 1 << 32 | 1 << 30 | 1 << 29 | 1 << 12;
/// Bytes of a request.
const BLOCK: usize = 4096;
/// Requests in a batch, at most.
const DEPTH: usize = 32;

pub struct Driver {
    rings: Vec<Ring>,
    _frontend: Frontend,
    _memory: GuestMemoryMmap<()>,
}

impl Driver {
    pub fn connect(path: &Path, queues: usize) -> Self {
        let shape = Shape {
            queues,
            depth: DEPTH,
            indirect: false,
            event_idx: true,
        };
        let len = queues * RING_BYTES as usize;
        let fd = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let file = File::from(fd);
        file.set_len(len as u64).unwrap();
        let offset = FileOffset::new(file.try_clone().unwrap(), 0);
        let range = (GuestAddress(0), len, Some(offset));
        let memory = GuestMemoryMmap::from_ranges_with_files([range]).unwrap();
        let host = |at: GuestAddress| memory.get_host_address(at).unwrap() as u64;
        let mut frontend = Frontend::connect(path, 16).unwrap();
        let f = &mut frontend;
        f.set_owner().unwrap();
        f.get_features().unwrap();
        f.set_features(FEATURES).unwrap();
        f.get_protocol_features().unwrap();
        f.set_protocol_features(
            VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::REPLY_ACK,
        )
        .unwrap();
        f.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        f.set_mem_table(&[VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: len as u64,
            userspace_addr: host(GuestAddress(0)),
            mmap_offset: 0,
            mmap_handle: file.as_raw_fd(),
        }])
        .unwrap();
        let rings: Vec<Ring> = (0..queues).map(|n| Ring::new(&memory, n, shape)).collect();
        for ring in &rings {
            let [descriptors, available, used] = ring.addresses();
            let size = shape.ring_size();
            f.set_vring_num(ring.index, size).unwrap();
            f.set_vring_base(ring.index, 0).unwrap();
            let addresses = VringConfigData {
                queue_max_size: size,
                queue_size: size,
                flags: 0,
                desc_table_addr: host(descriptors),
                avail_ring_addr: host(available),
                used_ring_addr: host(used),
                log_addr: None,
            };
            f.set_vring_addr(ring.index, &addresses).unwrap();
            f.set_vring_call(ring.index, &ring.call).unwrap();
            f.set_vring_kick(ring.index, &ring.kick).unwrap();
            f.set_vring_enable(ring.index, true).unwrap();
        }
        Self {
            rings,
            _frontend: frontend,
            _memory: memory,
        }
    }

    /// Makes `depth` requests in each queue and sleeps until all of them have completed,
    /// `count` times.
    pub fn batches(&mut self, count: usize, depth: usize, write: bool) {
        let kind = if write { OUT } else { IN };
        for batch in 0..count {
            for ring in &mut self.rings {
                let before = ring.index * DEPTH;
                for slot in 0..depth {
                    let block = (batch * 7 + before + slot) % 1024;
                    ring.submit(slot, kind, 8 * block as u64, slot, BLOCK);
                }
            }
            for ring in &mut self.rings {
                ring.notify();
            }
            for ring in &mut self.rings {
                let mut left = depth;
                while left > 0 {
                    let Some((head, _)) = ring.take_used() else {
                        sleep(ring);
                        continue;
                    };
                    let slot = ring.shape.slot(head).unwrap();
                    assert_eq!(ring.status(slot), 0);
                    left -= 1;
                }
            }
        }
    }
}

/// Until the device has signalled.
fn sleep(ring: &Ring) {
    // SAFETY: the ring keeps the descriptor open.
    let call = unsafe { BorrowedFd::borrow_raw(ring.call.as_raw_fd()) };
    let limit = Timespec {
        tv_sec: 60,
        tv_nsec: 0,
    };
    let mut fds = [PollFd::new(&call, PollFlags::IN)];
    assert_ne!(
        poll(&mut fds, Some(&limit)),
        Ok(0),
        "no completion for 60 s"
    );
    let _ = ring.call.read();
}
