//! Which thread carries out the I/O of the critical section.
//!
//! Data goes to the port of the request or batch that it belongs to. Commits and
//! invalid headers belong to no request, and any event may start them. The thread that
//! gets them must serve its port until they have ended, whatever ends before. A thread
//! serves
//!
//! - a view's port as long as it has a request under way or an I/O unreported,
//! - the merger's port and the notice port always, but
//! - a control port only until its request has ended.
//!
//! So a control port is given only I/O that its own request waits for, and a queue
//! that is being stopped does not get the commits of all others.

use super::Core;
use super::snap::Snap;
use super::waiting::{RequestId, Waiter};
use crate::engine::api::*;
use crate::mutation::{self, Mutation};

impl Core {
    /// From here on the critical section acts for the port of this request.
    pub(super) fn act_for(&mut self, id: RequestId) {
        if let Some(request) = self.requests.get(id)
            && !mutation::is(Mutation::IoToWhoeverCalls)
        {
            self.acting = request.port();
        }
    }

    /// The port for the next commit.
    pub(super) fn commit_port(&self, id: SnapshotId) -> usize {
        let snap = self.snaps.get(&id);
        self.io_port(snap.and_then(|s| s.unsettled.demander()))
    }

    /// The port for a write of the record, for which this request waits if it lists entries.
    pub(super) fn record_port(&self, id: SnapshotId, request: Option<RequestId>) -> usize {
        match request {
            Some(request) => self.io_port(Some(Waiter::Request(request))),
            None => self.commit_port(id),
        }
    }

    /// The port for a header: that of a removal, which waits for it, or one that is
    /// served until the end of the write.
    pub(super) fn header_port(&self, id: SnapshotId) -> usize {
        let snap = self.snaps.get(&id);
        match snap.and_then(|s| s.removal.as_ref()).map(|r| r.call.port) {
            Some(port) if port == self.acting => port,
            _ => self.io_port(snap.and_then(Snap::first_waiter_for_invalid)),
        }
    }

    /// The port for I/O that belongs to no request. `waiter` waits for its outcome, if
    /// there is one.
    fn io_port(&self, waiter: Option<Waiter>) -> usize {
        let acting = self.port(self.acting).map(|p| p.role);
        if mutation::is(Mutation::IoToWhoeverCalls) {
            return self.acting;
        }
        let waits = |port: usize| self.requests.iter().any(|(_, r)| r.port() == port);
        match acting {
            Some(PortRole::Merger | PortRole::Notices) => return self.acting,
            Some(PortRole::View(_)) if waits(self.acting) => return self.acting,
            Some(PortRole::View(_) | PortRole::Control) | None => {}
        }
        let waiting = waiter.and_then(|waiter| match waiter {
            Waiter::Request(id) | Waiter::Part(id, _) => self.requests.get(id).map(|r| r.port()),
            Waiter::Batch(number) => self.port_of_batch(number),
        });
        match acting {
            _ if waiting.is_some() => waiting,
            // It is served at least until this I/O is reported.
            Some(PortRole::View(_)) => None,
            _ => self.port_with(PortRole::Notices),
        }
        .unwrap_or(self.acting)
    }

    /// A control request of this port is under way.
    pub(super) fn is_driven(&self, port: usize) -> bool {
        self.gate.as_ref().is_some_and(|g| g.port() == port)
            || self.syncing.as_ref().is_some_and(|s| s.port() == port)
            || (self.snaps.values())
                .any(|s| s.removal.as_ref().is_some_and(|r| r.call.port == port))
    }
}
