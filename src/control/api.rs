//! The control interface's words: what goes over the control socket as JSON,
//! and the trait that the daemon implements behind it.

use serde::{Deserialize, Serialize};

use super::events::EventLog;

/// The COW store's kind, as in a device-mapper table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
pub enum StoreType {
    /// Persistent; overflow by a snapshot write invalidates.
    #[default]
    P,
    /// Persistent; overflow by a snapshot write leaves it readable.
    PO,
    /// Transient.
    N,
}

impl StoreType {
    /// As it stands in a device-mapper table.
    pub const fn letters(self) -> &'static str {
        match self {
            Self::P => "P",
            Self::PO => "PO",
            Self::N => "N",
        }
    }
}

/// `PUT /v1/snapshots/NAME` (without the name) and an entry of the state file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotSpec {
    #[serde(default)]
    pub name: String,
    /// Absolute path of the COW file or device.
    pub cow: String,
    #[serde(default, rename = "type")]
    pub store_type: StoreType,
    /// Bytes; `None`: the store's own, or 4 KiB for a new one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chunk_size: Option<u64>,
    /// Bytes; the COW file is created with this size if it does not exist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Socket to serve the snapshot's own view at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<String>,
    /// A discard by the snapshot's guest zeroes what is in the COW; `None`: no,
    /// or as it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub discard_zeroes_cow: Option<bool>,
    /// And it discards the origin, where no other snapshot needs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub discard_passdown_origin: Option<bool>,
    /// Whether its own view refuses writes; `None`: no, or as it is recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_only: Option<bool>,
}

impl SnapshotSpec {
    /// Its own view refuses writes.
    pub fn is_read_only(&self) -> bool {
        self.read_only == Some(true)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum RollbackWhen {
    /// With a front end attached: through its VMM if the daemon knows its monitor,
    /// else at the machine's next reset. With none attached: now.
    #[default]
    Auto,
    AtReset,
    Now,
    /// The VMM stops the guest, the disk is rolled back, the VMM resets the guest
    /// and lets it run.
    Vmm,
}

/// What a rollback waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum ResetKind {
    /// A machine that is reset or new, as far as that can be seen.
    #[default]
    Machine,
    /// Any driver that begins with the disk, also one that was only restarted.
    Any,
}

impl ResetKind {
    pub const fn is_machine(&self) -> bool {
        matches!(self, Self::Machine)
    }
}

/// Who began to use a disk, as far as can be seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Seen {
    /// The firmware of a machine that was reset or is new.
    Firmware,
    /// The system of a machine whose firmware was there before.
    Boot,
    /// The driver of a system that had used the disk before.
    DriverRestart,
    /// The system of a new guest that boots without firmware.
    NewGuest,
    /// Such a system, or that of an old guest whose front end came back.
    Unclear,
    /// A program without a guest.
    Program,
}

/// `POST /v1/rollback`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RollbackRequest {
    pub snapshot: String,
    #[serde(default)]
    pub when: RollbackWhen,
    /// What it waits for, if it waits.
    #[serde(default, skip_serializing_if = "ResetKind::is_machine")]
    pub reset: ResetKind,
    /// Absolute path of QEMU's monitor socket (QMP); `None`: the daemon's own, if
    /// it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qmp: Option<String>,
    /// Take this snapshot of the present state first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<SnapshotSpec>,
    /// Bytes per second; `None` or 0: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<u64>,
}

/// What has become of a rollback that was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RollbackReply {
    pub outcome: RollbackOutcome,
    /// What the operator should know beside, a sentence or two each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RollbackOutcome {
    /// The disk is rolled back.
    Started,
    /// It waits for the guest's reset.
    AtNextReset,
    /// The disk is rolled back, and the VMM has reset the guest, which runs.
    GuestReset,
    /// The same, but the guest was paused before and still is.
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
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MergeRequest {
    pub snapshot: String,
    /// The snapshot's own view becomes a merge view too.
    #[serde(default)]
    pub follow: bool,
    /// Also although a guest is attached to the origin.
    #[serde(default, skip_serializing_if = "is_false")]
    pub now: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<u64>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
const fn is_false(value: &bool) -> bool {
    !*value
}

/// `PUT /v1/snapshots/NAME/size`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreSize {
    /// New size of the COW in bytes: a multiple of 512, not below the present one.
    pub size: u64,
}

/// `PUT /v1/merge/rate`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MergeRate {
    /// Bytes per second; 0: no limit.
    pub rate: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VolumeStatus {
    pub origin: OriginStatus,
    pub views: Vec<ViewStatus>,
    pub snapshots: Vec<SnapshotStatus>,
    /// `null` when no merge runs.
    pub merge: Option<MergeStatus>,
    /// The snapshot that a deferred rollback waits to hand over.
    pub rollback_at_reset: Option<String>,
    /// More of it; `null` if none waits.
    #[serde(default)]
    pub rollback: Option<PendingRollback>,
    /// How the last merge of this process ended; `null` before the first end.
    /// Lets a waiting client tell a merge that it missed from one that never ran.
    #[serde(default)]
    pub last_merge: Option<MergeOutcome>,
}

/// A rollback that waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingRollback {
    pub snapshot: String,
    /// What it waits for.
    pub reset: ResetKind,
    /// The snapshot that will be taken before it.
    #[serde(default)]
    pub keep: Option<String>,
    /// The monitor that is asked for resets.
    #[serde(default)]
    pub qmp: Option<String>,
    /// Who was seen last that it did not happen for.
    #[serde(default)]
    pub seen: Option<Seen>,
    /// What that means and what to do, or why it failed.
    #[serde(default)]
    pub note: Option<String>,
}

/// The end of a merge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MergeOutcome {
    pub snapshot: String,
    /// Chunks copied back into the origin.
    pub chunks: u64,
    /// Why it failed for good; `null`: everything is in the origin and the COW
    /// can be removed.
    pub error: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OriginStatus {
    pub path: String,
    pub sectors: u64,
    pub read_only: bool,
    /// `major:minor`, or `0:0` for a regular file, as in a device-mapper table.
    pub device: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ViewKind {
    Origin,
    Snapshot,
    Merge,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ViewStatus {
    /// The snapshot's name; `null` for the origin's socket.
    pub snapshot: Option<String>,
    pub kind: ViewKind,
    pub socket: Option<String>,
    /// A front end is connected.
    pub attached: bool,
    /// Guests cannot write there.
    #[serde(default)]
    pub read_only: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SnapshotStatus {
    pub name: String,
    pub cow: String,
    #[serde(rename = "type")]
    pub store_type: StoreType,
    pub cow_device: String,
    pub state: State,
    /// Length of what it shows: the origin's when it was taken.
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
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MergeStatus {
    pub snapshot: String,
    pub chunks_done: u64,
    pub chunks_left: u64,
    /// Bytes per second over the last seconds.
    pub bytes_per_second: u64,
    /// `null` while unknown.
    pub seconds_left: Option<u64>,
    pub paused: bool,
    /// Why it stopped, if it failed.
    pub error: Option<String>,
    /// How it goes on, if it failed.
    #[serde(default)]
    pub retry: Option<Retry>,
}

/// How a merge that failed goes on, once the cause of the failure is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Retry {
    /// `POST /v1/merge/resume`
    Resume,
    /// The daemon has to be stopped and started again: only loading the store
    /// tells what is on disk.
    Restart,
}

impl Retry {
    /// What to do, for people.
    pub const fn advice(self) -> &'static str {
        match self {
            Self::Resume => {
                "nothing is lost; when the cause is removed, go on with `snapback merge --resume`"
            }
            Self::Restart => {
                "what is merged stays merged; when the cause is removed, stop the daemon and start it again: it goes on with the merge"
            }
        }
    }
}

/// Every refusal: the body of a 4xx/5xx answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    pub kind: ErrorKind,
    /// Names the thing, the reason and the way out.
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorKind {
    /// 400
    BadRequest,
    /// 404
    NotFound,
    /// 409
    Conflict,
    /// 500
    Io,
}

impl ErrorKind {
    /// The HTTP status that goes with it.
    pub const fn http_status(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::NotFound => 404,
            Self::Conflict => 409,
            Self::Io => 500,
        }
    }
}

/// Longest snapshot name in bytes.
pub const NAME_MAX: usize = 64;

/// Checks that `name` can name a snapshot: it appears in paths of the API, in
/// `dmsetup`-like lines and in file names.
///
/// # Errors
/// Names the first thing that is wrong.
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
        }
    }
}

/// What the daemon does behind the control socket. Calls block until the change
/// is in effect and recorded in the state file (milliseconds).
pub trait Volume: Send + Sync {
    fn status(&self) -> VolumeStatus;
    fn add_snapshot(&self, spec: SnapshotSpec) -> Result<(), ApiError>;
    /// `force`: also if its store cannot be marked invalid.
    fn remove_snapshot(&self, name: &str, force: bool) -> Result<(), ApiError>;
    /// Enlarges the snapshot's COW to `bytes`, or takes note that its device was.
    fn grow_snapshot(&self, name: &str, bytes: u64) -> Result<(), ApiError>;
    fn rollback(&self, request: RollbackRequest) -> Result<RollbackReply, ApiError>;
    /// Calls a rollback off that waits for the guest's reset.
    fn cancel_rollback(&self) -> Result<(), ApiError>;
    fn merge(&self, request: MergeRequest) -> Result<(), ApiError>;
    fn pause_merge(&self) -> Result<(), ApiError>;
    fn resume_merge(&self) -> Result<(), ApiError>;
    fn set_merge_rate(&self, bytes_per_second: u64) -> Result<(), ApiError>;
    /// What happened. Never waits for anything.
    fn events(&self) -> &EventLog;
}
