//! Copies of a merge batch (step 3 of [`super::batch`]), and how many are in flight.

use super::batch::{Batch, Kind, Phase};
use crate::engine::api::*;
use crate::engine::core::Core;
use crate::engine::core::accounting::IoPurpose;
use crate::engine::core::buffers::PIECE_BYTES;
use crate::engine::failure::Failure;
use crate::io::Buffer;
use crate::sync::atomic::Ordering;
use crate::units::{SECTOR_SHIFT, byte_count};

/// Pieces in flight in the background, and as many for what guests wait for.
const PIECES: usize = 128;
/// Their bytes, of at most 1 MiB each.
const IN_FLIGHT: u64 = 32 << 20;
/// Pieces in flight in the background while guests have I/O in flight.
const PIECES_BESIDE_GUESTS: usize = 4;
/// Bytes of such a piece.
const PIECE_BESIDE_GUESTS: u64 = 64 << 10;

/// Pieces in a row that have to end without a guest at work until the background takes
/// the whole disk: a guest with one request at a time has none in flight now and then.
const CALM: u32 = 256;

/// How much of the disk the background takes: little as soon as a guest is seen to use
/// it.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Looks in a row that are still to see no guest at work.
    unrest: u32,
}

impl Pace {
    fn look(&mut self, guests: bool) {
        self.unrest = if guests {
            CALM
        } else {
            self.unrest.saturating_sub(1)
        };
    }

    /// Most pieces in flight, and sectors in a piece.
    const fn allows(&self) -> (usize, u64) {
        if self.unrest > 0 {
            (PIECES_BESIDE_GUESTS, PIECE_BESIDE_GUESTS >> SECTOR_SHIFT)
        } else {
            (PIECES, PIECE_BYTES >> SECTOR_SHIFT)
        }
    }
}

impl Core {
    /// Whether a guest of any view has I/O in flight.
    fn is_guest_at_work(&self) -> bool {
        self.ports().any(|(_, port)| {
            matches!(port.role, PortRole::View(_)) && port.ios.load(Ordering::Relaxed) > 0
        })
    }

    /// Starts as many pieces as may be in flight; all copied, the chunks go on.
    pub(super) fn copy_batch(&mut self, number: u64) {
        let Some(shared) = self.merged_store().cloned() else {
            return;
        };
        let at_work = self.is_guest_at_work();
        let Some(merge) = &mut self.merge else { return };
        let guests = at_work || !merge.waiting.is_empty() || merge.pipeline.has_writes();
        let Some(kind) = merge.batches.get(&number).map(|b| b.kind) else {
            return;
        };
        let background = kind == Kind::Background;
        let (mut most, mut sectors) = (PIECES, PIECE_BYTES >> SECTOR_SHIFT);
        if background {
            merge.pace.look(guests);
            (most, sectors) = merge.pace.allows();
        }
        let same = |b: &&Batch| (b.kind == Kind::Background) == background;
        let same = merge.batches.values().filter(same);
        let (busy, mut left) = same.fold((0, IN_FLIGHT >> SECTOR_SHIFT), |(ios, left), b| {
            (ios + b.ios, left.saturating_sub(b.in_flight))
        });
        let origin_end = self.origin_sectors();
        for _ in busy..most {
            if left == 0 {
                break;
            }
            let Some(batch) = self.batch(number).filter(|b| !b.abandoned) else {
                return;
            };
            let Some(piece) = batch.next_piece(&shared, origin_end, sectors) else {
                break;
            };
            batch.ios += 1;
            batch.in_flight += piece.sectors;
            left = left.saturating_sub(piece.sectors);
            let port = batch.port;
            let buffer = Buffer::Owned(self.buffers.take(byte_count(piece.sectors)));
            let purpose = IoPurpose::MergeRead {
                batch: number,
                origin_sector: piece.to,
                sectors: piece.sectors,
            };
            self.issue(port, purpose, |tag| Command::Read {
                tag,
                device: shared.device,
                offset: piece.from << SECTOR_SHIFT,
                buffer,
            });
        }
        let last = |b: &mut Batch| b.is_all_issued() && !std::mem::replace(&mut b.told, true);
        if self.batch(number).is_some_and(last) {
            self.notify(Notice::MergeWork {
                snapshot: shared.id,
            });
        }
        self.look_at_batch(number);
    }

    pub(in crate::engine::core) fn merge_read_done(
        &mut self,
        number: u64,
        (origin_sector, sectors): (u64, u64),
        result: Result<(), Failure>,
        buffer: Option<Buffer>,
    ) {
        let device = self.origin_device();
        let stopped = self.batch(number).is_none_or(|b| b.abandoned);
        if stopped || result.is_err() {
            self.buffers.put_back(buffer);
            return self.merge_copy_ended(number, sectors, result);
        }
        let (Some(batch), Some(buffer)) = (self.batch(number), buffer) else {
            return;
        };
        let port = batch.port;
        let purpose = IoPurpose::MergeWrite {
            batch: number,
            sectors,
        };
        self.issue(port, purpose, |tag| Command::Write {
            tag,
            device,
            offset: origin_sector << SECTOR_SHIFT,
            buffer,
            durable: false,
            patch: None,
        });
    }

    /// A piece has ended; there is room for another one, not only in its batch.
    pub(in crate::engine::core) fn merge_copy_ended(
        &mut self,
        number: u64,
        sectors: u64,
        result: Result<(), Failure>,
    ) {
        if let Some(batch) = self.batch(number) {
            batch.in_flight = batch.in_flight.saturating_sub(sectors);
        }
        if !self.batch_io_ended(number, result) {
            return;
        }
        let Some(merge) = &self.merge else { return };
        let copying = |b: &&Batch| b.phase == Phase::Copy && !matches!(b.kind, Kind::Direct(_));
        let copying = merge.batches.values().filter(copying);
        // The oldest first, so that what waits longest is copied first.
        for number in copying.map(|b| b.number).collect::<Vec<_>>() {
            self.copy_batch(number);
        }
    }

    /// Accounts for one I/O of a batch; false if the batch does not go on.
    pub(super) fn batch_io_ended(&mut self, number: u64, result: Result<(), Failure>) -> bool {
        let Some(batch) = self.batch(number) else {
            return false;
        };
        batch.ios = batch.ios.saturating_sub(1);
        if let Err(failure) = result {
            self.fail_merge(failure);
        }
        if self.batch(number).is_some_and(|b| !b.abandoned) {
            return true;
        }
        self.end_abandoned(number);
        false
    }
}
