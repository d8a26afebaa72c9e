//! The rollback that a guest's reset triggers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::control::api::Seen;
use crate::control::events::EventKind;
use crate::daemon::monitor::watch::{ResetReport, Watch};
use crate::daemon::volume::reset_rule::{Postponed, happens, reason, seen};
use crate::daemon::volume::views::{ViewOwner, ViewSettings};
use crate::daemon::volume::{LiveVolume, lock};
use crate::engine::Engine;
use crate::io::Devices;
use crate::vhost::Start;

impl ViewOwner for LiveVolume {
    fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    fn devices(&self) -> &Arc<Devices> {
        &self.devices
    }

    fn view_settings(&self) -> &ViewSettings {
        &self.facts.views
    }

    fn released(&self) -> &Arc<AtomicBool> {
        &self.released
    }

    fn publish_guest_event(&self, snapshot: Option<&str>, event: EventKind) {
        self.events.publish(snapshot, event);
    }

    /// Holds the lock of the state file only: a thread that stops the view may hold others.
    fn record_write_cache(&self, socket: &str, on: bool) -> Result<(), String> {
        lock(&self.state)
            .update(|state| state.set_write_cache(socket, on))
            .map_err(|e| e.to_string())
    }

    fn is_write_through(&self, socket: Option<&str>, comes_from_elsewhere: bool) -> bool {
        let state = lock(&self.state);
        let any = !state.state().write_through_sockets.is_empty();
        comes_from_elsewhere && any || state.state().is_write_through(socket)
    }

    /// The guest cannot use the disk before this returns, so a rollback that waited for
    /// this start happens before the guest reads.
    fn origin_rings_start(&self, start: Start) {
        // Asked at every start, because a reset that was reported before a resume does not
        // count at a later start.
        let report = lock(&self.watch)
            .as_ref()
            .map_or(ResetReport::Unknown, Watch::take_report);
        if start != Start::Program {
            self.may_come_back.store(false, Ordering::Release);
        }
        let Some(seen) = seen(start) else { return };
        self.look_for_more();
        if !self.is_rollback_pending() {
            return;
        }
        let pending = lock(&self.state).state().rollback_at_reset.clone();
        let Some(pending) = pending else { return };
        if happens(pending.reset, seen, report) {
            self.roll_back_at_reset(seen);
            return;
        }
        let reason = reason(&pending.snapshot, seen, report);
        tracing::warn!(snapshot = %pending.snapshot, "the rollback is still pending: {reason}");
        lock(&self.tables).postponed = Some(Postponed {
            seen,
            reason: reason.clone(),
        });
        self.events.publish(
            Some(&pending.snapshot),
            EventKind::RollbackWaits { seen, reason },
        );
    }
}

impl LiveVolume {
    /// Carries out the pending rollback. The guest's rings start only when this returns,
    /// so the guest boots the snapshot's content.
    fn roll_back_at_reset(&self, seen: Seen) {
        let mut ops = lock(&self.ops);
        // The flag was read without a lock, so the rollback may have been carried out or
        // cancelled since.
        let Some(pending) = lock(&self.state).state().rollback_at_reset.clone() else {
            return;
        };
        let name = &pending.snapshot;
        // After a restart the daemon opens it itself.
        let given = lock(&self.kept_cow).take();
        let keep = (pending.keep, given.as_ref());
        let done = self.roll_back_in_turn(&mut ops, name, keep, pending.rate);
        if done.is_err() {
            *lock(&self.kept_cow) = given;
        }
        match done {
            Ok(()) => {
                tracing::info!(snapshot = %name, "the guest was reset, and its disk is rolled back")
            }
            Err(error) => {
                tracing::error!(snapshot = %name, %error, "the guest was reset, but the rollback failed");
                let error = error.to_string();
                lock(&self.tables).postponed = Some(Postponed {
                    seen,
                    reason: format!("it failed at the last reset: {error}"),
                });
                self.events
                    .publish(Some(name), EventKind::RollbackFailed { error });
            }
        }
    }
}
