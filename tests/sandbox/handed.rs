//! COWs that the command line opens and hands over, because the daemon may not open them.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::fs::{FlockOperation, fcntl_lock};
use snapback::control::Client;

use crate::guest::{Guest, Kind};
use crate::listening::listens;
use crate::world::{USER, World, succeeds};

const ONE_MIB: u64 = 1 << 20;

fn line(world: &World, arguments: &[&str]) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("snapback"));
    command
        .current_dir(world.folder.path())
        .env("XDG_RUNTIME_DIR", world.folder.path())
        .env("SNAPBACK_CONTROL", world.path("c.sock"))
        .args(arguments)
        .stdin(Stdio::null());
    command
}

#[track_caller]
fn says(world: &World, arguments: &[&str]) {
    let output = line(world, arguments).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{error}\n{}", world.log());
}

#[track_caller]
fn fails(world: &World, arguments: &[&str]) -> String {
    let output = line(world, arguments).output().unwrap();
    assert!(!output.status.success());
    String::from_utf8(output.stderr).unwrap()
}

/// Somebody has a lock on it that keeps writers away.
fn is_locked(path: &Path) -> bool {
    let file = File::options().read(true).write(true).open(path).unwrap();
    fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive).is_err()
}

fn descriptors(world: &World) -> usize {
    let folder = format!("/proc/{}/fd", world.pid());
    fs::read_dir(folder).unwrap().count()
}

fn write(world: &World, sector: u64) {
    let mut guest = Guest::connect(&world.path("a.sock"), 1, 1);
    let written = succeeds(&mut guest, Kind::Write, sector);
    assert!(written, "{}", world.log());
}

fn names(client: &Client) -> Vec<String> {
    let status = client.status().unwrap();
    status.snapshots.into_iter().map(|s| s.name).collect()
}

#[test]
fn a_cow_that_the_command_line_opens_may_be_anywhere() {
    let elsewhere = tempfile::tempdir().unwrap();
    let place = |name: &str| elsewhere.path().join(name).to_str().unwrap().to_owned();
    let (made, found) = (place("made.cow"), place("found.cow"));
    let mut world = World::new();
    world.start(&[]);
    says(
        &world,
        &["snapshot", "made", "--cow", &made, "--size", "1M"],
    );
    fs::write(&found, vec![0; 1 << 20]).unwrap();
    says(&world, &["snapshot", "found", "--cow", &found]);
    for cow in [&made, &found] {
        let file = fs::metadata(cow).unwrap();
        assert_eq!(file.len(), ONE_MIB, "{cow}");
        assert!(is_locked(Path::new(cow)), "{cow}");
    }
    let made_file = fs::metadata(&made).unwrap();
    assert_eq!(made_file.mode() & 0o777, 0o600);
    assert!(made_file.blocks() * 512 >= ONE_MIB, "its space is there");
    // Their marks are there if the file system of the disk has any.
    world
        .client()
        .add_snapshot(&world.spec("here", world.path("here.cow")))
        .unwrap();
    let mark = |path: &Path| {
        let mut bytes = vec![0; 4096];
        rustix::fs::getxattr(path, "user.snapback", &mut bytes[..]).is_ok()
    };
    let has_marks = mark(&world.path("here.cow"));
    assert_eq!(
        (mark(Path::new(&made)), mark(Path::new(&found))),
        (has_marks, has_marks)
    );
    // What is overwritten goes there.
    let used = |world: &World| world.client().status().unwrap().snapshots[0].allocated_sectors;
    let before = used(&world);
    write(&world, 0);
    assert!(used(&world) > before);
    says(&world, &["grow", "made", "2M"]);
    assert_eq!(fs::metadata(&made).unwrap().len(), 2 * ONE_MIB);
    // It is found again, and merged.
    world.terminate();
    assert!(!is_locked(Path::new(&made)));
    world.start(&[]);
    assert_eq!(names(&world.client()), ["made", "found", "here"]);
    says(&world, &["remove", "found"]);
    world.until("it is released", |_| !is_locked(Path::new(&found)));
    let kept = place("kept.cow");
    let keep = [
        "--keep", "kept", "--cow", &kept, "--size", "1M", "--now", "--wait",
    ];
    says(&world, &[&["rollback", "made"], &keep[..]].concat());
    assert_eq!(names(&world.client()), ["here", "kept"]);
    assert!(is_locked(Path::new(&kept)));
    world.until("it is released", |_| !is_locked(Path::new(&made)));
    says(&world, &["merge", "kept", "--now", "--wait"]);
    world.terminate();
}

#[test]
fn a_rollback_that_waits_has_its_cow_until_it_is_carried_out_or_cancelled() {
    let elsewhere = tempfile::tempdir().unwrap();
    let cow = elsewhere.path().join("kept.cow");
    let mut world = World::new();
    world.start(&["--snapshot", "name=before,cow=before.cow,size=1M"]);
    let waits = |world: &World| {
        let cow = cow.to_str().unwrap();
        let ask = ["rollback", "before", "--at-reset=any", "--keep", "kept"];
        says(world, &[&ask[..], &["--cow", cow, "--size", "1M"]].concat());
        assert_eq!(fs::metadata(cow).unwrap().len(), 0);
        assert!(is_locked(Path::new(cow)));
    };
    let before = world.descriptors_at_rest();
    waits(&world);
    says(&world, &["rollback", "--cancel"]);
    world.until("it is closed", |w| descriptors(w) <= before);
    assert!(!is_locked(&cow));
    // The empty file that is left is taken the next time.
    waits(&world);
    write(&world, 0);
    let has_it = |world: &mut World| names(&world.client()).contains(&"kept".to_owned());
    world.until("it is rolled back", has_it);
    assert_eq!(fs::metadata(&cow).unwrap().len(), ONE_MIB);
    assert!(is_locked(&cow));
    let merged = |w: &mut World| w.client().status().unwrap().merge.is_none();
    world.until("it is merged", merged);
    says(&world, &["remove", "kept"]);
    fs::remove_file(&cow).unwrap();
    // A daemon that starts meanwhile opens it itself.
    let size = ["--size", "1M"];
    says(
        &world,
        &[&["snapshot", "before", "--cow", "again.cow"], &size[..]].concat(),
    );
    waits(&world);
    world.terminate();
    world.start(&[]);
    write(&world, 8);
    world.until("it is rolled back", has_it);
    assert_eq!(fs::metadata(&cow).unwrap().len(), ONE_MIB);
}

#[test]
fn nothing_is_left_of_a_cow_that_is_refused() {
    let elsewhere = tempfile::tempdir().unwrap();
    let cow = elsewhere.path().join("large.cow");
    let mut world = World::new();
    world.start(&[]);
    let before = world.descriptors_at_rest();
    let (cow, size) = (cow.to_str().unwrap(), (1_u64 << 60).to_string());
    let error = fails(
        &world,
        &["snapshot", "large", "--cow", cow, "--size", &size],
    );
    assert!(error.contains("large.cow"), "{error}");
    assert_eq!(
        fs::read_dir(elsewhere.path()).unwrap().count(),
        0,
        "{error}"
    );
    // What was there stays, and is as it was.
    fs::write(cow, [7; 8192]).unwrap();
    let error = fails(&world, &["snapshot", "large", "--cow", cow]);
    assert!(error.contains("not a dm-snapshot COW store"), "{error}");
    assert!(fs::read(cow).unwrap() == [7; 8192]);
    let error = fails(&world, &["snapshot", "large", "--cow", "/proc/self/status"]);
    assert!(error.contains("/proc/self/status"), "{error}");
    world.until("all are closed", |w| descriptors(w) <= before);
    assert!(names(&world.client()).is_empty());
}

#[test]
fn a_daemon_of_another_user_gets_cows_that_it_can_open_again() {
    let elsewhere = tempfile::tempdir().unwrap();
    fs::set_permissions(elsewhere.path(), Permissions::from_mode(0o755)).unwrap();
    let place = |name: &str| elsewhere.path().join(name).to_str().unwrap().to_owned();
    let mut world = World::of_user();
    chown(world.path("disk.img"), Some(USER.0), None).unwrap();
    world.spawn(world.command(&[]).uid(USER.0).gid(USER.1));
    let made = place("made.cow");
    says(
        &world,
        &["snapshot", "made", "--cow", &made, "--size", "1M"],
    );
    let file = fs::metadata(&made).unwrap();
    assert_eq!((file.uid(), file.gid()), USER);
    // Of root only.
    let found = place("found.cow");
    fs::write(&found, vec![0; 1 << 20]).unwrap();
    fs::set_permissions(&found, Permissions::from_mode(0o600)).unwrap();
    let take = ["snapshot", "found", "--cow", &found];
    let error = fails(&world, &take);
    assert!(
        error.contains(&format!("chown {} {found}", USER.0)),
        "{error}"
    );
    chown(&found, Some(USER.0), None).unwrap();
    says(&world, &take);
    world.terminate();
    world.spawn(world.command(&[]).uid(USER.0).gid(USER.1));
    assert_eq!(names(&world.client()), ["made", "found"]);
}

/// The daemon that takes over becomes another user, and limits files when it has the disk.
#[test]
fn a_daemon_that_takes_a_guest_over_is_limited_as_well() {
    let places = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    for place in &places {
        fs::set_permissions(place.path(), Permissions::from_mode(0o755)).unwrap();
    }
    let [first, second] = places.each_ref().map(|place| {
        let cow = place.path().join("cow");
        cow.to_str().unwrap().to_owned()
    });
    let user = format!("{}:{}", USER.0, USER.1);
    let mut world = World::of_user();
    chown(world.path("disk.img"), Some(USER.0), None).unwrap();
    world.start(&["--user", &user]);
    says(
        &world,
        &["snapshot", "first", "--cow", &first, "--size", "1M"],
    );
    let mut source = World {
        folder: tempfile::tempdir().unwrap(),
        daemon: world.daemon.take(),
    };
    let mut next = Command::new(assert_cmd::cargo::cargo_bin!("snapback"));
    next.current_dir(world.folder.path())
        .env("XDG_RUNTIME_DIR", world.folder.path())
        .args(["serve", "--origin", "disk.img", "--socket-path", "b.sock"])
        .args([
            "--control",
            "d.sock",
            "--incoming",
            "c.sock",
            "--user",
            &user,
        ])
        .stdout(Stdio::null())
        .stderr(File::create(world.path("log")).unwrap());
    world.daemon = Some(next.spawn().unwrap());
    world.until("it listens", |w| listens(w.pid(), "b.sock"));
    let _guest = Guest::connect(&world.path("b.sock"), 1, 1);
    assert!(source.daemon.as_mut().unwrap().wait().unwrap().success());
    let client = Client::new(&world.path("d.sock")).unwrap();
    world.until("it serves", |_| client.status().is_ok());
    let told = client.status().unwrap().sandbox.unwrap();
    assert!(told.contains(", files limited"), "{told}");
    let error = client.add_snapshot(&world.spec("second", second.clone().into()));
    let error = error.unwrap_err().to_string();
    assert!(error.contains("--allow-path"), "{error}");
    let take = ["snapshot", "second", "--cow", &second, "--size", "1M"];
    says(&world, &[&take[..], &["--control", "d.sock"]].concat());
    assert_eq!(names(&client), ["first", "second"]);
}

/// Whoever has an open file has its locks as well.
#[test]
fn cows_are_not_taken_from_users_who_are_only_allowed_to_change_something() {
    let elsewhere = tempfile::tempdir().unwrap();
    chown(elsewhere.path(), Some(USER.0), Some(USER.1)).unwrap();
    let cow = elsewhere.path().join("cow").to_str().unwrap().to_owned();
    let mut world = World::new();
    world.start(&["--control-allow", &USER.0.to_string()]);
    for (path, mode) in [("", 0o755), ("c.sock", 0o666)] {
        fs::set_permissions(world.path(path), Permissions::from_mode(mode)).unwrap();
    }
    let before = world.descriptors_at_rest();
    let mut take = line(&world, &["snapshot", "s1", "--cow", &cow, "--size", "1M"]);
    let output = take.uid(USER.0).gid(USER.1).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        error.contains("runs as root or as the daemon's user"),
        "{error}"
    );
    assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0);
    world.until("all are closed", |w| descriptors(w) <= before);
    // Root is told to be able to.
    says(&world, &["snapshot", "s1", "--cow", &cow, "--size", "1M"]);
    // And what the daemon may open itself needs no descriptor.
    let mut take = line(
        &world,
        &["snapshot", "s2", "--cow", "s2.cow", "--size", "1M"],
    );
    let output = take.uid(USER.0).gid(USER.1).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}
