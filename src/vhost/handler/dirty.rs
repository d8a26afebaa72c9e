//! The log of dirty pages: which writes are logged, and where.
//!
//! A front end sends these messages while rings run, for each queue and twice in each
//! migration. So nothing is drained: each worker takes the change between two of its rounds,
//! and the front end gets its answer when all have done so. From the answer on, every write
//! is logged as the message says, and nothing is marked in an old log.

use std::fs::File;
use std::io;

use vhost::vhost_user::message::VhostUserLog;
use vhost::vhost_user::{Error, Result};

use super::{Handler, LOG_ALL};
use crate::vhost::worker::LogSetting;

impl Handler {
    /// The log that the front end has just passed replaces the old one, if it fits.
    pub(super) fn replace_log(&mut self, log: &VhostUserLog, file: File) -> io::Result<()> {
        self.memory.set_log(Some((log, file)))?;
        let unfit = (0..self.queues.len()).find_map(|index| self.log_setting(index).err());
        if let Some(e) = unfit {
            // The connection ends, so that the old log is not needed.
            self.memory.set_log(None)?;
            self.log_setting_changes(0..self.queues.len());
            return Err(e);
        }
        self.log_setting_changes(0..self.queues.len());
        Ok(())
    }

    /// The features say whether all writes are logged.
    pub(super) fn logged_data_changes(&mut self) {
        let asks = self.asks_for_a_log();
        if self.memory.log_writes(asks) {
            self.log_setting_changes(0..self.queues.len());
            self.drop_unused_log();
        }
    }

    /// Writes to a used ring are logged at `address` from now on; `None`: they are not.
    pub(super) fn log_used_ring(&mut self, index: usize, address: Option<u64>) -> Result<()> {
        let queue = self.queue(index)?;
        let before = std::mem::replace(&mut queue.used_log, address);
        if before == address {
            return Ok(());
        }
        if let Err(e) = self.log_setting(index) {
            self.queue(index)?.used_log = before;
            return Err(Error::ReqHandlerError(e));
        }
        self.log_setting_changes(index..index + 1);
        self.drop_unused_log();
        Ok(())
    }

    /// The guest is being migrated. (Some front ends set the feature without a log.)
    pub(super) const fn logs_writes(&self) -> bool {
        self.asks_for_a_log() && self.memory.log().is_some()
    }

    const fn asks_for_a_log(&self) -> bool {
        self.features & LOG_ALL != 0
    }

    pub(super) fn log_setting(&self, index: usize) -> io::Result<LogSetting> {
        let writes = self.logs_writes();
        self.queues.get(index).map_or_else(
            || Ok(LogSetting::default()),
            |queue| queue.log_setting(writes, self.memory.log()),
        )
    }

    /// Tells the workers, and waits until all have taken it.
    fn log_setting_changes(&self, indices: std::ops::Range<usize>) {
        let told: Vec<_> = indices
            .filter_map(|index| {
                let worker = self.queues.get(index)?.worker.as_ref()?;
                Some(worker.log(self.log_setting(index).ok()?))
            })
            .collect();
        for in_force in told {
            // One that has ended logs nothing more.
            let _ = in_force.recv();
        }
    }

    /// After a migration the front end does not take its log back; it only says that it
    /// needs none.
    fn drop_unused_log(&mut self) {
        let used = self.queues.iter().any(|queue| queue.used_log.is_some());
        if !used && !self.asks_for_a_log() {
            // Without a log nothing can be too small.
            let _ = self.memory.set_log(None);
        }
    }
}
