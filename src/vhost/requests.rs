//! What a worker needs of an engine port.

use crate::engine::{Command, Port, Request};
use crate::io::{Buffer, Errno, Tag};

/// The part of [`Port`] that serves guests.
pub trait Requests: Send {
    /// Hands in a guest request.
    fn request(&mut self, request: Request, out: &mut Vec<Command>);

    /// Reports the end of an I/O command, with the buffer it carried.
    fn io_done(
        &mut self,
        tag: Tag,
        result: Result<(), Errno>,
        buffer: Option<Buffer>,
        out: &mut Vec<Command>,
    );

    /// Takes what other ports' events left here.
    fn take_inbox(&mut self, out: &mut Vec<Command>);

    /// Nothing under way: no request, no I/O.
    fn is_idle(&self) -> bool;

    /// Requests that have not begun may end with an error: nobody will be told.
    fn abandon(&mut self) {}

    /// Tells the transfers whose failure fails their request and does nothing else.
    fn abandonable(&self) -> fn(Tag) -> bool {
        |_| false
    }
}

impl Requests for Port {
    fn request(&mut self, request: Request, out: &mut Vec<Command>) {
        Self::request(self, request, out);
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
