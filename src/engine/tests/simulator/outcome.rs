//! Checks completions, notices and control replies against the model.

use super::content::Content;
use super::plan::Store;
use super::sim::{Control, Merging, OpenRequest, Recorded, Sim, Verdict};
use super::start::FILLED;
use crate::engine::tests::world::*;
use crate::engine::*;
use crate::io::DeviceId;

impl Sim {
    pub fn collect(&mut self) -> Verdict {
        for actor in 0..self.w.actors.len() {
            for (slot, status) in std::mem::take(&mut self.w.actors[actor].completed) {
                let request = self.under_way.remove(&(actor, slot));
                let request = request.ok_or_else(|| format!("slot {slot} ended twice"))?;
                let data = self.w.actors[actor]
                    .disk
                    .memory
                    .slots
                    .remove(&slot)
                    .unwrap_or_default();
                self.request_done(actor, request, status, &data)?;
            }
        }
        for notice in std::mem::take(&mut self.w.actors[NOTICES].notices) {
            self.notice(notice)?;
        }
        for (id, result) in std::mem::take(&mut self.w.actors[CONTROL].control_done) {
            if id == 1 {
                self.control_done(result)?;
            }
        }
        Ok(())
    }

    pub fn may_fail(&self, id: ViewId) -> bool {
        let on = |id: SnapshotId| self.faulty.contains(&Some(id));
        if self.faulty.contains(&None) {
            return true; // the origin itself
        }
        if id == ViewId::ORIGIN {
            return self.merged.iter().any(|id| on(*id));
        }
        let status = self.w.engine.status();
        let state = status
            .snapshots
            .iter()
            .find(|s| s.snapshot == id)
            .map(|s| s.state);
        on(id) || state != Some(SnapshotState::Active)
    }

    fn request_done(
        &mut self,
        actor: usize,
        request: OpenRequest,
        status: Status,
        data: &[u8],
    ) -> Verdict {
        self.trace.push(format!("{status:?}: {request:?}"));
        let Some(id) = self
            .views
            .iter()
            .find(|(_, v)| v.actors.contains(&actor))
            .map(|v| *v.0)
        else {
            return Ok(()); // its snapshot is gone
        };
        if status != Status::Ok {
            return self.request_failed(id, &request);
        }
        let Some(view) = self.views.get_mut(&id) else {
            return Ok(());
        };
        match request {
            OpenRequest::Read {
                sector,
                floors,
                sure: true,
            } => {
                let seen = stamps_from(sector, data);
                view.content
                    .read(sector, &floors, &seen)
                    .map_err(|e| format!("{id:?}: {e}"))?;
            }
            OpenRequest::Write {
                sector,
                sectors,
                stamp,
                through,
                sure: true,
            } => {
                view.content.end_write(sector, sectors, stamp, through);
            }
            OpenRequest::Flush { floors, sure: true } => view.content.flushed(&floors),
            _ => {} // across a handover: before it or after it
        }
        Ok(())
    }

    fn request_failed(&mut self, id: ViewId, request: &OpenRequest) -> Verdict {
        // A full store may have grown between a write's failure and its end.
        let changes = matches!(
            request,
            OpenRequest::Write { .. } | OpenRequest::Discard { .. }
        );
        let allowed = self.may_fail(id) || self.may_fill.contains(&id) && changes;
        if !allowed {
            return Err(format!("{id:?}: {request:?} failed"));
        }
        let (sector, sectors, passdown) = match *request {
            OpenRequest::Write {
                sector, sectors, ..
            } => (sector, sectors, false),
            OpenRequest::Discard {
                sector,
                sectors,
                passdown,
            } => (sector, sectors, passdown),
            OpenRequest::Read { .. } | OpenRequest::Flush { .. } => return Ok(()),
        };
        let origin = Some(ViewId::ORIGIN).filter(|_| passdown);
        for changed in [Some(id), origin].into_iter().flatten() {
            if let Some(view) = self.views.get_mut(&changed) {
                view.content.fail_write(sector, sectors);
            }
        }
        Ok(())
    }

    fn notice(&mut self, notice: Notice) -> Verdict {
        match notice {
            Notice::Invalid {
                snapshot,
                reason,
                durable,
            } => {
                let fault = self.faulty.contains(&Some(snapshot)) || self.faulty.contains(&None);
                match reason {
                    InvalidReason::Full if self.may_fill.contains(&snapshot) => {}
                    InvalidReason::Io(_) if fault => {}
                    _ => return Err(format!("{snapshot:?} became invalid: {reason:?}")),
                }
                if durable {
                    self.given_up.insert(snapshot);
                } else {
                    if let Some(recorded) = self.record.snapshots.get_mut(&snapshot) {
                        recorded.valid = false;
                    }
                    self.w
                        .control(2, ControlRequest::InvalidRecorded { snapshot });
                }
            }
            Notice::MergeDone { snapshot } => {
                self.is_let_go(snapshot)?;
                self.record.snapshots.remove(&snapshot);
                self.record.merging = None;
            }
            Notice::MergeFailed { snapshot, stop } => {
                if !self.faulty.contains(&Some(snapshot)) && !self.faulty.contains(&None) {
                    return Err(format!("the merge failed: {}", stop.failure));
                }
                self.merge_failed = true;
            }
            Notice::Overflow { snapshot } => {
                let kind = self.record.snapshots.get(&snapshot).map(|r| r.kind);
                if kind.is_some_and(|k| k != "PO") || !self.may_fill.contains(&snapshot) {
                    return Err(format!("{snapshot:?} ({kind:?}) overflowed"));
                }
            }
            Notice::OriginFlushFailed { failure } => {
                if !self.faulty.contains(&None) {
                    return Err(format!("without a fault: {failure}"));
                }
            }
            Notice::MergeWork { .. }
            | Notice::Added { .. }
            | Notice::HandedOver { .. }
            | Notice::MergePaused { .. }
            | Notice::MergeResumed { .. }
            | Notice::Grown { .. }
            | Notice::Usage { .. } => {}
        }
        Ok(())
    }

    fn control_done(&mut self, result: Result<(), ControlError>) -> Verdict {
        let Some(control) = self.control.take() else {
            return Err("a control request ended twice".into());
        };
        let faulty = !self.faulty.is_empty();
        match control {
            Control::Add {
                store,
                device,
                record,
                before,
            } => match result {
                Ok(()) => self.added(&store, device, record, &before),
                Err(_) if faulty => {}
                Err(error) => return Err(format!("{error}")),
            },
            Control::Remove(id) => match result {
                Ok(()) => self.removed(id)?,
                // The record stays, and says that it is invalid.
                Err(ControlError::NotMarked(_)) if faulty => {}
                Err(error) => return Err(format!("{id:?} cannot be removed: {error}")),
            },
            Control::Handover { merging, window } => match result {
                Ok(()) => self.handover_done(merging, &window),
                Err(error) => {
                    self.record.merging = None;
                    if !faulty && !self.may_fill.contains(&merging.snapshot) {
                        return Err(format!("handover: {error}"));
                    }
                }
            },
            Control::Sync(floors) if result.is_ok() => self.synced(floors),
            Control::Resume if result.is_ok() => self.merge_failed = false,
            Control::Sync(_) | Control::Resume | Control::Other => {}
        }
        Ok(())
    }

    fn added(
        &mut self,
        store: &Store,
        device: DeviceId,
        record: Option<DeviceId>,
        before: &Content,
    ) {
        let id = store.snapshot();
        let mut content = Content::at_cut(before, &self.views[&ViewId::ORIGIN].content);
        content.cut_short(content.len() - store.lacks);
        content.overlay(store.filled, store.chunk, FILLED);
        let recorded = Recorded {
            device,
            kind: store.kind,
            sectors: content.len(),
            area: store.area,
            record,
            discards: store.discards,
            zero_ahead: store.zero_ahead * store.chunk * 512,
            valid: true,
        };
        self.record.snapshots.insert(id, recorded);
        self.add_view(id, content);
    }

    fn removed(&mut self, id: SnapshotId) -> Verdict {
        if let Some(recorded) = self.record.snapshots.get_mut(&id)
            && recorded.kind != "N"
        {
            // The record is dropped: the header alone must say that it is invalid.
            recorded.valid = true;
            self.given_up.insert(id);
            self.check()?;
        }
        self.is_let_go(id)?;
        self.record.snapshots.remove(&id);
        self.views.remove(&id);
        Ok(())
    }

    fn handover_done(&mut self, merging: Merging, window: &[(u64, u64, u64)]) {
        let Some(merged) = self.views.remove(&merging.snapshot) else {
            return;
        };
        let Some(origin) = self.views.get_mut(&ViewId::ORIGIN) else {
            return;
        };
        origin.content = merged.content.over(&origin.content);
        for (sector, sectors, stamp) in window {
            origin
                .content
                .unordered_write(*sector, *sectors, *stamp, self.next_stamp);
        }
        if merging.follow {
            origin.actors.extend(merged.actors);
        }
    }

    fn synced(&mut self, floors: Vec<(ViewId, Vec<u64>)>) {
        let status = self.w.engine.status();
        let is_invalid =
            |s: &SnapshotStatus, id| s.snapshot == id && s.state == SnapshotState::Invalid;
        for (id, floors) in floors {
            if status.snapshots.iter().any(|s| is_invalid(s, id)) {
                continue; // nothing is guaranteed for it any more
            }
            if let Some(view) = self.views.get_mut(&id) {
                view.content.flushed(&floors);
            }
        }
    }

    /// From now on the user may remove the store's device.
    fn is_let_go(&self, id: SnapshotId) -> Verdict {
        match self.record.snapshots.get(&id) {
            Some(r) if self.w.devices.in_flight(Some(r.device)) > 0 => {
                Err(format!("{id:?} is gone and I/O on its store is not"))
            }
            _ => Ok(()),
        }
    }
}
