//! The fast path: decides a request without a lock if its chunks are settled.
//!
//! There is one function per kind of request, and for writes one per view mode. Each
//! looks at the view's mode and at the exception tables, adds the request's I/O
//! commands, and returns a [`Decision`]. Whatever it cannot decide it leaves to the
//! critical section, which makes the same decisions with all of the state
//! (`core/request.rs`). The caller has registered the request before
//! (`registrations.rs`).

use super::api::*;
use super::discard;
use super::registrations::{COW, OTHER, READ_ORIGIN, WRITE};
use super::shared::Shared;
use super::tags;
use super::views::{Extent, PreserveList, SharedSnapshot, ViewMode, is_settled, resolve_read};
use crate::io::DeviceId;
use crate::mutation::{self, Mutation};
use crate::units::{SECTOR_SHIFT, byte_count};

/// The outcome of the fast path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// The critical section has to decide. No command was added.
    NeedsCore,
    /// The request's I/O commands were added. It ends with the last of them and
    /// touches no more than `touches`.
    Issued { touches: u64 },
    /// The request ends without I/O.
    Done(Status),
}

use Decision::{Done, Issued, NeedsCore};

/// A request whose range lies within the origin.
#[derive(Clone, Copy)]
pub(super) struct FastRequest<'a> {
    pub slot: Slot,
    pub sector: u64,
    /// The sector after the last one.
    pub end: u64,
    pub shared: &'a Shared,
}

/// What a request of this kind may touch, for its registration before any look-up.
pub(super) fn may_touch(kind: RequestKind) -> u64 {
    match kind {
        _ if mutation::is(Mutation::RegistrationSkipped) => 0,
        RequestKind::Discard if mutation::is(Mutation::DiscardNotRegistered) => 0,
        RequestKind::Read => READ_ORIGIN | COW,
        RequestKind::Write { .. } => WRITE | COW,
        RequestKind::Flush => OTHER | COW,
        RequestKind::Discard => discard::TOUCHES,
    }
}

/// Decides a request in a view that is in this mode.
#[inline]
pub(super) fn decide(
    mode: &ViewMode,
    kind: RequestKind,
    fast: FastRequest<'_>,
    out: &mut Vec<Command>,
) -> Decision {
    match mode {
        ViewMode::Gated => return NeedsCore,
        ViewMode::Failed => return Done(Status::IoError),
        ViewMode::Snapshot { snapshot, .. } if fast.end > snapshot.sectors => {
            return Done(Status::IoError);
        }
        ViewMode::Origin { .. } | ViewMode::Snapshot { .. } | ViewMode::Merge { .. } => {}
    }
    match kind {
        RequestKind::Read => fast.read(mode, out),
        RequestKind::Write { durable } => fast.write(mode, durable, out),
        RequestKind::Discard => fast.discard(mode, out),
        RequestKind::Flush => fast.flush(mode, out),
    }
}

impl FastRequest<'_> {
    fn origin(self) -> DeviceId {
        self.shared.origin
    }

    /// A read needs no settled chunk: what it reads is registered.
    fn read(self, mode: &ViewMode, out: &mut Vec<Command>) -> Decision {
        let Self { slot, sector, .. } = self;
        let origin = self.origin();
        let touches = resolve_read(mode, sector, self.end, |e| {
            out.push(Command::GuestRead {
                tag: tags::fast(slot),
                device: e.device.unwrap_or(origin),
                offset: e.device_sector << SECTOR_SHIFT,
                slot,
                slot_offset: byte_count(e.sector - sector),
                len: byte_count(e.sectors),
            });
        });
        touches.map_or(NeedsCore, |touches| Issued { touches })
    }

    fn write(self, mode: &ViewMode, durable: bool, out: &mut Vec<Command>) -> Decision {
        match mode {
            ViewMode::Origin {
                preserve,
                write_gate: false,
            } => self.origin_write(preserve, durable, out),
            ViewMode::Snapshot { overflow: true, .. } => Done(Status::IoError),
            ViewMode::Snapshot { snapshot, .. } => self.snapshot_write(snapshot, durable, out),
            ViewMode::Merge {
                snapshot,
                preserve,
                writes,
            } => {
                let redirect = *writes == MergeWrites::Redirect;
                if redirect && self.is_redirected(snapshot) {
                    self.cow_write(snapshot, durable, out)
                } else {
                    self.merged_write(snapshot, preserve, durable, out)
                }
            }
            ViewMode::Origin {
                write_gate: true, ..
            }
            | ViewMode::Gated
            | ViewMode::Failed => NeedsCore,
        }
    }

    /// Every snapshot must have all chunks, settled.
    fn origin_write(
        self,
        preserve: &PreserveList,
        durable: bool,
        out: &mut Vec<Command>,
    ) -> Decision {
        let Self { sector, end, .. } = self;
        if !is_settled(preserve, sector, end) {
            return NeedsCore;
        }
        out.push(self.guest_write(Extent::of_origin(sector, end - sector), durable));
        Issued { touches: WRITE }
    }

    /// Every chunk must have an exception. The entry of one that is not settled may
    /// still be volatile, so a durable write is left to the critical section.
    fn snapshot_write(
        self,
        snapshot: &SharedSnapshot,
        durable: bool,
        out: &mut Vec<Command>,
    ) -> Decision {
        let in_place = snapshot.chunks(self.sector, self.end).all(|c| {
            let e = snapshot.table.get(c);
            e.is_some() && (e.is_settled() || !durable)
        });
        if in_place {
            self.cow_write(snapshot, durable, out)
        } else {
            NeedsCore
        }
    }

    /// In a merge view, no chunk is merged or in the running batch.
    fn is_redirected(self, snapshot: &SharedSnapshot) -> bool {
        self.end <= snapshot.sectors
            && snapshot.chunks(self.sector, self.end).all(|c| {
                let e = snapshot.table.get(c);
                e.is_some() && !e.is_fenced()
            })
    }

    /// In a merge view, every chunk must be merged, and settled in the other snapshots.
    fn merged_write(
        self,
        snapshot: &SharedSnapshot,
        preserve: &PreserveList,
        durable: bool,
        out: &mut Vec<Command>,
    ) -> Decision {
        let mut chunks = snapshot.chunks(self.sector, self.end);
        if chunks.any(|c| snapshot.table.get(c).is_some()) {
            return NeedsCore;
        }
        self.origin_write(preserve, durable, out)
    }

    /// Writes to the chunks' COW copies.
    fn cow_write(
        self,
        snapshot: &SharedSnapshot,
        durable: bool,
        out: &mut Vec<Command>,
    ) -> Decision {
        snapshot.resolve(self.sector, self.end, |e| {
            out.push(self.guest_write(e, durable));
        });
        Issued {
            touches: WRITE | COW,
        }
    }

    fn discard(self, mode: &ViewMode, out: &mut Vec<Command>) -> Decision {
        let Self { slot, sector, .. } = self;
        if matches!(mode, ViewMode::Snapshot { overflow: true, .. }) {
            return Done(Status::IoError);
        }
        let (origin, before) = (self.origin(), out.len());
        let touches = discard::resolve(mode, sector, self.end, |e, how| {
            out.push(discard::command(tags::fast(slot), origin, e, how));
        });
        match touches {
            None => NeedsCore,
            Some(_) if out.len() == before => Done(Status::Ok),
            Some(touches) => Issued { touches },
        }
    }

    fn flush(self, mode: &ViewMode, out: &mut Vec<Command>) -> Decision {
        let (slot, origin) = (self.slot, self.origin());
        match mode {
            ViewMode::Gated | ViewMode::Failed => NeedsCore,
            ViewMode::Origin { .. } => {
                if self.shared.is_flush_lost(None) {
                    return Done(Status::IoError);
                }
                out.push(Command::Flush {
                    tag: tags::fast(slot),
                    device: origin,
                });
                Issued { touches: OTHER }
            }
            ViewMode::Snapshot { snapshot, .. } => {
                if snapshot.defer_commits {
                    return NeedsCore; // entries first
                }
                out.push(Command::Flush {
                    tag: tags::cow_flush(slot),
                    device: snapshot.device,
                });
                Issued {
                    touches: OTHER | COW,
                }
            }
            ViewMode::Merge { snapshot, .. } => {
                if self.shared.is_flush_lost(None) || self.shared.is_flush_lost(Some(snapshot)) {
                    return Done(Status::IoError);
                }
                out.push(Command::Flush {
                    tag: tags::fast(slot),
                    device: origin,
                });
                out.push(Command::Flush {
                    tag: tags::cow_flush(slot),
                    device: snapshot.device,
                });
                Issued {
                    touches: OTHER | COW,
                }
            }
        }
    }

    fn guest_write(self, e: Extent, durable: bool) -> Command {
        Command::GuestWrite {
            tag: tags::fast(self.slot),
            device: e.device.unwrap_or(self.shared.origin),
            offset: e.device_sector << SECTOR_SHIFT,
            slot: self.slot,
            slot_offset: byte_count(e.sector - self.sector),
            len: byte_count(e.sectors),
            durable,
        }
    }
}
