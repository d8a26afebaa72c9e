use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc as channel;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::Value;

use super::*;
use crate::control::access::Access;
use crate::control::api::ErrorKind;
use crate::control::events::{EventKind, EventLog, KEPT_MAX};
use crate::control::server::tests::{FakeVolume, Served, raw, refusal, request, serve_fake};
use crate::control::verbs::Verbs;
use crate::control::{Client, ClientError, ControlServer, ControlSocket, routes};

/// Nothing in here takes this long.
const LONG: Duration = Duration::from_secs(60);

fn overflow(log: &EventLog, name: &str) {
    log.publish(Some(name), EventKind::SnapshotOverflow);
}

/// More than fits between a follower and the log: half a megabyte and more each
/// hundred.
fn flood(log: &EventLog, count: usize) {
    for _ in 0..count {
        let error = "x".repeat(8 << 10);
        log.publish(Some("s"), EventKind::RollbackFailed { error });
    }
}

fn seq(event: &Value) -> u64 {
    event["seq"].as_u64().unwrap()
}

/// Follows on a thread of its own.
fn follow(socket: &Path, since: u64) -> channel::Receiver<Result<Value, String>> {
    let (send, events) = channel::channel();
    let client = Client::new(socket).unwrap();
    std::thread::spawn(move || {
        let told = |event| send.send(Ok(event)).is_ok();
        let ended = client.follow_events(since, None, told);
        let _ = send.send(Err(format!("{ended:?}")));
    });
    events
}

/// A follower that has read the head of its answer, and reads no more.
fn idle_follower(socket: &Path) -> (String, BufReader<UnixStream>) {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    let bytes = request("GET", "/v1/events?follow=true", "");
    stream.write_all(&bytes).unwrap();
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    reader.read_line(&mut head).unwrap();
    (head, reader)
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < LONG, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_follower_gets_what_there_is_then_what_comes_then_the_last_words() {
    let served = serve_fake();
    let log = &served.volume.events;
    overflow(log, "a");
    overflow(log, "b");
    let events = follow(&served.socket, 1);
    let next = || events.recv_timeout(LONG).unwrap();
    assert_eq!(next().unwrap()["snapshot"], "b");
    for number in 3..300 {
        overflow(log, "c");
        assert_eq!(seq(&next().unwrap()), number, "told while it is followed");
    }
    // Others are served meanwhile.
    Client::new(&served.socket).unwrap().status().unwrap();
    for _ in 0..100 {
        overflow(log, "d");
    }
    log.publish(None, EventKind::Stopping);
    served.server.stop();
    for number in 300..400 {
        assert_eq!(seq(&next().unwrap()), number);
    }
    assert_eq!(next().unwrap()["kind"], "stopping");
    assert_eq!(next().unwrap_err(), "Ok(true)", "the daemon ended in order");
}

#[test]
fn a_page_has_what_there_is_and_where_to_go_on() {
    let served = serve_fake();
    let log = &served.volume.events;
    let client = Client::new(&served.socket).unwrap();
    let empty = client.events(0, None).unwrap();
    assert_eq!((empty.newest, empty.events.len()), (0, 0));
    overflow(log, "a");
    overflow(log, "b");
    let page = client.events(1, None).unwrap();
    assert_eq!((page.newest, page.events.len()), (2, 1));
    assert_eq!(page.instance, log.instance());
    assert_eq!(client.events(2, None).unwrap().events.len(), 0);
    // Numbers of another daemon mean nothing here.
    assert_eq!(client.events(3, None).unwrap().events.len(), 2);
    assert_eq!(client.events(2, Some("other")).unwrap().events.len(), 2);
    assert_eq!(
        client.events(2, Some(log.instance())).unwrap().events.len(),
        0
    );
    let (status, error) = refusal(&raw(
        &served.socket,
        &request("GET", "/v1/events?from=1", ""),
    ));
    assert_eq!((&status[..], error.kind), ("400", ErrorKind::BadRequest));
}

#[test]
fn who_does_not_read_holds_nobody_up_and_is_told_what_he_missed() {
    let served = serve_fake();
    let log = &served.volume.events;
    let (head, reader) = idle_follower(&served.socket);
    assert!(head.contains(" 200 "), "{head}");
    // Far more than log, socket and buffers hold together.
    let events = 4 * KEPT_MAX;
    flood(log, events);
    let client = Client::new(&served.socket).unwrap();
    client.status().unwrap();
    log.publish(None, EventKind::SnapshotRemoved);
    let (mut seen, mut lost) = (0, 0);
    for line in reader.lines().map(Result::unwrap) {
        // Between the lines are the sizes of chunks.
        let Ok(event) = serde_json::from_str::<Value>(&line) else {
            continue;
        };
        if !event.is_object() {
            continue;
        }
        if event["kind"] == "lost" {
            lost += event["count"].as_u64().unwrap();
            assert_eq!(seq(&event), seen + event["count"].as_u64().unwrap());
        } else {
            assert_eq!(seq(&event), seen + 1, "a hole that was not told");
        }
        seen = seq(&event);
        if event["kind"] == "snapshot-removed" {
            break;
        }
    }
    assert_eq!(seen, events as u64 + 1);
    assert!(lost > 0);
}

#[test]
fn who_does_not_read_at_all_is_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("c.sock");
    let volume = Arc::new(FakeVolume::default());
    let bound = ControlSocket::bind(&socket).unwrap();
    let patience = Duration::from_millis(100);
    let context = routes::Context {
        volume: volume.clone(),
        followers: Followers::new(patience),
        verbs: Verbs::default(),
        access: Access::default(),
    };
    let _server = ControlServer::start_with(bound, context).unwrap();
    let (_, mut reader) = idle_follower(&socket);
    // One that owes nothing is left in peace.
    let quiet = follow(&socket, 0);
    std::thread::sleep(3 * patience);
    overflow(&volume.events, "a");
    let told = quiet.recv_timeout(LONG).unwrap().unwrap();
    assert_eq!(told["snapshot"], "a");

    flood(&volume.events, KEPT_MAX);
    let client = Client::new(&socket).unwrap();
    client.status().unwrap();
    until("it is cut off", || {
        let mut fds = [PollFd::new(reader.get_ref(), PollFlags::empty())];
        poll(&mut fds, Some(&Timespec::default())).unwrap();
        !fds[0].revents().is_empty()
    });
    let mut all = Vec::new();
    let _ = reader.read_to_end(&mut all);
    assert!(!all.ends_with(b"0\r\n\r\n"), "in the middle");
    assert!(all.len() < 4 << 20, "{} bytes were kept for it", all.len());
}

/// As clients do that say at once that they send no more: the end of their stay is then no end of
/// their data.
#[test]
fn a_follower_that_stopped_sending_and_then_leaves_frees_its_place() {
    let served = serve_fake();
    let half_closed = || {
        let mut stream = UnixStream::connect(&served.socket).unwrap();
        // A body that never comes keeps the server from looking for more.
        let head = "GET /v1/events?follow=true HTTP/1.1\r\nhost: d\r\ncontent-length: 1\r\n\r\n";
        stream.write_all(head.as_bytes()).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = String::new();
        BufReader::new(&stream).read_line(&mut answer).unwrap();
        assert!(answer.contains(" 200 "), "{answer}");
        stream
    };
    let all: Vec<_> = (0..FOLLOWERS_MAX).map(|_| half_closed()).collect();
    let (head, refused) = idle_follower(&served.socket);
    assert!(head.contains(" 409 "), "{head}");
    drop((all, refused));
    until("a place is free again", || {
        idle_follower(&served.socket).0.contains(" 200 ")
    });
}

#[test]
fn followers_leave_places_for_others_and_free_their_own_when_they_go() {
    let served = serve_fake();
    let Served { socket, volume, .. } = &served;
    let mut followers: Vec<_> = (0..FOLLOWERS_MAX).map(|_| idle_follower(socket)).collect();
    assert!(followers.iter().all(|(head, _)| head.contains(" 200 ")));
    let client = Client::new(socket).unwrap();
    match client.follow_events(0, None, |_| true) {
        Err(ClientError::Refused(error)) => {
            assert_eq!(error.kind, ErrorKind::Conflict);
            assert!(error.message.contains("16"), "{error}");
        }
        other => panic!("{other:?}"),
    }
    client.status().unwrap();
    client.events(0, None).unwrap();
    // Noticed although nothing happens.
    followers.clear();
    until("their places are free again", || {
        followers = (0..FOLLOWERS_MAX).map(|_| idle_follower(socket)).collect();
        let all = followers.iter().all(|(head, _)| head.contains(" 200 "));
        if !all {
            followers.clear();
        }
        all
    });
    overflow(&volume.events, "a");
}
