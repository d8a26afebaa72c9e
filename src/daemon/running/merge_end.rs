//! The end of a merge: it is recorded, and the snapshot goes away.

use std::sync::Arc;

use crate::control::api::MergeOutcome;
use crate::control::events::EventKind;
use crate::daemon::cow::OpenRecord;
use crate::daemon::provenance::marking;
use crate::daemon::state::{SnapshotRecord, VolumeState};
use crate::daemon::volume::left_over::LeftOver;
use crate::daemon::volume::{LiveVolume, Merging, RETRY, lock};
use crate::engine::SnapshotId;
use crate::sandbox::{self, Kind};

impl LiveVolume {
    /// A merge has ended in the engine. The rest may have to wait for the operation
    /// that holds `ops`, so a thread of its own does it.
    pub fn spawn_merge_end(self: &Arc<Self>, snapshot: SnapshotId) {
        let volume = self.clone();
        let spawned = std::thread::Builder::new()
            .name("merge end".into())
            .spawn(move || {
                sandbox::thread(Kind::Process);
                volume.end_merge(snapshot);
            });
        match spawned {
            Ok(thread) => lock(&self.merge_ends).push(thread),
            Err(error) => {
                tracing::error!(%error, "the end of the merge could not be recorded; the next start records it")
            }
        }
    }

    /// Order: 1 the snapshot is dropped from the state file (repeated until it succeeds,
    /// because the merge is not over before) → 2 its view is closed, unless it followed →
    /// 3 the COW is closed → 4 under one lock the merge and the snapshot disappear from
    /// the status, and a view that followed becomes one of the origin's.
    fn end_merge(&self, id: SnapshotId) {
        // `ops` is not held between the attempts, so that control requests are served.
        let (_turn, merging, record) = loop {
            let turn = lock(&self.ops);
            let Some(merging) = lock(&self.tables).merging.clone().filter(|m| m.id == id) else {
                return;
            };
            let record = lock(&self.state).state().snapshot(&merging.name).cloned();
            match lock(&self.state).update(|s| forget_merged(s, &merging.name, merging.follow)) {
                Ok(()) => break (turn, merging, record),
                Err(error) => tracing::error!(snapshot = %merging.name, %error,
                    "the merge has ended, but the state file could not be written; this is repeated every second"),
            }
            drop(turn);
            // The next start finds an empty store and ends the merge again.
            if self.is_stopping() {
                return;
            }
            std::thread::sleep(RETRY);
        };
        let cow = self.close_merged(&merging, record.as_ref());
        let left_over = cow.and_then(|cow| LeftOver::new(&cow));
        let (name, chunks) = (merging.name, merging.chunks);
        let mut tables = lock(&self.tables);
        self.events
            .publish(Some(&name), EventKind::MergeDone { chunks });
        let merged = tables.snapshots.iter().position(|s| s.id == id);
        let merged = merged.map(|place| tables.snapshots.remove(place));
        let followed = merged.and_then(|m| m.view);
        tables.origin_views.extend(followed);
        tables.last_merge = Some(MergeOutcome {
            snapshot: name,
            chunks,
            error: None,
            cow: None,
        });
        tables.left_over = left_over.map(Arc::new);
        tables.merging = None;
    }

    /// 2 and 3. Returns the path of the COW.
    fn close_merged(&self, merging: &Merging, record: Option<&SnapshotRecord>) -> Option<String> {
        let merged = {
            let mut tables = lock(&self.tables);
            tables.snapshot_by_id_mut(merging.id).map(|m| {
                let view = m.view.take_if(|_| !merging.follow);
                (m.device, m.spec.cow.clone(), view, m.deferral.take())
            })
        };
        let (device, cow, view, deferral) = merged?;
        if let Some(view) = view {
            view.stop();
        }
        deferral.into_iter().for_each(OpenRecord::delete);
        drop(self.devices.remove(device));
        if let Some(record) = record {
            marking::release_cow(record);
        }
        tracing::info!(snapshot = %merging.name, chunks = merging.chunks, %cow,
            "merged: the origin is complete; the COW is not needed any more and can be removed");
        Some(cow)
    }
}

fn forget_merged(state: &mut VolumeState, name: &str, follow: bool) {
    let spec = state.snapshot(name).map(|s| s.spec.clone());
    if follow && let Some((spec, socket)) = spec.and_then(|s| Some((s.clone(), s.socket?))) {
        if spec.is_read_only() {
            state.read_only_sockets.push(socket.clone());
        }
        state.followed_sockets.push(socket);
    }
    state.drop_snapshot(name);
}
