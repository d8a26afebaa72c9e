//! The content of the state file.

use serde::{Deserialize, Serialize};

use crate::control::api::{ResetKind, SnapshotSpec};
use crate::daemon::identity::{OriginIdentity, StorageIdentity, UnflushedRecord};
use crate::engine::MergeWrites;
use crate::socket_access::SocketAccess;

/// The version that this program writes. It reads all versions from [`OLDEST`] on.
pub(super) const VERSION: u32 = 2;
/// Its paths are all absolute, and it has no identities except the origin's.
pub(super) const OLDEST: u32 = 1;

/// The whole content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeState {
    pub(super) version: u32,
    /// Identifies the volume. A copy gets another one once it is served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<String>,
    /// Number of starts.
    #[serde(default)]
    pub generation: u64,
    /// What the marks on the origin and the COWs said when this was written. They may
    /// already say what `volume` and `generation` say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub marked: Option<MarkedAs>,
    /// The folder in which this file was written. Paths below it are stored relative to it;
    /// in memory all paths are absolute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub home: Option<String>,
    /// A daemon serves the volume, or served it until it was killed.
    pub running: bool,
    /// A guest may have been attached to the origin when the last daemon ended, and none
    /// has connected since: it may reconnect.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub guest_attached: bool,
    /// At the last clean stop, or at the start if the daemon runs or was killed.
    pub origin: OriginIdentity,
    /// Socket of the origin view.
    pub socket: Option<String>,
    /// Sockets of former snapshot views that followed their merges: they serve the origin
    /// now.
    pub followed_sockets: Vec<String>,
    /// Those of them whose snapshots were read-only: they stay read-only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub read_only_sockets: Vec<String>,
    /// Sockets whose guests have turned their write caches off: they do not flush, so that
    /// each write must be durable.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub write_through_sockets: Vec<String>,
    pub control: Option<String>,
    /// The monitor socket (QMP) of the QEMU that runs the origin's guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qmp: Option<String>,
    /// A guest that was stopped for a rollback and may not run again yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped_guest: Option<StoppedGuest>,
    /// The answer to GET_ID, if one was given.
    pub serial: Option<String>,
    /// The block sizes that guests see, as far as they were given.
    #[serde(default, skip_serializing_if = "BlockSizes::is_default")]
    pub blocks: BlockSizes,
    /// Who may connect to the sockets that the daemon makes for front ends.
    #[serde(default, skip_serializing_if = "AccessRecord::is_default")]
    pub socket_access: AccessRecord,
    /// The same for its control socket.
    #[serde(default, skip_serializing_if = "AccessRecord::is_default")]
    pub control_access: AccessRecord,
    /// In the order of their creation.
    pub snapshots: Vec<SnapshotRecord>,
    pub merge: Option<MergeRecord>,
    pub rollback_at_reset: Option<RollbackRecord>,
}

/// Block sizes that were given, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockSizes {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logical: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub physical: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub discard_granularity: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub opt_io: Option<u32>,
}

impl BlockSizes {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Takes over those that `newer` has.
    pub fn update(&mut self, newer: &Self) {
        self.logical = newer.logical.or(self.logical);
        self.physical = newer.physical.or(self.physical);
        self.discard_granularity = newer.discard_granularity.or(self.discard_granularity);
        self.opt_io = newer.opt_io.or(self.opt_io);
    }
}

/// The mode of a socket for a group, unless another was given.
const OF_A_GROUP: u32 = 0o660;

/// Group and mode of sockets, as far as they were given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessRecord {
    /// Name or number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Permission bits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
}

impl AccessRecord {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// The permission bits that sockets have: a group can connect unless the mode forbids it.
    pub fn effective_mode(&self) -> u32 {
        let usual = match self.group {
            Some(_) => OF_A_GROUP,
            None => SocketAccess::default().mode,
        };
        self.mode.unwrap_or(usual)
    }

    /// Takes over what `newer` has.
    pub fn update(&mut self, newer: &Self) {
        self.group = newer.group.clone().or_else(|| self.group.take());
        self.mode = newer.mode.or(self.mode);
    }
}

/// The part of a mark that is compared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MarkedAs {
    pub volume: String,
    pub generation: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotRecord {
    pub spec: SnapshotSpec,
    /// False once it missed a copy-out; never true again.
    pub valid: bool,
    /// Length of its view in bytes: the origin's size when it was taken. Older files lack
    /// it; the length is then that of the recorded origin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<u64>,
    /// Identifies the snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Its COW, at the same moment as the origin's identity, or at its creation if that was
    /// later. Older files lack it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<StorageIdentity>,
    /// While the volume is served: where the writes are listed that were acknowledged and
    /// not flushed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unflushed: Option<UnflushedRecord>,
}

/// A merge in progress: the origin's content is incomplete without the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MergeRecord {
    pub snapshot: String,
    pub follow: bool,
    pub writes: WritePolicy,
    pub paused: bool,
    /// Bytes per second, 0: no limit.
    pub rate: u64,
}

/// A pending rollback, which waits for the guest's next reset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RollbackRecord {
    pub snapshot: String,
    /// Limit of the merge that follows, in bytes per second, 0: no limit.
    pub rate: u64,
    /// What counts as that reset.
    #[serde(default, skip_serializing_if = "ResetKind::is_machine")]
    pub reset: ResetKind,
    /// The monitor that reports resets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qmp: Option<String>,
    /// A snapshot that is taken at that reset, before the rollback. It is recorded together
    /// with the handover; while it is listed here, it is not taken yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<SnapshotSpec>,
}

/// A guest that was stopped through its VMM, so that its disk could be rolled back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoppedGuest {
    pub qmp: String,
    pub snapshot: String,
}

/// [`MergeWrites`] as it is written in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WritePolicy {
    Wait,
    Redirect,
}

impl From<MergeWrites> for WritePolicy {
    fn from(writes: MergeWrites) -> Self {
        match writes {
            MergeWrites::Wait => Self::Wait,
            MergeWrites::Redirect => Self::Redirect,
        }
    }
}

impl From<WritePolicy> for MergeWrites {
    fn from(policy: WritePolicy) -> Self {
        match policy {
            WritePolicy::Wait => Self::Wait,
            WritePolicy::Redirect => Self::Redirect,
        }
    }
}

impl VolumeState {
    /// A volume that was never served.
    pub fn new(origin: OriginIdentity) -> Self {
        Self {
            version: VERSION,
            volume: None,
            generation: 0,
            marked: None,
            home: None,
            running: false,
            guest_attached: false,
            origin,
            socket: None,
            followed_sockets: Vec::new(),
            read_only_sockets: Vec::new(),
            write_through_sockets: Vec::new(),
            control: None,
            qmp: None,
            stopped_guest: None,
            serial: None,
            blocks: BlockSizes::default(),
            socket_access: AccessRecord::default(),
            control_access: AccessRecord::default(),
            snapshots: Vec::new(),
            merge: None,
            rollback_at_reset: None,
        }
    }

    pub fn snapshot(&self, name: &str) -> Option<&SnapshotRecord> {
        self.snapshots.iter().find(|s| s.spec.name == name)
    }

    pub fn snapshot_mut(&mut self, name: &str) -> Option<&mut SnapshotRecord> {
        self.snapshots.iter_mut().find(|s| s.spec.name == name)
    }

    /// Drops a snapshot, with its merge or pending rollback.
    pub fn drop_snapshot(&mut self, name: &str) {
        self.snapshots.retain(|s| s.spec.name != name);
        self.merge.take_if(|m| m.snapshot == name);
        self.rollback_at_reset.take_if(|r| r.snapshot == name);
    }

    /// A guest can reach the origin.
    pub fn serves_origin(&self) -> bool {
        self.socket.is_some() || !self.followed_sockets.is_empty()
    }

    /// The guest at `socket` turns its write cache on or off.
    pub fn set_write_cache(&mut self, socket: &str, on: bool) {
        self.write_through_sockets.retain(|path| path != socket);
        if !on {
            self.write_through_sockets.push(socket.to_owned());
        }
    }

    /// The guest at `socket` has turned its write cache off.
    pub fn is_write_through(&self, socket: Option<&str>) -> bool {
        let mut sockets = self.write_through_sockets.iter();
        socket.is_some_and(|socket| sockets.any(|path| path == socket))
    }

    /// It holds nothing that a later start needs.
    pub fn is_blank(&self) -> bool {
        self.snapshots.is_empty()
            && self.merge.is_none()
            && self.followed_sockets.is_empty()
            && self.write_through_sockets.is_empty()
    }
}
