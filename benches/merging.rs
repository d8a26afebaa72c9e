//! A guest's reads and writes while a rollback is merged, against an idle disk, with the
//! speed of the merge beside them; and the speed of a merge that nobody disturbs, against a
//! plain copy of the same bytes.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss
)]

mod common;

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;

use common::copy::{self, Piece};
use common::load::{self, Job, Kind, Outcome, Place};
use common::random::Random;
use common::{files, sync, text};
use snapback::control::Client;

const BLOCK: u64 = 4096;
/// Pieces of data that was written in order.
const RUN: u64 = 64 << 10;

/// Every chunk of 4 KiB of a snapshot is overwritten, and the disk is rolled back.
#[derive(Debug, Parser)]
struct Settings {
    /// Seconds instead of minutes: a smaller disk, shorter spans.
    #[arg(long)]
    short: bool,
    /// Folder for the disk, on a real file system.
    #[arg(long, value_name = "DIR", default_value = env!("CARGO_TARGET_TMPDIR"))]
    folder: PathBuf,
    /// What writes to chunks that are not merged yet do.
    #[arg(long, value_delimiter = ',', default_values = ["wait", "redirect"])]
    policies: Vec<String>,
    /// The limit of the merge beside a guest, in bytes per second (such as 20M).
    #[arg(long, value_name = "SIZE")]
    rate: Option<String>,
    /// Only the merge that nobody disturbs.
    #[arg(long)]
    alone: bool,
    /// Ignored; `cargo bench` gives it to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

impl Settings {
    /// Bytes of the disk.
    const fn size(&self) -> u64 {
        if self.short { 192 << 20 } else { 896 << 20 }
    }

    /// Of one measurement.
    fn span(&self) -> Duration {
        Duration::from_millis(if self.short { 700 } else { 2000 })
    }
}

/// A daemon that serves `disk.img`; both go away with it.
struct Volume {
    folder: tempfile::TempDir,
    daemon: Child,
    client: Client,
    size: u64,
    cows: u64,
}

impl Volume {
    fn new(settings: &Settings, policy: &str) -> Self {
        let folder = tempfile::tempdir_in(&settings.folder).unwrap();
        files::zeroes(&folder.path().join("disk.img"), settings.size());
        let program = std::env::var("SNAPBACK_PROGRAM");
        let daemon = Command::new(program.as_deref().unwrap_or(env!("CARGO_BIN_EXE_snapback")))
            .current_dir(folder.path())
            .env("XDG_RUNTIME_DIR", folder.path())
            .args(["serve", "--origin", "disk.img", "--control", "c.sock"])
            .args(["--socket-path", "a.sock", "--merge-writes", policy])
            .stdout(Stdio::null())
            .stderr(File::create(folder.path().join("daemon.log")).unwrap())
            .spawn()
            .unwrap();
        let client = Client::new(&folder.path().join("c.sock")).unwrap();
        while client.status().is_err() {
            std::thread::sleep(Duration::from_millis(5));
        }
        Self {
            folder,
            daemon,
            client,
            size: settings.size(),
            cows: 0,
        }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("a.sock")
    }

    fn verb(&self, args: &[&str]) {
        let status = Command::new(env!("CARGO_BIN_EXE_snapback"))
            .current_dir(self.folder.path())
            .env("XDG_RUNTIME_DIR", self.folder.path())
            .args(args)
            .args(["--control", "c.sock"])
            .stdout(Stdio::null())
            .status();
        assert!(status.unwrap().success(), "{args:?}");
    }

    fn is_merging(&self) -> bool {
        self.client.status().unwrap().merge.is_some()
    }

    fn wait_for_merge(&self) {
        while self.is_merging() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn chunks_merged(&self) -> u64 {
        let merge = self.client.status().unwrap().merge;
        merge.map_or(self.size / BLOCK, |m| m.chunks_done)
    }

    /// Takes a snapshot, overwrites every chunk, in random order or not, and rolls back.
    fn merge(&mut self, order: Order, rate: Option<&str>) {
        let _ = std::fs::remove_file(self.cow());
        self.cows += 1;
        let cow = self.cow();
        files::zeroes(&cow, self.size + self.size / 64 + (8 << 20));
        self.verb(&["snapshot", "m", "--cow", text(&cow), "--chunk-size", "4K"]);
        let (place, block, depth) = match order {
            Order::Random => (Place::OnceEvery(BLOCK), BLOCK, 32),
            // One after the other, so that the COW chunks have the same order.
            Order::Contiguous => (Place::InOrder, RUN, 1),
        };
        let job = Job {
            place,
            block,
            depth,
            ..job(Kind::Write, Duration::ZERO)
        };
        load::run(&self.socket(), &job);
        sync();
        let mut verb = vec!["rollback", "m", "--now"];
        verb.extend(rate.iter().flat_map(|rate| ["--rate", *rate]));
        self.verb(&verb);
    }

    fn cow(&self) -> PathBuf {
        self.folder.path().join(format!("m{}.cow", self.cows))
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

#[derive(Clone, Copy, Debug)]
enum Order {
    Random,
    Contiguous,
}

/// A guest that sleeps while it waits.
const fn job(kind: Kind, time: Duration) -> Job {
    Job {
        kind,
        place: Place::Random,
        block: BLOCK,
        depth: 1,
        queues: 1,
        polls: false,
        time,
    }
}

fn shuffled(count: u64) -> Vec<u64> {
    let mut all: Vec<u64> = (0..count).collect();
    let mut random = Random::new(count);
    for i in (1..all.len()).rev() {
        all.swap(i, random.below(i as u64 + 1) as usize);
    }
    all
}

/// What a merge cannot be faster than: the same bytes from one file to another. Returns
/// MiB/s. Random: from anywhere, and to ascending places with gaps, as in a merge's batch.
fn plain_copy(settings: &Settings, order: Order) -> f64 {
    let folder = tempfile::tempdir_in(&settings.folder).unwrap();
    let (from, to) = (folder.path().join("from"), folder.path().join("to"));
    for path in [&from, &to] {
        files::zeroes(path, settings.size());
    }
    let (len, pieces): (u64, Vec<Piece>) = match order {
        Order::Contiguous => {
            let len = 1 << 20;
            let places = (0..settings.size()).step_by(len as usize);
            (len, places.map(|at| (at, at)).collect())
        }
        Order::Random => {
            let blocks = settings.size() / BLOCK;
            let mut places = shuffled(blocks);
            for batch in places.chunks_mut(4096) {
                batch.sort_unstable();
            }
            let pairs = shuffled(blocks).into_iter().zip(places);
            (BLOCK, pairs.map(|(a, b)| (a * BLOCK, b * BLOCK)).collect())
        }
    };
    let start = Instant::now();
    copy::run(&from, &to, len as u32, &pieces);
    (settings.size() >> 20) as f64 / start.elapsed().as_secs_f64()
}

fn cell(outcome: &Outcome) -> String {
    let ms = |percent| outcome.percentile(percent) / 1000.0;
    let rate = outcome.per_second();
    format!("{rate:>8.0}/s {:>8.2} {:>8.2}", ms(50.0), ms(99.0))
}

/// A guest on the idle disk, and beside a merge.
fn beside(volume: &mut Volume, settings: &Settings, policy: &str, kind: Kind, depth: usize) {
    // While no merge runs, the volume has no snapshot either.
    volume.wait_for_merge();
    let socket = volume.socket();
    let job = |time| Job {
        depth,
        ..job(kind, time)
    };
    let idle = load::run(&socket, &job(settings.span() / 2));
    volume.merge(Order::Random, settings.rate.as_deref());
    let (start, before) = (Instant::now(), volume.chunks_merged());
    let merging = load::run_while(&socket, &job(settings.span()), || volume.is_merging());
    let merged = (volume.chunks_merged().saturating_sub(before) * BLOCK) >> 20;
    let speed = merged as f64 / start.elapsed().as_secs_f64();
    if settings.rate.is_some() && volume.is_merging() {
        volume.verb(&["merge", "--rate", "0"]);
    }
    let part = merging.per_second() / idle.per_second();
    let slower = |percent| merging.percentile(percent) / idle.percentile(percent);
    println!(
        "{policy:>8} {} QD {depth:<2} idle {} | merging {} | {part:.2} | p50 × {:.1}, p99 × {:.1} | {speed:.0} MiB/s",
        kind.name(),
        cell(&idle),
        cell(&merging),
        slower(50.0),
        slower(99.0),
    );
}

fn alone(volume: &mut Volume, settings: &Settings, policy: &str, order: Order) {
    volume.wait_for_merge();
    volume.merge(order, None);
    let start = Instant::now();
    volume.wait_for_merge();
    let merge = (settings.size() >> 20) as f64 / start.elapsed().as_secs_f64();
    let copy = plain_copy(settings, order);
    let part = merge / copy;
    println!(
        "{policy:>8} merge alone, {order:?}: {merge:.0} MiB/s; a plain copy {copy:.0} | {part:.2}"
    );
}

fn main() {
    let settings = Settings::parse();
    println!(
        "{} MiB of 4K chunks in {}, random 4K; p50 and p99 in ms",
        settings.size() >> 20,
        settings.folder.display()
    );
    for policy in &settings.policies {
        let mut volume = Volume::new(&settings, policy);
        for kind in [Kind::Write, Kind::Read] {
            for depth in [1, 32] {
                if !settings.alone {
                    beside(&mut volume, &settings, policy, kind, depth);
                }
            }
        }
        for order in [Order::Random, Order::Contiguous] {
            alone(&mut volume, &settings, policy, order);
        }
    }
}
