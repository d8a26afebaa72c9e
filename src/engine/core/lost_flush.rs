//! Whether a flush may be believed: after a failed one, what it covered may be lost,
//! and no later flush brings it back.

use super::Core;
use crate::engine::api::SnapshotId;
use crate::engine::failure::{FailedDevice, Failure};
use crate::engine::views::SharedSnapshot;
use crate::io::Errno;

impl Core {
    /// As [`Shared::is_flush_lost`](crate::engine::shared::Shared::is_flush_lost).
    pub(super) fn is_flush_lost(&self, store: Option<SnapshotId>) -> bool {
        let lost = |store: Option<&SharedSnapshot>| self.shared.is_flush_lost(store);
        match store {
            None => lost(None),
            Some(id) => (self.snaps.get(&id)).is_some_and(|snap| lost(Some(&snap.shared))),
        }
    }

    /// The failure because of which a flush must not be believed, though it may
    /// end well.
    pub(super) fn flush_lost(&self, store: Option<SnapshotId>) -> Option<Failure> {
        if !self.is_flush_lost(store) {
            return None;
        }
        let first = self.origin_failure.filter(|_| store.is_none());
        let device = match store {
            None => FailedDevice::Origin,
            Some(_) => FailedDevice::Cow,
        };
        Some(first.unwrap_or(Failure::flush(device, Errno::EIO)))
    }
}
