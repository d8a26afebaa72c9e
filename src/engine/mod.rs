//! The snapshot engine: events in, commands out.
//!
//! One engine serves one volume. It does no I/O and has no clock, no threads and no
//! randomness. The owner of a [`Port`] gives it events and carries out its commands. Settled requests are decided on the port's fast path by atomic
//! look-ups; only state changes enter the critical section ([`core`]).

mod api;
mod core;
mod counts;
mod discard;
mod execution;
mod failure;
mod fast_path;
mod port;
mod registrations;
mod shared;
mod table;
mod tags;
mod views;
mod weight;

#[cfg(all(test, feature = "loom"))]
mod loom_tests;
#[cfg(test)]
pub(crate) mod tests;

pub use api::*;
pub use counts::{EngineCounts, FailureCounts, MergeCounts, SnapshotCounts};
pub use execution::{Execution, NoSlots, SlotData, SlotRange};
pub use failure::{FailedDevice, Failure, Operation};
pub use port::Port;
pub use weight::Weight;

use std::sync::Arc;

use crate::sync::Mutex;
use shared::{Shared, lock};

/// The engine of one volume.
pub struct Engine {
    shared: Arc<Shared>,
    core: Mutex<core::Core>,
}

impl Engine {
    pub fn new(origin: OriginParams) -> Arc<Self> {
        let shared = Arc::new(Shared::new(origin));
        let core = core::Core::new(shared.clone());
        Arc::new(Self {
            shared,
            core: Mutex::new(core),
        })
    }

    /// `slots`: the number of requests that may be in flight at the port, at most 65,536.
    pub fn open_port(self: &Arc<Self>, role: PortRole, slots: usize, wake: Arc<dyn Wake>) -> Port {
        Port::open(self, role, slots, wake)
    }

    /// The present size of the origin.
    pub fn origin_sectors(&self) -> u64 {
        self.shared.origin_sectors()
    }

    pub fn status(&self) -> EngineStatus {
        lock(&self.core).status()
    }

    /// Checks every invariant of the engine's state, for tests.
    pub fn check(&self) -> Result<(), String> {
        lock(&self.core).check()
    }
}
