//! Giving a snapshot up, durably, so that the origin lives on.
//!
//! Order: 1 the view answers EIO → 2 header durable with valid = 0 (or, if that
//! cannot be written, the owner's own record, [`Notice::Invalid`] not durable)
//! → 3 its view's last reads of the origin have ended → 4 origin writes that the
//! snapshot lacked go on.

use crate::sync::atomic::Ordering;

use super::Core;
use super::accounting::IoPurpose;
use super::drains::Drain;
use super::ports::ControlCall;
use super::snap::{Removal, StoreState};
use super::unsettled::When;
use super::waiting::Waiter;
use crate::engine::api::*;
use crate::engine::failure::{FailedDevice, Failure};
use crate::io::{Buffer, DeviceId, Errno, OwnedBuffer};
use crate::mutation::{self, Mutation};
use crate::store::MetaWrite;

impl Core {
    pub(super) fn invalidate(&mut self, id: SnapshotId, reason: InvalidReason) {
        if self.is_merging(id) {
            // Nothing is added to a merging store, so that only an I/O error ends here.
            if let InvalidReason::Io(failure) = reason {
                self.fail_merge(failure);
            }
            return;
        }
        let Some(snap) = self.snaps.get_mut(&id) else {
            return;
        };
        if !snap.is_usable() {
            return;
        }
        snap.start_invalidating(reason);
        snap.shared.flush_failed.store(true, Ordering::Release);
        let mut failed = Vec::new();
        for (when, waiter) in snap.unsettled.give_up() {
            match (when, waiter) {
                // An origin write or a merge batch: until the header says so.
                (When::Settled, Waiter::Request(_) | Waiter::Batch(_)) => {
                    snap.wait_for_invalid(waiter);
                }
                (_, waiter) => failed.push(waiter),
            }
        }
        let header = snap.metadata.invalidate_write();
        let device = snap.shared.device;
        for waiter in failed {
            self.end_wait_for_store(waiter);
        }
        self.publish_views();
        match header {
            Some(write) => self.write_header(id, device, write),
            None => self.add_drain(Drain::InvalidReads {
                snapshot: id,
                tell: true,
            }),
        }
    }

    /// What waited for an exception that will never be.
    fn end_wait_for_store(&mut self, waiter: Waiter) {
        if let Waiter::Request(request) | Waiter::Part(request, _) = waiter {
            self.set_failed(request);
        }
        match waiter {
            // A part of a snapshot write ends here.
            Waiter::Part(request, _) => self.wake(Waiter::Request(request)),
            Waiter::Request(_) | Waiter::Batch(_) => self.wake(waiter),
        }
    }

    fn write_header(&mut self, id: SnapshotId, device: DeviceId, write: MetaWrite) {
        let mut buffer = OwnedBuffer::zeroed(write.data.len());
        buffer.as_mut_slice().copy_from_slice(&write.data);
        let port = self.header_port(id);
        let purpose = IoPurpose::Header { snapshot: id };
        self.issue(port, purpose, |tag| Command::Write {
            tag,
            device,
            offset: write.offset,
            buffer: Buffer::Owned(buffer),
            durable: true,
            patch: None,
        });
    }

    pub(super) fn header_written(&mut self, id: SnapshotId, result: Result<(), Failure>) {
        let ok = result.is_ok();
        let Some(snap) = self.snaps.get_mut(&id) else {
            return;
        };
        snap.set_marked(ok);
        let removed = snap.removal.is_some();
        if let (Some(removal), Err(failure)) = (&mut snap.removal, result) {
            removal.failed = Some(failure);
        }
        let StoreState::Invalidating(reason) = snap.state() else {
            return; // marked late, for a removal
        };
        if ok || removed {
            // Whoever removes it has recorded that it is invalid.
            return self.add_drain(Drain::InvalidReads {
                snapshot: id,
                tell: ok,
            });
        }
        // Origin writes wait until somebody has recorded it elsewhere.
        self.notify(Notice::Invalid {
            snapshot: id,
            reason,
            durable: false,
        });
    }

    /// The owner has recorded durably that a snapshot is invalid whose header could
    /// not be written.
    pub(super) fn invalid_recorded(&mut self, snapshot: SnapshotId) {
        self.add_drain(Drain::InvalidReads {
            snapshot,
            tell: false,
        });
    }

    /// The invalidation is durable: nobody waits for this snapshot any more.
    pub(super) fn invalidated(&mut self, id: SnapshotId, tell: bool) {
        let Some(snap) = self.snaps.get_mut(&id) else {
            return;
        };
        let Some((reason, waiters)) = snap.end_invalidating() else {
            return;
        };
        if tell && snap.removal.is_none() {
            self.notify(Notice::Invalid {
                snapshot: id,
                reason,
                durable: true,
            });
        }
        self.publish_views();
        for waiter in waiters {
            self.wake(waiter);
        }
    }

    /// Ends when nothing uses the store any more. The header says invalid from
    /// then on: without copy-outs the store would soon be silently wrong. The
    /// caller has recorded that the snapshot is invalid, so that nothing waits
    /// for a header that cannot be written; the record must outlive it.
    pub(super) fn remove_snapshot(
        &mut self,
        call: ControlCall,
        snapshot: SnapshotId,
        force: bool,
    ) -> Result<(), ControlError> {
        if self.gate.is_some() {
            return Err(ControlError::Busy);
        }
        if self.is_merging(snapshot) {
            return Err(ControlError::MergeRunning);
        }
        let snap = self
            .snaps
            .get_mut(&snapshot)
            .ok_or(ControlError::UnknownSnapshot)?;
        if snap.removal.is_some() {
            return Err(ControlError::Busy);
        }
        snap.removal = Some(Removal {
            call,
            force,
            failed: None,
        });
        if !snap.is_usable()
            && !snap.is_marked()
            && !mutation::is(Mutation::HeaderLeftValid)
            && let Some(write) = snap.metadata.invalidate_write()
        {
            let device = snap.shared.device;
            self.write_header(snapshot, device, write);
        }
        self.invalidate(snapshot, InvalidReason::Removed);
        self.publish_views();
        self.add_drain(Drain::Removal { snapshot });
        Ok(())
    }

    /// Nothing uses the store any more.
    pub(super) fn removed(&mut self, id: SnapshotId) {
        let Some(snap) = self.snaps.get_mut(&id) else {
            return;
        };
        let Some(removal) = snap.removal.take() else {
            return;
        };
        let unmarked = !snap.is_marked() && !snap.metadata.is_transient();
        if unmarked && !removal.force && !mutation::is(Mutation::HeaderLeftValid) {
            let unknown = Failure::flush(FailedDevice::Cow, Errno::EIO);
            let result = Err(ControlError::NotMarked(removal.failed.unwrap_or(unknown)));
            return self.control_done(removal.call, result);
        }
        self.snaps.remove(&id);
        self.publish_views();
        self.control_done(removal.call, Ok(()));
    }
}
