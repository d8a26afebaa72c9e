//! A start that waits for another daemon to let go of the volume, because the guest is being
//! migrated from there.
//!
//! QEMU at the destination connects when it starts and asks for the disk's size and features,
//! while the guest still runs at the source and the source's daemon has everything locked.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::access::Access;
use super::blocks;
use super::confine::{check, needs};
use super::options::{Endpoint, ServeOptions};
use super::preflight::{Checked, state_path};
use super::sockets::{announce, open_endpoint, place};
use crate::control::api::SnapshotSpec;
use crate::control::{Client, ClientError};
use crate::daemon::identity::OriginIdentity;
use crate::daemon::running::signals::Signals;
use crate::daemon::state::VolumeState;
use crate::daemon::volume::early::{EarlyView, Gate};
use crate::daemon::volume::serials;
use crate::daemon::volume::views::{self, ViewDescription, ViewSettings};
use crate::daemon::{DaemonError, waiting};
use crate::engine::ViewId;
use crate::io::{BlockFile, Claim, Lock, OpenOptions};
use crate::sandbox::Sandbox;
use crate::supervisor;
use crate::units::SECTOR_SIZE;
use crate::vhost::ViewSocket;
use crate::virtio_blk::MAX_DISCARD_SECTORS;
use crate::wait_set::{Interest, WaitSet};

/// How long the other daemon may take to end after it has agreed. It waits at most for a
/// second for its guests, but also for its disks to be flushed.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pause between two attempts to lock the files.
const PAUSE: Duration = Duration::from_millis(20);

/// The views of a volume that another daemon has.
pub struct Incoming {
    gate: Arc<Gate>,
    views: Vec<EarlyView>,
}

/// Why the volume could not be had.
enum Refusal {
    /// The next ring that starts may have more luck.
    ForNow(String),
    ForGood(DaemonError),
}

impl Incoming {
    /// Serves the views for which the options name sockets. Nothing is locked or written,
    /// and only what front ends ask for is read.
    ///
    /// The `sandbox` is entered before there are threads, so that everything that is opened later
    /// takes the rights that are left.
    pub fn open(options: &ServeOptions, sandbox: Option<&Sandbox>) -> Result<Self, DaemonError> {
        let failed = |e| DaemonError::system("serve a view before its volume is there", e);
        let gate = Gate::new().map_err(failed)?;
        let mut views = Vec::new();
        let seen = Seen::look(options)?;
        if let Some(sandbox) = sandbox {
            sandbox.enter(&needs(&seen.access))?;
        }
        if let Some(endpoint) = &options.endpoint {
            let socket = open_endpoint(endpoint, "--", seen.access.views)?;
            let place = place_of(&socket, endpoint);
            let config = views::config(&seen.settings, &seen.origin(options), false);
            views.push(EarlyView::start(&gate, None, config, socket).map_err(failed)?);
            announce("origin view", &place);
        }
        for spec in &options.snapshots {
            let mut own = options.snapshot_endpoints.iter();
            let own = own
                .find(|(of, _)| *of == spec.name)
                .map(|(_, own)| own.clone());
            let path = spec.socket.as_ref().map(|path| Endpoint::Path(path.into()));
            let Some(endpoint) = own.or(path) else {
                continue;
            };
            let what = format!("snapshot {}: ", spec.name);
            let socket = open_endpoint(&endpoint, &what, seen.access.views)?;
            let place = place_of(&socket, &endpoint);
            let config = views::config(&seen.settings, &seen.snapshot(spec), false);
            let name = Some(spec.name.clone());
            views.push(EarlyView::start(&gate, name, config, socket).map_err(failed)?);
            announce(&format!("snapshot {}", spec.name), &place);
        }
        if views.is_empty() {
            return Err(DaemonError::Refused(
                "--incoming waits for a guest, and no socket is named for one: give --socket-path, \
                 or a --snapshot with socket="
                    .to_owned(),
            ));
        }
        supervisor::ready("waiting for a guest that is migrated here");
        Ok(Self { gate, views })
    }

    /// Waits until a guest wants the disk, and takes the volume over from the daemon at
    /// `from`. `None`: a signal came first.
    pub fn take_over(
        self,
        options: &ServeOptions,
        from: &Path,
        signals: &Signals,
        sandbox: Option<&Sandbox>,
    ) -> Result<Option<(Checked, Self)>, DaemonError> {
        tracing::info!(
            "waiting for a guest that is migrated from the daemon at {}",
            from.display()
        );
        let checked = self.wait_for_volume(options, from, signals, sandbox)?;
        Ok(checked.map(|checked| (checked, self)))
    }

    fn wait_for_volume(
        &self,
        options: &ServeOptions,
        from: &Path,
        signals: &Signals,
        sandbox: Option<&Sandbox>,
    ) -> Result<Option<Checked>, DaemonError> {
        let waits = self.waits(signals);
        let waits = waits.map_err(|e| DaemonError::system("wait for a guest", e))?;
        loop {
            if signals.count() > 0 {
                tracing::info!("stopping; the disk was not touched");
                return Ok(None);
            }
            self.gate.wanted.clear();
            if !self.gate.is_wanted() {
                let waited = signals.listen(|| waits.wait(None));
                waited
                    .map_err(|e| DaemonError::system("wait for a guest", e))?
                    .ok();
                continue;
            }
            match self.attempt(options, from, signals, sandbox) {
                Ok(checked) => return Ok(checked),
                Err(Refusal::ForNow(reason)) => {
                    tracing::warn!("a guest cannot start: {reason}");
                    self.gate.refuse(&reason);
                }
                Err(Refusal::ForGood(error)) => return Err(error),
            }
        }
    }

    fn waits(&self, signals: &Signals) -> io::Result<WaitSet> {
        let waits = WaitSet::new()?;
        waits.add(0, signals, Interest::Readable)?;
        waits.add(1, &self.gate.wanted, Interest::Readable)?;
        Ok(waits)
    }

    /// Order: 1 the files are claimed, so that nobody else gets them when 3 has happened → 2 the
    /// other daemon is asked, and stops → 3 its locks are gone, so that its state file is final → 4
    /// everything is locked and checked, as at every start.
    fn attempt(
        &self,
        options: &ServeOptions,
        from: &Path,
        signals: &Signals,
        sandbox: Option<&Sandbox>,
    ) -> Result<Option<Checked>, Refusal> {
        let place = from.display();
        let _claim = claim(options);
        match Client::new(from).and_then(|client| client.release()) {
            Ok(()) => tracing::info!("the daemon at {place} lets go of the disk"),
            Err(error @ ClientError::NoDaemon { .. }) => {
                tracing::warn!("{error}; the disk is taken over if nobody has it");
            }
            // It may have agreed.
            Err(error @ (ClientError::Lost { .. } | ClientError::Slow { .. })) => {
                tracing::warn!("{error}");
            }
            Err(error) => {
                return Err(Refusal::ForNow(format!(
                    "the daemon at {place} keeps the disk: {error}"
                )));
            }
        }
        let _waiting = waiting::on(format!("the daemon at {place} to end"));
        let deadline = Instant::now() + PATIENCE;
        loop {
            match check(options, &self.views, sandbox) {
                Ok(checked) => {
                    tracing::info!("the disk is taken over");
                    return Ok(Some(checked));
                }
                Err(error) if !error.is_in_use() => return Err(Refusal::ForGood(error)),
                Err(error) if Instant::now() > deadline => {
                    return Err(Refusal::ForNow(error.to_string()));
                }
                Err(_) if signals.count() > 0 => return Ok(None),
                Err(_) => {
                    let slept = signals.listen(|| std::thread::sleep(PAUSE));
                    slept.map_err(|e| {
                        Refusal::ForGood(DaemonError::system("wait for signals", e))
                    })?;
                }
            }
        }
    }

    /// The views, for a volume that is there.
    pub fn into_views(self) -> Vec<EarlyView> {
        self.views
    }
}

/// Claims the origin and all COWs of the volume, as far as they are known.
fn claim(options: &ServeOptions) -> Claim {
    let recorded = state_path(options).ok().flatten();
    let recorded = recorded.and_then(|path| VolumeState::peek(&path));
    let recorded = recorded.iter().flat_map(|state| &state.snapshots);
    let cows = recorded
        .map(|record| &record.spec)
        .chain(&options.snapshots);
    let cows = cows.map(|spec| Path::new(&spec.cow));
    Claim::on(std::iter::once(options.origin.as_path()).chain(cows))
}

/// Where front ends find a view, or it finds them.
fn place_of(socket: &ViewSocket, endpoint: &Endpoint) -> String {
    let path = match endpoint {
        Endpoint::Path(path) => Some(path.to_string_lossy()),
        Endpoint::Fd(_) | Endpoint::Connect(_) | Endpoint::Passed(_) => None,
    };
    place(socket.connects_to(), path.as_deref())
}

/// What front ends may know before the volume is there.
struct Seen {
    settings: ViewSettings,
    sectors: u64,
    /// As the other daemon has recorded it until now.
    recorded: Option<VolumeState>,
    access: Access,
}

impl Seen {
    fn look(options: &ServeOptions) -> Result<Self, DaemonError> {
        let open = OpenOptions {
            lock: Lock::None,
            ..OpenOptions::read_only()
        };
        let file = BlockFile::open(&options.origin, open)
            .map_err(|e| DaemonError::Refused(format!("origin {e}")))?;
        let identity = OriginIdentity::of_open(&file)
            .map_err(|e| DaemonError::system("identify the origin", e))?;
        let recorded = state_path(options)?.and_then(|path| VolumeState::peek(&path));
        let serial = options.serial.clone();
        let serial = serial.or_else(|| recorded.as_ref()?.serial.clone());
        let mut state = recorded.clone();
        let state = state.get_or_insert_with(|| VolumeState::new(identity.clone()));
        state.blocks.update(&options.blocks);
        state.socket_access.update(&options.socket_access);
        state.control_access.update(&options.control_access);
        let access = Access::resolve(state).map_err(|e| DaemonError::Refused(e.to_string()))?;
        let origin = blocks::Origin {
            path: &identity.path,
            size: file.sectors() * SECTOR_SIZE,
            block_size: file.block_size(),
            limits: file.limits(),
        };
        let topology =
            blocks::topology(origin, state).map_err(|e| DaemonError::Refused(e.to_string()))?;
        Ok(Self {
            settings: ViewSettings {
                io_engine: options.io_engine,
                polling: options.polling,
                any_memory: options.any_memory,
                num_queues: options.num_queues,
                topology,
                serial: serial.unwrap_or_else(|| serials::of_path(&identity.path)),
            },
            sectors: file.sectors(),
            recorded,
            access,
        })
    }

    const fn origin(&self, options: &ServeOptions) -> ViewDescription<'static> {
        ViewDescription {
            id: ViewId::ORIGIN,
            snapshot: None,
            follows: false,
            sectors: self.sectors,
            read_only: options.read_only,
            max_discard_sectors: MAX_DISCARD_SECTORS,
        }
    }

    /// `asked`: what the options say of the snapshot.
    fn snapshot<'a>(&self, asked: &'a SnapshotSpec) -> ViewDescription<'a> {
        let recorded = self.recorded.as_ref();
        let recorded = recorded.and_then(|state| state.snapshot(&asked.name));
        let mut spec = asked.clone();
        if let Some(record) = recorded {
            spec.read_only = spec.read_only.or(record.spec.read_only);
            let discards = spec.discard_zeroes_cow.or(record.spec.discard_zeroes_cow);
            spec.discard_zeroes_cow = discards;
        }
        let length = recorded.and_then(|record| record.length);
        ViewDescription {
            // Has no meaning before the volume is there.
            id: ViewId::ORIGIN,
            snapshot: Some(&asked.name),
            follows: false,
            sectors: length.map_or(self.sectors, |length| length / SECTOR_SIZE),
            read_only: spec.is_read_only(),
            max_discard_sectors: views::max_discard_sectors(&spec),
        }
    }
}
