//! Requests that the fast path could not settle.

use super::{Core, Op, Waiter, When, Work};
use crate::engine::api::*;
use crate::engine::failure::Failure;
use crate::engine::registrations::{COW, OTHER, WRITE};
use crate::engine::views::{Extent, ViewMode, resolve_read};
use crate::mutation::{self, Mutation};
use crate::sync::atomic::Ordering;
use crate::units::{SECTOR_SHIFT, byte_count};

pub(super) type RequestId = usize;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// To be decided (again) when `waits` is 0.
    Waiting,
    /// A flush whose entries are durable: only the device is left.
    Flushing,
    /// All its I/O is under way; ends when `waits` is 0.
    Issued,
}

#[derive(Debug)]
pub(super) struct SlowRequest {
    pub(super) port: usize,
    pub(super) view: ViewId,
    pub(super) request: Request,
    pub(super) stage: Stage,
    /// Things that must end before the request moves on.
    pub(super) waits: u32,
    /// Its turn is in the work queue.
    pub(super) queued: bool,
    pub(super) failed: bool,
}

impl SlowRequest {
    pub(super) fn start(&self) -> u64 {
        self.request.sector
    }

    pub(super) fn end(&self) -> u64 {
        self.request.sector + self.request.sectors
    }

    pub(super) fn durable(&self) -> bool {
        matches!(self.request.kind, RequestKind::Write { durable: true })
    }
}

impl Core {
    /// A request that the fast path left.
    pub(in crate::engine) fn request(&mut self, port: usize, request: Request) {
        let Some(PortRole::View(view)) = self.port(port).map(|p| p.role) else {
            return;
        };
        let id = self.requests.insert(SlowRequest {
            port,
            view,
            request,
            stage: Stage::Waiting,
            waits: 0,
            queued: false,
            failed: false,
        });
        self.decide(id);
    }

    /// All waits have ended.
    pub(super) fn request_ready(&mut self, id: RequestId) {
        let Some(request) = self.requests.get_mut(id) else {
            return;
        };
        request.queued = false;
        if request.waits > 0 {
            return;
        }
        let (port, stage) = (request.port, request.stage);
        if request.failed || stage == Stage::Issued {
            self.finish(id);
        } else if (self.port(port)).is_some_and(|p| p.abandoned.load(Ordering::Acquire)) {
            self.fail(id);
        } else {
            self.decide(id);
        }
    }

    /// Looks at the state of now and starts what is possible.
    fn decide(&mut self, id: RequestId) {
        let Some(request) = self.requests.get(id) else {
            return;
        };
        let mode = self.config.mode(request.view).clone();
        match (&*mode, request.request.kind) {
            (ViewMode::Gated, _)
            | (
                ViewMode::Origin {
                    write_gate: true, ..
                },
                RequestKind::Write { .. } | RequestKind::Discard,
            ) => {
                if let Some(gate) = &mut self.gate {
                    gate.queue.push(id);
                }
            }
            (ViewMode::Failed, _) => self.fail(id),
            (ViewMode::Snapshot { snapshot, .. }, _) if request.end() > snapshot.sectors => {
                self.fail(id)
            }
            (_, RequestKind::Read) => self.read(id, &mode),
            (ViewMode::Origin { .. }, RequestKind::Write { .. }) => self.origin_write(id),
            (
                ViewMode::Snapshot { overflow: true, .. },
                RequestKind::Write { .. } | RequestKind::Discard,
            ) => self.fail(id),
            (_, RequestKind::Discard) => self.discard(id, &mode),
            (ViewMode::Snapshot { snapshot, .. }, RequestKind::Write { .. }) => {
                self.snapshot_write(id, snapshot)
            }
            (ViewMode::Merge { .. }, RequestKind::Write { .. }) => self.merge_write(id),
            (_, RequestKind::Flush) => self.flush(id, &mode),
        }
    }

    pub(super) fn fail(&mut self, id: RequestId) {
        if let Some(request) = self.requests.get_mut(id) {
            request.failed = true;
        }
        self.finish(id);
    }

    pub(super) fn finish(&mut self, id: RequestId) {
        let Some(request) = self.requests.try_remove(id) else {
            return;
        };
        if let Some(port) = self.port(request.port) {
            port.registrations.clear(request.request.slot);
        }
        let status = if request.failed {
            Status::IoError
        } else {
            Status::Ok
        };
        self.emit(
            request.port,
            Command::Complete {
                slot: request.request.slot,
                status,
            },
        );
    }

    /// Lets later state changes find the request's I/O.
    pub(super) fn register(&self, id: RequestId, touches: u64) {
        if let Some(r) = self.requests.get(id)
            && let Some(port) = self.port(r.port)
        {
            port.registrations
                .register(r.request.slot, touches, r.start(), r.end());
        }
    }

    /// Starts guest I/O for one extent of a request.
    pub(super) fn guest_io(
        &mut self,
        id: RequestId,
        extent: Extent,
        snapshot: Option<SnapshotId>,
        fresh: Vec<u64>,
    ) {
        let origin = self.origin_device();
        let Some(request) = self.requests.get_mut(id) else {
            return;
        };
        request.waits += 1;
        let (port, slot, durable) = (request.port, request.request.slot, request.durable());
        let write = matches!(request.request.kind, RequestKind::Write { .. });
        let slot_offset = byte_count(extent.sector - request.request.sector);
        let device = extent.device.unwrap_or(origin);
        let (offset, len) = (
            extent.device_sector << SECTOR_SHIFT,
            byte_count(extent.sectors),
        );
        let tag = self.tag(Op::Guest {
            request: id,
            snapshot,
            fresh,
        });
        self.emit(
            port,
            if write {
                Command::GuestWrite {
                    tag,
                    device,
                    offset,
                    slot,
                    slot_offset,
                    len,
                    durable,
                }
            } else {
                Command::GuestRead {
                    tag,
                    device,
                    offset,
                    slot,
                    slot_offset,
                    len,
                }
            },
        );
    }

    pub(super) fn guest_io_done(
        &mut self,
        id: RequestId,
        snapshot: Option<SnapshotId>,
        fresh: Vec<u64>,
        result: Result<(), Failure>,
    ) {
        if let Err(failure) = result {
            if let Some(request) = self.requests.get_mut(id) {
                request.failed = true;
            }
            if let Some(snapshot) = snapshot.filter(|_| !fresh.is_empty()) {
                // The store's log cannot have a gap: without its data, no later entry either.
                self.invalidate(snapshot, InvalidReason::Io(failure));
            }
        } else if let Some(snapshot) = snapshot {
            for chunk in fresh {
                self.fresh_written(id, snapshot, chunk);
            }
        }
        self.wake(Waiter::Request(id));
    }

    fn read(&mut self, id: RequestId, mode: &ViewMode) {
        let Some(request) = self.requests.get_mut(id) else {
            return;
        };
        let (start, end) = (request.start(), request.end());
        request.stage = Stage::Issued;
        // Registered before it is resolved, as on the fast path.
        self.register(id, crate::engine::registrations::READ_ORIGIN | COW);
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
        let (start, end, port) = (request.start(), request.end(), request.port);
        if self.preserve(start..end, Waiter::Request(id), port) > 0
            && !mutation::is(Mutation::OriginWriteBeforeCopy)
        {
            // Its waits may have ended already (a transient store gave up): look again.
            return self.look_again(Waiter::Request(id));
        }
        let Some(request) = self.requests.get_mut(id) else {
            return;
        };
        request.stage = Stage::Issued;
        self.register(id, WRITE);
        self.guest_io(
            id,
            Extent {
                device: None,
                device_sector: start,
                sector: start,
                sectors: end - start,
            },
            None,
            Vec::new(),
        );
    }

    /// Order on a snapshot view: 1 entries of acknowledged writes durable (their
    /// data with them) → 2 the COW device flushed, for writes in place → 3 complete.
    fn flush(&mut self, id: RequestId, mode: &ViewMode) {
        let origin = self.origin_device();
        match mode {
            ViewMode::Snapshot { snapshot, .. } => {
                let (sid, device) = (snapshot.id, snapshot.device);
                let Some(request) = self.requests.get_mut(id) else {
                    return;
                };
                if request.stage == Stage::Waiting
                    && let Some(snap) = self.snaps.get_mut(&sid)
                    && let Some(chunk) = snap.newest_ready()
                    && !mutation::is(Mutation::FlushForgetsEntries)
                {
                    request.stage = Stage::Flushing;
                    request.waits += 1;
                    snap.demand(chunk);
                    snap.wait(chunk, When::Committed, Waiter::Request(id));
                    self.work.push_back(Work::Commit(sid));
                    return;
                }
                self.request_flush(id, device, Some(sid));
            }
            ViewMode::Merge { snapshot, .. } => {
                let (sid, device) = (snapshot.id, snapshot.device);
                if self.is_flush_lost(Some(sid)) {
                    return self.fail(id);
                }
                self.request_flush(id, origin, None);
                self.request_flush(id, device, Some(sid));
            }
            _ => self.request_flush(id, origin, None),
        }
    }

    fn request_flush(
        &mut self,
        id: RequestId,
        device: crate::io::DeviceId,
        store: Option<SnapshotId>,
    ) {
        self.register(id, if store.is_some() { OTHER | COW } else { OTHER });
        let lost = store.is_none() && self.is_flush_lost(None);
        let Some(request) = self.requests.get_mut(id) else {
            return;
        };
        request.stage = Stage::Issued;
        request.waits += 1;
        if lost {
            request.failed = true;
            return self.wake(Waiter::Request(id));
        }
        let port = request.port;
        let tag = self.tag(Op::RequestFlush { request: id, store });
        self.emit(port, Command::Flush { tag, device });
    }

    pub(super) fn request_flush_done(
        &mut self,
        id: RequestId,
        store: Option<SnapshotId>,
        result: Result<(), Failure>,
    ) {
        if let Err(failure) = result {
            self.flush_failed(store, failure);
        }
        // One that failed beside it lost what this one covers, too.
        let lost = self.is_flush_lost(store) && !mutation::is(Mutation::FlushBesideFailedOne);
        let Some(request) = self.requests.get_mut(id) else {
            return;
        };
        request.failed |= result.is_err() || lost;
        self.wake(Waiter::Request(id));
    }
}
