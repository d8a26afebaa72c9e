//! Descriptors that come with requests: what is refused, and that none stays.

use std::fs::{self, File};
use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::world::{LONG, World};

/// Connects, and sends `bytes` with descriptors.
fn send(world: &World, bytes: &str, all: &[BorrowedFd<'_>]) -> UnixStream {
    let stream = UnixStream::connect(world.path("c.sock")).unwrap();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(all.is_empty() || control.push(SendAncillaryMessage::ScmRights(all)));
    let parts = [IoSlice::new(bytes.as_bytes())];
    sendmsg(&stream, &parts, &mut control, SendFlags::empty()).unwrap();
    stream
}

/// The answer to one request.
fn ask(world: &World, head: &str, body: &str, all: &[BorrowedFd<'_>]) -> String {
    let length = body.len();
    let text =
        format!("{head} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n\r\n{body}");
    let mut stream = send(world, &text, all);
    stream.set_read_timeout(Some(LONG)).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn open(world: &World) -> usize {
    fs::read_dir(format!("/proc/{}/fd", world.pid()))
        .unwrap()
        .count()
}

#[test]
fn descriptors_that_are_no_cow_are_refused_and_none_stays() {
    let elsewhere = tempfile::tempdir().unwrap();
    let at = |name: &str| elsewhere.path().join(name);
    let mut world = World::new();
    world.start(&[]);
    let before = world.descriptors_at_rest();
    for name in ["cow", "other"] {
        fs::write(at(name), vec![0; 1 << 20]).unwrap();
    }
    let body = format!("{{\"cow\":{:?}}}", at("cow"));
    let put = "PUT /v1/snapshots/s1";
    let flags =
        |flags| rustix::fs::open(at("cow"), flags | OFlags::CLOEXEC, Mode::empty()).unwrap();
    let right = File::from(flags(OFlags::RDWR));
    let (pipe, _end) = rustix::pipe::pipe().unwrap();
    let reading = flags(OFlags::RDONLY);
    let writing = flags(OFlags::WRONLY);
    let place = flags(OFlags::PATH);
    let folder = File::open(elsewhere.path()).unwrap();
    let other = File::options()
        .read(true)
        .write(true)
        .open(at("other"))
        .unwrap();
    let socket = UnixStream::pair().unwrap().0;
    let null = File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .unwrap();
    for (what, descriptor, words) in [
        ("a folder", folder.as_fd(), "cannot be read and written"),
        ("a pipe", pipe.as_fd(), "cannot be read and written"),
        ("for reading", reading.as_fd(), "cannot be read and written"),
        ("for writing", writing.as_fd(), "cannot be read and written"),
        ("no open file", place.as_fd(), "cannot be read and written"),
        (
            "a socket",
            socket.as_fd(),
            "is of no file and no block device",
        ),
        (
            "a terminal",
            null.as_fd(),
            "is of no file and no block device",
        ),
        ("another file", other.as_fd(), "is of another file"),
    ] {
        let answer = ask(&world, put, &body, &[descriptor]);
        assert!(answer.starts_with("HTTP/1.1 400 "), "{what}: {answer}");
        assert!(answer.contains(words), "{what}: {answer}");
    }
    for count in [2, 3, 8] {
        let answer = ask(&world, put, &body, &vec![right.as_fd(); count]);
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
        assert!(answer.contains("more than one descriptor"), "{answer}");
    }
    let rate = ask(
        &world,
        "PUT /v1/merge/rate",
        "{\"rate\":0}",
        &[right.as_fd()],
    );
    assert!(rate.contains("with a request that names no COW"), "{rate}");
    let status = ask(&world, "GET /v1/status", "", &[right.as_fd()]);
    assert!(status.starts_with("HTTP/1.1 200 "), "{status}");
    let deleted = at("deleted");
    let gone = File::create_new(&deleted).unwrap();
    fs::remove_file(&deleted).unwrap();
    let of_gone = format!("{{\"cow\":{deleted:?},\"size\":1048576}}");
    let answer = ask(&world, put, &of_gone, &[gone.as_fd()]);
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    world.until("all are closed", |w| open(w) <= before);
    assert!(world.client().status().unwrap().snapshots.is_empty());
    // The right one, with which the next start goes on.
    let answer = ask(&world, put, &body, &[right.as_fd()]);
    assert!(answer.starts_with("HTTP/1.1 204 "), "{answer}");
    world.terminate();
    drop(right);
    world.start(&[]);
    assert_eq!(world.client().status().unwrap().snapshots.len(), 1);
}

#[test]
fn descriptors_without_a_request_are_closed_when_their_connection_ends() {
    let mut world = World::new();
    world.start(&[]);
    let before = world.descriptors_at_rest();
    let file = File::open(world.path("disk.img")).unwrap();
    let all = [file.as_fd(); 8];
    // As many as are served at a time, and more.
    let start = Instant::now();
    let waiting: Vec<UnixStream> = (0..40)
        .map(|i| send(&world, "P", &all[..1 + i % 2 * 7]))
        .collect();
    world.until("some are there", |w| open(w) > before + 20);
    // For each connection there are its own descriptors, and at most one more that came.
    assert!(open(&world) <= before + 32 * 3, "{} {before}", open(&world));
    if start.elapsed() < Duration::from_secs(5) {
        drop(waiting);
        world.until("all are closed", |w| open(w) <= before);
    }
    // A client that only waits is cut off in time.
    let _waits = send(&world, "P", &all[..1]);
    world.until("it is there", |w| open(w) > before);
    world.until("it is closed", |w| open(w) <= before);
}
