//! Giving the volume to another daemon, after its guests were migrated there.

use std::sync::atomic::Ordering;

use crate::control::api::{ApiError, StoreType};
use crate::daemon::volume::views::ServedView;
use crate::daemon::volume::{LiveVolume, conflict, lock};

impl LiveVolume {
    /// Decides to stop. Whoever asked can take the volume over as soon as its files are not
    /// locked any more.
    ///
    /// Order: 1 no guest uses a view, and none will want to use it again; otherwise nothing
    /// happens → 2 from now on no ring starts, and none has started since 1 → 3 the main
    /// thread stops as after SIGTERM: everything is durable, the state file says that the
    /// volume is not served → 4 with the end of the process the files are free. A guest that
    /// is continued after 2 all the same is refused.
    ///
    /// # Errors
    /// A guest runs, or is here and was not migrated: nothing has changed.
    pub fn let_go(&self) -> Result<(), ApiError> {
        let _ops = lock(&self.ops);
        self.refuse_to_let_go()?;
        self.released.store(true, Ordering::SeqCst);
        let refused = self.refuse_to_let_go();
        if refused.is_err() {
            self.released.store(false, Ordering::SeqCst);
        } else {
            tracing::info!("the volume is given to another daemon");
        }
        refused
    }

    fn refuse_to_let_go(&self) -> Result<(), ApiError> {
        let tables = lock(&self.tables);
        let own = tables.snapshots.iter().filter_map(|s| s.view.as_ref());
        for view in tables.origin_views.iter().chain(own) {
            let place = view.place();
            if view.is_running() {
                return Err(conflict(format!(
                    "the guest at {place} is running: the disk is given away after the guest \
                     was migrated"
                )));
            }
            if !ServedView::has_let_go(view) {
                return Err(conflict(format!(
                    "the guest at {place} does not run, but it was not migrated: its disk would \
                     be taken away from it. End its front end first, or stop this daemon with \
                     SIGTERM"
                )));
            }
        }
        let mut snapshots = tables.snapshots.iter();
        match snapshots.find(|s| s.spec.store_type == StoreType::N) {
            Some(transient) => Err(conflict(format!(
                "snapshot {} is transient and would end with this daemon: remove it first",
                transient.spec.name
            ))),
            None => Ok(()),
        }
    }

    /// The daemon has to stop, because another one takes over.
    pub fn is_released(&self) -> bool {
        self.released.load(Ordering::SeqCst)
    }
}
