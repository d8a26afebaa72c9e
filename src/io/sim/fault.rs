//! Faults that tests inject, and when they apply.

use std::ops::Range;

use super::LoggedKind;
use crate::io::{DeviceId, Errno};

/// Which operations a fault applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultOn {
    Any,
    Read,
    Write,
    Flush,
}

/// What happens to an operation instead of success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultEffect {
    /// It fails.
    Error(Errno),
    /// The device transfers a part of it, and the caller has to continue with the rest.
    /// Flushes and operations of one block are not affected.
    Short,
}

/// A fault that will occur. Build it with [`Fault::new`] and restrict it with the other
/// methods.
#[derive(Clone, Debug)]
pub struct Fault {
    on: FaultOn,
    effect: FaultEffect,
    device: Option<DeviceId>,
    range: Option<Range<u64>>,
    skip: u64,
    once: bool,
}

impl Fault {
    /// Fails every matching operation on every device, for ever.
    pub const fn new(on: FaultOn, errno: Errno) -> Self {
        Self::of(on, FaultEffect::Error(errno))
    }

    /// The same with any effect.
    pub const fn of(on: FaultOn, effect: FaultEffect) -> Self {
        Self {
            on,
            effect,
            device: None,
            range: None,
            skip: 0,
            once: false,
        }
    }

    /// Only operations on `device`.
    pub const fn device(mut self, device: DeviceId) -> Self {
        self.device = Some(device);
        self
    }

    /// Only reads and writes that touch these bytes.
    pub const fn range(mut self, bytes: Range<u64>) -> Self {
        self.range = Some(bytes);
        self
    }

    /// Lets `matching` operations pass first, in the order of their submission.
    pub const fn after(mut self, matching: u64) -> Self {
        self.skip = matching;
        self
    }

    /// Applies to one operation only.
    pub const fn once(mut self) -> Self {
        self.once = true;
        self
    }

    fn matches(&self, kind: LoggedKind, device: DeviceId, offset: u64, len: u64) -> bool {
        let on = match self.on {
            FaultOn::Any => true,
            FaultOn::Read => kind == LoggedKind::Read,
            FaultOn::Write => matches!(kind, LoggedKind::Write { .. } | LoggedKind::Zero(_)),
            FaultOn::Flush => kind == LoggedKind::Flush,
        };
        let touches = |range: &Range<u64>| {
            kind != LoggedKind::Flush
                && offset < range.end
                && range.start < offset.saturating_add(len)
        };
        on && self.device.is_none_or(|d| d == device) && self.range.as_ref().is_none_or(touches)
    }
}

/// The faults in force.
#[derive(Debug, Default)]
pub(super) struct Faults(Vec<Fault>);

impl Faults {
    pub(super) fn push(&mut self, fault: Fault) {
        self.0.push(fault);
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// The effect on an operation that is being submitted.
    pub(super) fn strike(
        &mut self,
        kind: LoggedKind,
        device: DeviceId,
        offset: u64,
        len: u64,
    ) -> Option<FaultEffect> {
        let mut hit = None;
        self.0.retain_mut(|fault| {
            if hit.is_some() || !fault.matches(kind, device, offset, len) {
                return true;
            }
            if fault.skip > 0 {
                fault.skip -= 1;
                return true;
            }
            hit = Some(fault.effect);
            !fault.once
        });
        hit
    }
}
