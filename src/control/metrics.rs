//! Metrics in the text formats of Prometheus: what is shown, and how it is written.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, MetricEncoder, NoLabelSet, prometheus_text, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
pub use prometheus_client::registry::Unit;

/// How the samples of a family are to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Grows until the process ends or what it belongs to goes; its samples end with `_total`.
    Counter,
    Gauge,
    Histogram,
    /// Its labels are what it says; its sample ends with `_info`.
    Info,
}

/// The names of labels with their values.
pub type Labels = Vec<(&'static str, String)>;

/// Labels with these names and values.
pub fn labels<const N: usize>(labels: [(&'static str, &str); N]) -> Labels {
    let owned = |(name, value): (&'static str, &str)| (name, value.to_owned());
    labels.into_iter().map(owned).collect()
}

#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Integer(u64),
    Number(f64),
    Histogram {
        sum: f64,
        /// Ends of ranges with the numbers of what is in each of them, in ascending order; the
        /// last end is infinite.
        buckets: Vec<(f64, u64)>,
    },
}

/// One metric, with its samples by their labels.
#[derive(Clone, Debug, PartialEq)]
pub struct Family {
    /// Without the unit and the suffix of its kind.
    pub name: &'static str,
    /// A sentence without its full stop.
    pub help: &'static str,
    pub unit: Option<Unit>,
    pub kind: Kind,
    pub samples: Vec<(Labels, Value)>,
}

impl Family {
    pub const fn new(kind: Kind, name: &'static str, help: &'static str) -> Self {
        Self {
            name,
            help,
            unit: None,
            kind,
            samples: Vec::new(),
        }
    }

    pub const fn counter(name: &'static str, help: &'static str) -> Self {
        Self::new(Kind::Counter, name, help)
    }

    pub const fn gauge(name: &'static str, help: &'static str) -> Self {
        Self::new(Kind::Gauge, name, help)
    }

    pub fn unit(self, unit: Unit) -> Self {
        let unit = Some(unit);
        Self { unit, ..self }
    }

    /// The only sample of a family without labels.
    pub fn value(self, value: u64) -> Self {
        self.sample(Vec::new(), Value::Integer(value))
    }

    pub fn sample(mut self, labels: Labels, value: Value) -> Self {
        self.samples.push((labels, value));
        self
    }
}

/// A text format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    OpenMetrics,
    /// That of scrapers which do not know the other one.
    Prometheus,
}

impl Format {
    /// The format for a client that accepts `accept`.
    pub fn accepted(accept: Option<&str>) -> Self {
        let accept = accept.unwrap_or_default();
        match accept.contains("text/plain") && !accept.contains("application/openmetrics-text") {
            true => Self::Prometheus,
            false => Self::OpenMetrics,
        }
    }

    pub const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// Writes all families.
///
/// # Errors
/// None that is known: a string takes any text.
pub fn encode(families: Vec<Family>, format: Format) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Families(families)));
    let mut out = String::new();
    match format {
        Format::OpenMetrics => text::encode(&mut out, &registry)?,
        Format::Prometheus => prometheus_text::encode(&mut out, &registry)?,
    }
    Ok(out)
}

#[derive(Debug)]
struct Families(Vec<Family>);

impl Collector for Families {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for family in &self.0 {
            let kind = match family.kind {
                Kind::Counter => MetricType::Counter,
                Kind::Gauge => MetricType::Gauge,
                Kind::Histogram => MetricType::Histogram,
                Kind::Info => MetricType::Info,
            };
            let unit = family.unit.as_ref();
            let help = format!("{}.", family.help);
            let mut metric = encoder.encode_descriptor(family.name, &help, unit, kind)?;
            for (labels, value) in &family.samples {
                if family.kind == Kind::Info {
                    metric.encode_info(labels)?;
                } else if labels.is_empty() {
                    write(&mut metric, family.kind, value)?;
                } else {
                    write(&mut metric.encode_family(labels)?, family.kind, value)?;
                }
            }
        }
        Ok(())
    }
}

fn write(metric: &mut MetricEncoder<'_>, kind: Kind, value: &Value) -> fmt::Result {
    match (value, kind) {
        (Value::Integer(value), Kind::Counter) => {
            metric.encode_counter::<NoLabelSet, _, f64>(value, None)
        }
        (Value::Number(value), Kind::Counter) => {
            metric.encode_counter::<NoLabelSet, _, f64>(value, None)
        }
        (Value::Integer(value), _) => metric.encode_gauge(value),
        (Value::Number(value), _) => metric.encode_gauge(value),
        (Value::Histogram { sum, buckets }, _) => {
            let count = buckets.iter().map(|(_, count)| count).sum();
            metric.encode_histogram::<NoLabelSet>(*sum, count, buckets, None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn families() -> Vec<Family> {
        let latency = Value::Histogram {
            sum: 0.75,
            buckets: vec![(0.5, 2), (f64::INFINITY, 1)],
        };
        let labels = || vec![("view", "a\"\\\n".to_owned())];
        vec![
            Family::counter("x", "Counts").value(3),
            Family::gauge("y", "Is")
                .unit(Unit::Bytes)
                .sample(labels(), Value::Integer(7)),
            Family::new(Kind::Histogram, "z", "Takes")
                .unit(Unit::Seconds)
                .sample(labels(), latency),
            Family::new(Kind::Info, "i", "Names").sample(labels(), Value::Integer(1)),
        ]
    }

    #[test]
    fn both_formats_are_written_as_they_are_specified() {
        let open = encode(families(), Format::OpenMetrics).unwrap();
        let label = r#"view="a\"\\\n""#;
        let expected = [
            "# HELP x Counts.",
            "# TYPE x counter",
            "x_total 3",
            "# HELP y_bytes Is.",
            "# TYPE y_bytes gauge",
            "# UNIT y_bytes bytes",
            &format!("y_bytes{{{label}}} 7"),
            "# HELP z_seconds Takes.",
            "# TYPE z_seconds histogram",
            "# UNIT z_seconds seconds",
            &format!("z_seconds_sum{{{label}}} 0.75"),
            &format!("z_seconds_count{{{label}}} 3"),
            &format!("z_seconds_bucket{{le=\"0.5\",{label}}} 2"),
            &format!("z_seconds_bucket{{le=\"+Inf\",{label}}} 3"),
            "# HELP i Names.",
            "# TYPE i info",
            &format!("i_info{{{label}}} 1"),
            "# EOF",
        ];
        assert_eq!(open.lines().collect::<Vec<_>>(), expected);
        let old = encode(families(), Format::Prometheus).unwrap();
        assert!(old.contains("# TYPE x_total counter\nx_total 3\n"), "{old}");
        assert!(!old.contains("# EOF"), "{old}");
    }

    #[test]
    fn only_a_scraper_that_does_not_know_openmetrics_gets_the_older_format() {
        let prometheus =
            "application/openmetrics-text; version=1.0.0,text/plain;version=0.0.4;q=0.3,*/*;q=0.1";
        for accept in [None, Some("*/*"), Some(prometheus)] {
            assert_eq!(Format::accepted(accept), Format::OpenMetrics, "{accept:?}");
        }
        let old = Some("text/plain;version=0.0.4;q=1,*/*;q=0.1");
        assert_eq!(Format::accepted(old), Format::Prometheus);
    }
}
