//! What can go wrong, and when.

use std::ops::Range;

use super::LoggedKind;
use crate::io::{DeviceId, Errno};

/// Which operations a fault hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultOn {
    Any,
    Read,
    Write,
    Flush,
}

/// An error to give instead of success. Build it with [`Fault::new`] and the
/// methods that narrow it.
#[derive(Clone, Debug)]
pub struct Fault {
    on: FaultOn,
    errno: Errno,
    device: Option<DeviceId>,
    range: Option<Range<u64>>,
    skip: u64,
    once: bool,
}

impl Fault {
    /// Fails every matching operation on every device, for ever.
    pub const fn new(on: FaultOn, errno: Errno) -> Self {
        Self {
            on,
            errno,
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

    /// Hits one operation, then is gone.
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

    /// The error for an operation that is being submitted, if one is due.
    pub(super) fn strike(
        &mut self,
        kind: LoggedKind,
        device: DeviceId,
        offset: u64,
        len: u64,
    ) -> Option<Errno> {
        let mut hit = None;
        self.0.retain_mut(|fault| {
            if hit.is_some() || !fault.matches(kind, device, offset, len) {
                return true;
            }
            if fault.skip > 0 {
                fault.skip -= 1;
                return true;
            }
            hit = Some(fault.errno);
            !fault.once
        });
        hit
    }
}
