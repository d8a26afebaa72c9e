//! What happens: verbs under load, handovers, and the ends of daemons.

use std::time::{Duration, Instant};

use snapback::control::api::State;

use crate::common::cut;
use crate::common::guest::Guest;
use crate::common::load::Load;
use crate::common::stamps;
use crate::common::volume::Volume;
use crate::faults::Fault;
use crate::model::{End, HANG, Model, Small, Snap, check_lenient, socket_of, under_load};
use crate::verbs::{Outcome, Verbs};

/// Snapshots with guests at most.
const SNAPS: usize = 3;
/// Room for the whole disk, in KiB.
const ROOM_KIB: u64 = 8 << 10;
/// Sectors that the disk grows to at most, so that all of it has room there.
const LONGEST: usize = 13 << 10;

/// A snapshot that was asked for under load.
struct Taken {
    name: String,
    writer: u8,
    sparse: bool,
    asked: Instant,
    answered: Instant,
    outcome: Outcome,
}

/// What is decided before the load starts.
struct Asked {
    arguments: Vec<String>,
    /// It takes this snapshot, with a store that is sparse or not.
    takes: Option<(String, u8, bool)>,
}

/// How the origin gets the content of a snapshot.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Now,
    AtReset,
    Follow,
}

/// Starts the origin's guest, for which a rollback waits, and waits for the rollback.
fn reset(volume: &Volume, name: &str) {
    drop(Guest::connect(&socket_of(volume, None), 1, 4));
    let start = Instant::now();
    let waits = |volume: &Volume| volume.status().rollback_at_reset.is_some();
    while waits(volume) {
        assert!(start.elapsed() < HANG, "{name}: no rollback at the reset");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn words(asked: &[String]) -> Vec<&str> {
    asked.iter().map(String::as_str).collect()
}

fn split(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

impl Model {
    pub fn episode(&mut self) {
        self.counts.episodes += 1;
        self.notice_the_merge();
        match self.random.below(10) {
            0..2 if self.merging.is_none() && !self.snaps.is_empty() => self.hand_over(),
            2 if self.snaps.len() == SNAPS => self.remove(),
            3 => self.rest(),
            _ => self.verbs_under_load(),
        }
        self.tidy();
    }

    fn delay(&mut self) -> Duration {
        // Most verbs take some milliseconds, half of which is the client's start.
        Duration::from_micros(self.random.below(14_000))
    }

    /// One of the verbs that fit the present state.
    fn draw(&mut self) -> Asked {
        let plain = |text: String| Asked {
            arguments: split(&text),
            takes: None,
        };
        if self.merging.is_some() {
            let merge = ["--pause", "--resume", "--rate 4M", "--rate 0"];
            return plain(format!("merge {}", merge[self.random.below(4) as usize]));
        }
        match self.random.below(7) {
            5 if self.origin.shadow.len() < LONGEST => {
                plain(format!("resize +{}K", self.random.between(1, 64)))
            }
            0..2 if self.snaps.len() < SNAPS => {
                let (name, writer) = self.next("b");
                let chunk = ["4K", "16K", "64K"][self.random.below(3) as usize];
                let socket = format!("{name}.sock");
                let (store, sparse) = self.store(&name, ROOM_KIB);
                Asked {
                    arguments: split(&format!(
                        "snapshot {name} {store} --chunk-size {chunk} --socket-path {socket} --discard-zeroes-cow"
                    )),
                    takes: Some((name, writer, sparse)),
                }
            }
            2 if !self.small.is_empty() => {
                let at = self.random.below(self.small.len() as u64) as usize;
                plain(format!("grow {} 1M", self.small[at].name))
            }
            3 if !self.small.is_empty() => {
                let at = self.random.below(self.small.len() as u64) as usize;
                plain(format!("remove {}", self.small[at].name))
            }
            4 if !self.snaps.is_empty() => {
                let at = self.random.below(self.snaps.len() as u64) as usize;
                plain(format!("rollback {} --at-reset", self.snaps[at].name))
            }
            _ => {
                let kind = ["P", "PO", "N"][self.random.below(3) as usize];
                let (name, _) = self.next(kind);
                let size = self.random.between(20, 200);
                let (store, _) = match kind {
                    "N" => (format!("--cow {name}.cow --size {size}K"), false),
                    _ => self.store(&name, size),
                };
                self.small.push(Small {
                    name: name.clone(),
                    seen: false,
                });
                plain(format!(
                    "snapshot {name} {store} --chunk-size 4K --type {kind}"
                ))
            }
        }
    }

    /// Verbs while all guests run; at the end the guests finish, or the daemon is
    /// stopped or killed, also in the middle of a verb.
    fn verbs_under_load(&mut self) {
        let asked: Vec<Asked> = (0..1 + self.random.below(3)).map(|_| self.draw()).collect();
        let fates: Vec<(u64, Duration)> = asked
            .iter()
            .map(|_| (self.random.below(6), self.delay()))
            .collect();
        let (last, last_delay) = (self.random.below(7), self.delay());
        let fault = self.draw_fault();
        let no_space = fault == Fault::NoSpace;
        let resizes = asked.iter().any(|asked| asked.arguments[0] == "resize");
        self.tolerate(no_space);
        self.origin_failed = self.origin.counts.failed;
        let first = self.origin.shadow.clone();
        let mut taken = Vec::new();
        let last_of_all = asked.len() - 1;
        let Self {
            volume,
            origin,
            snaps,
            verbs,
            counts,
            place,
            ..
        } = self;
        let mut loads = vec![(origin, socket_of(volume, None))];
        for snap in snaps.iter_mut() {
            let socket = socket_of(volume, Some(&snap.name));
            loads.push((&mut snap.load, socket));
        }
        let end = under_load(volume, loads, |volume, going| {
            going(20);
            let full = fault.meet(volume, place.as_ref());
            for (n, (asked, (fate, delay))) in asked.iter().zip(&fates).enumerate() {
                let arguments = words(&asked.arguments);
                let start = Instant::now();
                let outcome = match (fate, last) {
                    (_, 0) if n == last_of_all => {
                        let control = [arguments.as_slice(), &["--control", "c.sock"]].concat();
                        let mut child = Verbs::start(volume, &control);
                        std::thread::sleep(last_delay);
                        volume.kill();
                        child.wait().unwrap();
                        verbs.killed += 1;
                        Outcome::Unknown
                    }
                    (0, _) => verbs.kill(volume, &arguments, *delay),
                    // A full store cannot grow, and a merge may just have ended.
                    _ => verbs.ask(volume, &arguments).0,
                };
                let answered = Instant::now();
                taken.extend(asked.takes.clone().map(|(name, writer, sparse)| Taken {
                    name,
                    writer,
                    sparse,
                    asked: start,
                    answered,
                    outcome,
                }));
                if last != 0 || n != last_of_all {
                    going(30);
                }
            }
            drop(full);
            match last {
                0 => counts.kills += 1,
                1 => {
                    volume.kill();
                    counts.kills += 1;
                }
                2 => {
                    volume.terminate();
                    counts.terms += 1;
                }
                3 | 4 => {
                    counts.drops += 1;
                    return End::Dropped;
                }
                _ => return End::Drained,
            }
            End::Stopped
        });
        if end == End::Stopped {
            // Which snapshots are still there is not known yet after a fault of space.
            if !no_space {
                self.offline(false);
            }
            self.start_after_resize(resizes);
        } else {
            self.wait_detached();
            self.finish_resize(resizes && no_space);
        }
        self.tolerate(false);
        self.notice_the_size();
        if no_space {
            self.remove_what_ended();
        }
        for taken in taken {
            self.take_note(taken, &first);
        }
        self.cancel_rollback();
        self.verify(end);
    }

    /// Compares a snapshot that was taken under load with the writes of the origin's
    /// guest, and gives it a guest of its own.
    fn take_note(&mut self, taken: Taken, first: &[u64]) {
        let failed = self.origin.counts.failed - self.origin_failed;
        let status = self.volume.status();
        let found = status.snapshots.iter().find(|s| s.name == taken.name);
        let Some(found) = found else {
            let Taken { name, outcome, .. } = &taken;
            assert_ne!(*outcome, Outcome::Done, "{name} was answered and is lost");
            return self.remove_file(name);
        };
        if found.state == State::Invalid && taken.sparse {
            return self.remove_ended(&taken.name);
        }
        let found = self.look(&taken.name);
        let mut first = first.to_vec();
        // The disk may have been enlarged before.
        first.resize(found.len().max(first.len()), stamps::ZEROES);
        let writes = &self.origin.writes;
        match taken.outcome {
            // Of a write that has failed there may be a part.
            Outcome::Done if failed == 0 => {
                cut::check(&found, &first, writes, taken.asked, taken.answered);
            }
            _ => check_lenient(&found, &first, writes, taken.asked),
        }
        let shadow = found.into_iter().map(Option::unwrap).collect();
        let load = Load::new(&taken.name, taken.writer, self.random.next(), shadow);
        let load = load.with_zeroing();
        self.snaps.push(Snap {
            name: taken.name,
            load,
            sparse: taken.sparse,
        });
        self.counts.snapshots += 1;
    }

    fn cancel_rollback(&mut self) {
        if self.volume.status().rollback_at_reset.is_some() {
            self.verbs.must(&self.volume, &["rollback", "--cancel"]);
        }
    }

    /// A rollback or a live commit. The origin's guest is away, the others run.
    fn hand_over(&mut self) {
        let at = self.random.below(self.snaps.len() as u64) as usize;
        let way = [Way::Now, Way::AtReset, Way::Follow][self.random.below(3) as usize];
        let keep = (way != Way::Follow && self.snaps.len() < SNAPS && self.random.below(2) == 0)
            .then(|| self.next("b"));
        let (fate, delay) = match way {
            // It happens later than the verb.
            Way::AtReset => (3, Duration::ZERO),
            Way::Now | Way::Follow => (self.random.below(4), self.delay()),
        };
        let name = self.snaps[at].name.clone();
        let arguments = self.arguments_of(way, &name, keep.as_ref().map(|(keep, _)| keep));
        let Self {
            volume,
            snaps,
            verbs,
            counts,
            ..
        } = self;
        let mut loads = Vec::new();
        for snap in snaps
            .iter_mut()
            .filter(|s| s.name != name || way == Way::Follow)
        {
            let socket = socket_of(volume, Some(&snap.name));
            loads.push((&mut snap.load, socket));
        }
        let end = under_load(volume, loads, |volume, going| {
            going(20);
            let arguments = words(&arguments);
            match fate {
                0 => {
                    let control = [arguments.as_slice(), &["--control", "c.sock"]].concat();
                    let mut child = Verbs::start(volume, &control);
                    std::thread::sleep(delay);
                    volume.kill();
                    child.wait().unwrap();
                    verbs.killed += 1;
                    counts.kills += 1;
                    return End::Stopped;
                }
                1 => drop(verbs.kill(volume, &arguments, delay)),
                _ => verbs.must(volume, &arguments),
            }
            if way == Way::AtReset {
                reset(volume, &name);
                counts.resets += 1;
            }
            going(20);
            End::Drained
        });
        // Offline the origin's own content is not known yet.
        if end == End::Stopped {
            self.start();
        } else {
            self.wait_detached();
        }
        let must = fate > 1;
        self.handed_over(at, way, must, keep);
        self.verify(end);
        self.notice_the_merge();
    }

    fn arguments_of(&mut self, way: Way, name: &str, keep: Option<&String>) -> Vec<String> {
        let mut arguments = split(&match way {
            Way::Follow => format!("merge {name} --follow"),
            Way::Now => format!("rollback {name} --now"),
            Way::AtReset => format!("rollback {name} --at-reset=any"),
        });
        if let Some(keep) = keep {
            arguments.extend(split(&format!(
                "--keep {keep} --cow {keep}.cow --size {ROOM_KIB}K"
            )));
        }
        let rate = ["0", "8M", "64K"][self.random.below(3) as usize];
        arguments.extend(split(&format!("--rate {rate}")));
        arguments
    }

    /// What the origin shows after a handover, or if there was none. `must`: the verb was
    /// answered.
    fn handed_over(&mut self, at: usize, way: Way, must: bool, keep: Option<(String, u8)>) {
        let before = self.origin.shadow.clone();
        let name = self.snaps[at].name.clone();
        let status = self.volume.status();
        let still = status.snapshots.iter().find(|s| s.name == name);
        let handed = still.is_none_or(|s| s.state != State::Active);
        assert!(handed || !must, "{name} was answered and is not merged");
        let mut merged = self.snaps.remove(at);
        if handed {
            self.counts.handovers += 1;
            // What lies behind the snapshot's end was never in it.
            let tail = before.get(merged.load.shadow.len()..).unwrap_or_default();
            merged.load.shadow.extend(tail);
            if way == Way::Follow {
                // It may have been written up to the end: settled where it is now.
                merged.load.attach(&socket_of(&self.volume, None));
                self.counts.doubts += merged.load.settle();
                merged.load.detach();
            }
            self.origin.shadow = merged.load.shadow;
            self.merging = Some(name);
        } else {
            self.snaps.insert(at, merged);
        }
        let Some((keep, writer)) = keep else {
            return;
        };
        // The origin's guest is away: it is exactly what was there.
        if self.is_listed(&keep) {
            self.serve_kept(&keep);
            let load = Load::new(&keep, writer, self.random.next(), before);
            self.snaps.push(Snap {
                name: keep,
                load,
                sparse: false,
            });
            self.counts.snapshots += 1;
        } else {
            assert!(!handed, "a rollback without its keep {keep}");
            self.remove_file(&keep);
        }
    }

    /// A snapshot that a rollback took has no view until a start is given one.
    fn serve_kept(&mut self, name: &str) {
        self.volume.terminate();
        self.counts.terms += 1;
        let view = format!("name={name},cow={name}.cow,socket={name}.sock");
        self.start_with(&["--snapshot", &view]);
    }

    /// A snapshot with a guest is removed, and its store is never used again.
    fn remove(&mut self) {
        if self.merging.is_some() {
            return;
        }
        let snap = self.snaps.remove(0);
        if self.random.below(3) == 0 {
            let delay = self.delay();
            let arguments = ["remove", &snap.name, "--control", "c.sock"];
            let mut child = Verbs::start(&self.volume, &arguments);
            std::thread::sleep(delay);
            self.volume.kill();
            child.wait().unwrap();
            self.counts.kills += 1;
            self.verbs.killed += 1;
            self.start();
            let status = self.volume.status();
            if let Some(left) = status.snapshots.iter().find(|s| s.name == snap.name) {
                if left.state == State::Active {
                    self.snaps.insert(0, snap);
                    return self.verify(End::Stopped);
                }
                self.verbs.must(&self.volume, &["remove", &snap.name]);
            }
        } else {
            self.verbs.must(&self.volume, &["remove", &snap.name]);
        }
        self.assert_dead(&snap.cow());
        self.verify(End::Drained);
    }

    /// What was removed, or ended otherwise, is no good store any more, whatever was
    /// killed meanwhile.
    pub fn assert_dead(&mut self, cow: &str) {
        let output = self.verbs.run(&self.volume, &["check", cow]);
        let text = String::from_utf8_lossy(&output.stdout);
        assert_ne!(output.status.code(), Some(0), "{cow} came back: {text}");
        std::fs::remove_file(self.volume.path(cow)).unwrap();
    }

    /// A clean stop of a quiet volume, and what can be done without a daemon.
    fn rest(&mut self) {
        self.volume.terminate();
        self.counts.terms += 1;
        self.offline(true);
        self.start();
        self.verify(End::Drained);
    }

    /// `quiet`: what each view shows is known exactly.
    fn offline(&mut self, quiet: bool) {
        if self.random.below(2) == 0 {
            return;
        }
        self.counts.offline += 1;
        for cow in self.snaps.iter().map(Snap::cow).collect::<Vec<_>>() {
            let arguments = ["check", &cow, "--origin", "disk.img"];
            let output = self.verbs.run(&self.volume, &arguments);
            let text = String::from_utf8_lossy(&output.stdout);
            assert_eq!(output.status.code(), Some(0), "{cow}: {text}");
        }
        if let Some(merging) = self.merging.clone() {
            self.merge_offline(&format!("{merging}.cow"));
        } else if quiet && !self.snaps.is_empty() {
            self.export();
        }
    }

    fn merge_offline(&mut self, cow: &str) {
        let arguments = ["merge", "--origin", "disk.img", "--cow", cow];
        if self.random.below(2) == 0 {
            let mut child = Verbs::start(&self.volume, &arguments);
            let delay = self.delay();
            std::thread::sleep(delay);
            let _ = child.kill();
            child.wait().unwrap();
            self.verbs.killed += 1;
            return;
        }
        let output = self.verbs.run(&self.volume, &arguments);
        // The daemon may have merged all of it, and forgotten it, before its end.
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{cow}: {text}");
    }

    fn export(&mut self) {
        let at = self.random.below(self.snaps.len() as u64) as usize;
        let snap = &self.snaps[at];
        let (cow, shadow) = (snap.cow(), snap.load.shadow.clone());
        let arguments = ["export", "--origin", "disk.img", "--cow", &cow, "out.img"];
        let output = self.verbs.run(&self.volume, &arguments);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{cow}: {text}");
        let out = self.volume.path("out.img");
        let data = std::fs::read(&out).unwrap();
        crate::common::stamps::check("out.img", 0, &data, &shadow);
        std::fs::remove_file(out).unwrap();
    }

    /// Keeps the folder small, and looks at what has ended meanwhile.
    fn tidy(&mut self) {
        let status = self.volume.status();
        let listed = |name: &String| status.snapshots.iter().find(|s| s.name == *name);
        let mut gone = Vec::new();
        for mut small in std::mem::take(&mut self.small) {
            match listed(&small.name).map(|s| s.state) {
                Some(State::Invalid) => {
                    self.counts.filled += 1;
                    self.verbs.must(&self.volume, &["remove", &small.name]);
                    small.seen = true;
                    gone.push(small);
                }
                Some(_) => {
                    small.seen = true;
                    self.small.push(small);
                }
                None => gone.push(small),
            }
        }
        for small in gone {
            let cow = format!("{}.cow", small.name);
            // A transient one has no store.
            if small.seen && !small.name.starts_with('N') {
                self.assert_dead(&cow);
            } else {
                let _ = std::fs::remove_file(self.volume.path(&cow));
            }
        }
        for snap in &self.snaps {
            let state = listed(&snap.name).map(|s| s.state);
            assert_eq!(state, Some(State::Active), "{}", snap.name);
        }
        // No more than a few, so that a killed verb's files go some day.
        while self.small.len() > 2 && self.merging.is_none() {
            let name = self.small.remove(0).name;
            self.verbs.must(&self.volume, &["remove", &name]);
            let _ = std::fs::remove_file(self.volume.path(&format!("{name}.cow")));
        }
    }
}
