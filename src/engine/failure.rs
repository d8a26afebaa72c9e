//! A failed I/O operation, with the details that its report needs.

use std::fmt;

use crate::io::Errno;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailedDevice {
    Origin,
    /// The COW device of the snapshot whose failure is reported.
    Cow,
    /// The record of its unflushed writes.
    Record,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Read,
    Write,
    /// A write of the store's header or of its exception areas.
    WriteMetadata,
    Flush,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    pub device: FailedDevice,
    pub operation: Operation,
    /// Bytes from the start of the device; `None` for a flush.
    pub offset: Option<u64>,
    pub errno: Errno,
}

impl Failure {
    pub const fn flush(device: FailedDevice, errno: Errno) -> Self {
        Self {
            device,
            operation: Operation::Flush,
            offset: None,
            errno,
        }
    }

    pub const fn is_origin_flush(&self) -> bool {
        matches!(
            (self.device, self.operation),
            (FailedDevice::Origin, Operation::Flush)
        )
    }

    /// The text of the error.
    pub fn error(&self) -> String {
        self.errno.to_string()
    }

    /// The text of the failure; `device` names the origin or the COW.
    pub fn describe(&self, device: impl fmt::Display) -> String {
        let what = match self.operation {
            Operation::Read => "reading",
            Operation::Write => "writing",
            Operation::WriteMetadata => "writing the metadata of",
            Operation::Flush => "flushing",
        };
        let place = self.offset.map(|at| format!(" at byte {at}"));
        let place = place.unwrap_or_default();
        format!("{what} {device}{place} failed: {}", self.error())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.describe(match self.device {
            FailedDevice::Origin => "the origin",
            FailedDevice::Cow => "the COW",
            FailedDevice::Record => "the record of unflushed writes",
        }))
    }
}
