//! A run: the production engine on simulated devices, a model, and the checks after
//! every event.

use std::collections::{BTreeMap, BTreeSet};

use super::content::{Content, End, FIRST_STAMP};
use super::counts;
use super::decoder::nth_data_chunk;
use super::explore::Depth;
use super::plan::{Case, Store};
use crate::engine::tests::world::*;
use crate::engine::*;
use crate::io::sim::{FaultOn, Fill, Keep, Rng, SimDevices};
use crate::io::{DeviceId, Errno};

/// What the daemon's state file records of a snapshot.
#[derive(Clone, Debug)]
pub struct Recorded {
    pub device: DeviceId,
    pub kind: &'static str,
    /// Length of the snapshot.
    pub sectors: u64,
    /// Entries in an area. Not in a state file: only tests shorten areas.
    pub area: usize,
    /// The device of its record of unflushed writes.
    pub record: Option<DeviceId>,
    pub discards: Discards,
    pub zero_ahead: u64,
    pub valid: bool,
}

/// What the daemon's state file records of a merge.
#[derive(Clone, Copy, Debug)]
pub struct Merging {
    pub snapshot: SnapshotId,
    pub writes: MergeWrites,
    pub follow: bool,
}

/// What survives the process beside the devices.
#[derive(Clone, Debug, Default)]
pub struct Record {
    pub snapshots: BTreeMap<SnapshotId, Recorded>,
    pub merging: Option<Merging>,
}

/// What a view shows, and through which ports.
#[derive(Clone, Debug)]
pub struct View {
    pub content: Content,
    pub actors: Vec<usize>,
}

/// A request under way.
#[derive(Clone, Debug)]
pub enum OpenRequest {
    Read {
        sector: u64,
        floors: Vec<u64>,
        sure: bool,
    },
    Write {
        sector: u64,
        sectors: u64,
        stamp: u64,
        through: bool,
        sure: bool,
    },
    /// `passdown`: also of the origin.
    Discard {
        sector: u64,
        sectors: u64,
        passdown: bool,
    },
    Flush {
        floors: Vec<u64>,
        sure: bool,
    },
}

/// The control request under way.
pub enum Control {
    Add {
        store: Store,
        device: DeviceId,
        record: Option<DeviceId>,
        before: Content,
    },
    Remove(SnapshotId),
    Handover {
        merging: Merging,
        /// Origin writes that may come before or after it.
        window: Vec<(u64, u64, u64)>,
    },
    Sync(Vec<(ViewId, Vec<u64>)>),
    Resume,
    Other,
}

pub struct Sim {
    pub w: World,
    pub rng: Rng,
    pub views: BTreeMap<ViewId, View>,
    pub record: Record,
    pub under_way: BTreeMap<(usize, Slot), OpenRequest>,
    pub control: Option<Control>,
    pub next_stamp: u64,
    /// Durably invalid by their headers.
    pub given_up: BTreeSet<SnapshotId>,
    /// Devices with injected faults (`None`: the origin).
    pub faulty: BTreeSet<Option<SnapshotId>>,
    pub merge_failed: bool,
    /// Snapshots that are or were merged into the origin.
    pub merged: BTreeSet<SnapshotId>,
    /// Snapshots that a full store may invalidate.
    pub may_fill: BTreeSet<SnapshotId>,
    origin: DeviceId,
    /// Counts the boots of the system.
    pub boot: u8,
    pub depth: Depth,
    pub trace: Vec<String>,
}

pub type Verdict = Result<(), String>;

impl Sim {
    pub fn new(case: &Case, seed: u64, depth: Depth) -> Result<Self, String> {
        let devices = SimDevices::new(seed);
        let image: Vec<u8> = (0..case.origin_sectors)
            .flat_map(|n| pattern(n, n))
            .collect();
        let origin = devices.add_with_blocks(case.origin_sectors, Fill::Image(image), case.block);
        let mut w = World::over(devices, origin, seed);
        w.merge_bytes = case.batch;
        // In every third run, in whole blocks.
        w.window = (seed % 3 == 2).then_some((case.block as u64 / 512).max(2));
        let mut sim = Self {
            w,
            rng: Rng::new(seed ^ 0xabc),
            views: BTreeMap::new(),
            record: Record::default(),
            under_way: BTreeMap::new(),
            control: None,
            next_stamp: FIRST_STAMP,
            given_up: BTreeSet::new(),
            faulty: BTreeSet::new(),
            merge_failed: false,
            merged: BTreeSet::new(),
            may_fill: BTreeSet::new(),
            origin,
            boot: 0,
            depth,
            trace: Vec::new(),
        };
        let content = Content::new(0..case.origin_sectors);
        sim.add_view(ViewId::ORIGIN, content);
        for store in &case.stores {
            sim.start_add(store)?;
            sim.settle()?;
        }
        sim.trace.clear();
        Ok(sim)
    }

    pub fn origin(&self) -> DeviceId {
        self.origin
    }

    /// The run after power loss or process death, before the daemon starts again.
    pub fn restarted(&self, devices: SimDevices, seed: u64) -> Self {
        let mut w = World::over(devices, self.origin, seed);
        w.merge_bytes = self.w.merge_bytes;
        w.window = self.w.window;
        Self {
            w,
            rng: Rng::new(seed ^ 0xdef),
            views: self.views.clone(),
            record: self.record.clone(),
            under_way: BTreeMap::new(),
            control: None,
            next_stamp: self.next_stamp,
            given_up: self.given_up.clone(),
            faulty: BTreeSet::new(),
            merge_failed: false,
            merged: BTreeSet::new(),
            may_fill: self.may_fill.clone(),
            origin: self.origin,
            boot: self.boot,
            depth: self.depth,
            trace: self.trace.clone(),
        }
    }

    pub fn add_view(&mut self, id: ViewId, content: Content) {
        let actors = (0..2)
            .map(|_| self.w.add_actor(PortRole::View(id)))
            .collect();
        self.views.insert(id, View { content, actors });
    }

    /// The content of the origin view if the handover under way takes place.
    pub fn handed_over(&self) -> Option<Content> {
        let Some(Control::Handover { merging, window }) = &self.control else {
            return None;
        };
        let merged = &self.views[&merging.snapshot].content;
        let mut content = merged.over(&self.views[&ViewId::ORIGIN].content);
        for (sector, sectors, stamp) in window {
            content.unordered_write(*sector, *sectors, *stamp, self.next_stamp);
        }
        Some(content)
    }

    // ---- the run

    pub fn run(&mut self, case: &Case) -> Verdict {
        for action in &case.actions {
            let mut moves = true;
            loop {
                let start = !moves || self.rng.one_in(case.hurry);
                if start && self.start(action, moves)? {
                    break;
                }
                moves = self.event()?;
            }
            self.check()?;
        }
        self.finish()
    }

    /// Waits for everything under way, and checks once more.
    pub fn finish(&mut self) -> Verdict {
        self.w.merge_background = true;
        self.settle()?;
        if self.control.is_some() || !self.under_way.is_empty() {
            return Err(format!("requests that never end: {:?}", self.under_way));
        }
        self.read_all()?;
        if let Some(merge) = self.w.engine.status().merge
            && !self.merge_failed
        {
            return Err(format!("the merge does not end: {merge:?}"));
        }
        for (n, actor) in self.w.actors.iter().enumerate() {
            if !actor.port.is_idle() {
                return Err(format!("port {n} is not idle at rest"));
            }
        }
        for s in self.w.engine.status().snapshots {
            let Some(recorded) = self.record.snapshots.get(&s.snapshot) else {
                continue;
            };
            let merging = self
                .record
                .merging
                .is_some_and(|m| m.snapshot == s.snapshot);
            if recorded.record.is_some() || merging || s.state != SnapshotState::Active {
                continue;
            }
            let (chunk, exceptions) = (s.chunk_sectors as usize, s.exceptions as usize);
            let chunks = match s.transient {
                true => exceptions,
                false => nth_data_chunk(recorded.area, exceptions),
            };
            if s.usage.allocated != (chunks * chunk) as u64 {
                return Err(format!("space is leaked at rest: {s:?}"));
            }
        }
        if self.w.devices.in_flight(None) != 0 {
            return Err("I/O in flight at rest".into());
        }
        self.check()
    }

    /// Runs until no actor has anything to do.
    pub fn settle(&mut self) -> Verdict {
        for _ in 0..200_000 {
            if !self.event()? {
                if self
                    .w
                    .engine
                    .status()
                    .merge
                    .is_some_and(|_| !self.merge_failed)
                    && self.w.merge_background
                    && self.control.is_none()
                {
                    // A paused merge would never end.
                    self.w.control(77, ControlRequest::ResumeMerge);
                    self.w.actors[CONTROL].control_done.clear();
                    if !self.event()? {
                        return Ok(());
                    }
                    continue;
                }
                return Ok(());
            }
        }
        Err("the engine does not come to rest".into())
    }

    /// One event with all checks; false if no actor had anything to do.
    pub fn event(&mut self) -> Result<bool, String> {
        let moved = self.w.advance();
        if moved {
            self.note_log();
            self.collect()?;
            self.check()?;
        } else if !self.under_way.is_empty() {
            // Even a paused merge must not block a request.
            return Err(format!("requests that never end: {:?}", self.under_way));
        }
        Ok(moved)
    }

    /// Adds the log of the disks since the last call to the trace.
    pub fn note_log(&mut self) {
        for l in self.w.devices.take_log() {
            let (at, len) = (l.offset / 512, l.len / 512);
            let device = l.device.0;
            self.trace.push(format!(
                "{:?} {:?} of {device}, {len} at {at}",
                l.event, l.kind
            ));
        }
    }

    /// Reads every view through every port and compares; nothing may be under way.
    pub fn read_all(&mut self) -> Verdict {
        let ids: Vec<ViewId> = self.views.keys().copied().collect();
        for id in ids {
            let (actors, sectors) = (
                self.views[&id].actors.clone(),
                self.views[&id].content.len(),
            );
            for actor in actors {
                if !self.views.contains_key(&id) {
                    break;
                }
                let floors = self.views[&id].content.floors(0, sectors);
                match self.w.read(actor, 0, sectors) {
                    Ok(seen) => {
                        if let Some(view) = self.views.get_mut(&id) {
                            let judged = view.content.read(0, &floors, &seen);
                            judged.map_err(|e| format!("{id:?} at rest: {e}"))?;
                        }
                    }
                    Err(_) if self.may_fail(id) => {}
                    Err(_) => return Err(format!("{id:?} cannot be read")),
                }
                self.collect()?;
            }
        }
        Ok(())
    }

    /// Power loss or the death of the process now; the run continues after it.
    pub fn end(&mut self, end: End) -> Verdict {
        let seed = self.rng.next();
        // A device that failed a flush may have lost what a dead process acknowledged,
        // and the next process cannot know. Only power loss is simulated then.
        let end = if self.faulty.is_empty() {
            end
        } else {
            End::Power
        };
        let devices = match end {
            End::Power => self.w.devices.crash(Keep::Seeded(seed)),
            End::Process => self.w.devices.process_death(seed),
        };
        let mut next = self.restarted(devices, seed);
        next.begin_again(self, end)?;
        counts::add(&counts::RECOVERIES, 1);
        *self = next;
        Ok(())
    }
}

/// A fault that fails every operation for ever.
pub fn everything_fails(after: u64) -> crate::io::sim::Fault {
    crate::io::sim::Fault::new(FaultOn::Any, Errno::EIO).after(after)
}
