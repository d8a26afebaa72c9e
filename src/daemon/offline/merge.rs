//! A merge without a daemon: the same volume, with nobody let in. Its other
//! snapshots get their copy-outs, and the state file learns how it ended.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::recorded::{record_of, recorded};
use crate::control::api::{SnapshotSpec, StoreType};
use crate::daemon::DaemonError;
use crate::daemon::cow::storage_of;
use crate::daemon::provenance::marks;
use crate::daemon::running::run::{finish, stop};
use crate::daemon::running::signals::Signals;
use crate::daemon::start::options::ServeOptions;
use crate::daemon::start::preflight::{Sockets, check_without_guests};
use crate::daemon::start::serve::{build, open_up};
use crate::daemon::state::OpenedState;
use crate::daemon::state::place::default_state_path;
use crate::daemon::volume::{LiveVolume, lock};
use crate::io::{BlockFile, IoEngine, Lock, OpenOptions};
use crate::offline::{self, StoreState};

/// What a finished merge did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MergeReport {
    /// Chunks copied back into the origin by this run.
    pub chunks: u64,
}

/// How often the progress is shown.
const TICK: Duration = Duration::from_millis(100);

/// Merges the store at `cow` into `origin`. `progress` gets the chunks done and
/// the chunks altogether. Whatever stops it, another call goes on where it was.
///
/// # Errors
/// Either file is in use or cannot be opened; the store is invalid, corrupt or
/// not for this origin; the volume's state speaks against it; or I/O failed.
pub fn merge_offline(
    origin: &Path,
    cow: &Path,
    state: Option<PathBuf>,
    progress: impl FnMut(u64, u64),
) -> Result<MergeReport, DaemonError> {
    let signals = Signals::hold().map_err(|e| DaemonError::system("take over signals", e))?;
    let (options, remembered) = options(origin, cow, state)?;
    let mut checked = check_without_guests(&options)?;
    for remark in &checked.plan.remarks {
        tracing::warn!("{remark}");
    }
    if let Some(merge) = &mut checked.plan.state.merge {
        merge.rate = 0; // nobody else needs the disks
        if std::mem::take(&mut merge.paused) {
            tracing::info!(snapshot = %merge.snapshot, "the merge was paused, and goes on now");
        }
    }
    let (volume, mut notices, prepared) = build(&options, checked)?;
    let control = open_up(&volume, prepared, Sockets::default(), &mut notices);
    let merged = control.and_then(|_| {
        signals
            .release()
            .map_err(|e| DaemonError::system("wait for signals", e))?;
        until_merged(&volume, &mut notices, &signals, progress)
    });
    // On a thread of its own: the batch that runs may wait for our answers.
    let stopped = std::thread::scope(|scope| {
        let stopper = scope.spawn(|| stop(&volume, None));
        while !stopper.is_finished() {
            notices.turn(&volume);
            notices.executor().wait(Some(TICK / 4));
        }
        stopper.join()
    });
    notices.turn(&volume);
    match stopped {
        // Nobody is served, so nothing is left undone.
        Ok(Ok(_)) => {
            finish(&volume)?;
            let state = lock(&volume.state);
            if !remembered && state.state().is_blank() {
                // It was only needed in case this merge had been cut short.
                state.path().map(std::fs::remove_file);
                marks::clear(origin);
            }
        }
        // If the merge has failed, it has said why.
        Ok(Err(error)) => return merged.and(Err(DaemonError::NotDurable(error))),
        Err(_) => return Err(DaemonError::Killed),
    }
    merged
}

/// What `serve` would be told: everything from the state file, and this merge.
/// And whether there was a state file before.
fn options(
    origin: &Path,
    cow: &Path,
    state: Option<PathBuf>,
) -> Result<(ServeOptions, bool), DaemonError> {
    let refused = |e: String| DaemonError::Refused(e);
    // First the plainest of mistakes; the locks come later.
    let look = OpenOptions {
        lock: Lock::None,
        ..OpenOptions::read_only()
    };
    BlockFile::open(origin, look).map_err(|e| refused(format!("origin {e}")))?;
    if storage_of(cow).is_some() && storage_of(cow) == storage_of(origin) {
        return Err(refused(format!(
            "{}: is the origin itself; give the COW of one of its snapshots",
            cow.display()
        )));
    }
    if let Some(why) = recorded(cow, Some(origin), state.as_deref())?.and_then(|k| k.forbids()) {
        return Err(refused(format!("{}: {why}", cow.display())));
    }
    let found = offline::info(cow, None).map_err(|e| refused(e.to_string()))?;
    let problem = match found.state {
        StoreState::Valid => None,
        StoreState::Invalid => {
            Some("the snapshot is invalid for good; there is nothing to merge".into())
        }
        StoreState::New => Some("no store was made here yet; is it the right file?".into()),
        StoreState::Corrupt => Some(found.problem.unwrap_or_else(|| "no good store".into())),
    };
    if let Some(problem) = problem {
        return Err(refused(format!("{}: {problem}", cow.display())));
    }
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
    if let Some(merge) = recorded.as_ref().and_then(|s| s.merge.as_ref())
        && known.is_none_or(|known| known.spec.name != merge.snapshot)
    {
        let its_cow = recorded
            .as_ref()
            .and_then(|s| s.snapshot(&merge.snapshot))
            .map_or("its COW", |s| &s.spec.cow);
        return Err(refused(format!(
            "{}: the merge of {} into {} is not finished, and an origin takes one at a time; finish it first with \
             --cow {its_cow}",
            cow.display(),
            merge.snapshot,
            origin.display()
        )));
    }
    let (name, snapshots) = match known {
        Some(record) => (record.spec.name.clone(), Vec::new()),
        None => {
            let spec = SnapshotSpec {
                name: "offline-merge".to_owned(),
                cow: cow.display().to_string(),
                store_type: StoreType::P,
                chunk_size: None,
                size: None,
                socket: None,
                discard_zeroes_cow: None,
                discard_passdown_origin: None,
                read_only: None,
            };
            (spec.name.clone(), vec![spec])
        }
    };
    // One that is under way is taken up without being told.
    let under_way = recorded
        .as_ref()
        .and_then(|s| s.merge.as_ref())
        .is_some_and(|m| m.snapshot == name);
    let remembered = recorded.is_some();
    let options = ServeOptions {
        origin: origin.to_owned(),
        endpoint: None,
        read_only: false,
        serial: None,
        num_queues: 1,
        snapshots,
        merge: (!under_way).then_some(name),
        merge_writes: None,
        control: None,
        qmp: None,
        state,
        io_engine: IoEngine::Auto,
        accept_changes: false,
        forget: Vec::new(),
        force: false,
    };
    Ok((options, remembered))
}

fn until_merged(
    volume: &Arc<LiveVolume>,
    notices: &mut crate::daemon::running::notices::Notices,
    signals: &Signals,
    mut progress: impl FnMut(u64, u64),
) -> Result<MergeReport, DaemonError> {
    let total = lock(&volume.tables)
        .merging
        .as_ref()
        .map_or(0, |m| m.chunks);
    progress(0, total);
    loop {
        notices.turn(volume);
        if signals.count() > 0 {
            return Err(DaemonError::Refused(
                "interrupted; the same command goes on where it was".to_owned(),
            ));
        }
        match volume.engine().status().merge {
            Some(merge) => progress(merge.chunks_done, total),
            None => {
                // The end is told by a notice, which is recorded before we go.
                notices.turn(volume);
                progress(total, total);
                return Ok(MergeReport { chunks: total });
            }
        }
        if let Some(stop) = volume.engine().status().merge.and_then(|m| m.stopped) {
            let id = lock(&volume.tables).merging.as_ref().map(|m| m.id);
            return Err(DaemonError::Refused(format!(
                "the merge has stopped: {}. What is merged stays merged; when the cause is removed, the same command goes on",
                volume.in_words(stop.failure, id)
            )));
        }
        let fd = std::os::fd::AsFd::as_fd(signals);
        notices.executor().wait_also(&[fd], Some(TICK));
    }
}
