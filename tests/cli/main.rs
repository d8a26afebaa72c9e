//! The command line's contract: exit status, what goes to stdout and stderr,
//! and what reaches the daemon, with the real binary and a volume that only
//! takes notes.

#![allow(
    unsafe_code,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap
)] // In a test a panic is the report.

#[path = "../common/mod.rs"]
#[allow(dead_code, reason = "only a busy guest is needed")]
mod common;

mod events;
mod fake_volume;
mod json;
mod online;
mod screen;
mod tmux;
mod top;
mod usage;

use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;

use assert_cmd::Command;
use fake_volume::{Notes, idle, merged, merging, snapshot};
use snapback::control::ControlServer;
use snapback::control::api::{SnapshotStatus, State, Volume, VolumeStatus};

const VERBS: [&str; 21] = [
    "serve", "list", "status", "table", "events", "top", "snapshot", "grow", "remove", "detach",
    "resize", "release", "rollback", "merge", "create", "info", "check", "dump", "export", "diff",
    "run",
];

/// No daemon can be there.
const NO_DAEMONS: &str = "/nonexistent";

fn snapback(arguments: &[&str]) -> Output {
    Command::cargo_bin("snapback")
        .unwrap()
        .env("XDG_RUNTIME_DIR", NO_DAEMONS)
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

/// Exit status 2 (125 of `run`), nothing on stdout, and one message that starts with our name
/// and holds `word`.
#[track_caller]
fn assert_refused(arguments: &[&str], word: &str) {
    let output = snapback(arguments);
    let error = stderr(&output);
    let expected = if arguments.first() == Some(&"run") {
        125
    } else {
        2
    };
    assert_eq!(
        output.status.code(),
        Some(expected),
        "{arguments:?}: {error}"
    );
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
    server: Option<ControlServer>,
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
            server: Some(server),
            dir,
        }
    }

    /// It ends; the socket disappears.
    fn stop(&mut self) {
        self.server = None;
    }

    /// Another one at the same socket.
    fn start_again(&mut self, script: Vec<VolumeStatus>) {
        self.notes = Arc::new(Notes::new(script));
        let volume = Arc::clone(&self.notes) as Arc<dyn Volume>;
        self.server = Some(ControlServer::start(Path::new(&self.socket), volume).unwrap());
    }

    /// Another daemon takes the place of this one, which stops cleanly.
    fn restart(&mut self) {
        self.stop();
        self.start_again(vec![idle()]);
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
    let version = assert_done(&["--version"]);
    let package = concat!("snapback ", env!("CARGO_PKG_VERSION"));
    assert!(version.starts_with(package), "{version}");
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
        (&["create", "c", "--size", "1.5"], "part of a byte"),
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
        format!("created {cow}: 1 MiB, room for 254 chunks of 4 KiB\n")
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
