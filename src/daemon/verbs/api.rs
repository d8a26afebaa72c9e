//! The volume as the control interface uses it.

use std::os::fd::OwnedFd;

use super::status::views;
use crate::control::api::{
    ApiError, MergeRequest, ResizeReply, RollbackReply, RollbackRequest, SnapshotSpec, Volume,
    VolumeStatus,
};
use crate::control::events::EventLog;
use crate::control::metrics::Family;
use crate::daemon::volume::{LiveVolume, lock};

/// A call that changes something waits until the main thread has processed all pending
/// notices before it returns, so that the events of the change are in the log.
impl Volume for LiveVolume {
    fn status(&self) -> VolumeStatus {
        self.current_status()
    }

    fn add_snapshot(&self, spec: SnapshotSpec, cow: Option<OwnedFd>) -> Result<(), ApiError> {
        self.after_notices(self.create_snapshot(spec, cow))
    }

    fn remove_snapshot(&self, name: &str, force: bool) -> Result<(), ApiError> {
        self.after_notices(self.delete_snapshot(name, force))
    }

    fn detach(&self, socket: &str) -> Result<(), ApiError> {
        self.after_notices(self.detach_socket(socket))
    }

    fn grow_snapshot(&self, name: &str, bytes: u64) -> Result<(), ApiError> {
        self.after_notices(self.grow_store(name, bytes))
    }

    fn resize(&self, bytes: Option<u64>) -> Result<ResizeReply, ApiError> {
        self.after_notices(self.resize_origin(bytes))
    }

    fn rollback(
        &self,
        request: RollbackRequest,
        cow: Option<OwnedFd>,
    ) -> Result<RollbackReply, ApiError> {
        self.after_notices(self.roll_back(request, cow))
    }

    fn cancel_rollback(&self) -> Result<(), ApiError> {
        self.cancel_pending_rollback()
    }

    fn merge(&self, request: MergeRequest) -> Result<(), ApiError> {
        self.after_notices(self.merge_now(&request))
    }

    fn pause_merge(&self) -> Result<(), ApiError> {
        self.after_notices(self.set_paused(true))
    }

    fn resume_merge(&self) -> Result<(), ApiError> {
        self.after_notices(self.set_paused(false))
    }

    fn set_merge_rate(&self, bytes_per_second: u64) -> Result<(), ApiError> {
        self.set_rate(bytes_per_second)
    }

    fn metrics(&self) -> Result<Vec<Family>, ApiError> {
        Self::metrics(self)
    }

    fn release(&self) -> Result<(), ApiError> {
        self.after_notices(self.let_go())
    }

    fn waits_for(&self) -> Vec<String> {
        let tables = lock(&self.tables);
        let views = views(&tables);
        let slow = views.iter().filter_map(|view| {
            let name = view.snapshot.as_deref().unwrap_or("origin");
            Some(format!("view {name}: {}", view.slow_io?))
        });
        slow.collect()
    }

    fn events(&self) -> &EventLog {
        &self.events
    }
}

impl LiveVolume {
    fn after_notices<T>(&self, result: T) -> T {
        self.notice_barrier.wait();
        result
    }
}
