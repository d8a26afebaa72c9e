//! What the log says of a front end: what was negotiated, and memory that is not shared.

use std::fs::File;
use std::os::fd::AsRawFd;

use vhost::{VhostBackend, VhostUserMemoryRegionInfo};

use super::*;
use raw::{FLUSH, PROTOCOL, Raw, VERSION_1};

/// Starts the daemon with a log in a file, at the level of debug messages about front ends.
fn logging() -> World {
    let mut world = World::new();
    let log = File::create(world.path("log")).unwrap();
    let child = world
        .command(&["--socket-path", "a.sock", "--control", "c.sock"])
        .args(["--log-level", "info,snapback::vhost=debug"])
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap();
    world.daemon = Some(child);
    world.until("the daemon answers", |w| w.client().status().is_ok());
    world
}

fn lines(world: &World, with: &str) -> Vec<String> {
    let log = fs::read_to_string(world.path("log")).unwrap();
    let lines = log.lines().filter(|line| line.contains(with));
    lines.map(str::to_owned).collect()
}

#[test]
fn what_was_negotiated_is_in_the_log_once_for_each_session() {
    let world = logging();
    for session in 1..=2 {
        let mut raw = Raw::connect(&world.path("a.sock"), VERSION_1 | FLUSH | PROTOCOL);
        let mut rings = [raw.start(0), raw.start(1)];
        for ring in &mut rings {
            raw.request(ring, 0, 0, 0, 512);
            raw.run(ring, &[0]);
        }
        // The same session goes on.
        raw.set_memory();
        for what in [
            "view origin: features: FLUSH, PROTOCOL_FEATURES, VERSION_1",
            "view origin: protocol features: MQ, REPLY_ACK, CONFIG, INFLIGHT_SHMFD, CONFIGURE_MEM_SLOTS",
            "view origin: memory: 4 MiB at 0x0",
            "view origin: rings so far: queue 0 has 16 entries; without an in-flight region",
        ] {
            let found = lines(&world, what).len();
            assert_eq!(found, session, "{what}: {:?}", lines(&world, "view origin"));
        }
        assert!(lines(&world, "queue 1 runs, with 16 entries").len() >= session);
        drop(raw);
        world.until("it has left", |w| !w.attached());
    }
    assert_eq!(lines(&world, "share=on"), [""; 0]);
}

fn hint(world: &World) -> Option<String> {
    let status = world.client().status().unwrap();
    status.views.into_iter().find_map(|view| view.hint)
}

/// The front end's memory has content, as that of a file has; but the guest writes to a copy.
#[test]
fn kicks_without_requests_ask_for_shared_memory_and_idle_rings_do_not() {
    let world = logging();
    let features = VERSION_1 | FLUSH | PROTOCOL;
    let mut raw = Raw::connect(&world.path("a.sock"), features);
    raw.start(0);
    // An idle ring, started again and again, as by a guest that is paused; each time with the one
    // kick that front ends make then.
    for _ in 0..5 {
        let idle = raw.start(1);
        idle.kick.write(1).unwrap();
        std::thread::sleep(Duration::from_millis(5));
        raw.stop(1);
    }
    assert_eq!(hint(&world), None);
    // Once there was a request, any kicks may follow.
    let mut ring = raw.start(2);
    raw.request(&ring, 0, 0, 0, 512);
    raw.run(&mut ring, &[0]);
    let idle = raw.start(3);
    for _ in 0..5 {
        idle.kick.write(1).unwrap();
        ring.kick.write(1).unwrap();
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(hint(&world), None);
    assert_eq!(lines(&world, "share=on"), [""; 0]);
    drop(raw);
    world.until("it has left", |w| !w.attached());

    // Of the next front end nothing is known.
    let mut raw = Raw::connect(&world.path("a.sock"), features);
    let ring = raw.start(0);
    // Two kicks at once may be seen as one.
    world.until("the status asks", |w| {
        ring.kick.write(1).unwrap();
        hint(w).is_some_and(|hint| hint.contains("share=on"))
    });
    let asked = "its ring is empty here";
    world.until("so does the log", |w| !lines(w, asked).is_empty());
    let asked = lines(&world, asked);
    assert_eq!(asked.len(), 1, "{asked:?}");
    assert!(asked[0].contains("is share=on missing"), "{asked:?}");
}

/// A guest whose memory is private to QEMU writes its rings where the daemon does not see them.
#[test]
fn memory_that_is_not_shared_is_asked_for() {
    let world = logging();
    let open = || Raw::connect_only(&world.path("a.sock"), VERSION_1 | PROTOCOL);
    let mut raw = open();
    let empty =
        File::from(rustix::fs::memfd_create("empty", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    empty.set_len(raw::MEMORY as u64).unwrap();
    let elsewhere = VhostUserMemoryRegionInfo {
        mmap_handle: empty.as_raw_fd(),
        ..raw.region()
    };
    raw.frontend.set_mem_table(&[elsewhere]).unwrap();
    raw.start(0);
    world.until("the log asks", |w| {
        lines(w, "nobody has written")
            .iter()
            .any(|l| l.contains("share=on"))
    });
    let mut ring = raw.start(1);
    world.until("so does the status", |w| {
        hint(w).is_some_and(|hint| hint.contains("share=on"))
    });
    for _ in 0..4 {
        ring.kick.write(1).unwrap();
        std::thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(lines(&world, "share=on").len(), 1);
    // It was a mistake.
    raw.set_memory();
    raw.request(&ring, 0, 0, 0, 512);
    raw.run(&mut ring, &[0]);
    assert_eq!(hint(&world), None);
    drop(raw);

    // Parts that are not shared are not passed, so that rings are nowhere.
    let raw = open();
    let ring = raw.ring(0);
    let small = VhostUserMemoryRegionInfo {
        memory_size: 4096,
        ..raw.region()
    };
    raw.frontend.set_mem_table(&[small]).unwrap();
    raw.frontend.set_vring_num(0, 16).unwrap();
    let far = vhost::VringConfigData {
        queue_max_size: 16,
        queue_size: 16,
        flags: 0,
        desc_table_addr: raw.host(ring.base),
        used_ring_addr: raw.host(ring.base + raw::USED),
        avail_ring_addr: raw.host(ring.base + raw::AVAIL),
        log_addr: None,
    };
    assert!(raw.frontend.set_vring_addr(0, &far).is_err());
    world.until("the log asks", |w| {
        lines(w, "is not in guest memory")
            .iter()
            .any(|l| l.contains("share=on"))
    });

    drop(raw);

    // What is no memory at all is refused.
    let raw = open();
    let (pipe, _) = std::io::pipe().unwrap();
    let wrong = VhostUserMemoryRegionInfo {
        mmap_handle: pipe.as_raw_fd(),
        ..raw.region()
    };
    assert!(raw.frontend.set_mem_table(&[wrong]).is_err());
    world.until("the log asks", |w| {
        lines(w, "is backed by a pipe")
            .iter()
            .any(|l| l.contains("share=on"))
    });
}
