//! Answers to bytes that are no request: the HTTP library refuses them itself, with a status
//! and nothing else, which is replaced by a problem with words.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;

use super::api::{ApiError, ErrorKind};
use super::passing::Passed;
use super::problem::{self, Problem};

/// A connection that holds back what is written before a request has arrived.
#[derive(Debug)]
pub struct Guarded {
    stream: UnixStream,
    /// A request has arrived.
    asked: Arc<AtomicBool>,
    /// The first bytes that were held back.
    held: Vec<u8>,
    /// Where descriptors go; `None`: what comes is closed.
    passed: Option<Passed>,
}

/// Enough for `HTTP/1.1 400`.
const HELD_MAX: usize = 16;

impl Guarded {
    pub const fn new(stream: UnixStream, asked: Arc<AtomicBool>, passed: Option<Passed>) -> Self {
        Self {
            stream,
            asked,
            held: Vec::new(),
            passed,
        }
    }

    fn holds_back(&self) -> bool {
        !self.asked.load(Ordering::Acquire)
    }

    /// Answers a connection that ended with `error` before a request had arrived.
    pub async fn refuse(self, error: &hyper::Error) {
        if !self.holds_back() {
            return;
        }
        let held = std::str::from_utf8(&self.held).unwrap_or_default();
        let status = match held.split(' ').nth(1).and_then(|code| code.parse().ok()) {
            Some(status) => status,
            None if error.is_timeout() => 408,
            // The client has left.
            None => return,
        };
        let message = match status {
            408 => "the head of the request did not arrive in time".to_owned(),
            414 | 431 => format!("{error}: the head of a request has at most 16 KiB"),
            _ => format!("this is no HTTP/1.1 request: {error}"),
        };
        let text = Problem::new(status, ApiError::new(ErrorKind::BadRequest, message)).to_json();
        let reason = hyper::StatusCode::from_u16(status).ok();
        let reason = reason.and_then(|status| status.canonical_reason());
        let answer = format!(
            "HTTP/1.1 {status} {}\r\ncontent-type: {}\r\nconnection: close\r\n\
             content-length: {}\r\n\r\n{text}",
            reason.unwrap_or_default(),
            problem::MEDIA_TYPE,
            text.len()
        );
        // Nothing was written before, so there is room for all of it, unless the client has left.
        if self.stream.writable().await.is_ok() {
            let _ = self.stream.try_write(answer.as_bytes());
        }
    }
}

impl AsyncRead for Guarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &self.passed {
            Some(passed) => passed.poll_read(&self.stream, context, into),
            // The kernel closes the descriptors of what is read so.
            None => Pin::new(&mut self.stream).poll_read(context, into),
        }
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.holds_back() {
            let room = HELD_MAX.saturating_sub(self.held.len());
            self.held.extend(bytes.iter().take(room));
            return Poll::Ready(Ok(bytes.len()));
        }
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.holds_back() {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
