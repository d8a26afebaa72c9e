//! Restarts under load on each kind of view, in the middle of verbs and at resets,
//! for each kind of front end.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::common::random::{self, Random};
use crate::disk::Disk;
use crate::faults::Faults;
use crate::guest::{Guest, Resume};
use crate::ring::{MAX_DEPTH, Shape};
use crate::server::{Server, compares};
use crate::world::World;

const SECTORS: u64 = 8 << 11;
/// After that many a volume and its guests begin anew.
const RESTARTS_A_WORLD: u64 = 10;

/// A kind of front end.
#[derive(Clone, Copy, Debug)]
struct Kind {
    resume: Resume,
    region: bool,
}

/// These tests keep both processors of a small machine busy: they take turns.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Default)]
struct Totals {
    terms: u64,
    kills: u64,
    worlds: u64,
    bad_worlds: u64,
    completed: u64,
    longest_stop: Duration,
    longest: Duration,
    counts: BTreeMap<&'static str, u64>,
    first: Vec<String>,
}

impl Totals {
    fn add(&mut self, world: &World) {
        self.terms += world.terms;
        self.kills += world.kills;
        self.worlds += 1;
        self.bad_worlds += u64::from(world.spoilt());
        self.completed += world.completed();
        self.longest_stop = self.longest_stop.max(world.longest_stop);
        let all = world.guests.iter().map(|guest| &guest.faults);
        for faults in all.chain([&world.faults]) {
            self.add_faults(faults);
        }
        for guest in &world.guests {
            self.longest = self.longest.max(guest.longest);
        }
    }

    fn add_faults(&mut self, faults: &Faults) {
        for (kind, count) in &faults.counts {
            *self.counts.entry(kind).or_default() += count;
        }
        let room = 12_usize.saturating_sub(self.first.len());
        self.first.extend(faults.first.iter().take(room).cloned());
    }

    /// Prints what was done; panics if anything was wrong.
    fn report(&self, what: &str, seed: u64) {
        let ends = self.terms + self.kills;
        println!(
            "{what}: {} SIGTERM and {} SIGKILL, wrong after {} of {ends}; {} requests; longest stop {} ms, longest pause {} ms",
            self.terms,
            self.kills,
            self.bad_worlds,
            self.completed,
            self.longest_stop.as_millis(),
            self.longest.as_millis(),
        );
        for (kind, count) in &self.counts {
            println!("{what}: {count} {kind}");
        }
        for line in &self.first {
            println!("{what}:   {line}");
        }
        if !compares() {
            assert_eq!(self.bad_worlds, 0, "{what}: seed {seed}");
        }
    }
}

fn shape(random: &mut Random) -> Shape {
    let depth = match random.below(4) {
        0 => random.between(1, 4),
        1 => MAX_DEPTH as u64,
        _ => random.between(1, MAX_DEPTH as u64),
    };
    Shape {
        queues: random.between(1, 2) as usize,
        depth: depth as usize,
        indirect: random.below(2) == 0,
        event_idx: random.below(2) == 0,
    }
}

fn number_of_restarts() -> u64 {
    random::number("SNAPBACK_RESTARTS").unwrap_or(80)
}

/// The argument for a snapshot that can hold the whole disk.
fn snapshot(name: &str, chunk: &str) -> String {
    format!("name={name},cow={name}.cow,size=12M,chunk-size={chunk},socket={name}.sock")
}

/// What is done beside the load of the guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Story {
    /// Nothing: a guest on the origin.
    Origin,
    /// Nothing: a guest on the origin and one on a snapshot.
    Snapshot,
    /// A live commit, whose guest goes on from the snapshot's to the merge view.
    Merge,
    /// Snapshots are taken, enlarged and removed, and that is interrupted.
    Verbs,
    /// The guest is reset into a rollback, and both that and the merge behind it are
    /// interrupted.
    Reset,
}

impl Story {
    const fn guests(self) -> &'static [&'static str] {
        match self {
            Self::Origin | Self::Reset => &["origin"],
            Self::Snapshot | Self::Verbs => &["origin", "s1"],
            Self::Merge => &["s1"],
        }
    }
}

/// Restarts under load until enough are done; each world ends at the first fault.
fn restarts(story: Story, kinds: &[Kind]) {
    let _turn = turn();
    for kind in kinds {
        let seed = random::seed();
        let (start, wanted) = (Instant::now(), number_of_restarts() / kinds.len() as u64);
        let mut totals = Totals::default();
        while totals.terms + totals.kills < wanted {
            let mut random = Random::new(seed ^ totals.worlds << 32);
            let mut world = begin(story, *kind, &mut random);
            match story {
                Story::Origin | Story::Snapshot => under_load(&mut world, RESTARTS_A_WORLD),
                Story::Merge => merge(&mut world),
                Story::Verbs => verbs(&mut world),
                Story::Reset => resets(&mut world),
            }
            finish(&mut world, story, &mut random);
            totals.add(&world);
        }
        let what = format!("{story:?}, {kind:?}");
        println!("{what}: {:.1?}", start.elapsed());
        totals.report(&what, seed);
    }
}

fn begin(story: Story, kind: Kind, random: &mut Random) -> World {
    let mut server = Server::new(SECTORS, &["--socket-path", "origin.sock"]);
    if !compares() {
        // Once with the snapshots; then the volume remembers them.
        let (s1, s2) = (snapshot("s1", "4K"), snapshot("s2", "16K"));
        server.start(&["--snapshot", &s1, "--snapshot", &s2]);
        server.volume.terminate();
    }
    let guests = story.guests().iter().zip(1..);
    let guests = guests
        .map(|(name, writer)| guest(&server, name, writer, kind, random))
        .collect();
    let mut world = World::new(server, guests, Random::new(random.next()));
    world.start();
    world
}

fn guest(server: &Server, name: &str, writer: u8, kind: Kind, random: &mut Random) -> Guest {
    let mut disk = Disk::new(writer, random.next(), server.volume.first_content());
    disk.zeroes = random.below(4) > 0;
    let shape = shape(random);
    let mut guest = Guest::new(name, &server.socket(name), shape, kind.resume, disk);
    guest.with_region = kind.region;
    guest
}

/// A random while under load.
fn a_while(world: &mut World, most: u64) {
    let pause = Duration::from_micros(world.random.below(most));
    world.run(pause, true, |_| false);
}

fn restart(world: &mut World) {
    let signal = [Signal::TERM, Signal::KILL][world.random.below(2) as usize];
    world.restart(signal);
}

fn under_load(world: &mut World, count: u64) {
    for _ in 0..count {
        if world.spoilt() {
            return;
        }
        a_while(world, 60_000);
        restart(world);
    }
}

/// 1. Some work on the snapshot, 2. the handover, interrupted or not, 3. restarts in
///    the middle of the slow merge, 4. in the middle of a fast one, to its end.
fn merge(world: &mut World) {
    under_load(world, 2);
    let merging = |world: &World| world.server.volume.status().merge.is_some();
    while !world.spoilt() && !merging(world) {
        world.begin_verb(&["merge", "s1", "--follow", "--rate", "256K"]);
        a_while(world, 40_000);
        restart(world);
    }
    under_load(world, 3);
    for round in 0..20 {
        if world.spoilt() || !merging(world) {
            return;
        }
        if round == 0 {
            world.begin_verb(&["merge", "--rate", "0"]);
        }
        a_while(world, 30_000);
        restart(world);
    }
    while !world.spoilt() && merging(world) {
        a_while(world, 30_000);
    }
}

/// Snapshots come, grow and go, and the daemon ends meanwhile.
fn verbs(world: &mut World) {
    let mut size = 12;
    for number in 0..RESTARTS_A_WORLD / 2 {
        if world.spoilt() {
            return;
        }
        let (name, cow) = (format!("x{number}"), format!("x{number}.cow"));
        world.begin_verb(&["snapshot", &name, "--cow", &cow, "--size", "12M"]);
        a_while(world, 40_000);
        restart(world);
        if world.spoilt() {
            return;
        }
        size += 1;
        let size = format!("{size}M");
        world.begin_verb(&["grow", "s1", &size]);
        a_while(world, 20_000);
        let there = |world: &World| {
            let status = world.server.volume.status();
            status
                .snapshots
                .iter()
                .any(|snapshot| snapshot.name == name)
        };
        if there(world) && world.random.below(2) == 0 {
            world.begin_verb(&["remove", &name]);
            a_while(world, 30_000);
        }
        restart(world);
        if !world.spoilt() && there(world) {
            world.verb(&["remove", &name]);
        }
    }
}

/// 1. A rollback waits, also over restarts, 2. the machine is reset, and the daemon may
///    end in the middle of it, 3. restarts while the merge goes on behind the guest.
fn resets(world: &mut World) {
    under_load(world, 1);
    // A new guest's rings begin at 0: this one has done something.
    world.run(Duration::from_secs(60), true, |world| {
        world.guests[0].has_used_all_rings()
    });
    world.verb(&["rollback", "s1", "--at-reset", "--rate", "256K"]);
    under_load(world, 2);
    let pending = |world: &World| world.server.volume.status().rollback_at_reset.is_some();
    if !world.spoilt() {
        assert!(pending(world), "a restart is no reset");
    }
    while !world.spoilt() && pending(world) {
        if !world.drain() {
            return;
        }
        world.reset(0);
    }
    if world.spoilt() {
        return;
    }
    // What the snapshot held: its guest has done nothing.
    world.guests[0].disk.shadow = world.server.volume.first_content();
    under_load(world, 4);
}

/// The last stop; the origin's own file, and the snapshot that nobody used.
fn finish(world: &mut World, story: Story, random: &mut Random) {
    if !world.spoilt() && !compares() {
        let kind = Kind {
            resume: Resume::Used,
            region: false,
        };
        let mut reader = guest(&world.server, "s2", 100, kind, random);
        reader.connect(|| ()).unwrap();
        world.guests.push(reader);
    }
    world.sweep();
    if world.spoilt() {
        return;
    }
    world.end(Signal::TERM);
    world.terms -= 1;
    let shows_origin = match story {
        Story::Origin | Story::Snapshot | Story::Verbs => true,
        Story::Merge | Story::Reset => false,
    };
    if shows_origin && !world.spoilt() {
        let expected = &world.guests[0].disk.shadow;
        world.server.volume.check_origin(expected);
    }
}

const USED: Kind = Kind {
    resume: Resume::Used,
    region: false,
};
const AVAIL: Kind = Kind {
    resume: Resume::Avail,
    region: false,
};
const REGION: [Kind; 2] = [
    Kind {
        resume: Resume::Used,
        region: true,
    },
    Kind {
        resume: Resume::Avail,
        region: true,
    },
];

#[test]
fn an_origin_without_a_region_resumed_at_used() {
    restarts(Story::Origin, &[USED]);
}

#[test]
fn an_origin_without_a_region_resumed_at_avail() {
    restarts(Story::Origin, &[AVAIL]);
}

#[test]
fn an_origin_with_a_region() {
    restarts(Story::Origin, &REGION);
}

#[test]
fn a_snapshot_without_a_region() {
    restarts(Story::Snapshot, &[USED, AVAIL]);
}

#[test]
fn a_snapshot_with_a_region() {
    restarts(Story::Snapshot, &REGION);
}

#[test]
fn a_merge_without_a_region() {
    restarts(Story::Merge, &[USED, AVAIL]);
}

#[test]
fn a_merge_with_a_region() {
    restarts(Story::Merge, &REGION);
}

#[test]
fn verbs_without_a_region() {
    restarts(Story::Verbs, &[USED, AVAIL]);
}

#[test]
fn verbs_with_a_region() {
    restarts(Story::Verbs, &REGION);
}

#[test]
fn a_rollback_at_a_reset_without_a_region() {
    restarts(Story::Reset, &[USED, AVAIL]);
}

#[test]
fn a_rollback_at_a_reset_with_a_region() {
    restarts(Story::Reset, &REGION);
}
