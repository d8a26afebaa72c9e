//! A volume that only records its calls.

use std::os::fd::OwnedFd;
use std::sync::Mutex;

use snapback::control::api::{
    ApiError, ErrorKind, MergeOutcome, MergeRequest, MergeStatus, OriginStatus, ResizeReply,
    RollbackOutcome, RollbackReply, RollbackRequest, SnapshotSpec, SnapshotStatus, State,
    StoreType, Volume, VolumeStatus,
};
use snapback::control::events::EventLog;

/// A volume with a valid snapshot `good`, an invalid one `bad`, and a merge
/// that goes through `script`, one status after the other.
pub struct Notes {
    calls: Mutex<Vec<String>>,
    script: Mutex<Vec<VolumeStatus>>,
    pub events: EventLog,
}

pub fn snapshot(name: &str, state: State) -> SnapshotStatus {
    SnapshotStatus {
        name: name.to_owned(),
        cow: format!("/vm/{name}.cow"),
        store_type: StoreType::P,
        cow_device: "0:0".to_owned(),
        state,
        sectors: 8192,
        read_only: false,
        chunk_sectors: 8,
        allocated_sectors: 24,
        total_sectors: 2048,
        metadata_sectors: 16,
        discard_zeroes_cow: false,
        discard_passdown_origin: false,
        defer_entries: false,
    }
}

pub fn idle() -> VolumeStatus {
    VolumeStatus {
        origin: OriginStatus {
            path: "/vm/disk.img".to_owned(),
            sectors: 8192,
            read_only: false,
            device: "0:0".to_owned(),
        },
        views: Vec::new(),
        snapshots: vec![
            snapshot("good", State::Active),
            snapshot("bad", State::Invalid),
        ],
        merge: None,
        rollback_at_reset: None,
        rollback: None,
        sandbox: None,
        last_merge: None,
        pid: None,
        access: Default::default(),
    }
}

pub fn merging(error: Option<&str>) -> VolumeStatus {
    let merge = MergeStatus {
        snapshot: "good".to_owned(),
        chunks_done: 1,
        chunks_left: 1,
        bytes_per_second: 4096,
        rate_limit: None,
        seconds_left: Some(1),
        paused: false,
        error: error.map(str::to_owned),
        retry: error.map(|_| snapback::control::api::Retry::Restart),
    };
    VolumeStatus {
        snapshots: vec![snapshot("good", State::Merging)],
        merge: Some(merge),
        ..idle()
    }
}

pub fn merged() -> VolumeStatus {
    let outcome = MergeOutcome {
        snapshot: "good".to_owned(),
        chunks: 2,
        error: None,
        cow: Some("/vm/good.cow".to_owned()),
    };
    VolumeStatus {
        snapshots: Vec::new(),
        last_merge: Some(outcome),
        ..idle()
    }
}

impl Notes {
    pub fn new(script: Vec<VolumeStatus>) -> Self {
        Self {
            calls: Mutex::default(),
            script: Mutex::new(script),
            events: EventLog::default(),
        }
    }

    /// What was asked since the last call.
    pub fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }

    fn note<T: std::fmt::Debug>(&self, call: &str, value: T) -> Result<(), ApiError> {
        let text = format!("{call} {value:?}");
        let refused = text.contains("refused");
        self.calls.lock().unwrap().push(text);
        if refused {
            Err(ApiError::new(
                ErrorKind::Conflict,
                "a merge is running: wait for it",
            ))
        } else {
            Ok(())
        }
    }
}

impl Volume for Notes {
    fn status(&self) -> VolumeStatus {
        let mut script = self.script.lock().unwrap();
        if script.len() > 1 {
            script.remove(0)
        } else {
            script[0].clone()
        }
    }
    fn add_snapshot(&self, spec: SnapshotSpec, _: Option<OwnedFd>) -> Result<(), ApiError> {
        self.note("add", serde_json::to_string(&spec).unwrap())
    }
    fn remove_snapshot(&self, name: &str, _force: bool) -> Result<(), ApiError> {
        self.note("remove", name)
    }
    fn grow_snapshot(&self, name: &str, bytes: u64) -> Result<(), ApiError> {
        self.note("grow", (name, bytes))
    }
    fn resize(&self, bytes: Option<u64>) -> Result<ResizeReply, ApiError> {
        self.note("resize", bytes)?;
        Ok(ResizeReply {
            before: 1 << 20,
            size: bytes.unwrap_or(1 << 20),
            told: vec![None],
            untold: vec![Some("disk.sock".to_owned())],
        })
    }
    fn rollback(
        &self,
        request: RollbackRequest,
        _: Option<OwnedFd>,
    ) -> Result<RollbackReply, ApiError> {
        self.note("rollback", serde_json::to_string(&request).unwrap())?;
        Ok(RollbackOutcome::AtNextReset.into())
    }
    fn cancel_rollback(&self) -> Result<(), ApiError> {
        self.note("cancel rollback", ())
    }
    fn merge(&self, request: MergeRequest) -> Result<(), ApiError> {
        self.note("merge", serde_json::to_string(&request).unwrap())
    }
    fn pause_merge(&self) -> Result<(), ApiError> {
        self.note("pause", ())
    }
    fn detach(&self, socket: &str) -> Result<(), ApiError> {
        self.note("detach", socket)
    }
    fn release(&self) -> Result<(), ApiError> {
        self.note("release", ())
    }
    fn resume_merge(&self) -> Result<(), ApiError> {
        self.note("resume", ())
    }
    fn set_merge_rate(&self, rate: u64) -> Result<(), ApiError> {
        self.note("rate", rate)
    }
    fn events(&self) -> &EventLog {
        &self.events
    }
}
