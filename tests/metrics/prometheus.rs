//! Prometheus itself, from Debian: it scrapes the daemon, and its tool judges the text, the
//! alerts and their tests.

use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::guest::Guest;
use super::limited::output;
use super::names::file;
use super::scraper::{ask, control, start_with_port, tcp};
use super::world::World;

fn is_installed(program: &str) -> bool {
    let there = Command::new(program).arg("--version").output().is_ok();
    if !there {
        eprintln!("skipped: {program} is not installed (qemu-tests/install.sh)");
    }
    there
}

/// Output of promtool, which must find nothing wrong.
#[track_caller]
fn promtool(arguments: &[&str]) {
    let mut command = Command::new("promtool");
    command.args(arguments).current_dir(file("packaging"));
    let output = output(&mut command);
    let text = String::from_utf8_lossy(&output.stderr);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{arguments:?}: {said}{text}");
}

#[test]
fn promtool_finds_nothing_wrong_in_a_scrape() {
    if !is_installed("promtool") {
        return;
    }
    let mut world = World::new();
    let snapshot = "name=s,cow=s.cow,size=1M,socket=s.sock";
    world.start(&["--socket-path", "a.sock", "--snapshot", snapshot]);
    let scrape = ask(control(&world), "GET /metrics", "Accept: text/plain\r\n");
    let mut child = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(scrape.body.as_bytes()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && said.is_empty(), "{said}");
}

#[test]
fn the_alerts_are_valid_and_fire_when_they_should() {
    if !is_installed("promtool") {
        return;
    }
    promtool(&["check", "rules", "snapback-alerts.yml"]);
    promtool(&["test", "rules", "snapback-alerts-test.yml"]);
    let alerts = fs::read_to_string(file("packaging/snapback-alerts.yml")).unwrap();
    let tests = fs::read_to_string(file("packaging/snapback-alerts-test.yml")).unwrap();
    let names = alerts
        .lines()
        .filter_map(|line| line.split_once("- alert: "));
    let names: Vec<&str> = names.map(|(_, name)| name).collect();
    assert!(names.len() >= 8, "{names:?}");
    for name in names {
        // One case in which it fires, and one in which it does not.
        let cases = tests.split("alertname=\"").skip(1);
        let cases: Vec<&str> = cases
            .filter(|c| c.starts_with(&format!("{name}\"")))
            .collect();
        for value in ["value: 0", "value: 1"] {
            assert!(cases.iter().any(|c| c.contains(value)), "{name}: {value}");
        }
    }
}

/// A Prometheus that scrapes `target`; killed when dropped.
struct Prometheus {
    child: Child,
    address: SocketAddr,
}

impl Prometheus {
    fn start(world: &World, target: SocketAddr) -> Self {
        let rules = file("packaging/snapback-alerts.yml");
        let config = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\n\
             rule_files: [{rules:?}]\n\
             scrape_configs:\n  - job_name: snapback\n    static_configs: [{{targets: ['{target}']}}]\n"
        );
        fs::write(world.path("prometheus.yml"), config).unwrap();
        loop {
            if let Some(started) = Self::try_start(world) {
                return started;
            }
        }
    }

    /// At a port that is free now. `None`: it was taken meanwhile, for which Prometheus ends.
    fn try_start(world: &World) -> Option<Self> {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let log = fs::File::create(world.path("prometheus.log")).unwrap();
        let mut child = Command::new("prometheus")
            .current_dir(world.folder.path())
            .args(["--config.file=prometheus.yml", "--storage.tsdb.path=tsdb"])
            .arg(format!("--web.listen-address={address}"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let start = Instant::now();
        while child.try_wait().unwrap().is_none() {
            let said = fs::read_to_string(world.path("prometheus.log")).unwrap();
            if said.contains("ready to receive web requests") {
                return Some(Self { child, address });
            }
            assert!(start.elapsed() < Duration::from_secs(100), "{said}");
            std::thread::sleep(Duration::from_millis(20));
        }
        let said = fs::read_to_string(world.path("prometheus.log")).unwrap();
        assert!(said.contains("address already in use"), "{said}");
        None
    }

    /// The values that the query has, by the HTTP API.
    fn query(&self, query: &str) -> Vec<String> {
        let Ok(stream) = std::net::TcpStream::connect(self.address) else {
            return Vec::new();
        };
        let path = format!("GET /api/v1/query?query={query}");
        let answer = ask(stream, &path, "Connection: close\r\n");
        let body = answer.body.find('{').map_or("", |at| &answer.body[at..]);
        let end = body.rfind('}').map_or(0, |at| at + 1);
        let value: serde_json::Value = serde_json::from_str(&body[..end]).unwrap_or_default();
        let results = value["data"]["result"].as_array();
        let values = results.into_iter().flatten().map(|r| &r["value"][1]);
        values
            .filter_map(|v| v.as_str().map(str::to_owned))
            .collect()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn prometheus_scrapes_the_port_and_answers_with_what_a_guest_did() {
    if !is_installed("prometheus") {
        return;
    }
    let mut world = World::new();
    let address = start_with_port(&mut world, "127.0.0.1:0", &["--socket-path", "a.sock"]);
    let mut guest = Guest::connect(&world.path("a.sock"));
    for n in 0..7 {
        assert_eq!(guest.write(8 * n, &[1; 4096]), 0);
    }
    let mut prometheus = Prometheus::start(&world, address);
    let start = Instant::now();
    let until = |what: &str, values: &mut dyn FnMut() -> bool| {
        while !values() {
            let log = || fs::read_to_string(world.path("prometheus.log")).unwrap();
            assert!(
                start.elapsed() < Duration::from_secs(100),
                "{what}: {}",
                log()
            );
            std::thread::sleep(Duration::from_millis(200));
        }
    };
    until("the requests", &mut || {
        assert!(
            prometheus.child.try_wait().unwrap().is_none(),
            "Prometheus has ended"
        );
        let query = "snapback_view_requests_total{view=\"origin\",operation=\"write\"}";
        let query = query
            .replace('{', "%7B")
            .replace('}', "%7D")
            .replace('"', "%22");
        prometheus.query(&query) == ["7"]
    });
    // A histogram is one to Prometheus: the quantile is a number.
    until("the quantile", &mut || {
        let query = "histogram_quantile(0.5,snapback_view_latency_seconds_bucket%7Boperation=%22write%22%7D)";
        let values = prometheus.query(query);
        values
            .first()
            .and_then(|v| v.parse().ok())
            .is_some_and(|v: f64| v > 0.0)
    });
    assert_eq!(prometheus.query("up"), ["1"]);
    let alerts = prometheus.query("count(ALERTS)%20or%20vector(0)");
    assert_eq!(alerts, ["0"]);
}
