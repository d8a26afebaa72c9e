//! The socket: made, refused, replaced, handed over, stopped.

use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use snapback::vhost::{SocketError, ViewConfig, ViewServer, ViewSocket};

use crate::backend::{CallLog, Volume};
use crate::raw::{FLUSH, PROTOCOL, Raw, VERSION_1};
use crate::yardstick::Yardstick;
use crate::{SECTORS, device, eventually, serve};

fn start(socket: ViewSocket) -> ViewServer {
    let volume = Volume::new(SECTORS);
    let call_log = CallLog::of(&volume);
    let config = ViewConfig {
        name: "test".into(),
        device: device(),
        max_queues: 1,
        write_through: false,
        any_memory: false,
    };
    ViewServer::start(socket, config, volume, call_log).unwrap()
}

fn quick(what: &str, act: impl FnOnce()) {
    quicker(Duration::from_secs(1), what, act);
}

/// Not of the time in which the machine is busy.
pub fn quicker(limit: Duration, what: &str, act: impl FnOnce()) {
    let yardstick = Yardstick::start();
    let begin = Instant::now();
    act();
    let took = begin.elapsed();
    let busy = yardstick.end().between(begin, begin + took);
    assert!(
        took < limit + busy,
        "{what} took {took:?}; the machine was busy for {busy:?}"
    );
}

fn answers(path: &Path) -> bool {
    Raw::connect_only(path, VERSION_1).host(0) != 0
}

#[test]
fn the_socket_is_for_its_owner_alone_and_goes_with_the_view() {
    let served = serve();
    let mode = fs::metadata(&served.path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    quick("stopping without a front end", || served.server.stop());
    assert!(!served.path.exists());
}

#[test]
fn stopping_is_quick_with_an_idle_front_end() {
    let served = serve();
    let mut raw = Raw::connect(&served.path, VERSION_1 | PROTOCOL | FLUSH);
    raw.start(0);
    eventually("the ring runs", || {
        served.volume.ports.load(Ordering::SeqCst) == 1
    });
    quick("stopping with an idle front end", || served.server.stop());
    assert_eq!(served.volume.ports.load(Ordering::SeqCst), 0);
    assert_eq!(served.call_log.read(), ["attached", "firmware", "detached"]);
}

#[test]
fn stopping_is_quick_with_half_a_message() {
    for part in [&[1_u8, 0, 0][..], &[1, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0]] {
        let served = serve();
        let mut stream = UnixStream::connect(&served.path).unwrap();
        stream.write_all(part).unwrap();
        eventually("connected", || !served.call_log.read().is_empty());
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(
            served.call_log.read(),
            ["attached"],
            "it waits for the rest"
        );
        quick("stopping with half a message", || served.server.stop());
    }
}

#[test]
fn garbage_ends_the_connection_and_the_next_is_served() {
    let served = serve();
    let mut stream = UnixStream::connect(&served.path).unwrap();
    stream.write_all(&[0xff; 64]).unwrap();
    eventually("closed", || served.call_log.read().ends_with(&["detached"]));
    assert!(answers(&served.path));
}

#[test]
fn a_listener_that_lives_is_refused_by_name() {
    let served = serve();
    let error = ViewSocket::bind(&served.path).unwrap_err();
    assert!(
        matches!(&error, SocketError::Own { path } if *path == served.path),
        "{error}"
    );
    assert!(error.to_string().contains("view.sock is in use"), "{error}");
    assert!(answers(&served.path), "and it still answers");
}

#[test]
fn a_stale_socket_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.sock");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let server = start(ViewSocket::bind(&path).unwrap());
    assert!(answers(&path));
    server.stop();
}

#[test]
fn what_is_not_a_socket_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("precious");
    fs::write(&file, "data").unwrap();
    let link = folder.path().join("link");
    std::os::unix::fs::symlink(&file, &link).unwrap();
    for path in [file.as_path(), link.as_path(), folder.path()] {
        let error = ViewSocket::bind(path).unwrap_err();
        assert!(matches!(error, SocketError::NotASocket { .. }), "{error}");
    }
    assert_eq!(fs::read(&file).unwrap(), b"data");
}

#[test]
fn paths_that_cannot_be_are_named_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let missing = ViewSocket::bind(&folder.path().join("none/a.sock")).unwrap_err();
    assert!(missing.to_string().contains("No such file"), "{missing}");
    let long = ViewSocket::bind(&folder.path().join("x".repeat(108))).unwrap_err();
    assert!(long.to_string().contains("at most 107 bytes"), "{long}");
}

#[test]
fn a_socket_that_replaced_ours_is_not_removed() {
    let served = serve();
    fs::remove_file(&served.path).unwrap();
    let other = UnixListener::bind(&served.path).unwrap();
    served.server.stop();
    assert!(served.path.exists());
    drop(other);
}

#[test]
fn a_listening_descriptor_is_served_and_its_file_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let server = start(ViewSocket::from_fd(OwnedFd::from(listener)).unwrap());
    assert!(answers(&path));
    assert!(answers(&path), "again");
    server.stop();
    assert!(path.exists());
}

#[test]
fn a_connected_descriptor_is_served_once() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = start(ViewSocket::from_fd(OwnedFd::from(theirs)).unwrap());
    let frontend = vhost::vhost_user::Frontend::from_stream(ours, 1);
    assert_ne!(vhost::VhostBackend::get_features(&frontend).unwrap(), 0);
    assert!(!server.is_finished());
    drop(frontend);
    eventually("it ends with its front end", || server.is_finished());
}

#[test]
fn descriptors_that_are_no_unix_streams_are_refused() {
    let file = tempfile::tempfile().unwrap();
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let datagram = std::os::unix::net::UnixDatagram::unbound().unwrap();
    for fd in [
        OwnedFd::from(file),
        OwnedFd::from(tcp),
        OwnedFd::from(datagram),
    ] {
        let error = ViewSocket::from_fd(fd).unwrap_err();
        assert!(matches!(error, SocketError::Descriptor { .. }), "{error}");
    }
}
