//! One simulated device: what a read sees, what power loss leaves, and every
//! version of every unit in between.
//!
//! A *unit* is the device's logical block: written atomically, torn never. Since
//! a cache may write back any version at any time and in any order, power loss
//! leaves in each unit its durable content or *any* version written since.

use std::collections::BTreeMap;

use super::rng::Rng;
use crate::io::{Errno, cut};

/// The version has completed but its completion was not reaped yet.
const NOT_REAPED: u64 = u64::MAX;

#[derive(Clone, Debug)]
struct Version {
    write: u64,
    data: Vec<u8>,
    /// When the completion was reaped; a flush covers what was reaped before it was submitted.
    reaped: u64,
    /// A flush failed on it: no later flush makes it durable (as Linux drops
    /// the dirty pages of a failed write-back).
    lost: bool,
}

/// See the module documentation.
#[derive(Clone, Debug)]
pub(super) struct Medium {
    unit: usize,
    current: Vec<u8>,
    durable: Vec<u8>,
    pending: BTreeMap<u64, Vec<Version>>,
    pub(super) removed: bool,
    /// The end of what was written, in bytes, and whether the file was cut since.
    held: usize,
    cut: bool,
}

fn index(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

/// Copies `data` over `image` from byte `at`; what falls outside is dropped.
fn lay(image: &mut [u8], at: usize, data: &[u8]) {
    if let Some(part) = at
        .checked_add(data.len())
        .and_then(|end| image.get_mut(at..end))
    {
        part.copy_from_slice(data);
    }
}

impl Medium {
    /// A device that holds `image`, durably. `unit`: logical block size in bytes.
    pub(super) fn new(image: Vec<u8>, unit: usize) -> Self {
        Self {
            unit,
            durable: image.clone(),
            current: image,
            pending: BTreeMap::new(),
            removed: false,
            held: 0,
            cut: false,
        }
    }

    pub(super) const fn unit(&self) -> usize {
        self.unit
    }

    pub(super) const fn len(&self) -> usize {
        self.current.len()
    }

    pub(super) fn current(&self) -> &[u8] {
        &self.current
    }

    pub(super) fn durable(&self) -> &[u8] {
        &self.durable
    }

    /// The file behind this device is truncated.
    pub(super) fn cut(&mut self, len: usize) {
        self.cut = true;
        self.resize(len.min(self.len()));
    }

    /// The error of a write up to `bytes` beyond the end: of a truncated file, or of a
    /// device.
    pub(super) fn check_write(&mut self, end: u64) -> Result<(), Errno> {
        let size = u64::try_from(self.len()).unwrap_or(u64::MAX);
        let fits = cut::check_write(size, end);
        if fits.is_ok() {
            if end > size && self.cut {
                self.resize(index(end)); // zeroes come back
            }
            self.held = self.held.max(index(end).min(self.len()));
        }
        match fits {
            Err(_) if !self.cut => Err(Errno::ENOSPC),
            fits => fits,
        }
    }

    pub(super) fn check_flush(&self) -> Result<(), Errno> {
        let bytes = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        cut::check_flush(bytes(self.len()), bytes(self.held))
    }

    pub(super) fn resize(&mut self, len: usize) {
        self.current.resize(len, 0);
        self.durable.resize(len, 0);
        let units = u64::try_from(len / self.unit).unwrap_or(u64::MAX);
        self.pending.retain(|unit, _| *unit < units);
    }

    fn at(&self, unit: u64) -> usize {
        index(unit).saturating_mul(self.unit)
    }

    /// Sets bytes durably, as if they had always been there.
    pub(super) fn put(&mut self, at: usize, data: &[u8]) {
        lay(&mut self.current, at, data);
        lay(&mut self.durable, at, data);
        let end = at.saturating_add(data.len());
        let unit = self.unit;
        self.pending.retain(|u, _| {
            let start = index(*u).saturating_mul(unit);
            start.saturating_add(unit) <= at || start >= end
        });
    }

    /// A write's unit reaches the device (its cache, not its medium).
    pub(super) fn land(&mut self, write: u64, unit: u64, data: &[u8]) {
        let at = self.at(unit);
        lay(&mut self.current, at, data);
        let version = Version {
            write,
            data: data.to_vec(),
            reaped: NOT_REAPED,
            lost: false,
        };
        self.pending.entry(unit).or_default().push(version);
    }

    /// The completion of `write` was reaped at `clock`.
    pub(super) fn reaped(&mut self, write: u64, units: std::ops::Range<u64>, clock: u64) {
        for (_, versions) in self.pending.range_mut(units) {
            for version in versions.iter_mut().filter(|v| v.write == write) {
                version.reaped = clock;
            }
        }
    }

    /// Makes the last version that `covers` accepts durable in each unit, and drops the
    /// versions that it supersedes.
    fn commit(&mut self, units: std::ops::Range<u64>, covers: impl Fn(&Version) -> bool) {
        let unit = self.unit;
        for (number, versions) in self.pending.range_mut(units) {
            if let Some(last) = versions.iter().rposition(&covers) {
                if let Some(version) = versions.get(last) {
                    lay(
                        &mut self.durable,
                        index(*number).saturating_mul(unit),
                        &version.data,
                    );
                }
                versions.drain(..=last);
            }
        }
        self.pending.retain(|_, versions| !versions.is_empty());
    }

    /// `write` is durable by itself (FUA).
    pub(super) fn commit_write(&mut self, write: u64, units: std::ops::Range<u64>) {
        self.commit(units, |v| v.write == write);
    }

    /// A flush that was submitted at `clock` succeeded. Only what it covers becomes
    /// durable, so that a missing flush is noticed.
    pub(super) fn flush(&mut self, clock: u64) {
        self.commit(0..u64::MAX, |v| v.reaped < clock && !v.lost);
    }

    /// A flush that was submitted at `clock` failed: of what it covered, some is
    /// durable, some is lost for later flushes too.
    pub(super) fn fail_flush(&mut self, clock: u64, rng: &mut Rng) {
        for versions in self.pending.values_mut() {
            for version in versions.iter_mut().filter(|v| v.reaped < clock) {
                version.lost |= rng.one_in(2);
            }
        }
    }

    /// Units that power loss may leave in more than one state: number, and the
    /// versions written since the durable one.
    pub(super) fn unsettled(&self) -> impl Iterator<Item = (u64, usize)> {
        self.pending
            .iter()
            .map(|(unit, versions)| (*unit, versions.len()))
    }

    /// The `choice`-th version of a unit since the durable one.
    pub(super) fn version(&self, unit: u64, choice: usize) -> Option<&[u8]> {
        self.pending
            .get(&unit)?
            .get(choice)
            .map(|v| v.data.as_slice())
    }

    /// A new process takes over: its first flush covers all that was written.
    pub(super) fn adopt(&mut self) {
        for version in self.pending.values_mut().flatten() {
            version.reaped = 0;
        }
    }
}
