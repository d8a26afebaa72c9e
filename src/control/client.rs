//! The other end of the control socket: a blocking client, one connection a call.

use std::io;
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
    ApiError, MergeRate, MergeRequest, RollbackReply, RollbackRequest, SnapshotSpec, StoreSize,
    VolumeStatus,
};
use super::events::EventPage;

/// Largest answer that is read, in bytes.
const ANSWER_MAX: usize = 16 << 20;
/// Changes wait for the disk (a state file made durable, copy-outs drained), so
/// this is long; it only keeps a script from hanging on a stopped daemon.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// Pause before a busy daemon is tried again.
const BUSY_PAUSE: Duration = Duration::from_millis(20);

/// Why a call did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error(
        "no daemon at {}: {source}; start one with `snapback serve --control {} ...`, \
         or name its socket with --control or SNAPBACK_CONTROL",
        socket.display(), socket.display()
    )]
    NoDaemon { socket: PathBuf, source: io::Error },
    #[error("not allowed to talk to the daemon at {}: run this as the daemon's user", .0.display())]
    Denied(PathBuf),
    #[error("cannot reach the daemon at {}: {source}", socket.display())]
    Unreachable { socket: PathBuf, source: io::Error },
    /// The daemon says no.
    #[error(transparent)]
    Refused(#[from] ApiError),
    #[error("the daemon at {} went away before it answered: {reason}", socket.display())]
    Lost { socket: PathBuf, reason: String },
    #[error("what answers at {} does not speak snapback's API: {reason}", socket.display())]
    Foreign { socket: PathBuf, reason: String },
    #[error("the daemon at {} did not answer within {} s; it may still do what was asked", .0.display(), ANSWER_TIMEOUT.as_secs())]
    Slow(PathBuf),
    #[error("cannot start the client: {0}")]
    Runtime(io::Error),
}

/// A client of the daemon at one socket.
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
    runtime: Runtime,
}

impl Client {
    /// A client for `socket`; nothing is sent before the first call.
    ///
    /// # Errors
    /// Only if the system has no resources left for its runtime.
    pub fn new(socket: &Path) -> Result<Self, ClientError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(ClientError::Runtime)?;
        Ok(Self {
            socket: socket.to_owned(),
            runtime,
        })
    }

    /// The socket it talks to.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The volume as it is now.
    pub fn status(&self) -> Result<VolumeStatus, ClientError> {
        self.parse(&self.call(Method::GET, "/v1/status", String::new())?)
    }

    /// What `dmsetup table` would print.
    pub fn table(&self) -> Result<String, ClientError> {
        let bytes = self.call(Method::GET, "/v1/table", String::new())?;
        String::from_utf8(bytes.into()).map_err(|e| self.foreign(e))
    }

    /// Takes the snapshot `spec.name`, which [`check_name`](super::api::check_name) accepts.
    pub fn add_snapshot(&self, spec: &SnapshotSpec) -> Result<(), ClientError> {
        self.send(Method::PUT, &format!("/v1/snapshots/{}", spec.name), spec)
            .map(drop)
    }

    pub fn remove_snapshot(&self, name: &str) -> Result<(), ClientError> {
        let path = format!("/v1/snapshots/{name}");
        self.call(Method::DELETE, &path, String::new()).map(drop)
    }

    /// As [`Self::remove_snapshot`], also if the store cannot be marked invalid.
    pub fn force_remove_snapshot(&self, name: &str) -> Result<(), ClientError> {
        let path = format!("/v1/snapshots/{name}?force=true");
        self.call(Method::DELETE, &path, String::new()).map(drop)
    }

    /// `bytes` is the new size of the COW.
    pub fn grow_snapshot(&self, name: &str, bytes: u64) -> Result<(), ClientError> {
        let path = format!("/v1/snapshots/{name}/size");
        self.send(Method::PUT, &path, &StoreSize { size: bytes })
            .map(drop)
    }

    pub fn rollback(&self, request: &RollbackRequest) -> Result<RollbackReply, ClientError> {
        self.parse(&self.send(Method::POST, "/v1/rollback", request)?)
    }

    /// Calls a rollback off that waits for the guest's reset.
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

    /// `bytes_per_second` 0 lifts the limit.
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

    /// The events after number `since`, as far as they are kept; all of them if the
    /// number is none of this daemon's, or `instance` is another one. Their fields may be more than
    /// [`Event`](super::events::Event) has, their kinds, too.
    pub fn events(
        &self,
        since: u64,
        instance: Option<&str>,
    ) -> Result<EventPage<Value>, ClientError> {
        let path = events_path(since, instance);
        self.parse(&self.call(Method::GET, &path, String::new())?)
    }

    /// As [`Self::events`], and then what comes, until `take` returns false or the
    /// daemon ends; true if the daemon ended.
    ///
    /// # Errors
    /// Also if the connection breaks off, as when the daemon is killed.
    pub fn follow_events(
        &self,
        since: u64,
        instance: Option<&str>,
        mut take: impl FnMut(Value) -> bool,
    ) -> Result<bool, ClientError> {
        let path = events_path(since, instance) + "&follow=true";
        self.runtime.block_on(async {
            let answer = self.request(Method::GET, &path, String::new());
            let answer = tokio::time::timeout(ANSWER_TIMEOUT, answer)
                .await
                .map_err(|_| ClientError::Slow(self.socket.clone()))??;
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
                    return Err(self.foreign("a line without end"));
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

    fn call(&self, method: Method, path: &str, body: String) -> Result<Bytes, ClientError> {
        let (status, answer) = self
            .runtime
            .block_on(async {
                tokio::time::timeout(ANSWER_TIMEOUT, self.exchange(method, path, body)).await
            })
            .map_err(|_| ClientError::Slow(self.socket.clone()))??;
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
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let response = self.request(method, path, body).await?;
        let status = response.status();
        let answer = Limited::new(response.into_body(), ANSWER_MAX)
            .collect()
            .await
            .map_err(|e| self.lost(e))?;
        Ok((status, answer.to_bytes()))
    }

    /// Sends a request and waits for the head of its answer.
    async fn request(
        &self,
        method: Method,
        path: &str,
        body: String,
    ) -> Result<Response<Incoming>, ClientError> {
        let stream = self.connect().await?;
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
        // What goes wrong on the connection also ends the request below.
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
                // The daemon is busy and its queue is full: wait for our turn.
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

/// What a connection met with; a request that it took along has it as its source.
fn innermost(error: &hyper::Error) -> &hyper::Error {
    let source = std::error::Error::source(error);
    source
        .and_then(|e| e.downcast_ref())
        .map_or(error, innermost)
}

/// No HTTP came back, or something came unasked.
fn speaks_something_else(error: &hyper::Error) -> bool {
    let cause = innermost(error);
    let is_end = cause.is_canceled() || cause.is_closed() || cause.is_incomplete_message();
    let is_io = std::error::Error::source(cause).is_some();
    cause.is_parse() || (error.is_canceled() && !is_end && !is_io)
}
