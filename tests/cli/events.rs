//! `snapback events`, in a pipe as scripts have it.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use snapback::control::events::EventKind;

use super::*;

/// A `snapback events --follow` and what it prints.
struct Follower {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Follower {
    fn start(socket: &str, more: &[&str]) -> Self {
        let mut child = Command::new(assert_cmd::cargo::cargo_bin!("snapback"))
            .args(["events", "--follow", "--control", socket])
            .args(more)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    /// The next line; the test hangs if it is kept in some buffer.
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line
    }

    /// Ends it, and returns its stderr.
    fn kill(mut self) -> String {
        self.child.kill().unwrap();
        self.end().1
    }

    /// How it ended by itself, and its stderr.
    fn end(mut self) -> (ExitStatus, String) {
        drop(self.lines);
        let start = Instant::now();
        while self.child.try_wait().unwrap().is_none() {
            assert!(start.elapsed() < Duration::from_secs(60), "it goes on");
            std::thread::sleep(Duration::from_millis(5));
        }
        let output = self.child.wait_with_output().unwrap();
        (output.status, String::from_utf8(output.stderr).unwrap())
    }
}

fn overflow(daemon: &Daemon, name: &str) {
    let log = daemon.notes.events();
    log.publish(Some(name), EventKind::SnapshotOverflow);
}

#[test]
fn events_are_printed_as_lines_and_as_json() {
    let daemon = Daemon::start(vec![idle()]);
    assert_eq!(daemon.done(&["events"]), "");
    overflow(&daemon, "a");
    daemon.notes.events().publish(
        Some("a"),
        EventKind::SnapshotGrown {
            size: (1 << 30) + 512,
        },
    );
    let human = daemon.done(&["events"]);
    let lines: Vec<&str> = human.lines().collect();
    assert_eq!(lines.len(), 2, "{human}");
    assert!(
        lines[0].starts_with("   1  2") && lines[0].contains("Z  a: the COW is full"),
        "{human}"
    );
    let since = daemon.done(&["events", "--since", "1", "--json"]);
    let event: Value = serde_json::from_str(since.trim_end()).unwrap();
    assert_eq!(event["kind"], "snapshot-grown");
    assert_eq!(event["seq"], 2);
    assert_eq!(event["size"], (1_u64 << 30) + 512);
    assert_eq!(event["instance"], daemon.notes.events().instance());
    assert_eq!(daemon.done(&["events", "--since", "2"]), "");
    // Of another daemon: everything is news.
    let all = daemon.done(&["events", "--since", "7", "--json"]);
    assert_eq!(all.lines().count(), 2);
}

#[test]
fn a_follower_prints_each_event_at_once_and_ends_well_with_the_daemon() {
    let daemon = Daemon::start(vec![idle()]);
    overflow(&daemon, "s0");
    let mut follower = Follower::start(&daemon.socket, &["--json", "--no-reconnect"]);
    for number in 1..=20 {
        let event: Value = serde_json::from_str(&follower.line()).unwrap();
        assert_eq!(event["seq"], number);
        overflow(&daemon, "s1");
    }
    drop(daemon);
    assert!(follower.line().contains("\"seq\":21"));
    let (status, error) = follower.end();
    assert_eq!((status.code(), &error[..]), (Some(0), ""));
}

#[test]
fn a_follower_whose_reader_goes_ends_quietly_although_nothing_happens() {
    let daemon = Daemon::start(vec![idle()]);
    overflow(&daemon, "a");
    let mut follower = Follower::start(&daemon.socket, &[]);
    assert!(follower.line().contains("a: the COW is full"));
    let (status, error) = follower.end();
    assert_eq!((status.code(), &error[..]), (Some(0), ""));
}

/// Passes requests on from `proxy` to `socket`; the first answer is cut off after
/// one event. Afterwards nobody is there, or everything is passed on.
fn cut_first(proxy: &Path, socket: String, then_gone: bool) {
    let listener = UnixListener::bind(proxy).unwrap();
    let proxy = proxy.to_owned();
    std::thread::spawn(move || {
        let mut first = true;
        for client in listener.incoming() {
            let (mut client, mut server) = (client.unwrap(), UnixStream::connect(&socket).unwrap());
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                client.read_exact(&mut byte).unwrap();
                head.push(byte[0]);
            }
            server.write_all(&head).unwrap();
            if std::mem::take(&mut first) {
                let mut answer = BufReader::new(server);
                let mut line = String::new();
                while !line.contains("\"seq\"") {
                    line.clear();
                    answer.read_line(&mut line).unwrap();
                    client.write_all(line.as_bytes()).unwrap();
                }
                client.write_all(b"\r\n").unwrap();
                if then_gone {
                    std::fs::remove_file(&proxy).unwrap();
                    return;
                }
            } else {
                std::thread::spawn(move || std::io::copy(&mut server, &mut client));
            }
        }
    });
}

#[test]
fn a_follower_that_was_cut_off_goes_on_where_it_was() {
    let daemon = Daemon::start(vec![idle()]);
    let proxy = daemon.dir.path().join("p.sock");
    cut_first(&proxy, daemon.socket.clone(), false);
    overflow(&daemon, "first");
    let mut follower = Follower::start(proxy.to_str().unwrap(), &["--no-reconnect"]);
    assert!(follower.line().contains("first"));
    overflow(&daemon, "second");
    assert!(follower.line().contains("second"));
    drop(daemon);
    let (status, error) = follower.end();
    assert_eq!((status.code(), &error[..]), (Some(0), ""));
}

#[test]
fn a_daemon_that_goes_away_without_a_word_is_an_error() {
    let daemon = Daemon::start(vec![idle()]);
    let proxy = daemon.dir.path().join("p.sock");
    cut_first(&proxy, daemon.socket.clone(), true);
    overflow(&daemon, "first");
    let mut follower = Follower::start(proxy.to_str().unwrap(), &["--no-reconnect"]);
    assert!(follower.line().contains("first"));
    assert_eq!(follower.line(), "", "its end");
    let (status, error) = follower.end();
    assert_eq!(status.code(), Some(2));
    assert!(error.contains("without a clean stop"), "{error}");
    assert_refused(&["events", "--control", "/nonexistent"], "/nonexistent");
}

/// Each event of both daemons arrives once, whichever way the first one ends.
#[test]
fn a_follower_goes_on_with_the_next_daemon() {
    let mut daemon = Daemon::start(vec![idle()]);
    overflow(&daemon, "first");
    overflow(&daemon, "second");
    let mut follower = Follower::start(&daemon.socket, &["--json"]);
    let mut next = |seq: u64, name: &str, instance: &str| {
        let event: Value = serde_json::from_str(&follower.line()).unwrap();
        assert_eq!(event["seq"], seq, "{event}");
        assert_eq!(event["snapshot"], name);
        assert_eq!(event["instance"], instance);
    };
    let mut instances = vec![daemon.notes.events().instance().to_owned()];
    next(1, "first", &instances[0]);
    next(2, "second", &instances[0]);
    for round in 0..2 {
        // Fewer events than the daemon before, and more.
        daemon.restart();
        let instance = daemon.notes.events().instance().to_owned();
        for seq in 1..=1 + 2 * round {
            overflow(&daemon, "again");
            next(seq, "again", &instance);
        }
        instances.push(instance);
    }
    let told = follower.kill();
    let lines: Vec<&str> = told.lines().collect();
    assert_eq!(lines.len(), 4, "{told}");
    for (pair, instance) in lines.chunks(2).zip(&instances[1..]) {
        assert!(pair[0].contains("the daemon stopped: waiting"), "{told}");
        assert!(pair[1].contains(instance), "{told}");
    }
}

#[test]
fn a_follower_says_that_a_daemon_ended_without_a_clean_stop() {
    let mut daemon = Daemon::start(vec![idle()]);
    let proxy = daemon.dir.path().join("p.sock");
    cut_first(&proxy, daemon.socket.clone(), true);
    overflow(&daemon, "first");
    let mut follower = Follower::start(proxy.to_str().unwrap(), &[]);
    assert!(follower.line().contains("first"));
    daemon.restart();
    while proxy.exists() {
        std::thread::sleep(Duration::from_millis(1));
    }
    std::fs::hard_link(&daemon.socket, &proxy).unwrap();
    overflow(&daemon, "second");
    assert!(follower.line().contains("second"));
    let told = follower.kill();
    assert!(told.contains("may be missing: waiting"), "{told}");
    assert!(told.contains("connected to another daemon"), "{told}");
}
