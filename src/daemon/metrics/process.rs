//! The metrics that every process has, with the names that Prometheus gives them. What the
//! system does not tell is left out.

use std::fs;
use std::time::Duration;

use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

use crate::control::metrics::{Family, Unit, Value};

/// Ticks in `/proc` of a second, on all machines that this runs on.
const TICKS: u64 = 100;

pub fn families() -> Vec<Family> {
    let cpu = clock_gettime(ClockId::ProcessCPUTime);
    let seconds = u64::try_from(cpu.tv_sec).unwrap_or(0);
    let nanoseconds = u32::try_from(cpu.tv_nsec).unwrap_or(0);
    let cpu = Duration::new(seconds, nanoseconds).as_secs_f64();
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = |name| Some(field(&status, name)?.saturating_mul(1024));
    let integer = |value| Some(Value::Integer(value?));
    let gauge = |name, help, value: Option<Value>| {
        let family = Family::gauge(name, help);
        match value {
            Some(value) => family.sample(Vec::new(), value),
            None => family,
        }
    };
    vec![
        Family::counter("process_cpu", "Processor time that the process has used")
            .unit(Unit::Seconds)
            .sample(Vec::new(), Value::Number(cpu)),
        gauge(
            "process_resident_memory",
            "Memory of the process that is in memory",
            integer(kib("VmRSS:")),
        )
        .unit(Unit::Bytes),
        gauge(
            "process_virtual_memory",
            "Address space of the process, which includes the memory of guests",
            integer(kib("VmSize:")),
        )
        .unit(Unit::Bytes),
        gauge(
            "process_threads",
            "Threads of the process",
            integer(field(&status, "Threads:")),
        ),
        gauge(
            "process_open_fds",
            "Descriptors that are open",
            integer(open_descriptors()),
        ),
        gauge(
            "process_max_fds",
            "Descriptors that may be open",
            integer(getrlimit(Resource::Nofile).current),
        ),
        gauge(
            "process_start_time",
            "When the process started, since 1970",
            start_time().map(Value::Number),
        )
        .unit(Unit::Seconds),
    ]
}

/// The number in the line of `/proc/self/status` that begins with `name`.
fn field(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// Without the one that is opened to count them.
fn open_descriptors() -> Option<u64> {
    let entries = fs::read_dir("/proc/self/fd").ok()?.count();
    u64::try_from(entries).ok()?.checked_sub(1)
}

fn start_time() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The name may have anything in it, and ends with the last parenthesis.
    let (_, rest) = stat.rsplit_once(')')?;
    let ticks: u64 = rest.split_ascii_whitespace().nth(19)?.parse().ok()?;
    let system = fs::read_to_string("/proc/stat").ok()?;
    let boot = Duration::from_secs(field(&system, "btime")?);
    let since = Duration::from_millis(ticks.saturating_mul(1000 / TICKS));
    Some((boot + since).as_secs_f64())
}
