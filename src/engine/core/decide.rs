//! Requests that the fast path could not settle, decided by the present state.

use super::Core;
use super::request::{SlowRequest, Stage};
use super::waiting::{RequestId, Waiter};
use crate::engine::api::*;
use crate::engine::registrations::{COW, READ_ORIGIN, WRITE};
use crate::engine::views::{Extent, ViewMode, resolve_read};
use crate::mutation::{self, Mutation};
use crate::sync::atomic::Ordering;

impl Core {
    /// A request that the fast path left.
    pub(super) fn request(&mut self, port: usize, request: Request, part: Part) {
        if let Some(PortRole::View(view)) = self.port(port).map(|p| p.role) {
            let id = self
                .requests
                .insert(SlowRequest::new(port, view, request, part));
            self.decide(id);
        }
    }

    /// Its task is taken from the queue.
    pub(super) fn request_ready(&mut self, id: RequestId) {
        let Some(request) = self.requests.get_mut(id) else {
            return;
        };
        if !request.waits().take_turn() {
            return;
        }
        let port = request.port();
        if request.is_failed() || request.stage() == Stage::Issued {
            self.finish(id);
        } else if (self.port(port)).is_some_and(|p| p.abandoned.load(Ordering::Acquire)) {
            self.fail(id);
        } else {
            self.decide(id);
        }
    }

    /// Looks at the present state and starts what is possible.
    fn decide(&mut self, id: RequestId) {
        let Some(request) = self.requests.get(id) else {
            return;
        };
        let mode = self.config.mode(request.view()).clone();
        let gated = match &*mode {
            ViewMode::Gated => true,
            ViewMode::Origin { write_gate, .. } => {
                let kind = request.kind();
                *write_gate && matches!(kind, RequestKind::Write { .. } | RequestKind::Discard)
            }
            _ => false,
        };
        if !gated {
            self.begin_parts(id);
            return self.decide_in(&mode, id);
        }
        if request.part().continues
            && let Some(mode) = self.mode_before_gate(request.view())
        {
            return self.decide_in(&mode, id);
        }
        // Nothing of it is done: the change does not wait for it.
        self.port(request.port())
            .inspect(|port| port.registrations.finish(request.slot()));
        if let Some(gate) = &mut self.gate {
            gate.queue(id);
        }
    }

    /// A write of several parts is decided: from here on a change waits for all of them.
    fn begin_parts(&self, id: RequestId) {
        if let Some(request) = self.requests.get(id).filter(|r| r.part().more)
            && let Some(port) = self.port(request.port())
        {
            port.registrations.begin(request.slot());
        }
    }

    fn decide_in(&mut self, mode: &ViewMode, id: RequestId) {
        let Some(request) = self.requests.get(id) else {
            return;
        };
        match (mode, request.kind()) {
            (ViewMode::Gated, _) => {}
            (ViewMode::Failed, _) => self.fail(id),
            (ViewMode::Snapshot { snapshot, .. }, _) if request.end() > snapshot.sectors => {
                self.fail(id);
            }
            (_, RequestKind::Read) => self.read(id, mode),
            (ViewMode::Origin { .. }, RequestKind::Write { .. }) => self.origin_write(id),
            (
                ViewMode::Snapshot { overflow: true, .. },
                RequestKind::Write { .. } | RequestKind::Discard,
            ) => self.fail(id),
            (_, RequestKind::Discard) => self.discard(id, mode),
            (ViewMode::Snapshot { snapshot, .. }, RequestKind::Write { .. }) => {
                self.snapshot_write(id, snapshot);
            }
            (ViewMode::Merge { snapshot, .. }, RequestKind::Write { .. }) => {
                self.merge_write(id, snapshot);
            }
            (ViewMode::Origin { .. }, RequestKind::Flush) => self.flush_origin(id),
            (ViewMode::Snapshot { snapshot, .. }, RequestKind::Flush) => {
                self.flush_snapshot(id, snapshot);
            }
            (ViewMode::Merge { snapshot, .. }, RequestKind::Flush) => {
                self.flush_merge(id, snapshot);
            }
        }
    }

    fn read(&mut self, id: RequestId, mode: &ViewMode) {
        let Some(request) = self.requests.get_mut(id) else {
            return;
        };
        let (start, end) = (request.start(), request.end());
        request.set_stage(Stage::Issued);
        // Registered before it is resolved, as on the fast path.
        self.register(id, READ_ORIGIN | COW);
        let mut extents = Vec::new();
        if let Some(touches) = resolve_read(mode, start, end, |e| extents.push(e)) {
            self.register(id, touches);
        }
        for extent in extents {
            self.guest_io(id, extent, None, Vec::new());
        }
    }

    /// Issued only when every snapshot has the chunks ([`super::copyout`], step 6).
    fn origin_write(&mut self, id: RequestId) {
        let Some(request) = self.requests.get(id) else {
            return;
        };
        let (start, end, port) = (request.start(), request.end(), request.port());
        if self.preserve(start..end, Waiter::Request(id), port) > 0
            && !mutation::is(Mutation::OriginWriteBeforeCopy)
        {
            // Its waits may have ended already (a transient store gave up): look again.
            return self.look_again(Waiter::Request(id));
        }
        let Some(request) = self.requests.get_mut(id) else {
            return;
        };
        request.set_stage(Stage::Issued);
        self.register(id, WRITE);
        let extent = Extent::of_origin(start, end - start);
        self.guest_io(id, extent, None, Vec::new());
    }
}
