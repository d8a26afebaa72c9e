//! The types of the control interface: the JSON on the control socket, and the trait that
//! the daemon implements.

use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::events::EventLog;
pub use super::guest_requests::{FailedRequests, GuestOperation, SlowIo};
use super::metrics::Family;
use super::socket_status::SocketAccess;
use super::view_io::ViewIo;

/// The COW store's kind, as in a device-mapper table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Default, ToSchema)]
pub enum StoreType {
    /// Persistent; a write by the snapshot's guest that finds no space invalidates it.
    #[default]
    P,
    /// Persistent; after such a write it stays readable (overflow).
    PO,
    /// Transient.
    N,
}

impl StoreType {
    /// The spelling in a device-mapper table.
    pub const fn letters(self) -> &'static str {
        match self {
            Self::P => "P",
            Self::PO => "PO",
            Self::N => "N",
        }
    }
}

/// `PUT /v1/snapshots/NAME` (without the name) and an entry of the state file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SnapshotSpec {
    #[serde(default)]
    pub name: String,
    /// Absolute path of the COW file or device.
    pub cow: String,
    #[serde(default, rename = "type")]
    pub store_type: StoreType,
    /// Bytes; `None`: that of the existing store, or 4 KiB for a new one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chunk_size: Option<u64>,
    /// Bytes; the COW file is created with this size if it does not exist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Socket of the snapshot's own view.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<String>,
    /// A discard by the snapshot's guest zeroes the data in the COW; `None`: as recorded, or
    /// no.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub discard_zeroes_cow: Option<bool>,
    /// It also discards the origin, where no other snapshot needs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub discard_passdown_origin: Option<bool>,
    /// The entry of a first write is durable at the guest's next flush, not before its
    /// acknowledgement; `None`: as recorded, or no.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub defer_entries: Option<bool>,
    /// Its own view refuses writes; `None`: as recorded, or no.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_only: Option<bool>,
}

impl SnapshotSpec {
    /// Its own view refuses writes.
    pub fn is_read_only(&self) -> bool {
        self.read_only == Some(true)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Default, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RollbackWhen {
    /// If a front end is attached: through its VMM if the daemon knows the monitor,
    /// otherwise at the machine's next reset. If none is attached: now.
    #[default]
    Auto,
    AtReset,
    Now,
    /// The VMM stops the guest, the disk is rolled back, the VMM resets the guest
    /// and lets it run.
    Vmm,
}

/// What a rollback waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Default, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ResetKind {
    /// The reset of a machine or the start of a new one, as far as it can be recognized.
    #[default]
    Machine,
    /// The start of any driver, also of one that was only restarted.
    Any,
}

impl ResetKind {
    pub const fn is_machine(&self) -> bool {
        matches!(self, Self::Machine)
    }
}

/// Who started to use a disk, as far as it can be recognized.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Seen {
    /// The firmware of a machine that was reset or is new.
    Firmware,
    /// The system of a machine, after its firmware.
    Boot,
    /// The driver of a system that had already used the disk.
    DriverRestart,
    /// The system of a new guest that boots without firmware.
    NewGuest,
    /// Either such a system, or an earlier guest whose front end has reconnected.
    Unclear,
    /// A program without a guest.
    Program,
}

/// `POST /v1/rollback`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RollbackRequest {
    pub snapshot: String,
    #[serde(default)]
    pub when: RollbackWhen,
    /// What the rollback waits for, if it waits.
    #[serde(default, skip_serializing_if = "ResetKind::is_machine")]
    pub reset: ResetKind,
    /// Absolute path of QEMU's monitor socket (QMP); `None`: the one that the daemon has
    /// recorded, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qmp: Option<String>,
    /// Take this snapshot of the current state first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<SnapshotSpec>,
    /// Bytes per second; `None` or 0: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<u64>,
}

/// The result of a rollback request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RollbackReply {
    pub outcome: RollbackOutcome,
    /// Further information for the operator, one or two sentences each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RollbackOutcome {
    /// The disk is rolled back.
    Started,
    /// The rollback waits for the guest's reset.
    AtNextReset,
    /// The disk is rolled back, and the VMM has reset the guest, which is running.
    GuestReset,
    /// The same, but the guest was paused before and is still paused.
    GuestResetPaused,
}

impl From<RollbackOutcome> for RollbackReply {
    fn from(outcome: RollbackOutcome) -> Self {
        Self {
            outcome,
            notes: Vec::new(),
        }
    }
}

/// `POST /v1/merge`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MergeRequest {
    pub snapshot: String,
    /// The snapshot's own view becomes a merge view, too.
    #[serde(default)]
    pub follow: bool,
    /// Merge even if a guest is attached to the origin.
    #[serde(default, skip_serializing_if = "is_false")]
    pub now: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<u64>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde requires it")]
const fn is_false(value: &bool) -> bool {
    !*value
}

/// `POST /v1/detach`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DetachRequest {
    /// Absolute path of a socket that a merged snapshot has left to the origin.
    pub socket: String,
}

/// `PUT /v1/snapshots/NAME/size`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StoreSize {
    /// New size of the COW in bytes: a multiple of 512, not less than the current one.
    pub size: u64,
}

/// `PUT /v1/origin/size`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OriginSize {
    /// New size in bytes, not less than the current one. Without it, the size that the file
    /// or device has now is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
}

/// The result of a resize request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ResizeReply {
    /// Size in bytes before.
    pub before: u64,
    /// Size in bytes now.
    pub size: u64,
    /// Sockets whose front ends were told, so that their guests see the size at once. `null`
    /// is a socket that was passed to the daemon.
    pub told: Vec<Option<String>>,
    /// Sockets whose front ends cannot be told: their guests see the size after a new
    /// connection.
    pub untold: Vec<Option<String>>,
}

/// `PUT /v1/merge/rate`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MergeRate {
    /// Bytes per second; 0: no limit.
    pub rate: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    Active,
    Overflow,
    Invalid,
    Merging,
    MergePaused,
    MergeFailed,
}

/// `GET /v1/status`: a stable interface.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VolumeStatus {
    pub origin: OriginStatus,
    pub views: Vec<ViewStatus>,
    pub snapshots: Vec<SnapshotStatus>,
    /// `null` when no merge runs.
    pub merge: Option<MergeStatus>,
    /// The snapshot of the pending rollback.
    pub rollback_at_reset: Option<String>,
    /// The pending rollback; `null` if there is none.
    #[serde(default)]
    pub rollback: Option<PendingRollback>,
    /// How the last merge of this process ended; `null` before. It allows a waiting client to
    /// distinguish a merge that it missed from one that never ran.
    #[serde(default)]
    pub last_merge: Option<MergeOutcome>,
    /// The daemon's process. Not given by older daemons.
    #[serde(default)]
    pub pid: Option<u32>,
    /// Who may connect to the sockets, as far as it was set.
    #[serde(default)]
    pub access: SocketAccess,
    /// The rights that the daemon is left with, in words for people; `null` without a sandbox.
    #[serde(default)]
    pub sandbox: Option<String>,
}

/// A pending rollback.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PendingRollback {
    pub snapshot: String,
    /// What it waits for.
    pub reset: ResetKind,
    /// The snapshot that will be taken before the rollback.
    #[serde(default)]
    pub keep: Option<String>,
    /// The monitor that reports resets.
    #[serde(default)]
    pub qmp: Option<String>,
    /// The last start of a driver at which it did not happen.
    #[serde(default)]
    pub seen: Option<Seen>,
    /// What this means and what to do, or why the rollback failed.
    #[serde(default)]
    pub note: Option<String>,
}

/// The end of a merge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MergeOutcome {
    pub snapshot: String,
    /// Chunks copied back into the origin.
    pub chunks: u64,
    /// Why it failed for good; `null`: everything is in the origin and the COW
    /// can be removed.
    pub error: Option<String>,
    /// The COW file of a merge that succeeded: it can be removed. `null` if it is a device,
    /// and as soon as the file is gone, or was changed or used again.
    #[serde(default)]
    pub cow: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct OriginStatus {
    pub path: String,
    pub sectors: u64,
    pub read_only: bool,
    /// `major:minor`, or `0:0` for a regular file, as in a device-mapper table.
    pub device: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ViewKind {
    Origin,
    Snapshot,
    Merge,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ViewStatus {
    /// The snapshot's name; `null` for the origin's socket.
    pub snapshot: Option<String>,
    pub kind: ViewKind,
    /// `null`: a descriptor that was passed to the daemon, or `connects`.
    pub socket: Option<String>,
    /// The front end listens here, and the daemon connects to it.
    #[serde(default)]
    pub connects: Option<String>,
    /// A front end is connected.
    pub attached: bool,
    /// Further front ends that wait until it leaves.
    #[serde(default)]
    pub waiting: usize,
    /// Guests cannot write to it.
    #[serde(default)]
    pub read_only: bool,
    /// Requests of its guest that have been under way for seconds.
    #[serde(default)]
    pub slow_io: Option<SlowIo>,
    /// What keeps its guest from using it, as far as it can be told.
    #[serde(default)]
    pub hint: Option<String>,
    /// What its guests have done since the daemon started to serve it.
    #[serde(default)]
    pub io: ViewIo,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SnapshotStatus {
    pub name: String,
    pub cow: String,
    #[serde(rename = "type")]
    pub store_type: StoreType,
    pub cow_device: String,
    pub state: State,
    /// Length of its view: the origin's when the snapshot was taken.
    #[serde(default)]
    pub sectors: u64,
    /// Its own view refuses writes.
    #[serde(default)]
    pub read_only: bool,
    pub chunk_sectors: u64,
    pub allocated_sectors: u64,
    pub total_sectors: u64,
    pub metadata_sectors: u64,
    #[serde(default)]
    pub discard_zeroes_cow: bool,
    #[serde(default)]
    pub discard_passdown_origin: bool,
    /// The entries of first writes are deferred to the guest's next flush.
    #[serde(default)]
    pub defer_entries: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MergeStatus {
    pub snapshot: String,
    pub chunks_done: u64,
    pub chunks_left: u64,
    /// Average over the last seconds.
    pub bytes_per_second: u64,
    /// Bytes per second that it may copy; `null`: no limit.
    #[serde(default)]
    pub rate_limit: Option<u64>,
    /// `null` while unknown.
    pub seconds_left: Option<u64>,
    pub paused: bool,
    /// Why it stopped, if it failed.
    pub error: Option<String>,
    /// How it can continue, if it failed.
    #[serde(default)]
    pub retry: Option<Retry>,
}

/// How a merge that failed can continue once the cause of the failure is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Retry {
    /// `POST /v1/merge/resume`
    Resume,
    /// The daemon has to be restarted, because what is on disk is only known after the store
    /// is loaded again.
    Restart,
}

impl Retry {
    /// What to do, for the operator.
    pub const fn advice(self) -> &'static str {
        match self {
            Self::Resume => {
                "nothing is lost; remove the cause and continue with `snapback merge --resume`"
            }
            Self::Restart => {
                "what is merged stays merged; remove the cause and restart the daemon, which continues the merge"
            }
        }
    }
}

/// A refusal: the body of a 4xx or 5xx response.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error, ToSchema)]
#[error("{message}")]
pub struct ApiError {
    pub kind: ErrorKind,
    /// Names the object, the reason and what to do.
    pub message: String,
    /// The path of the operation, if the change goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorKind {
    /// 400
    BadRequest,
    /// 403
    Forbidden,
    /// 404
    NotFound,
    /// 409
    Conflict,
    /// 422: the sandbox keeps the daemon from the COW's path. It takes a descriptor instead.
    Outside,
    /// 500
    Io,
}

impl ErrorKind {
    /// The HTTP status of this kind.
    pub const fn http_status(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::Conflict => 409,
            Self::Outside => 422,
            Self::Io => 500,
        }
    }
}

/// Longest snapshot name in bytes.
pub const NAME_MAX: usize = 64;

/// Checks that `name` is allowed as a snapshot's name: it appears in paths of the API, in
/// `dmsetup`-like lines and in file names.
///
/// # Errors
/// The first violation of the rules.
pub fn check_name(name: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "+_.-".contains(c);
    if name.is_empty() {
        return Err("a snapshot needs a name".to_owned());
    }
    if name.len() > NAME_MAX {
        return Err(format!(
            "a snapshot name of {} bytes is too long: at most {NAME_MAX}",
            name.len()
        ));
    }
    if let Some(bad) = name.chars().find(|c| !allowed(*c)) {
        return Err(format!(
            "snapshot name `{}` has `{}` in it: use letters, digits and + _ . -",
            name.escape_debug(),
            bad.escape_debug()
        ));
    }
    if name.starts_with(['-', '.']) {
        return Err(format!(
            "snapshot name `{name}` starts with `-` or `.`: start with a letter or digit"
        ));
    }
    Ok(())
}

impl ApiError {
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            operation: None,
        }
    }
}

/// The operations behind the control socket. Calls block until the change is in effect and
/// recorded in the state file, which takes milliseconds unless a disk does not answer.
pub trait Volume: Send + Sync {
    fn status(&self) -> VolumeStatus;
    /// `cow`: its COW, which the client has opened.
    fn add_snapshot(&self, spec: SnapshotSpec, cow: Option<OwnedFd>) -> Result<(), ApiError>;
    /// `force`: even if its store cannot be marked invalid.
    fn remove_snapshot(&self, name: &str, force: bool) -> Result<(), ApiError>;
    /// Ends a socket that a merged snapshot has left to the origin.
    fn detach(&self, socket: &str) -> Result<(), ApiError>;
    /// Enlarges the snapshot's COW to `bytes`, or uses the new space of a device that was
    /// enlarged.
    fn grow_snapshot(&self, name: &str, bytes: u64) -> Result<(), ApiError>;
    /// Enlarges the origin to `bytes`, or, with `None`, uses the size that it has now.
    fn resize(&self, bytes: Option<u64>) -> Result<ResizeReply, ApiError>;
    /// `cow`: that of the snapshot that is taken first, which the client has opened.
    fn rollback(
        &self,
        request: RollbackRequest,
        cow: Option<OwnedFd>,
    ) -> Result<RollbackReply, ApiError>;
    /// Cancels the pending rollback.
    fn cancel_rollback(&self) -> Result<(), ApiError>;
    fn merge(&self, request: MergeRequest) -> Result<(), ApiError>;
    fn pause_merge(&self) -> Result<(), ApiError>;
    fn resume_merge(&self) -> Result<(), ApiError>;
    fn set_merge_rate(&self, bytes_per_second: u64) -> Result<(), ApiError>;
    /// Stops the daemon, for another one that takes the volume over.
    fn release(&self) -> Result<(), ApiError>;
    /// What an operation may be waiting for: requests of guests that take long. Does not
    /// block.
    fn waits_for(&self) -> Vec<String> {
        Vec::new()
    }
    /// All metrics. Waits for no disk and no guest.
    ///
    /// # Errors
    /// They cannot be had now.
    fn metrics(&self) -> Result<Vec<Family>, ApiError> {
        Ok(Vec::new())
    }
    /// The event log. Does not block.
    fn events(&self) -> &EventLog;
}
