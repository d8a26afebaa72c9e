//! From the engine to the disk and back to the ring: commands are carried out, and
//! requests that have ended are answered.

use tracing::{debug, error};
use vm_memory::{Bytes, GuestAddress};

use super::Worker;
use crate::engine::{Execution, RequestKind, Slot, Status};
use crate::io::{Done, Errno, Op, OpKind};
use crate::vhost::counters::ErrorCause;
use crate::vhost::ring::Taken;
use crate::vhost::ring_fault::RingFault;
use crate::vhost::slots::RequestData;
use crate::vhost::tally::{Begun, Outcome};

impl Worker {
    /// Carries out the engine's commands, and those for the next windows of requests.
    pub(super) fn execute(&mut self) {
        while !self.commands.is_empty() {
            let mut commands = std::mem::take(&mut self.commands);
            for command in commands.drain(..) {
                match command.execution(&mut self.slots) {
                    Execution::Submit(op) => self.submit(op),
                    Execution::Refuse(done) => self.refuse(done),
                    Execution::Complete { slot, status } => self.complete(slot, status),
                    Execution::ControlDone { id, .. } => {
                        debug!("{}: a queue has no control request {id}", self.name);
                    }
                    Execution::Notice(notice) => {
                        debug!("{}: not for a queue: {notice:?}", self.name);
                    }
                }
            }
            if self.commands.is_empty() {
                self.commands = commands;
            }
        }
    }

    pub(super) fn submit(&mut self, op: Op) {
        let flush = matches!(op.kind, OpKind::Flush);
        if self.abandoning && !flush && self.port.abandonable()(op.tag) {
            self.done.push(Done {
                tag: op.tag,
                result: Err(Errno::ECANCELED),
                buffer: None,
            });
            return;
        }
        self.disk.submit(op);
        self.submitted = true;
    }

    /// A command names data that its request does not have. The engine still gets the
    /// end of the operation.
    pub(super) fn refuse(&mut self, done: Done) {
        error!(
            "{}: operation {} names data that its request does not have",
            self.name, done.tag
        );
        self.done.push(done);
    }

    /// The window of a request that was handed in has ended.
    pub(super) fn complete(&mut self, slot: Slot, status: Status) {
        if status == Status::Ok
            && !self.abandoning
            && let Some(request) = self.slots.get_mut(slot)
            && request.advance()
        {
            return self.hand_in(slot);
        }
        let Some(request) = self.slots.remove(slot) else {
            error!("{}: slot {slot} ended without a request", self.name);
            return;
        };
        self.held -= request.held;
        // Whatever became of it: a part may have been written.
        if self.logs_writes
            && request.progress.request.kind == RequestKind::Read
            && let RequestData::Guest(data) = &request.data
        {
            data.mark_written(data.len());
        }
        if let Some(marks) = &self.marks {
            marks.end(slot);
        }
        let (outcome, len) = match status {
            Status::Ok if request.has_more() => {
                self.port.give_up(slot, &mut self.commands);
                self.undone = true;
                return;
            }
            Status::Ok => (Outcome::Done, request.written),
            // It may have failed only because it was abandoned.
            Status::IoError if self.abandoning => {
                self.undone = true;
                return;
            }
            Status::IoError => {
                if let Some(marks) = &self.marks {
                    let asked = &request.progress.request;
                    marks.failed(asked.kind, asked.sector, self.last_error);
                }
                (Outcome::Failed(ErrorCause::Io), 1)
            }
        };
        self.answer(
            request.head,
            Some(request.status),
            outcome,
            len,
            request.begun,
        );
    }

    /// The only place where a head goes back: status byte, then used ring. If the status
    /// byte cannot be written, the length is 0.
    pub(super) fn answer(
        &mut self,
        head: Taken,
        status: Option<GuestAddress>,
        outcome: Outcome,
        len: u32,
        begun: Begun,
    ) {
        if self.silent {
            self.undone = true;
            return;
        }
        self.tally.answered(begun, outcome);
        let map = &**self.ring.hold().map;
        let code = outcome.code().byte();
        let told = status.is_some_and(|address| map.write_obj(code, address).is_ok());
        let pushed = self.ring.give_back(head, if told { len } else { 0 });
        self.check(pushed);
    }

    pub(super) fn check(&mut self, result: Result<(), RingFault>) {
        if let Err(fault) = result {
            self.fault(&fault);
        }
    }

    /// Stops serving the ring until the front end starts it again.
    pub(super) fn fault(&mut self, fault: &RingFault) {
        if std::mem::replace(&mut self.broken, true) {
            return;
        }
        self.tally.ring_fault();
        self.log.error(format_args!(
            "{}: the guest's ring is malformed and has been stopped: {fault}",
            self.name
        ));
        if let Some(err) = &self.err {
            err.notify();
        }
    }
}
