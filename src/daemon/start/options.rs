//! The options of `serve`: plain data, of which the command line has checked the form
//! only. [`serve`](super::serve) checks whether the paths exist, fit together and agree
//! with the state file.

use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::time::Duration;

use crate::control::access::Access;
use crate::control::api::SnapshotSpec;
use crate::control::registry::Wish;
use crate::daemon::running::event_command::EventCommand;
use crate::daemon::state::{AccessRecord, BlockSizes};
use crate::engine::MergeWrites;
use crate::io::{IoEngine, Lock};
use crate::sandbox::SandboxOptions;

/// Where the front end of the origin (or merge) view connects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A Unix socket that the daemon creates and listens on.
    Path(PathBuf),
    /// An inherited descriptor, connected to one front end or listening (`--fd`). Nothing
    /// else in the process uses it.
    Fd(RawFd),
    /// A Unix socket at which the front end listens; the daemon connects to it.
    Connect(PathBuf),
    /// The listening socket that the service manager passes under this name.
    Passed(String),
}

/// Options of `serve`. Paths are absolute except where the user gave none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServeOptions {
    /// The backing file or block device.
    pub origin: PathBuf,
    /// `None`: as recorded in the state file, or no socket for the origin view.
    pub endpoint: Option<Endpoint>,
    /// The origin is opened and served read-only, and locked shared.
    pub read_only: bool,
    /// With `read_only`: the origin is locked against everybody else all the same, which takes
    /// the right to write it.
    pub exclusive: bool,
    /// The answer to GET_ID, at most 20 bytes; `None`: derived from the origin.
    pub serial: Option<String>,
    /// The block sizes that guests see; `None`: as recorded, or as suits the origin.
    pub blocks: BlockSizes,
    /// Who may connect to the sockets for front ends; `None` in it: as recorded, or the owner only.
    pub socket_access: AccessRecord,
    /// The same for the control socket.
    pub control_access: AccessRecord,
    /// Queues in the configuration space, 1 ..= 256.
    pub num_queues: u16,
    /// In command-line order; names are unique.
    pub snapshots: Vec<SnapshotSpec>,
    /// Of snapshots whose views are not served at a path; valid for this start only.
    pub snapshot_endpoints: Vec<(String, Endpoint)>,
    /// Start with this snapshot handed over to the merge view.
    pub merge: Option<String>,
    /// `None`: as recorded for a merge in progress, otherwise `wait`.
    pub merge_writes: Option<MergeWrites>,
    /// Control socket; `None`: no control interface.
    pub control: Option<PathBuf>,
    /// An inherited listening descriptor for the control interface instead. Nothing else
    /// in the process uses it.
    pub control_fd: Option<RawFd>,
    /// The service manager passes the control socket.
    pub control_passed: bool,
    /// There is no control interface, whatever the state file says.
    pub no_control: bool,
    /// Under this name the daemon is listed for its user, and has a control socket if none is
    /// given; `None`: it is not listed.
    pub listed_as: Option<Wish>,
    /// Who may change something through the control interface, besides root and the daemon's
    /// user.
    pub control_permission: Access,
    /// What is run on events.
    pub on_event: Option<EventCommand>,
    /// Where metrics are served over TCP, for this start only.
    pub metrics: Option<SocketAddr>,
    /// Monitor socket (QMP) of the origin's guest; `None`: as recorded, or none; empty:
    /// none from now on.
    pub qmp: Option<PathBuf>,
    /// State file; `None`: the default place for this origin.
    pub state: Option<PathBuf>,
    /// Control socket of the daemon whose guest is migrated here; `None`: the volume is
    /// opened at once.
    pub incoming: Option<PathBuf>,
    pub io_engine: IoEngine,
    /// Longest time that a queue polls before it sleeps; zero: it never polls.
    pub polling: Duration,
    /// Guest memory may be a file of any kind.
    pub any_memory: bool,
    /// Start although the origin or a COW has changed since the last daemon.
    pub accept_changes: bool,
    /// Snapshots of the state file to invalidate and drop.
    pub forget: Vec<String>,
    /// Drop them even if their stores cannot be marked invalid.
    pub force: bool,
    /// The rights that the daemon gives up.
    pub sandbox: SandboxOptions,
    /// Nothing is locked or bound, for [`look`](super::look::look).
    pub only_look: bool,
}

impl Default for ServeOptions {
    /// What `serve` does without options, but for the origin, which has to be named.
    fn default() -> Self {
        Self {
            origin: PathBuf::new(),
            endpoint: None,
            read_only: false,
            exclusive: false,
            serial: None,
            blocks: BlockSizes::default(),
            socket_access: AccessRecord::default(),
            control_access: AccessRecord::default(),
            num_queues: 64,
            snapshots: Vec::new(),
            snapshot_endpoints: Vec::new(),
            merge: None,
            merge_writes: None,
            control: None,
            control_fd: None,
            control_passed: false,
            no_control: false,
            listed_as: None,
            control_permission: Access::default(),
            on_event: None,
            metrics: None,
            qmp: None,
            state: None,
            incoming: None,
            io_engine: IoEngine::Auto,
            polling: Duration::from_micros(32),
            any_memory: false,
            sandbox: SandboxOptions::default(),
            accept_changes: false,
            forget: Vec::new(),
            force: false,
            only_look: false,
        }
    }
}

impl ServeOptions {
    /// The lock that a start takes on what it writes.
    pub const fn lock(&self) -> Lock {
        match self.only_look {
            true => Lock::Look,
            false => Lock::Exclusive,
        }
    }
}
