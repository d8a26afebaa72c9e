//! The events that a follower receives. I04 of `docs/checklist.md`.

use std::sync::mpsc::{Receiver, channel};

use serde_json::Value;

use super::*;

const LONG: Duration = Duration::from_secs(60);
/// 16 chunks of 4 KiB: header, area and 14 for data.
const SMALL: u64 = 64 << 10;

/// The events of a daemon, from the first on.
struct Events(Receiver<Value>);

impl Events {
    fn follow(world: &World) -> Self {
        let (send, events) = channel();
        let client = world.client();
        std::thread::spawn(move || {
            let ended = client.follow_events(0, None, |event| send.send(event).is_ok());
            let _ = send.send(Value::from(format!("{ended:?}")));
        });
        Self(events)
    }

    fn next(&self) -> Value {
        self.0.recv_timeout(LONG).expect("an event")
    }

    /// The next event that no front end or guest is the cause of, which must be this.
    #[track_caller]
    fn expect(&self, snapshot: &str, kind: &str) -> Value {
        loop {
            let event = self.next();
            let told = event["kind"].as_str().unwrap_or_default();
            let guests = [
                "front-end-connected",
                "front-end-left",
                "guest-reset",
                "driver-started",
            ];
            if guests.contains(&told) {
                continue;
            }
            assert_eq!(
                (&event["snapshot"], told),
                (&name(snapshot), kind),
                "{event}"
            );
            return event;
        }
    }
}

fn name(snapshot: &str) -> Value {
    match snapshot {
        "" => Value::Null,
        name => Value::from(name),
    }
}

fn small(world: &World, name: &str, store_type: StoreType) -> SnapshotSpec {
    SnapshotSpec {
        size: Some(SMALL),
        store_type,
        ..world.snapshot(name)
    }
}

#[test]
fn a_snapshot_is_heard_of_from_its_taking_to_its_removal() {
    let mut world = World::new();
    world.start(&["--socket-path", "a.sock"]);
    let events = Events::follow(&world);
    events.expect("", "started");
    let client = world.client();
    client
        .add_snapshot(&small(&world, "po", StoreType::PO))
        .unwrap();
    let added = events.expect("po", "snapshot-added");
    assert_eq!(added["at_start"], false);
    assert_eq!(added["cow"], world.path("po.cow").to_str().unwrap());

    // Its own guest fills it, chunk by chunk.
    let mut guest = Guest::connect(&world.path("po.sock"));
    for chunk in 0..14 {
        assert_eq!(guest.write(chunk * 8, &[1; 4096]), 0);
    }
    for percent in [81, 87, 93, 100] {
        let usage = events.expect("po", "usage-threshold");
        assert_eq!(usage["percent"], percent);
    }
    assert_ne!(guest.write(800, &[1; 4096]), 0, "no room for this");
    events.expect("po", "snapshot-overflow");
    assert_ne!(guest.write(800, &[1; 4096]), 0, "nor for a second time");
    client.grow_snapshot("po", 2 * SMALL).unwrap();
    assert_eq!(events.expect("po", "snapshot-grown")["size"], 2 * SMALL);

    // Up to 26 of 32 chunks, as if nothing had been.
    for chunk in 100..110 {
        assert_eq!(guest.write(chunk * 8, &[1; 4096]), 0);
    }
    assert_eq!(events.expect("po", "usage-threshold")["percent"], 81);
    drop(guest);
    world.until("the guest has left", |w| {
        let views = w.client().status().unwrap().views;
        views.iter().all(|v| !v.attached)
    });
    client.remove_snapshot("po").unwrap();
    events.expect("po", "snapshot-removed");
    // What was answered is in the log.
    let page = client.events(0, None).unwrap();
    assert_eq!(page.events.last().unwrap()["kind"], "snapshot-removed");
    world.terminate();
    events.expect("", "stopping");
}

#[test]
fn an_invalidation_is_told_when_it_is_durable_and_calls_a_rollback_off() {
    let mut world = World::new();
    world.start(&["--socket-path", "a.sock"]);
    let client = world.client();
    client
        .add_snapshot(&small(&world, "p", StoreType::P))
        .unwrap();
    let mut guest = Guest::connect(&world.path("a.sock"));
    assert_eq!(guest.flush(), 0); // it has started: this is no reset any more
    assert_eq!(
        world.rollback("p", RollbackWhen::AtReset),
        RollbackOutcome::AtNextReset
    );
    let events = Events::follow(&world);
    events.expect("", "started");
    events.expect("p", "snapshot-added");
    events.expect("p", "rollback-pending");
    // One chunk more than there is room for.
    for chunk in 0..15 {
        assert_eq!(guest.write(chunk * 8, &[1; 4096]), 0);
    }
    for _ in [81, 87, 93, 100] {
        events.expect("p", "usage-threshold");
    }
    let invalid = events.expect("p", "snapshot-invalid");
    assert_eq!(invalid["reason"], "full");
    let cow = fs::read(world.path("p.cow")).unwrap();
    assert_eq!(cow[4..8], [0; 4], "`valid` in its header");
    let cancelled = events.expect("p", "rollback-cancelled");
    assert_eq!(cancelled["reason"], "invalid");
    assert_eq!(world.state()["rollback_at_reset"], Value::Null);
    assert_eq!(world.state()["snapshots"][0]["valid"], false);

    // The next daemon says how it found it, and is another one.
    world.kill();
    assert!(
        events.next().as_str().unwrap().contains("Lost"),
        "killed is no end in order"
    );
    let before = client.events(0, None).unwrap_err().to_string();
    assert!(before.contains("no daemon"), "{before}");
    world.start(&[]);
    let again = Events::follow(&world);
    let started = again.expect("", "started");
    assert_ne!(started["instance"], invalid["instance"]);
    assert_eq!(again.expect("p", "snapshot-added")["at_start"], true);
    assert_eq!(again.expect("p", "snapshot-invalid")["reason"], "loaded");
    // Who asks for what came after the old daemon's events gets all of the new one's.
    let seq = invalid["seq"].as_u64().unwrap();
    let old = invalid["instance"].as_str();
    for page in [
        client.events(seq, old).unwrap(),
        client.events(seq, None).unwrap(),
    ] {
        assert_eq!(page.events[0]["kind"], "started");
        assert_ne!(Some(&page.instance[..]), old);
    }
}

#[test]
fn a_rollback_is_heard_of_from_the_handover_to_the_end_of_its_merge() {
    let mut world = World::new();
    world.start(&["--socket-path", "a.sock"]);
    let client = world.client();
    for name in ["s1", "s2"] {
        client.add_snapshot(&world.snapshot(name)).unwrap();
    }
    let mut guest = Guest::connect(&world.path("a.sock"));
    wreck(&mut guest, 1);
    let events = Events::follow(&world);
    events.expect("", "started");
    events.expect("s1", "snapshot-added");
    events.expect("s2", "snapshot-added");
    // A rollback that comes to nothing because of another one.
    world.rollback("s2", RollbackWhen::AtReset);
    events.expect("s2", "rollback-pending");
    let request = RollbackRequest {
        snapshot: "s1".into(),
        when: RollbackWhen::Now,
        keep: None,
        rate: Some(4096), // a chunk a second: it lasts longer than this test needs
        ..Default::default()
    };
    client.rollback(&request).unwrap();
    // The engine's word and the daemon's may come either way round.
    let mut told = [events.next(), events.next()].map(|e| {
        let text = |field: &str| e[field].as_str().unwrap_or("-").to_owned();
        format!("{} {} {}", text("snapshot"), text("kind"), text("reason"))
    });
    told.sort();
    assert_eq!(told, ["s1 handover -", "s2 rollback-cancelled replaced"]);
    client.pause_merge().unwrap();
    events.expect("s1", "merge-paused");
    client.pause_merge().unwrap(); // is no news
    client.resume_merge().unwrap();
    events.expect("s1", "merge-resumed");
    client.set_merge_rate(0).unwrap();
    let done = events.expect("s1", "merge-done");
    assert!(done["chunks"].as_u64().unwrap() > 16);
    // Told when it is recorded, and nothing of it is left.
    assert_eq!(world.state()["merge"], Value::Null);
    assert_eq!(world.state()["snapshots"].as_array().unwrap().len(), 1);
    world.merged();
}

#[test]
fn a_merge_that_fails_and_goes_on_is_told_in_the_order_in_which_it_did() {
    let mut world = World::new();
    world.start(&["--socket-path", "a.sock"]);
    let client = world.client();
    client.add_snapshot(&world.snapshot("s")).unwrap();
    let mut guest = Guest::connect(&world.path("a.sock"));
    wreck(&mut guest, 1);
    let events = Events::follow(&world);
    events.expect("", "started");
    events.expect("s", "snapshot-added");
    let request = MergeRequest {
        snapshot: "s".into(),
        follow: false,
        rate: Some(4096),
        now: true,
    };
    client.merge(&request).unwrap();
    events.expect("s", "handover");
    // The rate lets 64 KiB be merged, and nothing more for 16 seconds. A cut under the
    // removal of an entry could not be resumed from.
    eventually("the first chunks are merged", || {
        client.status().unwrap().merge.unwrap().chunks_done == 16
    });
    client.pause_merge().unwrap();
    events.expect("s", "merge-paused");
    // Header and area stay, the data is gone.
    let cow = fs::OpenOptions::new().write(true).open(world.path("s.cow"));
    cow.unwrap().set_len(8192).unwrap();
    client.set_merge_rate(0).unwrap();
    client.resume_merge().unwrap();
    let mut first = events.next();
    if first["kind"] == "merge-failed" {
        first = events.next(); // a batch was under way
    }
    assert_eq!(first["kind"], "merge-resumed");
    for _ in 0..5 {
        events.expect("s", "merge-failed");
        let merge = client.status().unwrap().merge.unwrap();
        assert!(merge.error.is_some(), "{merge:?}");
        client.resume_merge().unwrap();
        events.expect("s", "merge-resumed");
    }
    events.expect("s", "merge-failed");
}

#[test]
fn a_rollback_that_fails_at_the_reset_is_told_and_stays_pending_until_called_off() {
    let mut world = World::new();
    world.start(&["--socket-path", "a.sock"]);
    let client = world.client();
    client.add_snapshot(&world.snapshot("s")).unwrap();
    let request = RollbackRequest {
        snapshot: "s".into(),
        when: RollbackWhen::AtReset,
        keep: Some(world.snapshot("undo")),
        rate: None,
        ..Default::default()
    };
    client.rollback(&request).unwrap();
    let events = Events::follow(&world);
    events.expect("", "started");
    events.expect("s", "snapshot-added");
    events.expect("s", "rollback-pending");
    fs::write(world.path("undo.cow"), [1; 1 << 20]).unwrap();
    world.boot();
    let failed = events.expect("s", "rollback-failed");
    assert!(
        failed["error"].as_str().unwrap().contains("undo"),
        "{failed}"
    );
    assert_eq!(
        client.status().unwrap().rollback_at_reset.as_deref(),
        Some("s")
    );
    client.cancel_rollback().unwrap();
    assert_eq!(events.expect("s", "rollback-cancelled")["reason"], "asked");
    world.rollback("s", RollbackWhen::AtReset);
    events.expect("s", "rollback-pending");
    client.remove_snapshot("s").unwrap();
    assert_eq!(
        events.expect("s", "rollback-cancelled")["reason"],
        "removed"
    );
    events.expect("s", "snapshot-removed");
}

#[test]
fn the_comings_and_goings_of_guests_are_told_with_their_sockets() {
    let mut world = World::new();
    world.start(&["--socket-path", "a.sock"]);
    world.client().add_snapshot(&world.snapshot("s")).unwrap();
    let events = Events::follow(&world);
    events.expect("", "started");
    events.expect("s", "snapshot-added");
    for (socket, snapshot) in [("a.sock", ""), ("s.sock", "s")] {
        let mut guest = Guest::connect(&world.path(socket));
        guest.read(0, 512).unwrap();
        drop(guest);
        for kind in ["front-end-connected", "driver-started", "front-end-left"] {
            let event = events.next();
            assert_eq!(event["kind"], kind, "{event}");
            assert_eq!(event["snapshot"], name(snapshot));
            let told = event["socket"].as_str().unwrap();
            assert!(told.ends_with(&format!("/{socket}")), "{told}");
        }
    }
}
