//! `top` in a real terminal, beside a real daemon whose guest is busy.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use snapback::control::api::{RollbackRequest, RollbackWhen, SnapshotSpec};

use super::common::load::{Load, Reins};
use super::common::volume::Volume;
use super::tmux::Terminal;
use super::*;

const SECTORS: u64 = 16 << 11;

/// The columns of the view `name`, with rates of 0 and unknown ones as `None`.
fn view(screen: &str, name: &str) -> Option<Vec<String>> {
    let line = screen.lines().find(|line| line.starts_with(name))?;
    let words = line.split_whitespace().map(str::to_owned);
    Some(words.collect())
}

/// The guest on the origin's socket does something, and both kinds of requests are counted.
fn is_busy(screen: &str) -> bool {
    view(screen, "origin").is_some_and(|words| {
        let works = |column: usize| words.get(column).is_some_and(|w| *w != "0" && *w != "-");
        works(2) && works(3) && works(4)
    })
}

/// Some text has a colour: 0 to 7, or one of 256.
fn has_colour(codes: &str) -> bool {
    let sequences = codes.split("\x1b[").skip(1);
    let numbers = sequences.map(|rest| rest.split('m').next().unwrap_or_default());
    let mut numbers = numbers.flat_map(|numbers| numbers.split(';'));
    numbers.any(|n| n.len() == 2 && n.starts_with('3') && n != "39")
}

fn assert_given_back(terminal: &Terminal, how: &str) {
    terminal.until(how, |screen| screen.contains("ended 0"));
    assert!(!terminal.is_taken(), "{how}");
    terminal.enter("clear; stty -a; echo shown");
    let modes = terminal.until("the terminal's modes", |screen| screen.contains("\nshown"));
    assert!(modes.contains("isig icanon iexten echo "), "{how}: {modes}");
    terminal.enter("clear");
}

/// A guest that reads and writes at random until the reins stop it.
fn busy(volume: &Volume, reins: &Arc<Reins>) -> std::thread::JoinHandle<()> {
    let (path, shadow) = (volume.path("a.sock"), volume.first_content());
    let reins = Arc::clone(reins);
    std::thread::spawn(move || {
        let mut load = Load::new("top", 1, 7, shadow);
        load.attach(&path);
        load.run(u64::MAX, &reins);
    })
}

#[test]
fn top_shows_what_happens_survives_the_daemon_and_gives_the_terminal_back() {
    let mut volume = Volume::new(SECTORS);
    volume.start(&["--socket-path", "a.sock"]);
    let before = SnapshotSpec {
        name: "before".into(),
        cow: volume.path("before.cow").to_str().unwrap().into(),
        size: Some(32 << 20),
        ..serde_json::from_str(r#"{"cow":""}"#).unwrap()
    };
    volume.client().add_snapshot(&before).unwrap();
    let reins = Arc::new(Reins::default());
    let load = busy(&volume, &reins);
    let control = volume.path("c.sock");
    let control = ("SNAPBACK_CONTROL", control.to_str().unwrap());
    let terminal = Terminal::new(80, 24, &[control]);
    terminal.enter("snapback top --every 0.2; echo ended $?");
    let screen = terminal.until("the guest's requests", is_busy);
    assert!(screen.starts_with("snapback top  origin "), "{screen}");
    terminal.until("latencies, the COW and events", |screen| {
        screen.contains("  latency ")
            && screen.contains("before           active       █")
            && screen.contains("before: snapshot taken")
            && screen.contains("\nq quits")
    });
    assert!(has_colour(&terminal.coloured()));
    terminal.resize(120, 30);
    terminal.until("the new width", |screen| {
        let first = screen.lines().next().unwrap_or_default();
        first.len() == 120 && first.ends_with(" UTC") && screen.lines().count() == 30
    });

    reins.dead();
    volume.kill();
    load.join().unwrap();
    terminal.until("the end of the daemon", |screen| {
        screen.contains("the daemon does not answer, trying again: no daemon at")
            && screen.contains("before           active")
    });
    volume.start(&[]);
    let rollback = RollbackRequest {
        snapshot: "before".into(),
        when: RollbackWhen::Now,
        rate: Some(64 << 10),
        ..RollbackRequest::default()
    };
    volume.client().rollback(&rollback).unwrap();
    let screen = terminal.until("the merge", |screen| {
        screen.contains("MERGE of before ") && screen.contains(" of at most 64 KiB/s")
    });
    assert!(!screen.contains("does not answer"), "{screen}");
    terminal.key("q");
    assert_given_back(&terminal, "q");

    terminal.enter("NO_COLOR=1 snapback top; echo ended $?");
    terminal.until("a screen", |screen| screen.contains("MERGE of before "));
    let codes = terminal.coloured();
    assert!(!has_colour(&codes), "{codes}");
    terminal.key("C-c");
    assert_given_back(&terminal, "Ctrl-C");

    terminal.enter("snapback top; echo ended $?");
    terminal.until("a screen", |screen| screen.contains("MERGE of before "));
    let pid = terminal.child_of_the_shell();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::TERM).unwrap();
    assert_given_back(&terminal, "SIGTERM");

    // A terminal that goes away ends it, also where nobody is told by a signal: it read the end
    // of the terminal again and again.
    terminal.enter("trap '' HUP; snapback top");
    terminal.until("a screen", |screen| screen.contains("MERGE of before "));
    let pid = Pid::from_raw(terminal.child_of_the_shell()).unwrap();
    drop(terminal);
    let start = Instant::now();
    while test_kill_process(pid).is_ok() {
        assert!(start.elapsed() < Duration::from_secs(60), "it still runs");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn top_needs_a_terminal_and_a_daemon() {
    let daemon = Daemon::start(vec![idle()]);
    assert_refused(
        &["top", "--control", &daemon.socket],
        "use snapback status --watch",
    );
    assert_refused(&["top", "--every", "0", "--control", "/c"], "0.1 to 86400");
    let terminal = Terminal::new(80, 24, &[("SNAPBACK_CONTROL", "/nonexistent/c")]);
    terminal.enter("snapback top; echo ended $?");
    let screen = terminal.until("the refusal", |screen| screen.contains("ended 2"));
    assert!(
        screen.contains("snapback: no daemon at /nonexistent/c"),
        "{screen}"
    );
}
