//! What goes into the engine and what comes out.

use super::failure::Failure;
use crate::event_flag::EventFlag;
use crate::io::{Buffer, DeviceId, Tag, Zeroing};
use crate::store::{Metadata, Usage};

/// The origin view has id 0; snapshot views get the next numbers. Never reused
/// within one engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ViewId(pub u32);

impl ViewId {
    pub const ORIGIN: Self = Self(0);
}

/// A snapshot in the engine; equals the number of its view.
pub type SnapshotId = ViewId;

/// A request's place in its port: `0 .. slots`, given by the caller and free
/// again when [`Command::Complete`] names it.
pub type Slot = u16;

/// What a guest asks. Ranges are already known to lie within the view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestKind {
    Read,
    /// `durable`: complete only when it would survive power loss (write-through).
    Write {
        durable: bool,
    },
    Flush,
    /// A hint that the sectors are not needed: each reads as before or as zeroes.
    Discard,
}

/// A validated guest request. `sectors` is 0 for a flush, else more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    pub slot: Slot,
    pub kind: RequestKind,
    pub sector: u64,
    pub sectors: u64,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Ok,
    IoError,
}

/// Guest bytes to lay over an owned buffer just before it is written:
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

/// What a port must do. Offsets and lengths are in bytes.
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
    /// Write an engine buffer, after laying `patch` over it (then it is `Buffer::Owned`).
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
    /// The request in `slot` has ended; nothing refers to its data any more.
    Complete { slot: Slot, status: Status },
    /// A control request of this port has ended.
    ControlDone {
        id: u64,
        result: Result<(), ControlError>,
    },
    /// For the port opened as notice port.
    Notice(Notice),
}

/// Things that somebody must be told of, in the order in which they happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A snapshot is there; told before anything else about it.
    Added { snapshot: SnapshotId },
    /// The merge view has replaced the origin view; told before anything else
    /// about this merge.
    HandedOver { snapshot: SnapshotId },
    /// A running merge was told to pause.
    MergePaused { snapshot: SnapshotId },
    /// A paused or failed merge goes on.
    MergeResumed { snapshot: SnapshotId },
    /// A store has the room that its COW grew by.
    Grown { snapshot: SnapshotId },
    /// The use of a store has come to the next of the steps in [`super::core::usage`].
    Usage { snapshot: SnapshotId, percent: u64 },
    /// A snapshot became invalid. If not `durable`, its header could not be
    /// written: record it elsewhere, durably, and answer with
    /// [`ControlRequest::InvalidRecorded`]; origin writes wait for that.
    Invalid {
        snapshot: SnapshotId,
        reason: InvalidReason,
        durable: bool,
    },
    /// A PO snapshot ran out of space on its own write.
    Overflow { snapshot: SnapshotId },
    /// The merge has work; for the merger thread ([`Port::merge_step`]).
    MergeWork { snapshot: SnapshotId },
    /// All exceptions are merged; the view goes on as an origin view.
    MergeDone { snapshot: SnapshotId },
    /// The merge stopped on an error; content and guest I/O go on by the content rule.
    MergeFailed {
        snapshot: SnapshotId,
        stop: MergeStop,
    },
    /// A flush of the origin failed for the first time: none is believed from now
    /// on, and all of them fail until the engine is made anew.
    OriginFlushFailed { failure: Failure },
}

/// Why a merge stopped, and whether it can go on in this engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MergeStop {
    pub failure: Failure,
    /// [`ControlRequest::ResumeMerge`] tries again. Otherwise it is not known what
    /// is on disk, and only a new start, which loads the store, can go on.
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

/// A store ready for the engine: opened, loaded, junk neutralised, header durable.
#[derive(Debug)]
pub struct SnapshotStore {
    pub device: DeviceId,
    pub metadata: Metadata,
    /// Length of the snapshot in sectors: the origin's when it was taken. More
    /// than the origin has counts as all of it.
    pub sectors: u64,
    /// PO: an overflow by a snapshot write leaves the snapshot readable.
    pub keep_on_overflow: bool,
    /// False once it missed a chunk; such a snapshot answers EIO.
    pub valid: bool,
    /// The header says invalid, durably. It may lag behind `valid`, if it could
    /// not be written and somebody else keeps the record.
    pub marked: bool,
    /// An exception of a guest's own write may become durable at the guest's
    /// next flush. Otherwise the write is acknowledged only when it is durable,
    /// so that the death of the process cannot lose it.
    // Only tests set it; whether it stays is decided together with the write speed.
    pub defer_commits: bool,
    pub discards: Discards,
}

/// What a discard does on a snapshot's view; by default nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Discards {
    /// What is in the store is zeroed there.
    pub zeroes_cow: bool,
    /// Beside that the origin is discarded, where no other snapshot needs it.
    /// Without `zeroes_cow` it has no effect.
    pub passdown_origin: bool,
}

/// What happens to guest writes to chunks that are not merged yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum MergeWrites {
    /// They wait; their chunk jumps the queue.
    #[default]
    Wait,
    /// They go to the COW copy; only the running batch makes them wait (Linux).
    Redirect,
}

#[derive(Debug)]
pub enum ControlRequest {
    /// A cut: writes acknowledged before this call are in, writes submitted
    /// after its end are out.
    AddSnapshot {
        snapshot: SnapshotId,
        store: Box<SnapshotStore>,
    },
    /// Ends when nothing uses the store any more; its view answers EIO from then
    /// on. If the header cannot be marked invalid the snapshot stays, invalid
    /// ([`ControlError::NotMarked`]), unless `force`.
    RemoveSnapshot {
        snapshot: SnapshotId,
        force: bool,
    },
    /// The snapshot's store moves to the merge view, which replaces the origin
    /// view. With `follow` the snapshot's view shows the merge view too,
    /// otherwise it answers EIO. Also how a merge under way is taken up again at start.
    Handover {
        snapshot: SnapshotId,
        writes: MergeWrites,
        follow: bool,
    },
    /// Stops background batches (chunks that a guest write waits for are still merged).
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
    #[error("no merge is running")]
    NoMerge,
    #[error("another control operation is under way")]
    Busy,
    #[error("the header of its store cannot be marked invalid: {0}")]
    NotMarked(Failure),
    #[error("{0}")]
    Io(Failure),
}

/// Called (outside all locks) when a port's inbox got its first command.
pub trait Wake: Send + Sync {
    fn wake(&self);
}

impl Wake for EventFlag {
    fn wake(&self) {
        self.set();
    }
}

/// What a worker is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortRole {
    /// Guest requests of one view.
    View(ViewId),
    /// The merger thread.
    Merger,
    /// Control requests.
    Control,
    /// Receives the notices (one per engine).
    Notices,
}

/// What the merger should do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MergeStep {
    /// A batch of this many bytes was started; call again after its `MergeWork`.
    Started { bytes: u64 },
    /// A batch is still under way.
    Running,
    /// Nothing to do until the next `Notice::MergeWork`.
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
}

/// Origin parameters.
#[derive(Clone, Copy, Debug)]
pub struct OriginParams {
    pub device: DeviceId,
    /// Size in sectors; need not be a multiple of any chunk size.
    pub sectors: u64,
}
