//! What many exceptions and a large disk cost: memory, the time of a start, and reads
//! through a snapshot, against those of a small disk. In memory, so that only the program
//! differs. The files are sparse: the store has entries, and no data.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss
)]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;

use common::counters::cpu_time;
use common::load::{self, Job, Kind, Place};
use common::{median, text};
use snapback::control::Client;

const CHUNK: u64 = 4096;
/// Entries of an area.
const AREA: u64 = CHUNK / 16;
const ROUNDS: usize = 6;

#[derive(Debug, Parser)]
struct Options {
    /// Without 100 million exceptions, which take 4 GB of memory.
    #[arg(long)]
    short: bool,
    /// Folder for the disks, in memory.
    #[arg(long, value_name = "DIR", default_value = "/dev/shm")]
    folder: PathBuf,
    /// Ignored; `cargo bench` gives it to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

/// A disk with a snapshot.
#[derive(Clone, Copy)]
struct Size {
    /// The disk has `1 << bits` chunks.
    bits: u32,
    exceptions: u64,
    /// Of chunks at random; otherwise in a row.
    random: bool,
}

impl Size {
    const fn new(bits: u32, exceptions: u64, random: bool) -> Self {
        Self {
            bits,
            exceptions,
            random,
        }
    }

    fn name(self) -> String {
        let order = if self.random { "at random" } else { "in a row" };
        format!(
            "{} exceptions {order}, {} GiB",
            self.exceptions,
            (CHUNK << self.bits) >> 30
        )
    }

    /// The chunk of exception number `n`, each once.
    fn chunk(self, n: u64) -> u64 {
        if self.random {
            permuted(n, self.bits)
        } else {
            n
        }
    }

    fn make(self, folder: &Path) {
        let disk = File::create(folder.join("disk.img")).unwrap();
        disk.set_len(CHUNK << self.bits).unwrap();
        let cow = File::create(folder.join("s.cow")).unwrap();
        let areas = self.exceptions / AREA + 1;
        // One more, and some room.
        cow.set_len((areas + 2) * (AREA + 1) * CHUNK).unwrap();
        let words = |words: [u32; 4]| words.map(u32::to_le_bytes).concat();
        cow.write_all_at(&words([0x7041_6e53, 1, 1, 8]), 0).unwrap();
        let mut n = 0;
        for area in 0..areas {
            let chunk = 1 + area * (AREA + 1);
            let mut bytes = Vec::with_capacity(CHUNK as usize);
            for new in (chunk + 1..).take(AREA.min(self.exceptions - n) as usize) {
                bytes.extend([self.chunk(n), new].map(u64::to_le_bytes).as_flattened());
                n += 1;
            }
            bytes.resize(CHUNK as usize, 0);
            cow.write_all_at(&bytes, chunk * CHUNK).unwrap();
        }
    }
}

/// A permutation of the numbers below `1 << bits`, which are even: a Feistel network.
fn permuted(n: u64, bits: u32) -> u64 {
    let half = bits / 2;
    let mask = (1 << half) - 1;
    let (mut left, mut right) = (n >> half, n & mask);
    for round in 1..=6 {
        let mixed = (right + round * 0x9e37).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mixed = (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (left, right) = (right, left ^ ((mixed >> 32) & mask));
    }
    left << half | right
}

/// A daemon that serves the disk and its snapshot.
struct Daemon {
    child: Child,
    folder: PathBuf,
    start: Duration,
}

impl Daemon {
    fn start(folder: &Path) -> Self {
        let start = Instant::now();
        let child = Command::new(env!("CARGO_BIN_EXE_snapback"))
            .current_dir(folder)
            .env("XDG_RUNTIME_DIR", folder)
            .args(["serve", "--log-level", "error", "--origin", "disk.img"])
            .args(["--socket-path", "o.sock", "--control", "c.sock"])
            .args(["--snapshot", "name=s,cow=s.cow,socket=s.sock"])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let client = Client::new(&folder.join("c.sock")).unwrap();
        while client.status().is_err() {
            std::thread::sleep(Duration::from_millis(2));
        }
        Self {
            child,
            folder: folder.to_owned(),
            start: start.elapsed(),
        }
    }

    /// Bytes.
    fn resident(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        let number = line.and_then(|line| line.split_whitespace().nth(1));
        number.unwrap().parse::<u64>().unwrap() << 10
    }

    /// Reads a second, and microseconds of processor time for each.
    fn reads(&self, socket: &str) -> (f64, f64) {
        let job = Job {
            kind: Kind::Read,
            place: Place::Random,
            block: CHUNK,
            depth: 32,
            queues: 1,
            polls: true,
            time: Duration::from_millis(500),
        };
        let before = cpu_time(self.child.id());
        let outcome = load::run(&self.folder.join(socket), &job);
        let time = cpu_time(self.child.id()).saturating_sub(before);
        let each = time.as_secs_f64() * 1e6 / outcome.requests as f64;
        (outcome.per_second(), each)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A size with what was measured.
struct Row {
    size: Size,
    daemon: Daemon,
    snapshot: Vec<(f64, f64)>,
    origin: Vec<(f64, f64)>,
}

fn median_of(values: &[(f64, f64)], which: fn(&(f64, f64)) -> f64) -> f64 {
    median(&mut values.iter().map(which).collect::<Vec<_>>())
}

fn main() {
    let options = Options::parse();
    let mut sizes = vec![
        Size::new(18, 10_000, true),
        Size::new(28, 10_000_000, false),
        Size::new(28, 10_000_000, true),
    ];
    if !options.short {
        sizes.push(Size::new(32, 100_000_000, true));
    }
    let folder = tempfile::tempdir_in(&options.folder).unwrap();
    let mut rows = Vec::new();
    for (number, size) in sizes.into_iter().enumerate() {
        let place = folder.path().join(number.to_string());
        fs::create_dir(&place).unwrap();
        size.make(&place);
        let daemon = Daemon::start(&place);
        rows.push(Row {
            size,
            daemon,
            snapshot: Vec::new(),
            origin: Vec::new(),
        });
    }
    for round in 0..ROUNDS {
        let mut order: Vec<&mut Row> = rows.iter_mut().collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for row in order {
            row.snapshot.push(row.daemon.reads("s.sock"));
            row.origin.push(row.daemon.reads("o.sock"));
        }
    }
    println!("{}\n", text(&options.folder));
    println!(
        "| snapshot | start s | MB | bytes each | snapshot: reads/s | CPU µs (÷ first) | origin: reads/s | CPU µs (÷ first) |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    let base = rows[0].daemon.resident();
    for row in &rows {
        let each = |rounds: fn(&Row) -> &[(f64, f64)]| {
            let (this, first) = (rounds(row), rounds(&rows[0]));
            let cpu = median_of(this, |m| m.1);
            let grown = cpu / median_of(first, |m| m.1);
            format!("{:.0} | {cpu:.2} ({grown:.2})", median_of(this, |m| m.0))
        };
        let resident = row.daemon.resident();
        println!(
            "| {} | {:.2} | {} | {:.1} | {} | {} |",
            row.size.name(),
            row.daemon.start.as_secs_f64(),
            resident / 1_000_000,
            resident.saturating_sub(base) as f64 / row.size.exceptions as f64,
            each(|row| &row.snapshot),
            each(|row| &row.origin),
        );
    }
}
