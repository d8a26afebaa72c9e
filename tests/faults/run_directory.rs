//! The folder of the sockets, and of the records of deferred entries.

use std::fs;

use super::field::{DISK, assert_same};
use super::*;

fn plain() -> (tempfile::TempDir, Field) {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk.img");
    let field = Field::new(disk.clone(), &disk);
    (folder, field)
}

/// Who is connected stays so; nobody else finds the sockets.
#[test]
fn a_run_directory_that_is_removed_cuts_nobody_off_and_is_missed_at_the_next_start() {
    let (_folder, mut field) = plain();
    field.start(&[]);
    let mut guest = field.guest("a.sock");
    let before = field.client();
    assert!(before.status().is_ok());
    let away = field.here.path().with_extension("away");
    fs::rename(field.here.path(), &away).unwrap();
    assert_eq!(guest.write(0, &pattern(1, 65536)), 0);
    assert_eq!(guest.flush(), 0);
    assert!(field.client().status().is_err(), "nobody finds the socket");
    fs::rename(&away, field.here.path()).unwrap();
    assert_eq!(field.status().views[0].io.errors, 0);

    for name in ["a.sock", "c.sock"] {
        fs::remove_file(field.path(name)).unwrap();
    }
    assert_eq!(guest.read(0, 65536).unwrap(), pattern(1, 65536));
    drop(guest);
    assert!(field.stop().success());
    field.start(&[]);
    assert_eq!(field.shows("a.sock")[..65536], pattern(1, 65536));
    assert!(field.stop().success());

    let mut command = std::process::Command::new(assert_cmd::cargo::cargo_bin!("snapback"));
    command
        .current_dir(field.here.path())
        .args(["serve", "--origin", field.disk.to_str().unwrap()])
        .args(["--socket-path", "missing/a.sock"]);
    let output = super::limited::output(&mut command);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("missing/a.sock"), "{said}");
    fs::create_dir(field.path("missing")).unwrap();
    let mut child = command.spawn().unwrap();
    field.until("it serves", |f| f.path("missing/a.sock").exists());
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_full_run_directory_refuses_new_sockets_and_serves_those_that_are_there() {
    let Some(small) = Small::mount("tmpfs", "size=64k,nr_inodes=4") else {
        return;
    };
    let (folder, mut field) = plain();
    field.start(&["--allow-path", small.path("").to_str().unwrap()]);
    while fs::File::create(small.path(&format!("{:?}", std::time::Instant::now()))).is_ok() {}
    let mut spec = field.spec("s", folder.path());
    let socket = small.path("s.sock");
    spec.socket = Some(socket.to_str().unwrap().to_owned());
    let refused = field.client().add_snapshot(&spec).unwrap_err().to_string();
    assert!(
        refused.contains("s.sock") && refused.contains("No space left"),
        "{refused}"
    );
    assert!(field.status().snapshots.is_empty());
    assert!(!folder.path().join("s.cow").exists(), "undone");
    for entry in fs::read_dir(small.path("")).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    field.client().add_snapshot(&spec).unwrap();
    let mut own = guest::Guest::connect(&socket);
    assert_same(&own.read_all(DISK), &pattern(0, DISK), "the snapshot");
}

/// A record has its memory before it is needed.
#[test]
fn a_run_directory_that_fills_up_takes_nothing_from_records_that_are_there() {
    let Some(small) = Small::mount("tmpfs", "size=512k") else {
        return;
    };
    let (folder, mut field) = plain();
    let mut command = field.command(&[]);
    command.env("XDG_RUNTIME_DIR", small.path(""));
    field.start_by(command);
    let spec = |name| {
        let mut spec = field.spec(name, folder.path());
        spec.defer_entries = Some(true);
        spec
    };
    field.client().add_snapshot(&spec("s")).unwrap();
    if !field.status().snapshots[0].defer_entries {
        println!("skipped: {}", field.log());
        return;
    }
    small.fill();
    let mut own = field.guest("s.sock");
    for at in 0..500 {
        assert_eq!(own.write(at * 8, &pattern(2, 4096)), 0);
    }
    assert_eq!(own.flush(), 0);
    assert_eq!(field.state("s"), "active");
    // One that finds no room is durable at once instead, and the log says so.
    field.client().add_snapshot(&spec("t")).unwrap();
    let status = field.status();
    let t = status.snapshots.iter().find(|s| s.name == "t").unwrap();
    assert!(!t.defer_entries);
    let log = field.log();
    assert!(log.contains("No space left"), "{log}");
    let mut other = field.guest("t.sock");
    assert_eq!(other.write(0, &pattern(3, 4096)), 0);
    drop((own, other));
    field.kill();
    let mut command = field.command(&[]);
    command.env("XDG_RUNTIME_DIR", small.path(""));
    field.start_by(command);
    assert_eq!(field.shows("t.sock")[..4096], pattern(3, 4096));
    assert_eq!(field.shows("s.sock")[..4096], pattern(2, 4096));
}
