//! Cases of hostile guests, and the client that carries them out.

use std::time::{Duration, Instant};

use vhost::VhostBackend;
use vm_memory::{Bytes, GuestAddress};

use super::common::stamps::{self, SECTOR};
use super::raw::{
    DATA, FLUSH, MEMORY, NEXT, PROTOCOL, Raw, Ring, SIZE, VERSION_1, WRITE, signalled,
};
use super::world::{View, World, compare, first_content};

pub const IN: u32 = 0;
pub const OUT: u32 = 1;

/// What drivers acknowledge at least; a case may add to it.
pub const PLAIN: u64 = VERSION_1 | PROTOCOL | FLUSH;

/// Memory of a guest: a part at 0 with rings and data, and another one behind a hole.
pub const PARTS: [(u64, usize); 2] = [(0, MEMORY), (HIGH, HIGH_LEN)];
/// The first address of the second part; and its bytes.
pub const HIGH: u64 = 1 << 32;
pub const HIGH_LEN: usize = 40 << 20;

/// The sector that requests are made for, unless a case says something else. Nothing may
/// be written there or anywhere else by a case, except in [`WORK`].
pub const SECTOR_OF_CASES: u64 = 8;
/// A sector whose reads can be held.
pub const HELD: u64 = 16;
/// Sectors that are written: cases may use those from `WORK + 8` to `WORK + WORK_LEN`.
pub const WORK: u64 = 1024;
pub const WORK_LEN: u64 = 64;

/// How a case ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All heads come back; the status byte, where [`Raw::request`] has it, is this one.
    Status(u8),
    /// All heads come back, with length 0: there is no place for a status byte.
    LenZero,
    /// All heads come back; the case looks at the rest itself.
    Back,
    /// The queue stops and says so by VRING_ERR, and a reset repairs it.
    Broken,
    /// Nothing comes back.
    Nothing,
}

/// The outcomes that are common.
pub const OK: Outcome = Outcome::Status(0);
pub const IO_ERROR: Outcome = Outcome::Status(1);
pub const UNSUPPORTED: Outcome = Outcome::Status(2);

type Put = Box<dyn Fn(&Raw, &mut Ring)>;
type Look = Box<dyn Fn(&Raw, &Ring)>;

/// Something that a guest puts into a ring, and what comes of it.
pub struct Case {
    name: String,
    /// Acknowledged beside [`PLAIN`].
    features: u64,
    /// Entries of its ring.
    size: u16,
    put: Put,
    outcome: Outcome,
    read_only: Outcome,
    look: Option<Look>,
}

impl Case {
    /// The case does everything itself, also [`Raw::offer`]; it is kicked afterwards.
    pub fn ring(
        name: impl Into<String>,
        outcome: Outcome,
        put: impl Fn(&Raw, &mut Ring) + 'static,
    ) -> Self {
        Self {
            name: name.into(),
            features: 0,
            size: SIZE,
            put: Box::new(put),
            outcome,
            read_only: outcome,
            look: None,
        }
    }

    /// The case changes a chain at head 0 that is a read of one sector: header, data and
    /// status in descriptors 0 to 2. Then it is offered.
    pub fn chain(
        name: impl Into<String>,
        outcome: Outcome,
        change: impl Fn(&Raw, &Ring) + 'static,
    ) -> Self {
        Self::ring(name, outcome, move |raw, ring| {
            raw.request(ring, 0, IN, SECTOR_OF_CASES, 512);
            change(raw, ring);
            raw.offer(ring, &[0]);
        })
    }

    /// As [`Self::chain`], with a write of one sector, which a read-only view refuses with
    /// an error.
    pub fn write(
        name: impl Into<String>,
        outcome: Outcome,
        change: impl Fn(&Raw, &Ring) + 'static,
    ) -> Self {
        let case = Self::ring(name, outcome, move |raw, ring| {
            raw.request(ring, 0, OUT, SECTOR_OF_CASES, 512);
            change(raw, ring);
            raw.offer(ring, &[0]);
        });
        match outcome {
            Outcome::Status(_) => case.on_read_only(IO_ERROR),
            _ => case,
        }
    }

    pub fn with(mut self, features: u64) -> Self {
        self.acknowledge(features);
        self
    }

    pub fn acknowledge(&mut self, features: u64) {
        self.features |= features;
    }

    /// Its ring has another size than [`SIZE`]: a power of two from 4 on.
    pub fn on_a_ring_of(mut self, size: u16) -> Self {
        self.size = size;
        self
    }

    /// How it ends on a view that cannot be written.
    pub fn on_read_only(mut self, outcome: Outcome) -> Self {
        self.read_only = outcome;
        self
    }

    /// A further look at the guest's memory at the end.
    pub fn then(mut self, look: impl Fn(&Raw, &Ring) + 'static) -> Self {
        self.look = Some(Box::new(look));
        self
    }

    fn outcome(&self, view: View) -> Outcome {
        match view {
            View::ReadOnly => self.read_only,
            _ => self.outcome,
        }
    }
}

/// Runs all cases on all views. After each case the queue works again, at the latest after
/// a reset of it, and another queue has worked all the time. At the end nothing is changed
/// on any disk that was not meant to be, and the witnesses have seen nothing.
pub fn run(world: &World, cases: &[Case]) {
    let mut faults = Vec::new();
    for view in View::ALL {
        for group in by_session(cases) {
            let open = || Session::open(world, view, group[0].features, group[0].size);
            let mut session = open();
            for case in &group {
                if let Err(fault) = session.run(case) {
                    faults.push(fault);
                    drop(session);
                    session = open();
                }
                session.prove();
            }
            session.compare();
        }
        world.check();
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Runs all cases a thousand times, a quarter of them on each view, without growth.
pub fn repeat(world: &World, cases: &[Case]) {
    for view in View::ALL {
        for group in by_session(cases) {
            let mut session = Session::open(world, view, group[0].features, group[0].size);
            let mut rounds = |count: usize| {
                for case in std::iter::repeat_n(&group, count).flatten() {
                    session.run(case).unwrap();
                }
            };
            // Allocators and thread stacks have their greatest size after some rounds.
            rounds(50);
            let before = world.usage(view);
            rounds(250);
            world.has_not_grown(view, &before);
            session.prove();
            session.compare();
        }
        world.check();
    }
}

/// Runs a test on all views, with a session of these features; then as [`run`].
pub fn on_all_views(features: u64, test: impl Fn(&mut Session, &World)) {
    let world = World::new();
    for view in View::ALL {
        let mut session = Session::open(&world, view, features, SIZE);
        test(&mut session, &world);
        session.prove();
        session.compare();
        drop(session);
        world.check();
    }
    world.end();
}

/// The cases in order, those for the same kind of connection together.
fn by_session(cases: &[Case]) -> Vec<Vec<&Case>> {
    let mut groups: Vec<Vec<&Case>> = Vec::new();
    for case in cases {
        let is_its = |g: &&mut Vec<&Case>| (g[0].features, g[0].size) == (case.features, case.size);
        match groups.iter_mut().find(is_its) {
            Some(group) => group.push(case),
            None => groups.push(vec![case]),
        }
    }
    groups
}

/// The queue of the cases, and the one that works all the time.
const BAD: usize = 0;
const GOOD: usize = 1;

/// A connection of a hostile guest.
pub struct Session {
    pub raw: Raw,
    pub view: View,
    /// The queue of the cases.
    pub ring: Ring,
    /// Another queue.
    pub good: Ring,
    ticks: u64,
}

impl Session {
    /// `size`: entries of the queue of the cases.
    pub fn open(world: &World, view: View, features: u64, size: u16) -> Self {
        let mut raw = Raw::with_memory(&world.path(view), PLAIN | features, &PARTS);
        raw.set_memory();
        let (ring, good) = (raw.start_of(BAD, size), raw.start(GOOD));
        Self {
            raw,
            view,
            ring,
            good,
            ticks: 0,
        }
    }

    /// # Errors
    /// It ends in another way.
    pub fn run(&mut self, case: &Case) -> Result<(), String> {
        let outcome = case.outcome(self.view);
        let (raw, ring) = (&self.raw, &mut self.ring);
        let (offered, used) = (ring.avail, raw.used_index(ring));
        (case.put)(raw, ring);
        let count = ring.avail.wrapping_sub(offered);
        ring.kick.write(1).unwrap();
        ends(raw, ring, outcome, (used, count))
            .map_err(|e| format!("{:?}: {}: {e}", self.view, case.name))?;
        if let Some(look) = &case.look {
            look(raw, ring);
        }
        if outcome == Outcome::Broken {
            self.reset();
        }
        Ok(())
    }

    /// Stops the queue of the cases and starts it as a driver that begins.
    pub fn reset(&mut self) {
        self.prove_on(GOOD);
        self.stop();
        self.ring = self.raw.start_of(BAD, self.ring.size);
    }

    /// Starts both queues as a driver that begins.
    pub fn restart(&mut self) {
        (self.ring, self.good) = (self.raw.start(BAD), self.raw.start(GOOD));
    }

    /// The other queue carries out requests.
    pub fn prove_good(&mut self) {
        self.prove_on(GOOD);
    }

    /// Stops the queue of the cases; returns the available index that it stopped at.
    pub fn stop(&mut self) -> u32 {
        self.raw.frontend.get_vring_base(BAD).unwrap()
    }

    /// Both queues carry out requests.
    pub fn prove(&mut self) {
        self.prove_on(BAD);
        self.prove_on(GOOD);
    }

    /// A write, where the view takes it, and a read that shows it.
    fn prove_on(&mut self, queue: usize) {
        let ring = if queue == BAD {
            &mut self.ring
        } else {
            &mut self.good
        };
        let head = if ring.size < SIZE { 0 } else { 8 };
        let (raw, sector) = (&self.raw, WORK + queue as u64);
        let data = GuestAddress(raw.data(ring, head));
        let mut expected = sector;
        let mut bytes = [0; SECTOR];
        if self.view != View::ReadOnly {
            self.ticks += 1;
            expected = stamps::stamp(200, self.ticks);
            stamps::fill(&mut bytes, expected);
            raw.memory.write_slice(&bytes, data).unwrap();
            raw.request(ring, head, OUT, sector, SECTOR as u32);
            carry_out(raw, ring, head);
        }
        raw.memory.write_slice(&[0xee; SECTOR], data).unwrap();
        raw.request(ring, head, IN, sector, SECTOR as u32);
        carry_out(raw, ring, head);
        raw.memory.read_slice(&mut bytes, data).unwrap();
        stamps::check("the sector", sector, &bytes, &[expected]);
    }

    /// Reads the whole view. Only what lies in [`WORK`] may have changed.
    pub fn compare(&mut self) {
        const HEAD: u16 = 8;
        const PART: u64 = 1024;
        let expected = first_content();
        let (raw, ring) = (&self.raw, &mut self.good);
        let mut bytes = vec![0; PART as usize * SECTOR];
        for first in (0..expected.len() as u64).step_by(PART as usize) {
            raw.request(ring, HEAD, IN, first, bytes.len() as u32);
            // Where no other request has its data.
            let place = DATA + (1 << 20);
            raw.descriptor(
                ring,
                HEAD + 1,
                (place, bytes.len() as u32, NEXT | WRITE, HEAD + 2),
            );
            carry_out(raw, ring, HEAD);
            raw.memory
                .read_slice(&mut bytes, GuestAddress(place))
                .unwrap();
            let skip = if first == WORK { WORK_LEN } else { 0 };
            let (what, data) = (format!("{:?}", self.view), &bytes[skip as usize * SECTOR..]);
            compare(&what, data, first + skip, &expected);
        }
    }
}

/// Whether `count` requests, offered when the used index was `used`, end in this way.
fn ends(raw: &Raw, ring: &Ring, outcome: Outcome, (used, count): (u16, u16)) -> Result<(), String> {
    match outcome {
        Outcome::Broken => {
            return if signalled(&ring.err, 20_000) {
                Ok(())
            } else {
                Err("no VRING_ERR".into())
            };
        }
        Outcome::Nothing => {
            std::thread::sleep(Duration::from_millis(2));
            if raw.used_index(ring) != used {
                return Err("something has come back".into());
            }
        }
        Outcome::Status(_) | Outcome::LenZero | Outcome::Back => {
            wait(raw, ring, used.wrapping_add(count))?;
        }
    }
    for at in 0..count {
        let (head, len) = raw.used(ring, used.wrapping_add(at));
        let status = raw.status(ring, head as u16);
        let right = match outcome {
            Outcome::Status(0) => (status, len > 0) == (0, true),
            Outcome::Status(byte) => (status, len) == (byte, 1),
            Outcome::LenZero => (status, len) == (0xff, 0),
            _ => true,
        };
        if !right {
            return Err(format!("head {head}: status {status}, length {len}"));
        }
    }
    if signalled(&ring.err, 0) {
        return Err("VRING_ERR".into());
    }
    Ok(())
}

/// One request that must succeed.
fn carry_out(raw: &Raw, ring: &mut Ring, head: u16) {
    let used = raw.used_index(ring).wrapping_add(1);
    raw.offer(ring, &[head]);
    ring.kick.write(1).unwrap();
    wait(raw, ring, used).unwrap();
    assert_eq!(raw.used(ring, used.wrapping_sub(1)).0, u32::from(head));
    assert_eq!(raw.status(ring, head), 0);
}

/// Waits for signals, and looks now and then because a case may have turned them off.
fn wait(raw: &Raw, ring: &Ring, index: u16) -> Result<(), String> {
    let start = Instant::now();
    while raw.used_index(ring) != index {
        signalled(&ring.call, 1);
        if signalled(&ring.err, 0) {
            return Err("VRING_ERR".into());
        }
        if start.elapsed() > Duration::from_secs(20) {
            return Err(format!(
                "the used index is {}, not {index}",
                raw.used_index(ring)
            ));
        }
    }
    Ok(())
}

/// The stamp of the sector in the guest's memory at `place`.
pub fn sector(raw: &Raw, place: u64) -> u64 {
    let mut bytes = [0; SECTOR];
    raw.memory
        .read_slice(&mut bytes, GuestAddress(place))
        .unwrap();
    stamps::read(&bytes).unwrap()
}
