//! The record of entries that are acknowledged and not yet in the log.
//!
//! It lies in memory that survives the process and not the power, beside the store, and is
//! no part of Linux's format. Block 0 says which boot of the system and which store it
//! belongs to. The other blocks are a ring: the entry that the log will hold in slot `s`
//! is in block `s / 30 % RING`. A block is written as a whole, which the death of the
//! process cannot tear. Each says up to which slot the log was durable when it was written
//! (the floor); what all blocks list below the highest floor is retired.

use std::collections::HashMap;

use super::disk::StoreDisk;
use super::entry::Entry;
use super::layout::ENTRY_BYTES;
use super::metadata::{MetaWrite, Metadata};
use super::validate::EntryRules;
use super::{Layout, StoreError};
use crate::io::{DeviceId, Disk};
use crate::mutation::{self, Mutation};

/// Bytes of the header of a record, and of each block of entries.
pub const RECORD_BLOCK: usize = 512;
/// Checksum, magic, floor, first slot.
const HEAD: usize = 32;
const ENTRIES: usize = (RECORD_BLOCK - HEAD) / ENTRY_BYTES;
const PER_BLOCK: u64 = ENTRIES as u64;
/// Blocks of entries.
const RING_BLOCKS: usize = 64;
const RING: u64 = RING_BLOCKS as u64;
const OWNER_MAGIC: u64 = u64::from_le_bytes(*b"SnpbkRec");
const ENTRY_MAGIC: u64 = u64::from_le_bytes(*b"SnpbkEnt");

/// Bytes of a record.
pub const RECORD_BYTES: usize = RECORD_BLOCK * (1 + RING_BLOCKS);

/// Entries below `floor + RECORD_ROOM` have a place: the blocks that they replace list
/// retired entries only.
pub const RECORD_ROOM: usize = ENTRIES * (RING_BLOCKS - 1);

/// To what a record belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordOwner {
    /// The boot of the system. What another boot has acknowledged and not made durable is
    /// lost, and so is the data of the entries.
    pub boot: [u8; 16],
    /// What identifies the COW.
    pub store: [u8; 64],
}

impl RecordOwner {
    /// An empty record.
    pub fn empty_record(&self) -> Vec<u8> {
        let mut block = Vec::with_capacity(RECORD_BYTES);
        block.extend_from_slice(&[0; 8]);
        block.extend_from_slice(&OWNER_MAGIC.to_le_bytes());
        block.extend_from_slice(&self.boot);
        block.extend_from_slice(&self.store);
        let mut record = sealed(block);
        record.resize(RECORD_BYTES, 0);
        record
    }
}

/// Entries that a record lists, by the slots that they were to get. At most one ring full.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listed {
    /// The log has at least so many entries.
    floor: u64,
    entries: Vec<(u64, Entry)>,
}

impl Listed {
    pub const fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// What the bytes of a record are, to the owner who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FoundRecord {
    /// Nothing was ever written to it.
    Blank,
    /// Of another boot: worthless.
    OtherBoot,
    /// Of another store: not to be touched.
    OtherStore,
    Mine(Listed),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    #[error("block {block} of the record of unflushed writes is damaged: {what}")]
    Damaged { block: usize, what: &'static str },
    #[error(
        "the record of unflushed writes is for a log of {floor} entries or more, and the log has {len}: the store \
         was changed by something else since it was served last"
    )]
    LogShorter { floor: u64, len: usize },
    #[error(
        "the record of unflushed writes keeps origin chunk {} in COW chunk {}, and the store keeps origin chunk {} \
         in COW chunk {}: the store was changed by something else since it was served last",
        listed.old, listed.new, other.old, other.new
    )]
    Conflict { listed: Entry, other: Entry },
    #[error("the record of unflushed writes: {0}")]
    Store(#[from] StoreError),
}

/// Fills a block up and puts the checksum of the rest into its first 8 bytes.
fn sealed(mut block: Vec<u8>) -> Vec<u8> {
    block.resize(RECORD_BLOCK, 0);
    let sum = checksum(&block).to_le_bytes();
    for (byte, sum) in block.iter_mut().zip(sum) {
        *byte = sum;
    }
    block
}

/// FNV-1a over everything behind the checksum.
fn checksum(block: &[u8]) -> u64 {
    block
        .iter()
        .skip(8)
        .fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
            (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        })
}

fn word(block: &[u8], at: usize) -> u64 {
    let bytes = block.get(at..).and_then(|rest| rest.first_chunk());
    bytes.copied().map_or(0, u64::from_le_bytes)
}

/// The first slot of the block that has a place for `slot`.
pub const fn record_block_of(slot: u64) -> u64 {
    slot / PER_BLOCK * PER_BLOCK
}

/// The slots of the block that begins with `first`.
pub fn record_slots(first: u64) -> std::ops::Range<u64> {
    first..first.saturating_add(PER_BLOCK)
}

/// The write of the block that begins with slot `first` and lists what `entry` says.
pub fn record_write(floor: u64, first: u64, entry: impl Fn(u64) -> Option<Entry>) -> MetaWrite {
    let mut block = Vec::with_capacity(RECORD_BLOCK);
    block.extend_from_slice(&[0; 8]);
    for word in [ENTRY_MAGIC, floor, first] {
        block.extend_from_slice(&word.to_le_bytes());
    }
    for slot in record_slots(first) {
        block.extend_from_slice(&entry(slot).map_or([0; ENTRY_BYTES], Entry::to_bytes));
    }
    MetaWrite {
        offset: (1 + first / PER_BLOCK % RING) * RECORD_BLOCK as u64,
        data: sealed(block),
    }
}

/// Reads the bytes of a record.
///
/// # Errors
/// It is damaged. A daemon that was killed does not leave such a record.
pub fn read_record(bytes: &[u8], owner: &RecordOwner) -> Result<FoundRecord, RecordError> {
    if bytes.iter().all(|byte| *byte == 0) {
        return Ok(FoundRecord::Blank);
    }
    let damaged = |block, what| Err(RecordError::Damaged { block, what });
    if bytes.len() != RECORD_BYTES {
        return damaged(0, "the length is wrong");
    }
    let (head, ring) = bytes.split_at(RECORD_BLOCK);
    if word(head, 0) != checksum(head) || word(head, 8) != OWNER_MAGIC {
        return damaged(0, "its checksum is wrong");
    }
    if head.get(16..32) != Some(&owner.boot) && !mutation::is(Mutation::RecordOfAnyBoot) {
        return Ok(FoundRecord::OtherBoot);
    }
    if head.get(32..96) != Some(&owner.store) {
        return Ok(FoundRecord::OtherStore);
    }
    let mut listed = Listed::default();
    for (number, block) in (1..).zip(ring.chunks_exact(RECORD_BLOCK)) {
        if block.iter().all(|byte| *byte == 0) {
            continue;
        }
        if word(block, 0) != checksum(block) || word(block, 8) != ENTRY_MAGIC {
            return damaged(number, "its checksum is wrong");
        }
        let (floor, first) = (word(block, 16), word(block, 24));
        if first % PER_BLOCK != 0 || (first / PER_BLOCK % RING) + 1 != number as u64 {
            return damaged(number, "it is not in its place");
        }
        listed.floor = listed.floor.max(floor);
        let (_, entries) = block.split_at(HEAD);
        for (slot, entry) in record_slots(first).zip(entries.as_chunks().0) {
            if let Some(entry) = Entry::from_bytes(*entry) {
                listed.entries.push((slot, entry));
            }
        }
    }
    let floor = listed.floor;
    listed.entries.retain(|(slot, _)| *slot >= floor);
    listed.entries.sort_unstable_by_key(|(slot, _)| *slot);
    Ok(FoundRecord::Mine(listed))
}

/// The listed entries that the log lacks, checked as strictly as the log.
fn missing(
    log: &Metadata,
    listed: &Listed,
    origin_sectors: u64,
) -> Result<Vec<Entry>, RecordError> {
    let (floor, len) = (listed.floor, log.entries().len());
    if listed.is_empty() {
        return Ok(Vec::new()); // a merge may have removed from the log what was retired
    }
    if (len as u64) < floor {
        return Err(RecordError::LogShorter { floor, len });
    }
    let rules = EntryRules::new(log.layout(), log.cow_sectors(), Some(origin_sectors));
    let (mut olds, mut news) = (HashMap::new(), HashMap::new());
    for (at, (_, entry)) in listed.entries.iter().enumerate() {
        rules.check(len.saturating_add(at), *entry)?;
        let earlier = olds
            .insert(entry.old, *entry)
            .or(news.insert(entry.new, *entry));
        if let Some(other) = earlier {
            let listed = *entry;
            return Err(RecordError::Conflict { listed, other });
        }
    }
    for entry in log.entries().iter() {
        for listed in [olds.get(&entry.old), news.get(&entry.new)]
            .into_iter()
            .flatten()
        {
            if *listed != entry {
                let (listed, other) = (*listed, entry);
                return Err(RecordError::Conflict { listed, other });
            }
        }
        olds.remove(&entry.old);
    }
    let lacks = listed.entries.iter().map(|(_, entry)| *entry);
    let lacks: Vec<Entry> = lacks
        .filter(|entry| olds.contains_key(&entry.old))
        .collect();
    fits(log, lacks.len())?;
    Ok(lacks)
}

/// The area that the log will end in must be on the device.
fn fits(log: &Metadata, more: usize) -> Result<(), StoreError> {
    let layout: Layout = log.layout();
    let area = layout.area_chunk(layout.area_of(log.entries().len().saturating_add(more)));
    if area < layout.chunk_size.whole_chunks(log.cow_sectors()) || more == 0 {
        return Ok(());
    }
    Err(StoreError::Truncated {
        what: "the metadata area behind the entries of the record".to_owned(),
        needs: layout.chunk_size.first_sector(area.saturating_add(1)),
        has: log.cow_sectors(),
    })
}

/// Whether the record fits the store, before anything is written. Returns how many entries
/// the log lacks.
///
/// # Errors
/// It does not.
pub fn check_record(
    listed: &Listed,
    metadata: &Metadata,
    origin_sectors: u64,
) -> Result<usize, RecordError> {
    missing(metadata, listed, origin_sectors).map(|lacks| lacks.len())
}

/// Appends the listed entries that the log lacks, durably, as a FLUSH of the process that
/// has died would have. Returns how many they are. The record must not be emptied before.
///
/// Order for each group: 1 next area zeroed, padding → 2 flush: they and the data chunks
/// are durable → 3 the entries written, durable.
///
/// # Errors
/// The record does not fit the store, and nothing was written; or an I/O error. The store
/// is one that can be loaded again, and the record still lists what it lacks.
pub fn replay_record(
    listed: &Listed,
    metadata: &mut Metadata,
    origin_sectors: u64,
    disk: &mut dyn Disk,
    device: DeviceId,
) -> Result<usize, RecordError> {
    let lacks = missing(metadata, listed, origin_sectors)?;
    let mut disk = StoreDisk::new(disk, device);
    let mut left = lacks.as_slice();
    while !left.is_empty() {
        let plan = metadata.plan_append(left);
        let Some((group, rest)) = left.split_at_checked(plan.taken.max(1)) else {
            break;
        };
        if let Some((offset, len)) = plan.zero_next_area {
            disk.write_zeroes(offset, len)?; // 1
        }
        if let Some(padding) = &plan.padding {
            disk.write_volatile(padding)?;
        }
        if !mutation::is(Mutation::RecordReplayedUnflushed) {
            disk.flush()?; // 2
        }
        if let Some(write) = &plan.write {
            disk.write_durable(write.offset, &write.data)?; // 3
        }
        metadata.apply_append(group);
        left = rest;
    }
    Ok(lacks.len())
}
