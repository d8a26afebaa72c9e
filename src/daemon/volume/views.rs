//! The sockets at which guests meet the volume.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

use super::live::LiveVolume;
use super::serials;
use crate::control::api::Seen;
use crate::control::events::Happening;
use crate::daemon::verbs::resets::seen;
use crate::engine::{Engine, PortRole, ViewId, Wake};
use crate::io::{Devices, Disk, IoEngine, open_disk};
use crate::vhost::{
    Backend, Requests, SocketError, Start, ViewConfig, ViewHooks, ViewServer, ViewSocket,
};
use crate::virtio_blk::BlkDevice;

/// Operations that one queue's disk has under way at once.
const DISK_DEPTH: u32 = 256;

/// What every view of a volume has in common.
#[derive(Clone, Debug)]
pub struct ViewSettings {
    pub io_engine: IoEngine,
    pub num_queues: u16,
    pub block_size: u32,
    /// Of the origin view; see [`serials`] for the others'.
    pub serial: String,
}

/// A view with its socket; dropping it ends it.
pub struct View {
    /// `None`: met at a descriptor.
    pub socket: Option<String>,
    pub read_only: bool,
    presence: Arc<Presence>,
    server: ViewServer,
}

/// What a view's hooks and its owner share.
#[derive(Debug, Default)]
struct Presence {
    attached: AtomicBool,
    /// Resets of this view's guest count for a deferred rollback.
    is_origin: AtomicBool,
    /// The guest's firmware, or its boot loader by means of that, uses the disk.
    in_firmware: AtomicBool,
    /// Rings that run.
    rings: AtomicUsize,
}

/// What a view is to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ViewDescription<'a> {
    pub id: ViewId,
    /// `None`: the origin's.
    pub snapshot: Option<&'a str>,
    /// It shows what the origin's view shows: its snapshot is being merged so.
    pub follows: bool,
    pub sectors: u64,
    pub read_only: bool,
    /// Most sectors of a discard; 0: none is offered.
    pub max_discard_sectors: u32,
}

impl View {
    /// Serves a view at `socket`, which is bound already.
    pub fn start(
        volume: &LiveVolume,
        description: ViewDescription<'_>,
        socket: ViewSocket,
        path: Option<String>,
    ) -> io::Result<Self> {
        let settings = volume.view_settings();
        let serial = serials::serial(&settings.serial, description.snapshot);
        let config = ViewConfig {
            name: description.snapshot.unwrap_or("origin").to_owned(),
            device: BlkDevice {
                capacity_sectors: description.sectors,
                block_size: settings.block_size,
                read_only: description.read_only,
                serial,
                num_queues: settings.num_queues,
                max_discard_sectors: description.max_discard_sectors,
            },
            max_queues: crate::vhost::DEFAULT_MAX_QUEUES.max(settings.num_queues),
        };
        let presence = Arc::new(Presence::default());
        presence.is_origin.store(
            description.id == ViewId::ORIGIN || description.follows,
            Ordering::Release,
        );
        let backend = ViewBackend {
            engine: volume.engine().clone(),
            devices: volume.devices().clone(),
            io_engine: settings.io_engine,
            view: description.id,
        };
        let hooks = Hooks {
            volume: volume.downgrade(),
            presence: presence.clone(),
            snapshot: description.snapshot.map(str::to_owned),
            socket: path.clone(),
        };
        let server = ViewServer::start(socket, config, Arc::new(backend), Arc::new(hooks))?;
        Ok(Self {
            socket: path,
            read_only: description.read_only,
            presence,
            server,
        })
    }

    /// A front end is connected.
    pub fn is_attached(&self) -> bool {
        self.presence.attached.load(Ordering::Acquire)
    }

    /// The guest is in its firmware or boot loader.
    pub fn is_in_firmware(&self) -> bool {
        self.is_attached() && self.presence.in_firmware.load(Ordering::Acquire)
    }

    /// Rings run.
    pub fn runs(&self) -> bool {
        self.presence.rings.load(Ordering::Acquire) > 0
    }

    /// From now on this view shows what the origin view shows.
    pub fn follow_origin(&self) {
        self.presence.is_origin.store(true, Ordering::Release);
    }

    /// The front end of a connected descriptor has left.
    pub fn is_finished(&self) -> bool {
        self.server.is_finished()
    }

    /// Begins what [`Self::stop`] waits for; for stopping many views at once.
    pub fn request_stop(&self) {
        self.server.request_stop();
    }

    /// Whether it has ended by `deadline`, once that was requested.
    pub fn ends_by(&self, deadline: Instant) -> bool {
        self.server.ends_by(deadline)
    }

    /// Drains what was accepted, disconnects the front end and removes the socket.
    pub fn stop(self) {
        self.server.stop();
    }
}

/// Binds a view's socket, so that what can go wrong goes wrong early.
pub fn bind(path: &str) -> Result<ViewSocket, SocketError> {
    ViewSocket::bind(Path::new(path))
}

struct ViewBackend {
    engine: Arc<Engine>,
    devices: Arc<Devices>,
    io_engine: IoEngine,
    view: ViewId,
}

impl Backend for ViewBackend {
    fn disk(&self) -> io::Result<Box<dyn Disk>> {
        let disk = open_disk(self.io_engine, self.devices.clone(), DISK_DEPTH)?;
        Ok(disk)
    }

    fn port(&self, slots: usize, wake: Arc<dyn Wake>) -> Box<dyn Requests> {
        Box::new(
            self.engine
                .open_port(PortRole::View(self.view), slots, wake),
        )
    }
}

struct Hooks {
    volume: Weak<LiveVolume>,
    presence: Arc<Presence>,
    snapshot: Option<String>,
    socket: Option<String>,
}

impl Hooks {
    fn tell(&self, what: impl FnOnce(Option<String>) -> Happening) {
        let is_origin = self.presence.is_origin.load(Ordering::Acquire);
        let name = self.snapshot.as_deref().filter(|_| !is_origin);
        if let Some(volume) = self.volume.upgrade() {
            volume.events.tell(name, what(self.socket.clone()));
        }
    }
}

impl ViewHooks for Hooks {
    fn attached(&self) {
        self.presence.in_firmware.store(false, Ordering::Release);
        self.presence.attached.store(true, Ordering::Release);
        self.tell(|socket| Happening::FrontEndConnected { socket });
    }

    fn detached(&self) {
        self.presence.attached.store(false, Ordering::Release);
        self.tell(|socket| Happening::FrontEndLeft { socket });
    }

    fn rings_start(&self, start: Start) {
        if let Some(seen) = seen(start) {
            let in_firmware = seen == Seen::Firmware;
            self.presence
                .in_firmware
                .store(in_firmware, Ordering::Release);
            self.tell(|socket| match seen {
                Seen::Firmware | Seen::NewGuest => Happening::GuestReset { socket, seen },
                _ => Happening::DriverStarted { socket, seen },
            });
        }
        // A snapshot's own guest does not reset the origin; it must not even
        // wait for the volume, whose lock is held while this view is stopped.
        if self.presence.is_origin.load(Ordering::Acquire)
            && let Some(volume) = self.volume.upgrade()
        {
            volume.rings_start(start);
        }
    }

    fn ring_started(&self) {
        self.presence.rings.fetch_add(1, Ordering::AcqRel);
    }

    fn ring_stopped(&self) {
        self.presence.rings.fetch_sub(1, Ordering::AcqRel);
    }
}
