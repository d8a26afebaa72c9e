//! Logs of dirty pages, and messages about them, that are refused.

use std::os::fd::{AsRawFd, BorrowedFd};

use vhost::vhost_user::VhostUserFrontend;
use vhost::{VhostBackend, VhostUserMemoryRegionInfo};

use crate::dirty_log::{ENOUGH, IN, Log, PAGE, PLAIN, addresses, connect, log_on, used_page};
use crate::raw::{MEMORY, NEXT, Raw, WRITE};
use crate::{Served, eventually, has_hung_up, serve};

/// A front end that comes after another one is served.
fn still_serves(served: &Served) {
    let mut raw = connect(served, PLAIN);
    let mut ring = raw.start(0);
    raw.request(&ring, 0, IN, 0, 512);
    raw.run(&mut ring, &[0]);
    assert_eq!(raw.status(&ring, 0), 0);
}

/// SET_LOG_BASE has no answer that is a refusal, so the session ends.
#[test]
fn a_log_without_a_bit_for_some_page_ends_the_session() {
    let served = serve();
    for len in [1, ENOUGH - 1] {
        let mut raw = connect(&served, PLAIN);
        raw.start(0);
        let log = Log::new(len);
        assert!(raw.frontend.set_log_base(0, Some(log.region())).is_err());
        eventually("it hangs up", || has_hung_up(&raw.frontend));
    }
    // The log covers the memory, but not the ring's log.
    let mut raw = connect(&served, PLAIN);
    let ring = raw.start(0);
    let frontend = raw.frontend.clone();
    let data = addresses(&raw, &ring, Some(MEMORY as u64));
    frontend.set_vring_addr(0, &data).unwrap();
    let log = Log::new(ENOUGH);
    assert!(frontend.set_log_base(0, Some(log.region())).is_err());
    still_serves(&served);
}

#[test]
fn what_the_log_does_not_cover_is_refused_and_the_session_goes_on() {
    let served = serve();
    let mut raw = connect(&served, PLAIN);
    let mut ring = raw.start(0);
    let frontend = raw.frontend.clone();
    let log = Log::new(ENOUGH);
    log_on(&frontend, &raw, &[&ring], &log, PLAIN);
    for bad in [MEMORY as u64, MEMORY as u64 - 100, u64::MAX, u64::MAX - 133] {
        let data = addresses(&raw, &ring, Some(bad));
        assert!(frontend.set_vring_addr(0, &data).is_err(), "{bad:#x}");
    }
    let far = VhostUserMemoryRegionInfo {
        guest_phys_addr: MEMORY as u64 * 8,
        userspace_addr: 1 << 40,
        ..raw.region()
    };
    assert!(raw.frontend.add_mem_region(&far).is_err());
    let both = [raw.region(), far];
    assert!(raw.frontend.set_mem_table(&both).is_err());

    // Hot-plug: first a larger log, then the memory.
    let larger = Log::new(ENOUGH * 9);
    frontend.set_log_base(0, Some(larger.region())).unwrap();
    raw.frontend.add_mem_region(&far).unwrap();
    raw.request(&ring, 0, IN, 0, 512);
    let at = MEMORY as u64 * 8 + 0x20_0000;
    raw.descriptor(&ring, 1, (at, 512, NEXT | WRITE, 2));
    raw.run(&mut ring, &[0]);
    raw.frontend.set_mem_table(&both).unwrap();
    frontend.get_vring_base(0).unwrap();
    let logged = larger.take();
    let status = (raw.header(&ring, 0) + 16) / PAGE;
    assert_eq!(logged, [at / PAGE, status, used_page(&ring)].into());
    assert!(log.take().is_subset(&[used_page(&ring)].into()));
}

/// The log is another file that its front end can shorten under the daemon.
#[test]
fn a_log_that_vanishes_ends_the_session_and_nothing_else() {
    let served = serve();
    let mut raw = connect(&served, PLAIN);
    let mut ring = raw.start(0);
    let log = Log::new(ENOUGH);
    log_on(&raw.frontend.clone(), &raw, &[&ring], &log, PLAIN);
    log.file.set_len(0).unwrap();
    raw.request(&ring, 0, IN, 0, 512);
    raw.offer(&mut ring, &[0]);
    ring.kick.write(1).unwrap();
    eventually("it hangs up", || has_hung_up(&raw.frontend));
    drop(raw);
    still_serves(&served);
}

#[test]
fn a_message_that_was_not_negotiated_ends_the_session() {
    let served = serve();
    // SET_LOG_BASE without LOG_SHMFD, SET_LOG_FD, GET_VRING_BASE_SKIP_DRAIN.
    for request in [6_u32, 7, 45, 4000] {
        let raw = Raw::connect(&served.path, PLAIN);
        let header = [request, 1, 16].map(u32::to_ne_bytes).concat();
        // SAFETY: the descriptor lives as long as the front end.
        let fd = unsafe { BorrowedFd::borrow_raw(raw.frontend.as_raw_fd()) };
        rustix::io::write(fd, &[header, vec![0; 16]].concat()).unwrap();
        eventually("it hangs up", || has_hung_up(&raw.frontend));
    }
    still_serves(&served);
}
