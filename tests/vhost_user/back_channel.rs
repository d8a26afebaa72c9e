//! What the back end tells its front end first: a new size.

use std::io::Read;
use std::os::unix::net::UnixStream;

use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserProtocolFeatures};

use crate::raw::{FLUSH, PROTOCOL, Raw, VERSION_1};
use crate::{SECTORS, Served, eventually, serve};

const OUT: u32 = 1;

fn connect(served: &Served) -> Raw {
    Raw::connect(&served.path, VERSION_1 | PROTOCOL | FLUSH)
}

/// QEMU answers such a message with GET_CONFIG, and its guest sees the new size.
#[test]
fn a_front_end_with_a_back_channel_is_told_of_a_new_size() {
    let served = serve();
    let mut raw = connect(&served);
    assert!(!served.server.resize(SECTORS + 8), "there is no channel");
    let (mut ours, theirs) = back_channel(&mut raw);
    assert!(served.server.resize(2 * SECTORS));
    let mut message = [0; 12];
    ours.read_exact(&mut message).unwrap();
    let words: Vec<u32> = message
        .chunks(4)
        .map(|word| u32::from_ne_bytes(word.try_into().unwrap()))
        .collect();
    assert_eq!(words, [2, 1, 0], "CONFIG_CHANGE_MSG of version 1, no body");
    let (_, capacity) = raw
        .frontend
        .get_config(0, 8, VhostUserConfigFlags::WRITABLE, &[0; 8])
        .unwrap();
    assert_eq!(capacity, (2 * SECTORS).to_le_bytes());

    // Requests reach the new sectors, which the volume behind this view does not have.
    let mut ring = raw.start(0);
    raw.request(&ring, 0, OUT, 2 * SECTORS, 512);
    raw.offer(&mut ring, &[0]);
    ring.kick.write(1).unwrap();
    raw.wait_used(&ring, 1);
    assert_eq!(raw.status(&ring, 0), 1, "behind the new end");

    // The channel goes with its connection.
    drop(theirs);
    raw.hang_up();
    eventually("it has left", || {
        served.call_log.read().contains(&"detached")
    });
    assert!(!served.server.resize(2 * SECTORS));
    assert_eq!(ours.read(&mut message).unwrap(), 0, "closed");
}

#[test]
fn a_back_channel_that_nobody_reads_holds_nothing_up() {
    let served = serve();
    let mut raw = connect(&served);
    let _kept = back_channel(&mut raw);
    let told = (0..10_000)
        .filter(|_| served.server.resize(SECTORS))
        .count();
    assert!((1..10_000).contains(&told), "{told} of 10,000 messages fit");
    raw.frontend.get_features().unwrap();
    // Another one replaces it.
    let (mut ours, _theirs) = back_channel(&mut raw);
    assert!(served.server.resize(SECTORS));
    ours.read_exact(&mut [0; 12]).unwrap();
}

#[test]
fn a_back_channel_that_is_no_socket_is_not_used() {
    let served = serve();
    let mut raw = connect(&served);
    raw.negotiate(VhostUserProtocolFeatures::BACKEND_REQ);
    let file = tempfile::tempfile().unwrap();
    raw.frontend.set_backend_request_fd(&file).unwrap_err();
    assert!(!served.server.resize(SECTORS));
    assert_eq!(file.metadata().unwrap().len(), 0);
}

fn back_channel(raw: &mut Raw) -> (UnixStream, UnixStream) {
    raw.negotiate(VhostUserProtocolFeatures::BACKEND_REQ);
    let (ours, theirs) = UnixStream::pair().unwrap();
    raw.frontend.set_backend_request_fd(&theirs).unwrap();
    (ours, theirs)
}
