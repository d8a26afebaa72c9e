//! Following events: a response without end, with one JSON object per line.
//!
//! A follower gets the events in the log and then the new ones. Between the log and the
//! socket there is at most one batch: a slow follower gets gaps, marked as such, and one that
//! does not read at all is disconnected. Nothing waits for either.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::{Body, Bytes, Frame};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::Instant;

use super::api::Volume;

/// Most followers at a time; the other connections are for requests that end.
pub const FOLLOWERS_MAX: u32 = 16;
/// How long a follower may leave sent data unread.
pub const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the stop of the daemon waits for followers to read the last events.
const FAREWELL: Duration = Duration::from_millis(500);
/// Events that are read from the log at a time.
const BATCH: usize = 64;

/// State that all followers share.
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

    /// One of the places of clients that wait. `None`: all are taken.
    pub fn place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.places).try_acquire_owned().ok()
    }

    /// Nobody may wait any more.
    pub fn is_closing(&self) -> bool {
        *self.closing.borrow()
    }

    /// Returns when [`Self::is_closing`].
    pub async fn closing(&self) {
        let mut closing = self.closing.subscribe();
        // An error means that the sender is gone, which `self` has.
        let _ = closing.wait_for(|closing| *closing).await;
    }

    /// Begins a response with the events after number `since`. `None`: there are too many
    /// followers.
    pub fn feed(
        &self,
        volume: Arc<dyn Volume>,
        since: u64,
        connection: &Arc<Connection>,
    ) -> Option<Feed> {
        connection.keep(self.place()?);
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

    /// Ends all responses after the existing events, and waits until they are read.
    pub async fn farewell(&self) {
        self.closing.send_replace(true);
        let all_gone = self.places.acquire_many(FOLLOWERS_MAX);
        if tokio::time::timeout(FAREWELL, all_gone).await.is_err() {
            tracing::debug!("a follower did not read the last events");
        }
    }
}

/// The body of such a response.
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

/// The time that a client has left.
#[derive(Debug)]
pub struct Connection {
    /// When it is disconnected; `None`: it has read everything.
    deadline: watch::Sender<Option<Instant>>,
    /// A follower's permit, until the connection ends.
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

    /// Returns at the deadline.
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
            // Both before the log is read, so that an event that is added meanwhile ends the
            // wait below, and no event before the end is omitted.
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
