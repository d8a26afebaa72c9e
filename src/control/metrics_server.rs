//! `GET /metrics` on a TCP port, and nothing else: no part of the API is reachable there.
//!
//! One thread with its own runtime, as for the control socket, and with the same bounds: a
//! connection serves one request, and has [`CONNECTION_TIMEOUT`] for it.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;

use super::api::Volume;
use super::scrape::answer_metrics_only;
use super::server::{ACCEPT_PAUSE, CONNECTION_TIMEOUT, HEAD_MAX, HEAD_TIMEOUT, IDLE_THREAD};
use crate::sandbox::{self, Kind};

/// What clients can take.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    /// Most connections at a time; others wait to be accepted.
    connections: usize,
    /// How long a client may take to send the head of a request.
    head: Duration,
    /// The longest life of a connection.
    connection: Duration,
}

const BOUNDS: Bounds = Bounds {
    connections: 8,
    head: HEAD_TIMEOUT,
    connection: CONNECTION_TIMEOUT,
};
/// How long a stop waits for a scrape.
const PATIENCE: Duration = Duration::from_secs(1);

/// The running server; dropping it stops it.
#[derive(Debug)]
pub struct MetricsServer {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl MetricsServer {
    /// Answers for `volume` on a new thread.
    ///
    /// # Errors
    /// A system call failed.
    pub fn start(listener: std::net::TcpListener, volume: Arc<dyn Volume>) -> io::Result<Self> {
        Self::start_with(listener, volume, BOUNDS)
    }

    fn start_with(
        listener: std::net::TcpListener,
        volume: Arc<dyn Volume>,
        bounds: Bounds,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .thread_name("metrics call")
            .thread_keep_alive(IDLE_THREAD)
            .on_thread_start(|| sandbox::thread(Kind::Metrics))
            .build()?;
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("metrics".to_owned())
            .spawn(move || {
                sandbox::thread(Kind::Metrics);
                runtime.block_on(run(listener, volume, bounds, stopped));
                runtime.shutdown_timeout(PATIENCE);
            })?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for MetricsServer {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // An error means that the thread has ended already.
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread for metrics panicked");
        }
    }
}

async fn run(
    listener: std::net::TcpListener,
    volume: Arc<dyn Volume>,
    bounds: Bounds,
    stopped: oneshot::Receiver<()>,
) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "cannot poll the port for metrics"),
    };
    tokio::select! {
        _ = stopped => {}
        () = accept(&listener, &volume, bounds) => {}
    }
}

async fn accept(listener: &TcpListener, volume: &Arc<dyn Volume>, bounds: Bounds) {
    let places = Arc::new(Semaphore::new(bounds.connections));
    // This fails only if the semaphore is closed, which never happens.
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let volume = Arc::clone(volume);
                tokio::spawn(async move {
                    let _place = place;
                    serve(stream, volume, bounds).await;
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection for metrics");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve(stream: TcpStream, volume: Arc<dyn Volume>, bounds: Bounds) {
    let service = service_fn(move |request| {
        let volume = Arc::clone(&volume);
        async move { Ok::<_, Infallible>(answer_metrics_only(&volume, &request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(bounds.head)
        .max_buf_size(HEAD_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    match timeout(bounds.connection, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a connection for metrics was lost"),
        Err(_) => tracing::debug!("a connection for metrics took too long"),
    }
}

#[cfg(test)]
#[path = "metrics_server_tests.rs"]
mod tests;
