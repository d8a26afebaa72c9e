//! Passing the operations of a device to the kernel in pieces.

use super::{Action, UringDisk};
use crate::io::devices::Place;
use crate::io::transfer::Direction;

/// Operations of a device that are submitted together. If there are more, the kernel holds
/// all of them back until the last one is prepared, and the device is idle meanwhile.
const PIECE: usize = 2;

impl UringDisk {
    /// Whether there is a next operation that does not continue this one. What continues it
    /// is submitted with it, because the kernel makes one request to the device of both.
    pub(super) fn next_is_apart(&self, place: Place, direction: Direction, end: u64) -> bool {
        let next = self.ready.front();
        let next = next.and_then(|index| self.entries.get(*index)?.as_ref());
        next.is_some_and(|next| match &next.work {
            Action::Transfer(transfer) => {
                next.place != place || transfer.direction() != direction || transfer.offset() != end
            }
            Action::Sync(_) | Action::Flush | Action::Zero(_) => true,
        })
    }

    /// Submits what is in the submission queue if it is enough for a piece.
    pub(super) fn submit_piece(&mut self) {
        if self.ring.submission().len() >= PIECE {
            self.enable();
            // What fails stays in the queue, and is submitted with the rest.
            let _ = self.ring.submitter().submit();
        }
    }
}
