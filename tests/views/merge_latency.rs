//! Latency during a merge of 1 GiB: how long a guest's writes and reads wait.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use snapback::control::api::{RollbackRequest, RollbackWhen};

use crate::common::guest::{Ask, Guest, Kind};
use crate::common::load::Load;
use crate::common::random::{self, Random};
use crate::common::stamps::{self, Found, SECTOR};
use crate::common::volume::Volume;
use crate::yardstick::Yardstick;
use crate::{compare_all, snapshot, turn};

const SECTORS: u64 = 1 << 21;
const BLOCK: usize = 4096;
const BLOCK_SECTORS: u64 = (BLOCK / SECTOR) as u64;
const CHUNK_SECTORS: u64 = 128;
const WRITER: u8 = 9;
/// No request may wait longer than this for a merge, nor for what the machine does besides.
const PATIENCE: Duration = Duration::from_secs(1);

#[derive(Default)]
struct Waits {
    all: Vec<Duration>,
    /// Those that took longer than [`PATIENCE`], with their beginnings.
    long: Vec<(Instant, Duration)>,
}

impl Waits {
    fn add(&mut self, start: Instant) {
        let took = start.elapsed();
        self.all.push(took);
        if took >= PATIENCE {
            self.long.push((start, took));
        }
    }
}

impl std::fmt::Display for Waits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut sorted = self.all.clone();
        sorted.sort_unstable();
        let at = |part: usize| sorted.get((sorted.len() * part / 1000).min(sorted.len() - 1));
        write!(
            f,
            "{}, half within {:.2?}, 99.9 % within {:.2?}, longest {:.2?}",
            sorted.len(),
            at(500).unwrap(),
            at(999).unwrap(),
            sorted.last().unwrap()
        )
    }
}

/// Keeps four requests of 4 KiB in flight until `stop`. `draw` gives the sector
/// of the next one, `None` when there is no more; `look` gets what a read read.
fn keep_busy(
    guest: &mut Guest,
    kind: Kind,
    stop: &AtomicBool,
    mut draw: impl FnMut() -> Option<u64>,
    mut look: impl FnMut(u64, &[u8]),
) -> Waits {
    let mut flights: [Option<(u64, Instant)>; 4] = [None; 4];
    let mut waits = Waits::default();
    let mut done = Vec::new();
    loop {
        for (slot, flight) in flights.iter_mut().enumerate() {
            if flight.is_some() || stop.load(Ordering::Acquire) {
                continue;
            }
            let Some(sector) = draw() else { continue };
            if kind == Kind::Write {
                let data = &mut guest.memory(slot)[..BLOCK];
                stamps::fill(data, stamps::stamp(WRITER, sector / BLOCK_SECTORS));
            }
            let ask = Ask {
                kind,
                sector,
                len: BLOCK,
                offset: 0,
                cut: 0,
            };
            guest.submit(slot, &ask);
            *flight = Some((sector, Instant::now()));
        }
        guest.kick();
        if flights.iter().all(Option::is_none) {
            return waits;
        }
        guest.wait(&mut done);
        for (slot, ret) in done.drain(..) {
            let (sector, start) = flights[slot].take().unwrap();
            waits.add(start);
            assert_eq!(ret, 0, "{kind:?} at {sector}");
            if kind == Kind::Read {
                look(sector, &guest.memory(slot)[..BLOCK]);
            }
        }
    }
}

/// All chunks in random order, so that nearly each write meets a chunk that is
/// not merged yet; then anywhere.
fn places(mut random: Random) -> impl FnMut() -> Option<u64> {
    let mut chunks: Vec<u64> = (0..SECTORS / CHUNK_SECTORS).collect();
    for i in (1..chunks.len()).rev() {
        chunks.swap(i, random.below(i as u64 + 1) as usize);
    }
    move || {
        let chunk = chunks.pop()?;
        Some(chunk * CHUNK_SECTORS + random.below(CHUNK_SECTORS / BLOCK_SECTORS) * BLOCK_SECTORS)
    }
}

fn merge_of_one_gib(policy: &str) {
    let _turn = turn();
    let seed = random::seed();
    let mut volume = Volume::new(SECTORS);
    let m = snapshot(&volume, "m", "64K");
    volume.start(&[
        "--socket-path",
        "a.sock",
        "--merge-writes",
        policy,
        "--snapshot",
        &m,
    ]);
    let mut load = Load::new("merge view", 1, seed, volume.first_content());
    let start = Instant::now();
    load.attach(&volume.path("a.sock"));
    load.overwrite(SECTORS);
    load.detach();
    let filled = start.elapsed();
    load.shadow = volume.first_content();

    let mut guests = Guest::connect(&volume.path("a.sock"), 2, 4).split();
    let (mut reader, mut writer) = (guests.pop().unwrap(), guests.pop().unwrap());
    let stop = AtomicBool::new(false);
    let mut random = Random::new(seed);
    let mut written = Vec::new();
    let mut next = places(random.clone());
    let draw_write = || {
        let place = next()?;
        written.push(place);
        Some(place)
    };
    let draw_read = || Some(random.below(SECTORS / BLOCK_SECTORS) * BLOCK_SECTORS);
    // Each sector is of the snapshot or of the writer; never of what was wrecked.
    let look = |sector: u64, data: &[u8]| {
        let block = stamps::stamp(WRITER, sector / BLOCK_SECTORS);
        for (i, data) in (0..).zip(data.chunks_exact(SECTOR)) {
            let found = stamps::read(data);
            assert!(
                found == Some(sector + i) || found == Some(block + i),
                "sector {} holds {}",
                sector + i,
                Found(found)
            );
        }
    };
    let request = RollbackRequest {
        snapshot: "m".into(),
        when: RollbackWhen::Now,
        keep: None,
        rate: None,
        ..Default::default()
    };
    let yardstick = Yardstick::start();
    let (mut during, mut first_read) = (Duration::ZERO, Duration::ZERO);
    let (writes, reads) = std::thread::scope(|scope| {
        let asked = Instant::now();
        volume.client().rollback(&request).unwrap();
        let writes =
            scope.spawn(|| keep_busy(&mut writer, Kind::Write, &stop, draw_write, |_, _| ()));
        let reads = scope.spawn(|| keep_busy(&mut reader, Kind::Read, &stop, draw_read, look));
        first_read = asked.elapsed();
        volume.merged(Duration::from_secs(60));
        during = asked.elapsed();
        stop.store(true, Ordering::Release);
        (writes.join().unwrap(), reads.join().unwrap())
    });
    let delays = yardstick.end();
    drop((reader, writer));
    for place in &written {
        let block = stamps::stamp(WRITER, place / BLOCK_SECTORS);
        let range = *place as usize..(place + BLOCK_SECTORS) as usize;
        for (known, stamp) in load.shadow[range].iter_mut().zip(block..) {
            *known = stamp;
        }
    }
    compare_all(&mut load, &volume.path("a.sock"));
    volume.terminate();
    volume.check_origin(&load.shadow);
    let speed = 1024.0 / during.as_secs_f64();
    println!(
        "{policy}: merged 1 GiB in {during:.2?}, {speed:.0} MiB/s, under a guest (written by the guest before, with copy-out, in {filled:.2?}; handover {first_read:.2?})"
    );
    println!("{policy}: writes, to all chunks in random order: {writes}");
    println!("{policy}: reads: {reads}");
    println!(
        "{policy}: every write is there, {} sectors compared twice",
        load.shadow.len()
    );
    for (what, waits) in [("write", &writes), ("read", &reads)] {
        for (start, took) in &waits.long {
            let busy = delays.between(*start, *start + *took);
            assert!(
                *took < PATIENCE + busy,
                "{policy}: a {what} took {took:?}; the machine was busy for {busy:?}"
            );
        }
    }
    assert!(
        writes.all.len() > 100 && reads.all.len() > 100,
        "too few to say anything"
    );
}

#[test]
fn no_guest_waits_a_second_for_a_merge_of_one_gib_with_waiting_writes() {
    merge_of_one_gib("wait");
}

#[test]
fn no_guest_waits_a_second_for_a_merge_of_one_gib_with_redirected_writes() {
    merge_of_one_gib("redirect");
}
