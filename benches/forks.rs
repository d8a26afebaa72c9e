//! Forks of one image: from the request to the first read at the fork's socket, on one daemon,
//! and from the start of a daemon of its own; with the memory, threads and descriptors.
#![allow(
    unsafe_code,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss
)]

#[path = "../tests/daemon/guest.rs"]
#[allow(dead_code)]
mod guest;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;

use guest::Guest;
use snapback::control::Client;
use snapback::control::api::{SnapshotSpec, StoreType};

const SIZE: u64 = 1 << 30;

#[derive(Debug, Parser)]
struct Options {
    /// Folder for the image and the COWs.
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    folder: PathBuf,
    /// Number of forks.
    #[arg(long, default_value_t = 100)]
    forks: usize,
    /// Ignored; `cargo bench` gives it to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Daemon {
    fn serve(folder: &Path, control: &str, more: &[&str]) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_snapback"))
            .current_dir(folder)
            .env("XDG_RUNTIME_DIR", folder)
            .args([
                "serve",
                "--origin",
                "golden.img",
                "--read-only",
                "--control",
                control,
            ])
            .args(more)
            .args(["--log-level", "warn"])
            .stdout(Stdio::null())
            .spawn();
        Self(child.unwrap())
    }

    fn field(&self, file: &str, name: &str) -> f64 {
        let text = fs::read_to_string(format!("/proc/{}/{file}", self.0.id())).unwrap();
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// KiB resident, KiB in proportion, threads, descriptors.
    fn cost(&self) -> [f64; 4] {
        let descriptors = fs::read_dir(format!("/proc/{}/fd", self.0.id())).unwrap();
        [
            self.field("status", "VmRSS:"),
            self.field("smaps_rollup", "Pss:"),
            self.field("status", "Threads:"),
            descriptors.count() as f64,
        ]
    }
}

fn until(mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(60), "no answer");
        std::thread::sleep(Duration::from_micros(500));
    }
}

/// The first read of a guest that connects now.
fn first_read(socket: &Path) {
    let mut guest = Guest::connect(socket);
    assert_eq!(guest.read(0, 4096).unwrap().len(), 4096);
}

fn row(name: &str, times: &mut [f64], cost: [f64; 4], forks: usize) {
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    let each = cost.map(|value| value / forks as f64);
    println!(
        "| {name} | {:.1} | {:.1} | {:.1} | {:.0} | {:.0} | {:.2} | {:.2} |",
        at(0.5),
        at(0.95),
        at(1.0),
        each[0],
        each[1],
        each[2],
        each[3]
    );
}

fn one_daemon(options: &Options, name: &str, store_type: StoreType, size: Option<u64>) {
    let folder = tempfile::tempdir_in(&options.folder).unwrap();
    let path = |name: &str| folder.path().join(name);
    File::create_new(path("golden.img"))
        .unwrap()
        .set_len(SIZE)
        .unwrap();
    let daemon = Daemon::serve(folder.path(), "c.sock", &[]);
    let client = Client::new(&path("c.sock")).unwrap();
    until(|| client.status().is_ok());
    let mut times = Vec::new();
    let mut before = [0.0; 4];
    let warm = 5;
    for n in 0..options.forks + warm {
        if n == warm {
            times.clear();
            before = daemon.cost();
        }
        let at = |ending: &str| path(&format!("{n}.{ending}"));
        let text = |path: PathBuf| path.to_str().unwrap().to_owned();
        let start = Instant::now();
        if size.is_none() {
            File::create_new(at("cow"))
                .unwrap()
                .set_len(SIZE * 2)
                .unwrap();
        }
        let spec = SnapshotSpec {
            name: format!("vm{n}"),
            cow: text(at("cow")),
            store_type,
            chunk_size: None,
            size,
            socket: Some(text(at("sock"))),
            discard_zeroes_cow: None,
            defer_entries: None,
            discard_passdown_origin: None,
            read_only: None,
        };
        client.add_snapshot(&spec).unwrap();
        first_read(&at("sock"));
        times.push(start.elapsed().as_secs_f64() * 1000.0);
    }
    // The last front end has left.
    until(|| client.status().unwrap().views.iter().all(|v| !v.attached));
    let after = daemon.cost();
    let more = std::array::from_fn(|i| after[i] - before[i]);
    row(name, &mut times, more, options.forks);
}

fn own_daemons(options: &Options) {
    let folder = tempfile::tempdir_in(&options.folder).unwrap();
    let path = |name: &str| folder.path().join(name);
    File::create_new(path("golden.img"))
        .unwrap()
        .set_len(SIZE)
        .unwrap();
    let mut times = Vec::new();
    let daemons: Vec<Daemon> = (0..options.forks)
        .map(|n| {
            let start = Instant::now();
            let cow = path(&format!("{n}.cow"));
            File::create_new(cow).unwrap().set_len(SIZE * 2).unwrap();
            let snapshot = format!("name=vm{n},cow={n}.cow,type=N,socket={n}.sock");
            let control = format!("{n}-c.sock");
            let daemon = Daemon::serve(folder.path(), &control, &["--snapshot", &snapshot]);
            // The control socket is bound before, and served last.
            let client = Client::new(&path(&control)).unwrap();
            until(|| client.status().is_ok());
            first_read(&path(&format!("{n}.sock")));
            times.push(start.elapsed().as_secs_f64() * 1000.0);
            daemon
        })
        .collect();
    let costs = daemons.iter().map(Daemon::cost);
    let all = costs.fold([0.0; 4], |sum, cost| {
        std::array::from_fn(|i| sum[i] + cost[i])
    });
    row("a daemon of its own, N", &mut times, all, options.forks);
}

fn main() {
    let options = Options::parse();
    println!("{} forks, each idle after its first read\n", options.forks);
    println!(
        "| fork | ms to the first read: median | 95 % | most | KiB RSS | KiB PSS | threads | descriptors |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    one_daemon(&options, "N, sparse COW", StoreType::N, None);
    one_daemon(&options, "P, sparse COW", StoreType::P, None);
    one_daemon(
        &options,
        "P, `size` of 64 MiB",
        StoreType::P,
        Some(64 << 20),
    );
    own_daemons(&options);
}
