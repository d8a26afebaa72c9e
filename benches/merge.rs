//! Compares a merge without a guest with `qemu-img commit` and with a plain copy.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss
)]

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use clap::Parser;

use common::backend::{Disks, Program, pinned};
use common::copy::{self, Piece};
use common::counters::DeviceCounters;
use common::files;
use common::load::{self, Job, Kind, Place};
use common::options::Options;
use common::random::Random;
use common::{is_installed, median, sync};

/// How the data that is merged lies on the disk.
#[derive(Clone, Copy)]
struct Case {
    chunk: u64,
    random: bool,
}

impl Case {
    fn name(self) -> String {
        let order = if self.random { "random" } else { "contiguous" };
        format!("{}K {order}", self.chunk >> 10)
    }

    fn job(self) -> Job {
        Job {
            kind: Kind::Write,
            place: if self.random {
                Place::OnceEvery(self.chunk)
            } else {
                Place::InOrder
            },
            block: self.chunk,
            // In order means in this order in the COW, too.
            depth: if self.random { 32 } else { 1 },
            queues: 1,
            polls: true,
            time: Duration::ZERO,
        }
    }
}

const CASES: [Case; 4] = [
    Case {
        chunk: 4 << 10,
        random: true,
    },
    Case {
        chunk: 4 << 10,
        random: false,
    },
    Case {
        chunk: 64 << 10,
        random: true,
    },
    Case {
        chunk: 64 << 10,
        random: false,
    },
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Merge,
    Commit,
    Copy,
}

impl Way {
    const fn name(self) -> &'static str {
        match self {
            Self::Merge => "snapback merge",
            Self::Commit => "qemu-img commit",
            Self::Copy => "plain copy",
        }
    }

    fn program(self, case: Case) -> Program {
        match self {
            Self::Commit => Program::Overlay {
                cluster: case.chunk,
                subclusters: false,
            },
            _ => Program::Snapshot { chunk: case.chunk },
        }
    }
}

struct Sample {
    time: Duration,
    device: Option<DeviceCounters>,
}

/// Writes the whole disk through the view, and keeps the store for every round.
fn prepare(disks: &Disks, case: Case, way: Way) {
    let mut backend = disks.start(way.program(case));
    load::run(&backend.socket, &case.job());
    backend.stop();
    files::restore(&disks.path("room1.img"), &disks.path(saved(way)));
}

const fn saved(way: Way) -> &'static str {
    match way {
        Way::Commit => "overlay.saved",
        _ => "store.saved",
    }
}

fn pieces(disks: &Disks, case: Case) -> (u32, Vec<Piece>) {
    // Pieces as large as they can be: a contiguous copy is one of MiBs.
    let len = if case.random { case.chunk } else { 1 << 20 };
    let count = disks.size() / len;
    let mut places: Vec<u64> = (0..count).collect();
    if case.random {
        let mut random = Random::new(3);
        for i in (1..places.len()).rev() {
            places.swap(i, random.below(i as u64 + 1) as usize);
        }
    }
    let pieces = (0..count)
        .zip(places)
        .map(|(from, to)| (from * len, to * len));
    (len as u32, pieces.collect())
}

fn measure(disks: &Disks, case: Case, way: Way) -> Sample {
    let room = disks.path("room1.img");
    if way != Way::Copy {
        files::restore(&disks.path(saved(way)), &room);
        disks.forget_snapshots();
    }
    let (len, pieces) = pieces(disks, case);
    sync();
    let before = DeviceCounters::of(disks.folder());
    let start = Instant::now();
    match way {
        Way::Copy => copy::run(&room, &disks.path("disk.img"), len, &pieces),
        Way::Merge => succeed(
            pinned(env!("CARGO_BIN_EXE_snapback"))
                .args(["merge", "--origin"])
                .arg(disks.path("disk.img"))
                .arg("--cow")
                .arg(&room),
        ),
        Way::Commit => succeed(
            pinned("qemu-img")
                .args(["commit", "-q", "-d", "-t", "none", "-f", "qcow2"])
                .arg(&room),
        ),
    }
    let time = start.elapsed();
    let device = before.and_then(|b| Some(DeviceCounters::of(disks.folder())?.since(b)));
    Sample { time, device }
}

fn succeed(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn run(disks: &Disks, case: Case, options: &Options) {
    let ways: Vec<Way> = [Way::Merge, Way::Commit, Way::Copy]
        .into_iter()
        .filter(|way| *way != Way::Commit || is_installed("qemu-img"))
        .collect();
    for way in ways.iter().filter(|way| **way != Way::Copy) {
        prepare(disks, case, *way);
    }
    let mut samples: Vec<Vec<Sample>> = ways.iter().map(|_| Vec::new()).collect();
    for round in 0..options.rounds() {
        let mut order: Vec<usize> = (0..ways.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for i in order {
            samples[i].push(measure(disks, case, ways[i]));
        }
    }
    let mib = (disks.size() >> 20) as f64;
    let chunks = disks.size() / case.chunk;
    let speeds: Vec<f64> = samples
        .iter()
        .map(|list| {
            median(
                &mut list
                    .iter()
                    .map(|s| mib / s.time.as_secs_f64())
                    .collect::<Vec<_>>(),
            )
        })
        .collect();
    for ((way, samples), speed) in ways.iter().zip(&samples).zip(&speeds) {
        let per = |what: fn(&DeviceCounters) -> u64, of: u64| {
            let mut values: Vec<f64> = samples
                .iter()
                .filter_map(|s| s.device.as_ref())
                .map(|d| what(d) as f64 / of as f64)
                .collect();
            if values.is_empty() {
                return "–".to_owned();
            }
            format!("{:.2}", median(&mut values))
        };
        println!(
            "| {} | {} | {speed:.0} | {:.2} | {} | {} |",
            case.name(),
            way.name(),
            speeds[0] / speed,
            per(|d| d.flushes * 1000, chunks),
            per(|d| d.bytes_written, disks.size()),
        );
    }
}

fn place_name(folder: &Path) -> String {
    fs::canonicalize(folder).map_or_else(
        |_| folder.display().to_string(),
        |p| p.display().to_string(),
    )
}

fn main() {
    let options = Options::parse();
    for folder in options.folders() {
        println!("\n{}\n", place_name(&folder));
        println!(
            "| data | way | MiB/s | ours ÷ it | flushes for 1,000 chunks | bytes written for each byte |"
        );
        println!("|---|---|---|---|---|---|");
        let disks = Disks::new(&folder, options.size());
        for case in CASES {
            if options.wants(&case.name()) {
                run(&disks, case, &options);
            }
        }
    }
}
