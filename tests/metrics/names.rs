//! What the document, the dashboard and the alerts name is what a scrape has.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::exposition::{Exposition, Kind};
use super::scraper::scrape;
use super::world::World;

pub fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn text(name: &str) -> String {
    fs::read_to_string(file(name)).unwrap()
}

/// A scrape in which every metric has a sample.
fn full() -> Exposition {
    let mut world = World::new();
    let snapshot = "name=s,cow=s.cow,size=1M,socket=s.sock";
    world.start(&["--socket-path", "a.sock", "--snapshot", snapshot]);
    let full = scrape(&world);
    for family in full.families.keys() {
        let mut samples = full.samples.keys();
        assert!(
            samples.any(|(name, _)| name.starts_with(family)),
            "{family}"
        );
    }
    full
}

/// What a table of all metrics has.
fn listed(scrape: &Exposition) -> BTreeSet<String> {
    let families = scrape.families.iter();
    let listed = families.map(|(name, kind)| match kind {
        Kind::Counter => format!("{name}_total"),
        Kind::Info => format!("{name}_info"),
        Kind::Gauge | Kind::Histogram => name.clone(),
    });
    listed.collect()
}

/// Names of metrics in expressions.
fn named(expressions: &[String]) -> BTreeSet<String> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = expressions.iter().flat_map(|e| e.split(|c| !is_word(c)));
    let ours = words.filter(|w| w.starts_with("snapback_") || w.starts_with("process_"));
    ours.map(str::to_owned).collect()
}

fn assert_there(scrape: &Exposition, expressions: &[String], least: usize) {
    let named = named(expressions);
    assert!(named.len() >= least, "only {named:?}");
    let there: BTreeSet<&String> = scrape.samples.keys().map(|(name, _)| name).collect();
    let missing: Vec<_> = named.iter().filter(|name| !there.contains(name)).collect();
    assert!(missing.is_empty(), "no such metric: {missing:?}");
}

#[test]
fn the_document_lists_exactly_what_a_scrape_has() {
    let document = text("docs/metrics.md");
    let rows = document.lines().filter_map(|line| line.strip_prefix("| `"));
    let names = rows.filter_map(|row| row.split(['`', '{']).next());
    let names: Vec<&str> = names
        .filter(|n| n.contains('_') && !n.contains(' '))
        .collect();
    let documented: BTreeSet<String> = names.iter().map(|n| (*n).to_owned()).collect();
    assert_eq!(documented.len(), names.len(), "a metric is listed twice");
    assert_eq!(documented, listed(&full()));
}

#[test]
fn the_dashboard_and_the_alerts_name_metrics_that_exist() {
    let scrape = full();
    let dashboard: serde_json::Value =
        serde_json::from_str(&text("packaging/grafana-snapback.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels
        .iter()
        .filter_map(|panel| panel["targets"].as_array());
    let mut expressions: Vec<String> = targets
        .flatten()
        .map(|target| target["expr"].as_str().unwrap().to_owned())
        .collect();
    assert!(expressions.len() >= 12, "{expressions:?}");
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    expressions.extend(
        variables
            .iter()
            .filter_map(|v| v["query"].as_str().map(str::to_owned)),
    );
    assert_there(&scrape, &expressions, 15);

    let alerts = text("packaging/snapback-alerts.yml");
    let expressions: Vec<String> = alerts
        .lines()
        .filter(|line| !line.trim_start().starts_with(['#', '-']))
        .map(str::to_owned)
        .collect();
    assert_there(&scrape, &expressions, 10);
}

#[test]
fn a_name_that_does_not_exist_is_found() {
    let expression = ["rate(snapback_nothing_total[5m]) / snapback_origin_size_bytes".to_owned()];
    let expected = ["snapback_nothing_total", "snapback_origin_size_bytes"];
    assert_eq!(named(&expression), expected.map(str::to_owned).into());
    let checked = std::panic::catch_unwind(|| assert_there(&full(), &expression, 1));
    assert!(checked.is_err());
}
