//! A strict reader of OpenMetrics text: whatever the standard forbids and a reader can see is
//! an error.

use std::collections::{BTreeMap, BTreeSet};

pub type Labels = BTreeMap<String, String>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
    Info,
}

#[derive(Debug, Default)]
pub struct Exposition {
    /// Families by their names.
    pub families: BTreeMap<String, Kind>,
    /// By the names of samples and their labels.
    pub samples: BTreeMap<(String, Labels), f64>,
}

impl Exposition {
    /// The only sample with this name that has these labels, among others.
    #[track_caller]
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let found = self.all(name, labels);
        assert_eq!(found.len(), 1, "{name} {labels:?}: {found:?}");
        found[0]
    }

    /// All samples with this name that have these labels, among others.
    pub fn all(&self, name: &str, labels: &[(&str, &str)]) -> Vec<f64> {
        let has = |all: &Labels| {
            let mut labels = labels.iter();
            labels.all(|(key, value)| all.get(*key).is_some_and(|there| there == value))
        };
        let samples = self.samples.iter();
        let found = samples.filter(|((of, all), _)| of == name && has(all));
        found.map(|(_, value)| *value).collect()
    }

    /// Whether the sample only grows.
    fn grows(&self, name: &str) -> bool {
        let of = |suffix: &str| {
            let family = name.strip_suffix(suffix);
            family.and_then(|family| self.families.get(family)).copied()
        };
        of("_total") == Some(Kind::Counter)
            || ["_bucket", "_count", "_sum"]
                .map(of)
                .contains(&Some(Kind::Histogram))
    }

    /// Nothing that should only grow is less than it was `before`.
    #[track_caller]
    pub fn assert_not_behind(&self, before: &Self) {
        let mut compared = 0;
        for (key, was) in before.samples.iter().filter(|((n, _), _)| before.grows(n)) {
            if let Some(is) = self.samples.get(key) {
                assert!(is >= was, "{key:?}: {was} became {is}");
                compared += 1;
            }
        }
        assert!(compared > 20, "only {compared} samples grow");
    }
}

pub fn parse(text: &str) -> Result<Exposition, String> {
    let mut parsed = Exposition::default();
    let mut family: Option<(String, Kind)> = None;
    let mut helped: Option<String> = None;
    let body = text.strip_suffix("# EOF\n").ok_or("no EOF at the end")?;
    for line in body.lines() {
        let wrong = |why: &str| Err(format!("{why}: {line}"));
        let mut words = line.splitn(4, ' ');
        let first = words.next().unwrap_or_default();
        if first == "#" {
            let (Some(what), Some(name), Some(rest)) = (words.next(), words.next(), words.next())
            else {
                return wrong("a comment");
            };
            match what {
                "HELP" if !is_name(name) || !rest.ends_with('.') => return wrong("a bad HELP"),
                "HELP" => helped = Some(name.to_owned()),
                "TYPE" => {
                    if helped.as_deref() != Some(name) {
                        return wrong("TYPE without HELP");
                    }
                    let kind = match rest {
                        "counter" => Kind::Counter,
                        "gauge" => Kind::Gauge,
                        "histogram" => Kind::Histogram,
                        "info" => Kind::Info,
                        _ => return wrong("an unknown type"),
                    };
                    if parsed.families.insert(name.to_owned(), kind).is_some() {
                        return wrong("a family twice");
                    }
                    family = Some((name.to_owned(), kind));
                }
                "UNIT" => {
                    let ours = family.as_ref().is_some_and(|(family, _)| family == name);
                    if !ours || !name.ends_with(&format!("_{rest}")) {
                        return wrong("a unit that the name does not have");
                    }
                }
                _ => return wrong("an unknown comment"),
            }
            continue;
        }
        let Some((family, kind)) = &family else {
            return wrong("a sample without a family");
        };
        let (name, labels, value) = sample(line)?;
        let suffix = name.strip_prefix(family.as_str());
        let fits = suffix.is_some_and(|suffix| match kind {
            Kind::Counter => suffix == "_total",
            Kind::Gauge => suffix.is_empty(),
            Kind::Histogram => ["_bucket", "_sum", "_count"].contains(&suffix),
            Kind::Info => suffix == "_info",
        });
        if !fits || (*kind != Kind::Gauge && value < 0.0) || (*kind == Kind::Info && value != 1.0) {
            return wrong("a sample that its family cannot have");
        }
        if parsed.samples.insert((name, labels), value).is_some() {
            return wrong("a sample twice");
        }
    }
    check_histograms(&parsed)?;
    check_suffixes(&parsed)?;
    Ok(parsed)
}

fn is_name(name: &str) -> bool {
    let letter = |c: char| c.is_ascii_lowercase() || c == '_';
    name.starts_with(letter) && name.chars().all(|c| letter(c) || c.is_ascii_digit())
}

/// Name, labels and value of a sample.
fn sample(line: &str) -> Result<(String, Labels, f64), String> {
    let wrong = |why: &str| format!("{why}: {line}");
    let end = line.find(['{', ' ']).ok_or_else(|| wrong("no value"))?;
    let (name, mut rest) = line.split_at(end);
    if !is_name(name) {
        return Err(wrong("a bad name"));
    }
    let mut labels = Labels::new();
    if let Some(mut inner) = rest.strip_prefix('{') {
        loop {
            let (key, after) = inner
                .split_once("=\"")
                .ok_or_else(|| wrong("a bad label"))?;
            let (value, after) = quoted(after).ok_or_else(|| wrong("a bad value"))?;
            if !is_name(key) || labels.insert(key.to_owned(), value).is_some() {
                return Err(wrong("a bad or repeated label"));
            }
            match (after.strip_prefix(','), after.strip_prefix('}')) {
                (Some(more), _) => inner = more,
                (None, Some(end)) => {
                    rest = end;
                    break;
                }
                (None, None) => return Err(wrong("labels without an end")),
            }
        }
    }
    let value = rest.strip_prefix(' ').ok_or_else(|| wrong("no value"))?;
    let value = value.parse().map_err(|_| wrong("no number"))?;
    Ok((name.to_owned(), labels, value))
}

/// The text until the closing quote, and what follows it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(match chars.next()?.1 {
                'n' => '\n',
                c @ ('"' | '\\') => c,
                _ => return None,
            }),
            c => value.push(c),
        }
    }
    None
}

/// Buckets grow, and the last one is infinite and has all.
fn check_histograms(parsed: &Exposition) -> Result<(), String> {
    let mut all: BTreeMap<(&str, Labels), Vec<(f64, f64)>> = BTreeMap::new();
    for ((name, labels), value) in &parsed.samples {
        let Some(family) = name.strip_suffix("_bucket") else {
            continue;
        };
        let mut labels = labels.clone();
        let end = labels.remove("le").ok_or(format!("{name} without le"))?;
        let end: f64 = end.parse().map_err(|_| format!("{name}: le={end}"))?;
        all.entry((family, labels)).or_default().push((end, *value));
    }
    for ((family, labels), mut buckets) in all {
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        let grow = buckets.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1);
        let count = parsed
            .samples
            .get(&(format!("{family}_count"), labels.clone()));
        let last = buckets.last().copied();
        let whole = last.is_some_and(|(end, n)| end.is_infinite() && Some(&n) == count);
        let sum = parsed
            .samples
            .contains_key(&(format!("{family}_sum"), labels.clone()));
        if !grow || !whole || !sum {
            return Err(format!("{family} {labels:?}: {buckets:?}"));
        }
    }
    Ok(())
}

/// No family has the name of another one's sample.
fn check_suffixes(parsed: &Exposition) -> Result<(), String> {
    for family in parsed.families.keys() {
        for suffix in ["_total", "_bucket", "_sum", "_count", "_info", "_created"] {
            if parsed.families.contains_key(&format!("{family}{suffix}")) {
                return Err(format!("{family}{suffix} is a sample of {family}"));
            }
        }
    }
    Ok(())
}

#[test]
fn what_is_wrong_is_found() {
    let good = "# HELP a_bytes A.\n# TYPE a_bytes counter\n# UNIT a_bytes bytes\na_bytes_total{x=\"1\"} 2\n# EOF\n";
    let parsed = parse(good).unwrap();
    assert_eq!(parsed.value("a_bytes_total", &[("x", "1")]), 2.0);
    for (from, to) in [
        ("# EOF\n", ""),
        ("# HELP a_bytes A.\n", ""),
        ("A.\n", "A\n"),
        ("bytes bytes", "bytes seconds"),
        ("a_bytes_total{", "a_bytes{"),
        ("x=\"1\"", "x=\"1\",x=\"1\""),
        ("x=\"1\"", "x=\"\\1\""),
        ("} 2", "} -2"),
        ("} 2", "}"),
        ("counter", "gauge"),
        ("counter", "untyped"),
        ("# EOF", "a_bytes_total{x=\"1\"} 2\n# EOF"),
        ("# EOF", "# EOF\n# EOF"),
    ] {
        let bad = good.replacen(from, to, 1);
        assert_ne!(bad, good);
        assert!(parse(&bad).is_err(), "{bad}");
    }
    let histogram = "# HELP h H.\n# TYPE h histogram\nh_sum 1\nh_count 2\nh_bucket{le=\"1\"} 1\nh_bucket{le=\"+Inf\"} 2\n# EOF\n";
    parse(histogram).unwrap();
    for (from, to) in [
        ("h_sum 1\n", ""),
        ("h_count 2", "h_count 3"),
        ("} 1", "} 3"),
        ("+Inf", "2"),
    ] {
        assert!(parse(&histogram.replacen(from, to, 1)).is_err(), "{from}");
    }
}
