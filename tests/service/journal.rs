//! The log in the journal, with a stand-in for journald in a mount namespace.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;

use super::world::{World, run, text};

/// Where the process of `command` sees the socket of the journal.
fn with_journal(command: &Command, folder: &Path) -> Command {
    let mount = "mount -t tmpfs none /run && mkdir -p /run/systemd/journal \
                 && mount --bind \"$0\" /run/systemd/journal && exec \"$@\"";
    let mut isolated = Command::new("unshare");
    isolated
        .args(["-rm", "sh", "-c", mount])
        .arg(folder)
        .arg(command.get_program())
        .args(command.get_args())
        .env_remove("NOTIFY_SOCKET")
        .current_dir("/");
    isolated
}

/// An entry of the journal's native protocol.
fn entry(mut bytes: &[u8]) -> BTreeMap<String, String> {
    let mut fields = BTreeMap::new();
    while let Some(end) = bytes.iter().position(|b| *b == b'\n') {
        let line = String::from_utf8(bytes[..end].to_vec()).unwrap();
        bytes = &bytes[end + 1..];
        match line.split_once('=') {
            Some((name, value)) => fields.insert(name.to_owned(), value.to_owned()),
            None => {
                let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
                let value = String::from_utf8(bytes[8..8 + length].to_vec()).unwrap();
                bytes = &bytes[8 + length + 1..];
                fields.insert(line, value)
            }
        };
    }
    fields
}

/// As systemd does for a stderr that is a stream of the journal.
fn stream(log: &File) -> String {
    let there = log.metadata().unwrap();
    format!("{}:{}", there.dev(), there.ino())
}

struct Journal {
    folder: tempfile::TempDir,
    socket: UnixDatagram,
}

impl Journal {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(folder.path().join("socket")).unwrap();
        socket.set_nonblocking(true).unwrap();
        Self { folder, socket }
    }

    fn entries(&self) -> Vec<BTreeMap<String, String>> {
        let mut entries = Vec::new();
        let mut bytes = [0; 65536];
        while let Ok(length) = self.socket.recv(&mut bytes) {
            if length > 0 {
                entries.push(entry(&bytes[..length]));
            }
        }
        entries
    }
}

/// A start that says something about a snapshot and then is refused: the COW is too small.
fn refused(world: &World) -> Command {
    let mut command = world.serve();
    let snapshot = format!("name=s,cow={},size=4K", text(&world.path("s.cow")));
    command
        .args(["--origin", text(&world.path("disk.img"))])
        .args(["--control", text(&world.path("c.sock"))])
        .args(["--snapshot", &snapshot]);
    command
}

#[test]
fn a_stream_to_the_journal_is_replaced_by_entries_with_fields() {
    let mut world = World::new();
    let journal = Journal::new();
    let log = File::create(world.path("log")).unwrap();
    let mut command = world.serve();
    let snapshot = format!("name=s,cow={},size=1M", text(&world.path("s.cow")));
    command
        .args(["--origin", text(&world.path("disk.img"))])
        .args(["--socket-path", text(&world.path("d.sock"))])
        .args(["--control", text(&world.path("c.sock"))])
        .args(["--snapshot", &snapshot]);
    let mut command = with_journal(&command, journal.folder.path());
    command.env("JOURNAL_STREAM", stream(&log));
    world.start(command);
    // Read in between, because the system holds few datagrams.
    let mut entries = journal.entries();
    drop(super::guest::Guest::connect(&world.path("d.sock")));
    world.client().remove_snapshot("s").unwrap();
    entries.extend(journal.entries());
    world.stop();
    assert_eq!(world.log(), "", "the lines are in the journal");
    entries.extend(journal.entries());
    let find = |part: &str| {
        let found = entries.iter().find(|e| e["MESSAGE"].contains(part));
        found.unwrap_or_else(|| panic!("{part}: {entries:?}"))
    };
    let removed = find("snapshot removed");
    assert_eq!(removed["SNAPSHOT"], "s");
    // journalctl shows the message only.
    assert_eq!(removed["MESSAGE"], "snapshot removed snapshot=s");
    let event = find("event kind=\"snapshot-added\" seq=");
    assert_eq!(
        (&*event["KIND"], &*event["SNAPSHOT"]),
        ("snapshot-added", "s")
    );
    assert!(event["SEQ"].parse::<u64>().is_ok(), "{event:?}");
    assert_eq!(removed["PRIORITY"], "6");
    assert_eq!(removed["SYSLOG_IDENTIFIER"], "snapback");
    assert_eq!(find("view origin: ")["VIEW"], "origin");
    for entry in &entries {
        assert_eq!(entry["VOLUME"], text(&world.path("disk.img")), "{entry:?}");
    }
}

#[test]
fn without_a_journal_the_lines_carry_priorities() {
    let world = World::new();
    let nothing = tempfile::tempdir().unwrap();
    let log = File::create(world.path("log")).unwrap();
    let mut command = with_journal(&refused(&world), nothing.path());
    command.env("JOURNAL_STREAM", stream(&log)).stderr(log);
    assert_eq!(command.status().unwrap().code(), Some(2));
    let lines = world.log();
    assert!(
        lines.lines().any(|line| line.starts_with("<3>snapback: ")),
        "{lines}"
    );
    assert!(lines.lines().all(|line| line.starts_with('<')), "{lines}");

    // Another file is no stream to the journal.
    fs::write(world.path("other"), "").unwrap();
    let other = File::open(world.path("other")).unwrap();
    let mut command = with_journal(&refused(&world), nothing.path());
    command.env("JOURNAL_STREAM", stream(&other));
    let (code, _, error) = run(&mut command);
    assert_eq!(code, Some(2));
    assert!(
        error.contains("snapback: ") && !error.contains("<3>"),
        "{error}"
    );

    let mut command = refused(&world);
    command.args(["--log-target", "journal"]);
    let (code, _, error) = run(&mut with_journal(&command, nothing.path()));
    assert_eq!(code, Some(2));
    assert!(error.contains("use --log-target stderr"), "{error}");
}
