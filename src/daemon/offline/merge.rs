//! A merge without a daemon: the same volume, to which no guest and no control client can
//! connect. Its other snapshots get their copy-outs, and the end is recorded in the state
//! file.

use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use super::recorded::{in_state_files, record_of};
use crate::control::api::{SnapshotSpec, StoreType};
use crate::daemon::DaemonError;
use crate::daemon::identity::storage_of;
use crate::daemon::provenance::marks::MarkedFile;
use crate::daemon::running::notices::Notices;
use crate::daemon::running::signals::Signals;
use crate::daemon::running::stop::{Ended, finish, stop};
use crate::daemon::start::build::build_volume;
use crate::daemon::start::options::ServeOptions;
use crate::daemon::start::preflight::check_without_guests;
use crate::daemon::start::serve::start_serving;
use crate::daemon::start::sockets::Sockets;
use crate::daemon::state::place::default_state_path;
use crate::daemon::state::{OpenedState, SnapshotRecord, VolumeState};
use crate::daemon::volume::{LiveVolume, Service, lock};
use crate::engine::ControlError;
use crate::io::{BlockFile, Lock, OpenOptions};
use crate::offline::{self, StoreState};

/// The result of a finished merge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MergeReport {
    /// Chunks copied back into the origin by this run.
    pub chunks: u64,
}

/// How often the progress is reported.
const TICK: Duration = Duration::from_millis(100);

/// Merges the store at `cow` into `origin`. `progress` gets the bytes of merged chunks and
/// of all chunks. After any interruption another call continues the merge.
///
/// # Errors
/// Either file is in use or cannot be opened; the store is invalid, corrupt or
/// not for this origin; the state file contradicts it; or I/O failed.
pub fn merge_offline(
    origin: &Path,
    cow: &Path,
    state: Option<PathBuf>,
    progress: impl FnMut(u64, u64),
) -> Result<MergeReport, DaemonError> {
    let signals = Signals::hold(false).map_err(|e| DaemonError::system("take over signals", e))?;
    let (options, has_state_file) = options(origin, cow, state)?;
    let mut checked = check_without_guests(&options)?;
    for remark in &checked.plan.remarks {
        tracing::warn!("{remark}");
    }
    if let Some(merge) = &mut checked.plan.state.merge {
        merge.rate = 0; // no guest competes for the disks
        if std::mem::take(&mut merge.paused) {
            tracing::info!(snapshot = %merge.snapshot, "the merge was paused, and continues now");
        }
    }
    let (volume, mut notices, prepared) = build_volume(&options, checked, Service::OfflineMerge)?;
    let control = start_serving(&volume, prepared, Sockets::default(), &mut notices);
    let merged = control.and_then(|_| {
        signals
            .release()
            .map_err(|e| DaemonError::system("wait for signals", e))?;
        until_merged(&volume, &mut notices, &signals, progress)
    });
    let stopped = stop_beside_notices(&volume, &mut notices);
    notices.process(&volume);
    match stopped {
        // No guest is connected, so everything is drained.
        Some(Ok(_)) => {
            finish(&volume)?;
            let state = lock(&volume.state);
            if !has_state_file && state.state().is_blank() {
                // It was only needed in case that this merge had been interrupted.
                state.path().map(std::fs::remove_file);
                if let Ok(file) = MarkedFile::open(origin) {
                    file.clear();
                }
            }
        }
        // The error of a failed merge is the more useful one.
        Some(Err(error)) => return merged.and(Err(DaemonError::NotDurable(error))),
        None => return Err(DaemonError::Killed),
    }
    merged
}

/// The options of a `serve` that does this merge, and whether there is a state file.
fn options(
    origin: &Path,
    cow: &Path,
    state: Option<PathBuf>,
) -> Result<(ServeOptions, bool), DaemonError> {
    check_files(origin, cow, state.as_deref())?;
    let place = match &state {
        Some(path) => Ok(path.clone()),
        None => default_state_path(origin),
    };
    let place = place.map_err(|e| DaemonError::system("find the place of the state file", e))?;
    let recorded = if place.exists() {
        OpenedState::open(Some(&place))?.recorded
    } else {
        None
    };
    let known = recorded.as_ref().and_then(|s| record_of(s, cow));
    if let Some(state) = &recorded {
        refuse_other_merge(state, known, origin, cow)?;
    }
    let (name, snapshots) = match known {
        Some(record) => (record.spec.name.clone(), Vec::new()),
        None => {
            let spec = unrecorded_spec(cow);
            (spec.name.clone(), vec![spec])
        }
    };
    // A start resumes a merge that is recorded by itself.
    let is_recorded = recorded
        .as_ref()
        .and_then(|s| s.merge.as_ref())
        .is_some_and(|m| m.snapshot == name);
    let options = ServeOptions {
        origin: origin.to_owned(),
        num_queues: 1,
        snapshots,
        merge: (!is_recorded).then_some(name),
        state,
        polling: Duration::ZERO,
        ..ServeOptions::default()
    };
    Ok((options, recorded.is_some()))
}

/// Refuses obvious mistakes, before anything is locked.
fn check_files(origin: &Path, cow: &Path, state: Option<&Path>) -> Result<(), DaemonError> {
    let refused = |e: String| DaemonError::Refused(e);
    let unlocked = OpenOptions {
        lock: Lock::None,
        ..OpenOptions::read_only()
    };
    BlockFile::open(origin, unlocked).map_err(|e| refused(format!("origin {e}")))?;
    if storage_of(cow).is_some() && storage_of(cow) == storage_of(origin) {
        return Err(refused(format!(
            "{}: is the origin itself; give the COW of one of its snapshots",
            cow.display()
        )));
    }
    if let Some(why) = in_state_files(cow, Some(origin), state)?.and_then(|k| k.forbids()) {
        return Err(refused(format!("{}: {why}", cow.display())));
    }
    let found = offline::info(cow, None).map_err(|e| refused(e.to_string()))?;
    let problem = match found.state {
        StoreState::Valid => return Ok(()),
        StoreState::Invalid => "the snapshot is invalid for good; there is nothing to merge".into(),
        StoreState::New => "no store was made here yet; is it the right file?".into(),
        StoreState::Corrupt => found
            .problem
            .unwrap_or_else(|| "it does not hold an intact store".into()),
    };
    Err(refused(format!("{}: {problem}", cow.display())))
}

/// Refuses the merge while the merge of another snapshot is recorded.
fn refuse_other_merge(
    state: &VolumeState,
    known: Option<&SnapshotRecord>,
    origin: &Path,
    cow: &Path,
) -> Result<(), DaemonError> {
    let Some(merge) = &state.merge else {
        return Ok(());
    };
    if known.is_some_and(|known| known.spec.name == merge.snapshot) {
        return Ok(());
    }
    let its_cow = state
        .snapshot(&merge.snapshot)
        .map_or("its COW", |s| &s.spec.cow);
    Err(DaemonError::Refused(format!(
        "{}: the merge of {} into {} is not finished, and an origin can have only one merge at a time; finish it first with \
         --cow {its_cow}",
        cow.display(),
        merge.snapshot,
        origin.display()
    )))
}

/// A snapshot that no state file records.
fn unrecorded_spec(cow: &Path) -> SnapshotSpec {
    SnapshotSpec {
        name: "offline-merge".to_owned(),
        cow: cow.display().to_string(),
        store_type: StoreType::P,
        chunk_size: None,
        size: None,
        socket: None,
        discard_zeroes_cow: None,
        defer_entries: None,
        discard_passdown_origin: None,
        read_only: None,
    }
}

/// Stops the volume, on a thread of its own, because the running batch may wait for an
/// answer to a notice. `None`: that thread has died.
fn stop_beside_notices(
    volume: &Arc<LiveVolume>,
    notices: &mut Notices,
) -> Option<Result<Ended, ControlError>> {
    let (ended, has_ended) = mpsc::sync_channel(1);
    let wake = notices.executor().waker();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let _ = ended.send(stop(volume, None));
            // Behind its result, so that the next wait does not miss it.
            wake.set();
        });
        loop {
            notices.process(volume);
            match has_ended.try_recv() {
                Ok(result) => return Some(result),
                Err(mpsc::TryRecvError::Empty) => notices.executor().wait(Some(TICK)),
                Err(mpsc::TryRecvError::Disconnected) => return None,
            }
        }
    })
}

fn until_merged(
    volume: &Arc<LiveVolume>,
    notices: &mut Notices,
    signals: &Signals,
    mut progress: impl FnMut(u64, u64),
) -> Result<MergeReport, DaemonError> {
    let (total, chunk_bytes) = {
        let tables = lock(&volume.tables);
        let merging = tables.merging.as_ref();
        let snapshot = merging.and_then(|m| tables.snapshot(&m.name));
        let chunk_bytes = snapshot.map_or(0, |s| s.chunk_size.bytes());
        (merging.map_or(0, |m| m.chunks), chunk_bytes)
    };
    let mut progress = |chunks: u64| {
        let bytes = |chunks: u64| chunks.saturating_mul(chunk_bytes);
        progress(bytes(chunks), bytes(total));
    };
    progress(0);
    loop {
        notices.process(volume);
        if signals.count() > 0 {
            return Err(DaemonError::Refused(
                "interrupted; the same command continues the merge".to_owned(),
            ));
        }
        match volume.engine.status().merge {
            Some(merge) => progress(merge.chunks_done),
            None => {
                // The notice of the end is processed before the stop.
                notices.process(volume);
                progress(total);
                return Ok(MergeReport { chunks: total });
            }
        }
        if let Some(stop) = volume.engine.status().merge.and_then(|m| m.stopped) {
            let id = lock(&volume.tables).merging.as_ref().map(|m| m.id);
            return Err(DaemonError::Refused(format!(
                "the merge has stopped: {}. What is merged stays merged; remove the cause and repeat the same command to continue",
                volume.describe_failure(stop.failure, id)
            )));
        }
        let fd = std::os::fd::AsFd::as_fd(signals);
        notices.executor().wait_also(&[fd], Some(TICK));
    }
}
