//! Measurements of a case, and the tables that are printed.

use std::time::Duration;

use super::counters::DeviceCounters;
use super::load::{Job, Outcome};
use super::median;

/// One measurement of one program.
#[derive(Clone, Copy, Debug, Default)]
pub struct Measurement {
    pub per_second: f64,
    /// Microseconds.
    pub p50: f64,
    pub p99: f64,
    pub p999: f64,
    /// Processor time of the back end for each request, in microseconds.
    pub cpu: f64,
    /// Flushes of the device for each request; `None` if there is no device.
    pub flushes: Option<f64>,
    /// Bytes written to the device for each request.
    pub written: Option<f64>,
}

impl Measurement {
    pub fn new(outcome: &Outcome, cpu: Duration, device: Option<DeviceCounters>) -> Self {
        let count = outcome.requests.max(1) as f64;
        Self {
            per_second: outcome.per_second(),
            p50: outcome.percentile(50.0),
            p99: outcome.percentile(99.0),
            p999: outcome.percentile(99.9),
            cpu: cpu.as_secs_f64() * 1e6 / count,
            flushes: device.map(|d| d.flushes as f64 / count),
            written: device.map(|d| d.bytes_written as f64 / count),
        }
    }
}

/// All rounds of one program.
pub struct Series {
    pub program: String,
    pub rounds: Vec<Measurement>,
    /// System calls for each request, of a run apart.
    pub calls: Option<f64>,
}

impl Series {
    pub fn median(&self, what: impl Fn(&Measurement) -> f64) -> f64 {
        median(&mut self.rounds.iter().map(what).collect::<Vec<_>>())
    }

    fn optional(&self, what: impl Fn(&Measurement) -> Option<f64>) -> Option<f64> {
        let mut values: Vec<f64> = self.rounds.iter().filter_map(what).collect();
        (!values.is_empty()).then(|| median(&mut values))
    }
}

/// The programs of one case; the first one is ours.
pub struct CaseResult {
    pub name: String,
    pub series: Vec<Series>,
}

impl CaseResult {
    /// Requests of the first program for each request of another.
    pub fn ratio(&self, other: &Series) -> f64 {
        self.series[0].median(|m| m.per_second) / other.median(|m| m.per_second)
    }
}

pub const HEADER: &str = "\
| case | program | requests/s | ours ÷ it | p50 µs | p99 µs | p99.9 µs | CPU µs | flushes | bytes written | system calls |
|---|---|---|---|---|---|---|---|---|---|---|";

/// Prints the rows of a case. Costs are for each request.
pub fn print(case: &CaseResult) {
    let number = |value: Option<f64>, digits: usize| {
        value.map_or("–".into(), |value| format!("{value:.digits$}"))
    };
    for (i, series) in case.series.iter().enumerate() {
        let name = if i == 0 { case.name.as_str() } else { "" };
        let ratio = if i == 0 {
            "".into()
        } else {
            format!("{:.2}", case.ratio(series))
        };
        println!(
            "| {name} | {} | {:.0} | {ratio} | {:.1} | {:.1} | {:.1} | {:.2} | {} | {} | {} |",
            series.program,
            series.median(|m| m.per_second),
            series.median(|m| m.p50),
            series.median(|m| m.p99),
            series.median(|m| m.p999),
            series.median(|m| m.cpu),
            number(series.optional(|m| m.flushes), 3),
            number(series.optional(|m| m.written), 0),
            number(series.calls, 2),
        );
    }
}

/// The name of a job for the table.
pub fn job_name(job: &Job) -> String {
    let block = if job.block >= 1 << 20 {
        format!("{}M", job.block >> 20)
    } else {
        format!("{}K", job.block >> 10)
    };
    let queues = match job.queues {
        1 => String::new(),
        n => format!(", {n} queues"),
    };
    let driver = if job.polls { "polling" } else { "sleeping" };
    format!(
        "{} {block} QD {}{queues}, {driver}",
        job.kind.name(),
        job.depth
    )
}
