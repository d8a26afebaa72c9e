//! A case: what one seed does to an origin and its snapshots.

use super::model::{Bytes, Extent, Geometry};

/// COW devices of a case; each is used for one snapshot.
pub const COWS: usize = 4;
/// Phases of a case; a crash ends each but the last.
pub const PHASES: usize = 3;

/// Numbers of snapshots, in 0..COWS.
pub type Snap = usize;

/// `None`: the origin.
pub type View = Option<Snap>;

#[derive(Clone, Debug)]
pub enum Op {
    Write(View, Extent, u64),
    /// Disjoint writes at once.
    Burst(View, Vec<(Extent, u64)>),
    Add(Snap),
    Remove(Snap),
    /// Clean stop and start of everything.
    Reload,
    /// A whole merge, after which the snapshot is gone; its store stays, and so
    /// much of it is compared.
    Merge(Snap, Bytes),
    /// Compare the origin and these snapshots.
    Check(Vec<Compared>),
}

#[derive(Clone, Debug)]
pub struct Compared {
    pub snap: Snap,
    pub bytes: Bytes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    Fresh,
    PartFilled,
    ExactlyFullArea,
    SeveralAreas,
    Overflowed,
    Invalid,
    HalfMerged,
}

/// How a half-done merge of the phase before is taken up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    Merge,
    /// First loaded as a snapshot and compared, then merged.
    Snapshot,
}

#[derive(Clone, Debug)]
pub struct Phase {
    pub alive: Vec<Snap>,
    /// A merge that the crash before interrupted.
    pub resume: Option<(Snap, Resume, Bytes)>,
    pub ops: Vec<Op>,
    /// A merge that the crash at the end is to interrupt.
    pub half_merge: Option<Snap>,
    /// At the end each side goes on with the other's disks.
    pub exchange: Vec<(Snap, State)>,
}

#[derive(Clone, Debug)]
pub struct Case {
    pub seed: u64,
    pub origin: u64,
    pub snapshots: Vec<Geometry>,
    pub phases: Vec<Phase>,
}
