//! The record of requests under way that a front end keeps for its back end, so that a
//! restarted back end continues where the last one died (vhost-user, "Inflight I/O
//! tracking", split rings).
//!
//! The record outlives this process, and the front end can write it: everything that is
//! read from it is checked. Each queue has 16 bytes of header and 16 bytes for
//! each descriptor, from a multiple of 64 on:
//!
//! ```text
//!  header      0 features (0)   8 version (1)   10 descriptors   12 last batch head   14 used index
//!  descriptor  0 in flight      6 next in its batch              8 counter
//! ```
//!
//! The process may die between any two stores, so their order matters:
//!
//! - taking a head: 1 counter → 2 in flight;
//! - giving heads back: 1 each is linked to the one before it → 2 it is the last
//!   batch head → 3 (used elements and) the ring's used index → 4 none of them is
//!   in flight → 5 the record's used index.
//!
//! A used index that differs from the ring's thus means that 3 happened, and maybe
//! a part of 4: the batch is as long as the difference, and 4 and 5 are done again.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, memfd_create};
use vhost::vhost_user::message::VhostUserInflight;
use vm_memory::{AtomicAccess, Bytes, FileOffset, MmapRegion, VolatileMemory};

use super::ring_fault::RingFault;
use super::{MAX_QUEUE_SIZE, descriptors};
use crate::mutation::{self, Mutation};
use crate::size::in_words;

const HEADER: usize = 16;
const LAYOUT_AT: u64 = 8;
const VERSION_AT: usize = 8;
const DESCRIPTORS_AT: usize = 10;
const LAST_BATCH_HEAD_AT: usize = 12;
const USED_INDEX_AT: usize = 14;

const DESCRIPTOR: usize = 16;
const IN_FLIGHT_AT: usize = 0;
const NEXT_AT: usize = 6;
const COUNTER_AT: usize = 8;

/// The only layout for split rings.
const VERSION: u16 = 1;
/// Each queue's part begins at a multiple of this.
const ALIGNMENT: usize = 64;

/// The records of all queues.
#[derive(Clone, Debug)]
pub struct InflightRegion {
    mapping: Arc<MmapRegion>,
    queues: u16,
    size: u16,
}

/// Bytes of one queue's part.
fn stride(size: u16) -> usize {
    (HEADER + usize::from(size) * DESCRIPTOR).next_multiple_of(ALIGNMENT)
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}

impl InflightRegion {
    /// An empty record for `queues` rings, in memory whose size is sealed.
    ///
    /// It has room for the largest ring, whatever `size` the front end names: QEMU names its
    /// option `queue-size`, and lets the driver set up a larger ring (`SeaBIOS` of Debian 13
    /// sets up 256 entries where 128 are the default).
    pub fn create(queues: u16, size: u16, most: usize) -> io::Result<(VhostUserInflight, File)> {
        check(queues, size, most)?;
        let stride = u64::try_from(stride(MAX_QUEUE_SIZE)).map_err(io::Error::other)?;
        let len = stride * u64::from(queues);
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = File::from(memfd_create("vhost-user-inflight", flags)?);
        file.set_len(len)?;
        let layout = [VERSION, MAX_QUEUE_SIZE].map(u16::to_ne_bytes);
        for part in (0..len).step_by(usize::try_from(stride).map_err(io::Error::other)?) {
            file.write_all_at(layout.as_flattened(), part + LAYOUT_AT)?;
        }
        fcntl_add_seals(&file, SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
        Ok((VhostUserInflight::new(len, 0, queues, size), file))
    }

    /// Takes the record that a front end passes. `most`: queues of the view.
    ///
    /// # Errors
    /// It is not sealed memory of the required size, or has another layout. If memory that
    /// is not sealed were shortened, an access would kill the process.
    pub fn open(message: &VhostUserInflight, file: File, most: usize) -> io::Result<Self> {
        let (queues, size) = (message.num_queues, message.queue_size);
        check(queues, size, most)?;
        descriptors::check(&file)?;
        let sealed = fcntl_get_seals(&file).map_err(|_| {
            invalid("an in-flight region must be sealed memory, which this is not".into())
        })?;
        if !sealed.contains(SealFlags::SHRINK) {
            return Err(invalid(
                "an in-flight region that can be cut is refused; seal it with F_SEAL_SHRINK".into(),
            ));
        }
        let size = entries(&file, message);
        let len = stride(size) * usize::from(queues);
        let wanted = u64::try_from(len).map_err(io::Error::other)?;
        let there = u64::try_from(fstat(&file)?.st_size).unwrap_or(0);
        let end = message.mmap_offset.checked_add(wanted);
        if message.mmap_size < wanted || end.is_none_or(|end| end > there) {
            return Err(invalid(format!(
                "an in-flight region for {queues} queues of {size} entries needs {}, \
                 which {} at offset {} of a file of {} do not hold",
                in_words(wanted),
                in_words(message.mmap_size),
                message.mmap_offset,
                in_words(there)
            )));
        }
        let mapping = MmapRegion::from_file(FileOffset::new(file, message.mmap_offset), len)
            .map_err(|e| invalid(format!("an in-flight region that cannot be mapped: {e}")))?;
        let region = Self {
            mapping: Arc::new(mapping),
            queues,
            size,
        };
        for index in 0..usize::from(queues) {
            let queue = region.queue(index);
            let checked = queue.map(|queue| queue.check_layout());
            checked.unwrap_or(Ok(()))?;
        }
        Ok(region)
    }

    /// The part of queue `index`; `None` if the record has none.
    pub fn queue(&self, index: usize) -> Option<InflightQueue> {
        (index < usize::from(self.queues)).then(|| InflightQueue {
            mapping: Arc::clone(&self.mapping),
            base: index * stride(self.size),
            size: self.size,
            counter: 0,
            batch: Vec::new(),
        })
    }
}

/// Entries of each queue's part: what the record says, if it was in use before, and what the
/// front end says otherwise.
fn entries(file: &File, message: &VhostUserInflight) -> u16 {
    let mut layout = [0; 4];
    let at = message.mmap_offset.saturating_add(LAYOUT_AT);
    // A place that cannot be read is refused when its size is checked.
    let _ = file.read_at(&mut layout, at);
    let [a, b, c, d] = layout;
    let (version, descriptors) = (u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d]));
    let said = message.queue_size;
    let known = version == VERSION && (said..=MAX_QUEUE_SIZE).contains(&descriptors);
    if known { descriptors } else { said }
}

fn check(queues: u16, size: u16, most: usize) -> io::Result<()> {
    if queues == 0 || usize::from(queues) > most || size == 0 || size > MAX_QUEUE_SIZE {
        return Err(invalid(format!(
            "an in-flight region for {queues} queues of {size} entries; \
             there are {most} queues of up to {MAX_QUEUE_SIZE} entries"
        )));
    }
    Ok(())
}

/// The record of one queue, owned by its worker.
#[derive(Debug)]
pub struct InflightQueue {
    mapping: Arc<MmapRegion>,
    base: usize,
    size: u16,
    /// The counter of the next request that is taken.
    counter: u64,
    /// Heads that were given back and are not published.
    batch: Vec<u16>,
}

impl InflightQueue {
    /// Entries that the ring may have.
    pub const fn size(&self) -> u16 {
        self.size
    }

    /// A fresh record is all zeroes.
    fn check_layout(&self) -> io::Result<()> {
        let load = |at| self.load::<u16>(at).map_err(io::Error::other);
        let (version, descriptors) = (load(VERSION_AT)?, load(DESCRIPTORS_AT)?);
        if version == 0 {
            let fresh = self.store(DESCRIPTORS_AT, self.size);
            let fresh = fresh.and_then(|()| self.store(VERSION_AT, VERSION));
            return fresh.map_err(io::Error::other);
        }
        if version != VERSION || descriptors != self.size {
            return Err(invalid(format!(
                "an in-flight region of version {version} for {descriptors} descriptors; \
                 version {VERSION} for {} is needed",
                self.size
            )));
        }
        Ok(())
    }

    /// Brings the record up to date with a ring of `size` entries that has these indices.
    /// Returns the heads that must be carried out (again), in the order in which they were
    /// taken.
    ///
    /// 1. a batch that was published is not in flight, 2. the used index, 3. the rest
    ///    in the order of their counters. A ring that has nothing under way, or whose
    ///    used index is not one batch ahead, is new: the device was reset meanwhile. Heads
    ///    that it does not have belonged to a larger one.
    ///
    /// # Errors
    /// More is in flight than such a ring can have.
    pub fn recover(&mut self, size: u16, used: u16, available: u16) -> Result<Vec<u16>, RingFault> {
        let outstanding = available.wrapping_sub(used);
        let behind = used.wrapping_sub(self.load(USED_INDEX_AT)?);
        let same_ring = behind <= size;
        if same_ring && behind > 0 {
            let mut head = self.load(LAST_BATCH_HEAD_AT)?;
            for _ in 0..behind {
                let at = self.descriptor(head)?;
                self.store(at + IN_FLIGHT_AT, 0_u8)?;
                head = self.load(at + NEXT_AT)?;
            }
        }
        let mut heads = Vec::new();
        for head in 0..self.size {
            let at = self.descriptor(head)?;
            if self.load::<u8>(at + IN_FLIGHT_AT)? == 0 {
                continue;
            }
            if same_ring && outstanding > 0 && head < size {
                heads.push((self.load::<u64>(at + COUNTER_AT)?, head));
            } else {
                self.store(at + IN_FLIGHT_AT, 0_u8)?;
            }
        }
        if heads.len() > usize::from(outstanding) {
            return Err(RingFault::Inflight {
                recorded: heads.len(),
                outstanding,
            });
        }
        self.store(USED_INDEX_AT, used)?;
        if !mutation::is(Mutation::ReplayUnordered) {
            heads.sort_unstable();
        }
        self.counter = heads.last().map_or(0, |(last, _)| last.wrapping_add(1));
        Ok(heads.into_iter().map(|(_, head)| head).collect())
    }

    /// A head was taken from the ring; called before anything is done for it.
    pub fn taken(&mut self, head: u16) -> Result<(), RingFault> {
        let at = self.descriptor(head)?;
        let counter = self.counter;
        self.counter = counter.wrapping_add(1);
        if mutation::is(Mutation::TakenNotRecorded) {
            return Ok(());
        }
        if mutation::is(Mutation::InFlightBeforeCounter) {
            self.store(at + IN_FLIGHT_AT, 1_u8)?;
            return self.store(at + COUNTER_AT, counter);
        }
        self.store(at + COUNTER_AT, counter)?;
        self.store(at + IN_FLIGHT_AT, 1_u8)
    }

    /// A head goes back with the next change of the used index.
    pub fn given_back(&mut self, head: u16) -> Result<(), RingFault> {
        if !mutation::is(Mutation::BatchLinkedLate) {
            self.link(head)?;
        }
        if mutation::is(Mutation::InFlightEndsEarly) {
            self.store(self.descriptor(head)? + IN_FLIGHT_AT, 0_u8)?;
        }
        self.batch.push(head);
        Ok(())
    }

    fn link(&self, head: u16) -> Result<(), RingFault> {
        let at = self.descriptor(head)?;
        self.store(at + NEXT_AT, self.load::<u16>(LAST_BATCH_HEAD_AT)?)?;
        self.store(LAST_BATCH_HEAD_AT, head)
    }

    /// The driver sees `used`, and with it all that was given back.
    pub fn published(&mut self, used: u16) -> Result<(), RingFault> {
        let early = mutation::is(Mutation::UsedIndexRecordedEarly);
        if early {
            self.store(USED_INDEX_AT, used)?;
        }
        let batch = std::mem::take(&mut self.batch);
        for head in &batch {
            if mutation::is(Mutation::BatchLinkedLate) {
                self.link(*head)?;
            }
            self.store(self.descriptor(*head)? + IN_FLIGHT_AT, 0_u8)?;
        }
        self.batch = batch;
        self.batch.clear();
        if early {
            return Ok(());
        }
        self.store(USED_INDEX_AT, used)
    }

    fn descriptor(&self, head: u16) -> Result<usize, RingFault> {
        if head < self.size {
            Ok(HEADER + usize::from(head) * DESCRIPTOR)
        } else {
            Err(RingFault::Head(head))
        }
    }

    fn load<T: AtomicAccess>(&self, at: usize) -> Result<T, RingFault> {
        let slice = self.mapping.as_volatile_slice();
        let loaded = slice.load(self.base + at, Ordering::Acquire);
        loaded.map_err(|_| RingFault::Memory)
    }

    /// Only the next process reads what is stored, after this one has died, so only the
    /// order of the instructions matters.
    fn store<T: AtomicAccess>(&self, at: usize, value: T) -> Result<(), RingFault> {
        if mutation::is_dead() {
            return Ok(());
        }
        let slice = self.mapping.as_volatile_slice();
        let stored = slice.store(value, self.base + at, Ordering::Release);
        stored.map_err(|_| RingFault::Memory)
    }
}

#[cfg(test)]
#[path = "inflight_tests.rs"]
mod tests;
