//! What happened to the volume, and the bounded log that keeps it.
//!
//! The log is in memory: it begins with the process, and [`EventLog::instance`]
//! tells one process from the next. Nobody ever waits for a reader: who comes too
//! late is told how many events he missed.

use std::collections::VecDeque;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::api::{Retry, Seen};
use super::utc;

/// Events kept; older ones are forgotten.
pub const KEPT_MAX: usize = 1024;
/// Of these, events that a guest or its front end can make as often as it
/// likes: they must not push out what happened to the snapshots.
pub const GUEST_KEPT_MAX: usize = 256;

/// Why a snapshot became invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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

/// An I/O operation that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedIo {
    pub device: FailedDevice,
    pub operation: FailedOperation,
    /// Bytes from the device's start; `null` for a flush.
    #[serde(default)]
    pub offset: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailedDevice {
    Origin,
    Cow,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailedOperation {
    Read,
    Write,
    /// Of the COW's header or exception areas.
    WriteMetadata,
    Flush,
}

/// What happened: the event's `kind`, and the fields that go with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Happening {
    /// The first event of every daemon.
    Started {
        version: String,
    },
    /// Taken, or taken up when the daemon started.
    SnapshotAdded {
        cow: String,
        at_start: bool,
    },
    SnapshotRemoved,
    /// Recorded durably: it never comes back.
    SnapshotInvalid {
        reason: InvalidCause,
        /// For `io`: in words which operation on which file failed where, and why.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<String>,
        #[serde(flatten)]
        failed: Option<FailedIo>,
    },
    /// Type PO: its own guest's write found no room; reads go on.
    SnapshotOverflow,
    /// `size` of the COW in bytes.
    SnapshotGrown {
        size: u64,
    },
    /// The use of the COW has come to 80 %, or to the next 5 % above that.
    UsageThreshold {
        percent: u64,
    },
    /// Waits for the guest's next reset.
    RollbackPending,
    /// There will be none: `reason` is `removed`, `invalid`, `replaced`, `failed` or `asked`.
    RollbackCancelled {
        reason: String,
    },
    /// The guest was reset, and its disk was not rolled back.
    RollbackFailed {
        error: String,
    },
    /// A guest may stand still that was stopped for a rollback; `note` says how its
    /// disk is and what to do.
    GuestHeld {
        qmp: String,
        note: String,
    },
    /// The merge view has replaced the origin view, or does so again when the
    /// daemon started.
    Handover {
        follow: bool,
        /// To be merged.
        chunks: u64,
        at_start: bool,
    },
    MergePaused,
    /// It was paused or had failed.
    MergeResumed,
    MergeFailed {
        /// In words which operation on which file failed where, and why.
        reason: String,
        retry: Retry,
        #[serde(flatten)]
        failed: FailedIo,
    },
    /// A flush of the origin failed; until the daemon is started again all fail.
    OriginFlushFailed {
        error: String,
    },
    /// Everything is in the origin, and the state file says so.
    MergeDone {
        chunks: u64,
    },
    /// `socket` is `null` for a descriptor that was handed in.
    FrontEndConnected {
        socket: Option<String>,
    },
    FrontEndLeft {
        socket: Option<String>,
    },
    /// A machine was reset, or a new one begins.
    GuestReset {
        socket: Option<String>,
        seen: Seen,
    },
    /// A driver begins with the disk, which is no reset.
    DriverStarted {
        socket: Option<String>,
        seen: Seen,
    },
    /// A driver begins, and the rollback that waits did not happen.
    RollbackWaits {
        seen: Seen,
        /// What was seen and what to do.
        reason: String,
    },
    /// The last event of a daemon that stops in order.
    Stopping,
    /// Stands for `count` events that are forgotten; its number is that of the last.
    Lost {
        count: u64,
    },
}

impl Happening {
    /// A guest or its front end decides how often it happens.
    const fn is_the_guests(&self) -> bool {
        matches!(
            self,
            Self::FrontEndConnected { .. }
                | Self::FrontEndLeft { .. }
                | Self::GuestReset { .. }
                | Self::DriverStarted { .. }
                | Self::RollbackWaits { .. }
        )
    }
}

/// An event as it is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Of the daemon's process.
    pub instance: String,
    /// From 1, without holes; unique in its instance.
    pub seq: u64,
    /// RFC 3339, UTC.
    pub time: String,
    /// The snapshot that it is about; of front ends and guests: whose view.
    pub snapshot: Option<String>,
    #[serde(flatten)]
    pub what: Happening,
}

/// `GET /v1/events`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventPage<E = Event> {
    pub instance: String,
    /// Number of the newest event; ask for what comes after it the next time.
    pub newest: u64,
    pub events: Vec<E>,
}

/// The newest events of one process.
#[derive(Debug)]
pub struct EventLog {
    instance: String,
    kept: Mutex<Kept>,
    /// Number of the newest event, for who waits for the next.
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
        // The hasher's keys are the system's randomness.
        let instance = RandomState::new().build_hasher().finish();
        Self {
            instance: format!("{instance:016x}"),
            kept: Mutex::default(),
            newest: watch::Sender::new(0),
        }
    }
}

impl EventLog {
    /// Tells this process from every other, in 16 hexadecimal digits.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// Adds what has just happened to `snapshot`. Never waits for a reader.
    pub fn tell(&self, snapshot: Option<&str>, what: Happening) {
        let time = utc::rfc3339(SystemTime::now());
        let mut kept = self.lock();
        let is_the_guests = what.is_the_guests();
        if is_the_guests && kept.guests >= GUEST_KEPT_MAX {
            let oldest = kept.events.iter().position(|e| e.what.is_the_guests());
            oldest.map(|at| kept.events.remove(at));
            kept.guests = kept.guests.saturating_sub(1);
        } else if kept.events.len() >= KEPT_MAX
            && let Some(forgotten) = kept.events.pop_front()
        {
            kept.guests -= usize::from(forgotten.what.is_the_guests());
        }
        kept.newest += 1;
        kept.guests += usize::from(is_the_guests);
        let event = Event {
            instance: self.instance.clone(),
            seq: kept.newest,
            time,
            snapshot: snapshot.map(str::to_owned),
            what,
        };
        kept.events.push_back(event);
        // Under the lock, so that the number never goes back.
        self.newest.send_replace(kept.newest);
    }

    /// Where a reader goes on who has seen `since` of `instance` (`None`: he does
    /// not know). What is another process's number is no number of ours: 0.
    pub fn resume(&self, since: u64, instance: Option<&str>) -> u64 {
        let ours = instance.is_none_or(|i| i == self.instance);
        if ours && since <= self.lock().newest {
            since
        } else {
            0
        }
    }

    /// Up to `max` kept events after number `since`, oldest first, each hole
    /// before one of them as [`Happening::Lost`].
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
                    what: Happening::Lost { count },
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

    /// Changes with every event.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        // Nothing in it can be left half-way: panics abort.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[path = "events_tests.rs"]
mod tests;
