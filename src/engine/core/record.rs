//! The record of a store: what is acknowledged and not yet in the log.
//!
//! Its device is memory that outlives the process and not the power, so that its writes
//! need no flush. One round of writes is under way at a time, because two writes of one
//! block could take effect in either order; what becomes ready meanwhile joins the next.
//!
//! Order: 1 the data is written → 2 the record lists the entry → 3 the exception is
//! published and its write acknowledged → … → 4 the entry is durable in the log → 5 the
//! record does not list it → 6 it is committed in memory, and may be removed from the log.

use super::Core;
use super::accounting::IoPurpose;
use super::waiting::{RequestId, Task};
use crate::engine::api::*;
use crate::engine::failure::Failure;
use crate::io::{Buffer, DeviceId, OwnedBuffer};
use crate::mutation::{self, Mutation};
use crate::store::{MetaWrite, RECORD_ROOM, record_block_of, record_slots, record_write};

/// Entries that wait for a flush before they are made durable without one. Half of what
/// the record has room for, so that writes go on meanwhile.
const MOST_WAITING: usize = RECORD_ROOM / 2;

/// Writes under way together.
#[derive(Debug)]
struct Round {
    chunks: Vec<u64>,
    /// The floor that the blocks say.
    floor: u64,
    writes: usize,
    failed: Option<Failure>,
}

#[derive(Debug)]
pub(super) struct Recorder {
    device: DeviceId,
    /// Chunks whose exceptions are to be listed by the next round, and whose write it was.
    waiting: Vec<(u64, RequestId)>,
    rounds: Vec<Round>,
    /// All slots that were ever listed are below this.
    listed_end: u64,
    /// Entries below this slot are durable in the log.
    floor: u64,
    /// The highest floor that the record says.
    written_floor: u64,
}

impl Recorder {
    pub(super) const fn new(device: DeviceId) -> Self {
        Self {
            device,
            waiting: Vec::new(),
            rounds: Vec::new(),
            listed_end: 0,
            floor: 0,
            written_floor: 0,
        }
    }

    /// The log has so many durable entries. True if the record lists some of the new ones.
    pub(super) fn retire(&mut self, durable: u64) -> bool {
        self.floor = durable;
        self.listed_end > self.written_floor
    }

    fn has_to_retire(&self) -> bool {
        self.floor > self.written_floor && self.listed_end > self.written_floor
    }
}

impl Core {
    /// Lists the exception of `chunk`, whose data is written, and then publishes it.
    pub(super) fn record(&mut self, id: SnapshotId, chunk: u64, request: RequestId) {
        let Some(snap) = self.snaps.get_mut(&id) else {
            return;
        };
        if let Some(recorder) = &mut snap.recorder {
            recorder.waiting.push((chunk, request));
        }
        if snap
            .unsettled
            .place(chunk)
            .is_some_and(|place| place >= MOST_WAITING)
        {
            snap.unsettled.demand(chunk);
            self.tasks.push_back(Task::Commit(id));
        }
        self.tasks.push_back(Task::Record(id));
    }

    /// Starts a round if there is something to write and none is under way.
    pub(super) fn write_record(&mut self, id: SnapshotId) {
        let Some(snap) = self.snaps.get_mut(&id).filter(|s| s.is_usable()) else {
            return;
        };
        let log_len = snap.log_len();
        let Some(recorder) = &mut snap.recorder else {
            return;
        };
        let idle = recorder.rounds.is_empty() || mutation::is(Mutation::RecordBlocksOverlap);
        if !idle || recorder.waiting.is_empty() && !recorder.has_to_retire() {
            return;
        }
        let floor = recorder.floor.max(log_len);
        let waiting = std::mem::take(&mut recorder.waiting);
        let request = waiting.first().map(|(_, request)| *request);
        let chunks: Vec<u64> = waiting.into_iter().map(|(chunk, _)| chunk).collect();
        let unsettled = &snap.unsettled;
        // Those that were committed meanwhile need no place any more.
        let places = chunks.iter().filter_map(|chunk| unsettled.place(*chunk));
        let mut blocks: Vec<u64> = places
            .map(|place| record_block_of(log_len + place as u64))
            .collect();
        if blocks.is_empty() {
            if !recorder.has_to_retire() {
                return;
            }
            blocks.push(record_block_of(floor));
        }
        blocks.sort_unstable();
        blocks.dedup();
        let entry = |slot: u64| {
            let place = slot.checked_sub(log_len).filter(|_| slot >= floor)?;
            let place = usize::try_from(place).ok()?;
            unsettled.ready_at(place).filter(|_| place < RECORD_ROOM)
        };
        let listed = blocks.iter().flat_map(|first| record_slots(*first));
        let end = listed.filter(|slot| entry(*slot).is_some()).max();
        recorder.listed_end = recorder.listed_end.max(end.map_or(0, |last| last + 1));
        let writes: Vec<MetaWrite> = (blocks.iter())
            .map(|first| record_write(floor, *first, entry))
            .collect();
        recorder.rounds.push(Round {
            chunks,
            floor,
            writes: writes.len(),
            failed: None,
        });
        let device = recorder.device;
        let port = self.record_port(id, request);
        for write in writes {
            self.write_record_block(id, port, device, &write);
        }
    }

    fn write_record_block(
        &mut self,
        id: SnapshotId,
        port: usize,
        device: DeviceId,
        write: &MetaWrite,
    ) {
        let mut buffer = OwnedBuffer::zeroed(write.data.len());
        buffer.as_mut_slice().copy_from_slice(&write.data);
        let purpose = IoPurpose::Record { snapshot: id };
        self.issue(port, purpose, |tag| Command::Write {
            tag,
            device,
            offset: write.offset,
            buffer: Buffer::Owned(buffer),
            durable: false,
            patch: None,
        });
    }

    pub(super) fn record_written(&mut self, id: SnapshotId, result: Result<(), Failure>) {
        let Some(snap) = self.snaps.get_mut(&id) else {
            return;
        };
        let usable = snap.is_usable();
        let Some(recorder) = &mut snap.recorder else {
            return;
        };
        let Some(round) = recorder.rounds.first_mut() else {
            return;
        };
        round.failed = round.failed.or(result.err());
        round.writes = round.writes.saturating_sub(1);
        if round.writes > 0 {
            return;
        }
        let Round {
            chunks,
            floor,
            failed,
            ..
        } = recorder.rounds.remove(0);
        if !usable {
            snap.commit = None;
            return; // its waiters were told
        }
        if let Some(failure) = failed {
            // What the record lists is unknown now.
            snap.commit = None;
            return self.invalidate(id, InvalidReason::Io(failure));
        }
        recorder.written_floor = recorder.written_floor.max(floor);
        let retired = !recorder.has_to_retire();
        for chunk in chunks {
            self.publish_early(id, chunk);
        }
        if retired {
            self.commit_retired(id);
        }
        self.write_record(id);
    }
}
