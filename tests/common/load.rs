//! A guest that reads, writes and flushes at random, knows what its disk must
//! hold, and checks every byte it reads.

use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::failed::Failed;
use super::guest::{Ask, Guest, Kind, REQUEST_MAX};
use super::random::Random;
use super::stamps::{self, Found, SECTOR};

const GO: u8 = 0;
const DRAIN: u8 = 1;
const DEAD: u8 = 2;
const GONE: u8 = 3;

/// How the test and a load communicate.
#[derive(Debug, Default)]
pub struct Reins {
    /// Requests that were completed and checked.
    done: AtomicU64,
    order: AtomicU8,
    /// Writes go to `0 .. this` sectors; 0: everywhere.
    write_end: AtomicU64,
    failed: AtomicU8,
}

/// Which requests a load lets fail.
#[allow(dead_code, reason = "not every test has faults")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tolerance {
    /// None.
    Nothing,
    /// Those that write, because there is no space.
    Changes,
    /// All of them: the snapshot may have ended.
    All,
}

impl Reins {
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Acquire)
    }

    /// The load ends when all its requests have completed.
    pub fn drain(&self) {
        self.order.store(DRAIN, Ordering::Release);
    }

    /// The daemon is dead: the load ends with what it has.
    pub fn dead(&self) {
        self.order.store(DEAD, Ordering::Release);
    }

    /// The front end goes away at once, with requests in flight.
    #[allow(dead_code, reason = "not every test has such front ends")]
    pub fn gone(&self) {
        self.order.store(GONE, Ordering::Release);
    }

    pub fn limit_writes(&self, end: u64) {
        self.write_end.store(end, Ordering::Release);
    }

    pub fn failed(&self) -> bool {
        self.failed.load(Ordering::Acquire) != 0
    }
}

/// Reports a panic, so that the test does not wait for this load.
struct Alarm<'a>(&'a Reins);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.failed.store(1, Ordering::Release);
        }
    }
}

/// A write, for those who must know what was there at some instant.
#[derive(Clone, Copy, Debug)]
pub struct Written {
    pub sector: u64,
    pub sectors: u64,
    /// Of its first sector.
    pub stamp: u64,
    /// Before it was submitted.
    pub submitted: Instant,
    /// After it completed; `None`: in flight.
    pub done: Option<Instant>,
}

struct Flight {
    ask: Ask,
    /// Place in `writes`.
    write: Option<usize>,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub reads: u64,
    pub writes: u64,
    pub flushes: u64,
    /// Writes of zeroes, and discards.
    pub zeroings: u64,
    pub bytes_compared: u64,
    /// Requests that were let fail.
    pub failed: u64,
    /// Those of them that change nothing.
    pub unread: u64,
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            reads,
            writes,
            flushes,
            zeroings,
            bytes_compared,
            failed,
            unread: _,
        } = self;
        let mib = bytes_compared >> 20;
        write!(
            f,
            "{reads} reads, {writes} writes, {flushes} flushes, {zeroings} zeroings, {mib} MiB compared, {failed} failed"
        )
    }
}

fn range(ask: &Ask) -> std::ops::Range<u64> {
    ask.sector..ask.sector + (ask.len / SECTOR) as u64
}

pub struct Load {
    pub name: String,
    guest: Option<Guest>,
    /// Stamps of all sectors, as far as writes are acknowledged.
    pub shadow: Vec<u64>,
    writer: u8,
    random: Random,
    flights: Vec<Option<Flight>>,
    /// It writes zeroes, and discards: the sectors hold zeroes since, or what they
    /// held, until a read tells.
    zeroing: Option<HashSet<u64>>,
    /// Of the present front end.
    pub writes: Vec<Written>,
    failures: Failed,
    pub tolerates: Tolerance,
    next_write: u64,
    pub counts: Counts,
}

impl Load {
    /// `writer` (1..=255) is its own in all stamps; `shadow` is what the disk holds.
    pub fn new(name: &str, writer: u8, seed: u64, shadow: Vec<u64>) -> Self {
        Self {
            name: name.to_owned(),
            guest: None,
            shadow,
            writer,
            random: Random::new(seed ^ u64::from(writer) << 56),
            flights: Vec::new(),
            zeroing: None,
            writes: Vec::new(),
            failures: Failed::default(),
            tolerates: Tolerance::Nothing,
            next_write: 0,
            counts: Counts::default(),
        }
    }

    /// Lets it write zeroes and discard. Not for those who look at `writes`.
    pub fn with_zeroing(mut self) -> Self {
        self.zeroing = Some(HashSet::new());
        self
    }

    /// Attaches as a new guest, with requests in flight on two queues.
    pub fn attach(&mut self, path: &Path) {
        let guest = Guest::connect(path, 2, 8);
        assert_eq!(
            guest.sectors(),
            self.shadow.len() as u64,
            "{}: size",
            self.name
        );
        self.flights = (0..guest.slots()).map(|_| None).collect();
        self.guest = Some(guest);
    }

    pub fn detach(&mut self) {
        self.guest = None;
    }

    /// Makes `count` requests, or fewer when the reins say so.
    pub fn run(&mut self, count: u64, reins: &Reins) {
        let _alarm = Alarm(reins);
        let mut submitted = 0;
        let mut done = Vec::new();
        let mut last = Instant::now();
        loop {
            let order = reins.order.load(Ordering::Acquire);
            if order == GONE {
                return;
            }
            if order == GO {
                while submitted < count && self.submit_one(reins) {
                    submitted += 1;
                }
                self.guest().kick();
            }
            let idle = self.flights.iter().all(Option::is_none);
            if idle && (order != GO || submitted == count) {
                return;
            }
            let pause = Duration::from_millis(20);
            self.guest().reap_within(&mut done, pause);
            if done.is_empty() && order == DEAD {
                return;
            }
            if !done.is_empty() {
                last = Instant::now();
            }
            assert!(
                last.elapsed() < Duration::from_secs(30),
                "{}: no completion for 30 s",
                self.name
            );
            for (slot, ret) in done.drain(..) {
                if ret == 0 || !self.fail(slot) {
                    self.complete(slot, ret);
                }
                reins.done.fetch_add(1, Ordering::Release);
            }
        }
    }

    fn guest(&mut self) -> &mut Guest {
        self.guest.as_mut().expect("attached")
    }

    /// Puts one request into a free slot; false if there is none.
    fn submit_one(&mut self, reins: &Reins) -> bool {
        let Some(slot) = self.flights.iter().position(Option::is_none) else {
            return false;
        };
        let end = self.shadow.len() as u64;
        let mut write_end = reins.write_end.load(Ordering::Acquire);
        if write_end == 0 {
            write_end = end;
        }
        // Small disks are full of requests at times: then this is a flush.
        let ask = (0..8)
            .find_map(|_| Some(self.draw(end, write_end)).filter(|ask| !self.collides(ask)))
            .unwrap_or(Ask {
                kind: Kind::Flush,
                sector: 0,
                len: 0,
                offset: 0,
                cut: 0,
            });
        let write = (ask.kind == Kind::Write).then(|| {
            self.next_write += 1;
            let stamp = stamps::stamp(self.writer, self.next_write);
            let data = ask.offset..ask.offset + ask.len;
            stamps::fill(&mut self.guest().memory(slot)[data], stamp);
            self.writes.push(Written {
                sector: ask.sector,
                sectors: (ask.len / SECTOR) as u64,
                stamp,
                submitted: Instant::now(),
                done: None,
            });
            self.writes.len() - 1
        });
        // Also a write of zeroes: it is still in flight if the daemon or the front end ends.
        if let (Kind::Discard | Kind::Zero, Some(discarded)) = (ask.kind, &mut self.zeroing) {
            discarded.extend(range(&ask));
        }
        if ask.kind == Kind::Read {
            // What is not overwritten by the daemon must not look right.
            let memory = self.guest().memory(slot);
            for sector in memory[ask.offset..ask.offset + ask.len].chunks_exact_mut(SECTOR) {
                sector[..8].fill(0xff);
                sector[SECTOR - 8..].fill(0xff);
            }
        }
        self.guest().submit(slot, &ask);
        self.flights[slot] = Some(Flight { ask, write });
        true
    }

    /// Mostly small requests, some on the borders of pages, a few up to 1 MiB.
    fn draw(&mut self, end: u64, write_end: u64) -> Ask {
        let zeroing = self.zeroing.is_some();
        let random = &mut self.random;
        let kind = match random.below(100) {
            0..2 => Kind::Flush,
            2..46 => Kind::Read,
            46..51 if zeroing => Kind::Zero,
            51..56 if zeroing => Kind::Discard,
            _ => Kind::Write,
        };
        let (end, most) = if kind.changes() {
            (write_end, write_end)
        } else {
            (end, end)
        };
        let (sectors, aligned) = match random.below(1000) {
            0..500 => (random.between(1, 8), false),
            500..750 => (8, true),
            750..940 => (random.between(1, 32), false),
            940..990 => (random.between(1, 256), random.below(2) == 0),
            _ => (random.between(1, REQUEST_MAX as u64 / 512), false),
        };
        let sectors = sectors.min(most);
        // A fifth at one place, so that requests meet in the same chunks.
        let last = (end - sectors).min(if random.below(5) == 0 { 4096 } else { u64::MAX });
        let mut sector = random.between(0, last);
        if aligned {
            sector &= !7;
        }
        // Memory as guests have it: mostly pages, now and then anything.
        let offset = match random.below(10) {
            0 => random.between(0, 4096) as usize,
            1 => random.between(0, 7) as usize * 512,
            _ => 0,
        };
        let len = sectors as usize * SECTOR;
        let cut = match random.below(10) {
            0 => random.below(len as u64) as usize,
            1 => len / 2,
            _ => 0,
        };
        match kind {
            Kind::Flush => Ask {
                kind,
                sector: 0,
                len: 0,
                offset: 0,
                cut: 0,
            },
            _ => Ask {
                kind,
                sector,
                len,
                offset,
                cut,
            },
        }
    }

    /// As a file system, it never has a write in flight with another request for
    /// the same sectors.
    fn collides(&self, ask: &Ask) -> bool {
        let (mine, writes) = (range(ask), ask.kind.changes());
        self.flights.iter().flatten().any(|flight| {
            let theirs = range(&flight.ask);
            let meet = mine.start < theirs.end && theirs.start < mine.end;
            meet && (writes || flight.ask.kind.changes())
        })
    }

    /// A request has failed; false if it must not.
    fn fail(&mut self, slot: usize) -> bool {
        let flight = self.flights[slot].as_ref().expect("a request in flight");
        let may = match self.tolerates {
            Tolerance::Nothing => false,
            Tolerance::Changes => flight.ask.kind.changes(),
            Tolerance::All => true,
        };
        if !may {
            return false;
        }
        self.counts.failed += 1;
        self.counts.unread += u64::from(!flight.ask.kind.changes());
        if let Some(write) = flight.write {
            self.failures.add(&self.writes[write]);
        }
        self.flights[slot] = None;
        true
    }

    fn complete(&mut self, slot: usize, ret: i32) {
        let flight = self.flights[slot].take().expect("a request in flight");
        let ask = flight.ask;
        assert_eq!(ret, 0, "{}: {ask:?}", self.name);
        let sectors = range(&ask);
        let range = ask.sector as usize..ask.sector as usize + ask.len / SECTOR;
        match ask.kind {
            Kind::Flush => self.counts.flushes += 1,
            Kind::Read => {
                self.counts.reads += 1;
                self.counts.bytes_compared += ask.len as u64;
                let memory = self.guest.as_mut().expect("attached").memory(slot);
                let data = &memory[ask.offset..ask.offset + ask.len];
                if let Some(discarded) = &mut self.zeroing {
                    let read = sectors.zip(data.chunks_exact(SECTOR));
                    for (sector, data) in read.filter(|(sector, _)| discarded.remove(sector)) {
                        if stamps::read(data) == Some(stamps::ZEROES) {
                            self.shadow[sector as usize] = stamps::ZEROES;
                        }
                    }
                }
                if !self.failures.is_empty() {
                    let known = self.shadow[range.clone()].iter_mut();
                    let read = (ask.sector..).zip(data.chunks_exact(SECTOR));
                    for ((sector, data), known) in read.zip(known) {
                        self.failures.settle(sector, stamps::read(data), known);
                    }
                }
                let what = format!("{}: read of {ask:?}", self.name);
                stamps::check(&what, ask.sector, data, &self.shadow[range]);
            }
            Kind::Zero | Kind::Discard => {
                self.counts.zeroings += 1;
                if let (Kind::Zero, Some(discarded)) = (ask.kind, &mut self.zeroing) {
                    self.failures.overwritten(sectors.clone());
                    sectors.for_each(|sector| {
                        discarded.remove(&sector);
                    });
                    self.shadow[range].fill(stamps::ZEROES);
                }
            }
            Kind::Write => {
                self.failures.overwritten(sectors.clone());
                if let Some(discarded) = &mut self.zeroing {
                    sectors.for_each(|sector| {
                        discarded.remove(&sector);
                    });
                }
                self.counts.writes += 1;
                let written = &mut self.writes[flight.write.expect("a write")];
                written.done = Some(Instant::now());
                for (place, stamp) in self.shadow[range].iter_mut().zip(written.stamp..) {
                    *place = stamp;
                }
            }
        }
    }

    /// Writes `sectors` of the disk from the start, in requests of 1 MiB.
    pub fn overwrite(&mut self, sectors: u64) {
        let step = REQUEST_MAX as u64 / 512;
        let firsts: Vec<u64> = (0..sectors).step_by(step as usize).collect();
        for group in firsts.chunks(8) {
            for (slot, first) in group.iter().enumerate() {
                let len = step.min(sectors - first) as usize * SECTOR;
                self.next_write += 1;
                let stamp = stamps::stamp(self.writer, self.next_write);
                stamps::fill(&mut self.guest().memory(slot)[..len], stamp);
                let ask = Ask {
                    kind: Kind::Write,
                    sector: *first,
                    len,
                    offset: 0,
                    cut: 0,
                };
                self.guest().submit(slot, &ask);
                let range = *first as usize..*first as usize + len / SECTOR;
                for (place, stamp) in self.shadow[range].iter_mut().zip(stamp..) {
                    *place = stamp;
                }
            }
            self.guest().all(group.len());
        }
    }

    /// The disk is now as long as this; what was added holds zeroes.
    #[allow(dead_code, reason = "not every test enlarges the disk")]
    pub fn grown(&mut self, sectors: usize) {
        assert!(sectors >= self.shadow.len(), "{}: it has shrunk", self.name);
        self.shadow.resize(sectors, stamps::ZEROES);
    }

    /// Reads everything and compares. A write that was in flight when the daemon or the
    /// front end died may be there or not, sector by sector; it is settled by this.
    /// Returns how many sectors were in doubt.
    pub fn settle(&mut self) -> usize {
        let mut doubts = std::collections::HashMap::new();
        let failures = &mut self.failures;
        let open = |w: &Written| w.done.is_none() && !failures.is_one(w);
        for written in self.writes.drain(..).filter(open) {
            doubts.extend((written.sector..written.sector + written.sectors).zip(written.stamp..));
        }
        self.flights.iter_mut().for_each(|flight| *flight = None);
        let guest = self.guest.as_mut().expect("attached");
        let (shadow, name, zeroing) = (&mut self.shadow, &self.name, &mut self.zeroing);
        guest.read_all(|first, data| {
            for (sector, data) in (first..).zip(data.chunks_exact(SECTOR)) {
                let found = stamps::read(data);
                let known = &mut shadow[sector as usize];
                let discarded = zeroing.as_mut().is_some_and(|d| d.remove(&sector));
                if discarded && found == Some(stamps::ZEROES) {
                    *known = stamps::ZEROES;
                }
                failures.settle(sector, found, known);
                if found.is_some() && found.as_ref() == doubts.get(&sector) {
                    *known = doubts[&sector];
                }
                assert!(
                    found == Some(*known),
                    "{name}: sector {sector} holds {}, not {}{}",
                    Found(found),
                    Found(Some(*known)),
                    doubts
                        .get(&sector)
                        .map(|d| format!(" nor {}, in flight at the end", Found(Some(*d))))
                        .unwrap_or_default(),
                );
            }
        });
        failures.clear();
        self.counts.bytes_compared += (self.shadow.len() * SECTOR) as u64;
        doubts.len()
    }
}
