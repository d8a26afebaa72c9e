//! The write cache that a guest turns off and on: a write that was acknowledged while it
//! was off is durable.

use std::sync::atomic::{AtomicU64, Ordering};

use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserConfigFlags;

use super::failing::Failing;
use super::inject::{Call, Injector, Made, Rule};
use super::*;
use raw::{CONFIG_WCE, FLUSH, PROTOCOL, Raw, Ring, VERSION_1};

const FEATURES: u64 = VERSION_1 | PROTOCOL | FLUSH | CONFIG_WCE;
const WRITEBACK: u32 = 32;
const OUT: u32 = 1;
const CHUNK: u64 = 4096;

fn set_cache(frontend: &mut impl VhostUserFrontend, on: bool) -> bool {
    let flags = VhostUserConfigFlags::WRITABLE;
    let set = frontend.set_config(WRITEBACK, flags, &[u8::from(on)]);
    set.is_ok()
}

fn cache_is_on(raw: &mut Raw) -> bool {
    let flags = VhostUserConfigFlags::empty();
    let config = raw.frontend.get_config(WRITEBACK, 1, flags, &[0]);
    config.unwrap().1 == [1]
}

/// Writes chunk `n`.
fn write(raw: &Raw, ring: &mut Ring, n: u64) {
    raw.request(ring, 0, OUT, n * CHUNK / 512, CHUNK as u32);
    raw.run(ring, &[0]);
    assert_eq!(raw.status(ring, 0), 0, "chunk {n}");
}

/// What was asked for, and how the write of each chunk ended.
struct Asked {
    chunk: u64,
    /// `None`: it was changed meanwhile.
    cache: Option<bool>,
}

const QUEUES: u64 = 4;
const WRITES: u64 = 250;
/// Writes that may begin while the cache is as it is, and while it is being changed: no matter who
/// is slow, there are many of each kind.
const AT_REST: u64 = 40;
const CHANGING: u64 = 8;

/// Writes each of a thousand chunks once, through several queues, while the cache is turned off
/// and on after every few of them.
fn write_while_it_changes(socket: &Path) -> Vec<Asked> {
    let mut raw = Raw::connect(socket, FEATURES);
    let mut rings: Vec<Ring> = (0..QUEUES).map(|i| raw.start(i as usize)).collect();
    // Odd while it is being changed; every other even number stands for "off".
    let epoch = AtomicU64::new(0);
    let done = AtomicU64::new(0);
    let may_begin = AtomicU64::new(AT_REST);
    let mut frontend = raw.frontend.clone();
    let raw = &raw;
    std::thread::scope(|scope| {
        let (epoch, done, may_begin) = (&epoch, &done, &may_begin);
        let writers: Vec<_> = rings
            .iter_mut()
            .map(|ring| {
                scope.spawn(move || {
                    let first = ring.index as u64 * WRITES;
                    let one = |chunk| {
                        eventually("a write may begin", || {
                            let less = |n: u64| n.checked_sub(1);
                            let order = Ordering::SeqCst;
                            may_begin.fetch_update(order, order, less).is_ok()
                        });
                        let before = epoch.load(Ordering::SeqCst);
                        write(raw, ring, chunk);
                        let after = epoch.load(Ordering::SeqCst);
                        done.fetch_add(1, Ordering::SeqCst);
                        let settled = before == after && before % 2 == 0;
                        let cache = settled.then_some(before % 4 == 0);
                        Asked { chunk, cache }
                    };
                    (first..first + WRITES).map(one).collect::<Vec<_>>()
                })
            })
            .collect();
        let mut next = 0;
        while next < QUEUES * WRITES {
            next = (done.load(Ordering::SeqCst) + 25).min(QUEUES * WRITES);
            eventually("writes end", || done.load(Ordering::SeqCst) >= next);
            may_begin.store(CHANGING, Ordering::SeqCst);
            let now = epoch.fetch_add(1, Ordering::SeqCst);
            assert!(set_cache(&mut frontend, now % 4 != 0));
            epoch.fetch_add(1, Ordering::SeqCst);
            may_begin.store(AT_REST, Ordering::SeqCst);
        }
        let all = writers.into_iter().flat_map(|w| w.join().unwrap());
        all.collect()
    })
}

/// Where a store with chunks of 4 KiB has the chunk that it got after `n` others.
fn place_in_cow(n: u64) -> u64 {
    (2 + n + n / 256) * CHUNK
}

fn check(asked: &[Asked], recorded: &[Made], file: &str, place: impl Fn(u64) -> u64) {
    let (mut off, mut on) = (0, 0);
    for Asked { chunk, cache } in asked {
        let at = place(*chunk);
        let mut writes = recorded.iter().filter(|made| {
            made.call == Call::Write && made.file.ends_with(file) && made.offset == Some(at)
        });
        let write = writes.next().unwrap();
        assert!(writes.next().is_none(), "chunk {chunk} is written once");
        if let Some(cache) = cache {
            assert_eq!(
                write.durable, !cache,
                "chunk {chunk}, the cache is on: {cache}"
            );
            *(if *cache { &mut on } else { &mut off }) += 1;
        }
    }
    assert!(
        off > 100 && on > 100,
        "{off} with the cache off, {on} with it on"
    );
}

#[test]
fn a_write_is_durable_if_the_cache_was_off_from_its_beginning_to_its_end() {
    let failing = Failing::start(World::new());
    failing.faults.record();
    let asked = write_while_it_changes(&failing.world.path("a.sock"));
    check(&asked, &failing.faults.recorded(), "/disk.img", |n| {
        n * CHUNK
    });
}

#[test]
fn so_is_a_write_that_is_preceded_by_copies() {
    let failing = Failing::start(World::new());
    let spec = failing.world.snapshot("s");
    failing.world.client().add_snapshot(&spec).unwrap();
    failing.faults.record();
    let asked = write_while_it_changes(&failing.world.path("a.sock"));
    check(&asked, &failing.faults.recorded(), "/disk.img", |n| {
        n * CHUNK
    });
}

#[test]
fn so_is_a_write_to_a_snapshot() {
    let failing = Failing::start(World::new());
    let spec = failing.world.snapshot("s");
    failing.world.client().add_snapshot(&spec).unwrap();
    let socket = failing.world.path("s.sock");
    let mut guest = Guest::connect(&socket);
    for n in 0..QUEUES * WRITES {
        assert_eq!(guest.write(n * CHUNK / 512, &[1; CHUNK as usize]), 0);
    }
    drop(guest);
    failing.faults.record();
    let asked = write_while_it_changes(&socket);
    check(&asked, &failing.faults.recorded(), "/s.cow", place_in_cow);
}

/// A write to an unmerged chunk waits for a flush of the disk anyway; the others are as those
/// of any origin.
#[test]
fn so_is_a_write_during_a_merge() {
    const MERGED: u64 = 100;
    let failing = Failing::start(World::new());
    let client = failing.world.client();
    let spec = failing.world.snapshot("s");
    client.add_snapshot(&spec).unwrap();
    let socket = failing.world.path("a.sock");
    let mut guest = Guest::connect(&socket);
    assert_eq!(guest.write(0, &vec![1; (MERGED * CHUNK) as usize]), 0);
    drop(guest);
    let merge = MergeRequest {
        snapshot: "s".into(),
        follow: false,
        rate: Some(4096),
        now: true,
    };
    client.merge(&merge).unwrap();
    client.pause_merge().unwrap();
    let mut raw = Raw::connect(&socket, FEATURES);
    let mut ring = raw.start(0);
    assert!(set_cache(&mut raw.frontend, false));
    for n in (0..60).chain(MERGED..MERGED + 20) {
        // Every other write is of a part of a chunk.
        let len = if n % 2 == 0 { CHUNK as u32 } else { 512 };
        raw.request(&ring, 0, OUT, n * CHUNK / 512, len);
        failing.faults.record();
        raw.run(&mut ring, &[0]);
        assert_eq!(raw.status(&ring, 0), 0, "chunk {n}");
        let recorded = failing.faults.recorded();
        let of_disk: Vec<&Made> = recorded
            .iter()
            .filter(|made| made.file.ends_with("/disk.img"))
            .collect();
        let is_write = |made: &&Made| made.call == Call::Write;
        let last = of_disk.iter().rposition(is_write).unwrap();
        let flushed = of_disk[last..].iter().any(|made| made.call == Call::Flush);
        assert!(of_disk[last].durable || flushed, "chunk {n}: {of_disk:?}");
    }
    assert!(client.status().unwrap().merge.unwrap().chunks_left > 0);
    // With the cache on, a chunk that is merged is written without a flush.
    assert!(set_cache(&mut raw.frontend, true));
    failing.faults.record();
    write(&raw, &mut ring, MERGED);
    assert!(!is_durable(&failing.faults));
}

/// The one write of the disk since [`Injector::record`].
fn is_durable(faults: &Injector) -> bool {
    let recorded = faults.recorded();
    let mut writes = recorded
        .iter()
        .filter(|made| made.call == Call::Write && made.file.ends_with("/disk.img"));
    let write = writes.next().unwrap();
    assert!(writes.next().is_none());
    write.durable
}

/// A guest whose cache is off sends no flushes, whoever serves its disk.
#[test]
fn a_cache_that_is_off_stays_off_under_the_next_daemon() {
    let mut failing = Failing::start(World::new());
    let socket = failing.world.path("a.sock");
    let mut raw = Raw::connect(&socket, FEATURES);
    let mut ring = raw.start(0);
    for (round, on) in [false, false, true, true].into_iter().enumerate() {
        if round % 2 == 0 {
            assert!(set_cache(&mut raw.frontend, on));
        }
        let Failing { mut world, faults } = failing;
        if round % 2 == 0 {
            world.kill();
        } else {
            world.terminate();
        }
        drop(faults);
        failing = Failing::start(world);
        raw.reconnect(&socket, FEATURES);
        assert_eq!(cache_is_on(&mut raw), on, "round {round}");
        let base = raw.used_index(&ring);
        raw.set_up_again(&ring, base);
        raw.enable(&ring, true);
        failing.faults.record();
        write(&raw, &mut ring, round as u64);
        assert_eq!(is_durable(&failing.faults), !on, "round {round}");
    }
}

/// The snapshot's socket shows the origin after a live commit, to a guest that still does not
/// flush.
#[test]
fn a_cache_that_is_off_stays_off_through_a_live_commit() {
    let failing = Failing::start(World::new());
    let client = failing.world.client();
    let spec = failing.world.snapshot("s");
    client.add_snapshot(&spec).unwrap();
    let socket = failing.world.path("s.sock");
    let mut raw = Raw::connect(&socket, FEATURES);
    let mut ring = raw.start(0);
    assert!(set_cache(&mut raw.frontend, false));
    write(&raw, &mut ring, 0);
    let follow = MergeRequest {
        snapshot: "s".into(),
        follow: true,
        rate: None,
        now: true,
    };
    client.merge(&follow).unwrap();
    failing.world.merged();
    failing.faults.record();
    write(&raw, &mut ring, 1);
    assert!(is_durable(&failing.faults));
    let Failing { mut world, faults } = failing;
    world.kill();
    drop(faults);
    let failing = Failing::start(world);
    raw.reconnect(&socket, FEATURES);
    assert!(!cache_is_on(&mut raw));
    // It is the guest of this socket alone.
    let mut other = Raw::connect(&failing.world.path("a.sock"), FEATURES);
    assert!(cache_is_on(&mut other));
}

#[test]
fn a_cache_is_not_turned_off_if_that_cannot_be_recorded() {
    let failing = Failing::start(World::new());
    let mut raw = Raw::connect(&failing.world.path("a.sock"), FEATURES);
    let mut ring = raw.start(0);
    failing.faults.fail(Rule {
        call: Call::Rename,
        file: "disk.img.snapback",
        bytes: 0..u64::MAX,
        errno: libc::EIO,
    });
    assert!(!set_cache(&mut raw.frontend, false));
    assert!(cache_is_on(&mut raw));
    failing.faults.mend();
    failing.faults.record();
    write(&raw, &mut ring, 0);
    assert!(!is_durable(&failing.faults));
    assert!(set_cache(&mut raw.frontend, false));
    failing.faults.record();
    write(&raw, &mut ring, 0);
    assert!(is_durable(&failing.faults));
}
