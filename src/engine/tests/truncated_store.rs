//! The file of a store is truncated while guests use it, at any instant and to any
//! size: its snapshot becomes invalid at the next commit, what was cut off never reads
//! as zeroes, and the origin and other snapshots are not affected.

use std::collections::BTreeSet;

use super::world::*;
use crate::engine::*;
use crate::io::Errno;
use crate::io::sim::Keep;
use crate::mutation::{self, Mutation};
use crate::store::{self, LoadParams, Loaded};

const SECTORS: u64 = 256;
const CHUNK: u64 = 8;
/// Chunks that the store holds before the file is truncated.
const KEPT: u64 = 6;

struct Trial {
    w: World,
    origin: usize,
    view: usize,
    snapshot: SnapshotId,
    /// What the snapshot must show.
    shown: Vec<u64>,
    reasons: Vec<InvalidReason>,
}

impl Trial {
    fn new(seed: u64, kind: &str) -> Self {
        let mut w = World::new(seed, SECTORS);
        let origin = w.add_actor(PortRole::View(ViewId::ORIGIN));
        let snapshot = w.add_snapshot(1, CHUNK, 400, kind, false);
        let view = w.add_actor(PortRole::View(snapshot));
        let mut trial = Self {
            w,
            origin,
            view,
            snapshot,
            shown: (0..SECTORS).collect(),
            reasons: Vec::new(),
        };
        for chunk in 0..KEPT {
            if chunk % 2 == 0 {
                trial.w.write(origin, chunk * CHUNK, CHUNK, 1000 + chunk);
            } else {
                trial.write_snapshot(chunk, 2000 + chunk).unwrap();
            }
        }
        trial
    }

    fn write_snapshot(&mut self, chunk: u64, stamp: u64) -> Result<(), String> {
        let status = self.w.write(self.view, chunk * CHUNK, CHUNK, stamp);
        if status == Status::Ok {
            let at = (chunk * CHUNK) as usize;
            self.shown[at..at + CHUNK as usize].fill(stamp);
        }
        self.answer();
        match status {
            Status::Ok => Ok(()),
            status => Err(format!("{status:?}")),
        }
    }

    /// Records an invalidation whose header could not be written, as the daemon does.
    fn answer(&mut self) {
        loop {
            self.w.settle();
            let notices = std::mem::take(&mut self.w.actors[NOTICES].notices);
            if notices.is_empty() {
                return;
            }
            for notice in notices {
                if let Notice::Invalid {
                    snapshot,
                    reason,
                    durable,
                } = notice
                {
                    self.reasons.push(reason);
                    if !durable {
                        let recorded = ControlRequest::InvalidRecorded { snapshot };
                        self.w.control_wait(recorded).unwrap();
                    }
                }
            }
        }
    }

    /// Chunks whose entries are in the store's areas now.
    fn entered(&self) -> BTreeSet<u64> {
        let devices = self.w.devices.crash(Keep::Everything);
        let cow = self.w.cows[&self.snapshot];
        let params = LoadParams {
            cow_sectors: devices.sectors(cow),
            origin_sectors: Some(SECTORS),
            unit: 512,
            block_bytes: 512,
        };
        match store::load(&mut devices.disk(), cow, &params) {
            Ok(Loaded::Valid(store)) => store.metadata().entries().iter().map(|e| e.old).collect(),
            _ => BTreeSet::new(),
        }
    }

    fn is_active(&self) -> bool {
        let status = self.w.engine.status();
        status.snapshots[0].state == SnapshotState::Active
    }

    /// Each chunk of the snapshot reads correctly or fails.
    fn read(&mut self) -> Result<(), String> {
        for chunk in 0..SECTORS / CHUNK {
            let at = (chunk * CHUNK) as usize;
            if let Ok(seen) = self.w.read(self.view, chunk * CHUNK, CHUNK)
                && seen != self.shown[at..at + CHUNK as usize]
            {
                return Err(format!("chunk {chunk} reads as {seen:?}"));
            }
        }
        Ok(())
    }
}

/// Truncates the store to `sectors` after `steps` steps of four first writes.
fn cut(seed: u64, kind: &str, steps: usize, sectors: u64) -> Result<(), String> {
    let mut t = Trial::new(seed, kind);
    let cow = t.w.cows[&t.snapshot];
    let under_way = 10..14;
    for chunk in under_way.clone() {
        let request = Request {
            slot: (chunk - 10) as u16,
            kind: RequestKind::Write { durable: false },
            sector: chunk * CHUNK,
            sectors: CHUNK,
        };
        let data = data_of(chunk * CHUNK, CHUNK, 3000 + chunk);
        t.w.submit(t.origin, request, data);
    }
    for _ in 0..steps {
        t.w.step();
    }
    let entered = t.entered();
    t.w.devices.cut(cow, sectors);
    t.answer();
    let ended = std::mem::take(&mut t.w.actors[t.origin].completed);
    if ended.len() != 4 || ended.iter().any(|(_, status)| *status != Status::Ok) {
        return Err(format!("origin writes: {ended:?}"));
    }
    // What the origin lost since then is in the store, or the snapshot is invalid.
    for chunk in under_way.filter(|c| kind != "N" && !entered.contains(c)) {
        if t.is_active() && t.w.read(t.view, chunk * CHUNK, CHUNK).is_err() {
            return Err(format!("chunk {chunk} was overwritten without a copy"));
        }
    }
    t.read()?;
    for chunk in (0..KEPT).rev() {
        // In place, possibly beyond the new end.
        let _ = t.write_snapshot(chunk, 4000 + chunk);
    }
    t.read()?;
    let request = Request {
        slot: 5,
        kind: RequestKind::Write { durable: false },
        sector: 20 * CHUNK,
        sectors: CHUNK,
    };
    let data = data_of(20 * CHUNK, CHUNK, 5000);
    t.w.submit(t.origin, request, data);
    t.answer();
    let ended = std::mem::take(&mut t.w.actors[t.origin].completed);
    if ended != [(5, Status::Ok)] {
        return Err(format!("the origin does not live on: {ended:?}"));
    }
    if t.is_active() {
        return Err("the snapshot outlives the next commit".into());
    }
    if !matches!(t.reasons[..], [InvalidReason::Io(f)] if f.errno == Errno::CUT) {
        return Err(format!("the reason: {:?}", t.reasons));
    }
    if t.w.devices.sectors(cow) != sectors {
        return Err("the store has grown again".into());
    }
    let durable = t.w.devices.durable(cow);
    if kind != "N" && sectors > 0 && durable[4..8] != [0; 4] {
        return Err("the header says valid".into());
    }
    Ok(())
}

fn search(seeds: std::ops::Range<u64>) -> Result<(), String> {
    for seed in seeds {
        for kind in ["P", "PO", "N"] {
            // Each size loses something: the store holds the chunks before KEPT.
            let held = (KEPT + if kind == "N" { 0 } else { 2 }) * CHUNK;
            for sectors in [0, 1, 7, 8, 9, 16, 17, held / 2, held - CHUNK, held - 1] {
                for steps in [0, 3, 6, 9, 12, 15, 18, 21, 24, 28, 32, 40, 60] {
                    let what = format!("seed {seed}, {kind}, {steps} steps, {sectors} sectors");
                    cut(seed, kind, steps, sectors).map_err(|e| format!("{what}: {e}"))?;
                }
            }
        }
    }
    Ok(())
}

#[test]
fn a_cut_store_ends_its_snapshot_and_nothing_else_wherever_and_whenever_it_is_cut() {
    search(0..12).unwrap();
}

#[test]
fn every_seeded_bug_of_cuts_is_found() {
    for bug in [Mutation::CutRegrown, Mutation::CutUnnoticed] {
        let found = mutation::with(Some(bug), || search(0..12));
        println!("{bug:?} dies: {}", found.unwrap_err());
    }
}
