//! A case on snapback: a daemon, and a driver on each of its sockets.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::SECTOR;
use super::case::{Case, Op, Phase, Resume, Snap, View};
use super::driver::Driver;
use super::label;
use super::model::Bytes;
use super::seen::{Seen, usage};
use crate::bench::Bench;
use crate::daemon::Daemon;

/// Bytes per second of a merge that is to be interrupted: one small batch a second.
const SLOW: &str = "64K";

pub struct Here {
    bench: Bench,
    case: Case,
    daemon: Option<Daemon>,
    drivers: BTreeMap<View, Driver>,
    alive: Vec<Snap>,
    /// The disks were exchanged since the daemon ended.
    exchanged: bool,
    seen: Vec<Seen>,
}

fn name(snap: Snap) -> String {
    format!("s{snap}")
}

impl Here {
    pub fn new(case: Case, origin: &[u8], cows: &[Vec<u8>]) -> Self {
        let here = Self {
            bench: Bench::new(),
            case,
            daemon: None,
            drivers: BTreeMap::new(),
            alive: Vec::new(),
            exchanged: false,
            seen: Vec::new(),
        };
        std::fs::write(here.origin(), origin).unwrap();
        for (snap, bytes) in cows.iter().enumerate() {
            std::fs::write(here.cow(snap), bytes).unwrap();
        }
        here
    }

    pub fn origin(&self) -> PathBuf {
        self.bench.path("origin.img")
    }

    pub fn cow(&self, snap: Snap) -> PathBuf {
        self.bench.path(&format!("s{snap}.cow"))
    }

    /// The disks have another content now, of the same moment.
    pub fn exchanged(&mut self) {
        self.exchanged = true;
    }

    /// Does one phase, to its end before the crash.
    pub fn phase(&mut self, phase: &Phase) -> Vec<Seen> {
        self.alive = phase.alive.clone();
        match phase.resume {
            Some((snap, how, bytes)) => self.resume(snap, how, bytes),
            None => self.restart(&[]),
        }
        self.exchanged = false;
        for (number, op) in phase.ops.iter().enumerate() {
            self.op(&label(number, op), op);
        }
        std::mem::take(&mut self.seen)
    }

    /// Ends the daemon without warning, in the middle of the merge of `half`:
    /// whether it was.
    pub fn crash(&mut self, half: Option<Snap>) -> bool {
        let mut interrupted = false;
        if let Some(snap) = half {
            self.detach(snap);
            let daemon = self.daemon();
            daemon.run(&["merge", &name(snap), "--now", "--rate", SLOW]);
            let deadline = Instant::now() + Duration::from_secs(10);
            while let Some(merge) = daemon.status().merge {
                interrupted = merge.chunks_done > 0 && merge.chunks_left > 0;
                if interrupted {
                    break;
                }
                assert!(Instant::now() < deadline, "the merge does not begin");
                sleep(Duration::from_millis(5));
            }
        }
        self.drivers.clear();
        if let Some(daemon) = self.daemon.take() {
            daemon.kill();
        }
        interrupted
    }

    pub fn stop(&mut self) {
        self.drivers.clear();
        if let Some(daemon) = self.daemon.take() {
            daemon.terminate();
        }
    }

    fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().unwrap()
    }

    fn driver(&mut self, view: View) -> &mut Driver {
        let socket = match view {
            None => self.bench.path("origin.sock"),
            Some(snap) => self.bench.path(&format!("s{snap}.sock")),
        };
        self.drivers
            .entry(view)
            .or_insert_with(|| Driver::connect(&socket))
    }

    /// Takes the driver away and waits until the daemon has noticed.
    fn detach(&mut self, snap: Snap) {
        if self.drivers.remove(&Some(snap)).is_none() {
            return;
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        let name = Some(name(snap));
        while self
            .daemon()
            .status()
            .views
            .iter()
            .any(|view| view.snapshot == name && view.attached)
        {
            assert!(Instant::now() < deadline, "{name:?} stays attached");
            sleep(Duration::from_millis(2));
        }
    }

    /// Starts the daemon with what its state file knows.
    fn restart(&mut self, more: &[&str]) {
        let mut more = more.to_vec();
        if self.exchanged {
            more.push("--accept-changes");
        }
        self.daemon = Some(self.bench.serve(&more));
    }

    /// Starts the daemon as if it never ran, with these stores.
    fn start_anew(&mut self, snaps: &[Snap], more: &[&str]) {
        std::fs::remove_file(self.bench.path("origin.img.snapback")).unwrap();
        let mut arguments = Vec::new();
        for snap in snaps {
            let kind = self.case.snapshots[*snap].kind;
            let (cow, socket) = (
                self.bench.text(&format!("s{snap}.cow")),
                self.bench.text(&format!("s{snap}.sock")),
            );
            arguments.push("--snapshot".to_owned());
            arguments.push(format!(
                "name={},cow={cow},type={kind:?},socket={socket}",
                name(*snap)
            ));
        }
        let arguments: Vec<&str> = arguments
            .iter()
            .map(String::as_str)
            .chain(more.iter().copied())
            .collect();
        self.daemon = Some(self.bench.serve(&arguments));
    }

    /// Ends the merge that the crash interrupted.
    fn resume(&mut self, snap: Snap, how: Resume, bytes: Bytes) {
        let with_it: Vec<Snap> = self.alive.iter().copied().chain([snap]).collect();
        match how {
            // With a memory of its own it goes on by itself.
            Resume::Merge if !self.exchanged => self.restart(&[]),
            Resume::Merge => self.start_anew(&with_it, &["--merge", &name(snap)]),
            Resume::Snapshot => {
                self.start_anew(&with_it, &[]);
                for view in &with_it {
                    self.view(format!("in mid-merge: view {view}"), Some(*view));
                }
                self.detach(snap);
                self.daemon()
                    .run(&["merge", &name(snap), "--now", "--wait"]);
            }
        }
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut limited = true;
        while let Some(merge) = self.daemon().status().merge {
            assert!(merge.error.is_none(), "the merge failed: {merge:?}");
            assert!(Instant::now() < deadline, "the merge hangs: {merge:?}");
            if std::mem::take(&mut limited) {
                // Its slow rate is remembered; it may have ended meanwhile.
                let _ = self.daemon().try_run(&["merge", "--rate", "0"]);
            }
            sleep(Duration::from_millis(5));
        }
        self.store(
            format!("the interrupted merge: the merged store {snap}"),
            snap,
            bytes,
        );
    }

    fn view(&mut self, what: String, view: View) {
        let sectors = self.case.origin;
        let driver = self.driver(view);
        driver.flush();
        let bytes = driver.read(sectors);
        self.seen.push(Seen::view(what, bytes));
    }

    fn store(&mut self, what: String, snap: Snap, bytes: Bytes) {
        let geometry = self.case.snapshots[snap];
        let content = std::fs::read(self.cow(snap)).unwrap();
        assert_eq!(content.len() as u64, geometry.cow * SECTOR as u64);
        self.seen.push(Seen::store(what, geometry, bytes, content));
    }

    fn op(&mut self, what: &str, op: &Op) {
        let seed = self.case.seed;
        let answer = |good| Seen::text(what.to_owned(), if good { "ok" } else { "EIO" });
        match op {
            Op::Write(view, extent, number) => {
                let good = self.driver(*view).write(seed, &[(*extent, *number)]);
                self.seen.push(answer(good));
            }
            Op::Burst(view, writes) => {
                let good = self.driver(*view).write(seed, writes);
                self.seen.push(answer(good));
            }
            Op::Add(snap) => {
                let geometry = self.case.snapshots[*snap];
                let (cow, socket) = (
                    self.bench.text(&format!("s{snap}.cow")),
                    self.bench.text(&format!("s{snap}.sock")),
                );
                let chunk = (geometry.chunk * SECTOR as u64).to_string();
                let kind = format!("{:?}", geometry.kind);
                self.daemon().run(&[
                    "snapshot",
                    &name(*snap),
                    "--cow",
                    &cow,
                    "--chunk-size",
                    &chunk,
                    "--type",
                    &kind,
                    "--socket-path",
                    &socket,
                ]);
                self.alive.push(*snap);
            }
            Op::Remove(snap) => {
                self.detach(*snap);
                self.daemon().run(&["remove", &name(*snap)]);
                self.alive.retain(|other| other != snap);
            }
            Op::Reload => {
                self.stop();
                self.restart(&[]);
            }
            Op::Merge(snap, bytes) => {
                self.detach(*snap);
                self.daemon()
                    .run(&["merge", &name(*snap), "--now", "--wait"]);
                self.alive.retain(|other| other != snap);
                self.store(format!("{what}: the merged store {snap}"), *snap, *bytes);
            }
            Op::Check(compared) => {
                self.view(format!("{what}: the origin"), None);
                for one in compared {
                    let snap = one.snap;
                    self.view(format!("{what}: view {snap}"), Some(snap));
                    // Exits 1 if it is invalid.
                    let (_, status, _) = self.daemon().try_run(&["status", &name(snap), "--dm"]);
                    self.seen.push(Seen::text(
                        format!("{what}: status of {snap}"),
                        usage(&status),
                    ));
                    self.store(format!("{what}: store {snap}"), snap, one.bytes);
                }
            }
        }
    }
}
