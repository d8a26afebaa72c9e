//! Long work, as clients can look it up: merges, rollbacks, and changes that have not ended
//! when their request was answered.
//!
//! Merges and rollbacks are made from the events of the log alone, under its lock, and their
//! progress is read from the status: nothing here can differ from these.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use utoipa::ToSchema;

use super::api::{ApiError, MergeStatus, Retry};
use super::events::{CancelCause, EventKind};
use super::peer::Peer;
use super::utc;

/// Most operations that are kept; older ones that have ended are dropped.
pub const KEPT_MAX: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OperationKind {
    Merge,
    /// It waits for the guest's reset if necessary, and ends with its merge.
    Rollback,
    /// A change that had not ended when its request was answered.
    Change,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OperationState {
    Running,
    /// For the guest's reset, or for the end of a pause.
    Waiting,
    Succeeded,
    /// A merge may run again after `POST /v1/merge/resume`.
    Failed,
    Cancelled,
}

impl OperationState {
    pub const fn is_end(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

/// How far a merge is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OperationProgress {
    pub chunks_done: u64,
    pub chunks_left: u64,
    /// Average over the last seconds; 0 if it does not run.
    pub bytes_per_second: u64,
    /// `null` while unknown.
    pub seconds_left: Option<u64>,
}

/// `GET /v1/operations/ID`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Operation {
    /// Unique, also among those of other daemons.
    pub id: String,
    pub kind: OperationKind,
    /// The request or the snapshot, for people.
    pub what: String,
    pub snapshot: Option<String>,
    pub state: OperationState,
    /// RFC 3339, UTC.
    pub started: String,
    /// `null` if it has not ended.
    pub ended: Option<String>,
    /// `null` if there is nothing to merge yet.
    pub progress: Option<OperationProgress>,
    /// Why it failed; or, while it waits, why the last attempt did.
    pub error: Option<String>,
    /// How a merge that failed can continue.
    pub retry: Option<Retry>,
    /// The user who asked for it; `null` if it began with the daemon.
    pub uid: Option<u32>,
}

impl Operation {
    /// With the progress of the merge that is running.
    #[must_use]
    pub fn with_progress(mut self, merge: Option<&MergeStatus>) -> Self {
        let merge = merge.filter(|merge| Some(&merge.snapshot) == self.snapshot.as_ref());
        if let (Some(progress), Some(merge)) = (&mut self.progress, merge)
            && self.state != OperationState::Succeeded
        {
            *progress = OperationProgress {
                chunks_done: merge.chunks_done,
                chunks_left: merge.chunks_left,
                bytes_per_second: merge.bytes_per_second,
                seconds_left: merge.seconds_left,
            };
        }
        self
    }

    fn end(&mut self, state: OperationState, time: &str) {
        self.state = state;
        self.ended = Some(time.to_owned());
    }
}

/// `GET /v1/operations`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OperationList {
    /// The oldest first.
    pub operations: Vec<Operation>,
}

/// The last operations of one process.
#[derive(Debug)]
pub struct Operations {
    instance: String,
    book: Mutex<Book>,
    changes: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Book {
    kept: VecDeque<Operation>,
    begun: u64,
}

impl Operations {
    pub fn new(instance: &str) -> Self {
        Self {
            instance: instance.to_owned(),
            book: Mutex::default(),
            changes: watch::Sender::new(()),
        }
    }

    /// Takes an event into account.
    pub fn note(&self, snapshot: Option<&str>, event: &EventKind, time: &str) {
        let mut book = self.lock();
        match event {
            EventKind::RollbackPending => {
                let mut waiting = self.new_one(&mut book, OperationKind::Rollback, snapshot, time);
                waiting.state = OperationState::Waiting;
                book.add(waiting);
            }
            EventKind::RollbackCancelled { reason } => {
                if let Some(pending) = book.pending(snapshot) {
                    let failed = *reason == CancelCause::Failed;
                    let state = match failed {
                        true => OperationState::Failed,
                        false => OperationState::Cancelled,
                    };
                    pending.end(state, time);
                }
            }
            EventKind::RollbackFailed { error } => {
                if let Some(pending) = book.pending(snapshot) {
                    pending.error = Some(error.clone());
                }
            }
            EventKind::Handover { chunks, .. } => {
                let progress = Some(left(0, *chunks));
                if let Some(pending) = book.pending(snapshot) {
                    pending.state = OperationState::Running;
                    pending.error = None;
                    pending.progress = progress;
                } else {
                    let mut merge = self.new_one(&mut book, OperationKind::Merge, snapshot, time);
                    merge.progress = progress;
                    book.add(merge);
                }
            }
            EventKind::MergePaused => book.set_merging(snapshot, OperationState::Waiting),
            EventKind::MergeResumed => book.set_merging(snapshot, OperationState::Running),
            EventKind::MergeFailed { reason, retry, .. } => {
                if let Some(merging) = book.merging(snapshot) {
                    merging.end(OperationState::Failed, time);
                    merging.error = Some(reason.clone());
                    merging.retry = Some(*retry);
                }
            }
            EventKind::MergeDone { chunks } => {
                if let Some(merging) = book.merging(snapshot) {
                    merging.end(OperationState::Succeeded, time);
                    merging.progress = Some(left(*chunks, 0));
                    merging.error = None;
                    merging.retry = None;
                }
            }
            // Not about a merge or a rollback.
            _ => return,
        }
        drop(book);
        self.changes.send_replace(());
    }

    /// One that begins at `time`, with a number of its own.
    fn new_one(
        &self,
        book: &mut Book,
        kind: OperationKind,
        snapshot: Option<&str>,
        time: &str,
    ) -> Operation {
        book.begun += 1;
        let word = match kind {
            OperationKind::Rollback => "rollback",
            OperationKind::Merge | OperationKind::Change => "merge",
        };
        Operation {
            id: format!("{}-{}", self.instance, book.begun),
            kind,
            what: format!("{word} {}", snapshot.unwrap_or_default()),
            snapshot: snapshot.map(str::to_owned),
            state: OperationState::Running,
            started: time.to_owned(),
            ended: None,
            progress: None,
            error: None,
            retry: None,
            uid: None,
        }
    }

    /// The newest merge or rollback of `snapshot` is what `peer` has just asked for. Returns
    /// its number.
    pub fn asked(&self, snapshot: &str, kind: OperationKind, peer: Peer) -> Option<String> {
        let mut book = self.lock();
        let mut newest = book.kept.iter_mut().rev();
        let found = newest.find(|kept| kept.snapshot.as_deref() == Some(snapshot))?;
        found.kind = kind;
        if kind == OperationKind::Rollback {
            found.what = format!("rollback {snapshot}");
        }
        found.uid = Some(peer.uid);
        Some(found.id.clone())
    }

    /// Adds a change, `what`, that `peer` asked for and that has not ended.
    pub fn begin_change(&self, what: &str, since: SystemTime, peer: Peer) -> String {
        let mut book = self.lock();
        let time = utc::rfc3339(since);
        let mut change = self.new_one(&mut book, OperationKind::Change, None, &time);
        what.clone_into(&mut change.what);
        change.uid = Some(peer.uid);
        let id = change.id.clone();
        book.add(change);
        id
    }

    /// The change with this number has ended.
    pub fn end_change(&self, id: &str, result: Result<(), ApiError>) {
        let mut book = self.lock();
        if let Some(change) = book.kept.iter_mut().find(|kept| kept.id == id) {
            let state = match &result {
                Ok(()) => OperationState::Succeeded,
                Err(_) => OperationState::Failed,
            };
            change.end(state, &utc::rfc3339(SystemTime::now()));
            change.error = result.err().map(|error| error.message);
        }
        drop(book);
        self.changes.send_replace(());
    }

    pub fn find(&self, id: &str) -> Option<Operation> {
        self.lock().kept.iter().find(|kept| kept.id == id).cloned()
    }

    /// All that are kept, the oldest first.
    pub fn all(&self) -> Vec<Operation> {
        self.lock().kept.iter().cloned().collect()
    }

    /// Changes with every operation.
    pub fn watch(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        // A panic cannot leave a change half done, because panics abort.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const fn left(chunks_done: u64, chunks_left: u64) -> OperationProgress {
    OperationProgress {
        chunks_done,
        chunks_left,
        bytes_per_second: 0,
        seconds_left: None,
    }
}

impl Book {
    fn add(&mut self, operation: Operation) {
        if self.kept.len() >= KEPT_MAX {
            let oldest = self.kept.iter().position(|kept| kept.state.is_end());
            self.kept.remove(oldest.unwrap_or(0));
        }
        self.kept.push_back(operation);
    }

    fn newest(
        &mut self,
        snapshot: Option<&str>,
        is_it: impl Fn(&Operation) -> bool,
    ) -> Option<&mut Operation> {
        let mut newest = self.kept.iter_mut().rev();
        newest.find(|kept| kept.snapshot.as_deref() == snapshot && is_it(kept))
    }

    /// The rollback to `snapshot` that waits for a reset.
    fn pending(&mut self, snapshot: Option<&str>) -> Option<&mut Operation> {
        self.newest(snapshot, |kept| {
            kept.kind == OperationKind::Rollback
                && kept.state == OperationState::Waiting
                && kept.progress.is_none()
        })
    }

    /// The merge of `snapshot`, which may have failed.
    fn merging(&mut self, snapshot: Option<&str>) -> Option<&mut Operation> {
        self.newest(snapshot, |kept| {
            kept.progress.is_some() && kept.state != OperationState::Succeeded
        })
    }

    fn set_merging(&mut self, snapshot: Option<&str>, state: OperationState) {
        if let Some(merging) = self.merging(snapshot) {
            merging.state = state;
            merging.ended = None;
            merging.error = None;
            merging.retry = None;
        }
    }
}

#[cfg(test)]
#[path = "operations_tests.rs"]
mod tests;
