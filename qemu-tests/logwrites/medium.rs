//! What the devices may hold after a power cut: in each sector what is durable, or
//! any version that was written since, in flight or not.

use std::collections::BTreeMap;
use std::ops::Range;

use super::plan::Plan;
use super::random::Random;
use super::record::Recording;
use super::stamps;
use super::timeline::{Io, IoKind, Timeline};

/// A sector's content: where in the log it is; 0: as it was before the run.
type Version = u32;

/// Not the bytes of one stamp.
pub const MIXTURE: u64 = u64::MAX;

/// All sectors that ever were.
pub struct Contents<'a> {
    before: &'a [u8],
    log: &'a [u8],
    stamps_before: Vec<u64>,
    stamps: Vec<u64>,
}

impl<'a> Contents<'a> {
    pub fn new(recording: &'a Recording) -> Self {
        let read = |bytes: &[u8]| {
            let sectors = bytes.chunks_exact(512);
            sectors
                .map(|s| stamps::read(s).unwrap_or(MIXTURE))
                .collect()
        };
        Self {
            before: &recording.before,
            log: &recording.log,
            stamps_before: read(&recording.before),
            stamps: read(&recording.log),
        }
    }
}

/// One thing that a power cut could leave: all sectors of the logged disk.
pub struct Image<'a> {
    contents: &'a Contents<'a>,
    versions: Vec<Version>,
}

impl Image<'_> {
    pub fn sector(&self, at: u64) -> &[u8] {
        let (bytes, sector) = match self.versions[at as usize] {
            0 => (self.contents.before, at as usize),
            version => (self.contents.log, version as usize),
        };
        &bytes[sector * 512..][..512]
    }

    pub fn stamp(&self, at: u64) -> u64 {
        match self.versions[at as usize] {
            0 => self.contents.stamps_before[at as usize],
            version => self.contents.stamps[version as usize],
        }
    }

    pub fn bytes(&self, range: Range<u64>) -> Vec<u8> {
        range
            .flat_map(|at| self.sector(at).iter().copied())
            .collect()
    }
}

/// A way to lose some of what is not durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Everything that can be lost.
    All,
    Nothing,
    /// Each sector for itself.
    Sectors,
    /// Whole writes.
    Writes,
    /// One write, wholly or in part.
    OneLost,
    OneKept,
    /// All of the stores' devices, nothing of the origin.
    AllButOrigin,
    /// The other way round.
    Origin,
}

/// What a disk is made to do wrong, to see whether the judge sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    Nothing,
    /// Flushes of this device do nothing.
    Flushes(&'static str),
    /// Durable writes are none.
    Durability,
    /// Guests' writes to the origin are issued before the durable write that they
    /// wait for has ended. (See [`Timeline::hasty`].)
    Hasty,
}

pub struct Medium<'a> {
    contents: &'a Contents<'a>,
    ios: &'a [Io],
    devices: [(&'static str, Range<u64>); 4],
    pub wrong: Wrong,
    durable: Vec<Version>,
    /// By sector: the I/Os that wrote it since, oldest first.
    pending: BTreeMap<u64, Vec<usize>>,
    /// By I/O: when it began and ended, in ends of others.
    begun: Vec<usize>,
    ended: Vec<Option<usize>>,
    ends: usize,
}

impl<'a> Medium<'a> {
    pub fn new(contents: &'a Contents<'a>, timeline: &'a Timeline, plan: &Plan) -> Self {
        Self {
            contents,
            ios: &timeline.ios,
            devices: plan.devices(),
            wrong: Wrong::Nothing,
            durable: vec![0; plan.sectors() as usize],
            pending: BTreeMap::new(),
            begun: vec![0; timeline.ios.len()],
            ended: vec![None; timeline.ios.len()],
            ends: 0,
        }
    }

    pub fn begin(&mut self, number: usize) {
        let io = self.ios[number];
        self.begun[number] = self.ends;
        for sector in io.sector..io.sector + io.count {
            self.pending.entry(sector).or_default().push(number);
        }
    }

    pub fn end(&mut self, number: usize) {
        self.ended[number] = Some(self.ends);
        self.ends += 1;
        let io = self.ios[number];
        match (io.kind, self.wrong) {
            (IoKind::Write, _) | (IoKind::Durable, Wrong::Durability) => {}
            (IoKind::Durable, _) => self.keep(number),
            (IoKind::Flush, wrong) => {
                let mut devices = self.devices.iter();
                let device = devices.find(|(_, range)| range.start == io.sector);
                let (name, range) = device.expect("checked").clone();
                if wrong != Wrong::Flushes(name) {
                    self.flush(range, self.begun[number]);
                }
            }
        }
    }

    /// Makes a write durable, and forgets the older ones that it covers.
    fn keep(&mut self, number: usize) {
        let io = self.ios[number];
        for sector in io.sector..io.sector + io.count {
            self.settle(sector, |pending, _| {
                pending.iter().position(|one| *one == number)
            });
        }
    }

    /// What had ended when the flush began is durable.
    fn flush(&mut self, range: Range<u64>, begun: usize) {
        let sectors: Vec<u64> = self
            .pending
            .range(range)
            .map(|(sector, _)| *sector)
            .collect();
        for sector in sectors {
            self.settle(sector, |pending, ended| {
                let before = |one: &usize| ended[*one].is_some_and(|end| end < begun);
                pending.iter().rposition(before)
            });
        }
    }

    fn settle(&mut self, sector: u64, last: impl Fn(&[usize], &[Option<usize>]) -> Option<usize>) {
        let Some(pending) = self.pending.get_mut(&sector) else {
            return;
        };
        let Some(last) = last(pending, &self.ended) else {
            return;
        };
        self.durable[sector as usize] = version(&self.ios[pending[last]], sector);
        // An older one that is in flight may still arrive.
        let ended = &self.ended;
        let mut at = 0;
        pending.retain(|one| {
            at += 1;
            at > last + 1 || (at <= last && ended[*one].is_none())
        });
        if pending.is_empty() {
            self.pending.remove(&sector);
        }
    }

    /// Sectors whose content a power cut decides.
    pub fn in_doubt(&self) -> usize {
        self.pending.len()
    }

    pub fn image(&self, loss: Loss, random: &mut Random) -> Image<'a> {
        let mut versions = self.durable.clone();
        let mut coins: BTreeMap<usize, bool> = BTreeMap::new();
        let one = match loss {
            Loss::OneLost | Loss::OneKept => self.any_write(random),
            _ => None,
        };
        let origin = &self.devices[0].1;
        for (sector, pending) in &self.pending {
            let newest = pending.len() - 1;
            let kept = match loss {
                Loss::All => None,
                Loss::Nothing => Some(newest),
                Loss::AllButOrigin => origin.contains(sector).then_some(newest),
                Loss::Origin => (!origin.contains(sector)).then_some(newest),
                Loss::Sectors => (random.below(pending.len() as u64 + 1) as usize).checked_sub(1),
                Loss::Writes => pending
                    .iter()
                    .rposition(|w| *coins.entry(*w).or_insert_with(|| random.below(2) == 0)),
                Loss::OneLost => pending
                    .iter()
                    .rposition(|w| Some(*w) != one || random.below(4) == 0),
                Loss::OneKept => pending
                    .iter()
                    .rposition(|w| Some(*w) == one && random.below(8) != 0),
            };
            if let Some(kept) = kept {
                versions[*sector as usize] = version(&self.ios[pending[kept]], *sector);
            }
        }
        Image {
            contents: self.contents,
            versions,
        }
    }

    fn any_write(&self, random: &mut Random) -> Option<usize> {
        let count = self.pending.len() as u64;
        let nth = random.below(count.max(1)) as usize;
        let pending = self.pending.values().nth(nth)?;
        pending.last().copied()
    }
}

fn version(io: &Io, sector: u64) -> Version {
    io.data + u32::try_from(sector - io.sector).expect("a short write")
}
