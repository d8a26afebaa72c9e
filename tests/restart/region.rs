//! The in-flight region, read as the protocol lays it out, by somebody who knows
//! which requests are under way.

use std::collections::HashSet;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use vhost::vhost_user::message::VhostUserInflight;
use vhost::vhost_user::{Frontend, VhostUserFrontend};

use super::ring::{Offered, Ring, Shape};

/// Before the descriptors' states.
const HEADER: u64 = 16;
const STATE: u64 = 16;
/// Each queue's region begins at a multiple of this.
const ALIGNMENT: u64 = 64;

pub struct Region {
    info: VhostUserInflight,
    file: File,
}

/// What a region says of one queue.
#[derive(Debug)]
pub struct QueueRegion {
    pub version: u16,
    pub descriptors: u16,
    last_batch_head: u16,
    pub used_index: u16,
    /// Head, counter and link of the heads in flight.
    in_flight: Vec<(u16, u64)>,
    next: Vec<u16>,
}

impl Region {
    /// Asks a back end for an empty one.
    pub fn get(frontend: &mut Frontend, shape: &Shape) -> Result<Self, String> {
        let asked = VhostUserInflight::new(0, 0, shape.queues as u16, shape.ring_size());
        let (info, file) = frontend
            .get_inflight_fd(&asked)
            .map_err(|e| format!("GET_INFLIGHT_FD: {e}"))?;
        Ok(Self { info, file })
    }

    pub fn set(&self, frontend: &mut Frontend, shape: &Shape) -> Result<(), String> {
        let info = VhostUserInflight::new(
            self.info.mmap_size,
            self.info.mmap_offset,
            shape.queues as u16,
            shape.ring_size(),
        );
        frontend
            .set_inflight_fd(&info, self.file.as_raw_fd())
            .map_err(|e| format!("SET_INFLIGHT_FD: {e}"))
    }

    /// A back end may have made it for larger rings; all queues have room for the same number
    /// of descriptors.
    fn room(&self, size: u16) -> u16 {
        let mut layout = [0; 4];
        let at = self.info.mmap_offset + 8;
        self.file.read_exact_at(&mut layout, at).unwrap();
        let [a, b, c, d] = layout;
        match u16::from_ne_bytes([a, b]) {
            0 => size,
            _version => u16::from_ne_bytes([c, d]),
        }
    }

    pub fn queue(&self, index: usize, size: u16) -> QueueRegion {
        let len = (HEADER + STATE * u64::from(self.room(size))).next_multiple_of(ALIGNMENT);
        let start = self.info.mmap_offset + index as u64 * len;
        let mut bytes = vec![0; len as usize];
        self.file.read_exact_at(&mut bytes, start).unwrap();
        let half = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        let states = (0..size).map(|head| (head, (HEADER + STATE * u64::from(head)) as usize));
        let mut in_flight: Vec<(u16, u64)> = states
            .clone()
            .filter(|(_, at)| bytes[*at] != 0)
            .map(|(head, at)| {
                let counter = bytes[at + 8..at + 16].try_into().unwrap();
                (head, u64::from_ne_bytes(counter))
            })
            .collect();
        in_flight.sort_by_key(|(_, counter)| *counter);
        QueueRegion {
            version: half(8),
            descriptors: half(10),
            last_batch_head: half(12),
            used_index: half(14),
            in_flight,
            next: states.map(|(_, at)| half(at + 6)).collect(),
        }
    }
}

impl QueueRegion {
    /// What a back end that takes over has to do, by the protocol's recipe: the heads
    /// to be done again and those that it takes from the available ring thereafter.
    pub fn offered(&self, ring: &Ring, under_way: &HashSet<usize>) -> Offered {
        let used = ring.used_index();
        let mut in_flight = self.in_flight.clone();
        // A batch that was published, and not cleared yet.
        let mut head = self.last_batch_head;
        for _ in 0..used.wrapping_sub(self.used_index) {
            in_flight.retain(|(other, _)| *other != head);
            head = self.next.get(usize::from(head)).copied().unwrap_or(0);
        }
        let base = used.wrapping_add(in_flight.len() as u16);
        let mut offered = Offered::default();
        let ahead = ring.avail.wrapping_sub(base);
        if ahead <= ring.shape.ring_size() {
            offered = ring.offered_from(base, under_way);
        }
        for (head, _) in in_flight {
            let slot = ring.shape.slot(u32::from(head));
            match slot.filter(|slot| under_way.contains(slot)) {
                Some(slot) if offered.under_way.insert(slot) => {}
                _ => offered.completed += 1,
            }
        }
        offered
    }
}
