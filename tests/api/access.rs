//! Other users at the control socket.

use std::process::Command;

use serde_json::Value;

use crate::world::World;

/// Nobody's number.
const OTHER: u32 = 65_534;

/// A request of another user; its status and body. `None`: this test cannot take one's place.
fn ask_as_other(world: &World, method: &str, path: &str, body: &str) -> Option<(u16, Value)> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can act as another user");
        return None;
    }
    let output = Command::new("setpriv")
        .args(["--reuid", &OTHER.to_string(), "--clear-groups"])
        .args([
            "curl",
            "-sS",
            "-w",
            "\n%{http_code}",
            "-X",
            method,
            "-d",
            body,
        ])
        .arg("--unix-socket")
        .arg(world.path("c.sock"))
        .arg(format!("http://localhost{path}"))
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let (body, status) = text.rsplit_once('\n').unwrap();
    let value = serde_json::from_str(body).unwrap_or(Value::Null);
    Some((status.parse().unwrap(), value))
}

#[test]
fn another_user_may_read_and_nothing_else_and_changes_are_logged() {
    let world = World::start(&[]);
    world.open_to_others();
    let Some((status, read)) = ask_as_other(&world, "GET", "/v1/status", "") else {
        return;
    };
    assert_eq!(status, 200);
    assert_eq!(read, world.status());
    let spec = world.spec("s1", 1 << 20);
    for (method, path, body) in [
        ("PUT", "/v1/snapshots/s1", &spec[..]),
        ("DELETE", "/v1/snapshots/s1", ""),
        ("POST", "/v1/merge", "{\"snapshot\":\"s1\"}"),
        ("POST", "/v1/release", ""),
    ] {
        let (status, refusal) = ask_as_other(&world, method, path, body).unwrap();
        assert_eq!(status, 403, "{method} {path}: {refusal}");
        assert_eq!(refusal["type"], "urn:snapback:problem:forbidden");
        assert_eq!(refusal["kind"], "forbidden");
        let message = refusal["message"].as_str().unwrap();
        assert!(message.contains("--control-allow 65534"), "{message}");
    }
    assert_eq!(world.status(), read);
    world.ask("PUT", "/v1/snapshots/s1", &spec).assert(204);
    let log = world.log();
    let changes: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("change over the control socket"))
        .collect();
    assert_eq!(changes.len(), 5, "{log}");
    assert!(changes[0].contains("uid=65534 pid="), "{log}");
    assert!(
        changes[0].contains("path=\"/v1/snapshots/s1\" status=403"),
        "{log}"
    );
    let own = format!("uid=0 pid={}", std::process::id());
    assert!(
        changes[4].contains(&own) && changes[4].contains("status=204"),
        "{log}"
    );
}

#[test]
fn a_user_on_the_list_may_change_things() {
    // As the refusal of the other test says.
    for allowed in ["65534", "nobody", "all"] {
        let world = World::start(&["--control-allow", allowed]);
        world.open_to_others();
        let spec = world.spec("s1", 1 << 20);
        let Some((status, answer)) = ask_as_other(&world, "PUT", "/v1/snapshots/s1", &spec) else {
            return;
        };
        assert_eq!(status, 204, "{allowed}: {answer}");
        assert_eq!(world.status()["snapshots"][0]["name"], "s1");
    }
}
