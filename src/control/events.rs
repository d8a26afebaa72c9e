//! The events of a volume, and the bounded log that keeps them.
//!
//! The log is in memory: it begins with the process, and [`EventLog::instance`]
//! distinguishes one process from the next. Nothing ever waits for a reader: a reader that
//! is too late gets the number of events that it missed.

use std::collections::VecDeque;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::watch;
use utoipa::ToSchema;

use super::api::{FailedRequests, Retry, Seen, SlowIo};
use super::operations::Operations;
use super::utc;

/// Number of kept events; older ones are dropped.
pub const KEPT_MAX: usize = 1024;
/// Of these, events that a guest or its front end can cause without limit: they must not
/// displace the events of snapshots.
pub const GUEST_KEPT_MAX: usize = 256;

/// Why a snapshot became invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum InvalidCause {
    /// The COW was full.
    Full,
    /// The COW could not be read, written or flushed, or the origin could not be
    /// read for it.
    Io,
    /// It was invalid when the daemon started.
    Loaded,
}

/// Why a pending rollback was cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum CancelCause {
    /// By a client.
    Asked,
    /// Its snapshot was removed.
    Removed,
    /// Its snapshot became invalid.
    Invalid,
    /// Another rollback or merge took its place.
    Replaced,
    /// The handover failed, and another attempt cannot succeed.
    Failed,
}

/// An I/O operation that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FailedIo {
    pub device: FailedDevice,
    pub operation: FailedOperation,
    /// Bytes from the device's start; `null` for a flush.
    #[serde(default)]
    pub offset: Option<u64>,
}

/// The description of a [`FailedIo`] that may be missing: its fields are those of the event.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only the description is used")]
struct PerhapsFailedIo {
    device: Option<FailedDevice>,
    operation: Option<FailedOperation>,
    /// Bytes from the device's start; `null` for a flush.
    offset: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum FailedDevice {
    Origin,
    Cow,
    /// The record of unflushed writes of a snapshot with deferred entries.
    Record,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum FailedOperation {
    Read,
    Write,
    /// A write of the COW's header or exception areas.
    WriteMetadata,
    Flush,
}

/// The event's `kind`, and the fields that belong to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum EventKind {
    /// The first event of every daemon.
    Started {
        version: String,
    },
    /// Taken, or loaded when the daemon started.
    SnapshotAdded {
        cow: String,
        at_start: bool,
    },
    SnapshotRemoved,
    /// Recorded durably: it never becomes valid again.
    SnapshotInvalid {
        reason: InvalidCause,
        /// For `io`: a description of the operation that failed, its file, its offset and the
        /// reason.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<String>,
        #[serde(flatten)]
        #[schema(value_type = PerhapsFailedIo)]
        failed: Option<FailedIo>,
    },
    /// Type PO: there was no space for a write by its own guest; reads succeed.
    SnapshotOverflow,
    /// `size` of the COW in bytes.
    SnapshotGrown {
        size: u64,
    },
    /// The origin was enlarged; `size` in bytes.
    OriginResized {
        size: u64,
    },
    /// A guest starts, and the file or device of the origin has become larger than the disk
    /// that the guest sees; `size` in bytes.
    OriginLarger {
        size: u64,
    },
    /// The use of the COW has reached 80 %, or the next step of 5 % above that.
    UsageThreshold {
        percent: u64,
    },
    /// A rollback waits for the guest's next reset.
    RollbackPending,
    /// The pending rollback will not happen.
    RollbackCancelled {
        reason: CancelCause,
    },
    /// The guest was reset, and its disk was not rolled back.
    RollbackFailed {
        error: String,
    },
    /// A guest that was stopped for a rollback may still be stopped; `note` describes its
    /// disk and what to do.
    GuestHeld {
        qmp: String,
        note: String,
    },
    /// The merge view has replaced the origin view, or replaces it again after a restart.
    Handover {
        follow: bool,
        /// Number of chunks to be merged.
        chunks: u64,
        at_start: bool,
    },
    MergePaused,
    /// It was paused or had failed.
    MergeResumed,
    MergeFailed {
        /// A description of the operation that failed, its file, its offset and the reason.
        reason: String,
        retry: Retry,
        #[serde(flatten)]
        failed: FailedIo,
    },
    /// A flush of the origin failed; all later ones fail until the daemon is restarted.
    OriginFlushFailed {
        error: String,
    },
    /// Everything is in the origin, and the state file says so.
    MergeDone {
        chunks: u64,
    },
    /// `socket` is `null` for an inherited descriptor.
    FrontEndConnected {
        socket: Option<String>,
    },
    FrontEndLeft {
        socket: Option<String>,
    },
    /// Another front end waits until the one that is connected leaves.
    FrontEndWaits {
        socket: Option<String>,
    },
    /// A machine was reset, or a new one starts.
    GuestReset {
        socket: Option<String>,
        seen: Seen,
    },
    /// A driver starts to use the disk without a reset.
    DriverStarted {
        socket: Option<String>,
        seen: Seen,
    },
    /// A driver starts, and the pending rollback did not happen.
    RollbackWaits {
        seen: Seen,
        /// What was seen and what to do.
        reason: String,
    },
    /// Requests of a guest have been under way for seconds.
    IoSlow {
        socket: Option<String>,
        #[serde(flatten)]
        io: SlowIo,
    },
    /// None has any more; `seconds`: how long the oldest was under way.
    IoSlowEnded {
        socket: Option<String>,
        seconds: u64,
    },
    /// Requests of a guest were answered with an I/O error.
    IoFailed {
        socket: Option<String>,
        #[serde(flatten)]
        io: FailedRequests,
    },
    /// A socket that a merged snapshot had left to the origin is closed.
    SocketClosed {
        socket: String,
    },
    /// The last event of a daemon that stops regularly.
    Stopping,
    /// Replaces `count` events that were dropped; its number is that of the last of them.
    Lost {
        count: u64,
    },
}

impl EventKind {
    /// A guest or its front end determines how often it happens.
    pub const fn is_caused_by_guest(&self) -> bool {
        matches!(
            self,
            Self::FrontEndConnected { .. }
                | Self::FrontEndLeft { .. }
                | Self::FrontEndWaits { .. }
                | Self::GuestReset { .. }
                | Self::DriverStarted { .. }
                | Self::OriginLarger { .. }
                | Self::RollbackWaits { .. }
                | Self::IoSlow { .. }
                | Self::IoSlowEnded { .. }
                | Self::IoFailed { .. }
        )
    }
}

/// An entry of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Of the daemon's process.
    pub instance: String,
    /// From 1, without gaps; unique in its instance.
    pub seq: u64,
    /// RFC 3339, UTC.
    pub time: String,
    /// The snapshot that it concerns; for front ends and guests, the snapshot of the view.
    pub snapshot: Option<String>,
    #[serde(flatten)]
    pub kind: EventKind,
}

/// `GET /v1/events`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EventPage<E = Event> {
    pub instance: String,
    /// Number of the newest event, for the next request's `since`.
    pub newest: u64,
    pub events: Vec<E>,
}

/// The newest events of one process.
#[derive(Debug)]
pub struct EventLog {
    instance: String,
    kept: Mutex<Kept>,
    operations: Operations,
    /// Number of the newest event, for readers that wait for the next one.
    newest: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Kept {
    events: VecDeque<Event>,
    guests: usize,
    newest: u64,
}

impl Default for EventLog {
    fn default() -> Self {
        // The hasher's keys are random.
        let instance = RandomState::new().build_hasher().finish();
        let instance = format!("{instance:016x}");
        Self {
            operations: Operations::new(&instance),
            instance,
            kept: Mutex::default(),
            newest: watch::Sender::new(0),
        }
    }
}

impl EventLog {
    /// Identifies this process, in 16 hexadecimal digits.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// Adds an event about `snapshot` that has just happened. Never waits for a reader.
    pub fn publish(&self, snapshot: Option<&str>, kind: EventKind) {
        let time = utc::rfc3339(SystemTime::now());
        let mut kept = self.lock();
        let is_caused_by_guest = kind.is_caused_by_guest();
        if is_caused_by_guest && kept.guests >= GUEST_KEPT_MAX {
            let oldest = kept.events.iter().position(|e| e.kind.is_caused_by_guest());
            oldest.map(|at| kept.events.remove(at));
            kept.guests = kept.guests.saturating_sub(1);
        } else if kept.events.len() >= KEPT_MAX
            && let Some(forgotten) = kept.events.pop_front()
        {
            kept.guests -= usize::from(forgotten.kind.is_caused_by_guest());
        }
        kept.newest += 1;
        kept.guests += usize::from(is_caused_by_guest);
        let event = Event {
            instance: self.instance.clone(),
            seq: kept.newest,
            time,
            snapshot: snapshot.map(str::to_owned),
            kind,
        };
        self.operations
            .note(event.snapshot.as_deref(), &event.kind, &event.time);
        log(&event);
        kept.events.push_back(event);
        // Under the lock, so that the number never decreases.
        self.newest.send_replace(kept.newest);
    }

    /// The number after which a reader continues that has read up to `since` of `instance`
    /// (`None`: it does not know). It is 0 for the number of another process.
    pub fn resume(&self, since: u64, instance: Option<&str>) -> u64 {
        let ours = instance.is_none_or(|i| i == self.instance);
        if ours && since <= self.lock().newest {
            since
        } else {
            0
        }
    }

    /// Up to `max` kept events after number `since`, oldest first. Each gap before one of
    /// them is an [`EventKind::Lost`].
    pub fn after(&self, since: u64, max: usize) -> EventPage {
        let kept = self.lock();
        let mut events: Vec<Event> = Vec::new();
        let mut seen = since;
        let first = kept.events.partition_point(|e| e.seq <= since);
        for event in kept.events.iter().skip(first).take(max) {
            let count = event.seq.saturating_sub(seen).saturating_sub(1);
            if count > 0 {
                events.push(Event {
                    seq: event.seq - 1,
                    snapshot: None,
                    kind: EventKind::Lost { count },
                    ..event.clone()
                });
            }
            seen = event.seq;
            events.push(event.clone());
        }
        EventPage {
            instance: self.instance.clone(),
            newest: kept.newest,
            events,
        }
    }

    /// The merges and rollbacks that the events tell of, and the changes that take long.
    pub const fn operations(&self) -> &Operations {
        &self.operations
    }

    /// Changes with every event.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        // A panic cannot leave a change half done, because panics abort.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes an event to the log of the program. What guests can cause without limit is there for
/// developers only.
fn log(event: &Event) {
    let Ok(Value::Object(fields)) = serde_json::to_value(&event.kind) else {
        return;
    };
    let text = |name: &str| fields.get(name).and_then(Value::as_str);
    let (kind, view) = (text("kind").unwrap_or_default(), text("socket"));
    let (seq, snapshot) = (event.seq, event.snapshot.as_deref());
    if event.kind.is_caused_by_guest() {
        tracing::debug!(kind, seq, snapshot, view, "event");
    } else {
        tracing::info!(kind, seq, snapshot, view, "event");
    }
}

#[cfg(test)]
#[path = "events_tests.rs"]
mod tests;
