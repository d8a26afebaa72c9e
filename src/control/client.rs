//! The client of the control socket. Calls block; each uses a connection of its own.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;

use super::api::{
    ApiError, DetachRequest, MergeRate, MergeRequest, OriginSize, ResizeReply, RollbackReply,
    RollbackRequest, SnapshotSpec, StoreSize, VolumeStatus,
};
use super::events::EventPage;
use super::passing::Carrying;

/// Largest accepted response in bytes.
const ANSWER_MAX: usize = 16 << 20;
/// Changes wait for the disk (for the state file, or for copy-outs), so this is long; it only
/// keeps a script from hanging on a daemon that was stopped.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// Pause before the next attempt to connect to a busy daemon.
const BUSY_PAUSE: Duration = Duration::from_millis(20);

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error(
        "no daemon at {}: {source}; start one with `snapback serve --control {} ...`, \
         or name one that is running (`snapback list`) with --control or SNAPBACK_CONTROL",
        socket.display(), socket.display()
    )]
    NoDaemon { socket: PathBuf, source: io::Error },
    #[error("no permission to connect to the daemon at {}: run this as the daemon's user", .0.display())]
    Denied(PathBuf),
    #[error("cannot connect to the daemon at {}: {source}", socket.display())]
    Unreachable { socket: PathBuf, source: io::Error },
    /// The daemon refused the request.
    #[error(transparent)]
    Refused(#[from] ApiError),
    #[error("the connection to the daemon at {} ended before it answered: {reason}", socket.display())]
    Lost { socket: PathBuf, reason: String },
    #[error("the server at {} does not have snapback's API: {reason}", socket.display())]
    Foreign { socket: PathBuf, reason: String },
    #[error("the daemon at {} did not answer within {} s; it may still carry out the request", socket.display(), patience.as_secs())]
    Slow { socket: PathBuf, patience: Duration },
    #[error("cannot start the client: {0}")]
    Runtime(io::Error),
}

/// A client of the daemon at one socket.
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
    runtime: Runtime,
    /// How long an answer may take.
    patience: Duration,
}

impl Client {
    /// A client for `socket`. It connects with the first call.
    ///
    /// # Errors
    /// The system has no resources for the runtime.
    pub fn new(socket: &Path) -> Result<Self, ClientError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(ClientError::Runtime)?;
        Ok(Self {
            socket: socket.to_owned(),
            runtime,
            patience: ANSWER_TIMEOUT,
        })
    }

    /// The same client, which waits at most this long for an answer (60 s otherwise).
    #[must_use]
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// The socket of the daemon.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The current status of the volume.
    pub fn status(&self) -> Result<VolumeStatus, ClientError> {
        self.parse(&self.call(Method::GET, "/v1/status", String::new())?)
    }

    /// The output that `dmsetup table` would have.
    pub fn table(&self) -> Result<String, ClientError> {
        let bytes = self.call(Method::GET, "/v1/table", String::new())?;
        String::from_utf8(bytes.into()).map_err(|e| self.foreign(e))
    }

    /// Takes the snapshot `spec.name`, which [`check_name`](super::api::check_name) accepts.
    pub fn add_snapshot(&self, spec: &SnapshotSpec) -> Result<(), ClientError> {
        self.add_snapshot_with(spec, None)
    }

    /// The same with its COW, which this process has opened for reading and writing.
    pub fn add_snapshot_with(
        &self,
        spec: &SnapshotSpec,
        cow: Option<OwnedFd>,
    ) -> Result<(), ClientError> {
        let path = format!("/v1/snapshots/{}", spec.name);
        let body = serde_json::to_string(spec).map_err(|e| self.foreign(e))?;
        self.call_with(Method::PUT, &path, body, cow).map(drop)
    }

    pub fn remove_snapshot(&self, name: &str) -> Result<(), ClientError> {
        let path = format!("/v1/snapshots/{name}");
        self.call(Method::DELETE, &path, String::new()).map(drop)
    }

    /// As [`Self::remove_snapshot`], even if the store cannot be marked invalid.
    pub fn force_remove_snapshot(&self, name: &str) -> Result<(), ClientError> {
        let path = format!("/v1/snapshots/{name}?force=true");
        self.call(Method::DELETE, &path, String::new()).map(drop)
    }

    /// Ends the socket of a merged snapshot, at which the origin is served.
    pub fn detach(&self, socket: &str) -> Result<(), ClientError> {
        let socket = socket.to_owned();
        self.send(Method::POST, "/v1/detach", &DetachRequest { socket })
            .map(drop)
    }

    /// `bytes` is the new size of the COW.
    pub fn grow_snapshot(&self, name: &str, bytes: u64) -> Result<(), ClientError> {
        let path = format!("/v1/snapshots/{name}/size");
        self.send(Method::PUT, &path, &StoreSize { size: bytes })
            .map(drop)
    }

    /// `bytes` is the new size of the origin; `None`: the size that it has now.
    pub fn resize(&self, bytes: Option<u64>) -> Result<ResizeReply, ClientError> {
        self.parse(&self.send(Method::PUT, "/v1/origin/size", &OriginSize { size: bytes })?)
    }

    pub fn rollback(&self, request: &RollbackRequest) -> Result<RollbackReply, ClientError> {
        self.rollback_with(request, None)
    }

    /// The same with the COW of `request.keep`, which this process has opened for reading and writing.
    pub fn rollback_with(
        &self,
        request: &RollbackRequest,
        cow: Option<OwnedFd>,
    ) -> Result<RollbackReply, ClientError> {
        let body = serde_json::to_string(request).map_err(|e| self.foreign(e))?;
        self.parse(&self.call_with(Method::POST, "/v1/rollback", body, cow)?)
    }

    /// The user and the group that listen at the socket.
    pub fn listener(&self) -> Result<(u32, u32), ClientError> {
        self.runtime.block_on(async {
            let stream = self.connect().await?;
            let found = stream.peer_cred().map_err(|e| self.cannot_connect(e))?;
            Ok((found.uid(), found.gid()))
        })
    }

    /// Cancels the pending rollback.
    pub fn cancel_rollback(&self) -> Result<(), ClientError> {
        self.call(Method::DELETE, "/v1/rollback", String::new())
            .map(drop)
    }

    pub fn merge(&self, request: &MergeRequest) -> Result<(), ClientError> {
        self.send(Method::POST, "/v1/merge", request).map(drop)
    }

    pub fn pause_merge(&self) -> Result<(), ClientError> {
        self.call(Method::POST, "/v1/merge/pause", String::new())
            .map(drop)
    }

    pub fn resume_merge(&self) -> Result<(), ClientError> {
        self.call(Method::POST, "/v1/merge/resume", String::new())
            .map(drop)
    }

    /// `bytes_per_second` 0 removes the limit.
    pub fn set_merge_rate(&self, bytes_per_second: u64) -> Result<(), ClientError> {
        self.send(
            Method::PUT,
            "/v1/merge/rate",
            &MergeRate {
                rate: bytes_per_second,
            },
        )
        .map(drop)
    }

    /// Has the daemon stop, so that another one can take the volume over. Its files are locked
    /// until it has ended.
    pub fn release(&self) -> Result<(), ClientError> {
        self.call(Method::POST, "/v1/release", String::new())
            .map(drop)
    }

    /// The kept events after number `since`; all of them if the number does not belong to this
    /// daemon, or if `instance` is another one. A newer daemon's events may have fields and
    /// kinds that [`Event`](super::events::Event) does not have.
    pub fn events(
        &self,
        since: u64,
        instance: Option<&str>,
    ) -> Result<EventPage<Value>, ClientError> {
        let path = events_path(since, instance);
        self.parse(&self.call(Method::GET, &path, String::new())?)
    }

    /// As [`Self::events`], followed by new events, until `take` returns false or the daemon
    /// ends; true if the daemon ended.
    ///
    /// # Errors
    /// Also if the connection is lost, for instance because the daemon is killed.
    pub fn follow_events(
        &self,
        since: u64,
        instance: Option<&str>,
        mut take: impl FnMut(Value) -> bool,
    ) -> Result<bool, ClientError> {
        let path = events_path(since, instance) + "&follow=true";
        self.runtime.block_on(async {
            let answer = self.request(Method::GET, &path, String::new(), None);
            let answer = tokio::time::timeout(self.patience, answer)
                .await
                .map_err(|_| self.slow())??;
            let status = answer.status();
            let mut body = answer.into_body();
            if !status.is_success() {
                let refusal = Limited::new(body, ANSWER_MAX).collect().await;
                let refusal = refusal.map_err(|e| self.lost(e))?;
                return Err(self.refused(status, &refusal.to_bytes()));
            }
            let mut text: Vec<u8> = Vec::new();
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(|e| self.lost(innermost(&e)))?;
                text.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
                if text.len() > ANSWER_MAX {
                    return Err(self.foreign("it sent a line that is too long"));
                }
                let whole = text
                    .iter()
                    .rposition(|b| *b == b'\n')
                    .map_or(0, |at| at + 1);
                let rest = text.split_off(whole);
                for line in text.split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
                    if !take(self.parse(line)?) {
                        return Ok(false);
                    }
                }
                text = rest;
            }
            Ok(true)
        })
    }

    fn send<T: Serialize>(
        &self,
        method: Method,
        path: &str,
        body: &T,
    ) -> Result<Bytes, ClientError> {
        let body = serde_json::to_string(body).map_err(|e| self.foreign(e))?;
        self.call(method, path, body)
    }

    fn parse<T: DeserializeOwned>(&self, answer: &[u8]) -> Result<T, ClientError> {
        serde_json::from_slice(answer).map_err(|e| self.foreign(e))
    }

    fn foreign(&self, reason: impl std::fmt::Display) -> ClientError {
        ClientError::Foreign {
            socket: self.socket.clone(),
            reason: reason.to_string(),
        }
    }

    fn lost(&self, reason: impl std::fmt::Display) -> ClientError {
        ClientError::Lost {
            socket: self.socket.clone(),
            reason: reason.to_string(),
        }
    }

    fn slow(&self) -> ClientError {
        ClientError::Slow {
            socket: self.socket.clone(),
            patience: self.patience,
        }
    }

    fn call(&self, method: Method, path: &str, body: String) -> Result<Bytes, ClientError> {
        self.call_with(method, path, body, None)
    }

    fn call_with(
        &self,
        method: Method,
        path: &str,
        body: String,
        carried: Option<OwnedFd>,
    ) -> Result<Bytes, ClientError> {
        let exchange = self.exchange(method, path, body, carried);
        let (status, answer) = self
            .runtime
            .block_on(async { tokio::time::timeout(self.patience, exchange).await })
            .map_err(|_| self.slow())??;
        if status.is_success() {
            Ok(answer)
        } else {
            Err(self.refused(status, &answer))
        }
    }

    fn refused(&self, status: StatusCode, answer: &[u8]) -> ClientError {
        match serde_json::from_slice::<ApiError>(answer) {
            Ok(refusal) => ClientError::Refused(refusal),
            Err(_) => self.foreign(format_args!("HTTP status {status}")),
        }
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: String,
        carried: Option<OwnedFd>,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let response = self.request(method, path, body, carried).await?;
        let status = response.status();
        let answer = Limited::new(response.into_body(), ANSWER_MAX)
            .collect()
            .await
            .map_err(|e| self.lost(e))?;
        Ok((status, answer.to_bytes()))
    }

    /// Sends a request and waits for the head of the response.
    async fn request(
        &self,
        method: Method,
        path: &str,
        body: String,
        carried: Option<OwnedFd>,
    ) -> Result<Response<Incoming>, ClientError> {
        let stream = Carrying::new(self.connect().await?, carried);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| self.lost(e))?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "localhost")
            .header(header::CONTENT_TYPE, "application/json")
            .body(body)
            .map_err(|e| self.foreign(e))?;
        // An error of the connection also ends the request below.
        tokio::spawn(connection);
        let response = sender.send_request(request).await.map_err(|e| {
            if speaks_something_else(&e) {
                self.foreign(innermost(&e))
            } else {
                self.lost(innermost(&e))
            }
        })?;
        Ok(response)
    }

    async fn connect(&self) -> Result<UnixStream, ClientError> {
        loop {
            match UnixStream::connect(&self.socket).await {
                // The daemon is busy and its backlog is full.
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    tokio::time::sleep(BUSY_PAUSE).await
                }
                result => return result.map_err(|e| self.cannot_connect(e)),
            }
        }
    }

    fn cannot_connect(&self, source: io::Error) -> ClientError {
        let socket = self.socket.clone();
        match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NoDaemon { socket, source }
            }
            io::ErrorKind::PermissionDenied => ClientError::Denied(socket),
            _ => ClientError::Unreachable { socket, source },
        }
    }
}

fn events_path(since: u64, instance: Option<&str>) -> String {
    let instance = instance.map(|i| format!("&instance={i}"));
    format!("/v1/events?since={since}{}", instance.unwrap_or_default())
}

/// The original error of a connection; the error of a request has it as its source.
fn innermost(error: &hyper::Error) -> &hyper::Error {
    let source = std::error::Error::source(error);
    source
        .and_then(|e| e.downcast_ref())
        .map_or(error, innermost)
}

/// Whether the server sent something that is not HTTP, or a response without a request.
fn speaks_something_else(error: &hyper::Error) -> bool {
    let cause = innermost(error);
    let is_end = cause.is_canceled() || cause.is_closed() || cause.is_incomplete_message();
    let is_io = std::error::Error::source(cause).is_some();
    cause.is_parse() || (error.is_canceled() && !is_end && !is_io)
}
