//! Invalidation: a snapshot is given up, durably, so that origin writes can go on.
//!
//! Order: 1 the view answers EIO → 2 header durable with valid = 0 (or, if that
//! cannot be written, the owner's own record, [`Notice::Invalid`] not durable)
//! → 3 its view's last reads of the origin have ended → 4 origin writes to chunks
//! that the snapshot lacks go on.

use crate::sync::atomic::Ordering;

use super::Core;
use super::accounting::IoPurpose;
use super::drains::Drain;
use super::snap::StoreState;
use super::unsettled::When;
use super::waiting::Waiter;
use crate::engine::api::*;
use crate::engine::failure::Failure;
use crate::io::{Buffer, DeviceId, OwnedBuffer};
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
        match reason {
            InvalidReason::Full => self.counts.invalid_full += 1,
            InvalidReason::Io(_) => self.counts.invalid_io += 1,
            InvalidReason::Loaded | InvalidReason::Removed => {}
        }
        snap.shared.flush_failed.store(true, Ordering::Release);
        let mut failed = Vec::new();
        for (when, waiter) in snap.unsettled.give_up() {
            match (when, waiter) {
                // An origin write or a merge batch waits until the header says so.
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
                notify: true,
            }),
        }
    }

    /// Ends a wait for an exception that the snapshot will not get any more.
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

    pub(super) fn write_header(&mut self, id: SnapshotId, device: DeviceId, write: MetaWrite) {
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
            return; // it was invalid before, and is marked for its removal
        };
        if ok || removed {
            // The caller of a removal has recorded that the snapshot is invalid.
            return self.add_drain(Drain::InvalidReads {
                snapshot: id,
                notify: ok,
            });
        }
        // Origin writes wait until the owner has recorded it elsewhere.
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
            notify: false,
        });
    }

    /// Step 4: the invalidation is durable.
    pub(super) fn invalidated(&mut self, id: SnapshotId, notify: bool) {
        let Some(snap) = self.snaps.get_mut(&id) else {
            return;
        };
        let Some((reason, waiters)) = snap.end_invalidating() else {
            return;
        };
        if notify && snap.removal.is_none() {
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
}
