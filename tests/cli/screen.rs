//! What verbs show on a terminal, and what they show elsewhere.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};

use super::tmux::Terminal;
use super::*;

#[test]
fn status_on_a_terminal_has_bars_and_colours_that_no_color_turns_off() {
    let daemon = Daemon::start(vec![idle()]);
    let control = ("SNAPBACK_CONTROL", daemon.socket.as_str());
    let show = |variables: &[(&str, &str)]| {
        let terminal = Terminal::new(80, 24, variables);
        terminal.enter("snapback status; echo ended $?");
        terminal.until("the status", |screen| screen.contains("ended 0"));
        (terminal.screen(), terminal.coloured())
    };
    let (screen, coloured) = show(&[control]);
    assert!(screen.contains("█░░░░░░░░░   1.1 %"), "{screen}");
    assert!(coloured.contains("\x1b[31minvalid"), "{coloured}");
    let (screen, coloured) = show(&[control, ("NO_COLOR", "1")]);
    assert!(screen.contains("█░░░░░░░░░   1.1 %"), "{screen}");
    assert!(!coloured.contains('\x1b'), "{coloured}");
    let (screen, _) = show(&[control, ("LC_ALL", "C")]);
    assert!(screen.contains("#---------   1.1 %"), "{screen}");
    // In a pipe it is as it always was.
    let plain = daemon.done(&["status"]);
    assert!(
        !plain.contains(['█', '\x1b']) && plain.contains("1.1 %  4K     P"),
        "{plain}"
    );
}

#[test]
fn watch_redraws_in_place_over_a_restart_of_the_daemon_until_it_is_interrupted() {
    let mut daemon = Daemon::start(vec![idle(), merging(None)]);
    let control = ("SNAPBACK_CONTROL", daemon.socket.as_str());
    let terminal = Terminal::new(80, 24, &[control]);
    terminal.enter("snapback status --watch 0.1; echo ended $?");
    let merging_seen = |screen: &str| screen.contains("50.0 %, 4 KiB of 8 KiB");
    terminal.until("a later status", merging_seen);
    daemon.stop();
    let lost = terminal.until("the end of the daemon", |screen| {
        screen.contains("waiting for the daemon: no daemon at")
    });
    assert!(merging_seen(&lost), "what was last known stays: {lost}");
    daemon.start_again(vec![merged()]);
    let back = terminal.until("the next daemon", |screen| {
        screen.contains("/vm/good.cow can be removed")
    });
    assert_eq!(back.matches("origin /vm/disk.img").count(), 1, "{back}");
    assert!(!back.contains("waiting for"), "{back}");
    terminal.key("C-c");
    terminal.until("a clean end", |screen| screen.contains("ended 0"));
}

#[test]
fn watch_in_a_pipe_appends_and_with_json_prints_an_object_per_line() {
    let mut daemon = Daemon::start(vec![idle(), merging(None)]);
    let socket = daemon.socket.clone();
    let start = |arguments: &[&str]| {
        std::process::Command::new("env")
            // It may be ignored by whoever started the tests.
            .arg("--default-signal=INT")
            .arg(assert_cmd::cargo::cargo_bin!("snapback"))
            .args(["status", "--watch", "0.1", "--control", &socket])
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let mut child = start(&["--json"]);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next =
        || -> VolumeStatus { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    assert_eq!(next(), idle());
    assert_eq!(next(), merging(None));
    assert_eq!(next(), merging(None));
    daemon.stop();
    daemon.start_again(vec![merged()]);
    while next() != merged() {}
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));

    let mut child = start(&[]);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let heads = lines.by_ref().map(Result::unwrap);
    assert_eq!(
        heads
            .filter(|line| line.starts_with("-- 20"))
            .take(3)
            .count(),
        3
    );
    // The reader leaves.
    drop(lines);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_refused(
        &["status", "--watch", "good", "--control", &socket],
        "stands before --watch",
    );
    assert_refused(
        &["status", "ugly", "--watch", "--control", &socket],
        "`ugly`",
    );
    assert_refused(
        &["status", "--watch", "--control", "/nonexistent/c"],
        "no daemon at",
    );
}

#[test]
fn a_wait_shows_bytes_rate_and_time_left_and_no_bar_before_there_is_a_merge() {
    let mut limited = merging(None);
    limited.merge.as_mut().unwrap().rate_limit = Some(8192);
    let daemon = Daemon::start(vec![idle(), limited]);
    let terminal = Terminal::new(100, 24, &[("SNAPBACK_CONTROL", &daemon.socket)]);
    terminal.enter("snapback merge good --wait");
    let screen = terminal.until("a bar", |screen| screen.contains('['));
    assert!(
        screen.contains("merging good [==")
            && screen.contains("] 50.0 %, 4 KiB of 8 KiB, 4 KiB/s of at most 8 KiB/s, 1 s left"),
        "{screen}"
    );
    terminal.key("C-c");

    let waiting = VolumeStatus {
        rollback_at_reset: Some("good".to_owned()),
        ..idle()
    };
    let daemon = Daemon::start(vec![idle(), waiting]);
    let terminal = Terminal::new(100, 24, &[("SNAPBACK_CONTROL", &daemon.socket)]);
    terminal.enter("snapback rollback good --wait");
    let screen = terminal.until("the words", |screen| {
        screen.contains("waiting for the guest's reset to roll back to good")
    });
    assert!(!screen.contains(['[', '%']), "{screen}");
    terminal.key("C-c");
}
