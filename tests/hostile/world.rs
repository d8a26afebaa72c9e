//! Two daemons with all kinds of views, and on another view of each a witness: an
//! ordinary guest that reads, writes and flushes all the time and checks every byte.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use snapback::control::api::MergeRequest;

use super::common::load::{Load, Reins};
use super::common::stamps;
use super::common::volume::Volume;

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
    pub threads: u64,
    pub descriptors: usize,
}

/// A daemon with its witness.
pub struct Side {
    // Ends before the daemon.
    witness: Witness,
    volume: Volume,
    started: Instant,
}

impl Side {
    fn new(volume: Volume, shadow: Vec<u64>) -> Self {
        let path = volume.path("witness.sock");
        Self {
            witness: Witness::start(path, shadow),
            volume,
            started: Instant::now(),
        }
    }

    pub fn usage(&mut self) -> Usage {
        let process = format!("/proc/{}", self.volume.child().id());
        let status = std::fs::read_to_string(format!("{process}/status")).unwrap();
        let field = |name: &str| -> u64 {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        };
        Usage {
            memory: field("RssAnon:"),
            threads: field("Threads:"),
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
        let (live, merging) = (live(), merging());
        Self { live, merging }
    }

    pub fn side(&mut self, view: View) -> &mut Side {
        match view {
            View::Merge => &mut self.merging,
            _ => &mut self.live,
        }
    }

    pub fn path(&self, view: View) -> PathBuf {
        let side = match view {
            View::Merge => &self.merging,
            _ => &self.live,
        };
        side.volume.path(view.socket())
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

fn live() -> Side {
    let mut volume = Volume::new(SECTORS);
    volume.start(&[
        "--socket-path",
        "origin.sock",
        "--snapshot",
        &store("snapshot", ""),
        "--snapshot",
        &store("read-only", ",read-only"),
        "--snapshot",
        &store("witness", ""),
    ]);
    let shadow = volume.first_content();
    Side::new(volume, shadow)
}

fn merging() -> Side {
    let mut volume = Volume::new(SECTORS);
    volume.start(&[
        "--socket-path",
        "origin.sock",
        "--snapshot",
        &store("merged", ""),
    ]);
    let mut fill = Load::new("fill", 1, 1, volume.first_content());
    fill.attach(&volume.path("origin.sock"));
    fill.overwrite(SECTORS);
    fill.detach();
    volume.verb(&[
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
    ]);
    let merge = MergeRequest {
        snapshot: "merged".into(),
        follow: false,
        rate: Some(4096),
        now: true,
    };
    volume.client().merge(&merge).unwrap();
    volume.client().pause_merge().unwrap();
    Side::new(volume, fill.shadow)
}

/// An ordinary guest on its own thread.
struct Witness {
    reins: Arc<Reins>,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Witness {
    fn start(path: PathBuf, shadow: Vec<u64>) -> Self {
        let reins = Arc::new(Reins::default());
        let ends = Arc::new(AtomicBool::new(false));
        let theirs = (Arc::clone(&reins), Arc::clone(&ends));
        let thread = std::thread::spawn(move || {
            let (reins, ends) = theirs;
            let mut load = Load::new("witness", 2, 2, shadow);
            load.attach(&path);
            while !ends.load(Ordering::Acquire) {
                load.run(16, &reins);
                load.writes.clear();
                // The processors are for the hostile guest.
                std::thread::sleep(Duration::from_millis(1));
            }
            assert_eq!(load.settle(), 0);
        });
        Self {
            reins,
            ends,
            thread: Some(thread),
        }
    }

    fn is_served(&self) {
        let before = self.reins.done();
        super::eventually("the witness is served", || {
            assert!(!self.reins.failed(), "the witness has seen a fault");
            self.reins.done() >= before + 32
        });
    }

    fn end(&mut self) {
        self.ends.store(true, Ordering::Release);
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
