//! The types of the engine's interface: requests and control requests in, commands and
//! notices out.

use super::counts::{EngineCounts, SnapshotCounts};
use super::failure::Failure;
use crate::event_flag::EventFlag;
use crate::io::{Buffer, DeviceId, Tag, Zeroing};
use crate::store::{Metadata, Usage};

/// The number of a view. The origin view has 0, snapshot views the following numbers. A
/// number is never used again within one engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ViewId(pub u32);

impl ViewId {
    pub const ORIGIN: Self = Self(0);
}

/// The number of a snapshot, which is that of its view.
pub type SnapshotId = ViewId;

/// The place of a request in its port, `0 .. slots`. The caller chooses it, and it is free
/// again after [`Command::Complete`].
pub type Slot = u16;

/// The operation of a guest request, whose range was already checked against the view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestKind {
    Read,
    /// `durable`: it completes only when it would survive power loss (write-through).
    Write {
        durable: bool,
    },
    Flush,
    /// A hint that the sectors are not needed: each reads as before or as zeroes.
    Discard,
}

/// A validated guest request. `sectors` is 0 for a flush, and more for all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    pub slot: Slot,
    pub kind: RequestKind,
    pub sector: u64,
    pub sectors: u64,
}

/// What a request that is handed in is of a longer one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Part {
    /// A write of which an earlier part is done: it goes on on the same side of a change.
    pub continues: bool,
    /// A write of which another part follows in the same slot.
    pub more: bool,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Ok,
    IoError,
}

/// Guest bytes that are copied into an owned buffer immediately before it is written:
/// `buffer[buffer_offset ..][..len] = data of slot [slot_offset ..][..len]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patch {
    pub slot: Slot,
    /// Bytes from the start of the request's data.
    pub slot_offset: usize,
    /// Bytes from the start of the operation's buffer.
    pub buffer_offset: usize,
    pub len: usize,
}

/// An action that the owner of a port must carry out. Offsets and lengths are in bytes.
#[derive(Debug)]
pub enum Command {
    /// Read `device` at `offset` into the request's data at `slot_offset`.
    /// Report with [`Port::io_done`], as for all I/O commands.
    GuestRead {
        tag: Tag,
        device: DeviceId,
        offset: u64,
        slot: Slot,
        slot_offset: usize,
        len: usize,
    },
    /// Write the request's data from `slot_offset` to `device` at `offset`.
    GuestWrite {
        tag: Tag,
        device: DeviceId,
        offset: u64,
        slot: Slot,
        slot_offset: usize,
        len: usize,
        durable: bool,
    },
    /// Read into an engine buffer.
    Read {
        tag: Tag,
        device: DeviceId,
        offset: u64,
        buffer: Buffer,
    },
    /// Write an engine buffer, after `patch` was copied into it (it is then `Buffer::Owned`).
    Write {
        tag: Tag,
        device: DeviceId,
        offset: u64,
        buffer: Buffer,
        durable: bool,
        patch: Option<Patch>,
    },
    /// Flush a device.
    Flush { tag: Tag, device: DeviceId },
    /// Zero a range of a device.
    Zero {
        tag: Tag,
        device: DeviceId,
        offset: u64,
        len: u64,
        how: Zeroing,
    },
    /// The request in `slot` has ended; no command refers to its data any more.
    Complete { slot: Slot, status: Status },
    /// A control request of this port has ended.
    ControlDone {
        id: u64,
        result: Result<(), ControlError>,
    },
    /// For the port that was opened with [`PortRole::Notices`].
    Notice(Notice),
}

/// A change that the owner of the engine has to know. Notices come in the order in which
/// the changes happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A snapshot was added. This is its first notice.
    Added { snapshot: SnapshotId },
    /// The merge view has replaced the origin view. This is the first notice of a merge.
    HandedOver { snapshot: SnapshotId },
    /// A running merge was paused.
    MergePaused { snapshot: SnapshotId },
    /// A paused or failed merge continues.
    MergeResumed { snapshot: SnapshotId },
    /// A store can use the space by which its COW grew.
    Grown { snapshot: SnapshotId },
    /// The usage of a store has reached the next step of [`super::core::usage`].
    Usage { snapshot: SnapshotId, percent: u64 },
    /// A snapshot became invalid. If not `durable`, its header could not be written. The
    /// receiver must then record that elsewhere, durably, and answer with
    /// [`ControlRequest::InvalidRecorded`], for which origin writes wait.
    Invalid {
        snapshot: SnapshotId,
        reason: InvalidReason,
        durable: bool,
    },
    /// A PO snapshot ran out of space on its own write.
    Overflow { snapshot: SnapshotId },
    /// The merge has work for the merger's thread, see [`Port::merge_step`].
    MergeWork { snapshot: SnapshotId },
    /// All exceptions are merged; the view is an origin view again.
    MergeDone { snapshot: SnapshotId },
    /// The merge stopped on an error. The merge view continues to show the right content.
    MergeFailed {
        snapshot: SnapshotId,
        stop: MergeStop,
    },
    /// A flush of the origin failed for the first time. All later ones fail too, until a
    /// new engine is made, because the failed one may have lost data that it covered.
    OriginFlushFailed { failure: Failure },
}

/// Why a merge stopped, and whether it can continue in this engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MergeStop {
    pub failure: Failure,
    /// [`ControlRequest::ResumeMerge`] tries again. Otherwise the content of the disk is
    /// unknown, and only a new start, which loads the store, can continue.
    pub resumable: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidReason {
    /// No space in the store for a copy-out or a write.
    #[error("it is full")]
    Full,
    /// Reading the origin or writing the store failed.
    #[error("{0}")]
    Io(Failure),
    /// The store was invalid when loaded.
    #[error("it was invalid before")]
    Loaded,
    /// It was removed.
    #[error("it was removed")]
    Removed,
}

/// A store for the engine: opened, loaded, cleared of stale entries, and with a durable
/// header.
#[derive(Debug)]
pub struct SnapshotStore {
    pub device: DeviceId,
    pub metadata: Metadata,
    /// Length of the snapshot in sectors, which is that of the origin when it was taken. It
    /// is cut to the length that the origin has now.
    pub sectors: u64,
    /// PO: an overflow by a snapshot write leaves the snapshot readable.
    pub keep_on_overflow: bool,
    /// False if the snapshot lacks a chunk; it then answers EIO.
    pub valid: bool,
    /// The header durably says that the store is invalid. This may be false for an invalid
    /// store whose header could not be written; the state file has the record then.
    pub marked: bool,
    /// The record of the store ([`crate::store::read_record`]), empty: memory that outlives
    /// the process and not the power. With it, an exception that a guest's own write makes
    /// may become durable at the guest's next flush, once the record lists it. Without it,
    /// the write is acknowledged only when the exception is durable.
    pub record: Option<DeviceId>,
    pub discards: Discards,
    /// Bytes that are zeroed at once ahead of the data, where writing a chunk for the first
    /// time costs more than writing it again; 0: none are. It must not need space that the
    /// store's file does not have.
    pub zero_ahead: u64,
}

/// The effect of a discard on a snapshot's view; there is none by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Discards {
    /// Data in the store is zeroed there.
    pub zeroes_cow: bool,
    /// In addition the origin is discarded where no other snapshot needs it. This has no
    /// effect without `zeroes_cow`.
    pub passdown_origin: bool,
}

/// The policy for guest writes to chunks that are not merged yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum MergeWrites {
    /// They wait until their chunk is merged; it goes into the next batch.
    #[default]
    Wait,
    /// They go to the COW copy, and wait only if their chunk is in the running batch, as in
    /// Linux.
    Redirect,
}

#[derive(Debug)]
pub enum ControlRequest {
    /// A cut: the snapshot has the writes that were acknowledged before this call, and none
    /// that was submitted after its end.
    AddSnapshot {
        snapshot: SnapshotId,
        store: Box<SnapshotStore>,
    },
    /// Ends when the store is no longer in use; its view then answers EIO. If the header
    /// cannot be marked invalid, the snapshot remains, invalid
    /// ([`ControlError::NotMarked`]), unless `force` is set.
    RemoveSnapshot {
        snapshot: SnapshotId,
        force: bool,
    },
    /// The snapshot's store moves to the merge view, which replaces the origin view. With
    /// `follow` the snapshot's view becomes a merge view too; otherwise it answers EIO. A
    /// start continues an unfinished merge in the same way.
    Handover {
        snapshot: SnapshotId,
        writes: MergeWrites,
        follow: bool,
    },
    /// Starts no more background batches. Chunks for which a guest write waits are still
    /// merged.
    PauseMerge,
    ResumeMerge,
    SetMergeWrites(MergeWrites),
    /// Answer to a `Notice::Invalid` that was not durable.
    InvalidRecorded {
        snapshot: SnapshotId,
    },
    /// Makes every acknowledged write durable (clean stop).
    Sync,
    /// The COW device was enlarged.
    Grow {
        snapshot: SnapshotId,
        cow_sectors: u64,
    },
    /// The origin was enlarged.
    ResizeOrigin {
        sectors: u64,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    #[error("no snapshot with this number")]
    UnknownSnapshot,
    #[error("the snapshot is invalid")]
    Invalid,
    #[error("a transient store cannot be merged")]
    Transient,
    #[error("a merge is running on this origin")]
    MergeRunning,
    #[error("the merge failed on a metadata write or flush; only a new start can go on with it")]
    MergeFailed,
    #[error("the origin cannot become smaller")]
    Shrinks,
    #[error("no merge is running")]
    NoMerge,
    #[error("another control operation is under way")]
    Busy,
    #[error("the header of its store cannot be marked invalid: {0}")]
    NotMarked(Failure),
    #[error("{0}")]
    Io(Failure),
}

/// Called, outside all locks, when the first command comes into the empty inbox of a port.
pub trait Wake: Send + Sync {
    fn wake(&self);
}

impl Wake for EventFlag {
    fn wake(&self) {
        self.set();
    }
}

/// The purpose of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortRole {
    /// Guest requests of one view.
    View(ViewId),
    /// The merger thread.
    Merger,
    /// Control requests.
    Control,
    /// Receives the notices. An engine has one such port.
    Notices,
}

/// The answer to the merger's thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MergeStep {
    /// A batch of this many bytes was started. A `Notice::MergeWork` follows at its end.
    Started { bytes: u64 },
    /// A batch is still under way.
    Running,
    /// There is nothing to do until the next `Notice::MergeWork`.
    Idle,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotState {
    Active,
    Overflow,
    Invalid,
    Merging,
    MergePaused,
    MergeFailed,
}

#[derive(Clone, Debug)]
pub struct SnapshotStatus {
    pub snapshot: SnapshotId,
    pub state: SnapshotState,
    pub chunk_sectors: u64,
    pub usage: Usage,
    pub transient: bool,
    pub exceptions: u64,
    pub counts: SnapshotCounts,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct MergeStatus {
    pub snapshot: u32,
    pub chunks_done: u64,
    pub chunks_left: u64,
    /// It stopped on an error.
    pub stopped: Option<MergeStop>,
}

#[derive(Clone, Debug, Default)]
pub struct EngineStatus {
    pub snapshots: Vec<SnapshotStatus>,
    pub merge: Option<MergeStatus>,
    pub counts: EngineCounts,
}

/// The origin when the engine starts.
#[derive(Clone, Copy, Debug)]
pub struct OriginParams {
    pub device: DeviceId,
    /// Size in sectors; need not be a multiple of any chunk size. It may grow, see
    /// [`ControlRequest::ResizeOrigin`].
    pub sectors: u64,
}
