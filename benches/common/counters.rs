//! What a measurement costs, as the kernel counts it: processor time of a process, and
//! flushes and bytes written of the device below a folder.

use std::fs;
use std::os::linux::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

/// Processor time of a process, with threads that have ended. Resolution: 10 ms.
pub fn cpu_time(pid: u32) -> Duration {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return Duration::ZERO;
    };
    // The name in brackets may contain spaces.
    let after = stat.rsplit(") ").next().unwrap_or("");
    let ticks: u64 = after
        .split(' ')
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<u64>().ok())
        .sum();
    // proc(5) counts in units of USER_HZ, which is 100 on every platform of ours.
    Duration::from_millis(ticks * 10)
}

/// Counters of a block device (Documentation/admin-guide/iostats.rst).
#[derive(Clone, Copy, Debug, Default)]
pub struct DeviceCounters {
    pub flushes: u64,
    pub bytes_written: u64,
}

impl DeviceCounters {
    /// The counters of the device that holds `folder`; `None` if it is in memory.
    pub fn of(folder: &Path) -> Option<Self> {
        let device = fs::metadata(folder).ok()?.st_dev();
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        let stat = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat")).ok()?;
        let fields: Vec<u64> = stat.split_whitespace().flat_map(str::parse).collect();
        Some(Self {
            flushes: *fields.get(15)?,
            bytes_written: fields.get(6)? * 512,
        })
    }

    pub fn since(self, before: Self) -> Self {
        Self {
            flushes: self.flushes - before.flushes,
            bytes_written: self.bytes_written - before.bytes_written,
        }
    }
}
