//! The views of a volume, each with its socket.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::early::EarlyView;
use super::reset_rule::seen;
use super::serials;
use crate::control::api::{FailedRequests as Failed, GuestOperation, Seen, SlowIo, SnapshotSpec};
use crate::control::events::EventKind;
use crate::engine::{Engine, PortRole, RequestKind, ViewId, Wake};
use crate::io::{Devices, Disk, IoEngine, open_disk};
use crate::socket_access::SocketAccess;
use crate::vhost::{
    Backend, FailedRequests, Requests, SlowRequests, SocketError, Start, UNSHARED, ViewConfig,
    ViewHooks, ViewServer, ViewSocket, ViewTotals,
};
use crate::virtio_blk::{BlkDevice, Capacity, MAX_WRITE_ZEROES_SECTORS, Topology};

/// Operations that one queue's disk has in flight at a time.
const DISK_DEPTH: u32 = 256;

/// What all views of a volume have in common.
#[derive(Clone, Debug)]
pub struct ViewSettings {
    pub io_engine: IoEngine,
    pub polling: Duration,
    /// Guest memory may be a file of any kind.
    pub any_memory: bool,
    pub num_queues: u16,
    pub topology: Topology,
    /// Of the origin view; the snapshots' are derived from it (see [`serials`]).
    pub serial: String,
}

/// The volume, as its views use it.
pub trait ViewOwner: Send + Sync {
    fn engine(&self) -> &Arc<Engine>;
    fn devices(&self) -> &Arc<Devices>;
    fn view_settings(&self) -> &ViewSettings;
    /// Set once the volume was given to another daemon: no ring starts any more.
    fn released(&self) -> &Arc<AtomicBool>;
    /// Adds an event about a view's front end or guest to the log.
    fn publish_guest_event(&self, snapshot: Option<&str>, event: EventKind);
    /// The guest at `socket` turns its write cache on or off; it is recorded when this
    /// returns.
    fn record_write_cache(&self, socket: &str, on: bool) -> Result<(), String>;
    /// The guest at `socket` has turned its write cache off, under this daemon or an earlier
    /// one. A guest that comes from a daemon with other sockets may be any of that one's.
    fn is_write_through(&self, socket: Option<&str>, comes_from_elsewhere: bool) -> bool;
    /// The rings of one of the origin's views start. They start when this returns.
    fn origin_rings_start(&self, start: Start);
}

/// Where a view's front end connects.
pub enum Entrance {
    /// At a socket that nobody serves yet.
    Bound(ViewSocket),
    /// It may be connected already.
    Early(Box<EarlyView>),
}

impl Entrance {
    /// Where the front end listens, if it does.
    pub fn connects_to(&self) -> Option<&Path> {
        match self {
            Self::Bound(socket) => socket.connects_to(),
            Self::Early(early) => early.connects_to.as_deref(),
        }
    }
}

/// A view with its socket; dropping it stops it.
pub struct ServedView {
    /// `None`: a descriptor that was passed to the daemon, or the front end listens.
    pub socket: Option<String>,
    /// Where the front end listens, if the daemon connects to it.
    pub connects: Option<String>,
    pub read_only: bool,
    /// In messages and metrics: `origin`, or the snapshot whose view it is or was.
    pub name: String,
    presence: Arc<Presence>,
    server: ViewServer,
}

/// What a view shares with its hooks.
#[derive(Debug, Default)]
struct Presence {
    attached: AtomicBool,
    /// Front ends that have connected until now.
    sessions: AtomicU64,
    /// Resets of this view's guest count for a pending rollback.
    is_origin: AtomicBool,
    /// The guest is in its firmware, or in a boot loader that uses the firmware's driver.
    in_firmware: AtomicBool,
    /// Number of running rings.
    rings: AtomicUsize,
    /// The rings were stopped at the end of a migration's copy of the guest.
    migrated: AtomicBool,
}

/// What a view shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ViewDescription<'a> {
    pub id: ViewId,
    /// `None`: a view of the origin.
    pub snapshot: Option<&'a str>,
    /// It shows what the origin's view shows, because its snapshot is being merged
    /// with `follow`.
    pub follows: bool,
    pub sectors: u64,
    pub read_only: bool,
    /// Largest discard in sectors; 0: discard is not offered.
    pub max_discard_sectors: u32,
}

impl ServedView {
    /// Serves a view at `entrance`.
    pub fn start(
        owner: Weak<dyn ViewOwner>,
        description: ViewDescription<'_>,
        entrance: Entrance,
        path: Option<String>,
    ) -> io::Result<Self> {
        let volume = owner
            .upgrade()
            .ok_or_else(|| io::Error::other("the volume is closed"))?;
        let settings = volume.view_settings();
        let comes_from_elsewhere = matches!(entrance, Entrance::Early(_));
        let write_through = volume.is_write_through(path.as_deref(), comes_from_elsewhere);
        if let (true, true, Some(path)) = (comes_from_elsewhere, write_through, &path) {
            let recorded = volume.record_write_cache(path, false);
            recorded.map_err(io::Error::other)?;
        }
        let config = config(settings, &description, write_through);
        let connects = entrance
            .connects_to()
            .map(|path| path.display().to_string());
        let presence = Arc::new(Presence::default());
        presence.is_origin.store(
            description.id == ViewId::ORIGIN || description.follows,
            Ordering::Release,
        );
        let backend = ViewBackend {
            engine: volume.engine().clone(),
            devices: volume.devices().clone(),
            io_engine: settings.io_engine,
            polling: settings.polling,
            view: description.id,
            released: volume.released().clone(),
        };
        let hooks = Hooks {
            owner,
            presence: presence.clone(),
            snapshot: description.snapshot.map(str::to_owned),
            socket: path.clone().or_else(|| connects.clone()),
        };
        let (backend, hooks) = (Arc::new(backend), Arc::new(hooks));
        let server = match entrance {
            Entrance::Bound(socket) => ViewServer::start(socket, config, backend, hooks)?,
            Entrance::Early(early) => early.open(&config, backend, hooks)?,
        };
        Ok(Self {
            socket: path,
            connects,
            read_only: description.read_only,
            name: description.snapshot.unwrap_or("origin").to_owned(),
            presence,
            server,
        })
    }

    /// Where front ends connect, or listen.
    pub fn place(&self) -> &str {
        let path = self.socket.as_deref().or(self.connects.as_deref());
        path.unwrap_or("the given descriptor")
    }

    /// A front end is connected.
    pub fn is_attached(&self) -> bool {
        self.presence.attached.load(Ordering::Acquire)
    }

    /// Its front end has hung up, and its session is about to end.
    pub fn is_leaving(&self) -> bool {
        self.is_attached() && self.server.has_hung_up()
    }

    /// Front ends that have connected until now.
    pub fn sessions(&self) -> u64 {
        self.presence.sessions.load(Ordering::Relaxed)
    }

    /// Lines about its guest and front end that were not written to the log.
    pub fn held_back_lines(&self) -> u64 {
        self.server.held_back_lines()
    }

    /// Front ends that wait until the one that is connected leaves.
    pub fn waiting(&self) -> usize {
        self.server.waiting()
    }

    /// The requests of its guest that take long.
    pub fn slow_io(&self) -> Option<SlowIo> {
        self.server.slow().map(slow_io)
    }

    /// What keeps its guest from using it: its memory is not here.
    pub fn hint(&self) -> Option<String> {
        let doubted = self.is_attached() && self.server.is_memory_doubted();
        doubted.then(|| format!("no request of the guest arrives; {UNSHARED}"))
    }

    /// What its guests have done.
    pub fn totals(&self) -> ViewTotals {
        self.server.totals()
    }

    /// The guest is in its firmware or boot loader.
    pub fn is_in_firmware(&self) -> bool {
        self.is_attached() && self.presence.in_firmware.load(Ordering::Acquire)
    }

    /// At least one ring runs.
    pub fn is_running(&self) -> bool {
        self.presence.rings.load(Ordering::Acquire) > 0
    }

    /// Its guest, if there is one, has been copied to another machine or process, and does
    /// not run here.
    pub fn has_let_go(&self) -> bool {
        let migrated = self.presence.migrated.load(Ordering::Acquire);
        !self.is_running() && (!self.is_attached() || migrated)
    }

    /// From now on this view shows what the origin view shows.
    pub fn follow_origin(&self) {
        self.presence.is_origin.store(true, Ordering::Release);
    }

    /// Shows a larger disk, and tells the front end. Returns whether it was told; a front
    /// end that has no channel for it sees the size when it connects next.
    pub fn resize(&self, sectors: u64) -> bool {
        self.server.resize(sectors)
    }

    /// The front end of a connected descriptor has left.
    pub fn is_finished(&self) -> bool {
        self.server.is_finished()
    }

    /// Begins what [`Self::stop`] waits for, so that many views can stop at once.
    pub fn request_stop(&self) {
        self.server.request_stop();
    }

    /// Whether it has ended by `deadline`, after [`Self::request_stop`].
    pub fn ends_by(&self, deadline: Instant) -> bool {
        self.server.ends_by(deadline)
    }

    /// Drains the accepted requests, disconnects the front end and removes the socket.
    pub fn stop(self) {
        self.server.stop();
    }
}

/// What a view's front end sees, and its limits.
pub fn config(
    settings: &ViewSettings,
    description: &ViewDescription<'_>,
    write_through: bool,
) -> ViewConfig {
    ViewConfig {
        name: description.snapshot.unwrap_or("origin").to_owned(),
        device: BlkDevice {
            capacity: Capacity::new(description.sectors),
            topology: settings.topology,
            read_only: description.read_only,
            serial: serials::serial(&settings.serial, description.snapshot),
            num_queues: settings.num_queues,
            max_discard_sectors: description.max_discard_sectors,
        },
        max_queues: crate::vhost::MAX_QUEUES,
        write_through,
        any_memory: settings.any_memory,
    }
}

/// The largest discard of a snapshot's own view in sectors; 0: it has none. A discard zeroes
/// the data in the store, so it has the limits of a write of zeroes.
pub fn max_discard_sectors(spec: &SnapshotSpec) -> u32 {
    match spec.discard_zeroes_cow {
        Some(true) => MAX_WRITE_ZEROES_SECTORS,
        Some(false) | None => 0,
    }
}

/// Binds a view's socket before the view starts, so that errors are found early.
pub fn bind(path: &str, access: SocketAccess) -> Result<ViewSocket, SocketError> {
    ViewSocket::bind_for(Path::new(path), access)
}

struct ViewBackend {
    engine: Arc<Engine>,
    devices: Arc<Devices>,
    io_engine: IoEngine,
    polling: Duration,
    view: ViewId,
    released: Arc<AtomicBool>,
}

impl Backend for ViewBackend {
    fn disk(&self) -> io::Result<Box<dyn Disk>> {
        if self.released.load(Ordering::SeqCst) {
            return Err(io::Error::other(
                "the disk was given to another daemon, which the guest was migrated to",
            ));
        }
        let disk = open_disk(self.io_engine, self.devices.clone(), DISK_DEPTH)?;
        Ok(disk)
    }

    fn port(&self, slots: usize, wake: Arc<dyn Wake>) -> Box<dyn Requests> {
        Box::new(
            self.engine
                .open_port(PortRole::View(self.view), slots, wake),
        )
    }

    fn polling(&self) -> Duration {
        self.polling
    }
}

struct Hooks {
    owner: Weak<dyn ViewOwner>,
    presence: Arc<Presence>,
    snapshot: Option<String>,
    socket: Option<String>,
}

impl Hooks {
    fn publish(&self, event: impl FnOnce(Option<String>) -> EventKind) {
        let is_origin = self.presence.is_origin.load(Ordering::Acquire);
        let name = self.snapshot.as_deref().filter(|_| !is_origin);
        if let Some(owner) = self.owner.upgrade() {
            owner.publish_guest_event(name, event(self.socket.clone()));
        }
    }
}

impl ViewHooks for Hooks {
    fn attached(&self) {
        self.presence.in_firmware.store(false, Ordering::Release);
        self.presence.migrated.store(false, Ordering::Release);
        self.presence.attached.store(true, Ordering::Release);
        self.presence.sessions.fetch_add(1, Ordering::Relaxed);
        self.publish(|socket| EventKind::FrontEndConnected { socket });
    }

    fn detached(&self) {
        self.presence.attached.store(false, Ordering::Release);
        self.publish(|socket| EventKind::FrontEndLeft { socket });
    }

    fn front_end_waits(&self) {
        self.publish(|socket| EventKind::FrontEndWaits { socket });
    }

    fn rings_start(&self, start: Start) {
        if let Some(seen) = seen(start) {
            let in_firmware = seen == Seen::Firmware;
            self.presence
                .in_firmware
                .store(in_firmware, Ordering::Release);
            self.publish(|socket| match seen {
                Seen::Firmware | Seen::NewGuest => EventKind::GuestReset { socket, seen },
                Seen::Boot | Seen::DriverRestart | Seen::Unclear | Seen::Program => {
                    EventKind::DriverStarted { socket, seen }
                }
            });
        }
        // The guest of a snapshot does not reset the origin. It must not even wait for
        // the volume, because a thread that stops this view holds the volume's lock.
        if self.presence.is_origin.load(Ordering::Acquire)
            && let Some(owner) = self.owner.upgrade()
        {
            owner.origin_rings_start(start);
        }
    }

    fn write_cache(&self, on: bool) -> Result<(), String> {
        match (&self.socket, self.owner.upgrade()) {
            (Some(socket), Some(owner)) => owner.record_write_cache(socket, on),
            // A front end that was given a descriptor cannot come back to another daemon.
            (None, _) | (_, None) => Ok(()),
        }
    }

    fn ring_started(&self) {
        self.presence.migrated.store(false, Ordering::Release);
        self.presence.rings.fetch_add(1, Ordering::AcqRel);
    }

    fn ring_stopped(&self, migrating: bool) {
        self.presence.migrated.store(migrating, Ordering::Release);
        self.presence.rings.fetch_sub(1, Ordering::AcqRel);
    }

    fn slow(&self, slow: SlowRequests) {
        let io = slow_io(slow);
        let view = self.snapshot.as_deref().unwrap_or("origin");
        tracing::warn!("view {view}: {io}");
        self.publish(|socket| EventKind::IoSlow { socket, io });
    }

    fn failed(&self, failed: FailedRequests) {
        let io = Failed {
            requests: failed.count,
            operation: operation(failed.kind),
            sector: failed.sector,
            error: failed.error.map(|errno| errno.to_string()),
        };
        let view = self.snapshot.as_deref().unwrap_or("origin");
        tracing::error!("view {view}: {io}");
        self.publish(|socket| EventKind::IoFailed { socket, io });
    }

    fn slow_ended(&self, lasted: Duration) {
        let seconds = lasted.as_secs();
        let view = self.snapshot.as_deref().unwrap_or("origin");
        tracing::warn!("view {view}: no request takes long any more; the oldest took {seconds} s");
        self.publish(|socket| EventKind::IoSlowEnded { socket, seconds });
    }
}

fn operation(kind: RequestKind) -> GuestOperation {
    match kind {
        RequestKind::Read => GuestOperation::Read,
        RequestKind::Write { .. } => GuestOperation::Write,
        RequestKind::Flush => GuestOperation::Flush,
        RequestKind::Discard => GuestOperation::Discard,
    }
}

/// As the status and the events show it.
fn slow_io(slow: SlowRequests) -> SlowIo {
    SlowIo {
        requests: slow.count,
        seconds: slow.oldest.as_secs(),
        operation: operation(slow.kind),
        sector: slow.sector,
    }
}
