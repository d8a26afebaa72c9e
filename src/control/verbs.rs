//! Calls that change something: one at a time, in the order in which they came, on threads
//! that may wait for a disk. An answer does not wait longer than [`PATIENCE`]: then it says
//! what has not ended, and the call goes on.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use super::api::{ApiError, ErrorKind, Volume};

/// How long an answer may take: less than a connection may live.
const PATIENCE: Duration = Duration::from_secs(20);

/// The call that is being carried out.
#[derive(Clone, Debug)]
struct Running {
    what: String,
    since: Instant,
}

#[derive(Clone, Debug)]
pub struct Verbs {
    place: Arc<Semaphore>,
    running: Arc<Mutex<Option<Running>>>,
    patience: Duration,
}

impl Default for Verbs {
    fn default() -> Self {
        Self::with(PATIENCE)
    }
}

impl Verbs {
    pub fn with(patience: Duration) -> Self {
        Self {
            place: Arc::new(Semaphore::new(1)),
            running: Arc::default(),
            patience,
        }
    }

    /// The call that is being carried out, if there is one, and for how long.
    pub fn running(&self) -> Option<String> {
        let running = lock(&self.running).clone()?;
        let seconds = running.since.elapsed().as_secs();
        Some(format!("{}, under way for {seconds} s", running.what))
    }

    /// Carries out `call`, which messages name `what`.
    ///
    /// # Errors
    /// Those of the call, or it has not begun or not ended in time.
    pub async fn call<T: Send + 'static>(
        &self,
        what: String,
        volume: &Arc<dyn Volume>,
        call: impl FnOnce(&dyn Volume) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let deadline = Instant::now() + self.patience;
        let place = timeout_at(deadline, Arc::clone(&self.place).acquire_owned()).await;
        let Ok(Ok(place)) = place else {
            return Err(self.late(ErrorKind::Conflict, volume, |other, seconds| {
                format!(
                    "{what}: nothing was changed, because another call has not ended in {seconds} s: \
                     {other}"
                )
            }));
        };
        *lock(&self.running) = Some(Running {
            what: what.clone(),
            since: Instant::now(),
        });
        let (running, theirs) = (Arc::clone(&self.running), Arc::clone(volume));
        let task = tokio::task::spawn_blocking(move || {
            let result = call(&*theirs);
            *lock(&running) = None;
            drop(place);
            result
        });
        match timeout_at(deadline, task).await {
            Ok(Ok(result)) => result,
            Ok(Err(error)) => Err(ApiError::new(ErrorKind::Io, format!("{what}: {error}"))),
            Err(_) => Err(self.late(ErrorKind::Io, volume, |_, seconds| {
                format!(
                    "{what}: it has not ended in {seconds} s and goes on; `snapback events` tells \
                     its end"
                )
            })),
        }
    }

    fn late(
        &self,
        kind: ErrorKind,
        volume: &Arc<dyn Volume>,
        message: impl FnOnce(String, u64) -> String,
    ) -> ApiError {
        let other = self.running().unwrap_or_default();
        let mut message = message(other, self.patience.as_secs());
        for line in volume.waits_for() {
            message.push_str("; ");
            message.push_str(&line);
        }
        ApiError::new(kind, message)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
