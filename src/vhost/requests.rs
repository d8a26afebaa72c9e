//! The part of an engine port that a worker uses.

use std::time::Duration;

use crate::engine::{Command, Port, Request, RequestKind, Slot, Weight};
use crate::io::{Buffer, Errno, Tag};

/// The requests of a view that take long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlowRequests {
    pub count: u64,
    /// Of the oldest: how long it has been under way, what it is, and where.
    pub oldest: Duration,
    pub kind: RequestKind,
    pub sector: u64,
}

/// The part of [`Port`] that serves guests.
pub trait Requests: Send {
    /// Hands in a guest request, or a part of one: see [`Port::request_part`].
    fn request(&mut self, request: Request, more: bool, out: &mut Vec<Command>);

    /// Nothing follows the part that has ended in this slot.
    fn give_up(&mut self, slot: Slot, out: &mut Vec<Command>) {
        let _ = (slot, out);
    }

    /// How many sectors of a request may be handed in at once, and what they may take.
    fn weigh(&mut self, kind: RequestKind, sector: u64, sectors: u64) -> Weight {
        let _ = (kind, sector, sectors);
        Weight::ONE_OPERATION
    }

    /// Reports the end of an I/O command, with the buffer it carried.
    fn io_done(
        &mut self,
        tag: Tag,
        result: Result<(), Errno>,
        buffer: Option<Buffer>,
        out: &mut Vec<Command>,
    );

    /// Takes the commands that events of other ports have left for this one.
    fn take_inbox(&mut self, out: &mut Vec<Command>);

    /// Nothing under way: no request, no I/O.
    fn is_idle(&self) -> bool;

    /// Requests that have not begun may end with an error, because they are not answered.
    fn abandon(&mut self) {}

    /// Selects the transfers whose failure has no effect but the failure of their request.
    fn abandonable(&self) -> fn(Tag) -> bool {
        |_| false
    }
}

impl Requests for Port {
    fn request(&mut self, request: Request, more: bool, out: &mut Vec<Command>) {
        Self::request_part(self, request, more, out);
    }

    fn give_up(&mut self, slot: Slot, out: &mut Vec<Command>) {
        Self::give_up(self, slot, out);
    }

    fn weigh(&mut self, kind: RequestKind, sector: u64, sectors: u64) -> Weight {
        Self::weigh(self, kind, sector, sectors)
    }

    fn io_done(
        &mut self,
        tag: Tag,
        result: Result<(), Errno>,
        buffer: Option<Buffer>,
        out: &mut Vec<Command>,
    ) {
        Self::io_done(self, tag, result, buffer, out);
    }

    fn take_inbox(&mut self, out: &mut Vec<Command>) {
        Self::take_inbox(self, out);
    }

    fn is_idle(&self) -> bool {
        Self::is_idle(self)
    }

    fn abandon(&mut self) {
        Self::abandon(self);
    }

    fn abandonable(&self) -> fn(Tag) -> bool {
        Self::is_abandonable
    }
}
