//! The thread that serves a view at its socket.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tracing::warn;

use super::back_channel::BackChannel;
use super::client::Caller;
use super::connection::{Ending, serve};
use super::counters::{ViewCounters, ViewTotals};
use super::front_end_link::FrontEndLink;
use super::handler::{Handler, ViewContext};
use super::lobby::Lobby;
use super::requests::SlowRequests;
use super::view_log::ViewLog;
use super::view_socket::{Socket, ViewSocket};
use super::watcher::WatchedView;
use super::{Backend, ViewConfig, ViewHooks};
use crate::event_flag::EventFlag;
use crate::sandbox::{self, Kind};
use crate::virtio_blk::{Capacity, ConfigSpace};
use crate::wait_set::{Interest, WaitSet};

/// Pause after a failed accept (out of descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// A view that is served. Dropping it stops it.
pub struct ViewServer {
    shared: Arc<Shared>,
    name: String,
    capacity: Capacity,
    space: Arc<ConfigSpace>,
    back_channel: Arc<BackChannel>,
    thread: Option<JoinHandle<()>>,
    /// Closed when the thread ends.
    ended: mpsc::Receiver<()>,
    watched: Arc<WatchedView>,
    counters: Arc<ViewCounters>,
    log: Arc<ViewLog>,
}

struct Shared {
    stop: Arc<EventFlag>,
    /// Front ends that wait until the one that is served leaves.
    waiting: Arc<AtomicUsize>,
    link: FrontEndLink,
}

/// What the thread waits for between two front ends.
struct Waits {
    for_a_front_end: WaitSet,
    for_a_stop: WaitSet,
}

impl Waits {
    fn new(lobby: &Lobby, stop: &EventFlag) -> io::Result<Self> {
        let (for_a_front_end, for_a_stop) = (WaitSet::new()?, WaitSet::new()?);
        for_a_front_end.add_set(0, lobby.events())?;
        for_a_front_end.add(1, stop, Interest::Readable)?;
        for_a_stop.add(0, stop, Interest::Readable)?;
        Ok(Self {
            for_a_front_end,
            for_a_stop,
        })
    }
}

impl ViewServer {
    /// Serves `config` on `socket` with a thread of its own, until it is stopped or, if
    /// the socket was passed connected, until the front end disconnects.
    pub fn start(
        socket: ViewSocket,
        config: ViewConfig,
        backend: Arc<dyn Backend>,
        hooks: Arc<dyn ViewHooks>,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            stop: Arc::new(EventFlag::new()?),
            waiting: Arc::default(),
            link: FrontEndLink::default(),
        });
        let theirs = Arc::clone(&shared);
        let (alive, ended) = mpsc::channel();
        let (capacity, name) = (config.device.capacity.clone(), config.name.clone());
        let back_channel = Arc::<BackChannel>::default();
        let space = ConfigSpace::new(config.device.clone());
        space.set_writeback(!config.write_through);
        let space = Arc::new(space);
        let watched = Arc::new(WatchedView::new(Arc::clone(&hooks)));
        let counters = Arc::<ViewCounters>::default();
        let log = Arc::new(ViewLog::of(&config.name));
        let view = ViewContext {
            space: Arc::clone(&space),
            back_channel: Arc::clone(&back_channel),
            config: Arc::new(config),
            backend,
            hooks,
            leave: Arc::clone(&shared.stop),
            log: Arc::clone(&log),
            watched: Some(Arc::clone(&watched)),
            counters: Arc::clone(&counters),
            last_left: false,
        };
        let thread = std::thread::Builder::new()
            .name(format!("view {}", view.config.name))
            .spawn(move || {
                sandbox::thread(Kind::Process);
                theirs.run(socket, view);
                drop(alive);
            })?;
        Ok(Self {
            shared,
            name,
            capacity,
            space,
            back_channel,
            thread: Some(thread),
            ended,
            watched,
            counters,
            log,
        })
    }

    /// The disk has `sectors` sectors from now on. Returns whether the front end was told, so
    /// that its guest sees it at once.
    pub fn resize(&self, sectors: u64) -> bool {
        self.capacity.set(sectors);
        self.back_channel.config_changed().unwrap_or_else(|e| {
            warn!(
                "view {}: the front end cannot be told of the new size: {e}",
                self.name
            );
            false
        })
    }

    /// Whether writes are durable when they complete, if the front end can know it.
    pub fn set_write_through(&self, on: bool) {
        self.space.set_writeback(!on);
    }

    /// The requests that take long.
    pub fn slow(&self) -> Option<SlowRequests> {
        self.watched.slow()
    }

    /// The front end's memory does not seem to be the guest's.
    pub fn is_memory_doubted(&self) -> bool {
        self.log.is_memory_doubted()
    }

    /// Lines about this view that were not written to the log.
    pub fn held_back_lines(&self) -> u64 {
        self.log.held_back()
    }

    /// What the queues have counted, of all front ends.
    pub fn totals(&self) -> ViewTotals {
        self.counters.totals()
    }

    /// Front ends that wait until the one that is served leaves.
    pub fn waiting(&self) -> usize {
        self.shared.waiting.load(Ordering::Acquire)
    }

    /// The front end that was served has hung up, or none is served.
    pub fn has_hung_up(&self) -> bool {
        self.shared.link.has_hung_up()
    }

    /// Whether the thread has ended by itself.
    pub fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Takes no new requests, finishes those under way (those that take too long are left
    /// to the next back end), closes the socket and removes its file. Blocks until then.
    pub fn stop(mut self) {
        self.shut_down();
    }

    /// Whether the thread ends by `deadline`; [`Self::stop`] does not block then.
    pub fn ends_by(&self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        !matches!(
            self.ended.recv_timeout(left),
            Err(mpsc::RecvTimeoutError::Timeout)
        )
    }

    /// Like [`Self::stop`], but does not wait; for stopping many views at once.
    pub fn request_stop(&self) {
        self.shared.stop.set();
    }

    fn shut_down(&mut self) {
        self.request_stop();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            warn!("a view's thread died");
        }
    }
}

impl Drop for ViewServer {
    fn drop(&mut self) {
        self.shut_down();
    }
}

impl Shared {
    fn run(&self, socket: ViewSocket, mut view: ViewContext) {
        match socket.into_inner() {
            Socket::Connected(stream) => {
                self.serve(stream, &view, None);
            }
            Socket::Listening { listener, file } => {
                self.listen(listener, &mut view);
                drop(file);
            }
            Socket::Connecting(path) => self.call(&path, &mut view),
        }
    }

    /// Connects to one front end after the other.
    fn call(&self, path: &Path, view: &mut ViewContext) {
        let mut caller = match Caller::new(path, &self.stop) {
            Ok(caller) => caller,
            Err(e) => {
                let name = &view.config.name;
                warn!("view {name}: cannot connect to a front end: {e}");
                return;
            }
        };
        while let Some(stream) = caller.next(&self.stop, view) {
            let ending = self.serve(stream, view, None);
            if ending == Ending::Stopped {
                break;
            }
            view.last_left = ending == Ending::Left;
        }
    }

    /// Serves one front end after the other.
    fn listen(&self, listener: UnixListener, view: &mut ViewContext) {
        let lobby = Lobby::new(listener, view.clone(), Arc::clone(&self.waiting));
        let prepared = lobby.and_then(|lobby| {
            let waits = Waits::new(&lobby, &self.stop)?;
            Ok((lobby, waits))
        });
        let (mut lobby, waits) = match prepared {
            Ok(prepared) => prepared,
            Err(e) => {
                let name = &view.config.name;
                warn!("view {name}: cannot wait for a front end: {e}");
                return;
            }
        };
        while let Some(stream) = self.accept(&mut lobby, &waits, view) {
            let ending = self.serve(stream, view, Some(&mut lobby));
            if ending == Ending::Stopped {
                break;
            }
            view.last_left = ending == Ending::Left;
        }
    }

    /// The next front end; `None` when stopped.
    fn accept(&self, lobby: &mut Lobby, waits: &Waits, view: &ViewContext) -> Option<UnixStream> {
        loop {
            if self.stop.is_set() {
                return None;
            }
            match lobby.first() {
                Ok(Some(stream)) => return Some(stream),
                Ok(None) => {
                    let _ = waits.for_a_front_end.wait(None);
                }
                Err(e) => {
                    let name = &view.config.name;
                    view.log
                        .warn(format_args!("view {name}: cannot accept a front end: {e}"));
                    let _ = waits.for_a_stop.wait(Some(ACCEPT_PAUSE));
                }
            }
        }
    }

    /// 1. The hook, 2. messages until the end, 3. all rings drained (without signals if the
    ///    front end has disconnected) and memory unmapped, 4. only then the hang-up, after
    ///    which the front end reads the rings, 5. the hook, 6. the next front end.
    fn serve(&self, stream: UnixStream, view: &ViewContext, lobby: Option<&mut Lobby>) -> Ending {
        let name = &view.config.name;
        view.log.begin_session();
        view.log
            .info(format_args!("view {name}: front end connected"));
        let stream = Arc::new(stream);
        self.link.set(Some(Arc::clone(&stream)));
        view.hooks.attached();
        let handler = match Handler::new(view.clone()) {
            Ok(handler) => Arc::new(Mutex::new(handler)),
            Err(e) => {
                self.link.set(None);
                drop(stream);
                view.hooks.detached();
                let ending = Ending::Protocol(e.to_string());
                view.log
                    .warn(format_args!("view {name}: connection closed: {ending}"));
                return ending;
            }
        };
        let ending = serve(&stream, &handler, &view.back_channel, &self.stop, lobby);
        view.back_channel.set(None);
        let mut rings = handler.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(ending, Ending::Left | Ending::MemoryGone) {
            rings.hang_up();
        } else {
            rings.stop_all();
        }
        drop(rings);
        drop(handler);
        self.link.set(None);
        drop(stream);
        match &ending {
            Ending::Left | Ending::Stopped => {
                view.log.info(format_args!("view {name}: {ending}"));
            }
            Ending::Stalled | Ending::MemoryGone | Ending::Protocol(_) => {
                view.log
                    .warn(format_args!("view {name}: connection closed: {ending}"));
            }
        }
        view.hooks.detached();
        ending
    }
}
