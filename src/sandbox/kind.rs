//! The kinds of threads.

/// What a thread does, as far as its system calls depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The main thread, those of views and of the control socket, and each that carries out a change:
    /// they open COWs, replace the state file, and start all other kinds.
    Process,
    /// The worker of a queue, whose disk and port exist.
    Queue,
    /// The merger, whose disk and port exist.
    Merger,
    /// A worker of a pool that reads and writes disks.
    Disk,
    /// A thread that looks at the clock and writes to the log.
    Idler,
    /// Hands events to the process that runs the command of `--on-event`.
    Events,
    /// Follows QEMU's monitor.
    Monitor,
    /// Answers at the port for metrics.
    Metrics,
}

impl Kind {
    pub const ALL: [Self; 8] = [
        Self::Process,
        Self::Queue,
        Self::Merger,
        Self::Disk,
        Self::Idler,
        Self::Events,
        Self::Monitor,
        Self::Metrics,
    ];
}
