//! Following events: an answer that goes on, one JSON object a line.
//!
//! A follower gets what the log has and then what comes. Between the log and the
//! socket there is at most one batch: who reads slowly finds holes, told as such;
//! who does not read at all is cut off. Nobody waits for either.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::{Body, Bytes, Frame};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::Instant;

use super::api::Volume;

/// Followers at a time; the other places are for requests that end.
pub const FOLLOWERS_MAX: u32 = 16;
/// How long a follower may leave unread what it was sent.
pub const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the end of the daemon waits for followers to take the last events.
const FAREWELL: Duration = Duration::from_millis(500);
/// Events taken out of the log at a time.
const BATCH: usize = 64;

/// What all followers share.
#[derive(Clone, Debug)]
pub struct Followers {
    places: Arc<Semaphore>,
    closing: watch::Sender<bool>,
    patience: Duration,
}

impl Followers {
    /// `patience` is usually [`STALL_TIMEOUT`].
    pub fn new(patience: Duration) -> Self {
        Self {
            patience,
            places: Arc::new(Semaphore::new(
                usize::try_from(FOLLOWERS_MAX).unwrap_or(usize::MAX),
            )),
            closing: watch::Sender::new(false),
        }
    }

    /// Begins an answer with the events after number `since`. `None`: there is no
    /// place for another follower.
    pub fn feed(
        &self,
        volume: Arc<dyn Volume>,
        since: u64,
        connection: &Arc<Connection>,
    ) -> Option<Feed> {
        let place = Arc::clone(&self.places).try_acquire_owned().ok()?;
        connection.keep(place);
        let (lines, feed) = mpsc::channel(1);
        let feeder = Feeder {
            volume,
            seen: since,
            lines,
            connection: Arc::clone(connection),
            patience: self.patience,
            closing: self.closing.subscribe(),
        };
        tokio::spawn(feeder.run());
        Some(Feed(feed))
    }

    /// Ends all answers after the events that there are, and waits for those who
    /// read them.
    pub async fn farewell(&self) {
        self.closing.send_replace(true);
        let all_gone = self.places.acquire_many(FOLLOWERS_MAX);
        if tokio::time::timeout(FAREWELL, all_gone).await.is_err() {
            tracing::debug!("a follower of events did not take the last ones");
        }
    }
}

/// The body of such an answer.
#[derive(Debug)]
pub struct Feed(mpsc::Receiver<Bytes>);

impl Body for Feed {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0
            .poll_recv(context)
            .map(|lines| lines.map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// A connection's patience with its client.
#[derive(Debug)]
pub struct Connection {
    /// When it is cut off; `None`: nothing is owed.
    deadline: watch::Sender<Option<Instant>>,
    /// Of a follower, until the connection is over.
    place: Mutex<Option<OwnedSemaphorePermit>>,
}

impl Connection {
    /// A connection that may last for `patience`.
    pub fn new(patience: Duration) -> Self {
        Self {
            deadline: watch::Sender::new(Some(Instant::now() + patience)),
            place: Mutex::new(None),
        }
    }

    fn keep(&self, place: OwnedSemaphorePermit) {
        *self.place.lock().unwrap_or_else(PoisonError::into_inner) = Some(place);
    }

    /// Returns when its time is over.
    pub async fn expired(&self) {
        let mut deadline = self.deadline.subscribe();
        loop {
            let at = *deadline.borrow_and_update();
            tokio::select! {
                () = sleep_until(at) => return,
                _ = deadline.changed() => {}
            }
        }
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Moves events from the log to one follower.
struct Feeder {
    volume: Arc<dyn Volume>,
    /// Number of the last event that was sent.
    seen: u64,
    lines: mpsc::Sender<Bytes>,
    connection: Arc<Connection>,
    patience: Duration,
    closing: watch::Receiver<bool>,
}

impl Feeder {
    async fn run(mut self) {
        let volume = Arc::clone(&self.volume);
        let mut newest = volume.events().watch();
        loop {
            // Both before the look, so that nothing told meanwhile is slept over,
            // and nothing told before the end is left out.
            newest.mark_unchanged();
            let closing = *self.closing.borrow_and_update();
            let page = volume.events().after(self.seen, BATCH);
            let Some(last) = page.events.last() else {
                if closing {
                    return;
                }
                self.connection.deadline.send_replace(None);
                tokio::select! {
                    _ = newest.changed() => {}
                    _ = self.closing.changed() => {}
                    () = self.lines.closed() => return,
                }
                continue;
            };
            self.seen = last.seq;
            let mut text = String::new();
            for event in &page.events {
                text.push_str(&serde_json::to_string(event).unwrap_or_default());
                text.push('\n');
            }
            let deadline = Instant::now() + self.patience;
            self.connection.deadline.send_replace(Some(deadline));
            if self.lines.send(Bytes::from(text)).await.is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
#[path = "follow_tests.rs"]
mod tests;
