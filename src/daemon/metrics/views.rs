//! What guests and front ends do, for each view.

use std::time::Duration;

use super::scene::View;
use crate::control::metrics::{Family, Kind, Labels, Unit, Value, labels};
use crate::vhost::{BUCKETS, ErrorCause, Operation, OperationTotals, bucket_end};

/// Those that transfer bytes.
const TRANSFERS: [Operation; 4] = [
    Operation::Read,
    Operation::Write,
    Operation::WriteZeroes,
    Operation::Discard,
];
/// Those whose latencies say something about the disk.
const TIMED: [Operation; 5] = [
    Operation::Read,
    Operation::Write,
    Operation::WriteZeroes,
    Operation::Discard,
    Operation::Flush,
];

pub fn families(views: &[View]) -> Vec<Family> {
    let gauge = |name, help, value: fn(&View) -> u64| each(Family::gauge(name, help), views, value);
    let counter =
        |name, help, value: fn(&View) -> u64| each(Family::counter(name, help), views, value);
    let mut families = vec![info(views)];
    families.extend(requests(views));
    families.extend([
        gauge(
            "snapback_view_requests_in_flight",
            "Requests that were taken from the rings and are not answered yet",
            |v| v.totals.in_flight,
        ),
        gauge(
            "snapback_view_slow_requests",
            "Requests that have been under way for 3 seconds or more",
            |v| v.slow.map_or(0, |slow| slow.requests),
        ),
        gauge(
            "snapback_view_slow_oldest",
            "How long the oldest of the slow requests has been under way",
            |v| v.slow.map_or(0, |slow| slow.seconds),
        )
        .unit(Unit::Seconds),
        gauge(
            "snapback_view_attached",
            "1 while a front end is connected",
            |v| u64::from(v.attached),
        ),
        gauge(
            "snapback_view_front_ends_waiting",
            "Front ends that wait until the one that is connected leaves",
            |v| u64::try_from(v.waiting).unwrap_or(u64::MAX),
        ),
        counter(
            "snapback_view_sessions",
            "Front ends that have connected",
            |v| v.sessions,
        ),
        counter(
            "snapback_view_ring_faults",
            "Rings that were stopped because the guest had made them malformed",
            |v| v.totals.ring_faults,
        ),
        counter(
            "snapback_view_log_lines_held_back",
            "Lines that were not logged because there were too many about this view",
            |v| v.held_back_lines,
        ),
    ]);
    families
}

fn of(view: &View) -> Labels {
    labels([("view", &view.name), ("socket", &view.socket)])
}

fn with(view: &View, operation: Operation) -> Labels {
    let mut labels = of(view);
    labels.push(("operation", operation.name().to_owned()));
    labels
}

fn each(family: Family, views: &[View], value: fn(&View) -> u64) -> Family {
    views.iter().fold(family, |family, view| {
        family.sample(of(view), Value::Integer(value(view)))
    })
}

fn info(views: &[View]) -> Family {
    let help = "What the view shows now, and whether guests may write to it";
    let mut family = Family::new(Kind::Info, "snapback_view", help);
    for view in views {
        let mut labels = of(view);
        labels.push(("shows", view.kind.to_owned()));
        labels.push(("read_only", view.read_only.to_string()));
        family = family.sample(labels, Value::Integer(1));
    }
    family
}

fn requests(views: &[View]) -> [Family; 4] {
    let mut requests = Family::counter(
        "snapback_view_requests",
        "Requests that were answered, also with an error",
    );
    let mut bytes = Family::counter(
        "snapback_view_transferred",
        "Bytes of the requests that succeeded",
    )
    .unit(Unit::Bytes);
    let mut errors = Family::counter(
        "snapback_view_errors",
        "Requests that were answered with an error, by its cause",
    );
    let mut latency = Family::new(
        Kind::Histogram,
        "snapback_view_latency",
        "From when a request was taken from the ring until its answer is published",
    )
    .unit(Unit::Seconds);
    for view in views {
        for operation in Operation::ALL {
            let totals = view.totals.operation(operation);
            let labels = with(view, operation);
            requests = requests.sample(labels.clone(), Value::Integer(totals.requests()));
            for (cause, count) in ErrorCause::ALL.into_iter().zip(totals.errors) {
                let mut labels = labels.clone();
                labels.push(("cause", cause.name().to_owned()));
                errors = errors.sample(labels, Value::Integer(count));
            }
        }
        for operation in TRANSFERS {
            let totals = view.totals.operation(operation);
            bytes = bytes.sample(with(view, operation), Value::Integer(totals.bytes));
        }
        for operation in TIMED {
            let totals = view.totals.operation(operation);
            latency = latency.sample(with(view, operation), histogram(&totals));
        }
    }
    [requests, bytes, errors, latency]
}

fn seconds(nanoseconds: u64) -> f64 {
    Duration::from_nanos(nanoseconds).as_secs_f64()
}

fn histogram(totals: &OperationTotals) -> Value {
    let ends = (0..BUCKETS).map(|bucket| bucket_end(bucket).map_or(f64::INFINITY, seconds));
    Value::Histogram {
        sum: seconds(totals.nanoseconds),
        buckets: ends.zip(totals.latencies).collect(),
    }
}
