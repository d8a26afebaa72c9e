//! Calls that change something: one at a time, in the order in which they came, on threads
//! that may wait for a disk. An answer does not wait longer than [`PATIENCE`]: then it says
//! what has not ended, and the call goes on as an operation that can be looked up.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use super::api::{ApiError, ErrorKind, Volume};
use super::peer::Peer;

/// How long an answer may take: less than a connection may live.
const PATIENCE: Duration = Duration::from_secs(20);

/// The call that is being carried out.
#[derive(Clone, Debug)]
struct Running {
    what: String,
    since: Instant,
}

/// Where a call is, as its answer and its thread agree on it.
#[derive(Debug)]
enum Stage {
    InTime,
    /// It was answered before its end; the number of its operation.
    Late(String),
    Ended,
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

    /// Carries out `call` of `peer`, which messages name `what`.
    ///
    /// # Errors
    /// Those of the call, or it has not begun or not ended in time.
    pub async fn call<T: Send + 'static>(
        &self,
        what: String,
        peer: Peer,
        volume: &Arc<dyn Volume>,
        call: impl FnOnce(&dyn Volume) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let (deadline, asked) = (Instant::now() + self.patience, SystemTime::now());
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
        let stage = Arc::new(Mutex::new(Stage::InTime));
        let (running, theirs, its_stage) = (
            Arc::clone(&self.running),
            Arc::clone(volume),
            Arc::clone(&stage),
        );
        let mut task = tokio::task::spawn_blocking(move || {
            let result = call(&*theirs);
            if let Stage::Late(id) = std::mem::replace(&mut *lock(&its_stage), Stage::Ended) {
                let end = result.as_ref().map(drop).map_err(Clone::clone);
                theirs.events().operations().end_change(&id, end);
            }
            *lock(&running) = None;
            drop(place);
            result
        });
        let failed = |error| ApiError::new(ErrorKind::Io, format!("{what}: {error}"));
        if let Ok(ended) = timeout_at(deadline, &mut task).await {
            return ended.map_err(failed)?;
        }
        let operation = {
            let mut stage = lock(&stage);
            match *stage {
                Stage::Ended => None,
                Stage::InTime | Stage::Late(_) => {
                    let operations = volume.events().operations();
                    let id = operations.begin_change(&what, asked, peer);
                    *stage = Stage::Late(id.clone());
                    Some(format!("/v1/operations/{id}"))
                }
            }
        };
        if operation.is_none() {
            // It has ended at this moment.
            return task.await.map_err(failed)?;
        }
        let mut error = self.late(ErrorKind::Io, volume, |_, seconds| {
            format!(
                "{what}: it has not ended in {seconds} s and goes on; `snapback events` tells \
                 its end"
            )
        });
        error.operation = operation;
        Err(error)
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
