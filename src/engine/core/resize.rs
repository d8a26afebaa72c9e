//! A larger origin.
//!
//! Snapshots keep their lengths, so no chunk of them lies in the new sectors, except those
//! that share the chunk in which a snapshot ends. Requests under way end before the old end,
//! so nothing has to wait for anything.

use super::Core;
use crate::engine::api::ControlError;
use crate::sync::atomic::Ordering;

impl Core {
    /// The origin has `sectors` sectors, durably. Requests up to there are valid from now on.
    pub(super) fn resize_origin(&self, sectors: u64) -> Result<(), ControlError> {
        if sectors < self.origin_sectors() {
            return Err(ControlError::Shrinks);
        }
        self.shared.origin_sectors.store(sectors, Ordering::Release);
        Ok(())
    }
}
