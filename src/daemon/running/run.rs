//! The main loop.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use super::manager::Manager;
use super::notices::Notices;
use super::signals::Signals;
use super::stop::{Ended, stop};
use crate::control::ControlServer;
use crate::control::events::EventKind;
use crate::daemon::DaemonError;
use crate::daemon::volume::{LiveVolume, RETRY};
use crate::engine::ControlError;
use crate::event_flag::EventFlag;
use crate::sandbox::{self, Kind};
use crate::supervisor;

/// How often to check whether the only front end, on a passed descriptor, has left.
const PRESENCE: Duration = Duration::from_millis(250);

type Stopper = JoinHandle<Result<Ended, ControlError>>;

/// Answers the engine's notices until a signal comes, then until everything is drained.
pub fn run(
    volume: &Arc<LiveVolume>,
    control: Option<ControlServer>,
    notices: &mut Notices,
    signals: &Signals,
    manager: &mut Manager,
) -> Result<Ended, DaemonError> {
    let mut control = Some(control);
    let failed = |e| DaemonError::system("stop in order", e);
    let drained = Arc::new(EventFlag::new().map_err(failed)?);
    let mut stopper: Option<Stopper> = None;
    loop {
        notices.process(volume);
        let count = signals.count();
        if count > 1 {
            tracing::warn!("a second signal to stop: exiting without draining, as if killed");
            return Ok(Ended::AtOnce);
        }
        if signals.take_reload() && stopper.is_none() {
            manager.reload();
        }
        if let Some(thread) = stopper.take_if(|t| t.is_finished()) {
            notices.process(volume);
            return join(thread, volume);
        }
        if (count == 1 || volume.is_deserted() || volume.is_released())
            && let Some(control) = control.take()
        {
            tracing::info!("stopping");
            manager.stopping();
            if !volume.is_released() {
                supervisor::stays_for_the_next();
            }
            volume.stopping.store(true, Ordering::Release);
            volume.events.publish(None, EventKind::Stopping);
            stopper = Some(spawn_stop(volume, control, &drained).map_err(failed)?);
        }
        let own = if notices.wants_retry() {
            Some(RETRY)
        } else if stopper.is_some() || volume.facts.on_descriptor {
            Some(PRESENCE)
        } else {
            None
        };
        let timeout = own.into_iter().chain(manager.tell(volume)).min();
        notices
            .executor()
            .wait_also(&[signals.as_fd(), drained.as_fd()], timeout);
    }
}

/// Stops the volume on a thread of its own, because the main thread must continue to
/// answer the engine: the requests that are drained may wait for such an answer.
fn spawn_stop(
    volume: &Arc<LiveVolume>,
    control: Option<ControlServer>,
    drained: &Arc<EventFlag>,
) -> std::io::Result<Stopper> {
    let (volume, drained) = (volume.clone(), drained.clone());
    std::thread::Builder::new()
        .name("stop".into())
        .spawn(move || {
            sandbox::thread(Kind::Process);
            let result = stop(&volume, control);
            drained.set();
            result
        })
}

fn join(thread: Stopper, volume: &Arc<LiveVolume>) -> Result<Ended, DaemonError> {
    match thread.join() {
        Ok(Ok(Ended::NotDrained)) => {
            // Dropping the volume would wait for the requests that did not end.
            std::mem::forget(Arc::clone(volume));
            Ok(Ended::NotDrained)
        }
        Ok(Ok(ended)) => Ok(ended),
        Ok(Err(error)) => Err(DaemonError::NotDurable(error)),
        Err(_) => Err(DaemonError::Killed),
    }
}
