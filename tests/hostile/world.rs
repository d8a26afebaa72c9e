//! Two daemons with all kinds of views, and on another view of each a witness: an
//! ordinary guest that reads, writes and flushes all the time and checks every byte.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use snapback::control::api::MergeRequest;

use super::common::load::{Load, Reins};
use super::common::stamps;
use super::common::volume::Volume;
use super::inject::{Call, Injector, filtered};

/// The size of every view: 16 MiB.
pub const SECTORS: u64 = 32 << 10;

/// The view that a hostile guest has. Each shows the disk's first content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    Origin,
    Snapshot,
    ReadOnly,
    /// With a merge under way, which is paused.
    Merge,
}

impl View {
    pub const ALL: [Self; 4] = [Self::Origin, Self::Snapshot, Self::ReadOnly, Self::Merge];

    const fn socket(self) -> &'static str {
        match self {
            Self::Origin | Self::Merge => "origin.sock",
            Self::Snapshot => "snapshot.sock",
            Self::ReadOnly => "read-only.sock",
        }
    }
}

/// Threads, memory and descriptors of a process.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// Kibibytes of memory of its own; that of guests is shared.
    pub memory: u64,
    pub threads: usize,
    pub descriptors: usize,
}

impl Usage {
    /// Nothing has grown, but for what an allocator keeps.
    fn is_no_more_than(&self, before: &Self) -> bool {
        self.memory <= before.memory + 1024
            && self.descriptors <= before.descriptors + 2
            && self.threads <= before.threads
    }
}

/// The threads of a process, without those that the kernel adds for its io_uring.
fn threads(process: &str) -> usize {
    let tasks = std::fs::read_dir(format!("{process}/task")).unwrap();
    let names =
        tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|name| !name.starts_with("iou-")).count()
}

/// A daemon with its witness.
pub struct Side {
    // Ends before the daemon.
    witness: Witness,
    volume: Volume,
    /// Holds calls of the daemon.
    injector: Option<Injector>,
    started: Instant,
}

impl Side {
    /// `shadow` is what the witness's view holds.
    fn new((volume, injector): (Volume, Option<Injector>), shadow: Vec<u64>) -> Self {
        let path = volume.path("witness.sock");
        Self {
            witness: Witness::start(path, shadow),
            volume,
            injector,
            started: Instant::now(),
        }
    }

    fn usage(&self) -> Usage {
        let process = format!("/proc/{}", self.volume.pid());
        let status = std::fs::read_to_string(format!("{process}/status")).unwrap();
        let field = |name: &str| -> u64 {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        };
        Usage {
            memory: field("RssAnon:"),
            threads: threads(&process),
            descriptors: std::fs::read_dir(format!("{process}/fd")).unwrap().count(),
        }
    }

    /// Each view may write 32 lines at once and then one in ten seconds, with one about
    /// those that were held back.
    fn check_log(&self) {
        let log = std::fs::read_to_string(self.volume.path("daemon.log")).unwrap();
        let most = 4 * 2 * (32 + self.started.elapsed().as_secs() / 10 + 1);
        let lines = log.lines().count() as u64;
        assert!(lines <= most, "{lines} lines in the log, more than {most}");
        assert!(!log.contains("panicked"), "{log}");
    }

    fn end(mut self) {
        self.witness.end();
        self.check_log();
        self.volume.terminate();
    }
}

/// See the module documentation.
pub struct World {
    live: Side,
    merging: Side,
}

impl World {
    pub fn new() -> Self {
        let (live, merging) = (live(false), merging(false));
        Self { live, merging }
    }

    /// Reads can be held, see [`World::hold`].
    pub fn with_holds() -> Self {
        let (live, merging) = (live(true), merging(true));
        Self { live, merging }
    }

    /// From here on a read of [`HELD`](super::client::HELD) on this view waits for
    /// [`World::release`].
    pub fn hold(&self, view: View) {
        let sector = super::client::HELD * stamps::SECTOR as u64;
        match view {
            // Where in the store a chunk is kept is not known.
            View::Merge => self
                .injector(view)
                .hold(Call::Read, "/merged.cow", 0..u64::MAX),
            _ => self
                .injector(view)
                .hold(Call::Read, "/disk.img", sector..sector + 4096),
        }
    }

    pub fn until_held(&self, view: View) {
        self.injector(view).until_held();
    }

    pub fn release(&self, view: View) {
        self.injector(view).release();
    }

    fn injector(&self, view: View) -> &Injector {
        self.side(view).injector.as_ref().unwrap()
    }

    fn side(&self, view: View) -> &Side {
        match view {
            View::Merge => &self.merging,
            _ => &self.live,
        }
    }

    /// Of the daemon that has this view.
    pub fn usage(&self, view: View) -> Usage {
        self.side(view).usage()
    }

    /// The daemon of this view takes no more than before, when the last session has ended
    /// and the witness has as much under way.
    pub fn has_not_grown(&self, view: View, before: &Usage) {
        let mut now = self.usage(view);
        let start = Instant::now();
        while !now.is_no_more_than(before) {
            let waited = start.elapsed();
            assert!(
                waited.as_secs() < 20,
                "{view:?}: from {before:?} to {now:?}"
            );
            std::thread::sleep(Duration::from_millis(1));
            now = self.usage(view);
        }
    }

    /// The daemon of this view answers to its operator.
    pub fn answers(&self, view: View) {
        self.side(view).volume.client().status().unwrap();
    }

    /// The witness of this view's daemon has nothing under way until it goes on.
    pub fn pause_witness(&self, view: View, pause: bool) {
        self.side(view).witness.pause(pause);
    }

    pub fn path(&self, view: View) -> PathBuf {
        self.side(view).volume.path(view.socket())
    }

    /// The witnesses have seen nothing wrong, and are served: each of them has some
    /// requests answered from now on. The daemons answer, and their logs are bounded.
    pub fn check(&self) {
        for side in [&self.live, &self.merging] {
            side.witness.is_served();
            side.check_log();
            side.volume.client().status().unwrap();
        }
        let merge = self.merging.volume.status().merge.unwrap();
        assert!(merge.paused && merge.chunks_left > 0, "{merge:?}");
    }

    /// Ends the daemons, after a look at everything that the witnesses have written.
    pub fn end(self) {
        self.check();
        self.live.end();
        self.merging.end();
    }
}

fn store(name: &str, more: &str) -> String {
    format!("name={name},cow={name}.cow,size=40M,chunk-size=4K,socket={name}.sock{more}")
}

/// A volume whose daemon runs.
fn start(held: bool, snapshots: &[String]) -> (Volume, Option<Injector>) {
    let mut volume = Volume::new(SECTORS);
    let mut arguments = vec!["--socket-path", "origin.sock"];
    for snapshot in snapshots {
        arguments.extend(["--snapshot", snapshot]);
    }
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("snapback"));
    if held {
        filtered(&mut command);
    }
    volume.spawn(command, &arguments);
    let injector = held.then(|| Injector::attach(volume.child(), &[]));
    volume.until_it_answers();
    (volume, injector)
}

fn live(held: bool) -> Side {
    let snapshots = [
        store("snapshot", ""),
        store("read-only", ",read-only"),
        store("witness", ""),
    ];
    let started = start(held, &snapshots);
    let shadow = started.0.first_content();
    Side::new(started, shadow)
}

fn merging(held: bool) -> Side {
    let (volume, injector) = start(held, &[store("merged", "")]);
    let mut fill = Load::new("fill", 1, 1, volume.first_content());
    fill.attach(&volume.path("origin.sock"));
    fill.overwrite(SECTORS);
    fill.detach();
    let witness = [
        "snapshot",
        "witness",
        "--cow",
        "witness.cow",
        "--size",
        "40M",
        "--chunk-size",
        "4K",
        "--socket-path",
        "witness.sock",
    ];
    volume.verb(&witness);
    let merge = MergeRequest {
        snapshot: "merged".into(),
        follow: false,
        rate: Some(4096),
        now: true,
    };
    volume.client().merge(&merge).unwrap();
    volume.client().pause_merge().unwrap();
    Side::new((volume, injector), fill.shadow)
}

/// What a witness does.
#[derive(Debug, Default)]
struct Orders {
    ends: AtomicBool,
    pauses: AtomicBool,
    /// It has nothing under way.
    rests: AtomicBool,
}

/// An ordinary guest on its own thread.
struct Witness {
    reins: Arc<Reins>,
    orders: Arc<Orders>,
    thread: Option<JoinHandle<()>>,
}

impl Witness {
    fn start(path: PathBuf, shadow: Vec<u64>) -> Self {
        let (reins, orders) = (Arc::<Reins>::default(), Arc::<Orders>::default());
        let theirs = (Arc::clone(&reins), Arc::clone(&orders));
        let thread = std::thread::spawn(move || {
            let (reins, orders) = theirs;
            let mut load = Load::new("witness", 2, 2, shadow);
            load.attach(&path);
            while !orders.ends.load(Ordering::Acquire) {
                let rests = orders.pauses.load(Ordering::Acquire);
                if !rests {
                    load.run(16, &reins);
                    load.writes.clear();
                }
                orders.rests.store(rests, Ordering::Release);
                // The processors are for the hostile guest.
                std::thread::sleep(Duration::from_millis(1));
            }
            assert_eq!(load.settle(), 0);
        });
        Self {
            reins,
            orders,
            thread: Some(thread),
        }
    }

    fn pause(&self, pause: bool) {
        self.orders.pauses.store(pause, Ordering::Release);
        super::eventually("the witness follows", || {
            self.orders.rests.load(Ordering::Acquire) == pause
        });
    }

    fn is_served(&self) {
        let before = self.reins.done();
        super::eventually("the witness is served", || {
            assert!(!self.reins.failed(), "the witness has seen a fault");
            self.reins.done() >= before + 32
        });
    }

    fn end(&mut self) {
        self.orders.ends.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            if !std::thread::panicking() {
                assert!(ended.is_ok(), "the witness has seen a fault");
            }
        }
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.end();
    }
}

/// The stamps of all sectors that the views begin with.
pub fn first_content() -> Vec<u64> {
    (0..SECTORS).collect()
}

/// Compares what a view holds.
pub fn compare(what: &str, data: &[u8], first: u64, expected: &[u64]) {
    let range = first as usize..first as usize + data.len() / stamps::SECTOR;
    stamps::check(what, first, data, &expected[range]);
}
