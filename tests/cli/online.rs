//! Verbs that talk to a daemon.

use std::io::Read;
use std::process::Stdio;

use super::*;

#[test]
fn a_missing_daemon_is_named_with_the_way_out() {
    assert_refused(
        &["status", "--control", "/nonexistent/c.sock"],
        "/nonexistent/c.sock",
    );
    assert_refused(
        &["remove", "a", "--control", "/nonexistent/c.sock"],
        "SNAPBACK_CONTROL",
    );
}

#[test]
fn status_is_printed_in_three_ways() {
    let daemon = Daemon::start(vec![idle()]);
    let human = daemon.done(&["status"]);
    assert!(
        human.starts_with("origin /vm/disk.img, 4 MiB, read-write\n")
            && human.contains("good  active"),
        "{human}"
    );
    let json: VolumeStatus = serde_json::from_str(&daemon.done(&["status", "--json"])).unwrap();
    assert_eq!(json, idle());
    assert_eq!(
        daemon.done(&["status", "--dm"]),
        "disk: 0 8192 snapshot-origin \ngood: 0 8192 snapshot 24/2048 16\nbad: 0 8192 snapshot Invalid\n"
    );
    assert_eq!(
        daemon.done(&["table"]),
        "disk: 0 8192 snapshot-origin 0:0\ngood: 0 8192 snapshot 0:0 0:0 P 8\nbad: 0 8192 snapshot 0:0 0:0 P 8\n"
    );
}

#[test]
fn status_of_one_snapshot_answers_with_its_exit_status() {
    let daemon = Daemon::start(vec![idle()]);
    assert_eq!(
        daemon.done(&["status", "good", "--dm"]),
        "good: 0 8192 snapshot 24/2048 16\n"
    );
    let json: SnapshotStatus =
        serde_json::from_str(&daemon.done(&["status", "good", "--json"])).unwrap();
    assert_eq!(json, snapshot("good", State::Active));
    let bad = daemon.run(&["status", "bad"]);
    assert_eq!(bad.status.code(), Some(1));
    assert!(stdout(&bad).contains("invalid"));
    let unknown = daemon.run(&["status", "ugly"]);
    assert_eq!(unknown.status.code(), Some(2));
    assert!(
        stderr(&unknown).contains("`ugly`") && stderr(&unknown).contains("good, bad"),
        "{}",
        stderr(&unknown)
    );
}

#[test]
fn the_control_socket_comes_from_the_environment_too() {
    let daemon = Daemon::start(vec![idle()]);
    let mut command = Command::cargo_bin("snapback").unwrap();
    command
        .env("SNAPBACK_CONTROL", &daemon.socket)
        .arg("table")
        .assert()
        .success();
}

#[test]
fn an_empty_variable_is_as_good_as_none() {
    let dir = tempfile::tempdir().unwrap();
    let cow = dir.path().join("a.cow");
    let run = |arguments: &[&str]| {
        let mut command = Command::cargo_bin("snapback").unwrap();
        command
            .env("XDG_RUNTIME_DIR", crate::NO_DAEMONS)
            .env("SNAPBACK_CONTROL", "")
            .env("SNAPBACK_LOG", "")
            .args(arguments);
        command.output().unwrap()
    };
    let created = run(&["create", cow.to_str().unwrap(), "--size", "1M"]);
    assert_eq!(created.status.code(), Some(0), "{}", stderr(&created));
    let status = run(&["status"]);
    assert_eq!(status.status.code(), Some(2));
    assert!(
        stderr(&status).contains("no daemon of this user is running"),
        "{}",
        stderr(&status)
    );
}

#[test]
fn verbs_reach_the_volume_with_absolute_paths() {
    let daemon = Daemon::start(vec![idle()]);
    daemon.done(&[
        "snapshot",
        "a",
        "--cow",
        "/c/../c/a.cow",
        "--size",
        "64M",
        "--type",
        "po",
        "--chunk-size",
        "64K",
    ]);
    daemon.done(&[
        "snapshot",
        "b",
        "--cow",
        "/b.cow",
        "--socket-path",
        "/b.sock",
        "--read-only",
    ]);
    daemon.done(&["grow", "a", "1G"]);
    let told = daemon.done(&["resize", "2M"]);
    assert!(
        told.contains("now has 2 MiB, before it had 1 MiB")
            && told.contains("disk.sock cannot be told")
    );
    assert!(daemon.done(&["resize"]).contains("as before"));
    daemon.done(&["remove", "a"]);
    daemon.done(&["merge", "good", "--follow", "--rate", "1M"]);
    daemon.done(&["merge", "--pause"]);
    daemon.done(&["merge", "--resume", "--rate", "2M/s"]);
    daemon.done(&["merge", "--rate", "0"]);
    daemon.done(&[
        "rollback", "good", "--now", "--keep", "k", "--cow", "/k.cow", "--size", "1G",
    ]);
    daemon.done(&["rollback", "good", "--qmp", "/q"]);
    daemon.done(&["rollback", "good", "--at-reset", "--qmp", "/q"]);
    daemon.done(&["rollback", "good", "--at-reset=any"]);
    daemon.done(&["merge", "good", "--now"]);
    daemon.done(&["rollback", "--cancel"]);
    daemon.done(&["detach", "/f.sock"]);
    daemon.done(&["release"]);
    assert_eq!(
        daemon.calls(),
        [
            r#"add "{\"name\":\"a\",\"cow\":\"/c/../c/a.cow\",\"type\":\"PO\",\"chunk_size\":65536,\"size\":67108864}""#,
            r#"add "{\"name\":\"b\",\"cow\":\"/b.cow\",\"type\":\"P\",\"socket\":\"/b.sock\",\"read_only\":true}""#,
            r#"grow ("a", 1073741824)"#,
            "resize Some(2097152)",
            "resize None",
            r#"remove "a""#,
            r#"merge "{\"snapshot\":\"good\",\"follow\":true,\"rate\":1048576}""#,
            "pause ()",
            "rate 2097152",
            "resume ()",
            "rate 0",
            r#"rollback "{\"snapshot\":\"good\",\"when\":\"now\",\"keep\":{\"name\":\"k\",\"cow\":\"/k.cow\",\"type\":\"P\",\"size\":1073741824}}""#,
            r#"rollback "{\"snapshot\":\"good\",\"when\":\"vmm\",\"qmp\":\"/q\"}""#,
            r#"rollback "{\"snapshot\":\"good\",\"when\":\"at-reset\",\"qmp\":\"/q\"}""#,
            r#"rollback "{\"snapshot\":\"good\",\"when\":\"at-reset\",\"reset\":\"any\"}""#,
            r#"merge "{\"snapshot\":\"good\",\"follow\":false,\"now\":true}""#,
            "cancel rollback ()",
            "detach \"/f.sock\"",
            "release ()",
        ]
    );
    let mut relative = Command::cargo_bin("snapback").unwrap();
    relative
        .current_dir(daemon.dir.path())
        .env("XDG_RUNTIME_DIR", daemon.dir.path())
        .args(["snapshot", "b", "--cow", "b.cow", "--control", "c.sock"]);
    relative.assert().success();
    let wanted = std::fs::canonicalize(daemon.dir.path())
        .unwrap()
        .join("b.cow");
    assert!(daemon.calls()[0].contains(wanted.to_str().unwrap()));
}

#[test]
fn a_refusal_of_the_daemon_is_printed_word_for_word() {
    let daemon = Daemon::start(vec![idle()]);
    let output = daemon.run(&["remove", "refused"]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(
        stderr(&output),
        "snapback: a merge is running: wait for it\n"
    );
}

#[test]
fn wait_ends_with_the_merge_and_is_quiet_in_a_pipe() {
    let waiting = VolumeStatus {
        rollback_at_reset: Some("good".to_owned()),
        rollback: None,
        ..idle()
    };
    let daemon = Daemon::start(vec![idle(), waiting, merging(None), merged()]);
    assert_eq!(
        daemon.done(&["rollback", "good", "--wait"]),
        "the guest's next reset rolls back to good\n\
         good is merged; its COW is empty and can be removed\n"
    );
    let daemon = Daemon::start(vec![idle(), merging(None), merged()]);
    assert_eq!(
        daemon.done(&["merge", "good", "--wait"]),
        "merging good\ngood is merged; its COW is empty and can be removed\n"
    );
}

/// A script that waits a moment too late has not failed.
#[test]
fn a_wait_for_a_merge_that_has_ended_tells_how() {
    let daemon = Daemon::start(vec![merged()]);
    assert_eq!(
        daemon.done(&["merge", "--wait"]),
        "good is merged; its COW is empty and can be removed\n"
    );
    let daemon = Daemon::start(vec![idle()]);
    assert_eq!(daemon.done(&["merge", "--wait"]), "no merge is running\n");
    let mut failed = merged();
    failed.last_merge.as_mut().unwrap().error = Some("I/O error".to_owned());
    let output = Daemon::start(vec![failed]).run(&["merge", "--wait"]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(
        stderr(&output),
        "snapback: the merge of good failed: I/O error\n"
    );
}

#[test]
fn an_interrupted_wait_says_that_the_merge_goes_on() {
    let daemon = Daemon::start(vec![idle(), merging(None)]);
    let mut waiting = std::process::Command::new("env")
        // It may be ignored by whoever started the tests.
        .arg("--default-signal=INT")
        .arg(assert_cmd::cargo::cargo_bin!("snapback"))
        .args(["merge", "good", "--wait", "--control", &daemon.socket])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It says that the merge has begun before it waits.
    let mut said = [0; 13];
    waiting
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut said)
        .unwrap();
    assert_eq!(&said, b"merging good\n");
    let pid = rustix::process::Pid::from_child(&waiting);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let output = waiting.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert!(
        stderr(&output).contains("the daemon goes on with good"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn sizes_may_be_fractions_and_what_is_added() {
    let daemon = Daemon::start(vec![idle()]);
    // The COW of `good` has 1 MiB, the disk 4.
    daemon.done(&["grow", "good", "+1.5M"]);
    daemon.done(&["grow", "good", "2.5M"]);
    daemon.done(&["resize", "+0.5M"]);
    let calls = daemon.calls();
    let grown = calls.iter().filter(|call| call.contains("2621440")).count();
    assert_eq!(grown, 2, "{calls:?}");
    assert!(
        calls.iter().any(|call| call.contains("4718592")),
        "{calls:?}"
    );
    let unknown = daemon.run(&["grow", "ugly", "+1M"]);
    assert!(
        stderr(&unknown).contains("good, bad"),
        "{}",
        stderr(&unknown)
    );
}

#[test]
fn several_snapshots_are_removed_by_one_command() {
    let daemon = Daemon::start(vec![idle()]);
    assert_eq!(
        daemon.done(&["delete", "good", "bad"]),
        "snapshot good removed\nsnapshot bad removed\n"
    );
    assert_eq!(daemon.calls().len(), 2);
}

#[test]
fn a_word_that_is_no_log_level_is_refused() {
    for level in ["foo", "info,foo", "warning"] {
        assert_refused(&["table", "--log-level", level], "is no level");
    }
    let daemon = Daemon::start(vec![idle()]);
    for level in ["off", "DEBUG", "snapback::control=debug,warn", "snapback"] {
        daemon.done(&["table", "--log-level", level]);
    }
}

#[test]
fn wait_fails_when_the_merge_does() {
    let daemon = Daemon::start(vec![
        idle(),
        merging(None),
        merging(Some("I/O error on good.cow")),
    ]);
    let output = daemon.run(&["merge", "good", "--wait"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains("I/O error on good.cow"),
        "{}",
        stderr(&output)
    );
    let daemon = Daemon::start(vec![idle()]);
    let output = daemon.run(&["rollback", "good", "--wait"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("cancelled"), "{}", stderr(&output));
}
