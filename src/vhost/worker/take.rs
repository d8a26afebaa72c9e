//! From the ring to the engine: heads are taken, their requests parsed and handed in.

use std::sync::atomic::Ordering;

use tracing::debug;

use super::Worker;
use crate::engine::{Request, RequestKind, Slot, Weight};
use crate::vhost::Requests;
use crate::vhost::counters::ErrorCause;
use crate::vhost::guest::GuestData;
use crate::vhost::ring::Taken;
use crate::vhost::ring_fault::RingFault;
use crate::vhost::slots::{InFlight, Progress, RequestData};
use crate::vhost::tally::Outcome;
use crate::vhost::watcher::Watcher;
use crate::virtio_blk::{Action, BlkDevice, BlkRequest, Refused, parse};

/// Memory in bytes that the requests of a queue may take. A request that finds less than
/// this taken goes ahead, and counts until it ends; those after it stay on the ring.
pub(super) const QUEUE_BYTES: u64 = 20 << 20;
/// Memory of a descriptor in the lists of a request and in those of its operations.
const SEGMENT_BYTES: u64 = 96;

/// What a request takes from its beginning to its end. Its ranges are carried out one after
/// the other, so that the largest of them counts.
fn weigh(port: &mut dyn Requests, parsed: &Result<BlkRequest, Refused>) -> Weight {
    let request = match parsed {
        Ok(request) => request,
        // Reading it took long: a stop is looked for before the next one.
        Err(refused) if refused.is_costly() => {
            return Weight {
                bytes: QUEUE_BYTES,
                ..Weight::ONE_OPERATION
            };
        }
        Err(_) => return Weight::ONE_OPERATION,
    };
    let mut weight = weigh_action(port, request.action);
    for action in &request.later {
        weight.bytes = weight.bytes.max(weigh_action(port, *action).bytes);
    }
    let lists = request.data.len() + request.later.len();
    let lists = u64::try_from(lists).unwrap_or(u64::MAX);
    weight.bytes += lists.saturating_mul(SEGMENT_BYTES);
    weight
}

fn weigh_action(port: &mut dyn Requests, action: Action) -> Weight {
    match action {
        Action::Read { sector, sectors } => port.weigh(RequestKind::Read, sector, sectors),
        Action::Write { sector, sectors }
        | Action::WriteZeroes {
            sector, sectors, ..
        } => port.weigh(RequestKind::Write { durable: false }, sector, sectors),
        Action::Discard { sector, sectors } => port.weigh(RequestKind::Discard, sector, sectors),
        Action::Flush => port.weigh(RequestKind::Flush, 0, 0),
        Action::GetId => Weight::ONE_OPERATION,
    }
}

impl Worker {
    /// Whether the requests under way take all the memory that they may: no more are
    /// taken from the ring until some have ended.
    pub(super) const fn is_full(&self) -> bool {
        self.held >= QUEUE_BYTES
    }

    /// Carries out what an earlier worker left undone, before any new request. Returns
    /// how many requests were taken.
    pub(super) fn take_replayed(&mut self) -> usize {
        let Self {
            ring,
            space,
            taken,
            port,
            held,
            ..
        } = self;
        let device: &BlkDevice = space.device();
        let result = ring.replay(&self.replay, |head, chain| {
            let parsed = parse(chain, device);
            let weight = weigh(&mut **port, &parsed);
            *held += weight.bytes;
            taken.push((head, parsed, weight));
            *held < QUEUE_BYTES
        });
        if result.is_err() {
            self.replay.clear();
        } else {
            self.replay.drain(..self.taken.len().min(self.replay.len()));
        }
        self.accept_taken(result)
    }

    /// Takes available heads, as many as there is memory for; returns their number.
    pub(super) fn take_heads(&mut self) -> usize {
        let Self {
            ring,
            space,
            taken,
            port,
            held,
            ..
        } = self;
        let device: &BlkDevice = space.device();
        let result = ring.take_available(|head, chain| {
            let parsed = parse(chain, device);
            let weight = weigh(&mut **port, &parsed);
            *held += weight.bytes;
            taken.push((head, parsed, weight));
            *held < QUEUE_BYTES
        });
        self.accept_taken(result.map(drop))
    }

    pub(super) fn accept_taken(&mut self, result: Result<(), RingFault>) -> usize {
        self.look_for_memory();
        let mut taken = std::mem::take(&mut self.taken);
        if self.silent {
            // What was read may be the zeroes in the place of memory that is gone.
            self.held -= taken
                .drain(..)
                .map(|(_, _, weight)| weight.bytes)
                .sum::<u64>();
        }
        let count = taken.len();
        if count > 0 {
            self.tally.takes();
        }
        for (head, parsed, weight) in taken.drain(..) {
            match parsed {
                Ok(request) => self.accept(head, request, weight),
                Err(refused) => {
                    self.held -= weight.bytes;
                    debug!("{}: refused: {}", self.name, refused.reason);
                    let status = if refused.is_broken() {
                        self.ring.last_written_byte(head)
                    } else {
                        refused.status
                    };
                    let outcome = Outcome::refused(refused.code);
                    self.answer(head, status, outcome, 1, self.tally.refused());
                }
            }
        }
        self.taken = taken;
        if count > 0 {
            self.found_requests();
            self.tally.set_in_flight(self.slots.taken());
            if self.marks.is_some() {
                Watcher::get().wake();
            }
        }
        if let Err(fault) = result {
            self.fault(&fault);
        }
        count
    }

    /// Passes a valid request to the engine, or answers it here.
    fn accept(&mut self, head: Taken, request: BlkRequest, weight: Weight) {
        if !self.begin(head, request, weight) {
            self.held -= weight.bytes;
        }
    }

    /// False if it has ended already.
    fn begin(&mut self, head: Taken, request: BlkRequest, weight: Weight) -> bool {
        let status = Some(request.status);
        let begun = self.tally.begun(&request);
        let Some(data) = GuestData::map(self.ring.hold(), &request.data) else {
            debug!("{}: refused: data outside guest memory", self.name);
            let outcome = Outcome::Failed(ErrorCause::Invalid);
            self.answer(head, status, outcome, 1, begun);
            return false;
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
                if self.logs_writes {
                    data.mark_written(copied);
                }
                let written = u32::try_from(copied).unwrap_or(0).saturating_add(1);
                self.answer(head, status, Outcome::Done, written, begun);
                return false;
            }
        };
        let data = match zeroes {
            Some((sectors, unmap)) => RequestData::zeroes(sectors, unmap),
            None => RequestData::Guest(data),
        };
        let whole = Request {
            slot: Slot::MAX,
            kind,
            sector,
            sectors,
        };
        let in_flight = InFlight {
            head,
            status: request.status,
            data,
            later: request.later,
            written,
            progress: Progress::new(whole, weight.window),
            held: weight.bytes,
            begun,
        };
        let Some(slot) = self.slots.insert(in_flight) else {
            // The ring never gives more requests than there are slots.
            let outcome = Outcome::Failed(ErrorCause::Io);
            self.answer(head, status, outcome, 1, begun);
            return false;
        };
        self.hand_in(slot);
        true
    }

    /// Passes the window of a request that is its turn to the engine.
    pub(super) fn hand_in(&mut self, slot: Slot) {
        if let Some(in_flight) = self.slots.get_mut(slot) {
            let request = Request {
                slot,
                ..in_flight.progress.request
            };
            if let Some(marks) = &self.marks {
                marks.begin(slot, &request);
            }
            let more = in_flight.has_more();
            self.port.request(request, more, &mut self.commands);
        }
    }
}
