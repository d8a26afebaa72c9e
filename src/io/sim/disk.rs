//! One thread's simulated disk.

use std::os::fd::BorrowedFd;

use super::medium::Medium;
use super::{FaultEffect, Logged, LoggedEvent, LoggedKind, SimDevices, World};
use crate::io::transfer::Next;
use crate::io::{Buffer, DeviceId, Disk, Done, Errno, Op, OpKind, Tag, Zeroing};

/// An operation between `submit` and `reap`.
#[derive(Debug)]
pub(super) struct InFlight {
    pub(super) device: DeviceId,
    disk: u32,
    tag: Tag,
    kind: LoggedKind,
    offset: u64,
    buffer: Option<Buffer>,
    submitted: u64,
    verdict: Result<(), Errno>,
    /// The next transfer stops after a part of it.
    short: bool,
    /// Units at the front that were transferred already.
    moved: usize,
    /// The device never saw it (unknown device, misaligned, out of range).
    refused: bool,
    first_unit: u64,
    /// For each unit of a write: has it reached the device?
    landed: Vec<bool>,
}

impl InFlight {
    fn len(&self) -> u64 {
        self.buffer.as_ref().map_or(0, |b| bytes(b.len()))
    }

    /// Units that may still reach the device, in order.
    pub(super) fn units_under_way(&self) -> impl Iterator<Item = u64> {
        (self.first_unit..)
            .zip(&self.landed)
            .filter(|(_, landed)| !**landed)
            .map(|(unit, _)| unit)
    }

    /// The bytes that this write has for `unit`.
    pub(super) fn unit_data(&self, unit: u64, size: usize) -> Option<Vec<u8>> {
        let skip = usize::try_from(unit.checked_sub(self.first_unit)?).ok()?;
        let mut data = vec![0; size];
        self.buffer
            .as_ref()?
            .read_at(skip.checked_mul(size)?, &mut data)
            .then_some(data)
    }

    fn units(&self) -> std::ops::Range<u64> {
        let count = u64::try_from(self.landed.len()).unwrap_or(u64::MAX);
        self.first_unit..self.first_unit.saturating_add(count)
    }

    /// Lets the units whose index `choose` accepts reach the device.
    fn land(&mut self, number: u64, medium: &mut Medium, mut choose: impl FnMut(usize) -> bool) {
        for (unit, i) in self.units().zip(0..) {
            if self.landed.get(i) == Some(&false)
                && choose(i)
                && let Some(data) = self.unit_data(unit, medium.unit())
            {
                medium.land(number, unit, &data);
                if let Some(landed) = self.landed.get_mut(i) {
                    *landed = true;
                }
            }
        }
    }

    /// Transfers the units up to place `end`; false if the device lacks them.
    fn carry(&mut self, number: u64, medium: &mut Medium, end: usize) -> bool {
        let from = std::mem::replace(&mut self.moved, end);
        if self.kind != LoggedKind::Read {
            self.land(number, medium, |place| place < end);
            return true;
        }
        let len = self.buffer.as_ref().map_or(0, Buffer::len);
        let (from, end) = (
            from * medium.unit(),
            end.saturating_mul(medium.unit()).min(len),
        );
        let at = usize::try_from(self.offset).unwrap_or(usize::MAX);
        let data = medium
            .current()
            .get(at.saturating_add(from)..at.saturating_add(end));
        data.zip(self.buffer.as_mut())
            .is_some_and(|(data, buffer)| buffer.write_at(from, data))
    }

    fn logged(&self, event: LoggedEvent) -> Logged {
        let Self {
            kind,
            device,
            offset,
            disk,
            tag,
            ..
        } = *self;
        Logged {
            event,
            kind,
            device,
            offset,
            len: self.len(),
            disk,
            tag,
        }
    }
}

fn bytes(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

/// What a real disk would refuse before it starts.
fn refusal(
    medium: Option<&mut Medium>,
    kind: LoggedKind,
    offset: u64,
    buffer: Option<&Buffer>,
) -> Result<(), Errno> {
    let medium = medium.filter(|m| !m.removed).ok_or(Errno::ENODEV)?;
    let Some(buffer) = buffer else { return Ok(()) };
    let len = bytes(buffer.len());
    let block = bytes(medium.unit());
    if !offset.is_multiple_of(block)
        || !len.is_multiple_of(block)
        || !buffer.fits(kind == LoggedKind::Read)
    {
        return Err(Errno::EINVAL);
    }
    match (kind, offset.checked_add(len)) {
        (LoggedKind::Read, Some(end)) if end <= bytes(medium.len()) => Ok(()),
        (LoggedKind::Read, _) => Err(Errno::EIO),
        (_, Some(end)) => medium.check_write(end),
        (_, None) => Err(Errno::ENOSPC),
    }
}

impl World {
    fn submit(&mut self, disk: u32, op: Op) -> u64 {
        let (kind, offset, buffer) = match op.kind {
            OpKind::Read { offset, buffer } => (LoggedKind::Read, offset, Some(buffer)),
            OpKind::Write {
                offset,
                buffer,
                durable,
            } => (LoggedKind::Write { durable }, offset, Some(buffer)),
            OpKind::Flush => (LoggedKind::Flush, 0, None),
            OpKind::Zero { offset, len, how } => {
                let len = usize::try_from(len).unwrap_or(usize::MAX);
                (LoggedKind::Zero(how), offset, Some(Buffer::Zeroes { len }))
            }
        };
        let refusal = refusal(
            self.devices.get_mut(&op.device),
            kind,
            offset,
            buffer.as_ref(),
        );
        let medium = self.devices.get(&op.device);
        let mut first_unit = 0;
        let mut landed = Vec::new();
        if let (
            Some(medium),
            Some(buffer),
            LoggedKind::Write { .. } | LoggedKind::Zero(_),
            Ok(()),
        ) = (medium, &buffer, kind, refusal)
        {
            first_unit = offset / bytes(medium.unit());
            landed = vec![false; buffer.len() / medium.unit()];
        }
        let len = buffer.as_ref().map_or(0, |b| bytes(b.len()));
        let effect = match refusal {
            Ok(()) => self.faults.strike(kind, op.device, offset, len),
            Err(_) => None,
        };
        let verdict = match effect {
            Some(FaultEffect::Error(errno)) => Err(errno),
            _ => refusal,
        };
        let number = self.next_op;
        self.next_op += 1;
        self.clock += 1;
        let op = InFlight {
            device: op.device,
            disk,
            tag: op.tag,
            kind,
            offset,
            buffer,
            submitted: self.clock,
            verdict,
            short: effect == Some(FaultEffect::Short),
            moved: 0,
            refused: refusal.is_err(),
            first_unit,
            landed,
        };
        self.log.push(op.logged(LoggedEvent::Submitted));
        self.in_flight.insert(number, op);
        number
    }

    /// Lets some units of some writes reach the device without completing the writes.
    fn drift(&mut self) {
        let Self {
            rng,
            in_flight,
            devices,
            ..
        } = self;
        for (number, op) in in_flight.iter_mut() {
            if op.landed.is_empty() || !rng.one_in(4) {
                continue;
            }
            if let Some(medium) = devices.get_mut(&op.device) {
                op.land(*number, medium, |_| rng.one_in(2));
            }
        }
    }

    /// Carries an operation through to its end and reports it; `None` if its
    /// transfer stopped short and it stays in flight.
    fn complete(&mut self, number: u64) -> Option<Done> {
        let mut op = self.in_flight.remove(&number)?;
        self.clock += 1;
        let clock = self.clock;
        let mut result = op.verdict;
        let mut end = usize::MAX;
        if op.short
            && let Some(medium) = self.devices.get_mut(&op.device)
        {
            op.short = false;
            let units = op.buffer.as_ref().map_or(0, Buffer::len) / medium.unit();
            // A part is neither none nor all: those are separate outcomes.
            let part = 1 + self.rng.below(units.saturating_sub(1));
            if part < units && Next::after(part, units) == Next::Again {
                op.carry(number, medium, part);
                self.in_flight.insert(number, op);
                return None;
            }
            end = part.max(1);
        }
        if let Some(medium) = self.devices.get_mut(&op.device).filter(|_| !op.refused) {
            match (op.kind, result) {
                // Only a device that shrank meanwhile is too short.
                (LoggedKind::Read, Ok(())) if !op.carry(number, medium, end) => {
                    result = Err(Errno::EIO);
                }
                (LoggedKind::Read, Ok(())) => {}
                (LoggedKind::Read, Err(_)) => {}
                (LoggedKind::Write { durable }, Ok(())) => {
                    op.carry(number, medium, end);
                    medium.reaped(number, op.units(), clock);
                    if durable {
                        medium.commit_write(number, op.units());
                    }
                }
                // A discard takes effect in any subset of the blocks.
                (LoggedKind::Zero(Zeroing::Discard), Ok(())) => {
                    op.land(number, medium, |_| self.rng.one_in(2));
                    medium.reaped(number, op.units(), clock);
                }
                (LoggedKind::Zero(_), Ok(())) => {
                    op.carry(number, medium, end);
                    medium.reaped(number, op.units(), clock);
                }
                (LoggedKind::Write { .. } | LoggedKind::Zero(_), Err(_)) => {
                    op.land(number, medium, |_| self.rng.one_in(2))
                }
                (LoggedKind::Flush, Ok(())) => {
                    medium.flush(op.submitted);
                    result = medium.check_flush();
                }
                (LoggedKind::Flush, Err(_)) => medium.fail_flush(op.submitted, &mut self.rng),
            }
        }
        self.log.push(op.logged(LoggedEvent::Reaped(result)));
        Some(Done {
            tag: op.tag,
            result,
            buffer: op
                .buffer
                .filter(|_| !matches!(op.kind, LoggedKind::Zero(_))),
        })
    }
    /// Ends the operation at this place, or lets a short one get as far as it does.
    fn carry_on(&mut self, in_flight: &mut Vec<u64>, place: usize, done: &mut Vec<Done>) {
        let number = in_flight.remove(place);
        match self.complete(number) {
            Some(ended) => done.push(ended),
            None => in_flight.push(number),
        }
    }
}

/// One thread's access to a [`SimDevices`].
#[derive(Debug)]
pub struct SimDisk {
    devices: SimDevices,
    number: u32,
    // In the order of submission.
    in_flight: Vec<u64>,
}

impl SimDisk {
    pub(super) const fn new(devices: SimDevices, number: u32) -> Self {
        Self {
            devices,
            number,
            in_flight: Vec::new(),
        }
    }

    /// Completes one operation of this disk, chosen by the seed; false if there is none.
    pub fn step(&mut self, done: &mut Vec<Done>) -> bool {
        let mut world = self.devices.world();
        world.drift();
        let chosen = world.rng.below(self.in_flight.len());
        if chosen >= self.in_flight.len() {
            return false;
        }
        world.carry_on(&mut self.in_flight, chosen, done);
        true
    }

    /// Completes the operation with this tag (the oldest, if several have it);
    /// false if there is none. For tests that need one certain order.
    pub fn complete(&mut self, tag: Tag, done: &mut Vec<Done>) -> bool {
        let mut world = self.devices.world();
        let has = |number: &u64| world.in_flight.get(number).is_some_and(|op| op.tag == tag);
        let Some(place) = self.in_flight.iter().position(has) else {
            return false;
        };
        world.carry_on(&mut self.in_flight, place, done);
        true
    }

    /// What is in flight on this disk, in the order of submission.
    pub fn pending(&self) -> Vec<Logged> {
        let world = self.devices.world();
        let ops = self
            .in_flight
            .iter()
            .filter_map(|number| world.in_flight.get(number));
        ops.map(|op| op.logged(LoggedEvent::Submitted)).collect()
    }
}

impl Disk for SimDisk {
    fn submit(&mut self, op: Op) {
        let number = self.devices.world().submit(self.number, op);
        self.in_flight.push(number);
    }

    /// Completes any number of operations; at least one with `wait`.
    fn reap(&mut self, wait: bool, done: &mut Vec<Done>) {
        let most = self.in_flight.len();
        let mut count = self.devices.world().rng.below(most + 1);
        if wait {
            count = count.max(1);
        }
        let before = done.len();
        while count > 0 || (wait && done.len() == before && most > 0) {
            self.step(done);
            count = count.saturating_sub(1);
        }
    }

    fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

impl Drop for SimDisk {
    fn drop(&mut self) {
        let mut world = self.devices.world();
        for number in self.in_flight.drain(..) {
            while world.complete(number).is_none() && world.in_flight.contains_key(&number) {}
        }
    }
}
