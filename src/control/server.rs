//! The control thread: it accepts connections and answers one request on each.
//!
//! Everything runs on one thread with its own single-threaded runtime, except the calls to
//! the [`Volume`], which may wait for a disk: those that change something are carried out
//! one after the other, in the order in which they arrive completely (`verbs.rs`), and the
//! status beside them.
//!
//! A connection serves one request and is closed: no client can keep one of the
//! [`CONNECTIONS_MAX`] connections for longer than [`CONNECTION_TIMEOUT`], except for the few
//! that follow events and read them.

use std::convert::Infallible;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::timeout;

use super::access::{Access, is_trusted};
use super::api::Volume;
use super::follow::{Connection, Followers, STALL_TIMEOUT};
use super::malformed::Guarded;
use super::passing::Passed;
use super::peer::Peer;
use super::routes::{self, Context};
use super::socket::{BoundSocket, SocketError};
use super::verbs::Verbs;
use crate::sandbox::{self, Kind};

/// Most connections at a time; others wait to be accepted.
pub const CONNECTIONS_MAX: usize = 32;
/// How long a client may take to send a request's head.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest life of a connection: head, body and reading the answer.
pub const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause after a failed accept, for instance if descriptors are exhausted.
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a stop waits for the call that is being carried out.
const CALL_PATIENCE: Duration = Duration::from_secs(5);
/// How long a stop waits until answers are written.
const ANSWER_PATIENCE: Duration = Duration::from_millis(200);
/// How long a thread for calls is kept without one.
pub(super) const IDLE_THREAD: Duration = Duration::from_millis(100);
/// How often it is looked whether a client has left.
const HANG_UP_INTERVAL: Duration = Duration::from_secs(1);
/// Largest head of a request in bytes.
pub(super) const HEAD_MAX: usize = 16 << 10;

/// The running control interface; dropping it stops it.
#[derive(Debug)]
pub struct ControlServer {
    socket: Option<BoundSocket>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    verbs: Verbs,
    runtime: Handle,
}

/// What all connections use.
#[derive(Clone)]
struct Shared {
    context: Context,
    /// A permit for each connection whose request has arrived.
    answering: Arc<Semaphore>,
}

impl ControlServer {
    /// Listens at `path` (mode 0600) and answers for `volume` on a new thread.
    ///
    /// # Errors
    /// There is a live socket or another file at `path`, or a system call failed.
    pub fn start(path: &Path, volume: Arc<dyn Volume>) -> Result<Self, SocketError> {
        Self::start_on(BoundSocket::bind(path)?, volume, Access::default())
    }

    /// Answers for `volume` on a new thread at a socket that was bound before; `access` says
    /// who may change something.
    ///
    /// # Errors
    /// A system call failed.
    pub fn start_on(
        socket: BoundSocket,
        volume: Arc<dyn Volume>,
        access: Access,
    ) -> Result<Self, SocketError> {
        let context = Context {
            volume,
            followers: Followers::new(STALL_TIMEOUT),
            verbs: Verbs::default(),
            access,
        };
        Self::start_with(socket, context)
    }

    pub(super) fn start_with(socket: BoundSocket, context: Context) -> Result<Self, SocketError> {
        let path = socket.path().to_owned();
        let failed = |step| {
            let path = path.clone();
            move |source| SocketError::Io { path, step, source }
        };
        let listener = socket.listener()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .thread_keep_alive(IDLE_THREAD)
            .on_thread_start(|| sandbox::thread(Kind::Process))
            .build()
            .map_err(failed("start the control thread's runtime"))?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        let verbs = context.verbs.clone();
        let shared = Shared {
            context,
            answering: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
        };
        let thread = std::thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || {
                sandbox::thread(Kind::Process);
                runtime.block_on(run(listener, shared, stopped));
                // A call that waits for a disk is left behind.
                runtime.shutdown_timeout(CALL_PATIENCE);
            })
            .map_err(failed("start the control thread"))?;
        Ok(Self {
            socket: Some(socket),
            stop: Some(stop),
            thread: Some(thread),
            verbs,
            runtime: handle,
        })
    }

    /// A number that the control thread raises every `interval` while it is able to answer.
    pub fn pulse(&self, interval: Duration) -> Arc<AtomicU64> {
        let pulse = Arc::<AtomicU64>::default();
        let theirs = Arc::clone(&pulse);
        self.runtime.spawn(async move {
            loop {
                tokio::time::sleep(interval).await;
                theirs.fetch_add(1, Ordering::Relaxed);
            }
        });
        pulse
    }

    /// Accepts no more requests, waits for the one that is being carried out (but for no
    /// longer than 5 seconds), and removes the socket. Returns the call that has not ended
    /// by then. Must not be called by the volume's own methods.
    pub fn stop(self) -> Option<String> {
        let verbs = self.verbs.clone();
        drop(self);
        verbs.running()
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        // The path is removed first, so that a daemon that starts now does not find it in use.
        self.socket = None;
        if let Some(stop) = self.stop.take() {
            // An error means that the thread has ended already.
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the control thread panicked");
        }
    }
}

async fn run(
    listener: std::os::unix::net::UnixListener,
    shared: Shared,
    stopped: oneshot::Receiver<()>,
) {
    let listener = match UnixListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "cannot poll the control socket"),
    };
    tokio::select! {
        _ = stopped => {}
        () = accept(&listener, &shared) => {}
    }
    shared.context.followers.farewell().await;
    // Whoever asked for the stop gets the answer.
    let all = u32::try_from(CONNECTIONS_MAX).unwrap_or(u32::MAX);
    let _ = timeout(ANSWER_PATIENCE, shared.answering.acquire_many(all)).await;
}

async fn accept(listener: &UnixListener, shared: &Shared) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    // This fails only if the semaphore is closed, which never happens.
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let shared = shared.clone();
                tokio::spawn(async move {
                    let _place = place;
                    serve(stream, shared).await;
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a control connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve(stream: UnixStream, shared: Shared) {
    let peer = match Peer::of(&stream) {
        Ok(peer) => peer,
        Err(error) => return tracing::warn!(%error, "a control connection has no user"),
    };
    let watched = stream.as_fd().try_clone_to_owned();
    let patience = Arc::new(Connection::new(CONNECTION_TIMEOUT));
    let ours = Arc::clone(&patience);
    // Held until the answer is written. A connection has one request.
    let held: Arc<Mutex<Option<OwnedSemaphorePermit>>> = Arc::default();
    let asked = Arc::new(AtomicBool::new(false));
    let passed = Passed::default();
    // The lock of an open file is that of everybody who has its descriptor.
    let taken = is_trusted(peer).then(|| passed.clone());
    let stream = Guarded::new(stream, Arc::clone(&asked), taken);
    let service = service_fn(move |request| {
        let (shared, ours, passed) = (shared.clone(), ours.clone(), passed.clone());
        asked.store(true, Ordering::Release);
        let permit = Arc::clone(&shared.answering).try_acquire_owned().ok();
        *held.lock().unwrap_or_else(PoisonError::into_inner) = permit;
        let from = (peer, passed);
        async move { Ok::<_, Infallible>(routes::answer(&shared.context, from, &ours, request).await) }
    });
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    let refused = async {
        if let Err(error) = (&mut connection).await {
            tracing::debug!(%error, "control connection was lost");
            connection.into_parts().io.into_inner().refuse(&error).await;
        }
    };
    tokio::select! {
        () = refused => {}
        () = patience.expired() => tracing::debug!("control connection took too long"),
        () = hung_up(watched) => tracing::debug!("control client has left"),
    }
}

/// Returns when the client has closed both directions. A client that closed the first one before,
/// and then leaves while nothing is sent to it, is noticed by nothing else.
async fn hung_up(watched: std::io::Result<OwnedFd>) {
    let Ok(socket) = watched else {
        return std::future::pending().await;
    };
    loop {
        tokio::time::sleep(HANG_UP_INTERVAL).await;
        let mut state = [PollFd::new(&socket, PollFlags::empty())];
        let looked = poll(&mut state, Some(&Timespec::default()));
        let [state] = state;
        if looked.is_ok() && state.revents().contains(PollFlags::HUP) {
            return;
        }
    }
}

#[cfg(any(test, feature = "fuzzing"))]
#[path = "server_fuzzing.rs"]
pub mod fuzzing;

#[cfg(test)]
#[path = "server_tests.rs"]
pub(super) mod tests;
