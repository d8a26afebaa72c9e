//! Starts a run's actions: requests of guests and of the daemon's user.

use super::content::End;
use super::decoder::{encode, nth_data_chunk};
use super::plan::{Action, PlannedFault, Store, layout};
use super::sim::{Control, Merging, OpenRequest, Sim, Verdict};
use crate::engine::tests::world::*;
use crate::engine::*;
use crate::io::DeviceId;
use crate::io::sim::{FaultEffect, Fill};
use crate::store;
use crate::units::ChunkSize;

/// Requests that a port may have under way.
const SLOTS: u16 = 4;
/// Sector n of a store that is filled beforehand holds stamp n plus this.
pub const FILLED: u64 = 300;

/// The chunks of a store that is filled beforehand, in the origin and in the COW.
fn filled(spec: &Store, chunks: usize) -> Vec<(usize, usize)> {
    let old = |n: usize| match spec.in_order {
        true => chunks - spec.filled + n,
        false => chunks - 1 - n,
    };
    (0..spec.filled)
        .map(|n| (old(n), nth_data_chunk(spec.area, n)))
        .collect()
}

impl Sim {
    /// False: it cannot start yet. `moves`: something is still under way.
    pub fn start(&mut self, action: &Action, moves: bool) -> Result<bool, String> {
        let started = match action {
            Action::Write { view, sectors } => self.write(*view, sectors.clone(), false),
            Action::WriteThrough { view, sectors } => self.write(*view, sectors.clone(), true),
            Action::Zero { view, sectors } => self.zero(*view, sectors.clone()),
            Action::Discard { view, sectors } => self.discard(*view, sectors.clone()),
            Action::Read { view, sectors } => self.read(*view, sectors.clone()),
            Action::Flush { view } => self.flush(*view),
            Action::Rest => !moves,
            Action::ReadAll => {
                if moves {
                    return Ok(false);
                }
                self.read_all()?;
                true
            }
            Action::PowerLoss => {
                self.end(End::Power)?;
                true
            }
            Action::ProcessDeath => {
                self.end(End::Process)?;
                true
            }
            Action::Fault(fault) => {
                self.inject_fault(fault);
                true
            }
            Action::Mend => {
                self.w.devices.clear_faults();
                true
            }
            control => {
                // One at a time, as in the daemon.
                if self.control.is_some() {
                    return Ok(!moves);
                }
                self.start_control(control)?
            }
        };
        if started {
            self.trace.push(format!("{action:?}"));
            self.note_log();
            self.collect()?;
        }
        // With nothing under way, what cannot start now never can.
        Ok(started || !moves)
    }

    fn inject_fault(&mut self, fault: &PlannedFault) {
        let store = fault.store.map(ViewId);
        let device = match store {
            None => Some(self.origin()),
            Some(id) => self.record.snapshots.get(&id).map(|r| r.device),
        };
        if let Some(device) = device {
            self.w.devices.fail(fault.fault(device));
            // A short transfer must not be noticed by any request.
            if fault.effect != FaultEffect::Short {
                self.faulty.insert(store);
            }
        }
    }

    fn free_slot(&mut self, view: ViewId) -> Option<(usize, Slot)> {
        let actors = &self.views.get(&view)?.actors;
        let actor = actors[self.rng.below(actors.len())];
        let slot = (0..SLOTS).find(|s| !self.under_way.contains_key(&(actor, *s)))?;
        Some((actor, slot))
    }

    /// The part of the range that lies within the view, if any.
    fn within(&self, view: ViewId, range: std::ops::Range<u64>) -> Option<std::ops::Range<u64>> {
        let end = range.end.min(self.views.get(&view)?.content.len());
        (range.start < end).then_some(range.start..end)
    }

    fn is_handing_over(&self, view: ViewId) -> bool {
        match &self.control {
            Some(Control::Handover { merging, .. }) => {
                view == ViewId::ORIGIN || view == merging.snapshot
            }
            _ => false,
        }
    }

    /// Whether a request that changes these sectors of the view is under way. The order
    /// of two such requests would be undefined.
    fn is_busy(&self, view: ViewId, range: &std::ops::Range<u64>) -> bool {
        let actors = &self.views[&view].actors;
        self.under_way.iter().any(|((actor, _), r)| {
            let (sector, sectors, everywhere) = match *r {
                OpenRequest::Write {
                    sector, sectors, ..
                } => (sector, sectors, false),
                OpenRequest::Discard {
                    sector,
                    sectors,
                    passdown,
                } => (sector, sectors, passdown && view == ViewId::ORIGIN),
                _ => return false,
            };
            let overlaps = sector < range.end && range.start < sector + sectors;
            overlaps && (everywhere || actors.contains(actor))
        })
    }

    fn discard(&mut self, view: u32, range: std::ops::Range<u64>) -> bool {
        let view = ViewId(view);
        let Some(range) = self.within(view, range) else {
            return true;
        };
        let (sector, sectors) = (range.start, range.end - range.start);
        let recorded = self.record.snapshots.get(&view);
        let passdown = recorded.is_some_and(|r| r.discards.passdown_origin);
        let Some((actor, slot)) = self.free_slot(view) else {
            return false;
        };
        let busy = self.is_busy(view, &range) || passdown && self.is_busy(ViewId::ORIGIN, &range);
        if busy || (view != ViewId::ORIGIN && self.is_handing_over(view)) {
            return false;
        }
        let stamp = self.next_stamp + 1;
        self.next_stamp += 2;
        if let Some(view) = self.views.get_mut(&view) {
            if passdown {
                view.content.hint(sector, sectors, stamp);
            } else {
                view.content.start_write(sector, sectors, stamp);
            }
        }
        if let Some(origin) = self.views.get_mut(&ViewId::ORIGIN).filter(|_| passdown) {
            origin.content.start_write(sector, sectors, stamp);
        }
        self.under_way.insert(
            (actor, slot),
            OpenRequest::Discard {
                sector,
                sectors,
                passdown,
            },
        );
        let request = Request {
            slot,
            kind: RequestKind::Discard,
            sector,
            sectors,
        };
        self.w.submit(actor, request, Vec::new());
        true
    }

    pub fn write(&mut self, view: u32, range: std::ops::Range<u64>, through: bool) -> bool {
        self.put(view, range, through, false)
    }

    fn zero(&mut self, view: u32, range: std::ops::Range<u64>) -> bool {
        self.put(view, range, false, true)
    }

    fn put(&mut self, view: u32, range: std::ops::Range<u64>, through: bool, zero: bool) -> bool {
        let view = ViewId(view);
        let Some(range) = self.within(view, range) else {
            return true;
        };
        let (sector, sectors) = (range.start, range.end - range.start);
        let busy = self.is_busy(view, &range);
        let sure = !self.is_handing_over(view);
        let Some((actor, slot)) = self.free_slot(view) else {
            return false;
        };
        if busy || (!sure && view != ViewId::ORIGIN) {
            return false;
        }
        let stamp = self.next_stamp + u64::from(zero);
        self.next_stamp += 2;
        if let Some(view) = self.views.get_mut(&view) {
            view.content.start_write(sector, sectors, stamp);
        }
        if let (false, Some(Control::Handover { window, .. })) = (sure, &mut self.control) {
            window.push((sector, sectors, stamp));
        }
        let request = OpenRequest::Write {
            sector,
            sectors,
            stamp,
            through,
            sure,
        };
        self.under_way.insert((actor, slot), request);
        let kind = RequestKind::Write { durable: through };
        let request = Request {
            slot,
            kind,
            sector,
            sectors,
        };
        let held = if zero { 0 } else { stamp };
        self.w
            .submit(actor, request, data_of(sector, sectors, held));
        true
    }

    fn read(&mut self, view: u32, range: std::ops::Range<u64>) -> bool {
        let view = ViewId(view);
        let Some(range) = self.within(view, range) else {
            return true;
        };
        let (sector, sectors) = (range.start, range.end - range.start);
        let sure = !self.is_handing_over(view);
        let Some((actor, slot)) = self.free_slot(view) else {
            return false;
        };
        let floors = self.views[&view].content.floors(sector, sectors);
        self.under_way.insert(
            (actor, slot),
            OpenRequest::Read {
                sector,
                floors,
                sure,
            },
        );
        let request = Request {
            slot,
            kind: RequestKind::Read,
            sector,
            sectors,
        };
        self.w
            .submit(actor, request, vec![0xee; sectors as usize * 512]);
        true
    }

    pub fn flush(&mut self, view: u32) -> bool {
        let view = ViewId(view);
        if !self.views.contains_key(&view) {
            return true;
        }
        let sure = !self.is_handing_over(view);
        let Some((actor, slot)) = self.free_slot(view) else {
            return false;
        };
        let floors = self.views[&view].content.covered();
        self.under_way
            .insert((actor, slot), OpenRequest::Flush { floors, sure });
        let request = Request {
            slot,
            kind: RequestKind::Flush,
            sector: 0,
            sectors: 0,
        };
        self.w.submit(actor, request, Vec::new());
        true
    }

    /// True: it has started, or it does not apply.
    fn start_control(&mut self, action: &Action) -> Result<bool, String> {
        match action {
            Action::Add(store) => {
                let merging = self.record.merging.is_some();
                if merging || self.views.len() > 3 || self.views.contains_key(&store.snapshot()) {
                    return Ok(true);
                }
                self.start_add(store)?;
            }
            Action::Remove { id } => self.start_remove(ViewId(*id)),
            Action::Handover { id, writes, follow } => {
                return self.start_handover(ViewId(*id), *writes, *follow);
            }
            Action::Sync => {
                let floors = self.views.iter().map(|(id, v)| (*id, v.content.covered()));
                self.control = Some(Control::Sync(floors.collect()));
                self.w.control(1, ControlRequest::Sync);
            }
            Action::Grow { id } => self.start_grow(ViewId(*id)),
            other => {
                let request = match other {
                    Action::Pause => ControlRequest::PauseMerge,
                    Action::MergeWrites(writes) => ControlRequest::SetMergeWrites(*writes),
                    _ => ControlRequest::ResumeMerge,
                };
                if let (Action::MergeWrites(writes), Some(m)) = (other, &mut self.record.merging) {
                    m.writes = *writes;
                }
                self.control = Some(match request {
                    ControlRequest::ResumeMerge => Control::Resume,
                    _ => Control::Other,
                });
                self.w.control(1, request);
            }
        }
        self.collect()?;
        Ok(true)
    }

    fn start_remove(&mut self, snapshot: SnapshotId) {
        let merging = self.record.merging.is_some_and(|m| m.snapshot == snapshot);
        let Some(recorded) = self.record.snapshots.get_mut(&snapshot) else {
            return;
        };
        if merging {
            return;
        }
        // Recorded first, as in the daemon, because the header may be unwritable.
        recorded.valid &= self.faulty.is_empty();
        self.control = Some(Control::Remove(snapshot));
        let force = false;
        self.w
            .control(1, ControlRequest::RemoveSnapshot { snapshot, force });
    }

    fn start_grow(&mut self, snapshot: SnapshotId) {
        let Some(recorded) = self.record.snapshots.get(&snapshot) else {
            return;
        };
        let cow_sectors = self.w.devices.sectors(recorded.device) + 64;
        self.w.devices.resize(recorded.device, cow_sectors);
        self.control = Some(Control::Other);
        let request = ControlRequest::Grow {
            snapshot,
            cow_sectors,
        };
        self.w.control(1, request);
    }

    fn start_handover(
        &mut self,
        snapshot: SnapshotId,
        writes: MergeWrites,
        follow: bool,
    ) -> Result<bool, String> {
        let status = self.w.engine.status();
        let there = status.snapshots.iter().any(|s| {
            s.snapshot == snapshot
                && !s.transient
                && matches!(s.state, SnapshotState::Active | SnapshotState::Overflow)
        });
        if !there || self.record.merging.is_some() {
            return Ok(true);
        }
        // Two views of one content: the order of their writes would be undefined.
        let of_snapshot = &self.views[&snapshot].actors;
        if self.under_way.iter().any(|((actor, _), r)| {
            of_snapshot.contains(actor)
                && matches!(r, OpenRequest::Write { .. } | OpenRequest::Discard { .. })
        }) {
            return Ok(false);
        }
        let mut window = Vec::new();
        let of_origin = &self.views[&ViewId::ORIGIN].actors;
        for ((actor, _), request) in &mut self.under_way {
            if !of_origin.contains(actor) {
                continue;
            }
            match request {
                OpenRequest::Write {
                    sector,
                    sectors,
                    stamp,
                    sure,
                    ..
                } => {
                    *sure = false;
                    window.push((*sector, *sectors, *stamp));
                }
                OpenRequest::Read { sure, .. } | OpenRequest::Flush { sure, .. } => *sure = false,
                // A handover waits for discards.
                OpenRequest::Discard { .. } => {}
            }
        }
        let merging = Merging {
            snapshot,
            writes,
            follow,
        };
        self.record.merging = Some(merging);
        self.merged.insert(snapshot);
        self.control = Some(Control::Handover { merging, window });
        self.w.control(
            1,
            ControlRequest::Handover {
                snapshot,
                writes,
                follow,
            },
        );
        self.collect()?;
        Ok(true)
    }

    /// An empty record for a store whose entries are deferred.
    fn add_record(&self, spec: &Store, device: DeviceId) -> Option<DeviceId> {
        let empty = self.record_owner(device).empty_record();
        let sectors = empty.len() as u64 / 512;
        let deferred = spec.defer && spec.kind != "N";
        deferred.then(|| self.w.devices.add(sectors, Fill::Image(empty)))
    }

    pub fn start_add(&mut self, spec: &Store) -> Verdict {
        let block = self.w.devices.block_size(self.origin());
        let device = self
            .w
            .devices
            .add_with_blocks(spec.cow_sectors, Fill::Noise, block);
        let (chunk, snapshot) = (spec.chunk as usize, spec.snapshot());
        let size = ChunkSize::new(spec.chunk).ok_or("chunk size")?;
        let layout = layout(size, spec.area);
        let sectors = (self.w.devices.sectors(self.origin()) - spec.lacks) as usize;
        let metadata = if spec.kind == "N" {
            store::Metadata::transient(layout, spec.cow_sectors)
        } else if spec.filled == 0 {
            let disk = &mut self.w.devices.disk();
            match store::create_as(disk, device, layout, spec.cow_sectors, block) {
                Ok(metadata) => metadata,
                Err(_) => return Ok(()), // a fault, or too small
            }
        } else {
            let chunks = sectors.div_ceil(chunk);
            let entries = filled(spec, chunks);
            let mut image = self.w.devices.current(device);
            encode(&mut image, chunk, spec.area, &entries, spec.junk);
            for (old, new) in &entries {
                for n in 0..chunk {
                    let place = (old * chunk + n) as u64;
                    let sector = pattern(place, place + FILLED);
                    image[(new * chunk + n) * 512..][..512].copy_from_slice(&sector);
                }
            }
            self.w.devices.write_now(device, 0, &image);
            match super::recover::load(&self.w.devices, device, spec.area, self.origin())? {
                store::Loaded::Valid(store) => store
                    .settle(&mut self.w.devices.disk(), device)
                    .map_err(|e| e.to_string())?,
                other => return Err(format!("the filled store is {other:?}")),
            }
        };
        let record = self.add_record(spec, device);
        let store = SnapshotStore {
            device,
            metadata,
            sectors: sectors as u64,
            keep_on_overflow: spec.kind == "PO",
            valid: true,
            marked: false,
            record,
            discards: spec.discards,
            zero_ahead: spec.zero_ahead * spec.chunk * 512,
        };
        let room = layout.capacity(spec.cow_sectors);
        if room < (sectors as u64).div_ceil(spec.chunk) || spec.kind == "N" {
            self.may_fill.insert(snapshot);
        }
        let before = self.views[&ViewId::ORIGIN].content.clone();
        self.control = Some(Control::Add {
            store: spec.clone(),
            device,
            record,
            before,
        });
        let request = ControlRequest::AddSnapshot {
            snapshot,
            store: Box::new(store),
        };
        self.w.control(1, request);
        self.collect()
    }
}
