//! A case on Linux: scripts for `disktool play` in the guest.
//!
//! All cases of a batch have their disks in one file, the arena, which the guest
//! has as one plain virtio disk and cuts with linear targets.

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use super::SECTOR;
use super::case::{Case, Op, Phase, Resume, Snap, View};
use super::label;
use super::model::{Bytes, Kind};
use super::seen::{Seen, usage};
use crate::bench::Bench;
use crate::guest::{Attach, Guest};

/// What the guest copies out in one phase of one case, at most.
const RESULTS: u64 = 1 << 30;
/// A script takes seconds.
const PATIENCE: Duration = Duration::from_secs(40);
const SCRIPT: usize = 256 * 1024;

/// The guest and its disks.
pub struct There<'a> {
    bench: &'a Bench,
    disks: [PathBuf; 3],
    /// `None` only while it starts again.
    running: Option<Guest>,
    arena: File,
    script: File,
    results: File,
}

/// Where the disks of one case are in the arena.
#[derive(Clone)]
pub struct Place {
    /// First sectors.
    pub origin: u64,
    pub cows: Vec<u64>,
}

/// Gives every case of a batch its place.
pub fn places(cases: &[Case]) -> (Vec<Place>, u64) {
    let mut next = 0;
    let mut take = |sectors: u64| {
        let at = next;
        next += sectors.next_multiple_of(2048);
        at
    };
    let places = cases.iter().map(|case| Place {
        origin: take(case.origin),
        cows: case.snapshots.iter().map(|s| take(s.cow)).collect(),
    });
    let places = places.collect();
    (places, next)
}

/// What a line of a script shows.
enum Shows {
    Nothing,
    Answer(String),
    Status(String),
    View(String, u64, u64),
    Store(String, Snap, Bytes, u64),
}

struct Script<'a> {
    case: &'a Case,
    alive: Vec<Snap>,
    lines: Vec<String>,
    shows: Vec<Shows>,
    /// First free sector of the results.
    results: u64,
}

/// The guest's name.
const NAME: &str = "linux";

impl<'a> There<'a> {
    pub fn boot(bench: &'a Bench, sectors: u64) -> Self {
        let disk = |what: &str, bytes| -> (PathBuf, File) {
            let path = bench.blank_disk(&format!("{NAME}.{what}"), bytes);
            let file = File::options().read(true).write(true).open(&path).unwrap();
            (path, file)
        };
        let (arena_path, arena) = disk("arena", sectors * SECTOR as u64);
        let (script_path, script) = disk("script", SCRIPT as u64);
        let (results_path, results) = disk("results", RESULTS);
        let mut there = Self {
            bench,
            disks: [arena_path, script_path, results_path],
            running: None,
            arena,
            script,
            results,
        };
        there.start();
        there
    }

    fn start(&mut self) {
        let disks = self.disks.clone().map(Attach::Raw);
        self.running = Some(self.bench.boot(NAME, &disks));
    }

    fn guest(&mut self) -> &mut Guest {
        self.running.as_mut().unwrap()
    }

    pub fn put(&self, sector: u64, bytes: &[u8]) {
        self.arena
            .write_all_at(bytes, sector * SECTOR as u64)
            .unwrap();
    }

    pub fn get(&self, sector: u64, sectors: u64) -> Vec<u8> {
        read(&self.arena, sector, sectors)
    }

    /// Does one phase of one case.
    pub fn phase(&mut self, case: &Case, place: &Place, phase: &Phase) -> Vec<Seen> {
        let mut script = Script {
            case,
            alive: phase.alive.clone(),
            lines: Vec::new(),
            shows: Vec::new(),
            results: 0,
        };
        script.begin(place, phase);
        for (number, op) in phase.ops.iter().enumerate() {
            script.op(&label(number, op), op);
        }
        self.play(&script)
    }

    /// Starts the merge that the crash is to interrupt; its first status.
    pub fn half_merge(&mut self, case: &Case, snap: Snap) -> String {
        let mut script = Script {
            case,
            alive: Vec::new(),
            lines: Vec::new(),
            shows: Vec::new(),
            results: 0,
        };
        script.half_merge(snap);
        self.play(&script);
        self.merge_status(case)
    }

    /// Cuts the machine's power and starts it again; what it has not written is
    /// lost. (A reset would do, but emulated timers are not always right after it.)
    pub fn crash(&mut self) {
        if let Some(guest) = self.running.take() {
            guest.kill();
        }
        self.start();
    }

    /// What the case's merge has left, as `dmsetup status` prints it.
    pub fn merge_status(&mut self, case: &Case) -> String {
        self.guest()
            .run(&format!("dmsetup status r{}", case.seed))
            .trim()
            .to_owned()
    }

    pub fn quit(self) {
        if let Some(guest) = self.running {
            guest.quit();
        }
    }

    fn play(&mut self, script: &Script) -> Vec<Seen> {
        let mut text = script.lines.join("\n").into_bytes();
        assert!(text.len() < SCRIPT, "a script of {} bytes", text.len());
        assert!(script.results * (SECTOR as u64) < RESULTS);
        text.resize(SCRIPT, 0);
        self.script.write_all_at(&text, 0).unwrap();
        let command = format!("disktool play /dev/vdb /dev/vdc 0 {}", script.case.seed);
        let (status, output) = self.guest().run_within(&command, PATIENCE);
        assert_eq!(status, 0, "`{command}` in the guest: {output}");
        let mut results: VecDeque<(usize, &str)> = output
            .lines()
            .map(|line| line.split_once(' ').unwrap())
            .map(|(number, result)| (number.parse().unwrap(), result))
            .collect();
        let mut seen = Vec::new();
        for (number, shows) in script.shows.iter().enumerate() {
            let result = match results.front() {
                Some((at, result)) if *at == number => *result,
                _ => "",
            };
            if !result.is_empty() {
                results.pop_front();
            }
            match shows {
                Shows::Nothing => {}
                Shows::Answer(what) => seen.push(Seen::text(what.clone(), result)),
                Shows::Status(what) => seen.push(Seen::text(what.clone(), usage(result))),
                Shows::View(what, at, sectors) => {
                    let bytes = (result == "ok").then(|| read(&self.results, *at, *sectors));
                    seen.push(Seen::view(what.clone(), bytes));
                }
                Shows::Store(what, snap, bytes, at) => {
                    assert_eq!(result, "ok", "{what}");
                    let geometry = script.case.snapshots[*snap];
                    let content = read(&self.results, *at, geometry.cow);
                    seen.push(Seen::store(what.clone(), geometry, *bytes, content));
                }
            }
        }
        seen
    }
}

impl Script<'_> {
    fn line(&mut self, line: String) {
        self.shows(line, Shows::Nothing);
    }

    fn shows(&mut self, line: String, shows: Shows) {
        self.lines.push(line);
        self.shows.push(shows);
    }

    fn name(&self, view: View) -> String {
        match view {
            None => format!("r{}", self.case.seed),
            Some(snap) => format!("s{}.{snap}", self.case.seed),
        }
    }

    /// A snapshot or merge device on the case's disks.
    fn create(&mut self, name: &str, target: &str, cow: &str, snap: Snap) {
        let Case { seed, origin, .. } = self.case;
        let geometry = self.case.snapshots[snap];
        let kind = format!("{:?}", geometry.kind);
        self.line(format!(
            "create {name} {origin} {target} @o{seed} @{cow} {kind} {}",
            geometry.chunk
        ));
    }

    fn cow(&self, snap: Snap) -> String {
        format!("c{}.{snap}", self.case.seed)
    }

    fn snapshot(&mut self, snap: Snap) {
        let (name, cow) = (self.name(Some(snap)), self.cow(snap));
        self.create(&name, "snapshot", &cow, snap);
    }

    fn merge_device(&mut self, cow: &str, snap: Snap) {
        let name = self.name(None);
        self.create(&name, "snapshot-merge", cow, snap);
    }

    fn origin_device(&mut self) {
        let Case { seed, origin, .. } = self.case;
        let name = self.name(None);
        self.line(format!("create {name} {origin} snapshot-origin @o{seed}"));
    }

    fn begin(&mut self, place: &Place, phase: &Phase) {
        let Case { seed, origin, .. } = self.case;
        self.line(format!(
            "create o{seed} {origin} linear /dev/vda {}",
            place.origin
        ));
        for (snap, at) in place.cows.iter().enumerate() {
            let (cow, sectors) = (self.cow(snap), self.case.snapshots[snap].cow);
            self.line(format!("create {cow} {sectors} linear /dev/vda {at}"));
        }
        for snap in self.alive.clone() {
            self.snapshot(snap);
        }
        if let Some((snap, how, bytes)) = phase.resume {
            if how == Resume::Snapshot {
                self.snapshot(snap);
                for view in self.alive.clone().into_iter().chain([snap]) {
                    self.view(format!("in mid-merge: view {view}"), Some(view));
                }
                let name = self.name(Some(snap));
                self.line(format!("remove {name}"));
            }
            self.merge("the interrupted merge", snap, bytes);
        }
        self.origin_device();
    }

    fn view(&mut self, what: String, view: View) {
        let (name, sectors, at) = (self.name(view), self.case.origin, self.results);
        self.results += sectors.next_multiple_of(8);
        self.line(format!("flush {name}"));
        self.shows(
            format!("dump {name} {sectors} {at}"),
            Shows::View(what, at, sectors),
        );
    }

    fn store(&mut self, what: String, snap: Snap, bytes: Bytes) {
        let (cow, sectors, at) = (self.cow(snap), self.case.snapshots[snap].cow, self.results);
        self.results += sectors.next_multiple_of(8);
        self.shows(
            format!("dump {cow} {sectors} {at}"),
            Shows::Store(what, snap, bytes, at),
        );
    }

    /// With neither an origin device nor the snapshot's own: merges all of it.
    fn merge(&mut self, what: &str, snap: Snap, bytes: Bytes) {
        let (name, cow) = (self.name(None), self.cow(snap));
        self.merge_device(&cow, snap);
        self.line(format!("merged {name}"));
        self.line(format!("remove {name}"));
        self.store(format!("{what}: the merged store {snap}"), snap, bytes);
    }

    fn op(&mut self, what: &str, op: &Op) {
        let origin = self.name(None);
        match op {
            Op::Write(view, extent, number) => {
                let name = self.name(*view);
                self.shows(
                    format!("write {name} {} {} {number}", extent.sector, extent.count),
                    Shows::Answer(what.to_owned()),
                );
            }
            Op::Burst(view, writes) => {
                let name = self.name(*view);
                let each = |(extent, number): &(super::model::Extent, u64)| {
                    format!(" {} {} {number}", extent.sector, extent.count)
                };
                let writes: String = writes.iter().map(each).collect();
                self.shows(
                    format!("burst {name}{writes}"),
                    Shows::Answer(what.to_owned()),
                );
            }
            Op::Add(snap) => {
                // Linux asks for this; without, the origin's split size is stale.
                self.line(format!("suspend {origin}"));
                self.snapshot(*snap);
                self.line(format!("resume {origin}"));
                self.alive.push(*snap);
            }
            Op::Remove(snap) => {
                let name = self.name(Some(*snap));
                self.line(format!("suspend {origin}"));
                self.line(format!("remove {name}"));
                self.line(format!("resume {origin}"));
                self.alive.retain(|other| other != snap);
            }
            Op::Reload => {
                self.line(format!("remove {origin}"));
                for snap in self.alive.clone() {
                    let name = self.name(Some(snap));
                    self.line(format!("remove {name}"));
                }
                for snap in self.alive.clone() {
                    self.snapshot(snap);
                }
                self.origin_device();
            }
            Op::Merge(snap, bytes) => {
                let name = self.name(Some(*snap));
                self.line(format!("remove {origin}"));
                self.line(format!("remove {name}"));
                self.alive.retain(|other| other != snap);
                self.merge(what, *snap, *bytes);
                self.origin_device();
            }
            Op::Check(compared) => {
                self.view(format!("{what}: the origin"), None);
                for one in compared {
                    let (name, snap) = (self.name(Some(one.snap)), one.snap);
                    self.view(format!("{what}: view {snap}"), Some(snap));
                    self.shows(
                        format!("status {name}"),
                        Shows::Status(format!("{what}: status of {snap}")),
                    );
                    self.store(format!("{what}: store {snap}"), snap, one.bytes);
                }
            }
        }
    }

    /// The store's writes are delayed, so that the crash finds the merge under way.
    fn half_merge(&mut self, snap: Snap) {
        let (cow, name) = (self.cow(snap), self.name(Some(snap)));
        let (origin, slow) = (self.name(None), format!("d{}", self.case.seed));
        let sectors = self.case.snapshots[snap].cow;
        let delay = 100 + self.case.seed % 7 * 100;
        assert!(self.case.snapshots[snap].kind != Kind::N);
        self.line(format!("remove {origin}"));
        self.line(format!("remove {name}"));
        self.line(format!(
            "create {slow} {sectors} delay @{cow} 0 0 @{cow} 0 {delay}"
        ));
        self.merge_device(&slow, snap);
    }
}

/// A merge has ended when nothing but metadata is allocated.
pub fn has_ended(status: &str) -> bool {
    let words: Vec<&str> = status.split_whitespace().collect();
    match words.as_slice() {
        [_, _, "snapshot-merge", usage, metadata] => usage.split('/').next() == Some(metadata),
        _ => true,
    }
}

fn read(file: &File, sector: u64, sectors: u64) -> Vec<u8> {
    let mut bytes = vec![0; sectors as usize * SECTOR];
    file.read_exact_at(&mut bytes, sector * SECTOR as u64)
        .unwrap();
    bytes
}
