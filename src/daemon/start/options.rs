//! What `serve` was asked to do: plain data, checked by the command line for
//! form only. Whether the paths exist, fit together and agree with the state
//! file is for [`serve`](super::serve) to find out.

use std::os::fd::RawFd;
use std::path::PathBuf;

use crate::control::api::SnapshotSpec;
use crate::engine::MergeWrites;
use crate::io::IoEngine;

/// Where the front end of the origin (or merge) view is met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A Unix socket that the daemon creates and listens at.
    Path(PathBuf),
    /// An open descriptor of ours, connected to one front end or listening
    /// (QEMU's `--fd`). Nobody else uses it.
    Fd(RawFd),
}

/// Options of `serve`. Paths are absolute except where the user gave none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServeOptions {
    /// The backing file or block device.
    pub origin: PathBuf,
    /// `None`: no socket for the origin view (snapshots only, or as the state
    /// file says).
    pub endpoint: Option<Endpoint>,
    /// The origin is opened and served read-only, and locked shared.
    pub read_only: bool,
    /// What GET_ID answers, at most 20 bytes; `None`: derived from the origin.
    pub serial: Option<String>,
    /// Virtqueues per view, 1 ..= 64.
    pub num_queues: u16,
    /// In command-line order; names are unique.
    pub snapshots: Vec<SnapshotSpec>,
    /// Start with this snapshot handed over to the merge view.
    pub merge: Option<String>,
    /// `None`: as a merge under way has it recorded, else `wait`.
    pub merge_writes: Option<MergeWrites>,
    /// Control socket; `None`: no control interface.
    pub control: Option<PathBuf>,
    /// Monitor socket (QMP) of the origin's guest; `None`: as recorded, or none; an
    /// empty one: none any more.
    pub qmp: Option<PathBuf>,
    /// State file; `None`: the default place for this origin.
    pub state: Option<PathBuf>,
    pub io_engine: IoEngine,
    /// Go on although the origin was changed behind the volume's back.
    pub accept_changes: bool,
    /// Snapshots of the state file to invalidate and drop.
    pub forget: Vec<String>,
    /// Also those whose stores cannot be marked invalid.
    pub force: bool,
}
