//! From the ring to the engine: heads are taken, their requests parsed and handed in.

use std::sync::atomic::Ordering;

use tracing::{debug, info};

use super::Worker;
use crate::engine::{Request, RequestKind};
use crate::units::SECTOR_SHIFT;
use crate::vhost::guest::GuestData;
use crate::vhost::ring::Taken;
use crate::vhost::ring_fault::RingFault;
use crate::vhost::slots::{InFlight, RequestData};
use crate::virtio_blk::{Action, BlkDevice, BlkRequest, BlkStatus, parse};

impl Worker {
    /// Carries out what an earlier worker left undone, before any new request.
    pub(super) fn replay(&mut self) {
        let heads = std::mem::take(&mut self.replay);
        if heads.is_empty() {
            return;
        }
        info!(
            "{}: {} requests go on that were under way when the last back end ended",
            self.name,
            heads.len()
        );
        let device: &BlkDevice = self.space.device();
        let taken = &mut self.taken;
        let result = self.ring.replay(&heads, |head, chain| {
            taken.push((head, parse(chain, device)));
        });
        self.accept_taken(result);
    }

    /// Takes all available heads; returns their number.
    pub(super) fn take_heads(&mut self) -> usize {
        let device: &BlkDevice = self.space.device();
        let taken = &mut self.taken;
        let result = self.ring.take_available(|head, chain| {
            taken.push((head, parse(chain, device)));
        });
        self.accept_taken(result.map(drop))
    }

    pub(super) fn accept_taken(&mut self, result: Result<(), RingFault>) -> usize {
        let mut taken = std::mem::take(&mut self.taken);
        let count = taken.len();
        for (head, parsed) in taken.drain(..) {
            match parsed {
                Ok(request) => self.accept(head, request),
                Err(refused) => {
                    debug!("{}: refused: {}", self.name, refused.reason);
                    self.answer(head, refused.status, refused.code, 1);
                }
            }
        }
        self.taken = taken;
        if let Err(fault) = result {
            self.fault(&fault);
        }
        count
    }

    /// Passes a valid request to the engine, or answers it here.
    pub(super) fn accept(&mut self, head: Taken, request: BlkRequest) {
        let status = Some(request.status);
        let Some(data) = GuestData::map(self.ring.hold(), &request.data) else {
            debug!("{}: refused: data outside guest memory", self.name);
            return self.answer(head, status, BlkStatus::IoErr, 1);
        };
        let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let through = self.write_through.load(Ordering::Relaxed);
        let mut zeroes = None;
        let (kind, sector, sectors, written) = match request.action {
            Action::Read { sector, sectors } => {
                (RequestKind::Read, sector, sectors, len.saturating_add(1))
            }
            Action::Write { sector, sectors } => {
                let durable = through;
                (RequestKind::Write { durable }, sector, sectors, 1)
            }
            Action::WriteZeroes {
                sector,
                sectors,
                unmap,
            } => {
                let durable = through;
                zeroes = Some((sectors, unmap));
                (RequestKind::Write { durable }, sector, sectors, 1)
            }
            Action::Discard { sector, sectors } => (RequestKind::Discard, sector, sectors, 1),
            Action::Flush => (RequestKind::Flush, 0, 0, 1),
            Action::GetId => {
                let copied = data.copy_in(&self.space.device().id());
                let written = u32::try_from(copied).unwrap_or(0).saturating_add(1);
                return self.answer(head, status, BlkStatus::Ok, written);
            }
        };
        let data = match zeroes {
            Some((sectors, unmap)) => RequestData::Zeroes {
                len: usize::try_from(sectors << SECTOR_SHIFT).unwrap_or(usize::MAX),
                unmap,
            },
            None => RequestData::Guest(data),
        };
        let in_flight = InFlight {
            head,
            status: request.status,
            data,
            written,
        };
        match self.slots.insert(in_flight) {
            Ok(slot) => {
                let request = Request {
                    slot,
                    kind,
                    sector,
                    sectors,
                };
                self.port.request(request, &mut self.commands);
            }
            // The ring never gives more requests than there are slots.
            Err(request) => self.answer(request.head, Some(request.status), BlkStatus::IoErr, 1),
        }
    }
}
