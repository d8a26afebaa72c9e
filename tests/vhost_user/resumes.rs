//! What a back end leaves when it stops or loses its front end, and how the next one
//! goes on.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::sync::atomic::Ordering;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserInflight;
use vm_memory::{Bytes, GuestAddress};

use crate::raw::{AVAIL, FLUSH, PROTOCOL, Raw, Ring, SIZE, VERSION_1};
use crate::{Served, eventually, has_hung_up, serve};

const OUT: u32 = 1;
const PLAIN: u64 = VERSION_1 | PROTOCOL | FLUSH;

/// Writes of three sectors are under way, and will be until `held` is 0.
fn three_writes_under_way(served: &Served, raw: &mut Raw) -> Ring {
    let mut ring = raw.set_up(0, 0);
    raw.enable(&ring, true);
    served.volume.held.store(1, Ordering::SeqCst);
    for head in [0, 3, 6] {
        raw.request(&ring, head, OUT, u64::from(head), 4096);
    }
    raw.offer(&mut ring, &[6, 0, 3]);
    ring.kick.write(1).unwrap();
    eventually("the requests are taken", || {
        served.volume.submitted.load(Ordering::SeqCst) == 3
    });
    ring
}

/// The front end leaves, and the requests end after the queue has noticed that. (What
/// ends before it has noticed is told to whoever may still look.)
fn hang_up_unheard(served: &Served, raw: &mut Raw) {
    raw.hang_up();
    eventually("the queue has noticed", || {
        served.volume.abandoned.load(Ordering::SeqCst) == 1
    });
    served.volume.held.store(0, Ordering::SeqCst);
}

/// QEMU takes the used index as the ring's new base when the connection ends; what
/// was published after that was done a second time, or overwrote what it belonged to.
#[test]
fn a_stop_publishes_everything_before_it_hangs_up() {
    let served = serve();
    let mut raw = Raw::connect(&served.path, PLAIN);
    let ring = three_writes_under_way(&served, &mut raw);
    served.server.request_stop();
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert!(!has_hung_up(&raw.frontend), "before the requests ended");
    served.volume.held.store(0, Ordering::SeqCst);
    eventually("the view hangs up", || has_hung_up(&raw.frontend));
    assert_eq!(raw.used_index(&ring), 3);
}

/// A stop ended a front end's message by shutting the connection down, in both
/// directions; now it waits for whole messages only.
#[test]
fn a_front_end_in_the_middle_of_a_message_holds_no_stop_up() {
    let served = serve();
    let stream = std::os::unix::net::UnixStream::connect(&served.path).unwrap();
    // SET_OWNER has no payload; this header announces one that never comes.
    let header = [3_u32, 1, 64].map(u32::to_ne_bytes).concat();
    std::io::Write::write_all(&mut &stream, &header).unwrap();
    eventually("it is connected", || served.call_log.read() == ["attached"]);
    // Less than the message's own patience.
    let limit = std::time::Duration::from_secs(4);
    crate::socket::quicker(limit, "stopping in a message", || served.server.stop());
}

/// A front end that died while it sent a message was taken for one that stalls, and
/// what ended in those seconds was published behind its back.
#[test]
fn a_front_end_that_leaves_in_the_middle_of_a_message_has_left() {
    let served = serve();
    let mut raw = Raw::connect(&served.path, PLAIN);
    let ring = three_writes_under_way(&served, &mut raw);
    // SET_OWNER has no payload; this header announces one that never comes.
    let header = [3_u32, 1, 64].map(u32::to_ne_bytes).concat();
    // SAFETY: the descriptor lives as long as the front end.
    let fd = unsafe { BorrowedFd::borrow_raw(raw.frontend.as_raw_fd()) };
    rustix::io::write(fd, &header).unwrap();
    hang_up_unheard(&served, &mut raw);
    eventually("the session ends", || {
        served.call_log.read().ends_with(&["detached"])
    });
    assert_eq!(raw.used_index(&ring), 0);
}

/// The front end looks at the used index when it hangs up, and goes on there, or at
/// the available index that it knows: either way the requests are done, and once.
#[test]
fn nothing_is_published_after_the_front_end_hung_up_and_the_next_session_does_it() {
    for told in [0, 3] {
        let served = serve();
        let mut raw = Raw::connect(&served.path, PLAIN);
        let ring = three_writes_under_way(&served, &mut raw);
        hang_up_unheard(&served, &mut raw);
        eventually("the session ends", || {
            served.call_log.read().ends_with(&["detached"])
        });
        assert_eq!(raw.used_index(&ring), 0, "published behind its back");

        raw.reconnect(&served.path, PLAIN);
        raw.set_up_again(&ring, told);
        raw.enable(&ring, true);
        raw.wait_used(&ring, 3);
        let heads = [0, 1, 2].map(|at| raw.used(&ring, at));
        assert_eq!(heads, [(6, 1), (0, 1), (3, 1)], "told to go on at {told}");
    }
}

#[test]
fn a_region_is_given_filled_and_taken_back() {
    taken_back(0);
}

#[test]
fn requests_that_are_replayed_wait_for_memory_too() {
    taken_back(64 << 20);
}

/// QEMU asks for a region for its option `queue-size`, and its guest's firmware set up a
/// ring of twice the size: the ring did not start, and the guest did not boot.
#[test]
fn a_ring_may_be_larger_than_the_region_was_asked_for() {
    let served = serve();
    let mut raw = Raw::connect(&served.path, PLAIN);
    let wish = VhostUserInflight::new(0, 0, 1, SIZE / 2);
    let (message, file) = raw.frontend.get_inflight_fd(&wish).unwrap();
    let send = |raw: &mut Raw| {
        let fd = file.as_raw_fd();
        raw.frontend.set_inflight_fd(&message, fd).unwrap();
    };
    send(&mut raw);
    let ring = three_writes_under_way(&served, &mut raw);
    hang_up_unheard(&served, &mut raw);
    eventually("the session ends", || {
        served.call_log.read().ends_with(&["detached"])
    });
    raw.reconnect(&served.path, PLAIN);
    send(&mut raw);
    raw.set_up_again(&ring, 3);
    raw.enable(&ring, true);
    raw.wait_used(&ring, 3);
    let mut heads = [0, 1, 2].map(|at| raw.used(&ring, at).0);
    heads.sort_unstable();
    assert_eq!(heads, [0, 3, 6], "what was under way is done again");
}

/// Another back end has made the region, with the size that was asked for.
#[test]
fn a_ring_that_is_larger_than_its_region_runs_without_it() {
    let served = serve();
    let mut raw = Raw::connect(&served.path, PLAIN);
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = File::from(memfd_create("region", flags).unwrap());
    file.set_len(4096).unwrap();
    fcntl_add_seals(&file, SealFlags::SHRINK).unwrap();
    let message = VhostUserInflight::new(4096, 0, 1, SIZE / 2);
    let fd = file.as_raw_fd();
    raw.frontend.set_inflight_fd(&message, fd).unwrap();
    let mut ring = raw.start(0);
    raw.request(&ring, 6, OUT, 0, 512);
    raw.run(&mut ring, &[6]);
    assert_eq!(raw.status(&ring, 6), 0);
}

/// When the region is taken back, each request counts for `weight` bytes.
fn taken_back(weight: u64) {
    let served = serve();
    let mut raw = Raw::connect(&served.path, PLAIN);
    let wish = VhostUserInflight::new(0, 0, 2, SIZE);
    let (message, file) = raw.frontend.get_inflight_fd(&wish).unwrap();
    assert_eq!((message.num_queues, message.queue_size), (2, SIZE));
    raw.frontend
        .set_inflight_fd(&message, file.as_raw_fd())
        .unwrap();
    let ring = three_writes_under_way(&served, &mut raw);
    let in_flight = |head: u16| {
        let mut byte = [0];
        let at = 16 + 16 * u64::from(head);
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut byte, at).unwrap();
        byte[0] == 1
    };
    assert_eq!([0, 3, 6, 1].map(in_flight), [true, true, true, false]);
    hang_up_unheard(&served, &mut raw);
    eventually("the session ends", || {
        served.call_log.read().ends_with(&["detached"])
    });
    assert_eq!([0, 3, 6].map(in_flight), [true; 3], "nobody was told");

    raw.reconnect(&served.path, PLAIN);
    raw.frontend
        .set_inflight_fd(&message, file.as_raw_fd())
        .unwrap();
    served.volume.weight.store(weight, Ordering::SeqCst);
    // What is in the available ring by now is of no use for what is under way.
    let place = GuestAddress(AVAIL + 4);
    raw.memory.write_slice(&[9; 6], place).unwrap();
    raw.set_up_again(&ring, 3);
    raw.enable(&ring, true);
    raw.wait_used(&ring, 3);
    let mut heads = [0, 1, 2].map(|at| raw.used(&ring, at).0);
    heads.sort_unstable();
    assert_eq!(heads, [0, 3, 6]);
    eventually("nothing is in flight", || {
        ![0, 3, 6].iter().any(|h| in_flight(*h))
    });
}

#[test]
fn a_hostile_region_is_refused_and_the_ring_lives_on() {
    let served = serve();
    let mut raw = Raw::connect(&served.path, PLAIN);
    let mut ring = raw.start(0);
    let file = tempfile::tempfile().unwrap();
    file.set_len(1 << 20).unwrap();
    for (queues, size) in [(2, SIZE), (0, SIZE), (9, SIZE), (1, 0), (1, 2048)] {
        let message = VhostUserInflight::new(1 << 20, 0, queues, size);
        let refused = raw.frontend.set_inflight_fd(&message, file.as_raw_fd());
        assert!(refused.is_err(), "{queues} queues of {size}");
    }
    raw.request(&ring, 0, OUT, 0, 512);
    raw.run(&mut ring, &[0]);
    assert_eq!(raw.status(&ring, 0), 0);

    // A request for more than there can be has no answer that says so.
    let wish = VhostUserInflight::new(0, 0, 65535, 65535);
    assert!(raw.frontend.get_inflight_fd(&wish).is_err());
    eventually("the connection ends", || {
        served.call_log.read().ends_with(&["detached"])
    });
}

/// A region with impossible content stops its ring, which reports it; a new one helps.
#[test]
fn a_ring_does_not_start_on_a_region_that_cannot_be_its_own() {
    let served = serve();
    let mut raw = Raw::connect(&served.path, PLAIN);
    let wish = VhostUserInflight::new(0, 0, 1, SIZE);
    let (message, file) = raw.frontend.get_inflight_fd(&wish).unwrap();
    raw.frontend
        .set_inflight_fd(&message, file.as_raw_fd())
        .unwrap();
    // Three are in flight, but the driver has offered one.
    for head in 0..3 {
        let at = 16 + 16 * head;
        std::os::unix::fs::FileExt::write_all_at(&file, &[1], at).unwrap();
    }
    let mut ring = raw.set_up(0, 0);
    raw.request(&ring, 0, OUT, 0, 512);
    raw.offer(&mut ring, &[0]);
    assert!(raw.frontend.set_vring_enable(0, true).is_err());
    assert!(crate::raw::signalled(&ring.err, 5000), "VRING_ERR");

    let (message, file) = raw.frontend.get_inflight_fd(&wish).unwrap();
    raw.frontend
        .set_inflight_fd(&message, file.as_raw_fd())
        .unwrap();
    raw.enable(&ring, true);
    raw.wait_used(&ring, 1);
    assert_eq!(raw.status(&ring, 0), 0);
}
