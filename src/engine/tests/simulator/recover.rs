//! A new start of the daemon on what is left: the record, the stores, the merge.

use super::content::End;
use super::plan::layout;
use super::sim::{Recorded, Sim, Verdict, everything_fails};
use crate::engine::tests::seeded_bugs::StartDisk;
use crate::engine::*;
use crate::io::DeviceId;
use crate::io::sim::{Keep, SimDevices};
use crate::store::{self, FoundRecord, RECORD_BYTES, RecordOwner};

pub fn load(
    devices: &SimDevices,
    cow: DeviceId,
    area: usize,
    origin: DeviceId,
) -> Result<store::Loaded, String> {
    let block = devices.block_size(cow);
    let params = store::LoadParams {
        cow_sectors: devices.sectors(cow),
        origin_sectors: Some(devices.sectors(origin)),
        unit: block,
        block_bytes: block as u64,
    };
    let layout = |chunk_size| layout(chunk_size, area);
    store::load_as(&mut devices.disk(), cow, &params, layout).map_err(|e| e.to_string())
}

impl Sim {
    /// Starts on what `old` left. Order, as in the daemon: 1 each store loaded and
    /// settled → 2 each snapshot added → 3 the merge handed over again.
    pub fn begin_again(&mut self, old: &Self, end: End) -> Verdict {
        self.adopt_handover(old)?;
        self.record
            .snapshots
            .retain(|_, r| r.kind != "N" && r.valid);
        if end == End::Power {
            self.boot += 1;
            self.lose_power_while_loading()?;
        }
        let snapshots = self.record.snapshots.clone();
        for (id, recorded) in &snapshots {
            self.start_store(*id, recorded)?;
        }
        let given_up = self.given_up.clone();
        // Dropped from the record, as the daemon does: its handover never took place.
        let lost = |id| given_up.contains(&id) || !snapshots.contains_key(&id);
        if self.record.merging.is_some_and(|m| lost(m.snapshot)) {
            self.record.merging = None;
        }
        self.views.retain(|id, _| {
            *id == ViewId::ORIGIN || snapshots.contains_key(id) && !given_up.contains(id)
        });
        // Before the merge continues, because it may fill them.
        let views: Vec<ViewId> = self.views.keys().copied().collect();
        for id in views.into_iter().filter(|id| *id != ViewId::ORIGIN) {
            self.read_view_after_start(id, end)?;
        }
        if let Some(m) = self.record.merging {
            let request = ControlRequest::Handover {
                snapshot: m.snapshot,
                writes: m.writes,
                follow: m.follow,
            };
            self.control(request)
                .map_err(|e| format!("{:?}: {e}", m.snapshot))?;
        }
        self.read_view_after_start(ViewId::ORIGIN, end)?;
        self.check()?;
        self.record.snapshots.retain(|id, _| !given_up.contains(id));
        Ok(())
    }

    /// A handover that was under way took place by the record, if its store is valid.
    fn adopt_handover(&mut self, old: &Self) -> Verdict {
        let valid = match self.record.merging {
            Some(merging) => self.is_valid(merging.snapshot)?,
            None => true, // over already
        };
        if let Some(content) = old.handed_over().filter(|_| valid)
            && let Some(origin) = self.views.get_mut(&ViewId::ORIGIN)
        {
            origin.content = content;
            if let Some(merging) = self.record.merging {
                self.views.remove(&merging.snapshot);
            }
        }
        Ok(())
    }

    /// Loads and settles a store, and adds its snapshot if it is valid.
    fn start_store(&mut self, snapshot: SnapshotId, recorded: &Recorded) -> Verdict {
        let devices = self.w.devices.clone();
        match load(&devices, recorded.device, recorded.area, self.origin())? {
            store::Loaded::Valid(found) => {
                let metadata = self.complete(*found, recorded)?;
                if let Some(record) = recorded.record {
                    let empty = self.record_owner(recorded.device).empty_record();
                    devices.write_now(record, 0, &empty);
                }
                let store = Box::new(SnapshotStore {
                    device: recorded.device,
                    metadata,
                    sectors: recorded.sectors,
                    keep_on_overflow: recorded.kind == "PO",
                    valid: true,
                    marked: false,
                    record: recorded.record,
                    discards: recorded.discards,
                    zero_ahead: recorded.zero_ahead,
                });
                self.control(ControlRequest::AddSnapshot { snapshot, store })?;
            }
            store::Loaded::Invalid { .. } => {
                store::settle_invalid(&mut StartDisk::new(devices.disk()), recorded.device)
                    .map_err(|e| e.to_string())?;
                self.given_up.insert(snapshot);
            }
            store::Loaded::New => return Err(format!("{snapshot:?}: no store any more")),
        }
        Ok(())
    }

    /// Makes the store what the dead process had acknowledged.
    fn complete(
        &self,
        found: store::ValidStore,
        recorded: &Recorded,
    ) -> Result<store::Metadata, String> {
        let devices = &self.w.devices;
        let mut disk = StartDisk::new(devices.disk());
        let device = recorded.device;
        let mut metadata = found.settle(&mut disk, device).map_err(|e| e.to_string())?;
        let Some(record) = recorded.record else {
            return Ok(metadata);
        };
        let bytes = devices.read_now(record, 0, RECORD_BYTES as u64);
        match store::read_record(&bytes, &self.record_owner(device)) {
            Ok(FoundRecord::Mine(listed)) => {
                let origin = devices.sectors(self.origin());
                store::replay_record(&listed, &mut metadata, origin, &mut disk, device)
                    .map_err(|e| e.to_string())?;
            }
            Ok(FoundRecord::OtherBoot) => {}
            other => return Err(format!("the record: {other:?}")),
        }
        Ok(metadata)
    }

    /// Whose record the store of this device has.
    pub fn record_owner(&self, device: DeviceId) -> RecordOwner {
        RecordOwner {
            boot: [self.boot; 16],
            store: [device.0 as u8; 64],
        }
    }

    fn is_valid(&self, id: SnapshotId) -> Result<bool, String> {
        let recorded = self.record.snapshots.get(&id);
        let Some(recorded) = recorded.filter(|r| r.valid) else {
            return Ok(false);
        };
        let found = load(
            &self.w.devices,
            recorded.device,
            recorded.area,
            self.origin(),
        )?;
        Ok(matches!(found, store::Loaded::Valid(_)))
    }

    fn control(&mut self, request: ControlRequest) -> Verdict {
        self.w.control_wait(request).map_err(|e| e.to_string())
    }

    /// Fails at random operations of loading and settling, then loses power, several times.
    fn lose_power_while_loading(&mut self) -> Verdict {
        for _ in 0..self.rng.below(4) {
            let devices = self.w.devices.clone();
            devices.fail(everything_fails(self.rng.below(9) as u64));
            for recorded in self.record.snapshots.values() {
                if let Ok(store::Loaded::Valid(found)) =
                    load(&devices, recorded.device, recorded.area, self.origin())
                {
                    let _ = self.complete(*found, recorded);
                }
            }
            let seed = self.rng.next();
            let next = self.restarted(devices.crash(Keep::Seeded(seed)), seed);
            *self = next;
        }
        Ok(())
    }

    /// Opens a view and reads which of the possible contents it has.
    fn read_view_after_start(&mut self, id: ViewId, end: End) -> Verdict {
        let content = self.views[&id].content.clone();
        self.add_view(id, content);
        if id == ViewId::ORIGIN
            && let Some(m) = self.record.merging.filter(|m| m.follow)
        {
            let follower = self.w.add_actor(PortRole::View(m.snapshot));
            if let Some(view) = self.views.get_mut(&id) {
                view.actors.push(follower);
            }
        }
        let (actor, sectors) = (self.views[&id].actors[0], self.views[&id].content.len());
        let seen = self.w.read(actor, 0, sectors);
        let seen = seen.map_err(|_| format!("{id:?} cannot be read"))?;
        if let Some(view) = self.views.get_mut(&id) {
            let judged = view.content.restarted(end, &seen);
            judged.map_err(|e| format!("{id:?}: {e}"))?;
        }
        self.collect()
    }
}
