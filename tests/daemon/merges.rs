//! Merges over stops, kills and starts; live commits, whose views follow the merge.

use serde_json::Value;

use super::*;

#[test]
fn a_merge_goes_on_after_a_stop_and_after_a_kill_as_paused_as_it_was() {
    let mut world = World::new();
    let before = world.origin();
    world.start(&["--socket-path", "a.sock"]);
    world
        .client()
        .add_snapshot(&world.snapshot("before"))
        .unwrap();
    wreck(&mut Guest::connect(&world.path("a.sock")), 1);
    let request = RollbackRequest {
        snapshot: "before".into(),
        when: RollbackWhen::Now,
        keep: None,
        rate: Some(64 << 10),
        ..Default::default()
    };
    world.client().rollback(&request).unwrap();
    world.client().pause_merge().unwrap();
    let taken = world
        .client()
        .add_snapshot(&world.snapshot("late"))
        .unwrap_err()
        .to_string();
    assert!(taken.contains("merge of before is running"), "{taken}");
    world.terminate_at_once();

    world.start(&[]);
    let status = world.client().status().unwrap();
    assert!(
        status
            .merge
            .as_ref()
            .is_some_and(|m| m.paused && m.chunks_left > 0),
        "{status:?}"
    );
    assert_eq!(status.snapshots[0].state, State::MergePaused);
    let left = status.merge.unwrap().chunks_left;
    assert_same(
        &Guest::connect(&world.path("a.sock")).read_all(BYTES),
        &before,
        "in the middle",
    );
    world.client().resume_merge().unwrap();
    world.until("it goes on", |w| {
        w.client()
            .status()
            .unwrap()
            .merge
            .is_none_or(|m| m.chunks_left < left)
    });
    world.kill();
    world.start(&[]);
    world.client().set_merge_rate(0).ok();
    world.merged();
    assert_same(&world.origin(), &before, "merged over three daemons");
}

#[test]
fn a_live_commit_is_not_noticed_and_its_socket_lasts() {
    let mut world = World::new();
    world.start(&["--socket-path", "a.sock"]);
    world
        .client()
        .add_snapshot(&world.snapshot("work"))
        .unwrap();
    let mut guest = Guest::connect(&world.path("work.sock"));
    wreck(&mut guest, 5);
    let work = guest.read_all(BYTES);
    let request = MergeRequest {
        snapshot: "work".into(),
        follow: true,
        rate: None,
        now: true,
    };
    world.client().merge(&request).unwrap();
    assert_same(&guest.read_all(BYTES), &work, "during the merge");
    world.merged();
    assert_eq!(guest.write(7, &[9; 512]), 0);
    assert_eq!(guest.read(7, 512).unwrap(), [9; 512]);
    drop(guest);
    world.terminate();
    assert_eq!(&world.origin()[7 * 512..8 * 512], [9; 512]);
    world.start(&[]);
    assert_eq!(
        Guest::connect(&world.path("work.sock"))
            .read(7, 512)
            .unwrap(),
        [9; 512]
    );
}

/// The connection events of a socket that came after event `since`: their snapshots.
fn connections(world: &World, socket: &str, since: u64) -> Vec<Value> {
    let socket = Value::from(world.path(socket).to_str().unwrap());
    let events = world.client().events(since, None).unwrap().events;
    let connected = events
        .into_iter()
        .filter(|e| e["kind"] == "front-end-connected" && e["socket"] == socket);
    connected.map(|e| e["snapshot"].clone()).collect()
}

#[test]
fn a_followers_guest_is_the_origins_also_after_a_restart_in_the_middle() {
    let mut world = World::new();
    world.start(&["--socket-path", "a.sock"]);
    world
        .client()
        .add_snapshot(&world.snapshot("work"))
        .unwrap();
    let mut guest = Guest::connect(&world.path("work.sock"));
    wreck(&mut guest, 5);
    let work = guest.read_all(BYTES);
    let request = MergeRequest {
        snapshot: "work".into(),
        follow: true,
        rate: Some(1), // a batch, and then it waits
        now: true,
    };
    world.client().merge(&request).unwrap();
    drop(guest);
    world.kill();
    world.start(&[]);
    assert!(
        world.client().status().unwrap().merge.is_some(),
        "in the middle"
    );

    let mut guest = Guest::connect(&world.path("work.sock"));
    assert_same(&guest.read_all(BYTES), &work, "in the middle of the merge");
    assert_eq!(connections(&world, "work.sock", 0), [Value::Null]);
    world.client().set_merge_rate(0).unwrap();
    world.merged();
    assert_same(&guest.read_all(BYTES), &work, "after the merge");
}

#[test]
fn a_merge_that_was_paused_goes_on_offline() {
    let mut world = World::new();
    let before = world.origin();
    world.start(&["--socket-path", "a.sock"]);
    world.client().add_snapshot(&world.snapshot("s")).unwrap();
    let mut guest = Guest::connect(&world.path("a.sock"));
    wreck(&mut guest, 3);
    drop(guest);
    let request = MergeRequest {
        snapshot: "s".into(),
        follow: false,
        rate: Some(1), // a batch, and then it waits
        now: true,
    };
    world.client().merge(&request).unwrap();
    world.client().pause_merge().unwrap();
    world.terminate();
    assert_eq!(world.state()["merge"]["paused"], true);
    let mut child = Command::new(assert_cmd::cargo::cargo_bin!("snapback"))
        .current_dir(world.folder.path())
        .env("XDG_RUNTIME_DIR", world.folder.path())
        .args(["merge", "--origin", "disk.img", "--cow", "s.cow"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let start = Instant::now();
    let ended = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None if start.elapsed() > Duration::from_secs(60) => {
                child.kill().unwrap();
                panic!("the merge does not end");
            }
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    assert!(ended.success(), "{ended}");
    assert_same(&world.origin(), &before, "merged offline");
}

/// The advice to remove a file must not outlive the reason for it.
#[test]
fn the_status_shows_the_rate_limit_and_then_the_cow_that_is_left_until_it_is_used_or_gone() {
    let mut world = World::new();
    world.start(&["--socket-path", "a.sock"]);
    let client = world.client();
    let left_over = || client.status().unwrap().last_merge.unwrap().cow;
    // A slow machine may need longer to look than a status waits.
    let gone = |what| world.until(what, |_| left_over().is_none());
    let cow = world.path("s.cow").to_str().unwrap().to_owned();
    let merge = |rate| {
        client.add_snapshot(&world.snapshot("s")).unwrap();
        wreck(&mut Guest::connect(&world.path("a.sock")), 1);
        let request = MergeRequest {
            snapshot: "s".into(),
            follow: false,
            rate,
            now: true,
        };
        client.merge(&request).unwrap();
    };
    merge(Some(4096));
    let limit = || client.status().unwrap().merge.unwrap().rate_limit;
    assert_eq!(limit(), Some(4096));
    client.set_merge_rate(0).unwrap();
    assert!(
        client
            .status()
            .unwrap()
            .merge
            .is_none_or(|m| m.rate_limit.is_none())
    );
    world.merged();
    assert_eq!(left_over().as_ref(), Some(&cow));

    // Used by another snapshot of this volume.
    client.add_snapshot(&world.snapshot("s")).unwrap();
    assert_eq!(left_over(), None);
    client.remove_snapshot("s").unwrap();
    gone("it is the COW of a removed snapshot now");

    fs::remove_file(&cow).unwrap();
    merge(None);
    world.merged();
    assert_eq!(left_over().as_ref(), Some(&cow));
    fs::remove_file(&cow).unwrap();
    gone("it was removed");
    fs::write(&cow, "something else").unwrap();
    assert_eq!(left_over(), None);
}
