//! Giving a snapshot up, durably, so that the origin lives on.
//!
//! Order: 1 the view answers EIO → 2 header durable with valid = 0 (or, if that
//! cannot be written, the owner's own record, [`Notice::Invalid`] not durable)
//! → 3 its view's last reads of the origin have ended → 4 origin writes that the
//! snapshot lacked go on.

use crate::sync::atomic::Ordering;

use super::api::*;
use super::control::Drain;
use super::core::{Core, Op, StoreState, Waiter, When};
use super::failure::Failure;
use crate::io::{Buffer, OwnedBuffer};
use crate::mutation::{self, Mutation};

impl Core {
    pub fn invalidate(&mut self, id: SnapshotId, reason: InvalidReason) {
        if self.merge.as_ref().is_some_and(|m| m.snapshot == id) {
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
        snap.state = StoreState::Invalidating(reason);
        snap.shared.flush_failed.store(true, Ordering::Release);
        snap.queue.clear();
        snap.goal = None;
        let mut failed = Vec::new();
        for (_, pending) in std::mem::take(&mut snap.pending) {
            for (when, waiter) in pending.waiters {
                match (when, waiter) {
                    // An origin write or a merge batch: until the header says so.
                    (When::Settled, Waiter::Request(_) | Waiter::Batch) => {
                        snap.on_invalid.push(waiter)
                    }
                    (_, waiter) => failed.push(waiter),
                }
            }
        }
        if mutation::is(Mutation::OriginWriteBeforeInvalid) {
            failed.append(&mut snap.on_invalid);
        }
        let header = snap.metadata.invalidate_write();
        let device = snap.shared.device;
        for waiter in failed {
            if let Waiter::Request(request) | Waiter::Part(request, _) = waiter
                && !mutation::is(Mutation::OriginWriteBeforeInvalid)
                && let Some(request) = self.requests.get_mut(request)
            {
                request.failed = true;
            }
            match waiter {
                // A part of a snapshot write ends here.
                Waiter::Part(request, _) => self.wake(Waiter::Request(request)),
                waiter => self.wake(waiter),
            }
        }
        self.publish_views();
        match header {
            Some(write) => {
                let mut buffer = OwnedBuffer::zeroed(write.data.len());
                buffer.as_mut_slice().copy_from_slice(&write.data);
                let tag = self.tag(Op::Header { snapshot: id });
                let (port, buffer) = (self.caller, Buffer::Owned(buffer));
                let offset = write.offset;
                self.emit(
                    port,
                    Command::Write {
                        tag,
                        device,
                        offset,
                        buffer,
                        durable: !mutation::is(Mutation::InvalidationVolatile),
                        patch: None,
                    },
                );
            }
            None => self.add_drain(Drain::InvalidReads {
                snapshot: id,
                tell: true,
            }),
        }
    }

    pub fn header_written(&mut self, id: SnapshotId, result: Result<(), Failure>) {
        if result.is_ok() || mutation::is(Mutation::FailedInvalidationIgnored) {
            return self.add_drain(Drain::InvalidReads {
                snapshot: id,
                tell: true,
            });
        }
        let Some(snap) = self.snaps.get(&id) else {
            return;
        };
        if snap.removal.is_some() {
            return self.add_drain(Drain::InvalidReads {
                snapshot: id,
                tell: false,
            });
        }
        if let StoreState::Invalidating(reason) = snap.state {
            // Origin writes wait until somebody has recorded it elsewhere.
            self.notify(Notice::Invalid {
                snapshot: id,
                reason,
                durable: false,
            });
        }
    }

    /// The invalidation is durable: nobody waits for this snapshot any more.
    pub fn invalidated(&mut self, id: SnapshotId, tell: bool) {
        let Some(snap) = self.snaps.get_mut(&id) else {
            return;
        };
        let StoreState::Invalidating(reason) = snap.state else {
            return;
        };
        snap.state = StoreState::Invalid;
        let waiters = std::mem::take(&mut snap.on_invalid);
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
    /// then on: without copy-outs the store would soon be silently wrong.
    pub fn remove_snapshot(
        &mut self,
        port: usize,
        id: u64,
        snapshot: SnapshotId,
    ) -> Result<(), ControlError> {
        if self.merge.as_ref().is_some_and(|m| m.snapshot == snapshot) {
            return Err(ControlError::MergeRunning);
        }
        let snap = self
            .snaps
            .get_mut(&snapshot)
            .ok_or(ControlError::UnknownSnapshot)?;
        if snap.removal.is_some() {
            return Err(ControlError::Busy);
        }
        snap.removal = Some((port, id));
        self.invalidate(snapshot, InvalidReason::Removed);
        self.publish_views();
        self.add_drain(Drain::Removal { snapshot });
        Ok(())
    }
}
