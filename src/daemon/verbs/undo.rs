//! Removing a change from the state file that failed in the engine.

use crate::daemon::volume::undo::Undo;
use crate::daemon::volume::{LiveVolume, RETRY, lock};
use crate::sandbox::{self, Kind};

impl LiveVolume {
    /// Removes a failed change from the state file. If the file cannot be written, this is
    /// repeated until it succeeds, because the next start would carry the change out. True
    /// if it succeeded at once.
    pub fn undo_record(&self, undo: Undo) -> bool {
        let Err(error) = lock(&self.state).update(|s| undo.apply(s)) else {
            return true;
        };
        let name = undo.not_merged.as_ref().or(undo.not_taken.as_ref());
        tracing::error!(snapshot = %name.map_or("", |n| n), %error,
            "a change failed and is still in the state file, which cannot be written; this is repeated every second");
        let is_first = {
            let mut tables = lock(&self.tables);
            tables.undo.push(undo);
            tables.undo.len() == 1
        };
        if is_first {
            self.spawn_undo();
        }
        false
    }

    fn spawn_undo(&self) {
        let this = self.this.clone();
        let spawned = std::thread::Builder::new()
            .name("undo".into())
            .spawn(move || {
                sandbox::thread(Kind::Process);
                loop {
                    std::thread::sleep(RETRY);
                    let Some(volume) = this.upgrade().filter(|v| !v.is_stopping()) else {
                        return;
                    };
                    if volume.is_undone() {
                        return;
                    }
                }
            });
        if let Err(error) = spawned {
            tracing::error!(%error, "cannot start a thread; the change is removed when the daemon stops");
        }
    }

    /// Repeats what [`Self::undo_record`] could not do; true if nothing is left.
    pub fn is_undone(&self) -> bool {
        let _turn = lock(&self.ops);
        let undo = lock(&self.tables).undo.clone();
        if undo.is_empty() {
            return true;
        }
        let recorded = lock(&self.state).update(|s| undo.iter().for_each(|undo| undo.apply(s)));
        if recorded.is_ok() {
            lock(&self.tables).undo.clear();
            self.refresh_pending();
        }
        recorded.is_ok()
    }
}
