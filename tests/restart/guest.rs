//! A front end and its driver, that keep guest memory, rings and what is under way
//! while back ends come and go.

use std::collections::HashSet;
use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vhost::vhost_user::Frontend;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

use super::common::random::Random;
use super::common::stamps::{self, Found};
use super::disk::{Disk, Flight, compare};
use super::faults::{
    AGAIN_TAKEN, CONTENT, Faults, LATE, LOST, REFUSED, REGION, STUCK_HEADS, TWICE,
};
use super::region::Region;
use super::ring::{Offered, RING_BYTES, Ring, Shape};
use super::server::compares;

/// A back end that completes nothing for this long is stuck.
const STUCK: Duration = Duration::from_secs(40);
/// The same when another back end is looked at only.
const STUCK_OTHER: Duration = Duration::from_secs(3);
/// Where a front end lets the rings go on after a hang-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    /// As QEMU does.
    Used,
    /// As cloud-hypervisor does without IN_ORDER.
    Avail,
}

pub struct Guest {
    pub name: String,
    pub socket: PathBuf,
    pub shape: Shape,
    pub resume: Resume,
    pub memory: GuestMemoryMmap<()>,
    pub file: File,
    pub rings: Vec<Ring>,
    pub flights: Vec<Vec<Option<Flight>>>,
    /// Free buffers of each ring, with the poison they hold and its length.
    pub buffers: Vec<Vec<(usize, u64, usize)>>,
    pub disk: Disk,
    pub random: Random,
    pub with_region: bool,
    pub region: Option<Region>,
    pub frontend: Option<Frontend>,
    /// The hang-up was seen; and the used indices then.
    pub looked: bool,
    pub bases: Vec<u16>,
    pub offer_again: Option<Instant>,
    pub last_progress: Instant,
    pub faults: Faults,
    pub completed: u64,
    /// The longest time between two completions while something was under way.
    pub longest: Duration,
    /// The rings are to start at 0.
    pub was_reset: bool,
}

impl Guest {
    pub fn new(name: &str, socket: &Path, shape: Shape, resume: Resume, disk: Disk) -> Self {
        let len = shape.queues * RING_BYTES as usize;
        let fd = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let file = File::from(fd);
        file.set_len(len as u64).unwrap();
        let offset = FileOffset::new(file.try_clone().unwrap(), 0);
        let memory =
            GuestMemoryMmap::from_ranges_with_files([(GuestAddress(0), len, Some(offset))])
                .unwrap();
        let rings = (0..shape.queues).map(|index| Ring::new(&memory, index, shape));
        let buffers = |_| (0..2 * shape.depth).map(|b| (b, 0, 0)).collect();
        Self {
            name: name.to_owned(),
            socket: socket.to_owned(),
            shape,
            resume,
            file,
            rings: rings.collect(),
            flights: vec![vec![None; shape.depth]; shape.queues],
            buffers: (0..shape.queues).map(buffers).collect(),
            memory,
            random: Random::new(disk.shadow.len() as u64 ^ shape.depth as u64),
            disk,
            with_region: false,
            region: None,
            frontend: None,
            looked: false,
            bases: vec![0; shape.queues],
            offer_again: None,
            last_progress: Instant::now(),
            faults: Faults::default(),
            completed: 0,
            longest: Duration::ZERO,
            was_reset: true,
        }
    }

    /// Submits (unless asked not to), kicks and takes completions. False if there was
    /// nothing to do.
    pub fn pump(&mut self, submit: bool) -> bool {
        let mut progress = false;
        if self.offer_again.is_some_and(|at| Instant::now() > at) && !self.looked {
            self.offer_again = None;
            for (ring, flights) in self.rings.iter_mut().zip(&mut self.flights) {
                for (slot, flight) in flights.iter_mut().enumerate() {
                    if let Some(flight) = flight.as_mut().filter(|f| f.lost) {
                        flight.lost = false;
                        ring.offer(slot);
                    }
                }
                ring.notify();
            }
        }
        for index in 0..self.rings.len() {
            if submit {
                while self.submit_one(index) {
                    progress = true;
                }
                self.rings[index].notify();
            }
            // As a driver it looks when it is interrupted.
            if self.rings[index].call.read().is_ok() {
                while let Some((head, _)) = self.rings[index].take_used() {
                    progress = true;
                    self.complete(index, head);
                }
            }
        }
        if progress {
            let since = self.last_progress.elapsed();
            self.longest = self.longest.max(since);
        }
        let idle = self.under_way() == 0;
        let patience = if compares() { STUCK_OTHER } else { STUCK };
        if progress || idle {
            self.last_progress = Instant::now();
        } else if self.last_progress.elapsed() > patience {
            let count = self.under_way() as u64;
            let name = &self.name;
            self.faults
                .add(STUCK_HEADS, count, || format!("{name}: for {patience:?}"));
            self.last_progress = Instant::now();
        }
        progress
    }

    fn submit_one(&mut self, index: usize) -> bool {
        let Some(slot) = self.flights[index].iter().position(Option::is_none) else {
            return false;
        };
        let under_way: Vec<Flight> = self.flights.iter().flatten().flatten().copied().collect();
        let Some(mut flight) = self.disk.draw(&under_way) else {
            return false;
        };
        // Mostly the buffer that was given back last.
        let free = &mut self.buffers[index];
        let place = match self.random.below(4) {
            0 => self.random.below(free.len() as u64) as usize,
            _ => free.len() - 1,
        };
        let (buffer, poison, len) = free.swap_remove(place);
        self.check_poison(index, buffer, poison, len);
        flight.buffer = buffer;
        let mut data = vec![0; flight.len];
        if flight.kind == super::ring::OUT {
            stamps::fill(&mut data, flight.stamp);
        } else {
            flight.stamp = self.disk.poison();
            stamps::fill(&mut data, flight.stamp);
        }
        let ring = &mut self.rings[index];
        self.memory.write_slice(&data, ring.buffer(buffer)).unwrap();
        ring.submit(slot, flight.kind, flight.sector, buffer, flight.len);
        self.flights[index][slot] = Some(flight);
        true
    }

    fn check_poison(&mut self, index: usize, buffer: usize, poison: u64, len: usize) {
        let mut data = vec![0; len];
        let place = self.rings[index].buffer(buffer);
        self.memory.read_slice(&mut data, place).unwrap();
        if let Err((at, found)) = compare(&data, poison) {
            let name = &self.name;
            self.faults.add(CONTENT, 1, || {
                format!(
                    "{name}: a page that no request uses holds {} in its sector {at}",
                    Found(found)
                )
            });
        }
    }

    fn complete(&mut self, index: usize, head: u32) {
        let slot = self.shape.slot(head);
        let name = &self.name;
        let flight = slot.and_then(|slot| self.flights[index][slot].take());
        let (Some(slot), Some(flight)) = (slot, flight) else {
            self.faults.add(TWICE, 1, || {
                format!("{name}: queue {index}: head {head} is on the used ring and not under way")
            });
            return;
        };
        self.completed += 1;
        let status = self.rings[index].status(slot);
        let place = self.rings[index].buffer(flight.buffer);
        let mut data = vec![0; flight.len];
        self.memory.read_slice(&mut data, place).unwrap();
        if status != 0 {
            self.faults.add(REFUSED, 1, || {
                format!("{name}: queue {index}: {flight:?} ends with status {status}")
            });
        } else if let Err(what) = self.disk.ended(&flight, &data) {
            self.faults
                .add(CONTENT, 1, || format!("{name}: queue {index}: {what}"));
        }
        // The pages go to somebody else at once.
        let poison = self.disk.poison();
        stamps::fill(&mut data, poison);
        self.memory.write_slice(&data, place).unwrap();
        self.buffers[index].push((flight.buffer, poison, flight.len));
    }

    pub fn under_way(&self) -> usize {
        self.flights.iter().flatten().flatten().count()
    }

    pub fn lost(&self) -> bool {
        self.looked
    }

    /// Whether the back end has hung up; if so, the rings are looked at as a front
    /// end does then.
    pub fn look(&mut self) {
        if self.looked {
            return;
        }
        let hung_up = match &self.frontend {
            None => true,
            Some(frontend) => {
                // SAFETY: the descriptor lives as long as `frontend`.
                let fd = unsafe { BorrowedFd::borrow_raw(frontend.as_raw_fd()) };
                let mut fds = [PollFd::new(&fd, PollFlags::IN | PollFlags::RDHUP)];
                poll(&mut fds, Some(&Timespec::default())).unwrap() > 0
            }
        };
        if hung_up {
            self.bases = self.rings.iter().map(Ring::used_index).collect();
            (self.looked, self.was_reset) = (true, false);
            self.frontend = None;
        }
    }

    /// The back end's process has ended: what will the next one find?
    pub fn back_end_is_gone(&mut self) {
        assert!(self.looked);
        for (index, looked) in self.bases.clone().into_iter().enumerate() {
            let name = format!("{}: queue {index}", self.name);
            let used = self.rings[index].used_index();
            let late = u64::from(used.wrapping_sub(looked));
            self.faults
                .add(LATE, late, || format!("{name}: {late} heads"));
            // All that is there: the next back end interrupts unasked.
            self.rings[index].call.write(1).unwrap();
            while let Some((head, _)) = self.rings[index].take_used() {
                self.complete(index, head);
            }
            let flights = self.flights[index].iter().enumerate();
            let under_way: HashSet<usize> = flights.filter_map(|(i, f)| f.map(|_| i)).collect();
            // snapback goes on behind what is done wherever it is told to; others need not.
            if self.resume == Resume::Avail && !self.with_region && compares() {
                continue;
            }
            let offered = self.offered(index, &under_way);
            self.faults.add(AGAIN_TAKEN, offered.completed, || {
                format!("{name}: {} heads", offered.completed)
            });
            let lost = (under_way.len() - offered.under_way.len()) as u64;
            self.faults.add(LOST, lost, || {
                format!("{name}: {lost} of {} under way", under_way.len())
            });
        }
    }

    /// What the next back end will find in a ring, and do.
    pub fn offered(&mut self, index: usize, under_way: &HashSet<usize>) -> Offered {
        let (ring, size) = (&self.rings[index], self.shape.ring_size());
        let region = self.region.as_ref().map(|region| region.queue(index, size));
        match region {
            // Version 0: the last one died before it had it.
            Some(region) if region.version != 0 => {
                let wrong = region.version != 1 || region.descriptors < size;
                let name = &self.name;
                self.faults.add(REGION, u64::from(wrong), || {
                    format!("{name}: queue {index}: {region:?}")
                });
                region.offered(ring, under_way)
            }
            _ => ring.offered_from(self.bases[index], under_way),
        }
    }

    pub fn has_used_all_rings(&self) -> bool {
        self.rings.iter().all(|ring| ring.seen != 0)
    }

    /// Checks the pages that no request uses.
    pub fn check_free_pages(&mut self) {
        for index in 0..self.rings.len() {
            for (buffer, poison, len) in self.buffers[index].clone() {
                self.check_poison(index, buffer, poison, len);
            }
        }
    }

    /// Readable when it is interrupted or loses its connection.
    pub fn descriptors(&self) -> Vec<std::os::fd::RawFd> {
        let rings = self.rings.iter().map(|ring| ring.call.as_raw_fd());
        let connection = self.frontend.as_ref().map(|f| f.as_raw_fd());
        rings.chain(connection).collect()
    }
}
