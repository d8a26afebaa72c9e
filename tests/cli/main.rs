//! The command line's contract: exit status, what goes to stdout and stderr,
//! and what reaches the daemon, with the real binary and a volume that only
//! takes notes.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // In a test a panic is the report.

mod events;
mod notes;
mod usage;

use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;

use assert_cmd::Command;
use notes::{Notes, idle, merged, merging, snapshot};
use snapback::control::ControlServer;
use snapback::control::api::{SnapshotStatus, State, Volume, VolumeStatus};

const VERBS: [&str; 15] = [
    "serve", "status", "table", "events", "snapshot", "grow", "remove", "rollback", "merge",
    "create", "info", "check", "dump", "export", "diff",
];

fn snapback(arguments: &[&str]) -> Output {
    Command::cargo_bin("snapback")
        .unwrap()
        .env_remove("SNAPBACK_CONTROL")
        .env_remove("SNAPBACK_LOG")
        .args(arguments)
        .timeout(std::time::Duration::from_secs(60))
        .output()
        .unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Exit status 2, nothing on stdout, and one message that starts with our name
/// and holds `word`.
#[track_caller]
fn assert_refused(arguments: &[&str], word: &str) {
    let output = snapback(arguments);
    let error = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {error}");
    assert_eq!(stdout(&output), "", "{arguments:?}");
    assert!(
        error.starts_with("snapback: ") && error.contains(word),
        "{arguments:?}: {error}"
    );
}

#[track_caller]
fn assert_done(arguments: &[&str]) -> String {
    let output = snapback(arguments);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{arguments:?}: {}",
        stderr(&output)
    );
    assert_eq!(stderr(&output), "", "{arguments:?}");
    stdout(&output)
}

struct Daemon {
    notes: Arc<Notes>,
    socket: String,
    _server: ControlServer,
    dir: tempfile::TempDir,
}

impl Daemon {
    fn start(script: Vec<VolumeStatus>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.sock");
        let notes = Arc::new(Notes::new(script));
        let server = ControlServer::start(&path, Arc::clone(&notes) as Arc<dyn Volume>).unwrap();
        Self {
            notes,
            socket: path.to_str().unwrap().to_owned(),
            _server: server,
            dir,
        }
    }

    fn run(&self, arguments: &[&str]) -> Output {
        snapback(&[arguments, &["--control", &self.socket]].concat())
    }

    #[track_caller]
    fn done(&self, arguments: &[&str]) -> String {
        assert_done(&[arguments, &["--control", &self.socket]].concat())
    }

    fn calls(&self) -> Vec<String> {
        self.notes.calls()
    }
}

#[test]
fn every_verb_has_help_with_an_example() {
    for verb in VERBS {
        let help = assert_done(&[verb, "--help"]);
        assert!(
            help.contains("EXAMPLE\n") && help.contains(&format!("snapback {verb} ")),
            "{verb}: {help}"
        );
        assert!(help.lines().all(|line| line.len() <= 100), "{verb}: {help}");
    }
    let help = assert_done(&["--help"]);
    for verb in VERBS {
        assert!(help.contains(&format!("\n  {verb} ")), "{verb} in {help}");
    }
    assert!(help.contains("EXAMPLE\n") && help.contains("EXIT STATUS\n"));
    assert_eq!(
        assert_done(&["--version"]),
        concat!("snapback ", env!("CARGO_PKG_VERSION"), "\n")
    );
}

#[test]
fn wrong_usage_is_exit_2_and_a_message() {
    for (arguments, word) in [
        (&["frobnicate"][..], "frobnicate"),
        (&["serve"], "--origin"),
        (&["serve", "--origin", "d", "--colour"], "--colour"),
        (
            &["serve", "--origin", "d", "--socket-path", "s", "--fd", "3"],
            "--fd",
        ),
        (
            &["serve", "--origin", "d", "--snapshot", "name=a"],
            "cow=FILE",
        ),
        (
            &[
                "serve",
                "--origin",
                "d",
                "--snapshot",
                "name=a,cow=c,chunk-size=3K",
            ],
            "take 2K or 4K",
        ),
        (
            &["serve", "--origin", "d", "--io-engine", "aio"],
            "io_uring",
        ),
        (
            &["serve", "--origin", "d", "--merge-writes", "drop"],
            "redirect",
        ),
        (&["create", "c", "--size", "1.5G"], "1536M"),
        (
            &["create", "c", "--size", "1M", "--chunk-size", "3K"],
            "take 2K or 4K",
        ),
        (
            &["create", "c", "--size", "1M", "--chunk-size", "2G"],
            "512 to 1G",
        ),
        (&["snapshot", "a b", "--cow", "c"], "a b"),
        (&["snapshot", "a"], "--cow"),
        (&["snapshot", "a", "--cow", "c", "--type", "X"], "`X`"),
        (&["rollback", "a", "--now", "--at-reset"], "--at-reset"),
        (&["rollback", "a", "--now", "--qmp", "q"], "--qmp"),
        (&["rollback", "a", "--at-reset=never"], "never"),
        (&["rollback", "--cancel", "--qmp", "q"], "--cancel"),
        (&["merge", "--now", "--pause"], "--pause"),
        (&["rollback", "a", "--keep", "b"], "--cow"),
        (&["rollback", "a", "--cow", "c"], "--keep"),
        (&["rollback"], "NAME"),
        (&["rollback", "a", "--cancel"], "--cancel"),
        (&["rollback", "--cancel", "--now"], "--cancel"),
        (
            &["snapshot", "a", "--cow", "c", "--read-only"],
            "--socket-path",
        ),
        (&["merge"], "--origin"),
        (&["merge", "a", "--pause"], "--pause"),
        (&["merge", "--follow"], "NAME"),
        (&["merge", "--pause", "--resume"], "--resume"),
        (&["merge", "--origin", "d"], "--cow"),
        (&["merge", "a", "--origin", "d", "--cow", "c"], "--origin"),
        (&["merge", "a", "--state", "s"], "--state"),
        (&["merge", "--rate", "1M", "--state", "s"], "--state"),
        (&["merge", "--rate", "fast"], "fast"),
        (&["status", "--json", "--dm"], "--dm"),
        (&["status"], "SNAPBACK_CONTROL"),
        (&["events", "--since", "-1"], "-1"),
        (&["events", "--follow", "a"], "a"),
        (
            &["status", "--log-level", "snapback=loud", "--control", "c"],
            "loud",
        ),
    ] {
        assert_refused(arguments, word);
    }
    let bare = snapback(&[]);
    assert_eq!(bare.status.code(), Some(2));
    assert!(stderr(&bare).contains("Usage"));
}

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
fn the_back_end_conventions_work_without_a_verb() {
    let capabilities = "{\"type\":\"block\",\"features\":[\"read-only\",\"blk-file\"]}\n";
    assert_eq!(assert_done(&["--print-capabilities"]), capabilities);
    assert_eq!(
        assert_done(&[
            "--blk-file=/nonexistent",
            "--print-capabilities",
            "--nonsense"
        ]),
        capabilities
    );
    assert_refused(
        &["--blk-file", "/nonexistent/disk", "--fd=nonsense"],
        "nonsense",
    );
    assert_refused(&["--fd=7", "--read-only"], "--origin");
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
        stderr(&status).contains("no control socket is given"),
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
    assert_eq!(
        daemon.calls(),
        [
            r#"add "{\"name\":\"a\",\"cow\":\"/c/../c/a.cow\",\"type\":\"PO\",\"chunk_size\":65536,\"size\":67108864}""#,
            r#"add "{\"name\":\"b\",\"cow\":\"/b.cow\",\"type\":\"P\",\"socket\":\"/b.sock\",\"read_only\":true}""#,
            r#"grow ("a", 1073741824)"#,
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
        ]
    );
    let mut relative = Command::cargo_bin("snapback").unwrap();
    relative.current_dir(daemon.dir.path()).args([
        "snapshot",
        "b",
        "--cow",
        "b.cow",
        "--control",
        "c.sock",
    ]);
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
        "the guest's next reset rolls back to good\n"
    );
    let daemon = Daemon::start(vec![idle(), merging(None), merged()]);
    assert_eq!(daemon.done(&["merge", "good", "--wait"]), "merging good\n");
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

fn path(dir: &Path, name: &str) -> (PathBuf, String) {
    let path = dir.join(name);
    let text = path.to_str().unwrap().to_owned();
    (path, text)
}

#[test]
fn create_and_info_tell_the_truth_with_their_exit_status() {
    let dir = tempfile::tempdir().unwrap();
    let (file, cow) = path(dir.path(), "a.cow");
    let made = assert_done(&["create", &cow, "--size", "1M"]);
    assert_eq!(
        made,
        format!("created {cow}: 1 MiB, room for 254 chunks of 4K\n")
    );
    assert!(assert_done(&["info", &cow]).contains("state       valid\n"));
    let json: serde_json::Value =
        serde_json::from_str(&assert_done(&["info", &cow, "--json"])).unwrap();
    assert_eq!(json["state"], "valid");
    assert_eq!(json["contents"]["capacity"], 254);
    assert_refused(&["create", &cow, "--size", "1M"], "--force");

    let mut bytes = std::fs::read(&file).unwrap();
    bytes[4] = 0;
    std::fs::write(&file, &bytes).unwrap();
    let invalid = snapback(&["info", &cow]);
    assert_eq!(
        (invalid.status.code(), stderr(&invalid).as_str()),
        (Some(1), "")
    );
    assert!(stdout(&invalid).contains("invalid"));

    bytes[..4].copy_from_slice(b"junk");
    std::fs::write(&file, &bytes).unwrap();
    let corrupt = snapback(&["info", &cow, "--json"]);
    assert_eq!(corrupt.status.code(), Some(1));
    assert!(stdout(&corrupt).contains("\"state\": \"corrupt\""));
    assert_eq!(std::fs::read(&file).unwrap(), bytes, "info must not write");
}

#[test]
fn offline_verbs_refuse_what_is_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let (file, missing) = path(dir.path(), "missing");
    let directory = dir.path().to_str().unwrap();
    assert_refused(&["info", &missing], &missing);
    assert_refused(&["info", directory], "directory");
    assert_refused(&["create", directory, "--size", "1M"], "directory");
    assert_refused(&["create", &missing], "--size");
    assert_refused(&["create", &missing, "--size", "8K"], "too small");
    assert_refused(
        &["merge", "--origin", &missing, "--cow", &missing],
        &missing,
    );
    assert!(!file.exists());
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let daemon = Daemon::start(vec![idle()]);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let binary = assert_cmd::cargo::cargo_bin("snapback");
    let status = std::process::Command::new(binary)
        .args(["status", "--control", &daemon.socket])
        .stdout(writer)
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(0));
}
