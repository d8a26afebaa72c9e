//! Requests that the fast path could not settle: their life until they complete.

use super::Core;
use super::accounting::IoPurpose;
use super::waiting::{RequestId, Waits};
use crate::engine::api::*;
use crate::engine::views::Extent;
use crate::units::{SECTOR_SHIFT, byte_count};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// To be decided (again) when it waits for nothing.
    Waiting,
    /// A flush whose entries are durable: only the device is left.
    Flushing,
    /// All its I/O is under way; it ends when it waits for nothing.
    Issued,
}

#[derive(Debug)]
pub(super) struct SlowRequest {
    port: usize,
    view: ViewId,
    request: Request,
    part: Part,
    stage: Stage,
    /// Things that must end before the request moves on.
    waits: Waits,
    failed: bool,
}

impl SlowRequest {
    pub(super) fn new(port: usize, view: ViewId, request: Request, part: Part) -> Self {
        Self {
            port,
            view,
            request,
            part,
            stage: Stage::Waiting,
            waits: Waits::default(),
            failed: false,
        }
    }

    pub(super) const fn port(&self) -> usize {
        self.port
    }

    pub(super) const fn view(&self) -> ViewId {
        self.view
    }

    pub(super) const fn slot(&self) -> Slot {
        self.request.slot
    }

    pub(super) const fn kind(&self) -> RequestKind {
        self.request.kind
    }

    pub(super) const fn start(&self) -> u64 {
        self.request.sector
    }

    pub(super) const fn end(&self) -> u64 {
        self.request.sector + self.request.sectors
    }

    pub(super) const fn is_durable(&self) -> bool {
        matches!(self.request.kind, RequestKind::Write { durable: true })
    }

    pub(super) const fn part(&self) -> Part {
        self.part
    }

    pub(super) const fn stage(&self) -> Stage {
        self.stage
    }

    pub(super) const fn set_stage(&mut self, stage: Stage) {
        self.stage = stage;
    }

    pub(super) const fn waits(&mut self) -> &mut Waits {
        &mut self.waits
    }

    pub(super) const fn is_failed(&self) -> bool {
        self.failed
    }

    /// It ends with an error once it waits for nothing.
    pub(super) const fn set_failed(&mut self) {
        self.failed = true;
    }
}

impl Core {
    pub(super) fn set_failed(&mut self, id: RequestId) {
        if let Some(request) = self.requests.get_mut(id) {
            request.set_failed();
        }
    }

    /// Ends a request with an error; nothing of it is under way.
    pub(super) fn fail(&mut self, id: RequestId) {
        self.set_failed(id);
        self.finish(id);
    }

    pub(super) fn finish(&mut self, id: RequestId) {
        let Some(request) = self.requests.try_remove(id) else {
            return;
        };
        let slot = request.slot();
        if (request.failed || !request.part.more)
            && let Some(port) = self.port(request.port)
        {
            port.registrations.finish(slot);
        }
        self.end_registration(request.port, slot);
        self.demand_for_handover();
        let status = if request.failed {
            Status::IoError
        } else {
            Status::Ok
        };
        self.emit(request.port, Command::Complete { slot, status });
    }

    /// Lets later state changes find the request's I/O.
    pub(super) fn register(&self, id: RequestId, touches: u64) {
        if let Some(r) = self.requests.get(id)
            && let Some(port) = self.port(r.port)
        {
            port.registrations
                .register(r.slot(), touches, r.start(), r.end());
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
        request.waits.add(1);
        let (port, kind, slot) = (request.port, request.kind(), request.slot());
        let durable = request.is_durable();
        let slot_offset = byte_count(extent.sector - request.start());
        let device = extent.device.unwrap_or(origin);
        let offset = extent.device_sector << SECTOR_SHIFT;
        let len = byte_count(extent.sectors);
        let purpose = IoPurpose::Guest {
            request: id,
            snapshot,
            fresh,
        };
        self.issue(port, purpose, |tag| match kind {
            RequestKind::Write { .. } => Command::GuestWrite {
                tag,
                device,
                offset,
                slot,
                slot_offset,
                len,
                durable,
            },
            RequestKind::Read | RequestKind::Flush | RequestKind::Discard => Command::GuestRead {
                tag,
                device,
                offset,
                slot,
                slot_offset,
                len,
            },
        });
    }
}
