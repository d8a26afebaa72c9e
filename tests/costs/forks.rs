//! The steps from a request for a fork to the answer, by count: a disk's flushes are what
//! takes time, and they do not depend on the machine's speed.

use std::fs::File;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use snapback::control::Client;
use snapback::control::api::{SnapshotSpec, StoreType};

use crate::trace::{self, Calls, Trace};

const FORKS: usize = 20;
/// Calls that wait until data is on the disk.
const DURABLE: [&str; 5] = ["fsync", "fdatasync", "syncfs", "sync_file_range", "sync"];

/// The calls for [`FORKS`] forks; `None` without strace.
fn calls(store_type: StoreType, size: Option<u64>) -> Option<Calls> {
    if !trace::is_possible() {
        eprintln!("skipped: strace is not installed, or may not trace here");
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    File::create_new(path("golden.img"))
        .unwrap()
        .set_len(1 << 30)
        .unwrap();
    let mut daemon = Command::new(assert_cmd::cargo::cargo_bin!("snapback"))
        .current_dir(folder.path())
        .env("XDG_RUNTIME_DIR", folder.path())
        .args(["--log-level", "warn", "serve", "--origin", "golden.img"])
        .args(["--read-only", "--control", "c.sock", "--allow-path", "."])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let client = Client::new(&path("c.sock")).unwrap();
    let start = Instant::now();
    while client.status().is_err() {
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "the daemon does not answer"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    let add = |n: usize| {
        let at = |ending: &str| {
            path(&format!("vm{n}.{ending}"))
                .to_str()
                .unwrap()
                .to_owned()
        };
        if size.is_none() {
            File::create_new(at("cow"))
                .unwrap()
                .set_len(2 << 30)
                .unwrap();
        }
        let spec = SnapshotSpec {
            name: format!("vm{n}"),
            cow: at("cow"),
            store_type,
            chunk_size: None,
            size,
            socket: Some(at("sock")),
            discard_zeroes_cow: None,
            defer_entries: None,
            discard_passdown_origin: None,
            read_only: None,
        };
        client.add_snapshot(&spec).unwrap();
    };
    add(FORKS);
    let trace = Trace::attach(daemon.id());
    let before = trace.calls();
    (0..FORKS).for_each(add);
    let calls = trace.calls().since(&before);
    let steps = durable(&calls) as f64 / FORKS as f64;
    println!(
        "{} {size:?}: {steps} durable steps of {} calls",
        store_type.letters(),
        calls.all()
    );
    drop(trace);
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    Some(calls)
}

fn durable(calls: &Calls) -> usize {
    DURABLE.iter().map(|name| calls.of(name)).sum()
}

#[test]
fn a_fork_waits_for_the_disk_a_few_times_only() {
    for (store_type, size, steps) in [
        (StoreType::N, None, 1),
        (StoreType::P, None, 2),
        (StoreType::P, Some(8 << 20), 4),
    ] {
        if let Some(calls) = calls(store_type, size) {
            assert!(durable(&calls) <= steps * FORKS, "{calls:?}");
        }
    }
}
