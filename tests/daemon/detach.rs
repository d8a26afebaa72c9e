//! The socket that a live commit leaves is closed for good.

use rustix::process::{Pid, Signal, kill_process};

use super::*;

/// A served disk with two sockets: the second is left of a fork that was merged.
fn with_left_socket() -> (World, Guest) {
    let mut world = World::new();
    world.start(&["--socket-path", "a.sock"]);
    let mut work = world.snapshot("work");
    work.read_only = Some(true);
    world.client().add_snapshot(&work).unwrap();
    let guest = Guest::connect(&world.path("work.sock"));
    let request = MergeRequest {
        snapshot: "work".into(),
        follow: true,
        ..Default::default()
    };
    world.client().merge(&request).unwrap();
    world.merged();
    (world, guest)
}

fn views(world: &World) -> Vec<String> {
    let views = world.client().status().unwrap().views;
    views.into_iter().filter_map(|v| v.socket).collect()
}

#[test]
fn the_socket_of_a_merged_fork_is_closed_for_good_once_its_guest_is_gone() {
    let (mut world, guest) = with_left_socket();
    let at = |name: &str| world.path(name).to_str().unwrap().to_owned();
    let (disk, left, other) = (at("a.sock"), at("work.sock"), at("other.sock"));
    let client = world.client();
    let refused = |socket: &str| client.detach(socket).unwrap_err().to_string();
    assert!(refused(&left).contains("a guest is attached"));
    assert!(refused(&disk).contains("the disk's own socket"));
    assert!(refused("/nowhere.sock").contains(&format!("there are: {left}")));
    client.add_snapshot(&world.snapshot("other")).unwrap();
    assert!(refused(&other).contains("snapback remove other"));
    assert_eq!(views(&world), [disk.clone(), left.clone(), other.clone()]);

    drop(guest);
    world.until("the guest has left", |w| !w.attached());
    // Whoever looks for it by its name is told the verb.
    let unknown = client.remove_snapshot("work").unwrap_err().to_string();
    let verb = format!("snapback detach {left}");
    assert!(unknown.contains(&verb), "{unknown}");
    let output = output(
        Command::new(assert_cmd::cargo::cargo_bin!("snapback"))
            .args(verb.split(' ').skip(1))
            .args(["--control", &at("c.sock")]),
    );
    assert!(output.status.success(), "{output:?}");
    assert!(!world.path("work.sock").exists());
    assert_eq!(views(&world), [disk.clone(), other.clone()]);
    let state = world.state();
    assert_eq!(state["followed_sockets"], serde_json::json!([]));
    assert_eq!(state["read_only_sockets"], serde_json::Value::Null);
    let events = client.events(0, None).unwrap().events;
    let closed = events.iter().find(|e| e["kind"] == "socket-closed");
    assert_eq!(closed.unwrap()["socket"], left);
    assert!(refused(&left).contains("there are none"));

    world.terminate();
    world.start(&[]);
    assert_eq!(views(&world), [disk, other]);
    assert!(!world.path("work.sock").exists());
}

fn signal(world: &World, signal: Signal) {
    let daemon = world.daemon.as_ref().unwrap();
    kill_process(Pid::from_child(daemon), signal).unwrap();
}

/// A verb that came right after the hang-up was refused, because the thread that serves the
/// view had not yet run.
#[test]
fn a_guest_that_has_just_left_is_in_nobodys_way() {
    let mut world = World::new();
    world.start(&["--socket-path", "a.sock"]);
    for round in 0..15 {
        let name = format!("s{round}");
        world.client().add_snapshot(&world.snapshot(&name)).unwrap();
        let socket = if round % 3 == 0 { &name } else { "a" };
        let guest = Guest::connect(&world.path(&format!("{socket}.sock")));
        // Both wait for the daemon's threads, in whatever order these run.
        signal(&world, Signal::STOP);
        drop(guest);
        let client = world.client();
        let asked = std::thread::spawn(move || match round % 3 {
            0 => client.remove_snapshot(&name).map(|_| ()),
            1 => {
                let snapshot = name;
                let request = MergeRequest {
                    snapshot,
                    ..Default::default()
                };
                client.merge(&request).map(|_| ())
            }
            _ => {
                let snapshot = name;
                let request = RollbackRequest {
                    snapshot,
                    ..Default::default()
                };
                let reply = client.rollback(&request)?;
                assert_eq!(reply.outcome, RollbackOutcome::Started);
                Ok(())
            }
        });
        std::thread::sleep(Duration::from_millis(20));
        signal(&world, Signal::CONT);
        asked.join().unwrap().unwrap();
        world.merged();
    }
    world.terminate();
}
