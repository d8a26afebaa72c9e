//! Two front ends at one socket.

use std::io::Write;
use std::os::unix::net::UnixStream;

use vhost::VhostBackend;
use vhost::vhost_user::message::VhostUserProtocolFeatures as Protocol;
use vhost::vhost_user::{Frontend, VhostUserFrontend};

use super::daemon::Daemon;
use super::memory::{MIB, Memory};
use super::ring::{Ring, begin, judge};
use super::{PROTOCOL, SYSTEM, connect, eventually, rings, set_up};

/// Front ends that may wait.
const MOST: usize = 8;

fn guest(daemon: &Daemon, memory: &Memory) -> (Frontend, Vec<Ring>) {
    let mut frontend = connect(&daemon.socket(), 2, Protocol::MQ | Protocol::CONFIG);
    frontend.set_features(SYSTEM | PROTOCOL).unwrap();
    frontend.set_mem_table(&memory.regions()).unwrap();
    let rings = rings(memory, 0, &[64, 32]);
    for ring in &rings {
        set_up(&mut frontend, memory, ring, 0);
        frontend.set_vring_enable(ring.index, true).unwrap();
    }
    (frontend, rings)
}

/// The first message of any front end.
fn speak(daemon: &Daemon) -> UnixStream {
    let mut stream = UnixStream::connect(daemon.socket()).unwrap();
    let set_owner = [3_u32, 1, 0].map(u32::to_ne_bytes);
    stream.write_all(set_owner.as_flattened()).unwrap();
    stream
}

fn waiting(daemon: &Daemon) -> usize {
    daemon.status().views[0].waiting
}

fn waits(daemon: &Daemon) -> usize {
    let kinds = daemon.events();
    kinds.iter().filter(|k| *k == "front-end-waits").count()
}

#[test]
fn a_second_front_end_is_seen_waiting_and_is_served_when_the_first_leaves() {
    let daemon = Daemon::start();
    let memory = Memory::flat(MIB);
    let (first, mut its_rings) = guest(&daemon, &memory);
    begin(&memory, &mut its_rings, 1);
    judge(&memory, &mut its_rings, 1);
    assert_eq!(waiting(&daemon), 0);
    std::thread::scope(|scope| {
        let second = scope.spawn(|| {
            let memory = Memory::flat(MIB);
            let (frontend, mut rings) = guest(&daemon, &memory);
            begin(&memory, &mut rings, 3);
            judge(&memory, &mut rings, 3);
            drop(frontend);
        });
        eventually("it is seen", || waiting(&daemon) == 1);
        let seen = daemon.client().events(0, None).unwrap().events;
        let seen = seen.iter().rfind(|e| e["kind"] == "front-end-waits");
        assert_eq!(seen.unwrap()["socket"].as_str(), daemon.socket().to_str());
        let line = "another front end waits";
        eventually("it is logged", || daemon.log().contains(line));
        let shown = snapback::control::render::human(&daemon.status());
        assert!(shown.contains("attached, 1 waiting"), "{shown}");
        // The first one does not notice.
        for round in 10..20 {
            begin(&memory, &mut its_rings, round);
            judge(&memory, &mut its_rings, round);
            first.get_features().unwrap();
        }
        assert!(!second.is_finished());
        assert_eq!((waiting(&daemon), waits(&daemon)), (1, 1));
        drop(first);
        second.join().unwrap();
    });
    assert_eq!(waiting(&daemon), 0);
    daemon.end(0..2, 3);
}

#[test]
fn who_only_looks_whether_somebody_listens_is_no_event() {
    let daemon = Daemon::start();
    let memory = Memory::flat(MIB);
    let (first, mut its_rings) = guest(&daemon, &memory);
    for _ in 0..20 {
        drop(UnixStream::connect(daemon.socket()).unwrap());
    }
    // Another daemon that is told to use the same socket.
    let other = Daemon::with_disk();
    let mut command = other.command();
    command.arg("--socket-path").arg(daemon.socket());
    assert_eq!(command.output().unwrap().status.code(), Some(2));
    // One that is silent, then speaks.
    let mut silent = UnixStream::connect(daemon.socket()).unwrap();
    begin(&memory, &mut its_rings, 1);
    judge(&memory, &mut its_rings, 1);
    first.get_features().unwrap();
    assert_eq!((waiting(&daemon), waits(&daemon)), (0, 0));
    silent.write_all(&[3, 0, 0, 0]).unwrap();
    eventually("it is seen", || waiting(&daemon) == 1);
    drop(silent);
    eventually("it has left", || waiting(&daemon) == 0);
    assert_eq!(waits(&daemon), 1);
    let line = "a front end that waited has left";
    eventually("it is logged", || daemon.log().contains(line));
    drop(first);
    daemon.end(0..2, 1);
}

#[test]
fn as_many_wait_as_there_is_room_for_and_they_are_served_in_their_order() {
    let daemon = Daemon::start();
    let memory = Memory::flat(MIB);
    let (first, mut its_rings) = guest(&daemon, &memory);
    let mut queue: Vec<UnixStream> = (1..=MOST)
        .map(|count| {
            let stream = speak(&daemon);
            eventually("it waits", || waiting(&daemon) == count);
            stream
        })
        .collect();
    // No more; and hundreds more are no more either.
    for _ in 0..300 {
        let mut one_too_many = UnixStream::connect(daemon.socket()).unwrap();
        let _ = one_too_many.write_all(&[3, 0, 0, 0]);
        let mut fds = [rustix::event::PollFd::new(
            &one_too_many,
            rustix::event::PollFlags::RDHUP,
        )];
        assert_eq!(rustix::event::poll(&mut fds, None), Ok(1));
    }
    assert_eq!((waiting(&daemon), waits(&daemon)), (MOST, MOST));
    let lines = daemon.log().lines().count();
    assert!(lines < 60, "{lines} lines");
    begin(&memory, &mut its_rings, 1);
    judge(&memory, &mut its_rings, 1);
    // The second leaves while it waits; the others move up.
    drop(queue.remove(1));
    eventually("one fewer", || waiting(&daemon) == MOST - 1);
    drop(first);
    let connected = |daemon: &Daemon| {
        let kinds = daemon.events();
        kinds.iter().filter(|k| *k == "front-end-connected").count()
    };
    for (place, stream) in queue.into_iter().enumerate() {
        eventually("the next is served", || connected(&daemon) == 2 + place);
        assert_eq!(waiting(&daemon), MOST - 2 - place);
        drop(stream);
    }
    eventually("all have left", || !daemon.status().views[0].attached);
    let (last, mut rings) = guest(&daemon, &memory);
    begin(&memory, &mut rings, 2);
    judge(&memory, &mut rings, 2);
    drop(last);
    daemon.end(0..2, 2);
}

#[test]
fn a_stop_with_front_ends_that_wait_is_clean() {
    let mut daemon = Daemon::start();
    let memory = Memory::flat(MIB);
    let (first, mut its_rings) = guest(&daemon, &memory);
    let others = [speak(&daemon), speak(&daemon)];
    eventually("both wait", || waiting(&daemon) == 2);
    begin(&memory, &mut its_rings, 4);
    judge(&memory, &mut its_rings, 4);
    daemon.terminate();
    drop((first, others));
}
